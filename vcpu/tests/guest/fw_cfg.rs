//! Transfers to memory that the guest shares, and accesses that nothing answers.

use std::sync::atomic::Ordering::SeqCst;

use mm::shared::Words;
use seam::abi::{PAGE_2M, PAGE_4K};
use seam::address::Gpa;
use vcpu::Stop;
use vcpu::ghci::Branch;
use vcpu::unanswered::{Accesses, Kind};

use crate::kit::{Act, SHARED, Script, Shape, Td, call};
use crate::{INVALID, IO, MAP_GPA, MMIO, RDMSR, WRMSR, one, with_shape, with_td};

/// Size and direction of an OUT of two and of four bytes.
const OUT_2: [u64; 2] = [2, 1];
const OUT_4: [u64; 2] = [4, 1];

/// The descriptor's page, and the page to transfer to.
const DESCRIPTOR: u64 = 2 * PAGE_2M;
const TARGET: u64 = DESCRIPTOR + PAGE_4K;

fn out(td: &Td<'_>, [size, direction]: [u64; 2], port: u64, value: u64) {
    assert_eq!(one(td, IO, [size, direction, port, value]).r10, 0);
}

fn with_page<R>(td: &Td<'_>, gpa: u64, work: impl FnOnce(&Words) -> R) -> R {
    td.vm.shared().with_page(td.rig, Gpa(gpa), work).unwrap()
}

/// Runs `work` with a TD that has the device, has selected its first item, and shares both pages.
fn with_device(work: impl FnOnce(&Td<'_>)) {
    let shape = Shape {
        vcpus: 2,
        has_fw_cfg: true,
        ..Shape::default()
    };
    with_shape(&shape, |td| {
        for gpa in [DESCRIPTOR, TARGET] {
            assert_eq!(one(td, MAP_GPA, [SHARED | gpa, PAGE_4K, 0, 0]).r10, 0);
        }
        out(td, OUT_2, 0x510, 0);
        work(td);
    });
}

/// Writes a descriptor, and tells the device its address. Returns the descriptor's control word afterwards.
fn transfer(td: &Td<'_>, control: u32, bytes: u32, to: u64) -> u32 {
    let first = u64::from(control.to_be()) | u64::from(bytes.to_be()) << 32;
    with_page(td, DESCRIPTOR, |words| {
        words[0].store(first, SeqCst);
        words[1].store(to.to_be(), SeqCst);
    });
    out(td, OUT_4, 0x514, 0);
    out(td, OUT_4, 0x518, u64::from((DESCRIPTOR as u32).to_be()));
    with_page(td, DESCRIPTOR, |words| {
        u32::from_be(words[0].load(SeqCst) as u32)
    })
}

#[test]
fn a_transfer_reaches_shared_memory_and_no_other() {
    with_device(|td| {
        assert_eq!(transfer(td, 2, 4, TARGET + 1), 0);
        let start = with_page(td, TARGET, |words| words[0].load(SeqCst));
        assert_eq!(start.to_le_bytes(), *b"\0QEMU\0\0\0");
        // With the SHARED bit, across the end of the page: the next page is private.
        assert_eq!(transfer(td, 2, 16, SHARED | (TARGET + PAGE_4K - 8)), 1);
        assert_eq!(one(td, MAP_GPA, [TARGET, PAGE_4K, 0, 0]).r10, 0);
        assert_eq!(transfer(td, 2, 4, TARGET), 1, "private again");
        // A descriptor in private memory is not read.
        out(td, OUT_4, 0x518, u64::from((TARGET as u32).to_be()));
        let branches = td.vm.vcpus()[0].branches();
        assert_eq!(branches.get(Branch::IoTransfer), 1);
        assert_eq!(branches.get(Branch::IoTransferRefused), 3);
    });
}

/// Another vCPU converts the memory for as long as it likes. The transfer does not wait for it without end, and touches
/// nothing: the descriptor keeps its control word.
#[test]
fn a_transfer_while_memory_is_converted_is_refused() {
    with_device(|td| {
        assert_eq!(transfer(td, 2, 4, TARGET), 0);
        with_page(td, DESCRIPTOR, |words| words[0].store(7, SeqCst));
        let outer = Script::new([Act::Call(call(MAP_GPA, [TARGET, PAGE_4K, 0, 0]))]);
        let start = [4, 1, 0x518, u64::from((DESCRIPTOR as u32).to_be())];
        let inner = Script::new([Act::Call(call(IO, start))]);
        let host = td.host();
        let (same, within) = (outer.clone(), inner.clone());
        host.meanwhile.replace(Some(Box::new(move || {
            assert_eq!(td.run_within(&same, 1, &within), Stop::Yield);
        })));
        assert_eq!(td.run(&host, 0, &outer), Stop::Yield);
        assert_eq!(inner.answers()[0].regs().r10, 0);
        let branches = td.vm.vcpus()[1].branches();
        assert_eq!(branches.get(Branch::IoTransferRefused), 1);
        assert_eq!(branches.get(Branch::IoTransfer), 0);
        let kept = with_page(td, DESCRIPTOR, |words| words[0].load(SeqCst));
        assert_eq!(kept, 7);
    });
}

#[test]
fn no_transfer_happens_without_the_device() {
    with_td(|td| {
        out(td, OUT_4, 0x518, 0);
        let branches = td.vm.vcpus()[0].branches();
        assert_eq!(branches.get(Branch::IoAbsentOut), 1);
    });
}

#[test]
fn what_nothing_answers_is_counted_by_place() {
    with_td(|td| {
        one(td, IO, [1, 0, 0x80, 0]);
        one(td, IO, [1, 1, 0x80, 0]);
        let window = SHARED | 0x7000_0000_0000;
        assert_eq!(one(td, MMIO, [8, 0, window + 8, 0]).r11, u64::MAX);
        assert_eq!(one(td, MMIO, [1, 1, window + 0xFFF, 0]).r10, 0);
        assert_eq!(one(td, RDMSR, [0x1234_5678, 0, 0, 0]).r10, INVALID);
        assert_eq!(one(td, WRMSR, [0x1234_5678, 0, 0, 0]).r10, INVALID);
        // The serial port answers.
        one(td, IO, [1, 0, 0x3FD, 0]);
        let is = |kind, at| Accesses {
            kind,
            at,
            reads: 1,
            writes: 1,
        };
        assert_eq!(
            td.vm.unanswered().places,
            [
                is(Kind::Port, 0x80),
                is(Kind::Memory, 0x7000_0000_0000),
                is(Kind::Msr, 0x1234_5678)
            ]
        );
    });
}
