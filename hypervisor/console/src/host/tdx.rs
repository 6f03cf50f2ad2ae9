//! TDX on this machine: reports of `tdx`.

use alloc::{string::String, vec::Vec};
use core::fmt;

use serde::Serialize;

use super::{Hex, iommu};

/// TDX on this machine: the platform, the missing parts, and the progress of the bring-up.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Tdx {
    /// The progress of the bring-up.
    pub state: TdxState,
    /// The reasons why TDX is not ready: one entry for each missing thing, with what to do. Empty if `state` is ready.
    pub reasons: Vec<String>,
    /// The protection of the memory of TDs and of the module from devices.
    pub dma: iommu::Dma,
    /// The KeyIDs that firmware set aside for TDX; `None` if the machine has no such partition.
    pub hkids: Option<Hkids>,
    /// The microcode of the running CPUs, one entry for each revision.
    pub microcode: Vec<Microcode>,
    /// The module's own description; `None` if no module answered.
    pub module: Option<Module>,
    /// The convertible memory regions, ascending; empty if no module answered.
    pub cmrs: Vec<Cmr>,
    /// The memory that the module was given; `None` before that.
    pub memory: Option<TdxMemory>,
    /// The steps of the bring-up that were started, in order.
    pub bring_up: Vec<BringUpStep>,
    /// Microseconds that the whole bring-up took; `None` unless `state` is ready.
    pub bring_up_us: Option<u64>,
}

/// CPUs with the same microcode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Microcode {
    /// The revision; `None` if the CPUs do not tell it.
    pub revision: Option<Hex>,
    /// The numbers of the CPUs, ascending.
    pub cpus: Vec<u32>,
}

/// The progress of TDX on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TdxState {
    /// A requirement is missing. Nothing was started.
    Unavailable,
    /// A module answered and was initialised on every CPU. It has no memory yet.
    Initialised,
    /// The module is configured and has its memory and its global key. TDs can be built.
    Ready,
    /// A step of the bring-up failed. If the reason passes by itself, [`Management::retry_tdx`](super::Management::retry_tdx) continues.
    Failed,
}

impl TdxState {
    /// Returns the state as a sentence.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Unavailable => "TDX is unavailable",
            Self::Initialised => "TDX is initialised",
            Self::Ready => "TDX is ready",
            Self::Failed => "TDX failed",
        }
    }
}

impl fmt::Display for TdxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unavailable => "unavailable",
            Self::Initialised => "initialised",
            Self::Ready => "ready",
            Self::Failed => "failed",
        })
    }
}

/// The private KeyIDs (`IA32_MKTME_KEYID_PARTITIONING`, MSR 0x87).
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Hkids {
    /// The first private HKID.
    pub first: u32,
    /// Number of private HKIDs; one of them is the module's global one.
    pub total: u32,
    /// Number of HKIDs in use, the global one included.
    pub used: u32,
    /// Number of HKIDs that are never handed out again because a cache write-back did not complete.
    pub quarantined: u32,
}

/// The TDX module's description of itself (global metadata, TDX Module ABI 1.5, TDH.SYS.RD).
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Module {
    /// MAJOR_VERSION.
    pub major: u16,
    /// MINOR_VERSION.
    pub minor: u16,
    /// UPDATE_VERSION.
    pub update: u16,
    /// BUILD_NUM.
    pub build_number: u16,
    /// BUILD_DATE as the module encodes it: decimal yyyymmdd.
    pub build_date: u32,
    /// VENDOR_ID: 0x8086 for Intel.
    pub vendor: Hex,
    /// TDX_FEATURES0.
    pub features0: Hex,
    /// The names of the bits that are set in TDX_FEATURES0; a bit without a known name is "bit N".
    pub features: Vec<String>,
    /// The known security advisories that a newer release fixes.
    pub advisories: Vec<String>,
    /// MAX_TDMRS.
    pub max_tdmrs: u16,
    /// MAX_RESERVED_PER_TDMR.
    pub max_reserved_per_tdmr: u16,
    /// MAX_VCPUS_PER_TD; `None` if the module has no such field.
    pub max_vcpus_per_td: Option<u16>,
    /// PAMT_4K_ENTRY_SIZE, bytes for each 4 KiB page.
    pub pamt_4k_entry_bytes: u16,
    /// PAMT_2M_ENTRY_SIZE, bytes for each 2 MiB page.
    pub pamt_2m_entry_bytes: u16,
    /// PAMT_1G_ENTRY_SIZE, bytes for each 1 GiB page.
    pub pamt_1g_entry_bytes: u16,
}

/// One convertible memory region (TDX Module ABI 1.5, CMR_INFO).
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cmr {
    /// The first physical address.
    pub base: Hex,
    /// Size in bytes.
    pub size: u64,
}

/// The memory available to TDs, and its cost.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TdxMemory {
    /// Bytes that TDs can use.
    pub private_bytes: u64,
    /// Bytes that the module keeps as PAMT, its record of every page.
    pub pamt_bytes: u64,
    /// The TDMRs, ascending.
    pub tdmrs: Vec<Tdmr>,
    /// Free memory that no TD can have, ascending.
    pub left_out: Vec<LeftOut>,
}

/// One TDMR (TDX Module ABI 1.5, TDMR_INFO).
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Tdmr {
    /// The first physical address.
    pub base: Hex,
    /// Size in bytes; a multiple of 1 GiB.
    pub size: u64,
    /// The proximity domain that most of it is in, if the SRAT names one.
    pub numa_node: Option<u32>,
    /// Number of areas in it that the module can't hand out.
    pub reserved_areas: usize,
    /// Bytes of its PAMT.
    pub pamt_bytes: u64,
}

/// Free memory that no TD can have.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LeftOut {
    /// The first physical address.
    pub start: Hex,
    /// The first physical address behind it.
    pub end: Hex,
    /// The reason.
    pub why: String,
}

/// One step of the bring-up of the TDX module.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BringUpStep {
    /// The leaf, as the specification names it: "TDH.SYS.LP.INIT".
    pub name: String,
    /// Number of calls of the leaf, over all CPUs.
    pub calls: u64,
    /// Microseconds from its first call to its last return.
    pub us: u64,
    /// The failure: the decoded status, the CPU; `None` if the step succeeded.
    pub error: Option<String>,
}
