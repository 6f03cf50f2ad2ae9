//! A function's life with a TD, on the software model of VT-d units. Every step fails once.

extern crate std;

mod fake;

use core::sync::atomic::Ordering::SeqCst;
use std::{
    sync::{Arc, Mutex},
    vec::Vec,
};

use devices::{Message, Place, Trigger};
use host::functions::{Sink, Taken};
use io::Clock;
use mm::shared::{MirrorError, Page};
use seam::{
    abi::PageSize,
    address::{Gpa, Hpa},
};
use stub_vtd::{Delivered, UnitShape};

use super::{
    assembly::Assembly,
    machine::Machine,
    share::{BUDGET, PERIOD_US},
};
use fake::{AER, CARD, DRIVE, EXPRESS, Fake, MSI, MSIX, TABLE, VECTORS, function};

/// In the command register.
const MASTER: u32 = 4;

#[derive(Debug, Default)]
struct Log(Mutex<Vec<Message>>);

impl Sink for Log {
    fn deliver(&self, function: usize, message: Message, _: &dyn vcpu::Executor) {
        assert_eq!(function, 0);
        self.0.lock().unwrap().push(message);
    }
}

impl Log {
    fn take(&self) -> Vec<Message> {
        core::mem::take(&mut self.0.lock().unwrap())
    }
}

fn message(vector: u8) -> Message {
    Message {
        trigger: Trigger::Fixed,
        vector,
        destination: 1,
        is_logical: false,
    }
}

/// A TD that has functions of the machine.
fn take(machine: &Fake, functions: &[io::Address]) -> (Assembly<Fake>, Arc<Log>) {
    let assembly = Assembly::new(machine, functions).expect("taken");
    let log = Arc::new(Log::default());
    assembly.connect(log.clone());
    (assembly, log)
}

/// Has the drive raise a vector, as its table says. Returns the messages that the TD got.
fn raise(machine: &Fake, log: &Log, vector: u64) -> Vec<Message> {
    let entry = TABLE + vector * 16;
    let registers = &machine.registers;
    let is_enabled = registers.get(DRIVE, MSIX) >> 30 == 2;
    if !is_enabled || registers.memory(entry + 12) & 1 != 0 {
        return log.take();
    }
    let address = u64::from(registers.memory(entry + 4)) << 32 | u64::from(registers.memory(entry));
    let sent = (address, registers.memory(entry + 8));
    match machine.units.interrupt(function(DRIVE), sent) {
        Ok(Delivered::ToCpu {
            vector,
            destination,
            ..
        }) => assert!(machine.lines().serve(destination as usize - 5, vector)),
        other => panic!("{other:?}"),
    }
    log.take()
}

fn page(hpa: u64, size: PageSize) -> Page {
    Page {
        hpa: Hpa(hpa),
        size,
        is_read_only: false,
    }
}

#[test]
fn a_life_leaves_everything_as_it_was() {
    let machine = Fake::like_qemu();
    // The unit's table for the functions of a bus stays.
    let first = take(&machine, &[DRIVE]).0;
    first.give_back().expect("given back");
    let before = machine.books();
    let (assembly, log) = take(&machine, &[DRIVE, CARD]);
    assert_eq!(machine.registers.get(DRIVE, 4) & 0xFFFF, 0x402);
    // Requests of no support are masked, and nothing else.
    assert_eq!(machine.registers.get(DRIVE, AER + 8), 0x0050_0000);
    assert_eq!(machine.registers.get(DRIVE, EXPRESS + 8) & 0xFFFF, 0x2837);
    let functions = assembly.functions();
    let drive = &functions[0];
    let mirror = assembly.mirror();
    mirror
        .map(Gpa(0x20_0000), page(0x40_0000, PageSize::Size2M))
        .expect("mapped");
    drive.set_master(true);
    assert_eq!(machine.registers.get(DRIVE, 4) & MASTER, MASTER);
    let dma = |at| machine.units.dma(function(DRIVE), at, true);
    assert_eq!(dma(0x20_1000), Ok(0x40_1000));
    assert_eq!(dma(0x40_0000), Err(5));
    assert!(drive.direct(3, Some(message(0x31))));
    drive.set_interrupts(true);
    assert_eq!(raise(&machine, &log, 3), [message(0x31)]);

    assembly.give_back().expect("given back");
    assert_eq!(dma(0x20_1000), Err(2));
    // The rest of the TD reaches the functions no more.
    drive.set_master(true);
    drive.set_interrupts(true);
    drive.store(
        0,
        Place {
            offset: 0x14,
            size: 4,
        },
        1,
    );
    assert!(drive.is_away());
    assert_eq!(drive.read(0, 2), 0xFFFF);
    assert_eq!(mirror.unmap(0x20_0000..0x40_0000), Ok(()));
    assembly.give_back().expect("given back before");
    assert_eq!(machine.books(), before);
    assert_eq!(machine.units.violations(), [""; 0]);
}

