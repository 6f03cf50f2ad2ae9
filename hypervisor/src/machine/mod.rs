//! The machine as the console sees it.

mod advisories;
mod attach;
pub mod console_tds;
pub mod definitions;
pub mod devices;
pub mod errors;
mod failure;
mod iommu;
pub mod load;
pub mod networks;
mod pci;
mod platform;
mod scheduler;
pub mod seam;
pub mod stuck;
pub mod tdx;

use alloc::{
    boxed::Box,
    format,
    string::{String, ToString},
    vec::Vec,
};

use boot::BootInfo;
use config::Smt;
use console::host::{
    self as port, Boot, Build, Cpu, CpuState, FrameCount, Heap, Hex, Ledger, LogRecord, Management,
    Memory, PowerAction, Region,
    absent::Absent,
    define::Definitions,
    event::{Action, EventKind, Events},
    failure::{Code, Failure},
    load::{Facts, PackageSample, Sample},
    tdx::Tdx,
};
use host::{platform::Platform as _, td::registry::Tds, tdx::owner};
use log::LevelFilter;
use mm::frames::{Counts, FRAME, ORDER_1G, ORDER_2M, ORDER_4K};

use self::{
    console_tds::{ConsoleTds, SchedulerView},
    devices::PciView,
    pci::MachinePci,
};
use crate::{
    cpu::{self, State, model},
    crash::stores,
    events,
    firmware::smbios::System,
    heap, logging, memory,
    metal::{
        self,
        platform::{METAL, Metal},
        power, tds,
    },
    msr::ThisCpu,
    password, rtc, time,
};

/// The state that commands report on and change.
pub struct Machine {
    /// The facts that the boot path handed over.
    pub info: &'static BootInfo,
    /// The heap that the program allocates from.
    pub heap: &'static heap::Heap,
    /// Problems during the boot, one sentence each.
    pub problems: Vec<String>,
    /// TDX, as its bring-up left it.
    pub tdx: Tdx,
    /// Microseconds from the first line to the prompt, excluding TDX bring-up; `None` before the prompt.
    pub to_prompt_us: Option<u64>,
    /// The machine's identity, from its SMBIOS tables.
    pub system: System,
    /// The power action to take when the running command is done.
    pub power: Option<PowerAction>,
}

impl Management for Machine {
    fn build(&self) -> Build {
        Build {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("SEAMARK_COMMIT").map(Into::into),
            compiler: option_env!("SEAMARK_COMPILER").map(Into::into),
        }
    }

    fn boot(&self) -> Boot {
        Boot {
            cpu: model::here().into(),
            loaded_from: self.info.source.to_string(),
            secure_boot: self.info.secure_boot,
            config: self.info.config_file.clone(),
            config_problems: self.info.config_problems.clone(),
            problems: {
                let down = METAL.shutdown().problem();
                self.problems.iter().cloned().chain(down).collect()
            },
            crashes: stores::crashes(),
            image: Hex(self.info.image.0),
            to_prompt_us: self.to_prompt_us,
            uptime_us: time::us(),
        }
    }

    fn now_us(&self) -> u64 {
        time::us()
    }

    fn facts(&self) -> Facts {
        let System {
            manufacturer,
            model,
            serial_number,
            uuid,
            firmware,
        } = self.system.clone();
        Facts {
            manufacturer,
            model,
            serial_number,
            uuid,
            firmware,
            cpu: model::here().into(),
            microcode: Hex(model::microcode_here().into()),
            uptime_us: time::us(),
            unix_seconds: rtc::unix_seconds(),
        }
    }

    fn sample(&self) -> Sample {
        let (total, counts) = memory::ledger();
        let (heap_total, heap_used) = self.heap.usage();
        let tds = self.tds_and_scheduler();
        Sample {
            us: time::us(),
            packages: packages(),
            calls: load::calls(&METAL),
            memory: ledger(total, &counts),
            heap: Heap {
                total_bytes: heap_total as u64,
                used_bytes: heap_used as u64,
            },
            tds: tds
                .map(|(tds, scheduler)| load::tds(&console_tds(tds, scheduler)))
                .unwrap_or_default(),
        }
    }

