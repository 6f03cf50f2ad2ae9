//! A machine of plain data, in which some operations can be made to fail.

use alloc::{boxed::Box, format, string::String, vec, vec::Vec};
use core::cell::{Cell, RefCell};

use log::{Level, LevelFilter};

use super::definitions::Known;
use super::pci as tests_pci;
use super::tds::{self, Fake};
use crate::host::{
    absent::Absent,
    event::{Action, Event, EventKind, Events},
    failure::{Code, Failure},
    load::{Facts, PackageSample, Sample, Spent, TdSample},
    platform::{MsrValue, Platform},
    tdx::*,
    *,
};

const WITHOUT_TDX: &str = "no TD can run here: TDX is unavailable; \"tdx\" says why";

pub struct Machine {
    pub config_problems: Vec<String>,
    pub lost_bytes: u64,
    pub without_tdx: bool,
    pub requested: Option<PowerAction>,
    pub crash: Option<crash::Crash>,
    pub keeps_crash: bool,
    pub tds: Fake,
    /// The console's password.
    pub password: Option<&'static str>,
    /// Number of passwords that were compared with it.
    pub compared: u32,
    /// Microseconds since the start.
    pub now_us: Cell<u64>,
    /// Other TDs that [`Management::sample`] reports.
    pub more_tds: u32,
    /// The records: the lines, and the output of `events`.
    pub trail: RefCell<Vec<Event>>,
    pub definitions: Known,
    /// The functions that were to be released.
    pub released: Vec<String>,
    config: Vec<config::Td>,
    level: LevelFilter,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            config_problems: Vec::new(),
            lost_bytes: 0,
            without_tdx: false,
            requested: None,
            crash: None,
            keeps_crash: false,
            tds: Fake::default(),
            password: None,
            compared: 0,
            now_us: Cell::new(61_000_000),
            more_tds: 0,
            trail: RefCell::default(),
            definitions: Known::default(),
            released: Vec::new(),
            config: config(),
            level: LevelFilter::Info,
        }
    }
}

/// Returns a configuration that names TDs, for a machine without TDX.
fn config() -> Vec<config::Td> {
    let text = "[[file]]\nname = \"hello\"\npath = \"hello.fd\"\n[[td]]\nname = \"hello\"\nimage = \"hello\"\n\
                memory = \"64M\"\nvcpus = 2\n";
    config::parse(text.as_bytes())
        .expect("the configuration is right")
        .td
}

impl Management for Machine {
    fn build(&self) -> Build {
        Build {
            version: "0.1.0".into(),
            commit: Some("0123abc".into()),
            compiler: None,
        }
    }

    fn boot(&self) -> Boot {
        Boot {
            cpu: "Intel(R) Xeon(R) 6980P, family 6, model 173, stepping 1, microcode 0x1".into(),
            loaded_from: "disk".into(),
            secure_boot: false,
            config: Some("seamark.toml".into()),
            config_problems: self.config_problems.clone(),
            problems: vec![],
            crashes: u32::from(self.crash.is_some()),
            image: Hex(0x7A00_0000),
            to_prompt_us: Some(532_001),
            uptime_us: self.now_us(),
        }
    }

    fn now_us(&self) -> u64 {
        self.now_us.get()
    }

    fn facts(&self) -> Facts {
        Facts {
            manufacturer: Some("Intel Corporation".into()),
            model: Some("S2600".into()),
            serial_number: Some("0123456789".into()),
            uuid: Some("00112233-4455-6677-8899-aabbccddeeff".into()),
            firmware: None,
            cpu: self.boot().cpu,
            microcode: Hex(1),
            uptime_us: self.now_us(),
            unix_seconds: 1_795_651_199,
        }
    }

