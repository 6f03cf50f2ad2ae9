//! Scripted guests on the emulated module, through the run loop.

mod kit;

use kit::script::accept;
use kit::{Act, Rig, SHARED, Script, Shape, Td, call};
use seam::abi::{Gprs, Leaf, PAGE_2M, PAGE_4K, Status, attributes};
use seam::address::Gpa;
use stub_module::host::Exit;
use vcpu::ghci::Branch;
use vcpu::{End, Halt, Stop};

const CPUID: u64 = 0xA;
const HLT: u64 = 0xC;
const IO: u64 = 0x1E;
const RDMSR: u64 = 0x1F;
const WRMSR: u64 = 0x20;
const MMIO: u64 = 0x30;
const MAP_GPA: u64 = 0x1_0001;
const GET_QUOTE: u64 = 0x1_0002;
const FATAL: u64 = 0x1_0003;
const EVENT_NOTIFY: u64 = 0x1_0004;
const SERVICE: u64 = 0x1_0005;

const INVALID: u64 = 1 << 63;
const MISALIGNED: u64 = 1 << 63 | 2;
const UNSUPPORTED: u64 = 1 << 63 | 3;

fn with_td(test: impl FnOnce(&Td<'_>)) {
    with_shape(&Shape::default(), test);
}

fn with_shape(shape: &Shape, test: impl FnOnce(&Td<'_>)) {
    let rig = Rig::new("patterns");
    test(&Td::new(&rig, shape));
    rig.audit();
}

/// The answer to one call.
fn one(td: &Td<'_>, function: u64, operands: [u64; 4]) -> Gprs {
    let answers = td.ask(&[call(function, operands)]);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].rax, 0, "TDG.VP.VMCALL itself succeeds");
    answers[0]
}

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
        assert_eq!(td.board.console().read(0, &mut seen), (0, 6));
        assert_eq!(&seen[..6], b"hello\n");
        assert!(td.board.console().type_byte(b'x'));
        td.board.receive_typed(&td.host());
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
fn the_typed_byte_arrives_as_an_interrupt() {
    with_td(|td| {
        let io_apic = SHARED | 0xFEC0_0000;
        for (register, value) in [(0x18, 0x31), (0x19, 0)] {
            one(td, MMIO, [4, 1, io_apic, register]);
            one(td, MMIO, [4, 1, io_apic + 0x10, value]);
        }
        one(td, IO, [1, 1, 0x3F9, 1]);
        td.board.console().type_byte(b'x');
        let host = td.host();
        td.board.receive_typed(&host);
        assert_eq!(*host.notified.borrow(), [0]);
        assert_eq!(td.board.stations()[0].descriptor().pending()[0], 1 << 0x31);
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
fn a_vcpu_that_halts_comes_back_until_something_is_posted() {
    with_td(|td| {
        let script = Script::new([Act::Call(call(HLT, [0; 4]))]);
        let host = td.host();
        let station = &td.board.stations()[0];
        assert_eq!(td.run(&host, 0, &script), Stop::Halted);
        assert!(station.is_waiting());
        assert_eq!(station.halt(), Halt::Interruptible);
        td.board.post(&host, 0, 0x31);
        assert_eq!(*host.notified.borrow(), [0]);
        assert!(!station.is_waiting());
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
        let station = &td.board.stations()[0];
        assert_eq!(td.run(&host, 0, &script), Stop::Halted);
        td.board.post(&host, 0, 0x31);
        assert!(station.is_waiting());
        td.board.post_nmi(&host, 0);
        td.board.post_nmi(&host, 0);
        assert!(!station.is_waiting());
        assert_eq!(*host.notified.borrow(), [0]);
        assert_eq!(*host.interrupted.borrow(), [0], "two NMIs are one");
        let writes = td.rig.calls(Leaf::VpWr);
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        assert_eq!(td.rig.calls(Leaf::VpWr), writes + 1, "PEND_NMI");
        assert_eq!(one(td, HLT, [2, 0, 0, 0]).r10, INVALID);
    });
}

#[test]
fn what_is_posted_before_the_halt_keeps_it_from_halting() {
    with_td(|td| {
        let host = td.host();
        td.board.post(&host, 0, 0x31);
        let reads = td.rig.calls(Leaf::VpRd);
        assert_eq!(one(td, HLT, [0; 4]).r10, 0);
        assert_eq!(td.rig.calls(Leaf::VpRd), reads, "nobody had to be asked");
        assert_eq!(td.board.stations()[0].branches().get(Branch::HltPending), 1);
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
        assert_eq!(td.vcpus[0].lock().due(&td.board), Some(2_000_000));
        assert_eq!(host.wake_at.get(), None, "nobody runs");
        host.tsc.set(2_000_000);
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        assert_eq!(td.board.stations()[0].descriptor().pending()[0], 1 << 0x31);
        assert_eq!(td.board.stations()[0].tally().timers.get(), 1);
        assert_eq!(td.vcpus[0].lock().due(&td.board), None);
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
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        let pending = |vcpu: usize| td.board.stations()[vcpu].descriptor().pending()[1];
        assert_eq!([0, 1, 2].map(pending), [0, 2, 3]);
        assert_eq!(*host.notified.borrow(), [2, 1]);
        assert_eq!(*host.interrupted.borrow(), [1]);
        let status: Vec<_> = script.answers().iter().map(|a| a.regs().r10).collect();
        assert_eq!(status, [0, 0, 0, INVALID, 0]);
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
        let station = &td.board.stations()[0];
        assert_eq!(station.tally().splits.get(), 1);
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
        assert_eq!(td.board.end(), Some(&End::NoMemory(Gpa(gpa))));
        // It stays so.
        assert_eq!(td.run(&td.host(), 0, &Script::default()), Stop::Ended);
    });
}

#[test]
fn memory_that_the_operator_took_is_not_given_again() {
    with_td(|td| {
        let kept = Script::new([Act::Touch(0), Act::Touch(2 * PAGE_2M)]);
        assert!(td.board.end_memory_at(3 * PAGE_2M));
        assert_eq!(td.run(&td.host(), 0, &kept), Stop::Yield);
        assert_eq!(td.map.holding().pages, [0, 2, 0]);
        // It never grows.
        assert!(td.board.end_memory_at(5 * PAGE_2M));
        one(td, MAP_GPA, [SHARED | (3 * PAGE_2M), PAGE_2M, 0, 0]);
        assert!(!td.board.shared().has(td.rig, Gpa(3 * PAGE_2M)));
        let taken = Gpa(3 * PAGE_2M);
        let stop = td.run(&td.host(), 0, &Script::new([Act::Touch(taken.0)]));
        assert_eq!(stop, Stop::Ended);
        assert_eq!(td.board.end(), Some(&End::NoMemory(taken)));
    });
}

#[test]
fn a_td_that_wants_no_ve_ends_when_it_touches_what_it_did_not_accept() {
    let shape = Shape {
        attributes: attributes::SEPT_VE_DISABLE,
        ..Shape::default()
    };
    with_shape(&shape, |td| {
        let script = Script::new([Act::Touch(0), Act::Touch(0)]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Ended);
        assert_eq!(td.board.end(), Some(&End::Unaccepted(Gpa(0))));
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
        assert_eq!(td.board.shared().holding().pages, [1, 2]);
        assert!(td.board.shared().has(td.rig, Gpa(3 * PAGE_2M)));
        let back = one(td, MAP_GPA, [PAGE_2M, 2 * PAGE_2M + PAGE_4K, 0, 0]);
        assert_eq!(back.r10, 0);
        assert_eq!(td.board.shared().holding().pages, [0, 0]);
        let tables = td.board.shared().holding().tables - 1;
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
        assert_eq!(td.board.shared().holding().pages, [1, 0]);
        assert_eq!(td.board.end(), Some(&End::UsedShared(Gpa(PAGE_4K))));
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
            // Where there is no memory there is nothing to do.
            ([SHARED | 0xFED0_0000, PAGE_4K, 0, 0], 0),
        ] {
            assert_eq!(one(td, MAP_GPA, operands).r10, status, "{operands:x?}");
        }
    });
}

#[test]
fn mapping_goes_on_later_when_an_interrupt_waits() {
    with_td(|td| {
        td.board.post(&td.host(), 0, 0x31);
        let answer = one(td, MAP_GPA, [SHARED, 4 * PAGE_2M, 0, 0]);
        assert_eq!((answer.r10, answer.r11), (1, SHARED | PAGE_2M));
        assert_eq!(td.board.shared().holding().pages, [0, 1]);
    });
}

#[test]
fn a_cpu_that_does_not_answer_makes_mapping_try_again() {
    with_td(|td| {
        one(td, MAP_GPA, [SHARED, PAGE_2M, 0, 0]);
        let host = td.host();
        host.silent.store(3, std::sync::atomic::Ordering::Relaxed);
        let script = Script::new([Act::Call(call(MAP_GPA, [0, PAGE_2M, 0, 0]))]);
        assert_eq!(td.run(&host, 0, &script), Stop::Yield);
        let answer = script.answers()[0].regs();
        assert_eq!((answer.r10, answer.r11), (1, 0));
        assert_eq!(td.board.shared().holding().pages, [0, 1]);
        assert_eq!(one(td, MAP_GPA, [0, PAGE_2M, 0, 0]).r10, 0);
    });
}

#[test]
fn a_quote_is_answered_with_no_service_and_an_event() {
    with_td(|td| {
        let buffer = SHARED | PAGE_2M;
        assert_eq!(one(td, EVENT_NOTIFY, [0x51, 0, 0, 0]).r10, 0);
        assert_eq!(one(td, EVENT_NOTIFY, [31, 0, 0, 0]).r10, INVALID);
        assert_eq!(one(td, EVENT_NOTIFY, [256, 0, 0, 0]).r10, INVALID);
        assert_eq!(
            one(td, GET_QUOTE, [buffer, PAGE_4K, 0, 0]).r10,
            INVALID,
            "not shared"
        );
        one(td, MAP_GPA, [buffer, PAGE_2M, 0, 0]);
        assert_eq!(
            one(td, GET_QUOTE, [buffer, PAGE_4K, 0, 0]).r10,
            INVALID,
            "version 0"
        );
        let set = |word: usize, value| {
            let store = |words: &mm::shared::Words| {
                words[word].swap(value, std::sync::atomic::Ordering::SeqCst)
            };
            td.board
                .shared()
                .with_page(td.rig, Gpa(PAGE_2M), store)
                .unwrap()
        };
        set(0, 1);
        set(2, 5 << 32 | 1024);
        assert_eq!(one(td, GET_QUOTE, [buffer, PAGE_4K, 0, 0]).r10, 0);
        assert_eq!(set(1, 0), 0x8000_0000_0000_0001);
        assert_eq!(
            set(2, 0),
            1024,
            "the length in stays, and nothing comes out"
        );
        assert_eq!(
            td.board.stations()[0].descriptor().pending()[1],
            1 << (0x51 - 64)
        );
        assert_eq!(
            one(td, GET_QUOTE, [buffer | 8, PAGE_4K, 0, 0]).r10,
            MISALIGNED
        );
        assert_eq!(one(td, GET_QUOTE, [PAGE_2M, PAGE_4K, 0, 0]).r10, INVALID);
        let response = buffer + PAGE_4K;
        assert_eq!(one(td, SERVICE, [buffer, response, 0x52, 0]).r10, 0);
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
        let asked = Script::new([
            Act::Call(call(GET_QUOTE, [buffer, PAGE_4K, 0, 0])),
            Act::Call(call(SERVICE, [buffer, buffer, 0, 0])),
        ]);
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
        assert_eq!((statuses(&outer), statuses(&asked)), (vec![0], vec![1, 1]));
    });
}

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
        let end = td.board.end().unwrap().to_string();
        assert_eq!(end, "it reported fatal error 0x3: bad bad thing");
        let mut seen = [0; 64];
        let (_, count) = td.board.console().read(0, &mut seen);
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
        // Not shared, not aligned, not there: what is in registers is what there is.
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
            td.board.shared().with_page(td.rig, Gpa(0), store).unwrap();
            let regs = Gprs {
                r14: u64::from_le_bytes(*b"short\0\0\0"),
                ..call(FATAL, [1 << 63, more, 0, 0])
            };
            td.run(&td.host(), 0, &Script::new([Act::Call(regs)]));
            let said = td.board.end().unwrap().to_string();
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
            assert_eq!(td.board.end(), Some(&end));
            assert!(end.is_orderly());
        });
    }
}

