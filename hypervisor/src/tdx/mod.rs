//! TDX on this machine: what was found, and the bring-up of the module on every CPU.

pub mod hkids;
pub mod release;

use alloc::{format, string::String, vec::Vec};
use core::{
    ops::ControlFlow,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use seam::{
    abi::Status,
    call::Fault,
    counters::Counters,
    error::{Cause, Error},
    module, platform,
    retry::{Pause, Wait},
    tdh::Tdh,
};

use crate::{
    console::host::{BringUpStep, Cmr, Hex, Hkids, Module, Tdx, TdxState},
    cpu::{self, msr::ThisCpu},
    seamlog::Recorded,
    sync::IrqLock,
    time,
};

/// The TDX module as this CPU calls it: by the instruction, with its own counters.
#[must_use]
pub fn module() -> Tdh<'static, Recorded, Spin> {
    /// For calls before the CPU has its own data.
    static EARLY: Counters = Counters::new();
    let counters = cpu::this().map_or(&EARLY, |cpu| &cpu.seam_counters);
    Tdh::new(Recorded, Spin, counters)
}

/// Spends the pauses between two tries of a SEAMCALL by spinning.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spin;

impl Wait for Spin {
    fn wait(&self, pause: Pause) -> ControlFlow<()> {
        time::wait_us(pause.us.into(), || false);
        ControlFlow::Continue(())
    }
}

/// Looks at the machine and brings the module up as far as this host does. The report says how far that was.
#[must_use]
pub fn bring_up() -> Tdx {
    let found = platform::detect(&ThisCpu);
    let mut tdx = Tdx {
        state: TdxState::Unavailable,
        reasons: found.missing.iter().map(|m| format!("{m}")).collect(),
        hkids: found.key_ids.map(|k| Hkids {
            first: k.first_private(),
            total: k.private,
            used: 0,
            quarantined: 0,
        }),
        module: None,
        cmrs: Vec::new(),
        bring_up: Vec::new(),
        bring_up_us: None,
    };
    tdx.reasons.extend(cpu_reasons());
    if !tdx.reasons.is_empty() {
        return tdx;
    }
    if let Err((state, reason)) = initialise(&mut tdx) {
        tdx.state = state;
        tdx.reasons.push(reason);
    } else {
        tdx.state = TdxState::Initialised;
    }
    tdx
}

/// The CPUs because of which no module can be brought up: each needs TDH.SYS.LP.INIT, in VMX operation.
fn cpu_reasons() -> Vec<String> {
    let mut reasons = Vec::new();
    for cpu in cpu::all() {
        if !cpu.is_up() {
            reasons.push(format!(
                "CPU {} (APIC id {:#x}) is not running, and TDH.SYS.LP.INIT is needed on every CPU",
                cpu.number, cpu.apic_id
            ));
        } else if let Some(Err(e)) = cpu.vmx() {
            reasons.push(format!("CPU {} is not in VMX operation: {e}", cpu.number));
        }
    }
    reasons
}

fn initialise(tdx: &mut Tdx) -> Result<(), (TdxState, String)> {
    let failed = |e: Error| {
        let state = match e.cause() {
            Cause::Fault(Fault::NotLoaded | Fault::NotEnabled) => TdxState::Unavailable,
            _ => TdxState::Failed,
        };
        (state, explain(&e))
    };
    step(tdx, "TDH.SYS.INIT", || {
        (1, module().sys_init().map_err(failed))
    })?;
    step(tdx, "TDH.SYS.LP.INIT", lp_init_everywhere)?;
    let info = step(tdx, "TDH.SYS.RD", || {
        (1, module::Info::read(&module()).map_err(failed))
    })?;
    let all_cmrs = info.cmrs.iter();
    tdx.cmrs = all_cmrs
        .map(|c| Cmr {
            base: Hex(c.base),
            size: c.size,
        })
        .collect();
    tdx.module = Some(describe(&info));
    Ok(())
}

/// The error, with what the module says about a CPUID leaf that it does not accept.
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

/// Runs one step and writes it down: how many calls it made, and how it ended.
fn step<T>(
    tdx: &mut Tdx,
    name: &str,
    run: impl FnOnce() -> (u64, Result<T, (TdxState, String)>),
) -> Result<T, (TdxState, String)> {
    let start = time::us();
    let (calls, outcome) = run();
    tdx.bring_up.push(BringUpStep {
        name: name.into(),
        calls,
        us: time::us() - start,
        error: outcome.as_ref().err().map(|(_, e)| e.clone()),
    });
    outcome
}

/// TDH.SYS.LP.INIT on every CPU at once.
fn lp_init_everywhere() -> (u64, Result<(), (TdxState, String)>) {
    let calls = AtomicU64::new(0);
    let errors = IrqLock::new(Vec::new());
    let answered = cpu::on_each(&cpu::up(), &|cpu| {
        calls.fetch_add(1, Relaxed);
        if let Err(e) = module().sys_lp_init() {
            errors.lock().push((cpu, e));
        }
    });
    let mut sentences: Vec<String> = errors
        .lock()
        .iter()
        .map(|(cpu, e)| format!("CPU {cpu}: {}", explain(e)))
        .collect();
    if let Err(e) = answered {
        sentences.push(format!("TDH.SYS.LP.INIT: {e}"));
    }
    let outcome = if sentences.is_empty() {
        Ok(())
    } else {
        Err((TdxState::Failed, sentences.join("; ")))
    };
    (calls.into_inner(), outcome)
}

fn describe(info: &module::Info) -> Module {
    let features = (0..64)
        .filter(|bit| info.tdx_features0 >> bit & 1 != 0)
        .map(|bit| {
            let known = module::FEATURES0.iter().find(|(b, _)| *b == bit);
            known.map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).into())
        });
    Module {
        major: info.major_version,
        minor: info.minor_version,
        update: info.update_version,
        build_number: info.build_num,
        build_date: info.build_date,
        vendor: Hex(info.vendor_id.into()),
        features0: Hex(info.tdx_features0),
        features: features.collect(),
        max_tdmrs: info.max_tdmrs,
        max_reserved_per_tdmr: info.max_reserved_per_tdmr,
        max_vcpus_per_td: info.max_vcpus_per_td,
        pamt_4k_entry_bytes: info.pamt_4k_entry_size,
        pamt_2m_entry_bytes: info.pamt_2m_entry_size,
        pamt_1g_entry_bytes: info.pamt_1g_entry_size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_names_or_numbers() {
        let info = module::Info {
            tdx_features0: 1 << 18 | 1 << 63,
            ..module::Info::default()
        };
        assert_eq!(describe(&info).features, ["NO_RBP_MOD", "bit 63"]);
    }
}
