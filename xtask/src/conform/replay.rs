//! Replays one scenario against the emulated module and collects the differences.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use seam::abi::Gprs;
use stub_module::host::{Conditions, HostMachine};
use stub_module::{Machine, Module, SysState};

use super::guest::{Recorded, Script, State, Witness};
use super::native::NativeMsrs;
use super::registers::{self, NAMES, Registers};
use super::scenario::{Dump, Scenario, Step};

/// RAX of TDH.VP.ENTER without the version.
const VP_ENTER: u64 = 0;
/// Address bits of the TDVPR operand of TDH.VP.ENTER.
const TDVPR: u64 = 0xf_ffff_ffff_f000;
/// The size of a TDREPORT, and the parts of it that the module writes itself.
const REPORT_BYTES: usize = 1024;
const REPORT_PARTS: [std::ops::Range<usize>; 3] = [0..4, 80..192, 512..1024];

/// The bytes of the fatal-error log that identify the failed check. Each build of the module has its own numbers.
const FATAL_ID: std::ops::Range<usize> = 8..16;

/// One difference in a step.
pub struct Difference {
    pub field: String,
    pub expected: String,
    pub got: String,
}

impl Difference {
    pub fn new(field: String, expected: impl Display, got: impl Display) -> Self {
        Self {
            field,
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }
}

/// A step that differs.
pub struct Mismatch {
    /// The step's index. If it ran during another call, those of the enclosing calls come first, outermost first.
    pub step: String,
    pub line: usize,
    pub leaf: String,
    /// At least one.
    pub differences: Vec<Difference>,
}

/// The result of a scenario.
#[derive(Default)]
pub struct Outcome {
    pub steps: u64,
    pub mismatches: Vec<Mismatch>,
}

/// Replays all steps of a scenario, also those after a mismatch.
pub fn replay(scenario: Scenario) -> Outcome {
    let machine = HostMachine::new(scenario.config.clone());
    let mut replay = Replay {
        machine: &machine,
        module: Module::new(&machine.platform(), scenario.release),
        native_msrs: scenario.native_msrs,
        guest_side: scenario.guest_side,
        last_exits: Mutex::default(),
        reports: Mutex::default(),
        outcome: Mutex::default(),
    };
    for (number, mut step) in scenario.steps.into_iter().enumerate() {
        let name = step.index.map_or(number as u64, |index| index).to_string();
        let (line, leaf) = (step.line, step.leaf.clone());
        if let Some(release) = step.reload {
            replay.module = Module::installed(&machine.platform(), release, &replay.module);
        }
        let finished = catch_unwind(AssertUnwindSafe(|| replay.step(&name, &mut step)));
        if let Err(panic) = finished {
            let said = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("something");
            let mut outcome = replay.outcome();
            outcome.steps += 1;
            outcome.mismatches.push(Mismatch {
                step: name,
                line,
                leaf,
                differences: vec![Difference::new("panic".into(), "none", said)],
            });
        }
    }
    replay
        .outcome
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
}

struct Replay<'a> {
    machine: &'a HostMachine,
    module: Module,
    /// The MSRs that the TD of the recording accesses without an exit.
    native_msrs: Option<NativeMsrs>,
    guest_side: bool,
    /// The guest's state at its last exit, by TDVPR.
    last_exits: Mutex<BTreeMap<u64, State>>,
    /// Guest-physical addresses at which a TDREPORT was requested.
    reports: Mutex<BTreeSet<u64>>,
    outcome: Mutex<Outcome>,
}

