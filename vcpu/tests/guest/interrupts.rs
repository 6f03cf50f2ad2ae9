//! Interrupts for the guest, and host interrupts that cause exits.

use seam::abi::Leaf;
use stub_module::host::Exit;
use vcpu::ghci::Branch;
use vcpu::{End, Halt, Stop};

use crate::kit::{Act, OUT_OF_LINES, SHARED, Script, Shape, call};
use crate::{HLT, INVALID, IO, MMIO, RDMSR, WRMSR, one, with_shape, with_td};

#[test]
fn the_typed_byte_arrives_as_an_interrupt() {
    with_td(|td| {
        let io_apic = SHARED | 0xFEC0_0000;
        for (register, value) in [(0x18, 0x31), (0x19, 0)] {
            one(td, MMIO, [4, 1, io_apic, register]);
            one(td, MMIO, [4, 1, io_apic + 0x10, value]);
        }
        one(td, IO, [1, 1, 0x3F9, 1]);
        td.vm.console().type_byte(b'x');
        let host = td.host();
        td.vm.vcpus()[0].wait();
        vcpu::receive_typed(host.waker());
        assert_eq!(*host.woken.borrow(), [0]);
        assert_eq!(td.vm.vcpus()[0].descriptor().pending()[0], 1 << 0x31);
    });
}

#[test]
fn a_vcpu_that_halts_comes_back_until_something_is_posted() {
    with_td(|td| {
        let script = Script::new([Act::Call(call(HLT, [0; 4]))]);
        let host = td.host();
        let state = &td.vm.vcpus()[0];
        assert_eq!(td.run(&host, 0, &script), Stop::Halted);
        assert!(state.is_waiting());
        assert_eq!(state.halt(), Halt::Interruptible);
        host.post(0, 0x31);
        assert_eq!(*host.woken.borrow(), [0]);
        assert!(!state.is_waiting());
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        assert_eq!(host.notified_here.get(), 1, "it arrives in the guest");
        assert_eq!(script.answers()[0].regs().r10, 0);
    });
}

#[test]
fn a_vcpu_that_halts_with_interrupts_off_waits_for_an_nmi_alone() {
    with_td(|td| {
        let script = Script::new([Act::Call(call(HLT, [1, 0, 0, 0]))]);
        let host = td.host();
        let state = &td.vm.vcpus()[0];
        assert_eq!(td.run(&host, 0, &script), Stop::Halted);
        host.post(0, 0x31);
        assert!(state.is_waiting());
        let entries = td.rig.calls(Leaf::VpEnter);
        for _ in 0..3 {
            assert_eq!(td.run(&host, 0, &script), Stop::Halted, "it sleeps on");
        }
        assert_eq!(td.rig.calls(Leaf::VpEnter), entries);
        assert_eq!(state.halt(), Halt::Blocked);
        host.post_nmi(0);
        host.post_nmi(0);
        assert!(!state.is_waiting());
        assert_eq!(*host.woken.borrow(), [0, 0], "two NMIs are one");
        let writes = td.rig.calls(Leaf::VpWr);
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        assert_eq!(td.rig.calls(Leaf::VpWr), writes + 1, "PEND_NMI");
        assert_eq!(host.notified_here.get(), 1, "the interrupt was kept");
        assert_eq!(one(td, HLT, [2, 0, 0, 0]).r10, INVALID);
    });
}

#[test]
fn the_timer_does_not_wake_a_vcpu_that_halts_with_interrupts_off_and_is_not_lost() {
    with_td(|td| {
        let script = Script::new([
            Act::Call(call(WRMSR, [0x80F, 0x1FF, 0, 0])),
            Act::Call(call(WRMSR, [0x832, 2 << 17 | 0x31, 0, 0])),
            Act::Call(call(WRMSR, [0x6E0, 2_000_000, 0, 0])),
            Act::Call(call(HLT, [1, 0, 0, 0])),
        ]);
        let host = td.host();
        assert_eq!(td.run(&host, 0, &script), Stop::Halted);
        assert_eq!(td.vcpus[0].lock().due(&td.vm), None);
        host.tsc.set(2_000_000);
        assert_eq!(td.run(&host, 0, &script), Stop::Halted);
        host.post_nmi(0);
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        assert_eq!(td.vm.vcpus()[0].descriptor().pending()[0], 1 << 0x31);
        assert_eq!(td.vm.vcpus()[0].tally().timers.get(), 1);
    });
}

