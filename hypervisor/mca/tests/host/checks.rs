//! The initialisation of a CPU, and what each machine check requires of it.

use crate::cpu::{self, Cpu, LINE, LOAD, LOST, PLACED, REQUIRED, reading};
use mca::{
    Msrs,
    bank::{Code, Status},
    decide::{Next, Place, decide},
    deposit::Deposit,
    pages::Pages,
    scan::{self, Banks, Scan},
    verdict::{Occasion, Verdict, Why},
};
use proptest::prelude::*;
use seam::abi::x86::msr::{FEATURE_CONTROL, mc};

const RIPV: u64 = 1;
const EIPV: u64 = 2;
const MCIP: u64 = 4;
const LMCE_S: u64 = 8;

#[test]
fn local_machine_checks_need_the_cpu_and_the_firmware() {
    let cpu = Cpu::server();
    assert!(scan::start(&cpu, Banks::default()).is_local);
    assert_eq!(cpu.get(mc::MCG_EXT_CTL), Some(1));

    for control in [1 | 1 << 2, 1 << 20] {
        // The firmware did not opt in, or left the register open so that its bits have no effect.
        let cpu = Cpu::server();
        cpu.set(FEATURE_CONTROL, control);
        assert!(!scan::start(&cpu, Banks::default()).is_local);
        assert_eq!(cpu.get(mc::MCG_EXT_CTL), Some(0));
    }

    let cpu = Cpu::server();
    cpu.set(mc::MCG_CAP, cpu::SERVER & !(1 << 27));
    assert!(!scan::start(&cpu, Banks::default()).is_local);
}

#[test]
fn a_start_enables_every_bank_and_takes_what_was_left_in_it() {
    let cpu = Cpu::server().has(0, 2, [LOST | PLACED, 0x5000, LINE]);
    let started = scan::start(&cpu, Banks::default());
    let [stale] = &started.stale.readings[..] else {
        panic!("{started:?}");
    };
    assert_eq!((stale.bank, stale.page(0)), (2, Some(0x5000)));
    assert_eq!(cpu.get(mc::MC0_STATUS + 8), Some(0));
    assert_eq!(cpu.get(mc::MCG_CTL), Some(u64::MAX));
    assert!((0..4).all(|bank| cpu.get(mc::MC0_CTL + 4 * bank) == Some(u64::MAX)));
    let verdicts: Vec<_> = started.stale.judged(Occasion::Start).collect();
    assert_eq!(
        verdicts[0].1,
        Verdict::NoAction,
        "it is from before the reset"
    );
}

#[test]
fn a_bank_signals_corrected_errors_if_it_can_and_nobody_else_listens() {
    let mut cpu = Cpu::server();
    // Bank 1 can't signal, and bank 2 is shared with a CPU that started before.
    cpu.stuck_at_zero.insert(mc::MC0_CTL2 + 1, 1 << 30);
    cpu.set(mc::MC0_CTL2 + 2, 1 << 30 | 1);
    cpu.set(mc::MC0_CTL2 + 3, 0x7FFF);
    let started = scan::start(&cpu, Banks::default());
    assert_eq!(started.signalling, Banks(0b1001));
    assert_eq!(
        cpu.get(mc::MC0_CTL2 + 3),
        Some(1 << 30 | 1),
        "each error signals"
    );
    scan::silence(&cpu, started.signalling);
    assert_eq!(cpu.get(mc::MC0_CTL2 + 3), Some(1));
    assert_eq!(
        cpu.get(mc::MC0_CTL2 + 2),
        Some(1 << 30 | 1),
        "the other CPU's"
    );
}

#[test]
fn a_bank_of_the_firmware_is_left_to_it() {
    let cpu = Cpu::server().has(0, 1, [LOST, 0, 0]);
    let started = scan::start(&cpu, Banks(0b10));
    assert_eq!(started.signalling, Banks(0b1101));
    assert_eq!(cpu.get(mc::MC0_STATUS + 4), Some(LOST));
    assert_eq!(cpu.get(mc::MC0_CTL2 + 1), Some(0));
}

#[test]
fn a_cpu_without_the_registers_has_none_rather_than_zeroes() {
    let cpu = Cpu::default();
    let scan = Scan::take(&cpu);
    assert_eq!((scan.capability, scan.global), (None, None));
    assert!(!scan::start(&cpu, Banks::default()).is_local);

    // A bank without ADDR and MISC registers.
    let cpu = Cpu::server().has(MCIP, 0, [LOST | PLACED, 0, 0]);
    cpu.values.borrow_mut().remove(&mc::MC0_ADDR);
    cpu.values.borrow_mut().remove(&mc::MC0_MISC);
    let scan = Scan::take(&cpu);
    assert_eq!(
        (scan.readings[0].address, scan.readings[0].misc),
        (None, None)
    );
}