impl Replay<'_> {
    fn outcome(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, name: &str, step: &mut Step) {
        for patch in &step.memory_in {
            let pa = self.machine.platform().without_keyid(patch.pa);
            self.machine.memory().write(pa, &patch.bytes);
        }
        self.machine.set_xmm(step.lp, step.xmm_in);
        let entered = step.input.get(0).unwrap_or(0) as u16 == VP_ENTER as u16;
        let before = step.input.gprs();
        let mut after = before;
        let mut differences = Vec::new();
        let repeat = if step.reload.is_some() {
            0
        } else {
            step.repeat
        };
        for _ in 0..repeat {
            self.machine
                .set_conditions(step.lp, step.conditions.clone());
            after = before;
            if entered {
                self.enter(name, step, &mut after, &mut differences);
            } else {
                self.call(name, step, &mut after, &mut differences);
            }
        }
        self.machine.set_conditions(step.lp, Conditions::default());

        if step.shutdown {
            if self.module.state() != SysState::Shutdown {
                let state = format!("{:?}", self.module.state());
                differences.push(Difference::new("shutdown".into(), "Shutdown", state));
            }
        } else if step.reload.is_none() {
            differences.extend(self.compare_registers(step, &before, &after, entered));
        }
        let written = self.machine.take_icr(step.lp);
        if written.iter().copied().ne(step.icr) {
            let told = |values: &[u64]| format!("{values:#x?}");
            let expected: Vec<_> = step.icr.into_iter().collect();
            differences.push(Difference::new(
                "icr".into(),
                told(&expected),
                told(&written),
            ));
        }
        if self.guest_side {
            let xmm = self.machine.xmm(step.lp);
            for (index, (expected, got)) in step.xmm_out.iter().zip(xmm).enumerate() {
                if *expected != got {
                    differences.push(Difference::new(
                        format!("xmm_out/{index}"),
                        format!("{expected:#x}"),
                        format!("{got:#x}"),
                    ));
                }
            }
        }
        for dump in &step.memory_out {
            self.compare_memory(dump, step.shutdown, &mut differences);
        }
        differences.retain(|difference| !is_volatile(&step.volatile, &difference.field));

        let mut outcome = self.outcome();
        outcome.steps += 1;
        if !differences.is_empty() {
            outcome.mismatches.push(Mismatch {
                step: name.to_owned(),
                line: step.line,
                leaf: step.leaf.clone(),
                differences,
            });
        }
    }

    /// Runs TDH.VP.ENTER with the guest that the step lists.
    fn enter(&self, name: &str, step: &mut Step, regs: &mut Gprs, into: &mut Vec<Difference>) {
        let tdvpr = regs.rcx & TDVPR;
        let mut last_exits = self
            .last_exits
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let witness = Arc::new(Mutex::new(Witness {
            last: last_exits.remove(&tdvpr),
            ..Witness::default()
        }));
        drop(last_exits);
        let must_not_enter = step.entry == Some(None);
        let recorded = Arc::new(Recorded {
            exits: step.guest.take().unwrap_or_default(),
            entry: step.entry.clone().flatten(),
            native_msrs: self.native_msrs.clone(),
        });
        let script = || Script::new(Arc::clone(&recorded), self.guest_side, Arc::clone(&witness));
        let closing = script();
        self.machine.set_guest(step.lp, Some(Box::new(script())));
        self.call(name, step, regs, into);
        self.machine.set_guest(step.lp, None);
        closing.finish(must_not_enter);

        let mut witness = witness.lock().unwrap_or_else(PoisonError::into_inner);
        into.append(&mut witness.differences);
        let mut last_exits = self
            .last_exits
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = witness.last.take() {
            last_exits.insert(tdvpr, last);
        }
        self.reports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .append(&mut witness.reports);
    }

    /// Runs the call and, at the point inside it that the step names, the calls on other processors.
    fn call(&self, name: &str, step: &mut Step, regs: &mut Gprs, into: &mut Vec<Difference>) {
        let Some(during) = &mut step.during else {
            return self.module.seamcall(self.machine, step.lp, regs);
        };
        let Some(held) = self.machine.hold_at(step.lp, during.point, during.nth) else {
            return self.module.seamcall(self.machine, step.lp, regs);
        };
        let (machine, module, lp) = (self.machine, &self.module, step.lp);
        let finished = thread::scope(|scope| {
            let call = scope.spawn(move || {
                let finished = catch_unwind(AssertUnwindSafe(|| {
                    module.seamcall(machine, lp, regs);
                }));
                machine.release(lp);
                finished
            });
            if !held.wait() {
                into.push(Difference::new(
                    "during".into(),
                    format!("{:?}, time {}", during.point, during.nth),
                    "not reached",
                ));
            }
            for (number, step) in during.steps.iter_mut().enumerate() {
                self.step(&format!("{name}.{number}"), step);
            }
            drop(held);
            call.join()
        });
        if let Ok(Err(panic)) | Err(panic) = finished {
            std::panic::resume_unwind(panic);
        }
    }

    fn compare_registers(
        &self,
        step: &Step,
        before: &Gprs,
        after: &Gprs,
        entered: bool,
    ) -> Vec<Difference> {
        let mut into = Vec::new();
        for (register, name) in NAMES.iter().enumerate() {
            let expected = self.expected(&step.output, before, register, entered);
            let got = registers::value(after, register);
            if expected != got {
                let told = |value: u64| match register {
                    0 => format!("{value:#x} {}", super::status(value)),
                    _ => format!("{value:#x}"),
                };
                into.push(Difference::new((*name).into(), told(expected), told(got)));
            }
        }
        into
    }

    /// Returns the expected value of a register after a call. A register that is not listed is unchanged or zero.
    fn expected(&self, listed: &Registers, before: &Gprs, register: usize, entered: bool) -> u64 {
        const RSP: usize = 4;
        const ALWAYS_TOLD: [usize; 7] = [0, 1, 2, 8, 9, 10, 11];
        match listed.get(register) {
            _ if register == RSP => 0,
            Some(value) => value,
            None if self.guest_side && (entered || ALWAYS_TOLD.contains(&register)) => 0,
            None => registers::value(before, register),
        }
    }

    fn compare_memory(&self, dump: &Dump, shutdown: bool, into: &mut Vec<Difference>) {
        let mut got = vec![0; dump.bytes.len()];
        let pa = self.machine.platform().without_keyid(dump.pa);
        self.machine.memory().read(pa, &mut got);
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let is_report = dump.bytes.len() == REPORT_BYTES
            && dump
                .gpa
                .map_or(!reports.is_empty(), |gpa| reports.contains(&gpa));
        let meant = |at: usize| {
            let in_report = !is_report || REPORT_PARTS.iter().any(|part| part.contains(&at));
            in_report && !(shutdown && FATAL_ID.contains(&at))
        };
        let differs = (0..got.len()).find(|at| meant(*at) && got[*at] != dump.bytes[*at]);
        if let Some(at) = differs {
            let told = |bytes: &[u8]| {
                let window = &bytes[at..bytes.len().min(at + 16)];
                window
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect::<String>()
            };
            into.push(Difference::new(
                format!("mem_out {:#x}", dump.pa + at as u64),
                told(&dump.bytes),
                told(&got),
            ));
        }
    }
}

/// Returns true if a field, or something that contains it, is not compared.
fn is_volatile(volatile: &BTreeSet<String>, field: &str) -> bool {
    volatile.iter().any(|path| {
        let path = path.strip_prefix("out/").unwrap_or(path);
        field
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}
