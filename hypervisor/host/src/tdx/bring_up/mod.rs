//! Brings up a loaded module until it can build TDs. Every step is recorded. A step that fails gives the reason and
//! loses no memory.

mod config;
mod tdmrs;

use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mm::private::Ledger;
use seam::{
    abi::Status,
    address::KeyIdPosition,
    call::Fault,
    error::{Cause, Error},
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

/// Why a step failed, in a sentence, and the resulting state of TDX.
#[derive(Debug)]
struct Failed {
    state: TdxState,
    reason: String,
}

impl Failed {
    fn because(reason: impl Into<String>) -> Self {
        Self {
            state: TdxState::Failed,
            reason: reason.into(),
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
        }
    }
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
    let start = platform.now_us();
    let mut steps = Steps {
        platform,
        report: Report::unavailable(Some(machine.key_ids)),
    };
    let outcome = run(&mut steps, ledger, machine);
    let mut report = steps.report;
    match outcome {
        Ok(ready) => {
            platform.shutdown().module_is_ready();
            report.state = TdxState::Ready;
            report.us = Some(platform.now_us() - start);
            (report, Some(ready))
        }
        Err(Failed { state, reason }) => {
            report.state = state;
            report.reasons.push(reason);
            let fatal = platform.shutdown().fatal_error(|| platform.fatal_record());
            report.reasons.extend(fatal.map(|cause| format!("{cause}")));
            (report, None)
        }
    }
}

fn run<P: Platform>(
    steps: &mut Steps<'_, P>,
    ledger: &impl Ledger,
    machine: &MachineInfo<'_>,
) -> Result<Ready, Failed> {
    let platform = steps.platform;
    let key_ids = &machine.key_ids;
    let keyid = KeyIdPosition::new(key_ids.max_pa, key_ids.bits);
    let keyid = keyid.ok_or_else(|| {
        Failed::because(format!(
            "a physical address of {} bits has no room for a KeyID of {}",
            key_ids.max_pa, key_ids.bits
        ))
    })?;
    steps.step("TDH.SYS.INIT", || init(platform))?;
    steps.step("TDH.SYS.LP.INIT", || lp_init(platform))?;
    let info = steps.step("TDH.SYS.RD", || {
        (1, Info::read(&platform.tdh()).map_err(Failed::from))
    })?;
    steps.report.module = Some(info.clone());

    let hkids = Hkids::new(key_ids);
    let global = hkids.take_global();
    let global = global.map_err(|e| Failed::because(format!("{e}")))?;
    let configured = steps.step("TDH.SYS.CONFIG", || {
        config::configure(platform, ledger, machine, &info, &global)
    });
    // The module keeps the HKID for good, even if it refused the TDMRs.
    let global_hkid = global.surrender();
    let plan = configured?;
    steps.report.memory = Some(plan.clone());
    // The host's dirty cache lines of memory that is now PAMT must not overwrite what the module writes there.
    steps.step("write back all caches", || {
        on_all(platform, "WBINVD", &|_| {
            platform.write_back_caches();
            Ok(())
        })
    })?;
    steps.step("TDH.SYS.KEY.CONFIG", || key_config(platform))?;
    steps.step("TDH.SYS.TDMR.INIT", || tdmrs::init(platform, &plan.tdmrs))?;
    Ok(Ready {
        info,
        coordinator: Coordinator::new(hkids),
        keyid,
        global_hkid,
    })
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

/// Executes TDH.SYS.LP.INIT on every CPU in parallel.
fn lp_init<P: Platform>(platform: &P) -> (u64, Result<(), Failed>) {
    on_all(platform, "TDH.SYS.LP.INIT", &|_| {
        platform.tdh().sys_lp_init()
    })
}

/// Runs `work` on every CPU in parallel. It must succeed on each.
fn on_all<P: Platform>(
    platform: &P,
    what: &str,
    work: &(dyn Fn(u32) -> Result<(), Error> + Sync),
) -> (u64, Result<(), Failed>) {
    let calls = AtomicU64::new(0);
    let errors = IrqLock::new(Vec::new());
    let cpus: Vec<u32> = platform.cpus().iter().map(|place| place.cpu).collect();
    let answer = platform.on_each(&cpus, &|cpu| {
        calls.fetch_add(1, Relaxed);
        if let Err(e) = work(cpu) {
            errors.lock().push((cpu, e));
        }
    });
    let mut sentences: Vec<String> = errors
        .lock()
        .iter()
        .map(|(cpu, e)| format!("CPU {cpu}: {}", explain(e)))
        .collect();
    if let Err(e) = answer {
        sentences.push(format!("{what}: {e}"));
    }
    let outcome = if sentences.is_empty() {
        Ok(())
    } else {
        Err(Failed::because(sentences.join("; ")))
    };
    (calls.into_inner(), outcome)
}

/// Executes TDH.SYS.KEY.CONFIG on one CPU of each package, one after the other: the module executes one at a time.
fn key_config<P: Platform>(platform: &P) -> (u64, Result<(), Failed>) {
    let mut packages: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for place in platform.cpus() {
        packages.entry(place.package).or_default().push(place.cpu);
    }
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
            Some((_, Ok(_))) => continue,
            Some((cpu, Err(e))) => {
                Failed::because(format!("CPU {cpu}, for package {package}: {}", explain(&e)))
            }
            None => Failed::because(format!(
                "TDH.SYS.KEY.CONFIG on package {package}: {}",
                NoAnswer::of(&cpus)
            )),
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

/// Runs the steps, and records them in a report.
struct Steps<'p, P> {
    platform: &'p P,
    report: Report,
}

impl<P: Platform> Steps<'_, P> {
    /// Runs one step, and records its number of calls and its outcome.
    fn step<T>(
        &mut self,
        name: &'static str,
        run: impl FnOnce() -> (u64, Result<T, Failed>),
    ) -> Result<T, Failed> {
        let start = self.platform.now_us();
        let (calls, outcome) = run();
        let us = self.platform.now_us() - start;
        log::info!("TDX: {name}: SEAMCALLs: {calls}, {us} us");
        self.report.steps.push(Step {
            name,
            calls,
            us,
            error: outcome.as_ref().err().map(|failed| failed.reason.clone()),
        });
        outcome
    }
}
