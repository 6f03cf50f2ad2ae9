//! Random sequences of calls, checked against invariants that hold whatever the host does.
//!
//! - Each frame has one owner, no HKID is assigned to two TDs, and no S-EPT entry points to a page of another TD
//!   ([`Server::audit`](stub_module::host::Server::audit)).
//! - A frame enters the module only through a call that donates it, and leaves it only through TDH.PHYMEM.PAGE.RECLAIM
//!   or one of the calls that remove a page from an S-EPT.
//! - A failed call leaves everything unchanged.

mod kit;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

use kit::{BASE, Builder, PAGE, Td};
use proptest::collection::vec;
use proptest::prelude::*;
use seam::abi::{Gprs, Leaf, Operand, Status};
use stub_module::hooks::Hooks;
use stub_module::host::Config;

const BIG: u64 = 2 << 20;
/// HKIDs that the actions use. The first two belong to TDs that are built before the first action.
const HKIDS: [u32; 3] = [33, 34, 35];
/// Address of the frames that the actions use, behind the TDs' own.
const SMALL_FRAMES: u64 = BASE + (64 << 20);
const BIG_FRAMES: u64 = BASE + (96 << 20);
/// The vCPU of the second TD, which is finalised and can be entered.
const RUNNABLE_VCPU: u64 = BASE + (34 << 20) + 32 * PAGE;
const ALL_FRAMES: std::ops::Range<u64> = BASE..BASE + (128 << 20);

/// A leaf, and RCX, RDX, R8 and R9.
type Call = (Leaf, [u64; 4]);

/// One call, or a few related ones. Numbers are taken modulo the number of candidates.
#[derive(Clone, Copy, Debug)]
enum Action {
    Create {
        td: u8,
        hkid: u8,
    },
    KeyConfig {
        td: u8,
    },
    Addcx {
        td: u8,
        frame: u8,
    },
    Init {
        td: u8,
    },
    SeptAdd {
        td: u8,
        gpa: u8,
        level: u8,
        frame: u8,
    },
    PageAdd {
        td: u8,
        gpa: u8,
        frame: u8,
    },
    PageAug {
        td: u8,
        gpa: u8,
        level: u8,
        frame: u8,
    },
    Block {
        td: u8,
        gpa: u8,
        level: u8,
    },
    Unblock {
        td: u8,
        gpa: u8,
        level: u8,
    },
    Track {
        td: u8,
    },
    Remove {
        td: u8,
        gpa: u8,
        level: u8,
    },
    SeptRemove {
        td: u8,
        gpa: u8,
        level: u8,
    },
    Demote {
        td: u8,
        gpa: u8,
        frame: u8,
    },
    Promote {
        td: u8,
        gpa: u8,
    },
    Relocate {
        td: u8,
        gpa: u8,
        frame: u8,
    },
    Extend {
        td: u8,
        gpa: u8,
    },
    VpCreate {
        td: u8,
        frame: u8,
    },
    VpAddcx {
        vcpu: u8,
        frame: u8,
    },
    VpInit {
        vcpu: u8,
    },
    VpFlush {
        vcpu: u8,
    },
    Finalize {
        td: u8,
    },
    VpFlushDone {
        td: u8,
    },
    CacheWb,
    FreeId {
        td: u8,
    },
    Reclaim {
        frame: u8,
    },
    ReclaimTdPage {
        td: u8,
        page: u8,
    },
    Rdmd {
        frame: u8,
    },
    /// Enter the vCPU of the finalised TD.
    Enter,
    /// Flush it.
    Flush,
    /// Block, track, remove.
    TakeAway {
        td: u8,
        gpa: u8,
        level: u8,
    },
    /// Flush the vCPU and the TD, write back on both packages, free the HKID.
    TearDown {
        td: u8,
    },
}