    /// Half of the time, CPUs of package 0 are idle and *hello* runs on one CPU.
    fn sample(&self) -> Sample {
        let us = self.now_us();
        let Memory { ledger, heap, .. } = self.memory();
        let td = |id, name: String, run_us| TdSample {
            id,
            name,
            state: td::TdState::Runnable,
            vcpus: 2,
            spent: Spent {
                run_us,
                wait_us: us / 4,
                steal_us: us / 8,
                exits: run_us / 100,
            },
            private_bytes: 67_141_632,
            memory_bytes: 64 << 20,
        };
        let package = |package, cpus, idle_us| PackageSample {
            package,
            cpus,
            idle_us,
        };
        let more = (0..self.more_tds)
            .map(|more| td(3 + more, format!("a-td-with-a-long-name-{more}"), us / 3));
        Sample {
            us,
            packages: vec![package(0, 2, us), package(1, 1, us)],
            calls: us / 10,
            memory: ledger,
            heap,
            tds: [td(1, "hello".into(), us / 2), td(2, "smp".into(), 0)]
                .into_iter()
                .chain(more)
                .collect(),
        }
    }

    fn events(&self, since: u64) -> Events {
        let trail = self.trail.borrow();
        let events = trail.iter().filter(|event| event.number > since);
        Events {
            lost: 0,
            last: trail.len() as u64,
            events: events.cloned().collect(),
        }
    }

    fn record(&self, action: &Action<'_>) {
        let failed = action.failed.map(|code| format!(": {}", code.name()));
        let mut trail = self.trail.borrow_mut();
        let number = trail.len() as u64 + 1;
        trail.push(Event {
            number,
            us: self.now_us(),
            kind: EventKind::Action,
            channel: "console".into(),
            td: action.td.map(|(id, _)| id),
            name: action.td.map(|(_, name)| name.into()),
            what: format!("{}{}", action.line, failed.unwrap_or_default()),
        });
    }

    fn has_password(&self) -> bool {
        self.password.is_some()
    }

    fn check_password(&mut self, password: &str) -> Result<bool, Failure> {
        self.compared += 1;
        Ok(self.password == Some(password))
    }

    fn platform(&self) -> Platform {
        Platform {
            cpu: self.boot().cpu,
            cpuid: vec![],
            msrs: vec![MsrValue {
                name: "IA32_TME_ACTIVATE",
                number: Hex(0x982),
                value: None,
            }],
        }
    }

    fn cpus(&self) -> Vec<Cpu> {
        let cpu = |index: u32, state| Cpu {
            index,
            apic_id: index % 2 + 8 * (index / 2),
            package: index / 2,
            core: index % 2,
            thread: 0,
            numa_node: Some(index / 2),
            bootstrap: index == 0,
            state,
            detail: (state == CpuState::NeverStarted).then(|| "no answer within 1 s".into()),
        };
        vec![
            cpu(0, CpuState::Online),
            cpu(1, CpuState::Idle),
            cpu(2, CpuState::Idle),
            cpu(3, CpuState::NeverStarted),
        ]
    }

    fn mitigations(&self) -> Vec<errors::Mitigation> {
        let mitigation = |attack, state, by| errors::Mitigation { attack, state, by };
        vec![
            mitigation("branch target injection", "on", "enhanced IBRS"),
            mitigation("microarchitectural data sampling", "not-affected", "MDS_NO"),
        ]
    }

    fn errors(&self) -> errors::Errors {
        let cpu = |cpu, corrected| errors::CpuErrors {
            cpu,
            local: true,
            signalling: 20,
            corrected,
            uncorrected: 0,
            machine_checks: 0,
            signals: corrected,
        };
        errors::Errors {
            cpus: vec![cpu(0, 0), cpu(1, 3)],
            firmware: vec![errors::FirmwareErrors {
                source: 7,
                notice: "polled",
                corrected: 1,
                recoverable: 0,
                fatal: 0,
            }],
            nmis: vec![
                errors::Nmis {
                    source: "serr",
                    count: 1,
                },
                errors::Nmis {
                    source: "unknown",
                    count: 0,
                },
            ],
            last: vec![errors::BankError {
                us: 5_000_000,
                cpu: 1,
                bank: 7,
                verdict: "corrected",
                stale: false,
                error: "memory controller (0x0090)".into(),
                status: Hex(0x8C00_00C0_0000_0090),
                address: Some(Hex(0x1234_5670_0000)),
                misc: None,
            }],
            silent: vec![3],
        }
    }

    fn last_crash(&self) -> Option<crash::Crash> {
        self.crash.clone()
    }

