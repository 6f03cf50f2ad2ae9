//! The ways in which a TD ends.

use seam::abi::metadata::sys;
use seam::abi::{Gprs, PAGE_2M};
use seam::address::Gpa;
use stub_module::host::Exit;
use vcpu::{End, Stop};

use crate::kit::{Act, SHARED, Script, call};
use crate::{FATAL, IO, MAP_GPA, one, with_td};

#[test]
fn a_guest_that_gives_up_is_heard() {
    with_td(|td| {
        let word = |text: &[u8; 8]| u64::from_le_bytes(*text);
        let regs = Gprs {
            r14: word(b"bad bad "),
            r15: word(b"thing\0\0\0"),
            ..call(FATAL, [3, 0, 0, 0])
        };
        let stop = td.run(&td.host(), 0, &Script::new([Act::Call(regs)]));
        assert_eq!(stop, Stop::Ended);
        let end = td.vm.end().unwrap().to_string();
        assert_eq!(end, "it reported fatal error 0x3: bad bad thing");
        let mut seen = [0; 64];
        let count = td.vm.console().read(0, &mut seen).count;
        assert_eq!(
            std::str::from_utf8(&seen[..count]).unwrap(),
            "\r\n[it reported fatal error 0x3: bad bad thing]\r\n",
            "who looks at its console sees it, too"
        );
    });
}

#[test]
fn a_guest_that_gives_up_can_say_more_in_shared_memory() {
    for (more, end) in [
        (SHARED, "it reported fatal error 0x0: short long"),
        // The rest is not shared, not aligned, or not mapped: only the text in registers is shown.
        (0, "it reported fatal error 0x0: short"),
        (SHARED | 8, "it reported fatal error 0x0: short"),
        (SHARED | (1 << 40), "it reported fatal error 0x0: short"),
    ] {
        with_td(|td| {
            one(td, MAP_GPA, [SHARED, PAGE_2M, 0, 0]);
            let store = |words: &mm::shared::Words| {
                words[0].store(
                    u64::from_le_bytes(*b"long\0\0\0x"),
                    std::sync::atomic::Ordering::SeqCst,
                );
            };
            td.vm.shared().with_page(td.rig, Gpa(0), store).unwrap();
            let regs = Gprs {
                r14: u64::from_le_bytes(*b"short\0\0\0"),
                ..call(FATAL, [1 << 63, more, 0, 0])
            };
            td.run(&td.host(), 0, &Script::new([Act::Call(regs)]));
            let said = td.vm.end().unwrap().to_string();
            assert!(said.starts_with(end), "{said}");
            assert!(said[end.len()..].starts_with(" (more at "), "{said}");
        });
    }
}

#[test]
fn a_guest_can_switch_itself_off_and_ask_for_a_reset() {
    for (port, value, end) in [
        (0x604, 0x2000, End::PowerOff),
        (0xCF9, 6, End::Reset),
        (0x64, 0xFE, End::Reset),
    ] {
        with_td(|td| {
            let act = Act::Call(call(IO, [2, 1, port, value]));
            assert_eq!(td.run(&td.host(), 0, &Script::new([act])), Stop::Ended);
            assert_eq!(td.vm.end(), Some(&end));
            assert!(end.is_orderly());
        });
    }
}

#[test]
fn a_kernel_can_say_that_it_has_panicked() {
    const PORT: u64 = 0x505;
    with_td(|td| {
        assert_eq!(one(td, IO, [1, 0, PORT, 0]).r11, 1, "what it may say");
        // The event of a crash kernel that has taken over, and undefined events.
        assert_eq!(one(td, IO, [1, 1, PORT, 0xFE]).r10, 0);
        assert_eq!(td.vm.end(), None);
        let act = Act::Call(call(IO, [1, 1, PORT, 1]));
        assert_eq!(td.run(&td.host(), 0, &Script::new([act])), Stop::Ended);
        assert_eq!(td.vm.end(), Some(&End::Panicked));
        assert!(!End::Panicked.is_orderly());
    });
}

#[test]
fn a_triple_fault_ends_the_td_with_a_report() {
    with_td(|td| {
        let script = Script::new([Act::Exit(Exit::of(2))]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Ended);
        assert_eq!(td.vm.end(), Some(&End::TripleFault { vcpu: 0 }));
    });
}

#[test]
fn a_machine_check_is_served_and_ends_the_td() {
    with_td(|td| {
        let check = Exit {
            interruption: (1 << 31 | 3 << 8 | 18, 0),
            ..Exit::of(0)
        };
        let host = td.host();
        assert_eq!(
            td.run(&host, 0, &Script::new([Act::Exit(check)])),
            Stop::Ended
        );
        assert_eq!(*host.served.borrow(), [18]);
        assert!(matches!(td.vm.end(), Some(End::MachineCheck(_))));
    });
}

#[test]
fn an_exit_that_no_td_makes_ends_the_td_with_a_report() {
    // A task switch, a monitor trap, and an undefined number.
    for reason in [9, 37, 4000] {
        with_td(|td| {
            let script = Script::new([Act::Exit(Exit::of(reason))]);
            assert_eq!(td.run(&td.host(), 0, &script), Stop::Ended);
            let end = td.vm.end();
            assert!(
                matches!(end, Some(End::Unknown(_) | End::Lost(_))),
                "{reason}: {end:?}"
            );
        });
    }
}

#[test]
fn an_entry_into_a_state_that_no_cpu_is_in_ends_the_td_alone() {
    const ENTRY_FAILED: u32 = 1 << 31;
    const GUEST_STATE: u32 = 33;
    with_td(|td| {
        let script = Script::new([Act::Exit(Exit::of(ENTRY_FAILED | GUEST_STATE))]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Ended);
        assert!(td.vm.end().is_some());
        assert!(td.rig.on(1).sys_rd(sys::TDCS_BASE_SIZE.id).is_ok());
    });
}

#[test]
fn an_nmi_window_while_the_guest_has_ve_information_is_no_instruction() {
    const HLT: u32 = 12;
    const NMI_WINDOW: u32 = 8;
    with_td(|td| {
        let halt = Exit {
            instruction_length: 1,
            ..Exit::of(HLT)
        };
        let script = Script::new([Act::Exit(halt), Act::Exit(Exit::of(NMI_WINDOW))]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Yield);
        assert_eq!(script.left(), 0);
        assert_eq!(td.vm.end(), None);
    });
}

#[test]
fn an_exit_for_an_msr_of_the_guest_s_own_ends_the_td_alone() {
    const NO_LEAF: u64 = 63;
    const SYSENTER_CS: u64 = 0x174;
    const RDMSR: u32 = 31;
    with_td(|td| {
        let read = Exit {
            instruction_length: 2,
            ..Exit::of(RDMSR)
        };
        // A refused call leaves RCX unchanged.
        let script = Script::new([Act::Tdcall(NO_LEAF, SYSENTER_CS), Act::Exit(read)]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Ended);
        assert!(td.vm.end().is_some());
        assert!(td.rig.on(1).sys_rd(sys::TDCS_BASE_SIZE.id).is_ok());
    });
}