fn action() -> impl Strategy<Value = Action> {
    use Action::*;
    let n = any::<u8>;
    prop_oneof![
        1 => (n(), n()).prop_map(|(td, hkid)| Create { td, hkid }),
        1 => n().prop_map(|td| KeyConfig { td }),
        1 => (n(), n()).prop_map(|(td, frame)| Addcx { td, frame }),
        1 => n().prop_map(|td| Init { td }),
        8 => (n(), n(), n(), n()).prop_map(|(td, gpa, level, frame)| SeptAdd { td, gpa, level, frame }),
        4 => (n(), n(), n()).prop_map(|(td, gpa, frame)| PageAdd { td, gpa, frame }),
        12 => (n(), n(), n(), n()).prop_map(|(td, gpa, level, frame)| PageAug { td, gpa, level, frame }),
        6 => (n(), n(), n()).prop_map(|(td, gpa, level)| Block { td, gpa, level }),
        2 => (n(), n(), n()).prop_map(|(td, gpa, level)| Unblock { td, gpa, level }),
        3 => n().prop_map(|td| Track { td }),
        6 => (n(), n(), n()).prop_map(|(td, gpa, level)| Remove { td, gpa, level }),
        4 => (n(), n(), n()).prop_map(|(td, gpa, level)| SeptRemove { td, gpa, level }),
        4 => (n(), n(), n()).prop_map(|(td, gpa, frame)| Demote { td, gpa, frame }),
        4 => (n(), n()).prop_map(|(td, gpa)| Promote { td, gpa }),
        2 => (n(), n(), n()).prop_map(|(td, gpa, frame)| Relocate { td, gpa, frame }),
        1 => (n(), n()).prop_map(|(td, gpa)| Extend { td, gpa }),
        2 => (n(), n()).prop_map(|(td, frame)| VpCreate { td, frame }),
        2 => (n(), n()).prop_map(|(vcpu, frame)| VpAddcx { vcpu, frame }),
        1 => n().prop_map(|vcpu| VpInit { vcpu }),
        1 => n().prop_map(|vcpu| VpFlush { vcpu }),
        1 => n().prop_map(|td| Finalize { td }),
        1 => n().prop_map(|td| VpFlushDone { td }),
        4 => Just(CacheWb),
        2 => n().prop_map(|td| FreeId { td }),
        6 => n().prop_map(|frame| Reclaim { frame }),
        4 => (n(), n()).prop_map(|(td, page)| ReclaimTdPage { td, page }),
        2 => n().prop_map(|frame| Rdmd { frame }),
        6 => (n(), n(), n()).prop_map(|(td, gpa, level)| TakeAway { td, gpa, level }),
        2 => n().prop_map(|td| TearDown { td }),
        4 => Just(Enter),
        1 => Just(Flush),
    ]
}

impl Action {
    /// Returns the calls, with a processor for those that depend on it.
    fn calls(self) -> Vec<(Option<u32>, Call)> {
        match self {
            Self::TakeAway { td, gpa, level } => {
                let level = level % 2;
                let calls = [
                    Self::Block { td, gpa, level },
                    Self::Track { td },
                    Self::Remove { td, gpa, level },
                ];
                calls.map(|action| (None, action.call())).to_vec()
            }
            Self::TearDown { td } => vec![
                (Some(0), Self::Flush.call()),
                (None, Self::VpFlushDone { td }.call()),
                (Some(0), Self::CacheWb.call()),
                (Some(2), Self::CacheWb.call()),
                (None, Self::FreeId { td }.call()),
            ],
            _ => vec![(None, self.call())],
        }
    }

