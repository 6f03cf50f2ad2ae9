//! Reports of hardware errors and of the CPUs' mitigations.

use alloc::{string::String, vec::Vec};

use serde::Serialize;

use super::Hex;

/// Hardware errors since the start.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Errors {
    /// One entry for each CPU with a machine-check architecture, in the order of their numbers.
    pub cpus: Vec<CpuErrors>,
    /// One entry for each source by which the firmware reports errors (ACPI HEST).
    pub firmware: Vec<FirmwareErrors>,
    /// Foreign NMIs by source.
    pub nmis: Vec<Nmis>,
    /// The last errors of the CPUs' banks, oldest first.
    pub last: Vec<BankError>,
    /// The CPUs that did not answer: their counts may be old.
    pub silent: Vec<u32>,
}

/// The errors of one CPU's banks.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CpuErrors {
    /// The CPU.
    pub cpu: u32,
    /// True if machine checks reach the affected CPU alone (LMCE).
    pub local: bool,
    /// Number of banks that signal corrected errors to this CPU (CMCI). All others are looked at by a timer.
    pub signalling: u32,
    /// Errors that hardware corrected.
    pub corrected: u64,
    /// Errors that hardware could not correct.
    pub uncorrected: u64,
    /// Machine checks.
    pub machine_checks: u64,
    /// Corrected-error interrupts.
    pub signals: u64,
}

/// The records of one of the firmware's error sources.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FirmwareErrors {
    /// The source's number in the HEST.
    pub source: u16,
    /// The way the firmware signals a record: "nmi" or "polled".
    pub notice: &'static str,
    /// Records of corrected errors.
    pub corrected: u64,
    /// Records of uncorrected errors that the machine survives.
    pub recoverable: u64,
    /// Records of fatal errors.
    pub fatal: u64,
}

/// Foreign NMIs of one source.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Nmis {
    /// The source: "firmware", "serr", "iochk", "unknown".
    pub source: &'static str,
    /// Their number.
    pub count: u64,
}

/// One error in full.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BankError {
    /// Microseconds since the hypervisor's first line.
    pub us: u64,
    /// The CPU that read it.
    pub cpu: u32,
    /// The bank.
    pub bank: u8,
    /// The action that it required: "corrected", "no-action", "action-optional", "action-required", "fatal".
    pub verdict: &'static str,
    /// True if the error is from before the hypervisor's start.
    pub stale: bool,
    /// The architectural error code in words, with its number.
    pub error: String,
    /// IA32_MCi_STATUS.
    pub status: Hex,
    /// IA32_MCi_ADDR; `None` if it is not valid.
    pub address: Option<Hex>,
    /// IA32_MCi_MISC; `None` if it is not valid.
    pub misc: Option<Hex>,
}

/// An attack by speculative execution, and what stands against it on every CPU.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Mitigation {
    /// The attack.
    pub attack: &'static str,
    /// "on", "not-affected" or "off".
    pub state: &'static str,
    /// The mitigation, the bit by which the CPU reports that it is not affected, or the reason why there is none.
    pub by: &'static str,
}
