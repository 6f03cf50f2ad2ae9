//! Memory: mapped on demand, shared, and taken back.

use seam::abi::{Attributes, PAGE_2M, PAGE_4K};
use seam::address::Gpa;
use vcpu::{End, Stop};

use crate::kit::script::accept;
use crate::kit::{Act, SHARED, Script, Shape, call};
use crate::{INVALID, MAP_GPA, MISALIGNED, one, with_shape, with_td};

#[test]
fn memory_is_given_2_mib_at_a_time_and_split_where_4_kib_are_accepted() {
    with_td(|td| {
        let host = td.host();
        let large = Script::new([accept((4 * PAGE_2M) | 1)]);
        assert_eq!(td.run(&host, 0, &large), Stop::Yield);
        assert_eq!(large.answers()[0].regs().rax, 0);
        assert_eq!(td.map.holding().pages, [0, 1, 0]);
        let small = Script::new([accept(8 * PAGE_2M)]);
        let kicks = host.kicks.load(std::sync::atomic::Ordering::Relaxed);
        host.served.borrow_mut().clear();
        assert_eq!(td.run(&host, 0, &small), Stop::Yield);
        assert_eq!(small.answers()[0].regs().rax, 0);
        assert_eq!(td.map.holding().pages, [512, 1, 0]);
        let state = &td.vm.vcpus()[0];
        assert_eq!(state.tally().splits.get(), 1);
        assert!(host.kicks.load(std::sync::atomic::Ordering::Relaxed) > kicks);
    });
}

#[test]
fn memory_that_does_not_fill_2_mib_is_given_in_pages() {
    let shape = Shape {
        memory: PAGE_2M + 4 * PAGE_4K,
        ..Shape::default()
    };
    with_shape(&shape, |td| {
        let host = td.host();
        let script = Script::new([Act::Touch(PAGE_2M + PAGE_4K), Act::Touch(0)]);
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        assert_eq!(td.map.holding().pages, [1, 1, 0]);
    });
}

#[test]
fn a_private_address_without_memory_is_the_end_of_that_td() {
    with_td(|td| {
        let gpa = 1 << 40;
        let stop = td.run(&td.host(), 0, &Script::new([Act::Touch(gpa)]));
        assert_eq!(stop, Stop::Ended);
        assert_eq!(td.vm.end(), Some(&End::NoMemory(Gpa(gpa))));
        // The TD stays ended.
        assert_eq!(td.run(&td.host(), 0, &Script::default()), Stop::Ended);
    });
}

#[test]
fn memory_that_the_operator_took_is_not_given_again() {
    with_td(|td| {
        let kept = Script::new([Act::Touch(0), Act::Touch(2 * PAGE_2M)]);
        assert!(td.vm.end_memory_at(3 * PAGE_2M));
        assert_eq!(td.run(&td.host(), 0, &kept), Stop::Yield);
        assert_eq!(td.map.holding().pages, [0, 2, 0]);
        // Memory never grows.
        assert!(td.vm.end_memory_at(5 * PAGE_2M));
        one(td, MAP_GPA, [SHARED | (3 * PAGE_2M), PAGE_2M, 0, 0]);
        assert!(!td.vm.shared().has(td.rig, Gpa(3 * PAGE_2M)));
        let taken = Gpa(3 * PAGE_2M);
        let stop = td.run(&td.host(), 0, &Script::new([Act::Touch(taken.0)]));
        assert_eq!(stop, Stop::Ended);
        assert_eq!(td.vm.end(), Some(&End::NoMemory(taken)));
    });
}

#[test]
fn a_td_that_wants_no_ve_ends_when_it_touches_what_it_did_not_accept() {
    let shape = Shape {
        attributes: Attributes::SEPT_VE_DISABLE,
        ..Shape::default()
    };
    with_shape(&shape, |td| {
        let script = Script::new([Act::Touch(0), Act::Touch(0)]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Ended);
        assert_eq!(td.vm.end(), Some(&End::Unaccepted(Gpa(0))));
    });
}

