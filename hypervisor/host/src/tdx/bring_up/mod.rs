//! Brings up a loaded module until it can build TDs. Every step is recorded. A step that fails gives the reason and
//! loses no memory.

mod config;
mod tdmrs;

use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mm::{private::Ledger, tdmr::Plan};
use seam::{
    abi::Status,
    address::KeyIdPosition,
    call::Fault,
    error::{Cause, Error, Recovery},
    hkid::Hkid,
    module::Info,
    platform::KeyIds,
};
use sync::{IrqLock, call::NoAnswer};

use super::{
    hkids::Hkids,
    release::Coordinator,
    report::{Report, Step, TdxState},
};
use crate::platform::Platform;

/// Properties of the machine that the bring-up can't ask the module for.
#[derive(Clone, Copy, Debug)]
pub struct MachineInfo<'a> {
    /// The KeyIDs.
    pub key_ids: KeyIds,
    /// The proximity domains of memory: start address, exclusive end address, domain.
    pub memory_nodes: &'a [(u64, u64, u32)],
}

/// A module that can build TDs.
pub struct Ready {
    /// The module's own information.
    pub info: Info,
    /// Allocates and releases HKIDs.
    pub coordinator: Coordinator,
    /// Position of the KeyID in a physical address.
    pub keyid: KeyIdPosition,
    /// The module's own HKID, under which it keeps the root pages of TDs.
    pub global_hkid: u16,
}

/// The reason why a step failed, in a sentence, and the resulting state of TDX.
#[derive(Debug)]
struct Failed {
    state: TdxState,
    reason: String,
    /// True if the same step can succeed later.
    passes: bool,
}

impl Failed {
    fn because(reason: impl Into<String>) -> Self {
        Self {
            state: TdxState::Failed,
            reason: reason.into(),
            passes: false,
        }
    }

    /// Returns the same failure, of which a retry can be the end.
    fn passing(self) -> Self {
        Self {
            passes: true,
            ..self
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let state = match error.cause() {
            Cause::Fault(Fault::NotLoaded | Fault::NotEnabled) => TdxState::Unavailable,
            _ => TdxState::Failed,
        };
        Self {
            state,
            reason: explain(&error),
            passes: passes(&error),
        }
    }
}

fn passes(error: &Error) -> bool {
    error.recovery() == Recovery::Retry
}

/// Brings the module up. The report says how far that went. `ledger` is the allocator behind the platform's pool.
///
/// If a step fails, memory that the module has not taken is free again. Memory that it has taken by TDH.SYS.CONFIG
/// stays its own until the machine is reset.
pub fn bring_up<P: Platform>(
    platform: &P,
    ledger: &impl Ledger,
    machine: &MachineInfo<'_>,
) -> (Report, Option<Ready>) {
    let mut bring_up = BringUp::new(machine);
    let ready = bring_up.go_on(platform, ledger);
    (bring_up.report().clone(), ready)
}

/// A bring-up that goes on from the step that failed.
pub struct BringUp {
    key_ids: KeyIds,
    memory_nodes: Vec<(u64, u64, u32)>,
    report: Report,
    /// True if the last failure was one that can pass.
    passes: bool,
    is_initialised: bool,
    /// The CPUs that TDH.SYS.LP.INIT is done on.
    cpus: Vec<u32>,
    hkids: Option<Hkids>,
    global: Option<Hkid>,
    is_written_back: bool,
    /// The packages that have their key.
    packages: Vec<u32>,
}

impl BringUp {
    /// Creates a bring-up of which nothing is done.
    #[must_use]
    pub fn new(machine: &MachineInfo<'_>) -> Self {
        Self {
            key_ids: machine.key_ids,
            memory_nodes: machine.memory_nodes.to_vec(),
            report: Report::unavailable(Some(machine.key_ids)),
            passes: false,
            is_initialised: false,
            cpus: Vec::new(),
            hkids: None,
            global: None,
            is_written_back: false,
            packages: Vec::new(),
        }
    }

    /// Returns the report of what is done.
    #[must_use]
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// Returns whether [`Self::go_on`] can succeed after it has failed.
    #[must_use]
    pub const fn can_go_on(&self) -> bool {
        self.passes
    }

    /// Does the steps that are left. Returns the module if it is ready then; it is called no more after that.
    pub fn go_on<P: Platform>(&mut self, platform: &P, ledger: &impl Ledger) -> Option<Ready> {
        let start = platform.now_us();
        match self.run(platform, ledger) {
            Ok(ready) => {
                platform.shutdown().module_is_ready();
                self.report.state = TdxState::Ready;
                self.report.reasons.clear();
                self.report.us = Some(platform.now_us() - start);
                self.passes = false;
                Some(ready)
            }
            Err(failed) => {
                self.report.state = failed.state;
                self.report.reasons = Vec::from([failed.reason]);
                let fatal = platform.shutdown().fatal_error(|| platform.fatal_record());
                let fatal = fatal.map(|cause| format!("{cause}"));
                self.report.reasons.extend(fatal);
                self.passes = failed.passes;
                None
            }
        }
    }