    fn events(&self, since: u64) -> Events {
        events::since(since, |id| {
            let config = tds::get()?.config(id)?;
            Some(config.name.clone())
        })
    }

    fn record(&self, action: &Action<'_>) {
        let Action { td, line, failed } = *action;
        match failed {
            None => events::note(EventKind::Action, None, td, format_args!("{line}")),
            Some(code) => events::note(
                EventKind::Action,
                None,
                td,
                format_args!("{line}: {}", code.name()),
            ),
        }
    }

    fn has_password(&self) -> bool {
        password::is_set()
    }

    fn check_password(&mut self, password: &str) -> Result<bool, Failure> {
        password::check(password, tds::work).ok_or_else(|| {
            Code::Failed.because("the password could not be checked, because no CPU answered or there was no memory for it; try again")
        })
    }

    fn platform(&self) -> port::platform::Platform {
        platform::platform(&ThisCpu)
    }

    fn cpus(&self) -> Vec<Cpu> {
        cpu::all().iter().map(|c| describe(c)).collect()
    }

    fn mitigations(&self) -> Vec<port::errors::Mitigation> {
        errors::mitigations()
    }

    fn errors(&self) -> port::errors::Errors {
        errors::look()
    }

    fn last_crash(&self) -> Option<port::crash::Crash> {
        /// The start of 2020: a clock that shows an earlier time is not set.
        const EARLIEST: u64 = 1_577_836_800;
        let report = stores::last()?;
        Some(port::crash::Crash {
            unix: Some(report.of.unix).filter(|unix| *unix >= EARLIEST),
            kept_in: report.stores.iter().map(|store| store.name()).collect(),
            missing_bytes: report.missing,
            lines: report.lines,
        })
    }

    fn drop_crash(&mut self) -> Result<(), Failure> {
        stores::drop_last().map(drop).map_err(Failure::from)
    }

    fn memory(&self) -> Memory {
        let (total, counts) = memory::ledger();
        let (heap_total, heap_used) = self.heap.usage();
        let mut memory = Memory {
            frames: frame_counts(&counts),
            ledger: ledger(total, &counts),
            heap: Heap {
                total_bytes: heap_total as u64,
                used_bytes: heap_used as u64,
            },
            regions: memory::regions()
                .iter()
                .map(|r| Region {
                    start: Hex(r.start),
                    end: Hex(r.end),
                    kind: r.kind.to_string(),
                })
                .collect(),
        };
        if let Some(tds) = tds::get() {
            stuck::show(tds.stuck(), &mut memory);
        }
        memory
    }

    fn networks(&self) -> Vec<port::network::Network> {
        let Ok((tds, scheduler)) = self.tds_and_scheduler() else {
            return self.info.config.network.iter().map(Into::into).collect();
        };
        let named = tds.ids().filter_map(|id| Some((id, tds.config(id)?)));
        let named: Vec<_> = named.collect();
        let named: Vec<_> = named.iter().map(|(id, td)| (*id, &*td.name)).collect();
        scheduler.networks(&named)
    }

    fn pci_list(&self) -> Result<Vec<port::pci::PciLine>, Failure> {
        pci::list()
    }

    fn pci_show(&self, address: &str) -> Result<port::pci::PciReport, Failure> {
        pci::show(address)
    }

    fn pci_release(&mut self, address: &str) -> Result<port::pci::PciReleased, Failure> {
        pci::release(address)
    }

    fn tdx(&self) -> Tdx {
        let mut tdx = self.tdx.clone();
        let up = cpu::all().iter().filter(|cpu| cpu.is_up());
        tdx.microcode = tdx::microcode(up.map(|cpu| (cpu.number, cpu.microcode())));
        if let (Some(hkids), Some(ready)) = (&mut tdx.hkids, metal::tdx::ready()) {
            let count = ready.coordinator.hkids().count();
            hkids.used = count.used as u32;
            hkids.quarantined = count.quarantined as u32;
        }
        tdx::correct(&mut tdx, METAL.shutdown());
        tdx.dma = iommu::dma();
        tdx
    }

