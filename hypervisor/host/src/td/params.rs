//! Translates a TD's configuration into TD_PARAMS, within the module's capabilities.

use core::fmt;

use seam::abi::{Attributes, ConfigFlags, TdParams, Xfam};
use zerocopy::FromZeros;

use super::capabilities::{Capabilities, CpuidConfig, Place};
use super::features;
pub use super::unsupported::Unsupported;

/// Four levels of S-EPT, write-back.
///
/// Source: TDX Module ABI 1.5, EPTP_CONTROLS.
const EPTP_FOUR_LEVELS: u64 = 0x1E;
/// Unit of TSC_FREQUENCY in MHz.
const TSC_UNIT_MHZ: u16 = 25;
/// Valid values of TSC_FREQUENCY.
const TSC_UNITS: core::ops::RangeInclusive<u16> = 4..=400;
/// The CPUID leaf of family, features and number of logical processors. That of further features follows.
const CPUID_FEATURES: u32 = 1;
const CPUID_MORE_FEATURES: u32 = 7;
/// The CPUID leaf of the levels of processors.
const CPUID_TOPOLOGY: u32 = 0x1F;
/// The CPUID leaf of address widths.
const CPUID_WIDTHS: u32 = 0x8000_0008;
/// Width in bits of guest-physical addresses with four levels of S-EPT.
const GPA_BITS: u8 = 48;
/// EBX of CPUID leaf 7: HLE and RTM. Modules accept both or none, but a CPU may have one.
const TSX: u32 = 1 << 4 | 1 << 11;

/// Values of this machine for settings that the operator leaves open.
pub trait Native {
    /// Returns the host's CPUID: EAX, EBX, ECX, EDX.
    fn cpuid(&self, leaf: u32, sub_leaf: u32) -> [u32; 4];

    /// Returns the frequency of the host's TSC in MHz.
    fn tsc_mhz(&self) -> u32;
}

/// The CPUID values of a leaf that the module refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedCpuid {
    /// The leaf.
    leaf: u32,
    /// The sub-leaf.
    sub_leaf: Option<u32>,
    /// Bits of EAX, EBX, ECX and EDX that the TD was to have.
    asked: [u32; 4],
    /// Those of them that this CPU does not have.
    lacking: [u32; 4],
}

impl RefusedCpuid {
    /// Finds the values that TDH.MNG.INIT refused, by the leaf and sub-leaf that it returns.
    pub fn find(
        place: u64,
        params: &TdParams,
        module: &Capabilities,
        native: &(impl Native + ?Sized),
    ) -> Option<Self> {
        let Place(leaf, sub_leaf) = Place::from_module(place);
        let is_it = |config: &CpuidConfig| (config.leaf, config.sub_leaf) == (leaf, sub_leaf);
        let index = module.cpuid.iter().position(is_it)?;
        let asked = *params.cpuid_config.get(index)?;
        let has = native.cpuid(leaf, sub_leaf.unwrap_or(0));
        let mut lacking = core::array::from_fn(|i| asked[i] & !has[i]);
        if leaf == CPUID_FEATURES {
            // The model and the number of processors are numbers, not features.
            lacking[..2].fill(0);
        }
        Some(Self {
            leaf,
            sub_leaf,
            asked,
            lacking,
        })
    }
}