#[test]
fn a_kernel_can_say_that_it_has_panicked() {
    const PORT: u64 = 0x505;
    with_td(|td| {
        assert_eq!(one(td, IO, [1, 0, PORT, 0]).r11, 1, "what it may say");
        // That a crash kernel has taken over, and what nobody has defined yet.
        assert_eq!(one(td, IO, [1, 1, PORT, 0xFE]).r10, 0);
        assert_eq!(td.board.end(), None);
        let act = Act::Call(call(IO, [1, 1, PORT, 1]));
        assert_eq!(td.run(&td.host(), 0, &Script::new([act])), Stop::Ended);
        assert_eq!(td.board.end(), Some(&End::Panicked));
        assert!(!End::Panicked.is_orderly());
    });
}

#[test]
fn what_is_not_known_is_unsupported() {
    with_td(|td| {
        for function in [0, 1, 0x41, 0x1_0006, u64::MAX] {
            assert_eq!(one(td, function, [0; 4]).r10, UNSUPPORTED, "{function:#x}");
        }
        let vendor = Gprs {
            r10: 1,
            ..call(CPUID, [0; 4])
        };
        assert_eq!(td.ask(&[vendor])[0].r10, UNSUPPORTED);
        let base = one(td, 0x1_0000, [0, 9, 9, 9]);
        assert_eq!([base.r11, base.r12, base.r13, base.r14], [0; 4]);
        assert_eq!(one(td, 0x1_0000, [1, 0, 0, 0]).r11, 2);
        assert_eq!(one(td, 0x1_0000, [2, 0, 0, 0]).r10, INVALID);
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
        assert_eq!(*host.served.borrow(), [0xE0, 2, 0x40, kit::OUT_OF_LINES]);
        assert_eq!(td.board.stations()[0].tally().bus_locks.get(), 1);
    });
}