    fn iommu(&self) -> port::iommu::Iommu {
        iommu::look()
    }

    fn tds(&self) -> Result<Box<dyn port::td::Tds + '_>, Failure> {
        Ok(match self.tds_and_scheduler() {
            Ok((tds, scheduler)) => Box::new(console_tds(tds, scheduler)),
            Err(failure) => Box::new(Absent {
                config: &self.info.config.td,
                why: failure.why,
            }),
        })
    }

    fn definitions(&self) -> Result<Box<dyn Definitions + '_>, Failure> {
        let (tds, scheduler) = self.tds_and_scheduler()?;
        Ok(Box::new(console_tds(tds, scheduler)))
    }

    fn config(&self) -> config::Config {
        self.info.config.clone()
    }

    fn retry_tdx(&mut self) -> Result<Tdx, Failure> {
        self.tdx = tdx::tdx(&metal::tdx::retry().map_err(|why| Code::WrongState.because(why))?);
        self.bring_tds();
        if self.tdx.state == port::tdx::TdxState::Ready {
            return Ok(self.tdx());
        }
        Err(Code::Failed.because(self.tdx.reasons.join("; ")))
    }

    fn hkids(&self) -> Result<port::td::HkidReport, Failure> {
        let ready = metal::tdx::ready().ok_or_else(|| self.why_no_tds())?;
        Ok(seam::hkids(ready.coordinator.hkids(), tds::get()))
    }

    fn stats(&self) -> port::seam::Stats {
        let mut stats = seam::stats(&METAL);
        if let Ok((tds, scheduler)) = self.tds_and_scheduler() {
            stats.exits = seam::exits(tds, scheduler);
        }
        stats
    }

    fn seam_bench(&self) -> Result<port::seam::SeamBench, Failure> {
        if self.info.config.host.smt == Smt::SameTd {
            return Err(Code::Unsupported.because(
                "the measurement runs a TD of its own beside the others: set host.smt to \"share\" for it",
            ));
        }
        Ok(seam::bench(self.tds_and_scheduler()?.0)?)
    }

    fn log_records(&self, visit: &mut dyn FnMut(&LogRecord<'_>)) -> u64 {
        logging::visit(&mut |r| {
            visit(&LogRecord {
                us: r.us,
                cpu: r.cpu,
                level: r.level,
                target: r.target,
                message: r.message,
            });
        })
    }

    fn log_level(&self) -> LevelFilter {
        log::max_level()
    }

    fn set_log_level(&mut self, level: LevelFilter) {
        log::set_max_level(level);
    }

    fn peek(&mut self, line: u64) -> Result<[u8; 64], Failure> {
        if let Some(ready) = metal::tdx::ready() {
            owner::check_readable(&METAL, ready.keyid, line)
                .map_err(|why| Code::WrongState.because(why))?;
        }
        memory::peek(line).map_err(|why| Code::InvalidArgument.because(why))
    }

    fn request_power(&mut self, action: PowerAction) -> Result<String, Failure> {
        let how = match action {
            PowerAction::Reboot => power::reset_name().into(),
            PowerAction::PowerOff => {
                power::off_name().map_err(|why| Code::Unsupported.because(why))?
            }
        };
        self.power = Some(action);
        Ok(how)
    }
}

impl Machine {
    /// Returns the TDs and the scheduler's facts about them.
    ///
    /// # Errors
    /// A sentence that says why there are none.
    fn tds_and_scheduler(
        &self,
    ) -> Result<(&'static Tds<'static, Metal>, &'static dyn SchedulerView), Failure> {
        match (tds::get(), tds::scheduler()) {
            (Some(tds), Some(scheduler)) => Ok((tds, scheduler)),
            _ => Err(self.why_no_tds()),
        }
    }

    /// Sets up the TDs of the configuration after the module has become ready late, and starts those that start with the
    /// host.
    fn bring_tds(&mut self) {
        for reason in &self.tdx.reasons {
            log::warn!("TDX: {reason}");
        }
        if self.tdx.state != port::tdx::TdxState::Ready {
            return;
        }
        for problem in tds::init(self.info) {
            log::warn!("{problem}");
            self.problems.push(problem);
        }
        tds::autostart();
    }

