//! A machine on which only the TDs are real: the console's commands run against the emulated module.

use console::Console;
use console::host::define::Definitions;
use console::host::event::{Action, Events};
use console::host::failure::{Code, Failure};
use console::host::load::{Facts, Sample};
use console::host::platform::Platform;
use console::host::{
    Boot, Build, Cpu, Heap, Hex, Ledger, LogRecord, Management, Memory, PowerAction, crash, errors,
    iommu, pci, seam, td,
    tdx::{Tdx, TdxState},
};
use host::platform::Running;
use host::platform::shutdown::Shutdown;
use host::td::registry::Tds;
use hypervisor::machine::console_tds::{ConsoleTds, NoScheduler, SchedulerView};
use hypervisor::machine::devices::{NoPci, PciView};
use hypervisor::machine::load;
use hypervisor::machine::{seam as counts, tdx as reports};
use serde_json::Value;

/// An operator at the console of a host, who types as a script does.
pub struct Operator<'a, 'h, P> {
    console: Console,
    host: Of<'a, 'h, P>,
}

/// The host: its TDs, the scheduler's facts about them, and the machine's PCI functions.
struct Of<'a, 'h, P>(&'a Tds<'h, P>, &'a dyn SchedulerView, &'a dyn PciView);

impl<'a, 'h, P: Running> Operator<'a, 'h, P> {
    pub fn new(tds: &'a Tds<'h, P>) -> Self {
        Self::with(tds, &NoScheduler)
    }

    /// Creates an operator of a host whose TDs are scheduled.
    pub fn with(tds: &'a Tds<'h, P>, scheduler: &'a dyn SchedulerView) -> Self {
        let mut operator = Self {
            console: Console::new(),
            host: Of(tds, scheduler, &NoPci),
        };
        operator.send("json on");
        operator
    }

    /// Gives the host PCI functions.
    pub fn with_pci(mut self, pci: &'a dyn PciView) -> Self {
        self.host.2 = pci;
        self
    }

    fn send(&mut self, line: &str) -> String {
        let mut out = String::new();
        for byte in format!("{line}\r").bytes() {
            self.console.feed(byte, &mut self.host, &mut out);
        }
        out
    }

    /// Runs a command and returns its answer.
    pub fn ask(&mut self, line: &str) -> Value {
        serde_json::from_str(&self.send(line)).unwrap()
    }

    /// Runs a command that must succeed and returns its answer.
    pub fn succeed(&mut self, line: &str) -> Value {
        let answer = self.ask(line);
        assert_eq!(answer["ok"], true, "{line}: {answer}");
        answer
    }

    /// Runs a command that must fail and returns its sentence.
    pub fn fail(&mut self, line: &str) -> String {
        let answer = self.ask(line);
        assert_eq!(answer["ok"], false, "{line}: {answer}");
        answer["error"].as_str().unwrap().to_owned()
    }

    /// Returns the text that people see of a command's answer.
    pub fn read(&mut self, line: &str) -> String {
        self.send("json off");
        let text = self.send(line).replace("\r\n", "\n");
        self.send("json on");
        text
    }
}

impl<P: Running> Of<'_, '_, P> {
    fn shutdown(&self) -> &Shutdown {
        self.0.host().platform.shutdown()
    }
}

impl<P: Running> Management for Of<'_, '_, P> {
    fn build(&self) -> Build {
        Build {
            version: String::new(),
            commit: None,
            compiler: None,
        }
    }

    fn boot(&self) -> Boot {
        Boot {
            cpu: String::new(),
            loaded_from: String::new(),
            secure_boot: false,
            config: None,
            config_problems: Vec::new(),
            problems: self.shutdown().problem().into_iter().collect(),
            crashes: 0,
            image: Hex(0),
            to_prompt_us: None,
            uptime_us: 0,
        }
    }

    fn platform(&self) -> Platform {
        Platform {
            cpu: String::new(),
            cpuid: Vec::new(),
            msrs: Vec::new(),
        }
    }

    fn cpus(&self) -> Vec<Cpu> {
        Vec::new()
    }

    fn mitigations(&self) -> Vec<errors::Mitigation> {
        Vec::new()
    }

    fn pci_list(&self) -> Result<Vec<pci::PciLine>, Failure> {
        Ok(Vec::new())
    }

    fn pci_release(&mut self, _: &str) -> Result<pci::PciReleased, Failure> {
        Err(Code::Unavailable.because("no PCI function is known"))
    }