    fn drop_crash(&mut self) -> Result<(), Failure> {
        if self.keeps_crash {
            return Err(Code::Failed.because("the last crash is still in the firmware's variables"));
        }
        self.crash = None;
        Ok(())
    }

    fn networks(&self) -> Vec<network::Network> {
        let card = |td: &str, last, port| network::NetworkCard {
            td: td.into(),
            device: 2,
            mac: alloc::format!("02:00:00:00:00:{last:02x}"),
            port,
            rate_bytes: Some(100 << 20),
            running: true,
            sent_frames: 100,
            sent_bytes: 150_000,
            received_frames: 90,
            received_bytes: 135_000,
            no_buffer: 3,
            spoofed: 0,
            malformed: 0,
            limited: 1,
        };
        let lan = network::Network {
            name: "lan".into(),
            cards: vec![card("hello", 1, "open"), card("smp", 2, "trunk")],
            ..network::Network::default()
        };
        let wan = network::Network {
            name: "wan".into(),
            isolated: true,
            rate_bytes: Some(100 << 20),
            ..network::Network::default()
        };
        vec![lan, wan]
    }

    fn pci_list(&self) -> Result<Vec<pci::PciLine>, Failure> {
        let functions = [tests_pci::SATA, tests_pci::DRIVE];
        Ok(functions
            .map(|address| tests_pci::show(address).line)
            .into())
    }

    fn pci_release(&mut self, address: &str) -> Result<pci::PciReleased, Failure> {
        self.released.push(address.into());
        match address {
            "0000:01:00.0" | "00:1f.2" => Ok(pci::PciReleased {
                functions: vec![tests_pci::DRIVE.into()],
                td: "smp".into(),
                warning: pci::NOT_ERASED,
            }),
            _ => Err(Code::InvalidArgument.because("there is no such function")),
        }
    }

    fn pci_show(&self, address: &str) -> Result<pci::PciReport, Failure> {
        match address {
            "0000:01:00.0" => Ok(tests_pci::show(tests_pci::DRIVE)),
            "00:1f.2" => Ok(tests_pci::show(tests_pci::SATA)),
            _ => Err(Code::InvalidArgument.because("there is no such function")),
        }
    }

    fn memory(&self) -> Memory {
        let frames = |frame_bytes, free, used| FrameCount {
            frame_bytes,
            free,
            used,
            quarantined: 0,
        };
        Memory {
            frames: vec![
                frames(4096, 10, 22),
                frames(2 << 20, 500, 10),
                frames(1 << 30, 1, 0),
            ],
            ledger: Ledger::new(1 << 31, (1 << 30) - self.lost_bytes, 1 << 30, 0),
            heap: Heap {
                total_bytes: 8 << 20,
                used_bytes: 65536,
            },
            regions: vec![Region {
                start: Hex(0),
                end: Hex(0xA0000),
                kind: "conventional".into(),
            }],
        }
    }

