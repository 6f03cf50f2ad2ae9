//! TDs of plain data: *hello*, which runs, and *smp*, which was never started.

use alloc::{format, string::String, vec, vec::Vec};
use core::cell::{Cell, RefCell};

use crate::host::{Hex, device::*, failure::Failure, pci::*, seam::*, td::*};

/// The TDs' state, and the bytes that were typed for *hello*.
pub struct Fake {
    pub state: RefCell<TdState>,
    pub output: RefCell<Vec<u8>>,
    pub began: Cell<u64>,
    pub batches: Cell<u64>,
    pub typed: RefCell<Vec<u8>>,
    pub sent: RefCell<Vec<u8>>,
    pub done: RefCell<Vec<String>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            state: RefCell::new(TdState::Runnable),
            output: RefCell::new(b"Hello from a TD\r\n".into()),
            began: Cell::new(0),
            batches: Cell::new(3),
            typed: RefCell::default(),
            sent: RefCell::default(),
            done: RefCell::default(),
        }
    }
}

const PAGES: Pages = Pages {
    private_4k: 520,
    private_2m: 31,
    private_1g: 0,
    sept: 4,
};

impl Fake {
    fn now(&self, id: u32) -> TdNow {
        let line = self.line(id);
        TdNow {
            id,
            name: line.name,
            state: line.state,
        }
    }

    fn line(&self, id: u32) -> TdLine {
        let (name, state) = match id {
            1 => ("hello", *self.state.borrow()),
            _ => ("smp", TdState::Created),
        };
        let lives = !matches!(state, TdState::Created | TdState::Reclaimed);
        TdLine {
            id,
            name: name.into(),
            state,
            hkid: lives.then_some(65),
            vcpus: 2,
            private_bytes: if lives { 67_141_632 } else { 0 },
            memory_bytes: 64 << 20,
            problem: None,
        }
    }

    /// Records the request, and changes the state if it concerns *hello*.
    fn act(&self, what: &str, id: u32, to: TdState) -> TdNow {
        self.done.borrow_mut().push(format!("{what} {id}"));
        if id == 1 {
            self.state.replace(to);
        }
        self.now(id)
    }

    fn ended(&self, what: &str, id: u32, to: TdState) -> TdEnded {
        TdEnded {
            now: self.act(what, id, to),
            already: false,
            pages: PAGES,
            bytes: 67_141_632,
            work: work(),
        }
    }
}

fn work() -> Work {
    Work {
        us: 1500,
        cpu_us: 2500,
        calls: 3,
        phases: vec![
            Phase {
                name: "reclaim".into(),
                us: Some(1500),
                cpu_us: 2000,
                calls: 3,
            },
            Phase {
                name: "clear".into(),
                us: None,
                cpu_us: 500,
                calls: 0,
            },
        ],
        leafs: vec![
            LeafCalls {
                leaf: "TDH.VP.FLUSH",
                calls: 2,
            },
            LeafCalls {
                leaf: "TDH.MNG.VPFLUSHDONE",
                calls: 1,
            },
        ],
    }
}

impl Tds for &Fake {
    fn names(&self) -> Vec<String> {
        ["hello", "smp"].map(Into::into).into()
    }

    fn list(&self) -> Vec<TdLine> {
        [1, 2].map(|id| self.line(id)).into()
    }

    fn show(&self, id: u32) -> Result<TdReport, Failure> {
        let vcpu = |index| TdVcpu {
            index,
            cpu: Some(index.into()),
            running: index == 0,
            run_us: Some(1_200_000),
            wait_us: Some(30_000),
            steal_us: Some(70),
            entries: Some(1234),
        };
        Ok(TdReport {
            line: self.line(id),
            image: "hello".into(),
            autostart: id == 1,
            control: false,
            debug: false,
            no_rbp_mod: false,
            shares: 100,
            cap: None,
            pages: PAGES,
            made_whole: 2,
            mrtd: Some("0f".repeat(48)),
            pci: match id {
                1 => vec![TdPci {
                    device: "8086:0a54".into(),
                    address: Some("0000:01:00.0".into()),
                    kind: Some("NVMe drive"),
                    owner: Some("hello".into()),
                    counts: Some(PciCounts {
                        config: 120,
                        memory: 30,
                        interrupts: 1000,
                        refused: 0,
                        rests: 2,
                    }),
                }],
                _ => vec![],
            },
            devices: match id {
                1 => vec![card(), disk()],
                _ => vec![],
            },
            devices_helped_us: 2_400,
            cpus: [0, 1].map(vcpu).into(),
            built: Some(work()),
            ended: None,
            reclaim: None,
            pending: vec![],
            shutdown: None,
            unanswered: unanswered(),
        })
    }

    fn create(&self, id: u32) -> Result<TdBuilt, Failure> {
        Ok(TdBuilt {
            now: self.act("create", id, TdState::Paused),
            hkid: Some(65),
            mrtd: Some("0f".repeat(48)),
            pages: PAGES,
            work: work(),
        })
    }

    fn start(&self, id: u32) -> Result<TdNow, Failure> {
        Ok(self.act("start", id, TdState::Runnable))
    }

    fn pause(&self, id: u32) -> Result<TdNow, Failure> {
        Ok(self.act("pause", id, TdState::Paused))
    }

    fn resume(&self, id: u32) -> Result<TdNow, Failure> {
        Ok(self.act("resume", id, TdState::Runnable))
    }

    fn terminate(&self, id: u32) -> Result<TdEnded, Failure> {
        Ok(self.ended("terminate", id, TdState::Teardown))
    }