    /// Returns this call, or the first one of a group.
    fn call(self) -> Call {
        let td = |td: u8| tdr(usize::from(td) % HKIDS.len());
        let gpa = |gpa: u8, level: u8| {
            let address = [0, PAGE, 2 * PAGE, BIG, BIG + PAGE, 1 << 30][usize::from(gpa) % 6];
            let level = u64::from(level % 4);
            address & !((PAGE << (9 * level)) - 1) | level
        };
        let frame = |frame: u8| SMALL_FRAMES + u64::from(frame % 24) * PAGE;
        let big = |frame: u8| BIG_FRAMES + u64::from(frame % 3) * BIG;
        match self {
            Self::Create { td: t, hkid } => {
                let hkid = HKIDS[usize::from(hkid) % HKIDS.len()];
                (Leaf::MngCreate, [td(t), hkid.into(), 0, 0])
            }
            Self::KeyConfig { td: t } => (Leaf::MngKeyConfig, [td(t), 0, 0, 0]),
            Self::Addcx { td: t, frame: f } => (Leaf::MngAddcx, [frame(f), td(t), 0, 0]),
            Self::Init { td: t } => (Leaf::MngInit, [td(t), kit::TD_PARAMS, 0, 0]),
            Self::SeptAdd {
                td: t,
                gpa: g,
                level,
                frame: f,
            } => (
                Leaf::MemSeptAdd,
                [gpa(g, 1 + level % 3), td(t), frame(f), 0],
            ),
            Self::PageAdd {
                td: t,
                gpa: g,
                frame: f,
            } => (
                Leaf::MemPageAdd,
                [gpa(g, 0), td(t), frame(f), kit::TD_PARAMS],
            ),
            Self::PageAug {
                td: t,
                gpa: g,
                level,
                frame: f,
            } => {
                let level = level % 2;
                let frame = if level == 0 { frame(f) } else { big(f) };
                (Leaf::MemPageAug, [gpa(g, level), td(t), frame, 0])
            }
            Self::TakeAway {
                td: t,
                gpa: g,
                level,
            }
            | Self::Block {
                td: t,
                gpa: g,
                level,
            } => (Leaf::MemRangeBlock, [gpa(g, level % 3), td(t), 0, 0]),
            Self::Unblock {
                td: t,
                gpa: g,
                level,
            } => (Leaf::MemRangeUnblock, [gpa(g, level % 3), td(t), 0, 0]),
            Self::Track { td: t } => (Leaf::MemTrack, [td(t), 0, 0, 0]),
            Self::Remove {
                td: t,
                gpa: g,
                level,
            } => (Leaf::MemPageRemove, [gpa(g, level % 2), td(t), 0, 0]),
            Self::SeptRemove {
                td: t,
                gpa: g,
                level,
            } => (Leaf::MemSeptRemove, [gpa(g, 1 + level % 3), td(t), 0, 0]),
            Self::Demote {
                td: t,
                gpa: g,
                frame: f,
            } => (Leaf::MemPageDemote, [gpa(g, 1), td(t), frame(f), 0]),
            Self::Promote { td: t, gpa: g } => (Leaf::MemPagePromote, [gpa(g, 1), td(t), 0, 0]),
            Self::Relocate {
                td: t,
                gpa: g,
                frame: f,
            } => (Leaf::MemPageRelocate, [gpa(g, 0), td(t), frame(f), 0]),
            Self::Extend { td: t, gpa: g } => (Leaf::MrExtend, [gpa(g, 0), td(t), 0, 0]),
            Self::VpCreate { td: t, frame: f } => (Leaf::VpCreate, [frame(f), td(t), 0, 0]),
            Self::VpAddcx { vcpu, frame: f } => (Leaf::VpAddcx, [frame(f), frame(vcpu), 0, 0]),
            Self::VpInit { vcpu } => (Leaf::VpInit, [frame(vcpu), 0, 0, 0]),
            Self::VpFlush { vcpu } => (Leaf::VpFlush, [frame(vcpu), 0, 0, 0]),
            Self::Finalize { td: t } => (Leaf::MrFinalize, [td(t), 0, 0, 0]),
            Self::TearDown { td: t } | Self::VpFlushDone { td: t } => {
                (Leaf::MngVpflushdone, [td(t), 0, 0, 0])
            }
            Self::CacheWb => (Leaf::PhymemCacheWb, [0; 4]),
            Self::FreeId { td: t } => (Leaf::MngKeyFreeid, [td(t), 0, 0, 0]),
            Self::Reclaim { frame: f } => {
                let frame = if f & 0x80 == 0 { frame(f) } else { big(f) };
                (Leaf::PhymemPageReclaim, [frame, 0, 0, 0])
            }
            Self::ReclaimTdPage { td: t, page } => {
                let page = td(t) + u64::from(page % 7) * PAGE;
                (Leaf::PhymemPageReclaim, [page, 0, 0, 0])
            }
            Self::Enter => (Leaf::VpEnter, [RUNNABLE_VCPU, 0, 0, 0]),
            Self::Flush => (Leaf::VpFlush, [RUNNABLE_VCPU, 0, 0, 0]),
            Self::Rdmd { frame: f } => (Leaf::PhymemPageRdmd, [frame(f), 0, 0, 0]),
        }
    }
}