    fn run<P: Platform>(&mut self, platform: &P, ledger: &impl Ledger) -> Result<Ready, Failed> {
        let key_ids = self.key_ids;
        let keyid = KeyIdPosition::new(key_ids.max_pa, key_ids.bits);
        let keyid = keyid.ok_or_else(|| {
            Failed::because(format!(
                "a physical address of {} bits has no room for a KeyID of {}",
                key_ids.max_pa, key_ids.bits
            ))
        })?;
        if !self.is_initialised {
            self.step(platform, "TDH.SYS.INIT", |_| init(platform))?;
            self.is_initialised = true;
        }
        if self.cpus.len() < platform.cpus().len() {
            self.step(platform, "TDH.SYS.LP.INIT", |own| {
                lp_init(platform, &mut own.cpus)
            })?;
        }
        let info = match &self.report.module {
            Some(info) => info.clone(),
            None => self.step(platform, "TDH.SYS.RD", |_| {
                (1, Info::read(&platform.tdh()).map_err(Failed::from))
            })?,
        };
        self.report.module = Some(info.clone());
        let plan = self.configure(platform, ledger, &info)?;
        // The host's dirty cache lines of memory that is now PAMT must not overwrite what the module writes there.
        if !self.is_written_back {
            self.step(platform, "write back all caches", |_| {
                on_all(platform, "WBINVD", &|_| {
                    platform.write_back_caches();
                    Ok(())
                })
            })?;
            self.is_written_back = true;
        }
        let mut packages = platform.cpus().iter().map(|place| place.package);
        if packages.any(|package| !self.packages.contains(&package)) {
            self.step(platform, "TDH.SYS.KEY.CONFIG", |own| {
                key_config(platform, &mut own.packages)
            })?;
        }
        self.step(platform, "TDH.SYS.TDMR.INIT", |_| {
            tdmrs::init(platform, &plan.tdmrs)
        })?;
        let hkids = self.hkids.take();
        let global = self.global.take();
        // Unreachable: TDH.SYS.CONFIG has used them.
        let (Some(hkids), Some(global)) = (hkids, global) else {
            return Err(Failed::because("the module's own HKID is gone"));
        };
        Ok(Ready {
            info,
            coordinator: Coordinator::new(hkids),
            keyid,
            global_hkid: global.surrender(),
        })
    }

    /// Gives the module its memory, if it has none yet.
    fn configure<P: Platform>(
        &mut self,
        platform: &P,
        ledger: &impl Ledger,
        info: &Info,
    ) -> Result<Plan, Failed> {
        if let Some(plan) = &self.report.memory {
            return Ok(plan.clone());
        }
        // The module keeps the HKID for good, even if it refuses the TDMRs.
        let hkids = self.hkids.get_or_insert_with(|| Hkids::new(&self.key_ids));
        if self.global.is_none() {
            let global = hkids.take_global();
            self.global = Some(global.map_err(|e| Failed::because(format!("{e}")))?);
        }
        let plan = self.step(platform, "TDH.SYS.CONFIG", |own| match &own.global {
            Some(global) => {
                let machine = MachineInfo {
                    key_ids: own.key_ids,
                    memory_nodes: &own.memory_nodes,
                };
                config::configure(platform, ledger, &machine, info, global)
            }
            // Unreachable: it was just taken.
            None => (0, Err(Failed::because("no HKID for the module"))),
        })?;
        self.report.memory = Some(plan.clone());
        Ok(plan)
    }

    /// Does one step, and records its number of calls and its outcome. A step that has failed before is replaced.
    fn step<P: Platform, T>(
        &mut self,
        platform: &P,
        name: &'static str,
        run: impl FnOnce(&mut Self) -> (u64, Result<T, Failed>),
    ) -> Result<T, Failed> {
        let start = platform.now_us();
        let (calls, outcome) = run(self);
        let us = platform.now_us() - start;
        log::info!("TDX: {name}: SEAMCALLs: {calls}, {us} us");
        self.report.steps.pop_if(|last| last.name == name);
        self.report.steps.push(Step {
            name,
            calls,
            us,
            error: outcome.as_ref().err().map(|failed| failed.reason.clone()),
        });
        outcome
    }
}

impl Drop for BringUp {
    fn drop(&mut self) {
        if let Some(global) = self.global.take() {
            global.surrender();
        }
    }
}

impl fmt::Debug for BringUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BringUp").finish_non_exhaustive()
    }
}

/// Executes TDH.SYS.INIT: in the version in which the module records its fatal errors, or else without.
fn init<P: Platform>(platform: &P) -> (u64, Result<(), Failed>) {
    let tdh = platform.tdh();
    let plain = |calls| (calls, tdh.sys_init().map_err(Failed::from));
    let Some(asked) = platform.fatal_diagnostics() else {
        return plain(1);
    };
    match tdh.sys_init_recording(asked) {
        Ok(()) => {
            platform.shutdown().module_records();
            (1, Ok(()))
        }
        Err(error) if error.is_unknown_version() => plain(2),
        Err(error) => (1, Err(error.into())),
    }
}