/// Decides about a machine check with one error.
fn next(global: u64, status: u64, place: Place) -> Next {
    let cpu = Cpu::server().has(global, 0, [status, 0x1234_5000, LINE]);
    decide(&Scan::take(&cpu), place)
}

#[test]
fn poison_that_a_td_used_ends_that_td_alone() {
    let poison = LOST | PLACED | REQUIRED | LOAD;
    for global in [MCIP | EIPV, MCIP | EIPV | RIPV, MCIP | EIPV | LMCE_S] {
        assert_eq!(next(global, poison, Place::Td), Next::Continue);
        // The hypervisor itself used it: a probing load fails, any other is fatal.
        assert_eq!(next(global, poison, Place::Probe), Next::Fail);
        let used = Next::Stop(Why::HostUsedIt);
        assert_eq!(next(global, poison, Place::Host), used);
    }
    // The module's word is enough: another handler of this CPU may have cleared the banks.
    assert_eq!(decide(&Scan::default(), Place::Td), Next::Continue);
}

#[test]
fn another_cpus_error_stays_in_the_bank_for_it() {
    let poison = LOST | PLACED | REQUIRED | LOAD;
    let cpu = Cpu::server().has(MCIP | RIPV, 3, [poison, 0x5000, LINE]);
    let scan = Scan::take(&cpu);
    assert_eq!(decide(&scan, Place::Host), Next::Continue);
    scan.clear(&cpu, Occasion::MachineCheck);
    scan.end_machine_check(&cpu);
    assert_eq!(cpu.get(mc::MC0_STATUS + 12), Some(poison));
    assert_eq!(cpu.get(mc::MCG_STATUS), Some(0));

    // The CPU whose program it was takes it.
    cpu.write(mc::MCG_STATUS, MCIP | EIPV);
    let scan = Scan::take(&cpu);
    assert_eq!(decide(&scan, Place::Td), Next::Continue);
    scan.clear(&cpu, Occasion::MachineCheck);
    assert_eq!(cpu.get(mc::MC0_STATUS + 12), Some(0));
}

#[test]
fn what_corrupts_the_cpu_or_belongs_nowhere_ends_the_machine() {
    let corrupt = LOST | PLACED | REQUIRED | LOAD | 1 << 57;
    let poison = LOST | PLACED | REQUIRED | LOAD;
    for place in [Place::Td, Place::Probe, Place::Host] {
        for (global, status, why) in [
            (MCIP | EIPV | RIPV, corrupt, Why::ContextCorrupt),
            (MCIP, LOST | PLACED | 1 << 56 | 0xC0, Why::NoPlace),
            (MCIP | EIPV, poison | 1 << 62, Why::Lost),
            // A TLB error that requires an action.
            (MCIP | EIPV, poison & !0xFFFF | 0x14, Why::UnknownAction),
            // Poison at no known address.
            (MCIP | EIPV, poison & !PLACED, Why::UnknownAction),
            (MCIP | EIPV, LOST | 1 << 55, Why::UnknownAction),
        ] {
            assert_eq!(next(global, status, place), Next::Stop(why), "{status:#x}");
        }
    }
    let cpu = Cpu::server().has(MCIP | RIPV | EIPV, 0, [LOST, 0, 0]);
    cpu.set(mc::MCG_CAP, 4);
    let scan = Scan::take(&cpu);
    assert_eq!(decide(&scan, Place::Td), Next::Stop(Why::NoRecovery));
}

#[test]
fn the_host_continues_only_where_the_cpu_says_so() {
    assert_eq!(next(MCIP | RIPV, 0, Place::Host), Next::Continue);
    let scrubbed = LOST | PLACED | 1 << 56 | 0xC1;
    assert_eq!(next(MCIP | RIPV, scrubbed, Place::Host), Next::Continue);
    let nowhere = Next::Stop(Why::NoRestart);
    assert_eq!(next(MCIP, 0, Place::Host), nowhere);
    assert_eq!(next(MCIP | EIPV, 1 << 63, Place::Host), nowhere);
}

#[test]
fn verdicts_follow_the_table_of_recoverable_errors() {
    let judge = |status, occasion| {
        let cpu = Cpu::server().has(MCIP | EIPV, 0, [status, 0x5000, LINE]);
        Scan::take(&cpu).judged(occasion).next().unwrap().1
    };
    let poll = Occasion::Poll;
    let check = Occasion::MachineCheck;
    assert_eq!(judge(1 << 63 | 1 << 62 | 0x90, poll), Verdict::Corrected);
    assert_eq!(judge(LOST | PLACED | 0x90, poll), Verdict::NoAction);
    assert_eq!(judge(LOST | PLACED | 0x90, check), Verdict::NoAction);
    assert_eq!(
        judge(LOST | PLACED | 1 << 56 | 0xC0, check),
        Verdict::Optional
    );
    // An error that was signalled is the machine-check handler's.
    assert_eq!(
        judge(LOST | PLACED | 1 << 56 | 0xC0, poll),
        Verdict::NotHere
    );
    let fetch = LOST | PLACED | REQUIRED | 0x150;
    assert_eq!(judge(fetch, check), Verdict::Required);
    assert_eq!(judge(fetch, poll), Verdict::NotHere);
}

