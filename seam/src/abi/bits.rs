//! Bit masks with named bits: a TD's ATTRIBUTES, XFAM, CONFIG_FLAGS and TD_CTLS, and the module's TDX_FEATURES0.
//!
//! Unnamed bits are preserved, because a newer module may define them.

use core::fmt;

use bitflags::{Flags, bitflags};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Declares a 64-bit mask that prints the names of its bits.
macro_rules! masks {
    ($($(#[$doc:meta])* $mask:ident { $($(#[$($bit_doc:tt)*])* $bit:ident = $number:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $mask(u64);

        bitflags! {
            impl $mask: u64 {
                $(
                    $(#[$($bit_doc)*])*
                    #[doc = concat!("\n\nBit ", $number, ".")]
                    const $bit = 1 << $number;
                )*
            }
        }

        impl fmt::Display for $mask {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (index, bit) in names(*self).enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{bit}")?;
                }
                Ok(())
            }
        }
    )*};
}

masks! {
    /// TD ATTRIBUTES.
    ///
    /// Source: TDX Module ABI 1.5 and 2.0, ATTRIBUTES.
    Attributes {
        /// The host may read and write the TD's memory and state.
        DEBUG = 0,
        /// The TD participates in HGS+.
        HGS_PLUS_PROF = 4,
        /// The TD may be profiled with uncore performance monitoring.
        PERF_PROF = 5,
        /// The TD may be profiled with platform monitoring technology.
        PMT_PROF = 6,
        /// Instruction-count based single-step defence is enabled.
        ICSSD = 16,
        /// Linear address space separation.
        LASS = 27,
        /// An access to an unaccepted page exits to the host instead of raising #VE.
        SEPT_VE_DISABLE = 28,
        /// The TD is migratable.
        MIGRATABLE = 29,
        /// Supervisor protection keys.
        PKS = 30,
        /// Key locker.
        KL = 31,
        /// The TD is a TDX Connect provisioning agent.
        TPA = 62,
        /// Performance monitoring.
        PERFMON = 63,
    }

    /// XFAM, the extended features that a TD may use. The bits are those of XCR0 and IA32_XSS.
    ///
    /// Source: Intel SDM, volume 1, chapter 13; TDX Module ABI 1.5, XFAM.
    Xfam {
        /// x87.
        X87 = 0,
        /// SSE.
        SSE = 1,
        /// AVX.
        AVX = 2,
        /// MPX bound registers.
        BNDREGS = 3,
        /// MPX configuration and status.
        BNDCSR = 4,
        /// AVX-512 mask registers.
        OPMASK = 5,
        /// Upper halves of ZMM0 to ZMM15.
        ZMM_HI256 = 6,
        /// ZMM16 to ZMM31.
        HI16_ZMM = 7,
        /// Processor trace.
        PT = 8,
        /// User-page protection keys.
        PKRU = 9,
        /// PASID.
        PASID = 10,
        /// CET, user mode.
        CET_U = 11,
        /// CET, supervisor mode.
        CET_S = 12,
        /// Hardware duty cycling.
        HDC = 13,
        /// User interrupts.
        UINTR = 14,
        /// Last branch records.
        LBR = 15,
        /// Hardware P-states.
        HWP = 16,
        /// AMX tile configuration.
        TILECFG = 17,
        /// AMX tile data.
        TILEDATA = 18,
        /// APX extended general-purpose registers.
        APX = 19,
    }

    /// CONFIG_FLAGS (also called EXEC_CONTROLS).
    ///
    /// Source: TDX Module ABI 1.5, CONFIG_FLAGS.
    ConfigFlags {
        /// Guest-physical addresses have 52 bits (shared bit 51) instead of 48 (shared bit 47).
        GPAW = 0,
        /// The guest may choose whether accesses to pending pages raise #VE or exit.
        FLEXIBLE_PENDING_VE = 1,
        /// TDG.VP.VMCALL and TDH.VP.ENTER preserve RBP.
        NO_RBP_MOD = 2,
        /// The host sets the MAXPA value that the guest sees.
        MAXPA_VIRT = 3,
        /// The host sets the guest-physical address width that the guest sees.
        MAXGPA_VIRT = 4,
    }

    /// TD_CTLS, which the guest writes.
    ///
    /// Source: TDX Module ABI 1.5 and 2.0, TD_CTLS.
    TdCtls {
        /// An access to an unaccepted page exits to the host instead of raising #VE.
        PENDING_VE_DISABLE = 0,
        /// CPUID shows the topology that the host configured.
        ENUM_TOPOLOGY = 1,
        /// CPUID leaf 2 is virtualised.
        VIRT_CPUID2 = 2,
        /// Fewer instructions raise #VE.
        REDUCE_VE = 3,
        /// The field is locked against further writes.
        LOCK = 63,
    }

    /// FEATURE_PARAVIRT_CTLS, which the guest writes: features that it keeps although it reduces #VE.
    ///
    /// Source: TDX Module ABI 1.5 and 2.0, FEATURE_PARAVIRT_CTLS.
    FeatureParavirtCtls {
        /// IA32_CORE_CAPABILITIES.
        CORE_CAPABILITIES = 0,
        /// Direct cache access.
        DCA = 1,
        /// Enhanced SpeedStep.
        EST = 2,
        /// Machine-check exceptions and banks.
        MCA = 3,
        /// Memory-type range registers.
        MTRR = 4,
        /// PCONFIG.
        PCONFIG = 5,
        /// Allocation of shared resources.
        RDT_A = 6,
        /// Monitoring of shared resources.
        RDT_M = 7,
        /// Thermal monitoring and clock modulation.
        ACPI = 8,
        /// Thermal monitor 2.
        TM2 = 9,
        /// Total memory encryption.
        TME = 10,
        /// The APIC timer's TSC-deadline mode.
        TSC_DEADLINE = 11,
    }

    /// TDX_FEATURES0, the features of the module. The names are those of the specification.
    ///
    /// Source: TDX Module ABI 1.5 and 2.0, TDX_FEATURES0.
    Features0 {
        TD_MIGRATION = 0,
        TD_PRESERVING = 1,
        SERVICE_TD = 2,
        TDG_VP_RDWR = 3,
        RELAXED_MEM_MNG_CONCURRENCY = 4,
        CPUID_VIRT_GUEST_CTRL = 5,
        TDX_IO = 6,
        TD_PARTITIONING = 7,
        LOCAL_ATTESTATION = 8,
        TD_ENTRY_ENHANCEMENTS = 9,
        HOST_PRIORITY_LOCKS = 10,
        CONFIG_IA32_ARCH_CAP = 11,
        SEALING = 12,
        PENDING_EPT_VIOLATION_V2 = 16,
        FMS_CONFIG = 17,
        NO_RBP_MOD = 18,
        L2_TLB_INVD_OPT = 19,
        TOPOLOGY_ENUM = 20,
        PARTITIONED_TD_MIGRATION = 21,
        CLFLUSH_BEFORE_ALLOC = 23,
        EVENT_FILTERING = 24,
        ICSSD = 25,
        FIXED_CTR12_PROF = 26,
        MAXPA_VIRT = 27,
        APX = 28,
        CPUID2_VIRT = 29,
        VE_REDUCTION = 30,
        ENHANCED_EVENT_FILTERING = 31,
        TDX_CONNECT_PARTITIONING = 32,
        MAXGPA_VIRT = 33,
        SKIP_PHYMEM_CACHE_WB = 34,
        DYNAMIC_PAMT = 36,
        FATAL_DIAGNOSTICS = 37,
        PAGE_RELEASE = 38,
        NRX = 39,
        ENHANCED_INTR_STATE = 40,
        NON_BLOCKING_EXPORT = 41,
        PERF_MASK = 42,
        SCAN_EXPORT_RESTORE = 43,
        IMPORT_PAGE_STATUS = 44,
        ENHANCED_INTR_VIRTUALIZATION = 45,
        VE_INFO_INTR_STATE = 46,
        UPDATE_COMPATIBILITY = 47,
        SERVTD_REBIND = 48,
        TDID_VMID_REPORTING = 49,
        QUOTE = 50,
        ENHANCED_DEMOTE_INTERRUPTIBILITY = 51,
        DEBUG_RO_TD_MIGRATION = 52,
        SYS_DISABLE = 53,
        LIST_ERROR_COUNT = 54,
        SEALKEY_128 = 56,
        SEALKEY_256 = 57,
    }
}