#[test]
fn a_triple_fault_ends_the_td_with_a_report() {
    with_td(|td| {
        let script = Script::new([Act::Exit(Exit::of(2))]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Ended);
        assert_eq!(td.board.end(), Some(&End::TripleFault { vcpu: 0 }));
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
        assert!(matches!(td.board.end(), Some(End::MachineCheck(_))));
    });
}

#[test]
fn an_exit_that_no_td_makes_ends_the_td_with_a_report() {
    // A task switch, a monitor trap, and a number that is none.
    for reason in [9, 37, 4000] {
        with_td(|td| {
            let script = Script::new([Act::Exit(Exit::of(reason))]);
            assert_eq!(td.run(&td.host(), 0, &script), Stop::Ended);
            let end = td.board.end();
            assert!(
                matches!(end, Some(End::Unknown(_) | End::Lost(_))),
                "{reason}: {end:?}"
            );
        });
    }
}

/// A TD in whose module `hooks` go wrong.
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
        assert_eq!(td.board.stations()[0].tally().retries.get(), 100);
    });
}

#[test]
fn memory_that_others_are_at_for_long_is_given_later() {
    // More than a call is tried at once.
    with_hooks("busy:SEPT_TREE TDH.MEM.PAGE.AUG calls 1-300", |td| {
        let script = Script::new([Act::Touch(0)]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Yield);
        assert_eq!(td.map.holding().pages, [0, 1, 0]);
        assert_eq!(td.board.stations()[0].tally().retries.get(), 2);
    });
}