/// Executes TDH.SYS.LP.INIT in parallel on every CPU that is not in `done`, and adds those on which it succeeded.
fn lp_init<P: Platform>(platform: &P, done: &mut Vec<u32>) -> (u64, Result<(), Failed>) {
    let places = platform.cpus().iter().map(|place| place.cpu);
    let left: Vec<u32> = places.filter(|cpu| !done.contains(cpu)).collect();
    let succeeded = IrqLock::new(Vec::with_capacity(left.len()));
    let outcome = on_these(platform, &left, "TDH.SYS.LP.INIT", &|cpu| {
        platform.tdh().sys_lp_init()?;
        succeeded.lock().push(cpu);
        Ok(())
    });
    done.append(&mut succeeded.lock());
    outcome
}

/// Runs `work` on every CPU in parallel. It must succeed on each.
fn on_all<P: Platform>(
    platform: &P,
    what: &str,
    work: &(dyn Fn(u32) -> Result<(), Error> + Sync),
) -> (u64, Result<(), Failed>) {
    let cpus: Vec<u32> = platform.cpus().iter().map(|place| place.cpu).collect();
    on_these(platform, &cpus, what, work)
}

/// Runs `work` on these CPUs in parallel. It must succeed on each.
fn on_these<P: Platform>(
    platform: &P,
    cpus: &[u32],
    what: &str,
    work: &(dyn Fn(u32) -> Result<(), Error> + Sync),
) -> (u64, Result<(), Failed>) {
    let calls = AtomicU64::new(0);
    let errors = IrqLock::new(Vec::new());
    let answer = platform.on_each(cpus, &|cpu| {
        calls.fetch_add(1, Relaxed);
        if let Err(e) = work(cpu) {
            errors.lock().push((cpu, e));
        }
    });
    let errors = errors.lock();
    let mut sentences: Vec<String> = errors
        .iter()
        .map(|(cpu, e)| format!("CPU {cpu}: {}", explain(e)))
        .collect();
    // A CPU that does not answer may do so later.
    let passes = errors.iter().all(|(_, e)| passes(e));
    if let Err(e) = answer {
        sentences.push(format!("{what}: {e}"));
    }
    let outcome = if sentences.is_empty() {
        Ok(())
    } else {
        let failed = Failed::because(sentences.join("; "));
        Err(Failed { passes, ..failed })
    };
    (calls.into_inner(), outcome)
}

/// Executes TDH.SYS.KEY.CONFIG on one CPU of each package that is not in `done`, one after the other: the module executes
/// one at a time. Adds the packages that have their key.
fn key_config<P: Platform>(platform: &P, done: &mut Vec<u32>) -> (u64, Result<(), Failed>) {
    let mut packages: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for place in platform.cpus() {
        packages.entry(place.package).or_default().push(place.cpu);
    }
    packages.retain(|package, _| !done.contains(package));
    let mut calls = 0;
    for (package, cpus) in packages {
        let configured = cpus.iter().find_map(|&cpu| {
            let result = IrqLock::new(None);
            let answer = platform.on_each(&[cpu], &|_| {
                *result.lock() = Some(platform.tdh().sys_key_config());
            });
            calls += u64::from(answer.is_ok());
            let result = result.lock().take();
            result.map(|result| (cpu, result))
        });
        let failed = match configured {
            Some((_, Ok(_))) => {
                done.push(package);
                continue;
            }
            Some((cpu, Err(e))) => Failed {
                passes: passes(&e) || e.is(Status::KEY_GENERATION_FAILED),
                ..Failed::because(format!("CPU {cpu}, for package {package}: {}", explain(&e)))
            },
            None => Failed::because(format!(
                "TDH.SYS.KEY.CONFIG on package {package}: {}",
                NoAnswer::of(&cpus)
            ))
            .passing(),
        };
        return (calls, Err(failed));
    }
    (calls, Ok(()))
}

/// Formats the error, with the module's details on a CPUID leaf that it does not accept.
fn explain(error: &Error) -> String {
    let about_cpuid =
        error.is(Status::INCORRECT_CPUID_VALUE) || error.is(Status::INCONSISTENT_CPUID_FIELD);
    if !about_cpuid {
        return format!("{error}");
    }
    let [place, rdx, r8, r9, r10] = error.outputs();
    let (leaf, sub_leaf) = (place as u32, (place >> 32) as u32);
    format!(
        "{error} (CPUID {leaf:#x}, sub-leaf {sub_leaf:#x}: bits {r8:#018x}:{rdx:#018x} of EDX:ECX:EBX:EAX, expected \
         {r10:#018x}:{r9:#018x})"
    )
}
