//! The choices that the module leaves to the host for a TD, as the module reports them.

use alloc::vec::Vec;
use core::fmt;

use bitflags::Flags;
use seam::{
    abi::{
        Attributes, ConfigFlags, Features0, PAGE_4K, Xfam,
        metadata::{Field, sys},
    },
    call::SeamCall,
    error::Error,
    module,
    retry::Wait,
    tdh::Tdh,
};

/// Fixed bits of a field.
///
/// Source: TDX Module ABI 1.5, ATTRIBUTES_FIXED0 and its like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed<F> {
    /// A bit that is 0 here must be 0.
    pub zero: F,
    /// A bit that is 1 here must be 1.
    pub one: F,
}

impl<F: Flags<Bits = u64>> Fixed<F> {
    /// Reads both masks.
    fn read<E>(read: impl Fn(Field) -> Result<u64, E>, zero: Field, one: Field) -> Result<Self, E> {
        Ok(Self {
            zero: F::from_bits_retain(read(zero)?),
            one: F::from_bits_retain(read(one)?),
        })
    }

    /// Returns the bits of `value` that are set and must not be.
    #[must_use]
    pub fn forbidden(&self, value: F) -> F {
        F::from_bits_retain(value.bits() & !self.zero.bits())
    }

    /// Returns the bits of `value` that must be set and are not.
    #[must_use]
    pub fn missing(&self, value: F) -> F {
        F::from_bits_retain(self.one.bits() & !value.bits())
    }
}

/// A CPUID leaf with bits that the host configures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidConfig {
    /// The leaf.
    pub leaf: u32,
    /// The sub-leaf; `None` where the leaf has none.
    pub sub_leaf: Option<u32>,
    /// Bits of EAX, EBX, ECX and EDX that the host configures.
    pub mask: [u32; 4],
}

/// A CPUID leaf and sub-leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(pub u32, pub Option<u32>);

impl Place {
    /// Decodes the module's format: the leaf in the lower half, the sub-leaf in the upper half, all ones for none.
    pub const fn from_module(place: u64) -> Self {
        let sub_leaf = (place >> 32) as u32;
        let sub_leaf = if sub_leaf == u32::MAX {
            None
        } else {
            Some(sub_leaf)
        };
        Self(place as u32, sub_leaf)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leaf {:#x}", self.0)?;
        match self.1 {
            Some(sub_leaf) => write!(f, ", subleaf {sub_leaf:#x}"),
            None => Ok(()),
        }
    }
}

/// The choices that the module leaves to the host for a TD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// ATTRIBUTES.
    pub attributes: Fixed<Attributes>,
    /// XFAM.
    pub xfam: Fixed<Xfam>,
    /// CONFIG_FLAGS.
    pub config_flags: Fixed<ConfigFlags>,
    /// Configurable CPUID leaves, in the order of TD_PARAMS.CPUID_CONFIG.
    pub cpuid: Vec<CpuidConfig>,
    /// Maximum number of vCPUs of a TD.
    pub max_vcpus: u16,
    /// Least physical address width in bits that a TD's CPUID can show; `None` if the module shows the CPU's
    /// (TDX_FEATURES0.MAXPA_VIRT).
    pub min_virt_maxpa: Option<u8>,
    /// Number of TDCX pages of a TD.
    pub tdcx_pages: u32,
    /// Number of pages of a vCPU, including its root page.
    pub tdvps_pages: u32,
    /// Set if the host gives each vCPU its x2APIC id (TDX_FEATURES0.TOPOLOGY_ENUM).
    pub topology_enum: bool,
    /// Set if a guest can reduce #VE (TDX_FEATURES0.VE_REDUCTION).
    pub ve_reduction: bool,
}

impl Capabilities {
    /// Reads the capabilities on a CPU that has executed TDH.SYS.LP.INIT.
    ///
    /// # Errors
    /// [`Error`] for a field that every module 1.5 has.
    pub fn read<C: SeamCall, W: Wait>(module: &Tdh<'_, C, W>) -> Result<Self, Error> {
        let read = |field: Field| module.sys_rd(field.element(0));
        let info = module::Info::read(module)?;
        let has = |feature| info.tdx_features0.contains(feature);
        let leaves = read(sys::NUM_CPUID_CONFIG)? as u32;
        Ok(Self {
            attributes: Fixed::read(read, sys::ATTRIBUTES_FIXED0, sys::ATTRIBUTES_FIXED1)?,
            xfam: Fixed::read(read, sys::XFAM_FIXED0, sys::XFAM_FIXED1)?,
            config_flags: Fixed::read(read, sys::CONFIG_FLAGS_FIXED0, sys::CONFIG_FLAGS_FIXED1)?,
            cpuid: (0..leaves)
                .map(|index| cpuid_config(module, index))
                .collect::<Result<_, _>>()?,
            max_vcpus: info.max_vcpus_per_td.unwrap_or(u16::MAX),
            min_virt_maxpa: has(Features0::MAXPA_VIRT)
                .then(|| read(sys::MIN_VIRT_MAXPA))
                .transpose()?
                .map(|bits| bits as u8),
            tdcx_pages: pages(read(sys::TDCS_BASE_SIZE)?),
            tdvps_pages: pages(read(sys::TDVPS_BASE_SIZE)?),
            topology_enum: has(Features0::TOPOLOGY_ENUM),
            ve_reduction: has(Features0::VE_REDUCTION),
        })
    }
}

fn pages(bytes: u64) -> u32 {
    bytes.div_ceil(PAGE_4K) as u32
}

fn cpuid_config<C: SeamCall, W: Wait>(
    module: &Tdh<'_, C, W>,
    index: u32,
) -> Result<CpuidConfig, Error> {
    let place = module.sys_rd(sys::CPUID_CONFIG_LEAVES.element(index))?;
    let Place(leaf, sub_leaf) = Place::from_module(place);
    let low = module.sys_rd(sys::CPUID_CONFIG_VALUES.element(2 * index))?;
    let high = module.sys_rd(sys::CPUID_CONFIG_VALUES.element(2 * index + 1))?;
    Ok(CpuidConfig {
        leaf,
        sub_leaf,
        mask: [
            low as u32,
            (low >> 32) as u32,
            high as u32,
            (high >> 32) as u32,
        ],
    })
}