    fn why_no_tds(&self) -> Failure {
        Code::Unavailable.because(format!(
            "no TD can run here: {}; \"tdx\" says why",
            self.tdx.state.in_words()
        ))
    }
}

fn console_tds(
    tds: &'static Tds<'static, Metal>,
    scheduler: &'static dyn SchedulerView,
) -> ConsoleTds<'static, 'static, Metal> {
    let pci: &dyn PciView = &MachinePci;
    ConsoleTds {
        tds,
        scheduler,
        pci,
    }
}

fn ledger(total: u64, counts: &[Counts]) -> Ledger {
    let bytes = |of: fn(&Counts) -> u64| {
        let orders = counts.iter().enumerate();
        orders.map(|(order, c)| of(c) * (FRAME << order)).sum()
    };
    Ledger::new(
        total,
        bytes(|c| c.free),
        bytes(|c| c.used),
        bytes(|c| c.quarantined),
    )
}

/// Returns the packages with the CPUs that run.
fn packages() -> Vec<PackageSample> {
    let mut packages: Vec<PackageSample> = Vec::new();
    for cpu in cpu::all().iter().filter(|cpu| cpu.is_up()) {
        let package = cpu.place().package;
        let known = packages.iter().position(|known| known.package == package);
        let at = known.unwrap_or_else(|| {
            packages.push(PackageSample {
                package,
                cpus: 0,
                idle_us: 0,
            });
            packages.len() - 1
        });
        packages[at].cpus += 1;
        packages[at].idle_us += cpu.idle_us();
    }
    packages.sort_by_key(|package| package.package);
    packages
}

fn describe(cpu: &cpu::Cpu) -> Cpu {
    let place = cpu.place();
    let vmx = cpu.vmx().and_then(Result::err);
    let (state, detail) = match cpu.state() {
        State::Online => (CpuState::Online, None),
        State::Idle => (CpuState::Idle, None),
        State::NotUsed => (
            CpuState::NotUsed,
            Some("the machine has no x2APIC to start it with".into()),
        ),
        State::Starting | State::NeverStarted => (
            CpuState::NeverStarted,
            Some("no answer after INIT-SIPI-SIPI".into()),
        ),
        State::Stopped => (CpuState::Stopped, None),
    };
    Cpu {
        index: cpu.number,
        apic_id: cpu.apic_id,
        package: place.package,
        core: place.core,
        thread: place.thread,
        numa_node: cpu.node(),
        bootstrap: cpu.bootstrap,
        state,
        detail: detail.or_else(|| vmx.map(|e| format!("not in VMX operation: {e}"))),
    }
}

/// Sums the allocator's orders into the three frame sizes used elsewhere. Free blocks between two sizes count as the
/// smaller size.
fn frame_counts(counts: &[Counts]) -> Vec<FrameCount> {
    let sizes = [ORDER_4K, ORDER_2M, ORDER_1G];
    let ends = [ORDER_2M, ORDER_1G, ORDER_1G + 1];
    let of = |(size, end): (u32, u32)| {
        let mut sum = FrameCount {
            frame_bytes: FRAME << size,
            free: 0,
            used: 0,
            quarantined: 0,
        };
        for order in size..end {
            let Some(c) = counts.get(order as usize) else {
                continue;
            };
            sum.free += c.free << (order - size);
            sum.used += c.used << (order - size);
            sum.quarantined += c.quarantined << (order - size);
        }
        sum
    };
    sizes.into_iter().zip(ends).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_between_two_sizes_count_as_the_smaller() {
        let mut counts = [Counts::default(); 19];
        counts[0].free = 3;
        counts[8].free = 1;
        counts[10].used = 2;
        counts[18].quarantined = 1;
        let sizes = frame_counts(&counts);
        assert_eq!(sizes[0].free, 3 + 256);
        assert_eq!(sizes[1].used, 4);
        assert_eq!(sizes[2].quarantined, 1);
        assert_eq!(sizes[2].frame_bytes, 1 << 30);
    }
}