#[test]
fn a_step_that_fails_leaves_nothing_taken() {
    type Fault = (&'static str, fn(&Fake));
    let faults: [Fault; 4] = [
        ("can't be reached: there is RAM", |machine| {
            machine.has_no_windows.store(true, SeqCst);
        }),
        ("did not answer within 60 s", |machine| {
            machine.registers.never_returns.store(true, SeqCst);
        }),
        ("there is no memory for a table", |machine| {
            machine.units.limit_frames(0);
        }),
        ("did not finish an invalidation", |machine| {
            machine.units.silence_queue(0);
        }),
    ];
    for (sentence, fault) in faults {
        let machine = Fake::like_qemu();
        let before = machine.books();
        fault(&machine);
        let error = Assembly::new(&machine, &[CARD, DRIVE]).expect_err(sentence);
        assert!(error.contains(sentence), "{error}");
        let after = machine.books();
        assert_eq!((after.2, after.3), (before.2, before.3), "{sentence}");
        assert_eq!(machine.registers.masters.load(SeqCst), 0, "{sentence}");
        // The tables that a failed unit reads are never freed.
        let is_silent = sentence.contains("invalidation");
        assert_eq!(after.1 > before.1, is_silent, "{sentence}");
        if !is_silent && !sentence.contains("60 s") {
            assert_eq!(after.0, before.0, "{sentence}");
        }
    }
}

#[test]
fn a_lack_of_memory_at_any_table_leaves_nothing_taken() {
    let needed = {
        let machine = Fake::like_qemu();
        let before = machine.units.taken_frames();
        let _assembly = take(&machine, &[DRIVE]);
        (machine.units.taken_frames() - before) as usize
    };
    assert!(needed >= 2);
    for left in 0..needed {
        let machine = Fake::like_qemu();
        let before = machine.books();
        machine.units.limit_frames(left);
        let failed = Assembly::new(&machine, &[DRIVE]);
        assert!(failed.is_err());
        assert_eq!(machine.books(), before, "{left} frames");
        machine.units.limit_frames(needed);
        assert!(Assembly::new(&machine, &[DRIVE]).is_ok());
    }
}

#[test]
fn a_function_that_another_td_has_is_refused_and_stays_confined() {
    let machine = Fake::like_qemu();
    let (assembly, _log) = take(&machine, &[DRIVE]);
    let error = Assembly::new(&machine, &[CARD, DRIVE]).expect_err("taken");
    assert!(error.contains("has another domain"), "{error}");
    assert_eq!(machine.units.dma(function(CARD), 0, false), Err(2));
    assembly.give_back().expect("given back");
    assert!(Assembly::new(&machine, &[CARD, DRIVE]).is_ok());
}

#[test]
fn an_interrupt_changes_its_target_without_a_change_of_its_entry() {
    let machine = Fake::like_qemu();
    let (assembly, log) = take(&machine, &[DRIVE]);
    let drive = &assembly.functions()[0];
    drive.set_interrupts(true);
    assert_eq!(raise(&machine, &log, 0), [], "masked after the reset");
    assert!(drive.direct(0, Some(message(0x31))));
    let entry = [0, 4, 8, 12].map(|word| machine.registers.memory(TABLE + word));
    assert_eq!(entry[0] & 0xFFF0_0010, 0xFEE0_0010, "remappable");
    assert!(drive.direct(0, Some(message(0x32))));
    let same = [0, 4, 8, 12].map(|word| machine.registers.memory(TABLE + word));
    assert_eq!(same, entry);
    assert_eq!(raise(&machine, &log, 0), [message(0x32)]);
    // Nobody else can raise it.
    let sent = (entry[0].into(), entry[2]);
    assert_eq!(machine.units.interrupt(function(CARD), sent), Err(0x26));
    assert!(drive.direct(0, None));
    assert_eq!(raise(&machine, &log, 0), []);
    assert!(!drive.direct(VECTORS, Some(message(0x31))));
    assert_eq!(machine.lines().used(), 1);
}

#[test]
fn a_td_gets_its_fair_share_of_lines() {
    let machine = Fake::like_qemu();
    let (assembly, log) = take(&machine, &[DRIVE]);
    let drive = &assembly.functions()[0];
    drive.set_interrupts(true);
    let routed = (0..VECTORS).filter(|vector| drive.direct(*vector, Some(message(0x40))));
    let routed = routed.count();
    assert_eq!(routed, machine.lines().count() / 8);
    assert_eq!(raise(&machine, &log, u64::from(VECTORS) - 1), []);
    // A vector that has its line keeps it.
    assert!(drive.direct(0, None) && drive.direct(0, Some(message(0x41))));
    assert_eq!(raise(&machine, &log, 0), [message(0x41)]);
    assembly.give_back().expect("given back");
    assert_eq!(machine.lines().used(), 0);
}

#[test]
fn a_storm_rests_until_its_period_is_over_and_loses_nothing() {
    let machine = Fake::like_qemu();
    let (assembly, log) = take(&machine, &[DRIVE]);
    let drive = &assembly.functions()[0];
    assert!(drive.direct(0, Some(message(0x31))));
    drive.set_interrupts(true);
    let arrived = (0..2 * BUDGET)
        .map(|_| raise(&machine, &log, 0).len())
        .sum::<usize>();
    assert_eq!(arrived, BUDGET as usize + 1);
    assert_eq!(
        machine.registers.memory(TABLE + 12),
        1,
        "the function keeps it"
    );
    assert!((1..=PERIOD_US).contains(&machine.rest_us.load(SeqCst)));
    // The guest masks and unmasks: the rest goes on.
    assert!(drive.direct(0, None) && drive.direct(0, Some(message(0x31))));
    assert_eq!(machine.registers.memory(TABLE + 12), 1);
    machine.lines().end_rests(0);
    assert_eq!(machine.registers.memory(TABLE + 12), 0);
    // A guest that has masked it meanwhile is not disturbed.
    assert_eq!(raise(&machine, &log, 0).len(), 1);
    assert!(drive.direct(0, None));
    machine.lines().end_rests(0);
    assert_eq!(machine.registers.memory(TABLE + 12), 1);
    assert_eq!(assembly.rests(0), 2);
}

#[test]
fn msi_is_one_vector_whose_enable_bit_is_its_mask() {
    let machine = Fake::like_qemu();
    let (assembly, log) = take(&machine, &[CARD]);
    let card = &assembly.functions()[0];
    let is_on = || machine.registers.get(CARD, MSI) >> 16 & 1 == 1;
    assert!(card.direct(0, Some(message(0x31))));
    assert!(!is_on());
    card.set_interrupts(true);
    assert!(is_on());
    let sent = (
        u64::from(machine.registers.get(CARD, MSI + 4)),
        machine.registers.get(CARD, MSI + 12),
    );
    let Ok(Delivered::ToCpu { vector, .. }) = machine.units.interrupt(function(CARD), sent) else {
        panic!("blocked");
    };
    assert!(machine.lines().serve(0, vector));
    assert_eq!(log.take(), [message(0x31)]);
    assert!(card.direct(0, None));
    assert!(!is_on());
    assert!(!card.direct(1, Some(message(0x31))));
}

#[test]
fn a_guest_s_reset_waits_for_nobody_and_ends() {
    let machine = Fake::like_qemu();
    let (assembly, log) = take(&machine, &[DRIVE]);
    let drive = &assembly.functions()[0];
    assert!(drive.direct(0, Some(message(0x31))));
    drive.set_interrupts(true);
    drive.set_master(true);
    let start = machine.us();
    drive.reset();
    drive.reset();
    assert_eq!(machine.us(), start);
    assert!(drive.is_away() && machine.wakes.load(SeqCst) == 1);
    assert_eq!(machine.registers.get(DRIVE, 4) & MASTER, 0);
    assert_eq!(drive.load(0, Place { offset: 0, size: 8 }), u64::MAX);
    assert_eq!(assembly.problem(), None);
    let endpoint = assembly.endpoints().next().unwrap();
    while endpoint.serve() {
        machine.relax();
    }
    assert!(!drive.is_away() && machine.us() - start >= 100_000);
    assert_eq!(machine.registers.get(DRIVE, 4) & 0xFFFF, 0x402);
    assert_eq!(machine.registers.get(DRIVE, AER + 8), 0x0050_0000);
    // The guest starts anew; the vector has the way that it had.
    assert_eq!(raise(&machine, &log, 0), []);
    assert!(drive.direct(0, Some(message(0x32))));
    drive.set_interrupts(true);
    assert_eq!(raise(&machine, &log, 0), [message(0x32)]);
    assert_eq!(machine.lines().used(), 1);

    machine.registers.never_returns.store(true, SeqCst);
    drive.reset();
    while endpoint.serve() {
        machine.relax();
    }
    assert!(drive.is_away());
    let problem = assembly.problem().expect("it is lost");
    assert!(problem.contains("did not come back"), "{problem}");
}

#[test]
fn an_error_of_the_function_ends_the_td_and_a_guest_s_own_does_not() {
    let machine = Fake::like_qemu();
    let (assembly, _log) = take(&machine, &[DRIVE]);
    machine.registers.set(DRIVE, AER + 4, 1 << 20);
    machine.registers.now_passes();
    assert_eq!(assembly.problem(), None);
    machine.registers.set(DRIVE, AER + 4, 1 << 18);
    machine.registers.now_passes();
    let problem = assembly.problem().expect("an error");
    assert!(
        problem.ends_with("reported an error: malformed TLP"),
        "{problem}"
    );
    assembly.give_back().expect("given back");
    // The next TD does not inherit it.
    let (next, _log) = take(&machine, &[DRIVE]);
    machine.registers.now_passes();
    assert_eq!(next.problem(), None);
}

#[test]
fn a_page_is_reachable_from_its_mapping_to_its_unmapping() {
    for shape in [
        UnitShape::like_qemu(0xFED9_0000),
        UnitShape {
            caches_absent: true,
            buffers: true,
            is_coherent: false,
            ..UnitShape::new(0xFED9_0000)
        },
    ] {
        let machine = Fake::new(&shape);
        let (assembly, _log) = take(&machine, &[DRIVE]);
        let mirror = assembly.mirror();
        let dma = |at, writes| machine.units.dma(function(DRIVE), at, writes);
        assert_eq!(dma(0x20_3000, true), Err(5));
        mirror
            .map(Gpa(0x20_0000), page(0x40_0000, PageSize::Size2M))
            .expect("mapped");
        assert_eq!(dma(0x20_3000, true), Ok(0x40_3000));
        mirror.unmap(0x20_3000..0x20_5000).expect("unmapped");
        assert_eq!(dma(0x20_3000, true), Err(5));
        assert_eq!(dma(0x20_5000, true), Ok(0x40_5000));
        let read_only = Page {
            is_read_only: true,
            ..page(0x7000, PageSize::Size4K)
        };
        mirror.map(Gpa(0x20_3000), read_only).expect("mapped");
        assert_eq!(dma(0x20_3000, false), Ok(0x7000));
        assert_eq!(dma(0x20_3000, true), Err(5));
        assert_eq!(machine.units.violations(), [""; 0]);
    }
}

#[test]
fn a_unit_that_does_not_answer_keeps_the_frames() {
    let machine = Fake::like_qemu();
    let (assembly, log) = take(&machine, &[DRIVE]);
    let drive = &assembly.functions()[0];
    let mirror = assembly.mirror();
    mirror
        .map(Gpa(0x1000), page(0x5000, PageSize::Size4K))
        .expect("mapped");
    drive.set_master(true);
    machine.units.silence_queue(0);
    assert_eq!(mirror.unmap(0x1000..0x2000), Err(MirrorError::NoAnswer));
    for _ in 0..2 {
        let error = assembly.give_back().expect_err("no answer");
        assert!(error.contains("did not finish an invalidation"), "{error}");
        assert_eq!(machine.registers.get(DRIVE, 4) & MASTER, 0, "it is stopped");
    }
    drop(log);
}

#[test]
fn a_line_on_which_an_interrupt_may_still_come_is_not_used_again() {
    let machine = Fake::like_qemu();
    let (assembly, log) = take(&machine, &[DRIVE]);
    let drive = &assembly.functions()[0];
    assert!(drive.direct(0, Some(message(0x31))));
    drive.set_interrupts(true);
    assert_eq!(raise(&machine, &log, 0), [message(0x31)]);
    machine.drains_nothing.store(true, SeqCst);
    assembly.give_back().expect("it reaches nothing");
    assert_eq!(machine.lines().used(), 1);
    // The late interrupt goes to nobody.
    assert!(machine.lines().serve(0, 0x50));
    assert_eq!(log.take(), []);
    assert_eq!(
        Arc::strong_count(&log),
        1,
        "the host keeps nothing of the TD"
    );
}