/// Executes a call on a processor.
fn run(built: &Builder, lp: u32, (leaf, [rcx, rdx, r8, r9]): Call) -> Result<Gprs, Status> {
    let operands = [
        (Operand::RCX, rcx),
        (Operand::RDX, rdx),
        (Operand::R8, r8),
        (Operand::R9, r9),
    ];
    built.cpu(lp).leaf(leaf, operands)
}

fn tdr(number: usize) -> u64 {
    BASE + (u64::from(HKIDS[number]) << 20)
}

/// For each frame, the number of donations to the module minus the number of returns.
#[derive(Default)]
struct Ledger(BTreeMap<u64, i64>);

impl Ledger {
    fn book(&mut self, start: u64, bytes: u64, change: i64) {
        for frame in (start..start + bytes).step_by(PAGE as usize) {
            *self.0.entry(frame).or_default() += change;
        }
    }

    /// Records a successful call.
    fn call(&mut self, (leaf, [rcx, _, r8, _]): Call, out: &Gprs) {
        let bytes = PAGE << (9 * (rcx & 7));
        match leaf {
            Leaf::MngCreate | Leaf::MngAddcx | Leaf::VpCreate | Leaf::VpAddcx => {
                self.book(rcx, PAGE, 1);
            }
            Leaf::MemSeptAdd | Leaf::MemPageAdd | Leaf::MemPageDemote => self.book(r8, PAGE, 1),
            Leaf::MemPageAug => self.book(r8, bytes, 1),
            Leaf::MemPageRelocate => {
                self.book(r8, bytes, 1);
                self.book(out.rcx, bytes, -1);
            }
            Leaf::MemPageRemove => self.book(out.rcx, bytes, -1),
            Leaf::MemSeptRemove | Leaf::MemPagePromote => self.book(out.rcx, PAGE, -1),
            Leaf::PhymemPageReclaim => self.book(rcx, PAGE << (9 * out.r8), -1),
            _ => {}
        }
    }

    fn td(&mut self, td: &Td) {
        self.book(td.tdr, PAGE, 1);
        for page in &td.tdcx {
            self.book(*page, PAGE, 1);
        }
    }

    /// Checks that the module holds exactly the frames in the ledger.
    fn check(&self, built: &Builder) -> Result<(), TestCaseError> {
        let frames = built
            .server
            .audit(ALL_FRAMES)
            .map_err(TestCaseError::fail)?;
        let mut owned = BTreeMap::new();
        for (start, frame) in frames {
            for pa in (start..start + frame.size).step_by(PAGE as usize) {
                owned.insert(pa, 1);
            }
        }
        let booked = self.0.iter().filter(|(_, count)| **count != 0);
        let booked: BTreeMap<_, _> = booked.map(|(pa, count)| (*pa, *count)).collect();
        prop_assert_eq!(&booked, &owned);
        // The machine guards exactly these pages and the PAMT.
        let mut guarded = built.server.machine().guarded();
        guarded.retain(|pa| ALL_FRAMES.contains(pa));
        prop_assert!(guarded.iter().eq(owned.keys()));
        Ok(())
    }
}