    fn pci_show(&self, _: &str) -> Result<pci::PciReport, Failure> {
        Err(Code::Unavailable.because("no PCI function is known"))
    }

    fn errors(&self) -> errors::Errors {
        errors::Errors {
            cpus: Vec::new(),
            firmware: Vec::new(),
            nmis: Vec::new(),
            last: Vec::new(),
            silent: Vec::new(),
        }
    }

    fn last_crash(&self) -> Option<crash::Crash> {
        None
    }

    fn drop_crash(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn now_us(&self) -> u64 {
        self.0.host().platform.now_us()
    }

    fn facts(&self) -> Facts {
        Facts {
            manufacturer: None,
            model: None,
            serial_number: None,
            uuid: None,
            firmware: None,
            cpu: String::new(),
            microcode: Hex(0),
            uptime_us: self.now_us(),
            unix_seconds: 0,
        }
    }

    fn sample(&self) -> Sample {
        let Memory { ledger, heap, .. } = self.memory();
        let tds = ConsoleTds {
            tds: self.0,
            scheduler: self.1,
            pci: self.2,
        };
        Sample {
            us: self.now_us(),
            packages: Vec::new(),
            calls: load::calls(self.0.host().platform),
            memory: ledger,
            heap,
            tds: load::tds(&tds),
        }
    }

    fn events(&self, _: u64) -> Events {
        Events {
            lost: 0,
            last: 0,
            events: Vec::new(),
        }
    }

    fn record(&self, _: &Action<'_>) {}

    fn has_password(&self) -> bool {
        false
    }

    fn check_password(&mut self, _: &str) -> Result<bool, Failure> {
        Ok(false)
    }

    fn memory(&self) -> Memory {
        Memory {
            frames: Vec::new(),
            ledger: Ledger::new(0, 0, 0, 0),
            heap: Heap {
                total_bytes: 0,
                used_bytes: 0,
            },
            regions: Vec::new(),
        }
    }

    fn tdx(&self) -> Tdx {
        let mut tdx = Tdx {
            state: TdxState::Ready,
            reasons: Vec::new(),
            dma: self.iommu().dma,
            hkids: None,
            microcode: Vec::new(),
            module: None,
            cmrs: Vec::new(),
            memory: None,
            bring_up: Vec::new(),
            bring_up_us: None,
        };
        reports::correct(&mut tdx, self.shutdown());
        tdx
    }

    fn iommu(&self) -> iommu::Iommu {
        iommu::Iommu {
            dma: iommu::Dma {
                blocked_by_vtd: false,
                why_not: None,
            },
            units: Vec::new(),
            interrupts: None,
            faults: Vec::new(),
            other_faults: 0,
            lost: 0,
            reserved: Vec::new(),
        }
    }

    fn tds(&self) -> Result<Box<dyn td::Tds + '_>, Failure> {
        Ok(Box::new(ConsoleTds {
            tds: self.0,
            scheduler: self.1,
            pci: self.2,
        }))
    }

    fn definitions(&self) -> Result<Box<dyn Definitions + '_>, Failure> {
        Ok(Box::new(ConsoleTds {
            tds: self.0,
            scheduler: self.1,
            pci: self.2,
        }))
    }

    fn config(&self) -> config::Config {
        config::Config::default()
    }

    fn retry_tdx(&mut self) -> Result<Tdx, Failure> {
        Ok(self.tdx())
    }

    fn hkids(&self) -> Result<td::HkidReport, Failure> {
        Ok(counts::hkids(
            self.0.host().coordinator.hkids(),
            Some(self.0),
        ))
    }

    fn stats(&self) -> seam::Stats {
        counts::stats(self.0.host().platform)
    }

    fn seam_bench(&self) -> Result<seam::SeamBench, Failure> {
        Ok(counts::bench(self.0)?)
    }

    fn log_records(&self, _: &mut dyn FnMut(&LogRecord<'_>)) -> u64 {
        0
    }

    fn log_level(&self) -> log::LevelFilter {
        log::LevelFilter::Off
    }

    fn set_log_level(&mut self, _: log::LevelFilter) {}

    fn peek(&mut self, _: u64) -> Result<[u8; 64], Failure> {
        Err(Code::InvalidArgument.because("there is no such memory"))
    }

    fn request_power(&mut self, _: PowerAction) -> Result<String, Failure> {
        Err(Code::Unsupported.because("it stays on"))
    }
}