    fn destroy(&self, id: u32, dynamic: bool) -> Result<TdEnded, Failure> {
        let what = if dynamic {
            "destroy --dynamic"
        } else {
            "destroy"
        };
        Ok(self.ended(what, id, TdState::Reclaimed))
    }

    fn retry(&self, id: u32) -> Result<TdEnded, Failure> {
        Ok(self.ended("retry", id, TdState::Reclaimed))
    }

    fn reset(&self, id: u32) -> Result<TdNow, Failure> {
        Ok(self.act("reset", id, TdState::Runnable))
    }

    fn shrink(&self, id: u32, bytes: u64) -> Result<TdShrunk, Failure> {
        Ok(TdShrunk {
            now: self.act(&format!("shrink to {bytes}"), id, TdState::Runnable),
            memory_bytes: bytes,
            taken: PAGES,
            batches: self.batches.get(),
            left_to: None,
            us: 999,
        })
    }

    fn output(&self, _: u32, port: TdPort, from: u64, into: &mut [u8]) -> Result<Excerpt, Failure> {
        if port == TdPort::Script {
            let output = b"scripts";
            into[..output.len()].copy_from_slice(output);
            return Ok(Excerpt {
                began: 0,
                from: 0,
                count: output.len(),
            });
        }
        let output = self.output.borrow();
        let from = (from as usize).min(output.len());
        let count = into.len().min(output.len() - from);
        into[..count].copy_from_slice(&output[from..from + count]);
        Ok(Excerpt {
            began: self.began.get(),
            from: from as u64,
            count,
        })
    }

    fn type_byte(&self, _: u32, port: TdPort, byte: u8) -> bool {
        if port == TdPort::Script {
            self.sent.borrow_mut().push(byte);
            return true;
        }
        self.typed.borrow_mut().push(byte);
        true
    }

    fn exits(&self, _: u32) -> Result<Vec<ExitStats>, Failure> {
        Ok(stats().exits)
    }

    fn registers(&self, id: u32, vcpu: u16) -> Result<Registers, Failure> {
        Ok(Registers {
            name: self.line(id).name,
            vcpu,
            registers: vec![Register {
                name: "RIP",
                value: Hex(0xFFFF_FFF0),
            }],
        })
    }

    fn memory(&self, _: u32, _: u64, into: &mut [u8]) -> Result<(), Failure> {
        into.fill(0x41);
        Ok(())
    }

    fn reclaims(&self) -> Vec<TdReclaim> {
        let reclaim = |left_us, stuck| TdReclaim {
            id: 1,
            name: "hello".into(),
            total_bytes: 64 << 20,
            done_bytes: 16 << 20,
            bytes_per_second: 1 << 30,
            us: 15_625,
            left_us,
            calls: 8,
            quarantined: 0,
            stuck,
        };
        if *self.state.borrow() == TdState::Teardown {
            vec![reclaim(Some(46_875), None)]
        } else {
            vec![]
        }
    }
}

pub fn hkids() -> HkidReport {
    HkidReport {
        first: 64,
        total: 64,
        free: 61,
        used: 2,
        quarantined: 1,
        taken: vec![
            HkidLine {
                hkid: 64,
                holder: HkidHolder::Module,
                td: None,
                reason: None,
            },
            HkidLine {
                hkid: 65,
                holder: HkidHolder::Td,
                td: Some("hello".into()),
                reason: None,
            },
            HkidLine {
                hkid: 66,
                holder: HkidHolder::Quarantine,
                td: Some("smp".into()),
                reason: Some(
                    "the caches of package 1 can't be written back: no answer from CPU 3".into(),
                ),
            },
        ],
    }
}

pub fn stats() -> Stats {
    let line = |leaf, calls| LeafStats {
        leaf,
        calls,
        busy: 1,
        interrupted: 0,
        illegal: 0,
    };
    Stats {
        leafs: vec![line("TDH.VP.ENTER", 1234)],
        total: line("all", 1234),
        retries: vec![RetryStats {
            reason: "busy",
            retries: 1,
            given_up: 0,
        }],
        faults: 0,
        exits: vec![ExitStats {
            what: "TDVMCALLs",
            count: 1200,
        }],
        lost_pages: 0,
        lost_hkids: 0,
    }
}

pub fn bench() -> SeamBench {
    SeamBench {
        tsc_hz: 2_000_000_000,
        rounds: 100,
        leafs: vec![LeafTime {
            leaf: "TDH.MEM.PAGE.AUG",
            page_bytes: Some(2 << 20),
            calls: 800,
            min: 2100,
            median: 2400,
            p99: 9000,
        }],
        problem: None,
    }
}

fn unanswered() -> Unanswered {
    Unanswered {
        places: vec![UnansweredPlace {
            kind: PlaceKind::Port,
            at: Hex(0x80),
            part: Some("progress codes"),
            reads: 1,
            writes: 2,
        }],
        others: 3,
    }
}

fn card() -> TdDevice {
    TdDevice {
        device: 2,
        kind: "network card",
        name: Some("lan".into()),
        running: true,
        queues: 2,
        notifications: 120,
        interrupts: 80,
        to_guest_bytes: 3 << 20,
        from_guest_bytes: 1 << 20,
        dropped: 4,
        problem: None,
    }
}

fn disk() -> TdDevice {
    TdDevice {
        device: 3,
        kind: "disk",
        name: Some("root".into()),
        problem: Some("there is no descriptor 300".into()),
        ..TdDevice::default()
    }
}
