//! TDX on this machine: platform detection, and the module after its bring-up.

use alloc::{format, string::String, vec::Vec};

use host::tdx::{
    bring_up::{self, MachineInfo, Ready},
    report::Report,
};
use seam::platform;
use spin::Once;

use super::platform::METAL;
use crate::{cpu, memory::HostFrames, msr::ThisCpu};

static READY: Once<Ready> = Once::new();

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
    tdx.reasons = found.missing.iter().map(|m| format!("{m}")).collect();
    tdx.reasons.extend(cpu_reasons());
    let key_ids = match found.key_ids {
        Some(key_ids) if tdx.reasons.is_empty() => key_ids,
        _ => return tdx,
    };
    let machine = MachineInfo {
        key_ids,
        memory_nodes,
    };
    let (tdx, ready) = bring_up::bring_up(&METAL, &HostFrames, &machine);
    if let Some(ready) = ready {
        READY.call_once(|| ready);
    }
    tdx
}

/// Returns the CPUs that keep the module from being brought up: each needs TDH.SYS.LP.INIT, in VMX operation.
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