impl Xfam {
    /// AVX-512: all or none.
    pub const AVX512: Self = Self::OPMASK.union(Self::ZMM_HI256).union(Self::HI16_ZMM);
    /// CET: all or none.
    pub const CET: Self = Self::CET_U.union(Self::CET_S);
    /// AMX: all or none.
    pub const AMX: Self = Self::TILECFG.union(Self::TILEDATA);
    /// The features of every TD that the operator does not configure otherwise, as far as the module allows it. The set does
    /// not grow with the module, because a TD's measured state includes its XFAM.
    pub const USUAL: Self = Self::X87
        .union(Self::SSE)
        .union(Self::AVX)
        .union(Self::AVX512)
        .union(Self::PKRU)
        .union(Self::AMX);
}

/// A set bit of a mask. It prints as its name, or as "bit N".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit {
    /// Name of the bit, if it has one.
    pub name: Option<&'static str>,
    /// Bit number.
    pub number: u32,
}

impl fmt::Display for Bit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "bit {}", self.number),
        }
    }
}

/// Returns the set bits of a mask in ascending order.
pub fn names<F: Flags<Bits = u64>>(mask: F) -> impl Iterator<Item = Bit> {
    let is_set = move |number: &u32| mask.bits() >> number & 1 != 0;
    (0..u64::BITS).filter(is_set).map(|number| {
        let mut named = F::FLAGS.iter().filter(|flag| flag.is_named());
        let named = named.find(|flag| flag.value().bits() == 1 << number);
        Bit {
            name: named.map(|flag| flag.name()),
            number,
        }
    })
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec::Vec};

    use super::*;

    #[test]
    fn a_mask_prints_the_names_of_its_bits() {
        let some = Attributes::SEPT_VE_DISABLE | Attributes::DEBUG;
        assert_eq!(some.to_string(), "DEBUG, SEPT_VE_DISABLE");
        assert_eq!(Attributes::default().to_string(), "");
        let unknown = Xfam::from_bits_retain(1 << 63) | Xfam::CET;
        assert_eq!(unknown.to_string(), "CET_U, CET_S, bit 63");
    }

    #[test]
    fn a_name_stands_for_one_bit() {
        fn check<F: Flags<Bits = u64>>() {
            let all: Vec<_> = F::FLAGS.iter().map(|flag| flag.value().bits()).collect();
            assert!(all.iter().all(|bits| bits.count_ones() == 1));
            assert_eq!(names(F::all()).count(), all.len());
        }
        check::<Attributes>();
        check::<Xfam>();
        check::<ConfigFlags>();
        check::<TdCtls>();
        check::<FeatureParavirtCtls>();
        check::<Features0>();
    }
}
