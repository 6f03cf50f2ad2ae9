//! The VMX capability MSRs of a TD: the possible configurations of its L2 VMs.
//!
//! Source: TDX module 1.5.01, virt_msr_helpers and the L2 VMCS control values.

use seam::abi::Attributes;

use super::vmcs::{base, features, required};
use crate::cpuid::{Msrs, Native};
use crate::field::Structure;
use crate::td::{Tdcs, tdcs};
use crate::vcpu::fields;
use crate::{Change, Machine, Release};

/// Exits with information on I/O; the TRUE MSRs exist; events without error code can be injected.
const BASIC: u64 = 1 << 54 | 1 << 55 | 1 << 56;
/// Unrestricted guests; HLT and shutdown states; PT; 4 CR3 targets; VMWRITE to any field; events without length.
const MISC: u64 = 0x6004_40E0;
/// Execute-only, 2 MiB and 1 GiB pages; advanced exit information.
const EPT_VPID: u64 = 0x43_0001;
const EPT_SHADOW_STACK: u64 = 1 << 23;
const EPT_HLAT_PREFIX: u64 = 0x3F << 48;

/// Controls that a TD may set freely.
const PROC_BASED_FREE: u64 = 0x48D9_9204;
const PROC_BASED2_FREE: u64 = 0x0051_3E0C;
const PROC_BASED3_FREE: u64 = 0xE;
const ENTRY_FREE: u64 = 0x200;
const RDPMC_EXITING: u64 = 1 << 11;
const CR0: u64 = 0x21;
const CR0_FREE: u64 = 0x8005_001F;
const CR4: u64 = 0x2040;
const CR4_FREE: u64 = 0x03FF_1FBF;

/// Returns a capability MSR: the low half holds the bits that must be 1, the high half those that may be 1.
const fn capability(initial: u64, free: u64) -> u64 {
    initial & !free | (initial | free) << 32
}

/// Returns the CR4 bits that a TD may let an L2 VM write.
pub fn l2_cr4_free(msrs: &Msrs, xfam: u64, td_attributes: u64) -> u64 {
    const KL: u64 = 1 << 19;
    let unless = |condition: bool, bit: u32| if condition { 0 } else { 1 << bit };
    let missing = unless(xfam >> 9 & 1 != 0, 22)
        | unless(xfam >> 11 & 3 == 3, 23)
        | unless(td_attributes & Attributes::PKS.bits() != 0, 24)
        | unless(xfam >> 14 & 1 != 0, 25)
        | KL;
    CR4_FREE & !msrs.cr4_fixed0 & msrs.cr4_fixed1 & !missing
}

/// Sets the values that the TD reads in these MSRs.
pub fn fill<M: Machine>(release: Release, native: &Native, tdcs: &Tdcs<'_, M>) {
    let (msrs, features) = (&native.msrs, features(native, tdcs));
    let (xfam, td_attributes) = (
        tdcs.get(tdcs::field::XFAM),
        tdcs.get(tdcs::field::ATTRIBUTES),
    );
    let perfmon = td_attributes & Attributes::PERFMON.bits() != 0;
    let controls = base::of_td(msrs, features, td_attributes);
    let proc_based3 = if release.does(Change::REVISED_VMCS) {
        0
    } else {
        base::VIRTUAL_SPEC_CTRL
    };
    let free_rdpmc = if perfmon { RDPMC_EXITING } else { 0 };
    let configured2 = base::configured_proc_based2(features);
    let proc_based2 = base::PROC_BASED2_L2 & !base::CONFIGURED_PROC_BASED2
        | required(msrs.proc_based2)
        | configured2;
    let cr4_free = l2_cr4_free(msrs, xfam, td_attributes);
    let shadow_stack = if xfam >> 12 & 1 != 0 {
        EPT_SHADOW_STACK
    } else {
        0
    };
    for (msr, value) in [
        (0x480, BASIC),
        (0x485, MISC),
        (0x486, CR0 & !CR0_FREE),
        (0x487, CR0 | CR0_FREE),
        (0x488, CR4 & !cr4_free),
        (0x489, CR4 | cr4_free),
        (
            0x48B,
            capability(proc_based2, PROC_BASED2_FREE | configured2),
        ),
        (
            0x48C,
            EPT_VPID | shadow_stack | msrs.ept_vpid_cap & EPT_HLAT_PREFIX,
        ),
        (0x48D, capability(controls.pin_based, 0)),
        (
            0x48E,
            capability(controls.proc_based, PROC_BASED_FREE | free_rdpmc),
        ),
        (0x48F, capability(controls.exit, 0)),
        (0x490, capability(controls.entry, ENTRY_FREE)),
        (0x491, 0),
        (0x492, proc_based3 | PROC_BASED3_FREE),
    ] {
        if let Some(field) = fields::virtual_vmx_msr(msr) {
            tdcs.set(field, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_control_may_be_both() {
        assert_eq!(capability(0b01, 0b10), 0b11 << 32 | 0b01);
        assert_eq!(capability(0b11, 0b10), 0b11 << 32 | 0b01);
    }

    #[test]
    fn an_l2_vm_gets_no_cr4_bit_that_its_td_does_not_have() {
        let msrs = Msrs {
            cr4_fixed0: 0x2000,
            cr4_fixed1: 0x03F7_7FFF,
            ..Msrs::default()
        };
        assert_eq!(l2_cr4_free(&msrs, 0, 0) | CR4, 0x37_3FFF);
        assert_eq!(l2_cr4_free(&msrs, 1 << 9, 0) >> 22 & 1, 1);
    }
}
