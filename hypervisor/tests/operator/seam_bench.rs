//! Tests that `seam bench` measures every leaf of a TD's life, reports what it could not measure, and leaks nothing,
//! whatever fails.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use host::bench::seamcalls::guest::ACCEPTED;
use seam::abi::x86::{efer, exit_reason};
use seam::abi::{GuestLeaf, Leaf, Operand, Status};
use seam::call::Fault;
use serde_json::Value;
use stub_module::host::{Exit, Guest, HostMachine};
use stub_module::vcpu::{Field, Gpr, Vcpu};

use super::kit::{ONE, Server};
use super::operator::Operator;

/// Emulates the program of the TD that measures.
struct Program;

impl Guest for Program {
    fn run(&mut self, machine: &HostMachine, _: u32, vcpu: &Vcpu<'_>) {
        const L: u64 = 1 << 13;
        let efer = vcpu.vmcs(Field::EFER);
        let accepts = efer & efer::LMA == 0;
        let (leaf, rcx) = if accepts {
            // The program has just started.
            vcpu.set_vmcs(Field::EFER, efer | efer::LMA);
            vcpu.set_vmcs(Field::CS_ACCESS, vcpu.vmcs(Field::CS_ACCESS) | L);
            (GuestLeaf::MemPageAccept, ACCEPTED | 1)
        } else {
            vcpu.set_gpr(Gpr::R12, vcpu.gpr(Gpr::Rax));
            (GuestLeaf::VpVmcall, 0b111 << 10)
        };
        vcpu.set_gpr(Gpr::Rax, leaf.rax());
        vcpu.set_gpr(Gpr::Rcx, rcx);
        let exit = Exit {
            instruction_length: 4,
            ..Exit::of(exit_reason::TDCALL)
        };
        exit.leave(machine, vcpu);
    }
}

/// Emulates [`Program`], except that call number `at` is replaced by another exit.
struct Stumbling {
    calls: AtomicU32,
    at: u32,
    exit: Exit,
}

impl Guest for Stumbling {
    fn run(&mut self, machine: &HostMachine, lp: u32, vcpu: &Vcpu<'_>) {
        if self.calls.fetch_add(1, SeqCst) + 1 == self.at {
            let rip = vcpu.vmcs(Field::RIP);
            self.exit.leave(machine, vcpu);
            vcpu.set_vmcs(Field::RIP, rip);
        } else {
            Program.run(machine, lp, vcpu);
        }
    }
}

