//! The data that a module leaves at its shutdown for the module that replaces it.

use super::tdmr::Tdmrs;
use crate::keys::Keys;

/// The state of a module, except what lies in memory that the host donated.
#[derive(Clone, Debug)]
pub struct Handoff {
    /// The version of the data (HANDOFF_DATA_HV).
    pub version: u64,
    /// The HKID of the module's own structures.
    pub global_hkid: u32,
    /// Packages that have the global key, one bit each.
    pub keyed_packages: u64,
    /// The key ownership table.
    pub keys: Keys,
    /// The TDMRs, as far as they are initialised.
    pub tdmrs: Option<Tdmrs>,
    /// TDs in build. Version 0 does not count them.
    pub builds: u32,
}
