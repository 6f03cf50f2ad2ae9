//! The parts of a TD's configuration that this module or CPU does not support.

use core::fmt;

use seam::abi::{Attributes, Xfam};

use super::capabilities::Place;

/// A key of `[[td]]` that the module does not support as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// The module has nothing for this key in any TD.
    Feature(&'static str),
    /// The CPU does not have this feature, which the key lists.
    Absent {
        /// The key.
        key: &'static str,
        /// The feature.
        feature: &'static str,
    },
    /// `migratable` excludes `debug` and `perfmon`.
    Migratable,
    /// `icssd` excludes `perfmon`.
    Icssd,
    /// `no_rbp_mod` contradicts the module, which sets it in every TD if `true`, in none if `false`.
    NoRbpMod(bool),
    /// Bits of ATTRIBUTES that the module requires in every TD and that no key sets.
    AttributesMissing(Attributes),
    /// Bits of `xfam` that the module does not allow.
    XfamBits(Xfam),
    /// Bits that the module requires in every XFAM.
    XfamMissing(Xfam),
    /// Bits of `xfam` that must be all set or all clear.
    XfamGroup(Xfam),
    /// `maxpa` outside the range for a TD.
    MaxPa {
        /// The width configured.
        wanted: u8,
        /// The least width.
        least: u8,
        /// The greatest width.
        most: u8,
    },
    /// More vCPUs than the module allows.
    Vcpus {
        /// The number configured.
        wanted: u16,
        /// The number allowed.
        most: u16,
    },
    /// A leaf of `[[td.cpuid]]` that the host can't configure.
    CpuidLeaf {
        /// The leaf.
        leaf: u32,
        /// The sub-leaf.
        sub_leaf: Option<u32>,
    },
    /// Bits of a register of `[[td.cpuid]]` that the host can't configure.
    CpuidBits {
        /// The leaf.
        leaf: u32,
        /// The sub-leaf.
        sub_leaf: Option<u32>,
        /// The register.
        register: &'static str,
        /// The bits.
        bits: u32,
    },
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feature(key) => write!(f, "{key}: this TDX module does not support it"),
            Self::Absent { key, feature } => {
                write!(f, "{key}: this CPU does not have {feature}")
            }
            Self::Migratable => write!(f, "migratable: it can't be combined with debug or perfmon"),
            Self::Icssd => write!(f, "icssd: it can't be combined with perfmon"),
            Self::NoRbpMod(has) => {
                let which = if *has { "every" } else { "no" };
                write!(f, "no_rbp_mod: this TDX module has it in {which} TD")
            }
            Self::AttributesMissing(bits) => write!(
                f,
                "attributes: this TDX module requires {bits} ({bits:#x}), which the TD's configuration does not set"
            ),
            Self::XfamBits(bits) => {
                write!(
                    f,
                    "xfam: this TDX module does not support {bits} ({bits:#x})"
                )
            }
            Self::XfamMissing(bits) => {
                write!(f, "xfam: every TD must have {bits} ({bits:#x})")
            }
            Self::XfamGroup(bits) => {
                write!(f, "xfam: {bits} ({bits:#x}) must be all set or all clear")
            }
            Self::MaxPa {
                wanted,
                least,
                most,
            } => write!(
                f,
                "maxpa: {wanted} is configured, and a TD on this machine may have {least} to {most}"
            ),
            Self::Vcpus { wanted, most } => write!(
                f,
                "vcpus: {wanted} are configured, and this TDX module supports at most {most}"
            ),
            Self::CpuidLeaf { leaf, sub_leaf } => write!(
                f,
                "cpuid: this TDX module does not let the host configure {}",
                Place(*leaf, *sub_leaf)
            ),
            Self::CpuidBits {
                leaf,
                sub_leaf,
                register,
                bits,
            } => write!(
                f,
                "cpuid: this TDX module does not let the host configure the bits {bits:#x} of {register} in {}",
                Place(*leaf, *sub_leaf)
            ),
        }
    }
}