    fn tdx(&self) -> Tdx {
        if self.without_tdx {
            return Tdx {
                state: TdxState::Unavailable,
                reasons: vec![
                    "SEAMRR is not supported (MTRRCAP bit 15 is 0); TDX needs another CPU".into(),
                ],
                dma: iommu::Dma {
                    blocked_by_vtd: false,
                    why_not: Some("the firmware reports no VT-d unit".into()),
                },
                hkids: None,
                microcode: vec![Microcode {
                    revision: None,
                    cpus: vec![0],
                }],
                module: None,
                cmrs: vec![],
                memory: None,
                bring_up: vec![],
                bring_up_us: None,
            };
        }
        Tdx {
            state: TdxState::Ready,
            reasons: vec![],
            dma: self.iommu().dma,
            hkids: Some(Hkids {
                first: 64,
                total: 64,
                used: 1,
                quarantined: 0,
            }),
            microcode: vec![
                Microcode {
                    revision: Some(Hex(0x2B00_0643)),
                    cpus: vec![0, 1, 2],
                },
                Microcode {
                    revision: Some(Hex(0x2B00_0603)),
                    cpus: vec![3],
                },
            ],
            module: Some(Module {
                major: 1,
                minor: 5,
                update: 5,
                build_number: 577,
                build_date: 20_240_129,
                vendor: Hex(0x8086),
                features0: Hex(0x61F_0FBF),
                features: ["TD_MIGRATION", "TD_PRESERVING", "SERVICE_TD", "NO_RBP_MOD"]
                    .map(Into::into)
                    .into(),
                advisories: ["INTEL-SA-01397: words; fixed in 1.5.24".into()].into(),
                max_tdmrs: 64,
                max_reserved_per_tdmr: 16,
                max_vcpus_per_td: None,
                pamt_4k_entry_bytes: 16,
                pamt_2m_entry_bytes: 16,
                pamt_1g_entry_bytes: 16,
            }),
            cmrs: vec![Cmr {
                base: Hex(0x10_0000),
                size: 0x7FF0_0000,
            }],
            memory: Some(TdxMemory {
                private_bytes: 0x7FA0_0000,
                pamt_bytes: 0x30_3000,
                tdmrs: vec![Tdmr {
                    base: Hex(0),
                    size: 1 << 31,
                    numa_node: Some(0),
                    reserved_areas: 2,
                    pamt_bytes: 0x30_3000,
                }],
                left_out: vec![LeftOut {
                    start: Hex(0x7FE0_0000),
                    end: Hex(0x7FF0_0000),
                    why: "not convertible: in no CMR".into(),
                }],
            }),
            bring_up: vec![BringUpStep {
                name: "TDH.SYS.INIT".into(),
                calls: 1,
                us: 1234,
                error: None,
            }],
            bring_up_us: Some(2345),
        }
    }

    fn iommu(&self) -> iommu::Iommu {
        super::iommu::units()
    }

    fn tds(&self) -> Result<Box<dyn td::Tds + '_>, Failure> {
        if self.without_tdx {
            return Ok(Box::new(Absent {
                config: &self.config,
                why: WITHOUT_TDX.into(),
            }));
        }
        Ok(Box::new(&self.tds))
    }

    fn definitions(&self) -> Result<Box<dyn define::Definitions + '_>, Failure> {
        if self.without_tdx {
            return Err(Code::Unavailable.because(WITHOUT_TDX));
        }
        Ok(Box::new(&self.definitions))
    }

    fn config(&self) -> config::Config {
        config::Config {
            td: self.config.clone(),
            ..config::Config::default()
        }
    }

    fn retry_tdx(&mut self) -> Result<Tdx, Failure> {
        match self.without_tdx {
            true => Err(Code::WrongState.because("nothing has failed")),
            false => Ok(self.tdx()),
        }
    }

    fn hkids(&self) -> Result<td::HkidReport, Failure> {
        Ok(tds::hkids())
    }

    fn stats(&self) -> seam::Stats {
        tds::stats()
    }

    fn seam_bench(&self) -> Result<seam::SeamBench, Failure> {
        Ok(tds::bench())
    }

    fn log_records(&self, visit: &mut dyn FnMut(&LogRecord<'_>)) -> u64 {
        let mut record = LogRecord {
            us: 12,
            cpu: 0,
            level: Level::Info,
            target: "hypervisor::boot",
            message: "hello",
        };
        visit(&record);
        record = LogRecord {
            us: 1_000_012,
            level: Level::Warn,
            message: "cpu 3 never started",
            ..record
        };
        visit(&record);
        2
    }

    fn log_level(&self) -> LevelFilter {
        self.level
    }

    fn set_log_level(&mut self, level: LevelFilter) {
        self.level = level;
    }

    fn peek(&mut self, line: u64) -> Result<[u8; 64], Failure> {
        assert_eq!(line % 64, 0, "a whole cache line");
        if line >= 1 << 46 {
            return Err(Code::InvalidArgument.because(format!(
                "{line:#x} exceeds this CPU's 46 physical address bits; read something lower"
            )));
        }
        Ok(core::array::from_fn(|index| 0x40 + index as u8))
    }

    fn request_power(&mut self, action: PowerAction) -> Result<String, Failure> {
        self.requested = Some(action);
        Ok("ACPI reset register".into())
    }
}