#[test]
fn a_page_is_named_without_its_keyid_and_only_if_the_address_is_physical() {
    const KEY_ID: u64 = 0xF << 48;
    let page = |address, misc| reading(0, address, misc).page(KEY_ID);
    assert_eq!(page(0x3_0012_3456_7FC0, LINE), Some(0x12_3456_7000));
    // Linear, segment offset, and coarser than a page.
    assert_eq!(page(0x5000, 1 << 6 | 6), None);
    assert_eq!(page(0x5000, 6), None);
    assert_eq!(page(0x5000, 2 << 6 | 13), None);
    assert_eq!(page(0x5FC0, 2 << 6 | 12), Some(0x5000));
}

#[test]
fn codes_have_names() {
    for (code, name) in [
        (0x0134, "load of poisoned data (0x0134)"),
        (0x0150, "fetch of a poisoned instruction (0x0150)"),
        (0x00C2, "memory scrubbing (0x00c2)"),
        (0x1092, "memory controller (0x1092)"),
        (0x0280, "memory controller of a memory-side cache (0x0280)"),
        (0x110A, "cache hierarchy (0x110a)"),
        (0x0014, "TLB (0x0014)"),
        (0x0402, "internal (0x0402)"),
        (0x0400, "internal timer (0x0400)"),
        (0x0E0B, "I/O error (0x0e0b)"),
        (0x0C0F, "bus or interconnect (0x0c0f)"),
        (0x8000, "unknown (0x8000)"),
    ] {
        assert_eq!(Code(code).to_string(), name);
    }
}

#[test]
fn a_deposit_keeps_the_first_reading_of_an_event() {
    let deposit = Deposit::new();
    assert!(deposit.get().is_none());
    let cpu = Cpu::server().has(MCIP | RIPV, 1, [LOST | 1 << 58, 0x5000, 0]);
    let scan = Scan::take(&cpu);
    deposit.put(&scan);
    // A later reading, after the banks were cleared, does not replace it.
    deposit.put(&Scan::take(&Cpu::server()));
    let kept = deposit.get().unwrap();
    assert_eq!(kept.readings, scan.readings);
    assert_eq!(
        (kept.capability, kept.global),
        (scan.capability, scan.global)
    );
    deposit.clear();
    assert!(deposit.get().is_none());
    // Absent registers stay absent.
    deposit.put(&Scan::take(&Cpu::default()));
    assert_eq!(deposit.get().unwrap().global, None);
}

#[test]
fn a_page_waits_once_and_too_many_are_counted() {
    let pages = Pages::new();
    pages.add(0x5000);
    pages.add(0x5000);
    pages.add(0);
    let mut taken: Vec<_> = std::iter::from_fn(|| pages.take()).collect();
    taken.sort_unstable();
    assert_eq!(taken, [0, 0x5000]);
    assert!(!pages.is_any());
    for page in 0..65 {
        pages.add(page << 12);
    }
    assert_eq!((pages.lost(), pages.is_any()), (1, true));
}

proptest! {
    /// No register contents make the code fail, a corrupt context never passes, and what a TD's error asks of the
    /// host is to go on or to stop.
    #[test]
    fn any_registers_are_judged(
        capability: u64, global: u64, status: u64, address: u64, misc: u64, bank in 0u32..4,
    ) {
        let cpu = Cpu::server().has(global, bank, [status, address, misc]);
        cpu.set(mc::MCG_CAP, capability);
        let scan = Scan::take(&cpu);
        let status = Status(status);
        let is_read = scan.readings.len() == 1;
        for place in [Place::Td, Place::Probe, Place::Host] {
            let next = decide(&scan, place);
            if is_read && status.is_uncorrected() && status.is_context_corrupt() {
                prop_assert!(matches!(next, Next::Stop(Why::ContextCorrupt)));
            }
            if place != Place::Probe {
                prop_assert_ne!(next, Next::Fail);
            }
        }
        scan.clear(&cpu, Occasion::MachineCheck);
        for reading in &scan.readings {
            _ = (reading.page(capability), reading.status.code().to_string());
        }
        let deposit = Deposit::new();
        deposit.put(&scan);
        prop_assert_eq!(deposit.get().unwrap().readings, scan.readings);
    }
}