#[test]
fn a_td_that_ends_takes_a_vcpu_along_that_halts_with_interrupts_off() {
    with_td(|td| {
        let script = Script::new([Act::Call(call(HLT, [1, 0, 0, 0]))]);
        let host = td.host();
        assert_eq!(td.run(&host, 0, &script), Stop::Halted);
        td.vm.end_with(End::PowerOff);
        assert_eq!(td.run(&host, 0, &script), Stop::Ended);
    });
}

#[test]
fn what_is_posted_before_the_halt_keeps_it_from_halting() {
    with_td(|td| {
        let host = td.host();
        host.post(0, 0x31);
        let reads = td.rig.calls(Leaf::VpRd);
        assert_eq!(one(td, HLT, [0; 4]).r10, 0);
        assert_eq!(td.rig.calls(Leaf::VpRd), reads, "nobody had to be asked");
        assert_eq!(td.vm.vcpus()[0].branches().get(Branch::HltPending), 1);
    });
}

#[test]
fn the_deadline_timer_goes_off_in_the_guest() {
    with_td(|td| {
        let script = Script::new([
            Act::Call(call(WRMSR, [0x80F, 0x1FF, 0, 0])),
            Act::Call(call(WRMSR, [0x832, 2 << 17 | 0x31, 0, 0])),
            Act::Call(call(WRMSR, [0x6E0, 2_000_000, 0, 0])),
            Act::Call(call(HLT, [0; 4])),
        ]);
        let host = td.host();
        assert_eq!(td.run(&host, 0, &script), Stop::Halted);
        assert_eq!(td.vcpus[0].lock().due(&td.vm), Some(2_000_000));
        assert_eq!(host.timer.get(), None, "nobody runs");
        host.tsc.set(2_000_000);
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        assert_eq!(td.vm.vcpus()[0].descriptor().pending()[0], 1 << 0x31);
        assert_eq!(td.vm.vcpus()[0].tally().timers.get(), 1);
        assert_eq!(td.vcpus[0].lock().due(&td.vm), None);
    });
}

#[test]
fn vcpus_send_each_other_interrupts() {
    let shape = Shape {
        vcpus: 3,
        ..Shape::default()
    };
    with_shape(&shape, |td| {
        let script = Script::new([
            Act::Call(call(WRMSR, [0x830, 2 << 32 | 0x40, 0, 0])),
            Act::Call(call(WRMSR, [0x830, 0xC_0041, 0, 0])),
            Act::Call(call(WRMSR, [0x830, 1 << 32 | 0x400, 0, 0])),
            Act::Call(call(WRMSR, [0x830, 1 << 32 | 0x500, 0, 0])),
            Act::Call(call(RDMSR, [0x802, 0, 0, 0])),
        ]);
        let host = td.host();
        td.vm.vcpus()[1].wait();
        td.vm.vcpus()[2].wait();
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        let pending = |vcpu: usize| td.vm.vcpus()[vcpu].descriptor().pending()[1];
        assert_eq!([0, 1, 2].map(pending), [0, 2, 3]);
        assert_eq!(*host.woken.borrow(), [2, 1]);
        let status: Vec<_> = script.answers().iter().map(|a| a.regs().r10).collect();
        assert_eq!(status, [0, 0, 0, INVALID, 0]);
    });
}

#[test]
fn the_hosts_interrupts_and_nmis_are_served_with_their_vectors() {
    with_td(|td| {
        let nmi = Exit {
            interruption: (1 << 31 | 2 << 8 | 2, 0),
            ..Exit::of(0)
        };
        let script = Script::new([
            Act::Interrupted(0xE0),
            Act::Exit(nmi),
            Act::Exit(Exit::of(74)),
            Act::Interrupted(0x40),
        ]);
        let host = td.host();
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        assert_eq!(*host.served.borrow(), [0xE0, 2, 0x40, OUT_OF_LINES]);
        assert_eq!(td.vm.vcpus()[0].tally().bus_locks.get(), 1);
    });
}