impl fmt::Display for RefusedCpuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpuid: {}", Place(self.leaf, self.sub_leaf))?;
        let is_lacking = self.lacking != [0; 4];
        let bits = if is_lacking { self.lacking } else { self.asked };
        f.write_str(if is_lacking {
            ", where this CPU does not have"
        } else {
            ", with the value"
        })?;
        let registers = ["eax", "ebx", "ecx", "edx"].into_iter().zip(bits);
        let mut separator = " ";
        for (register, bits) in registers.filter(|(_, bits)| !is_lacking || *bits != 0) {
            write!(f, "{separator}{register} {bits:#x}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// Returns the parameters of a TD.
///
/// # Errors
/// [`Unsupported`], with the key of `[[td]]` that this module does not support.
pub fn params(
    td: &config::Td,
    module: &Capabilities,
    native: &(impl Native + ?Sized),
) -> Result<TdParams, Unsupported> {
    if td.vcpus > module.max_vcpus {
        return Err(Unsupported::Vcpus {
            wanted: td.vcpus,
            most: module.max_vcpus,
        });
    }
    let mut params = TdParams::new_zeroed();
    params.attributes = attributes(td, module)?;
    params.xfam = xfam(td.xfam.as_ref(), module)?;
    params.max_vcpus = td.vcpus;
    params.eptp_controls = EPTP_FOUR_LEVELS;
    params.config_flags = config_flags(td, module)?;
    widths(td, module, native)?;
    ve_reduction(td, module, native)?;
    params.tsc_frequency = match td.tsc_mhz {
        Some(mhz) => mhz / TSC_UNIT_MHZ,
        None => tsc_units(native.tsc_mhz()),
    };
    params.mrconfigid = td.mrconfigid;
    params.mrowner = td.mrowner;
    params.mrownerconfig = td.mrownerconfig;
    cpuid(td, module, native, &mut params.cpuid_config)?;
    Ok(params)
}

fn attributes(td: &config::Td, module: &Capabilities) -> Result<Attributes, Unsupported> {
    let wanted = [
        (td.debug, Attributes::DEBUG, "debug"),
        (
            td.sept_ve_disable,
            Attributes::SEPT_VE_DISABLE,
            "sept_ve_disable",
        ),
        (td.migratable, Attributes::MIGRATABLE, "migratable"),
        (td.pks, Attributes::PKS, "pks"),
        (td.perfmon, Attributes::PERFMON, "perfmon"),
        (td.icssd, Attributes::ICSSD, "icssd"),
        (td.lass, Attributes::LASS, "lass"),
    ];
    let mut value = Attributes::empty();
    for (is_wanted, bit, name) in wanted {
        value.set(bit, is_wanted);
        if module.attributes.forbidden(value).contains(bit) {
            return Err(Unsupported::Feature(name));
        }
    }
    if td.migratable && (td.debug || td.perfmon) {
        return Err(Unsupported::Migratable);
    }
    if td.icssd && td.perfmon {
        return Err(Unsupported::Icssd);
    }
    let missing = module.attributes.missing(value);
    if missing.is_empty() {
        Ok(value)
    } else {
        Err(Unsupported::AttributesMissing(missing))
    }
}

/// Returns the flags that the module requires, NO_RBP_MOD and MAXPA_VIRT. A default of NO_RBP_MOD yields to the module.
fn config_flags(td: &config::Td, module: &Capabilities) -> Result<ConfigFlags, Unsupported> {
    let bit = ConfigFlags::NO_RBP_MOD;
    let mut wanted = ConfigFlags::empty();
    wanted.set(bit, td.no_rbp_mod());
    if td.maxpa.is_some() {
        wanted |= ConfigFlags::MAXPA_VIRT;
    }
    let value = module.config_flags.one | wanted & module.config_flags.zero;
    if td.no_rbp_mod.is_some() && value.contains(bit) != wanted.contains(bit) {
        return Err(Unsupported::NoRbpMod(value.contains(bit)));
    }
    Ok(value)
}

/// Checks the physical address width that the TD's CPUID shows.
fn widths(
    td: &config::Td,
    module: &Capabilities,
    native: &(impl Native + ?Sized),
) -> Result<(), Unsupported> {
    let Some(wanted) = td.maxpa else {
        return Ok(());
    };
    let least = module.min_virt_maxpa;
    let least = least.filter(|_| module.config_flags.zero.contains(ConfigFlags::MAXPA_VIRT));
    let least = least.ok_or(Unsupported::Feature("maxpa"))?;
    let most = GPA_BITS.min(native.cpuid(CPUID_WIDTHS, 0)[0] as u8);
    if (least..=most).contains(&wanted) {
        Ok(())
    } else {
        Err(Unsupported::MaxPa {
            wanted,
            least,
            most,
        })
    }
}

/// Checks the keys about #VE reduction.
fn ve_reduction(
    td: &config::Td,
    module: &Capabilities,
    native: &(impl Native + ?Sized),
) -> Result<(), Unsupported> {
    if td.ve_reduction == Some(true) && !module.ve_reduction {
        return Err(Unsupported::Feature("ve_reduction"));
    }
    let Some(kept) = &td.paravirt else {
        return Ok(());
    };
    if !module.ve_reduction {
        return Err(Unsupported::Feature("paravirt"));
    }
    let lacks = |feature: &&config::Paravirt| {
        let bits = features::cpuid_bits(**feature);
        native.cpuid(bits.leaf, 0)[bits.register] & bits.bits != bits.bits
    };
    match kept.iter().find(lacks) {
        Some(feature) => Err(Unsupported::Absent {
            key: "paravirt",
            feature: feature.name(),
        }),
        None => Ok(()),
    }
}

fn xfam(wanted: Option<&config::Xfam>, module: &Capabilities) -> Result<Xfam, Unsupported> {
    let value = match wanted {
        None => return Ok(Xfam::USUAL & module.xfam.zero | module.xfam.one),
        Some(config::Xfam::Bits(bits)) => Xfam::from_bits_retain(*bits),
        Some(config::Xfam::Features(list)) => list.iter().copied().map(features::xfam).collect(),
    };
    let forbidden = module.xfam.forbidden(value);
    if !forbidden.is_empty() {
        return Err(Unsupported::XfamBits(forbidden));
    }
    let missing = module.xfam.missing(value);
    if !missing.is_empty() {
        return Err(Unsupported::XfamMissing(missing));
    }
    for group in [Xfam::AVX512, Xfam::CET, Xfam::AMX] {
        if value.intersects(group) && !value.contains(group) {
            return Err(Unsupported::XfamGroup(group));
        }
    }
    if value.intersects(Xfam::AVX512) && !value.contains(Xfam::AVX) {
        return Err(Unsupported::XfamGroup(Xfam::AVX512 | Xfam::AVX));
    }
    Ok(value)
}

/// Returns the TSC frequency of a TD that is nearest to the host's.
fn tsc_units(mhz: u32) -> u16 {
    let unit = u32::from(TSC_UNIT_MHZ);
    let units = (mhz + unit / 2) / unit;
    units.clamp((*TSC_UNITS.start()).into(), (*TSC_UNITS.end()).into()) as u16
}

/// Fills in CPUID: the host's own values for the bits that it can configure, overridden by the operator's.
fn cpuid(
    td: &config::Td,
    module: &Capabilities,
    native: &(impl Native + ?Sized),
    into: &mut [[u32; 4]],
) -> Result<(), Unsupported> {
    for wanted in &td.cpuid {
        if !module.cpuid.iter().any(|config| is_about(wanted, config)) {
            return Err(Unsupported::CpuidLeaf {
                leaf: wanted.leaf,
                sub_leaf: wanted.subleaf,
            });
        }
    }
    for (config, value) in module.cpuid.iter().zip(into) {
        *value = native.cpuid(config.leaf, config.sub_leaf.unwrap_or(0));
        if config.leaf == CPUID_FEATURES {
            // EAX: zero stands for the family, model and stepping of this machine. EBX 23:16: logical processors.
            value[0] = 0;
            value[1] = u32::from(td.vcpus).min(0xFF) << 16;
        }
        if config.leaf == CPUID_TOPOLOGY {
            // Zero stands for the topology of this machine.
            *value = [0; 4];
        }
        if config.leaf == CPUID_WIDTHS
            && let Some(maxpa) = td.maxpa
        {
            value[0] = maxpa.into();
        }
        let is_first = config.sub_leaf.unwrap_or(0) == 0;
        if let Some(kept) = &td.paravirt
            && is_first
        {
            features::keep(kept, config.leaf, value);
        }
        for (register, mask) in value.iter_mut().zip(config.mask) {
            *register &= mask;
        }
        if config.leaf == CPUID_MORE_FEATURES && is_first && value[1] & TSX != TSX {
            value[1] &= !TSX;
        }
        for wanted in td.cpuid.iter().filter(|wanted| is_about(wanted, config)) {
            override_with(wanted, config, value)?;
        }
    }
    Ok(())
}

fn is_about(wanted: &config::Cpuid, config: &CpuidConfig) -> bool {
    wanted.leaf == config.leaf && wanted.subleaf == config.sub_leaf
}

fn override_with(
    wanted: &config::Cpuid,
    config: &CpuidConfig,
    value: &mut [u32; 4],
) -> Result<(), Unsupported> {
    let registers = [
        ("eax", wanted.eax),
        ("ebx", wanted.ebx),
        ("ecx", wanted.ecx),
        ("edx", wanted.edx),
    ];
    for (((name, wanted), mask), value) in registers.into_iter().zip(config.mask).zip(value) {
        let Some(wanted) = wanted else {
            continue;
        };
        if wanted & !mask != 0 {
            return Err(Unsupported::CpuidBits {
                leaf: config.leaf,
                sub_leaf: config.sub_leaf,
                register: name,
                bits: wanted & !mask,
            });
        }
        *value = wanted;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
