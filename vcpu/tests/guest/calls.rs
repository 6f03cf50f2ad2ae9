//! Guest calls to the host: devices, MSRs, services.

use seam::abi::{Gprs, PAGE_2M, PAGE_4K};
use seam::address::Gpa;
use vcpu::Stop;

use crate::kit::{Act, SHARED, Script, Shape, call};
use crate::{
    CPUID, EVENT_NOTIFY, GET_QUOTE, INVALID, IO, MAP_GPA, MISALIGNED, MMIO, RDMSR, SERVICE,
    UNSUPPORTED, WRMSR, one, with_shape, with_td,
};

#[test]
fn cpuid_tells_the_topology_and_who_the_host_is() {
    let shape = Shape {
        vcpus: 3,
        ..Shape::default()
    };
    with_shape(&shape, |td| {
        let answer = one(td, CPUID, [0xB, 1, 0, 0]);
        assert_eq!(
            [answer.r12, answer.r13, answer.r14, answer.r15],
            [2, 3, 0x201, 0]
        );
        let answer = one(td, CPUID, [0x4000_0000, 0, 0, 0]);
        let name = [answer.r13, answer.r14, answer.r15].map(|r| (r as u32).to_le_bytes());
        assert_eq!(name.concat(), *b"Seamark TDX ");
        assert_eq!(one(td, CPUID, [6, 0, 9, 9]).r14, 0);
        assert_eq!(one(td, CPUID, [1 << 32, 0, 0, 0]).r10, INVALID);
        assert_eq!(one(td, CPUID, [0, u64::MAX, 0, 0]).r10, INVALID);
    });
}

#[test]
fn a_guest_writes_to_its_console_and_reads_what_is_typed() {
    with_td(|td| {
        for byte in *b"hello\n" {
            let answer = one(td, IO, [1, 1, 0x3F8, byte.into()]);
            assert_eq!(answer.r10, 0);
        }
        let mut seen = [0; 16];
        let count = td.vm.console().read(0, &mut seen).count;
        assert_eq!(&seen[..count], b"hello\n");
        assert!(td.vm.console().type_byte(b'x'));
        vcpu::receive_typed(td.host().waker());
        assert_eq!(one(td, IO, [1, 0, 0x3FD, 0]).r11 & 1, 1);
        assert_eq!(one(td, IO, [1, 0, 0x3F8, 0]).r11, u64::from(b'x'));
    });
}

#[test]
fn ports_without_a_device_are_an_open_bus_and_impossible_ones_an_error() {
    with_td(|td| {
        for (size, value) in [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF)] {
            let answer = one(td, IO, [size, 0, 0x80, 0]);
            assert_eq!((answer.r10, answer.r11), (0, value));
        }
        for operands in [
            [3, 0, 0x80, 0],
            [8, 0, 0x80, 0],
            [1, 2, 0x80, 0],
            [1, 0, 0x1_0000, 0],
            [4, 1, 0xFFFD, 0],
            [u64::MAX; 4],
        ] {
            assert_eq!(one(td, IO, operands).r10, INVALID, "{operands:?}");
        }
    });
}

#[test]
fn mmio_is_for_shared_addresses_alone() {
    with_td(|td| {
        let answer = one(td, MMIO, [4, 0, SHARED | 0xFED0_0000, 0]);
        assert_eq!((answer.r10, answer.r11), (0, 0xFFFF_FFFF));
        assert_eq!(one(td, MMIO, [8, 1, SHARED | 0xFED0_0000, 7]).r10, 0);
        for operands in [
            [4, 0, 0xFED0_0000, 0],
            [3, 0, SHARED | 0xFED0_0000, 0],
            [4, 2, SHARED | 0xFED0_0000, 0],
            [4, 0, SHARED | 0xFED0_0FFE, 0],
            [4, 0, SHARED << 1 | SHARED, 0],
        ] {
            assert_eq!(one(td, MMIO, operands).r10, INVALID, "{operands:x?}");
        }
    });
}

#[test]
fn msrs_that_the_guest_does_not_have_are_errors() {
    with_td(|td| {
        assert_eq!(one(td, RDMSR, [0x1B, 0, 0, 0]).r11, 0xFEE0_0D00);
        for msr in [0x10, 0xC000_0080, 0x800, 1 << 32 | 0x1B, u64::MAX] {
            assert_eq!(one(td, RDMSR, [msr, 0, 0, 0]).r10, INVALID, "{msr:#x}");
            assert_eq!(one(td, WRMSR, [msr, 0, 0, 0]).r10, INVALID, "{msr:#x}");
        }
    });
}

