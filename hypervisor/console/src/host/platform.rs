//! The CPU's identification registers, for those who help from afar.

use alloc::{string::String, vec::Vec};

use serde::Serialize;

use super::Hex;

/// The registers that say what a CPU is and how the firmware has set it up.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Platform {
    /// The CPU's name, family, model, stepping and microcode.
    pub cpu: String,
    /// Leafs of CPUID.
    pub cpuid: Vec<CpuidLeaf>,
    /// Model-specific registers.
    pub msrs: Vec<MsrValue>,
}

/// The values of one CPUID leaf on the boot CPU.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CpuidLeaf {
    /// EAX on entry.
    pub leaf: Hex,
    /// ECX on entry.
    pub sub_leaf: Hex,
    /// EAX.
    pub eax: Hex,
    /// EBX.
    pub ebx: Hex,
    /// ECX.
    pub ecx: Hex,
    /// EDX.
    pub edx: Hex,
}

/// The value of one model-specific register on the boot CPU.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MsrValue {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub number: Hex,
    /// Its value; `None` if the CPU has no such register.
    pub value: Option<Hex>,
}