#[test]
fn memory_goes_to_shared_and_back_and_nothing_of_it_is_left_behind() {
    with_td(|td| {
        let out = td.rig.out();
        let to_shared = call(MAP_GPA, [SHARED | PAGE_2M, 2 * PAGE_2M + PAGE_4K, 0, 0]);
        let script = Script::new([accept(PAGE_2M | 1), Act::Call(to_shared)]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Yield);
        let answer = script.answers()[1].regs();
        assert_eq!((answer.r10, answer.r11), (0, 0));
        assert_eq!(td.map.holding().pages, [0, 0, 0]);
        assert_eq!(td.vm.shared().holding().pages, [1, 2]);
        assert!(td.vm.shared().has(td.rig, Gpa(3 * PAGE_2M)));
        let back = one(td, MAP_GPA, [PAGE_2M, 2 * PAGE_2M + PAGE_4K, 0, 0]);
        assert_eq!(back.r10, 0);
        assert_eq!(td.vm.shared().holding().pages, [0, 0]);
        let tables = td.vm.shared().holding().tables - 1;
        assert_eq!(td.rig.out(), out + tables, "only tables of the shared EPT");
    });
}

#[test]
fn a_page_of_2_mib_loses_what_is_shared_and_the_rest_stays_private() {
    with_td(|td| {
        let to_shared = call(MAP_GPA, [SHARED | PAGE_4K, PAGE_4K, 0, 0]);
        let script = Script::new([accept(1), Act::Call(to_shared), accept(PAGE_4K)]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Ended);
        assert_eq!(td.map.holding().pages, [511, 0, 0]);
        assert_eq!(td.vm.shared().holding().pages, [1, 0]);
        assert_eq!(td.vm.end(), Some(&End::UsedShared(Gpa(PAGE_4K))));
    });
}

#[test]
fn ranges_that_can_t_be_mapped_are_refused() {
    with_td(|td| {
        for (operands, status) in [
            ([SHARED, 0, 0, 0], INVALID),
            ([SHARED, SHARED + PAGE_4K, 0, 0], INVALID),
            ([SHARED | 0x800, PAGE_4K, 0, 0], MISALIGNED),
            ([SHARED, 0x800, 0, 0], MISALIGNED),
            ([SHARED << 1, PAGE_4K, 0, 0], INVALID),
            ([PAGE_4K, u64::MAX - PAGE_4K + 1, 0, 0], INVALID),
            // Without memory there, nothing is to be converted.
            ([SHARED | 0xFED0_0000, PAGE_4K, 0, 0], 0),
        ] {
            assert_eq!(one(td, MAP_GPA, operands).r10, status, "{operands:x?}");
        }
    });
}

#[test]
fn a_long_mapping_goes_on_later_when_an_interrupt_waits() {
    with_td(|td| {
        td.host().post(0, 0x31);
        let answer = one(td, MAP_GPA, [SHARED, 12 * PAGE_2M, 0, 0]);
        assert_eq!((answer.r10, answer.r11), (1, SHARED | (4 * PAGE_2M)));
        assert_eq!(td.vm.shared().holding().pages, [0, 4]);
    });
}

#[test]
fn a_short_mapping_is_answered_at_once_for_guests_that_take_retry_for_an_error() {
    with_td(|td| {
        td.host().post(0, 0x31);
        let answer = one(td, MAP_GPA, [SHARED, 4 * PAGE_2M, 0, 0]);
        assert_eq!((answer.r10, answer.r11), (0, 0));
    });
}

#[test]
fn a_cpu_that_does_not_answer_makes_mapping_try_again() {
    with_td(|td| {
        one(td, MAP_GPA, [SHARED, PAGE_2M, 0, 0]);
        let host = td.host();
        host.silent.store(3, std::sync::atomic::Ordering::Relaxed);
        let script = Script::new([Act::Call(call(MAP_GPA, [0, PAGE_2M, 0, 0]))]);
        assert_eq!(td.run(&host, 0, &script), Stop::Busy);
        assert!(script.answers().is_empty());
        assert_eq!(td.vm.shared().holding().pages, [0, 1]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Yield);
        let answer = script.answers()[0].regs();
        assert_eq!((answer.r10, answer.r11), (0, 0));
        assert_eq!(td.vm.shared().holding().pages, [0, 0]);
    });
}
