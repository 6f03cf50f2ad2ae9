//! Guests on a busy host or module, and CPUs that are needed elsewhere.

use seam::abi::{Gprs, PAGE_2M, Status};
use vcpu::Stop;

use crate::kit::{Act, Rig, SHARED, Script, Shape, Td, call};
use crate::{CPUID, MAP_GPA, with_td};

/// Runs `test` on a TD whose module has the faults `hooks`.
fn with_hooks(hooks: &str, test: impl FnOnce(&Td<'_>)) {
    let rig = Rig::new(hooks);
    test(&Td::new(&rig, &Shape::default()));
    rig.audit();
}

#[test]
fn a_vcpu_that_can_t_be_entered_for_long_lets_others_run() {
    with_hooks("busy:TD_EPOCH TDH.VP.ENTER calls 1-100", |td| {
        let script = Script::new([Act::Call(call(CPUID, [0xB, 0, 0, 0]))]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Busy);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Yield);
        assert_eq!(script.answers().len(), 1);
        assert_eq!(td.vm.vcpus()[0].tally().retries.get(), 100);
    });
}

#[test]
fn memory_that_others_are_at_for_long_is_given_later() {
    // More busy answers than the tries of one call.
    with_hooks("busy:SEPT_TREE TDH.MEM.PAGE.AUG calls 1-300", |td| {
        let script = Script::new([Act::Touch(0)]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Yield);
        assert_eq!(td.map.holding().pages, [0, 1, 0]);
        assert_eq!(td.vm.vcpus()[0].tally().retries.get(), 2);
    });
}

#[test]
fn a_guest_that_faults_at_one_place_again_and_again_is_helped_in_the_end() {
    // For so long that the module takes the faults for single-stepping, and reports them without running the guest.
    with_hooks("busy:SEPT_TREE TDH.MEM.PAGE.AUG calls 1-70000", |td| {
        let script = Script::new([Act::Touch(0); 10]);
        let (mut rounds, mut refused) = (0, 0);
        while td.map.holding().pages == [0; 3] {
            assert_eq!(td.vm.end(), None);
            rounds += 1;
            assert!(rounds < 100);
            let left = script.left();
            td.run(&td.host(), 0, &script);
            refused += usize::from(script.left() == left);
        }
        assert!(rounds > 7, "{rounds}");
        assert!(refused > 0, "not every fault was the guest's own");
        assert_eq!(td.map.holding().pages, [0, 1, 0]);
    });
}

#[test]
fn sharing_goes_on_later_when_others_are_at_the_memory_for_long() {
    with_hooks("busy:SEPT_TREE TDH.MEM.RANGE.BLOCK calls 1-3000", |td| {
        let share = call(MAP_GPA, [SHARED, PAGE_2M, 0, 0]);
        let script = Script::new([Act::Touch(0), Act::Call(share)]);
        let mut runs = 1;
        while td.run(&td.host(), 0, &script) == Stop::Busy {
            assert!(script.answers().is_empty(), "the call is not answered yet");
            runs += 1;
            assert!(runs < 1000);
        }
        assert!(runs > 1);
        let answer = script.answers().last().map(|answer| answer.regs()).unwrap();
        assert_eq!((answer.r10, answer.r11), (0, 0));
    });
}

#[test]
fn the_host_gets_its_cpu_in_the_middle_of_a_call_and_the_call_goes_on() {
    with_td(|td| {
        let script = Script::new([Act::Call(call(MAP_GPA, [SHARED, 6 * PAGE_2M, 0, 0]))]);
        let host = td.host();
        // The entry, and two steps.
        host.budget.set(2);
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        assert!(script.answers().is_empty());
        let shared = td.vm.shared().holding().pages[1];
        assert!((1..6).contains(&shared), "{shared}");
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Yield);
        let answer = script.answers()[0].regs();
        assert_eq!((answer.r10, answer.r11), (0, 0));
        assert_eq!((answer.r12, answer.r13), (SHARED, 6 * PAGE_2M));
        assert_eq!(td.vm.shared().holding().pages, [0, 6]);
    });
}

#[test]
fn an_nmi_that_can_t_be_handed_in_is_not_lost() {
    // The first four calls wire the vCPU.
    with_hooks("busy TDH.VP.WR calls 5-150", |td| {
        let host = td.host();
        host.post_nmi(0);
        let script = Script::new([Act::Call(call(CPUID, [0xB, 0, 0, 0]))]);
        assert_eq!(td.run(&host, 0, &script), Stop::Busy);
        let tally = td.vm.vcpus()[0].tally();
        assert_eq!(tally.nmis_in.get(), 0);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Yield);
        assert_eq!(tally.nmis_in.get(), 1);
    });
}

#[test]
fn a_vcpu_of_another_cpu_is_left_alone() {
    let rig = Rig::new("patterns");
    let td = Td::new(&rig, &Shape::default());
    // The vCPU is associated with CPU 0 since TDH.VP.INIT.
    let tdh = rig.on(0);
    tdh.vp_flush(&td.tdvprs[0]).unwrap();
    let mut regs = Gprs::default();
    let elsewhere = rig.on(1);
    let flags = seam::tdh::EnterFlags::default();
    let status = elsewhere.vp_enter(&td.tdvprs[0], flags, &mut regs).unwrap();
    assert_eq!(status, Status(1), "an interrupt, at once");
    assert_eq!(td.run(&td.host(), 0, &Script::default()), Stop::OtherCpu);
}

#[test]
fn the_host_gets_its_vcpu_back_when_it_wants_it() {
    with_td(|td| {
        let host = td.host();
        host.budget.set(3);
        let acts = std::iter::repeat_n(Act::Call(call(CPUID, [0; 4])), 10);
        let script = Script::new(acts);
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        assert_eq!(script.left(), 7);
    });
}