#[test]
fn a_guest_that_faults_at_one_place_again_and_again_is_helped_in_the_end() {
    // So long that the module takes the faults for single-stepping, and makes them up without running the guest.
    with_hooks("busy:SEPT_TREE TDH.MEM.PAGE.AUG calls 1-70000", |td| {
        let script = Script::new([Act::Touch(0); 10]);
        let mut rounds = 0;
        while td.map.holding().pages == [0; 3] {
            assert_eq!(td.board.end(), None);
            rounds += 1;
            assert!(rounds < 100);
            td.run(&td.host(), 0, &script);
        }
        assert!(rounds > 7, "{rounds}");
        assert!(script.left() > 0, "not every fault was the guest's own");
        assert_eq!(td.map.holding().pages, [0, 1, 0]);
    });
}

#[test]
fn sharing_goes_on_later_when_others_are_at_the_memory_for_long() {
    with_hooks("busy:SEPT_TREE TDH.MEM.RANGE.BLOCK calls 1-3000", |td| {
        let script = Script::new([
            Act::Touch(0),
            Act::Call(call(MAP_GPA, [SHARED, PAGE_2M, 0, 0])),
            Act::Call(call(MAP_GPA, [SHARED, PAGE_2M, 0, 0])),
        ]);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Yield);
        let answers = script.answers();
        let [first, second] = [0, 1].map(|at: usize| answers[at].regs());
        assert_eq!((first.r10, first.r11), (1, SHARED), "RETRY from the start");
        assert_eq!((second.r10, second.r11), (0, 0));
    });
}

#[test]
fn an_nmi_that_can_t_be_handed_in_is_not_lost() {
    // The first four wire the vCPU.
    with_hooks("busy TDH.VP.WR calls 5-150", |td| {
        let host = td.host();
        td.board.post_nmi(&host, 0);
        let script = Script::new([Act::Call(call(CPUID, [0xB, 0, 0, 0]))]);
        assert_eq!(td.run(&host, 0, &script), Stop::Busy);
        let tally = td.board.stations()[0].tally();
        assert_eq!(tally.nmis_in.get(), 0);
        assert_eq!(td.run(&td.host(), 0, &script), Stop::Yield);
        assert_eq!(tally.nmis_in.get(), 1);
    });
}

#[test]
fn a_vcpu_of_another_cpu_is_left_alone() {
    let rig = Rig::new("patterns");
    let td = Td::new(&rig, &Shape::default());
    // Its association is with CPU 0 since TDH.VP.INIT.
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