#[test]
fn a_quote_is_refused_by_the_call_and_the_buffer_is_left_alone() {
    with_td(|td| {
        let buffer = SHARED | PAGE_2M;
        one(td, MAP_GPA, [buffer, PAGE_2M, 0, 0]);
        let word = |word: usize, value| {
            let store = |words: &mm::shared::Words| {
                words[word].swap(value, std::sync::atomic::Ordering::SeqCst)
            };
            td.vm
                .shared()
                .with_page(td.rig, Gpa(PAGE_2M), store)
                .unwrap()
        };
        let asked = [1, 0, 5 << 32 | 1024];
        for (at, value) in asked.into_iter().enumerate() {
            word(at, value);
        }
        assert_eq!(one(td, GET_QUOTE, [buffer, PAGE_4K, 0, 0]).r10, UNSUPPORTED);
        assert_eq!([0, 1, 2].map(|at| word(at, 0)), asked);
        for (operands, status) in [
            ([buffer | 8, PAGE_4K, 0, 0], MISALIGNED),
            ([buffer, 8, 0, 0], MISALIGNED),
            ([buffer, 0, 0, 0], INVALID),
            ([PAGE_2M, PAGE_4K, 0, 0], INVALID),
            ([buffer, SHARED, 0, 0], INVALID),
        ] {
            assert_eq!(one(td, GET_QUOTE, operands).r10, status, "{operands:x?}");
        }
    });
}

#[test]
fn a_service_is_answered_with_none_and_an_event() {
    with_td(|td| {
        let buffer = SHARED | PAGE_2M;
        let response = buffer + PAGE_4K;
        assert_eq!(
            one(td, SERVICE, [buffer, response, 0, 0]).r10,
            INVALID,
            "not shared"
        );
        one(td, MAP_GPA, [buffer, PAGE_2M, 0, 0]);
        assert_eq!(one(td, SERVICE, [buffer, response, 0x52, 0]).r10, 0);
        assert_eq!(td.vm.vcpus()[0].descriptor().pending()[1], 1 << (0x52 - 64));
        assert_eq!(one(td, SERVICE, [buffer, response, 5, 0]).r10, INVALID);
        assert_eq!(
            one(td, SERVICE, [buffer, response | 1, 0, 0]).r10,
            MISALIGNED
        );
        assert_eq!(one(td, SERVICE, [buffer, SHARED, 0, 0]).r10, INVALID);
    });
}

#[test]
fn what_needs_shared_memory_is_to_be_asked_for_again_while_memory_is_converted() {
    let shape = Shape {
        vcpus: 2,
        ..Shape::default()
    };
    with_shape(&shape, |td| {
        let buffer = SHARED | PAGE_2M;
        one(td, MAP_GPA, [SHARED, 2 * PAGE_2M, 0, 0]);
        let outer = Script::new([Act::Call(call(MAP_GPA, [0, PAGE_4K, 0, 0]))]);
        let asked = Script::new([Act::Call(call(SERVICE, [buffer, buffer, 0, 0]))]);
        let host = td.host();
        let (same, within) = (outer.clone(), asked.clone());
        host.meanwhile.replace(Some(Box::new(move || {
            assert_eq!(td.run_within(&same, 1, &within), Stop::Yield);
        })));
        assert_eq!(td.run(&host, 0, &outer), Stop::Yield);
        let statuses = |script: &Script| -> Vec<_> {
            let answers = script.answers().into_iter();
            answers.map(|answer| answer.regs().r10).collect()
        };
        assert_eq!((statuses(&outer), statuses(&asked)), (vec![0], vec![1]));
    });
}

#[test]
fn what_is_not_known_is_unsupported() {
    with_td(|td| {
        for function in [0, 1, 0x41, EVENT_NOTIFY, 0x1_0006, u64::MAX] {
            assert_eq!(one(td, function, [0; 4]).r10, UNSUPPORTED, "{function:#x}");
        }
        let vendor = Gprs {
            r10: 1,
            ..call(CPUID, [0; 4])
        };
        assert_eq!(td.ask(&[vendor])[0].r10, UNSUPPORTED);
        // All base calls are supported, and no optional ones.
        for leaf in [0, 1] {
            let info = one(td, 0x1_0000, [leaf, 9, 9, 9]);
            assert_eq!([info.r11, info.r12, info.r13, info.r14], [0; 4]);
        }
        assert_eq!(one(td, 0x1_0000, [2, 0, 0, 0]).r10, INVALID);
    });
}