#[test]
fn seam_bench_measures_every_leaf_of_a_td_s_life_and_leaves_nothing() {
    let server = Server::new("");
    server.rig.set_guest(0, Some(Box::new(Program)));
    let tds = server.tds(ONE);
    let mut operator = Operator::new(&tds);
    let bench = operator.succeed("seam bench");
    assert_eq!(bench["problem"], Value::Null);
    let times = bench["leafs"].as_array().unwrap();
    let names: Vec<_> = times
        .iter()
        .map(|time| time["leaf"].as_str().unwrap())
        .collect();
    for leaf in [
        Leaf::MngCreate,
        Leaf::MngKeyConfig,
        Leaf::MngAddcx,
        Leaf::MngInit,
        Leaf::MngRd,
        Leaf::MngVpflushdone,
        Leaf::MngKeyFreeid,
        Leaf::MemSeptAdd,
        Leaf::MemSeptRd,
        Leaf::MemPageAdd,
        Leaf::MemPageAug,
        Leaf::MemPageDemote,
        Leaf::MemPagePromote,
        Leaf::MemPageRemove,
        Leaf::MemRangeBlock,
        Leaf::MemRangeUnblock,
        Leaf::MemTrack,
        Leaf::MrExtend,
        Leaf::MrFinalize,
        Leaf::VpCreate,
        Leaf::VpAddcx,
        Leaf::VpEnter,
        Leaf::VpInit,
        Leaf::VpRd,
        Leaf::VpFlush,
        Leaf::SysRd,
        Leaf::PhymemPageRdmd,
        Leaf::PhymemCacheWb,
        Leaf::PhymemPageReclaim,
        Leaf::PhymemPageWbinvd,
    ] {
        assert!(names.contains(&leaf.name()), "{}: {names:?}", leaf.name());
    }
    let sizes = |leaf: Leaf| -> Vec<_> {
        let of_leaf = times.iter().filter(|time| time["leaf"] == leaf.name());
        of_leaf
            .map(|time| time["page_bytes"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(sizes(Leaf::PhymemPageReclaim), [4 << 10, 2 << 20]);
    assert_eq!(sizes(Leaf::MemRangeUnblock), [4 << 10, 2 << 20]);
    assert_eq!(sizes(Leaf::MemPagePromote), [2 << 20]);
    // Entries that no call of the guest ended are not counted, nor is the first, which starts the guest.
    let entries = times
        .iter()
        .find(|time| time["leaf"] == Leaf::VpEnter.name());
    assert_eq!(entries.unwrap()["calls"], 32 * 100);
    for time in times {
        let of = |key: &str| time[key].as_u64().unwrap();
        assert!(
            0 < of("min") && of("min") <= of("median") && of("median") <= of("p99"),
            "{time}"
        );
    }
    server.assert_spotless();
}

#[test]
fn seam_bench_measures_without_its_guest_when_that_does_not_run() {
    for (at, exit) in [
        (1, Exit::of(exit_reason::TRIPLE_FAULT)),
        (2, Exit::of(exit_reason::EPT_VIOLATION)),
        (20, Exit::of(exit_reason::EPT_VIOLATION)),
        (50, Exit::of(exit_reason::TRIPLE_FAULT)),
    ] {
        let server = Server::new("");
        let guest = Stumbling {
            calls: AtomicU32::new(0),
            at,
            exit,
        };
        server.rig.set_guest(0, Some(Box::new(guest)));
        let tds = server.tds(ONE);
        let bench = Operator::new(&tds).succeed("seam bench");
        let problem = bench["problem"].as_str().unwrap();
        assert!(
            problem.contains("something else than its guest's call"),
            "{problem}"
        );
        assert_eq!(bench["rounds"], 100, "{problem}");
        server.assert_spotless();
    }
}

#[test]
fn seam_bench_serves_the_interrupts_that_end_its_entries() {
    const VECTOR: u8 = 0x55;
    let server = Server::new("");
    let guest = Stumbling {
        calls: AtomicU32::new(0),
        at: 20,
        exit: Exit {
            interruption: (1 << 31 | u32::from(VECTOR), 0),
            ..Exit::of(exit_reason::EXTERNAL_INTERRUPT)
        },
    };
    server.rig.set_guest(0, Some(Box::new(guest)));
    let tds = server.tds(ONE);
    let bench = Operator::new(&tds).succeed("seam bench");
    assert_eq!(bench["problem"], Value::Null);
    assert_eq!(server.rig.served(0), [VECTOR]);
    server.assert_spotless();
}

#[test]
fn seam_bench_returns_everything_when_any_call_fails() {
    let refused = Status::OPERAND_INVALID.with(Operand::RCX);
    for leaf in [
        Leaf::VpEnter,
        Leaf::VpInit,
        Leaf::VpWr,
        Leaf::MemRangeBlock,
        Leaf::MemRangeUnblock,
        Leaf::MemTrack,
        Leaf::MemPageDemote,
        Leaf::MemPagePromote,
        Leaf::MemPageRemove,
        Leaf::MemSeptRd,
        Leaf::MngVpflushdone,
        Leaf::MngKeyFreeid,
    ] {
        for (call, is_fault) in [(1, false), (2, true), (7, false)] {
            let server = Server::new("");
            server.rig.set_guest(0, Some(Box::new(Program)));
            let tds = server.tds(ONE);
            if is_fault {
                server.rig.fault(leaf, call..=call, Fault::NotVmx);
            } else {
                server.rig.refuse(leaf, call..=call, refused);
            }
            let reply = Operator::new(&tds).ask("seam bench");
            let said = reply["error"].as_str().or(reply["problem"].as_str());
            // A range that can't be unblocked is reclaimed as it is.
            if leaf != Leaf::MemRangeUnblock {
                assert!(said.unwrap().contains(leaf.name()), "{reply}");
            }
            server.assert_nothing_lost();
        }
    }
}
