//! A physical function in a TD: its memory is mapped where the guest says, and unmapped before it is reset.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard};

use devices::pci::passthrough::Passthrough;
use devices::pci::{Identity, Interrupts, Physical, PhysicalBar, Shape as Function};
use devices::{Message, Place};
use seam::abi::Gprs;
use seam::address::Gpa;
use vcpu::Stop;

use crate::kit::{Act, Rig, SHARED, Script, Shape, Td, call};
use crate::{IO, MAP_GPA, MMIO, one};

/// Its memory: physical address and size.
const HPA: u64 = 0xFE00_0000;
const BYTES: u64 = 0x4000;
/// Registers of device 1 by CF8.
const DEVICE: u64 = 0x8000_0800;
const COMMAND: u64 = 4;
const BAR: u64 = 0x10;
const EXPRESS: u64 = 0x40;
const ON: u64 = 2;
const OFF: u64 = 0;
const RESET: u64 = 1 << 15;
const HOME: u64 = 0xC000_0000;
const OTHER_HOME: u64 = 0xC100_0000;

/// A function with one register in its memory, which the last store sets.
#[derive(Debug)]
struct Card {
    shape: Function,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    value: u64,
    resets: u64,
    is_away: bool,
}

impl Card {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            shape: Function {
                identity: Identity {
                    vendor: 0x1B36,
                    device: 0x10,
                    class: 0x01_0802,
                    revision: 2,
                    subsystem: 0x1100_1AF4,
                },
                memory: vec![PhysicalBar {
                    index: 0,
                    is_wide: false,
                    is_prefetchable: false,
                    range: HPA..HPA + BYTES,
                }],
                interrupts: Interrupts::None,
                capabilities: vec![(0x10, EXPRESS as u16)],
                has_reset: true,
            },
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Physical for Card {
    fn shape(&self) -> &Function {
        &self.shape
    }

    fn read(&self, _: u16, _: u8) -> u32 {
        2
    }

    fn write(&self, offset: u16, _: u8, _: u32) {
        unreachable!("{offset:#x}");
    }

    fn load(&self, _: usize, _: Place) -> u64 {
        self.state().value
    }

    fn store(&self, _: usize, _: Place, value: u64) {
        self.state().value = value;
    }

    fn set_master(&self, _: bool) {}

    fn set_interrupts(&self, _: bool) {}

    fn direct(&self, _: u16, _: Option<Message>) -> bool {
        true
    }

    fn reset(&self) {
        let mut state = self.state();
        state.resets += 1;
        state.is_away = true;
    }

    fn is_away(&self) -> bool {
        self.state().is_away
    }
}

fn with_card(vcpus: u32, test: impl FnOnce(&Td<'_>, &Card)) {
    let rig = Rig::new("patterns");
    let card = Card::new();
    let shape = Shape {
        vcpus,
        ..Shape::default()
    };
    let td = Td::new(&rig, &shape).with_function(Passthrough::new(card.clone()));
    test(&td, &card);
    rig.audit();
}

/// Returns the calls that write a configuration register.
fn write(register: u64, value: u64) -> [Act; 2] {
    let address = call(IO, [4, 1, 0xCF8, DEVICE | register]);
    let data = call(IO, [4, 1, 0xCFC, value]);
    [Act::Call(address), Act::Call(data)]
}

fn configure(td: &Td<'_>, register: u64, value: u64) {
    let script = Script::new(write(register, value));
    assert_eq!(td.run(&td.host(), 0, &script), Stop::Yield);
    let answers = script.answers();
    assert!(answers.iter().all(|answer| answer.regs().r10 == 0));
}

fn is_mapped(td: &Td<'_>, gpa: u64) -> bool {
    let map = td.vm.shared();
    assert!(!map.has(td.rig, Gpa(gpa)), "it is not memory");
    map.is_mapped(td.rig, Gpa(gpa))
}

fn load(td: &Td<'_>, gpa: u64) -> u64 {
    let answer: Gprs = one(td, MMIO, [4, 0, gpa | SHARED, 0]);
    answer.r11
}

#[test]
fn a_functions_memory_is_mapped_where_the_guest_says_while_it_answers() {
    with_card(1, |td, _| {
        configure(td, BAR, HOME);
        assert!(!is_mapped(td, HOME), "decoding is off");
        configure(td, COMMAND, ON);
        assert!(is_mapped(td, HOME) && is_mapped(td, HOME + BYTES - 1));
        assert!(!is_mapped(td, HOME + BYTES));
        configure(td, BAR, OTHER_HOME);
        assert!(!is_mapped(td, HOME) && is_mapped(td, OTHER_HOME));
        configure(td, COMMAND, OFF);
        assert!(!is_mapped(td, OTHER_HOME));
    });
}

#[test]
fn translations_are_flushed_when_a_functions_memory_goes_and_not_when_it_comes() {
    with_card(1, |td, _| {
        let host = td.host();
        let kicks = |acts: [Act; 2]| {
            let before = host.kicks.load(Relaxed);
            host.served.borrow_mut().clear();
            assert_eq!(td.run(&host, 0, &Script::new(acts)), Stop::Yield);
            host.kicks.load(Relaxed) - before
        };
        assert_eq!(kicks(write(BAR, HOME)), 0);
        assert_eq!(kicks(write(COMMAND, ON)), 0);
        assert_eq!(kicks(write(COMMAND, ON | 4)), 0, "nothing moves");
        assert_eq!(kicks(write(BAR, OTHER_HOME)), 1);
        assert_eq!(kicks(write(COMMAND, OFF)), 1);
    });
}

#[test]
fn an_access_by_a_call_is_carried_out_whether_the_memory_is_mapped_or_not() {
    with_card(1, |td, card| {
        configure(td, BAR, HOME);
        assert_eq!(load(td, HOME), 0xFFFF_FFFF);
        configure(td, COMMAND, ON);
        one(td, MMIO, [4, 1, (HOME + 8) | SHARED, 0x1234]);
        assert_eq!(card.state().value, 0x1234);
        assert_eq!(load(td, HOME + 8), 0x1234);
        configure(td, COMMAND, OFF);
    });
}

#[test]
fn conversions_over_a_functions_memory_do_no_harm() {
    with_card(1, |td, _| {
        configure(td, BAR, HOME);
        configure(td, COMMAND, ON);
        for gpa in [HOME | SHARED, HOME] {
            let answer = one(td, MAP_GPA, [gpa, BYTES, 0, 0]);
            assert_eq!(answer.r10, 0, "nothing is to be converted there");
            assert!(is_mapped(td, HOME));
        }
    });
}

#[test]
fn a_vcpu_goes_on_once_every_cpu_has_lost_the_memory() {
    with_card(1, |td, card| {
        configure(td, BAR, HOME);
        configure(td, COMMAND, ON);
        let host = td.host();
        host.silent.store(3, Relaxed);
        let mut acts = Vec::from(write(EXPRESS + 8, RESET));
        acts.extend(write(COMMAND, ON));
        let script = Script::new(acts);
        for _ in 0..2 {
            assert_eq!(td.run(&host, 0, &script), Stop::Busy);
            assert_eq!(script.left(), 2, "its next call waits");
            assert_eq!(card.state().resets, 0, "a CPU may use the memory");
        }
        host.silent.store(0, Relaxed);
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        assert_eq!(card.state().resets, 1);
        assert!(!is_mapped(td, HOME));
        assert_eq!(load(td, HOME), 0xFFFF_FFFF, "it is away");
        card.state().is_away = false;
        configure(td, BAR, HOME);
        configure(td, COMMAND, ON);
        assert!(is_mapped(td, HOME));
    });
}

#[test]
fn two_vcpus_that_move_the_memory_leave_it_where_the_last_write_says() {
    with_card(2, |td, _| {
        configure(td, BAR, HOME);
        configure(td, COMMAND, ON);
        let host = td.host();
        let first = Script::new(write(BAR, OTHER_HOME));
        let second = Script::new(write(BAR, HOME));
        let (outer, inner) = (first.clone(), second.clone());
        *host.meanwhile.borrow_mut() = Some(Box::new(move || {
            // The other vCPU finds no lock taken that it must wait for.
            if inner.left() > 0 {
                assert_eq!(td.run_within(&outer, 1, &inner), Stop::Busy);
            }
        }));
        assert_eq!(td.run(&host, 0, &first), Stop::Yield);
        assert_eq!((first.left(), second.left()), (0, 0));
        *host.meanwhile.borrow_mut() = None;
        assert_eq!(td.run(&td.host(), 1, &second), Stop::Yield);
        assert!(is_mapped(td, HOME) && !is_mapped(td, OTHER_HOME));
        let pieces: Vec<_> = td.vm.devices().pci().pieces().collect();
        assert_eq!(pieces[0].gpa, Some(HOME));
    });
}

#[test]
fn a_td_that_ends_meanwhile_does_not_wait() {
    with_card(1, |td, _| {
        configure(td, BAR, HOME);
        configure(td, COMMAND, ON);
        let host = td.host();
        host.silent.store(3, Relaxed);
        let script = Script::new(write(COMMAND, OFF));
        assert_eq!(td.run(&host, 0, &script), Stop::Busy);
        td.vm
            .end_with(vcpu::End::Device("the function is gone".into()));
        assert_eq!(td.run(&host, 0, &script), Stop::Ended);
    });
}