/// Creates a server with two TDs that have part of an S-EPT. One of them is finalised and has a vCPU. Also returns the
/// ledger of their frames.
fn built() -> (Builder, Ledger) {
    let config = Config {
        books_guards: true,
        ..Config::default()
    };
    let built = Builder::sized(config, kit::SIZE, Hooks::default());
    let mut ledger = Ledger::default();
    for hkid in &HKIDS[..2] {
        let td = built.td(*hkid);
        built.initialize(&td);
        ledger.td(&td);
        for level in [3, 2] {
            let table = td.tdr + (16 + level) * PAGE;
            let operands = [
                (Operand::RCX, level),
                (Operand::RDX, td.tdr),
                (Operand::R8, table),
            ];
            built.cpu(0).leaf(Leaf::MemSeptAdd, operands).unwrap();
            ledger.book(table, PAGE, 1);
        }
    }
    let cpu = built.cpu(0);
    let td = tdr(1);
    let create = [(Operand::RCX, RUNNABLE_VCPU), (Operand::RDX, td)];
    cpu.leaf(Leaf::VpCreate, create).unwrap();
    for page in 1..kit::TDVPS_PAGES {
        let page = RUNNABLE_VCPU + page * PAGE;
        let addcx = [(Operand::RCX, page), (Operand::RDX, RUNNABLE_VCPU)];
        cpu.leaf(Leaf::VpAddcx, addcx).unwrap();
    }
    ledger.book(RUNNABLE_VCPU, kit::TDVPS_PAGES * PAGE, 1);
    cpu.leaf(Leaf::VpInit, [(Operand::RCX, RUNNABLE_VCPU)])
        .unwrap();
    cpu.leaf(Leaf::MrFinalize, [(Operand::RCX, td)]).unwrap();
    (built, ledger)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_call_that_fails_changes_nothing(actions in vec(action(), 1..150)) {
        let (built, mut ledger) = built();
        let state = || {
            let module = format!("{:?}", built.server.module());
            (built.server.machine().memory().digest(), module)
        };
        let mut before = state();
        // Locks that the host failed to take record this, so that a guest yields until they are taken next. Even a
        // failed call may clear the record. The same call, made again, then changes nothing.
        let mut is_remembered = false;
        let calls = actions.into_iter().flat_map(Action::calls);
        for (number, (lp, call)) in calls.enumerate() {
            let lp = lp.unwrap_or(number as u32 % 4);
            match run(&built, lp, call) {
                Ok(out) => {
                    ledger.call(call, &out);
                    before = state();
                }
                Err(status) if status.code() == Status::OPERAND_BUSY => {
                    is_remembered = true;
                    before = state();
                }
                // The success class: KEY_CONFIGURED, NO_HKID_READY_TO_WBCACHE and the like are not errors.
                Err(status) if !status.is_error() => before = state(),
                Err(status) => {
                    let mut now = state();
                    if now != before && is_remembered {
                        before = now;
                        prop_assert_eq!(run(&built, lp, call).err(), Some(status));
                        now = state();
                    }
                    prop_assert_eq!(&now, &before, "{:x?} answered {:?}", call, status);
                }
            }
        }
        ledger.check(&built)?;
    }

    #[test]
    fn threads_do_not_break_the_invariants(actions in vec(vec(action(), 100), 4)) {
        let (built, ledger) = built();
        let ledger = Mutex::new(ledger);
        thread::scope(|scope| {
            for (lp, actions) in (0..).zip(&actions) {
                let (built, ledger) = (&built, &ledger);
                scope.spawn(move || {
                    for (_, call) in actions.iter().copied().flat_map(Action::calls) {
                        if let Ok(out) = run(built, lp, call) {
                            ledger.lock().unwrap().call(call, &out);
                        }
                    }
                });
            }
        });
        ledger.into_inner().unwrap().check(&built)?;
    }
}
