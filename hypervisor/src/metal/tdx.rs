//! TDX on this machine: platform detection, and the module after its bring-up.

use alloc::{format, string::String, vec::Vec};

use host::tdx::{
    bring_up::{BringUp, MachineInfo, Ready},
    report::Report,
};
use seam::platform::{self, Missing};
use spin::{Mutex, Once};

use super::platform::METAL;
use crate::{
    cpu::{self, Cpu, group, model, wake::ADVICE},
    memory::HostFrames,
    msr::ThisCpu,
};

static READY: Once<Ready> = Once::new();
/// A bring-up that has failed for a reason that can pass.
static FAILED: Mutex<Option<BringUp>> = Mutex::new(None);

/// Returns the module if it can build TDs.
#[must_use]
pub fn ready() -> Option<&'static Ready> {
    READY.get()
}

/// Checks the platform and brings the module up. The report says how far the bring-up got.
#[must_use]
pub fn start(memory_nodes: &[(u64, u64, u32)]) -> Report {
    let found = platform::detect(&ThisCpu);
    let mut tdx = Report::unavailable(found.key_ids);
    tdx.reasons = found.missing.iter().map(reason).collect();
    if tdx.reasons.is_empty() {
        // A missing feature of the machine decides; until it is there, the state of a CPU says little.
        tdx.reasons = cpu_reasons();
    }
    let key_ids = match found.key_ids {
        Some(key_ids) if tdx.reasons.is_empty() => key_ids,
        _ => return tdx,
    };
    let machine = MachineInfo {
        key_ids,
        memory_nodes,
    };
    go_on(BringUp::new(&machine))
}

/// Does what is left of a bring-up.
fn go_on(mut bring_up: BringUp) -> Report {
    if let Some(ready) = bring_up.go_on(&METAL, &HostFrames) {
        READY.call_once(|| ready);
    }
    let mut report = bring_up.report().clone();
    if bring_up.can_go_on() {
        let advice = "this can pass by itself: \"tdx retry\" continues the bring-up from there";
        report.reasons.push(advice.into());
    }
    *FAILED.lock() = Some(bring_up).filter(BringUp::can_go_on);
    report
}

/// Continues a bring-up that has failed.
///
/// # Errors
/// A sentence that says why there is none to continue.
pub fn retry() -> Result<Report, String> {
    let failed = FAILED.lock().take();
    if let Some(bring_up) = failed {
        return Ok(go_on(bring_up));
    }
    Err(match ready() {
        Some(_) => "TDX is ready; there is nothing to retry".into(),
        None => "the bring-up of TDX has not failed for a reason that passes by itself; \"tdx\" says what to do".into(),
    })
}

/// Says what is missing. If only another CPU helps, the sentence names the present one.
fn reason(missing: &Missing) -> String {
    if missing.is_the_cpu() {
        format!("{missing}; this is {}", model::here())
    } else {
        format!("{missing}")
    }
}

/// Returns the reasons why CPUs keep the module from being brought up: each needs TDH.SYS.LP.INIT, in VMX operation.
fn cpu_reasons() -> Vec<String> {
    let down = |cpu: &&Cpu| (!cpu.is_up()).then(|| (cpu.number, String::new()));
    let no_vmx = |cpu: &&Cpu| {
        let error = cpu.vmx()?.err().filter(|_| cpu.is_up())?;
        Some((cpu.number, format!("{error}")))
    };
    let mut reasons = group::sentences(
        cpu::all().iter().copied().filter_map(|cpu| down(&cpu)),
        |cpus, verb, _| {
            format!(
                "{cpus} {verb} not running, and TDH.SYS.LP.INIT is needed on every CPU: {ADVICE}"
            )
        },
    );
    reasons.extend(group::sentences(
        cpu::all().iter().copied().filter_map(|cpu| no_vmx(&cpu)),
        |cpus, verb, why| format!("{cpus} {verb} not in VMX operation: {why}"),
    ));
    reasons
}
