//! The TD VMCS at TDH.VP.INIT: the guest's reset state, and the controls derived from the CPU and the TD.

use seam::abi::{Attributes, FeatureParavirtCtls, TdCtls};

use super::vmx_caps::l2_cr4_free;
use crate::call::Call;
use crate::cpuid::{Choices, Features, Native};
use crate::field::Structure;
use crate::td::{Tdcs, Tdr, Tdvps, tdcs, tdr, tdvps};
use crate::vcpu::{Field, Vcpu, fields};
use crate::{Change, Machine};

/// TDCX page of the MSR bitmaps. Page 4 is all zeros.
const MSR_BITMAPS: u32 = tdcs::page::MSR_BITMAPS;
const ZERO_PAGE: u32 = 4;

/// The values common to every TD.
///
/// Source: TDX module 1.5.01, td_vmcs_init.
const CONSTANT: &[(Field, u64)] = &[
    (Field::DR7, 0x400),
    (Field::RIP, 0xFFFF_FFF0),
    (Field::RFLAGS, 2),
    (Field::CS_LIMIT, 0xFFFF_FFFF),
    (Field::CS_ACCESS, 0xC09B),
    (Field::DS_LIMIT, 0xFFFF_FFFF),
    (Field::DS_ACCESS, 0xC093),
    (Field::ES_LIMIT, 0xFFFF_FFFF),
    (Field::ES_ACCESS, 0xC093),
    (Field::FS_LIMIT, 0xFFFF_FFFF),
    (Field::FS_ACCESS, 0xC093),
    (Field::GS_LIMIT, 0xFFFF_FFFF),
    (Field::GS_ACCESS, 0xC093),
    (Field::SS_LIMIT, 0xFFFF_FFFF),
    (Field::SS_ACCESS, 0xC093),
    (Field::LDTR_LIMIT, 0xFFFF),
    (Field::LDTR_ACCESS, 0x1_0082),
    (Field::TR_LIMIT, 0xFFFF),
    (Field::TR_ACCESS, 0x8B),
    (Field::GDTR_LIMIT, 0xFFFF),
    (Field::PERF_GLOBAL_CTRL, 0xFF),
    (Field::PAT, 0x0007_0406_0007_0406),
    (Field::EFER, 0x901),
    (Field::CR0, 0x21),
    (Field::CR4, 0x2040),
    (Field::APIC_ACCESS, u64::MAX),
    (Field::POSTED_INT_VECTOR, fields::NO_VECTOR),
    (Field::POSTED_INT_DESCRIPTOR, u64::MAX),
    (Field::EXCEPTION_BITMAP, 1 << 18),
    (Field::IO_BITMAP_A, u64::MAX),
    (Field::IO_BITMAP_B, u64::MAX),
    (Field::EPTP_LIST, u64::MAX),
    (Field::VMREAD_BITMAP, u64::MAX),
    (Field::VMWRITE_BITMAP, u64::MAX),
    (Field::ENCLS_EXITING, u64::MAX),
    (Field::ENCLV_EXITING, u64::MAX),
    (Field::PML_ADDRESS, u64::MAX),
    (Field::PCONFIG_EXITING, u64::MAX),
    (Field::EXECUTIVE_VMCS, u64::MAX),
    (Field::EXIT_MSR_STORE, u64::MAX),
    (Field::EXIT_MSR_LOAD, u64::MAX),
    (Field::ENTRY_MSR_LOAD, u64::MAX),
    (Field::VMCS_LINK, u64::MAX),
    (Field::PDPTE0, u64::MAX),
    (Field::PDPTE1, u64::MAX),
    (Field::PDPTE2, u64::MAX),
    (Field::PDPTE3, u64::MAX),
];

/// Controls: the fixed part, the bits that the CPU requires, and those that follow from the TD's configuration.
pub(super) mod base {
    use seam::abi::Attributes;

    use super::required;
    use crate::cpuid::{Features, Msrs};

    pub const PIN_BASED: u64 = 0x29;
    pub const PROC_BASED: u64 = 0x9122_0088;
    pub const PROC_BASED2: u64 = 0x133C_B3FA;
    /// Like `PROC_BASED2`, for an L2 VM.
    pub const PROC_BASED2_L2: u64 = 0x1338_B3FA;
    /// Tertiary control: virtualise IA32_SPEC_CTRL.
    pub const VIRTUAL_SPEC_CTRL: u64 = 0x80;
    pub const EXIT: u64 = 0x1F3C_8204;
    pub const ENTRY: u64 = 0x003E_C004;

    const MWAIT_EXITING: u64 = 1 << 10;
    const RDPMC_EXITING: u64 = 1 << 11;
    const MONITOR_EXITING: u64 = 1 << 29;
    const USER_WAIT_PAUSE: u64 = 1 << 26;
    const PCONFIG: u64 = 1 << 27;
    /// Exit controls: load and save IA32_PERF_GLOBAL_CTRL.
    const EXIT_PERF_GLOBAL: u64 = EXIT_LOAD_PERF_GLOBAL | 1 << 30;
    pub const EXIT_LOAD_PERF_GLOBAL: u64 = 1 << 12;
    pub const ENTRY_PERF_GLOBAL: u64 = 1 << 13;
    const ENTRY_PKRS: u64 = 1 << 22;
    /// Secondary controls that follow from a TD's CPUID.
    pub const CONFIGURED_PROC_BASED2: u64 = USER_WAIT_PAUSE | PCONFIG;

    const fn when(condition: bool, bits: u64) -> u64 {
        if condition { bits } else { 0 }
    }

    /// Returns the secondary controls that follow from a TD's CPUID.
    pub const fn configured_proc_based2(features: Features) -> u64 {
        when(features.waitpkg, USER_WAIT_PAUSE) | when(features.mktme, PCONFIG)
    }

    /// Controls common to a TD and its L2 VMs.
    pub struct Common {
        pub pin_based: u64,
        pub proc_based: u64,
        pub exit: u64,
        pub entry: u64,
    }

    /// Returns the controls common to a TD and its L2 VMs.
    pub const fn of_td(msrs: &Msrs, features: Features, td_attributes: u64) -> Common {
        let perfmon = td_attributes & Attributes::PERFMON.bits() != 0;
        let perf_global =
            td_attributes & (Attributes::PERFMON.bits() | Attributes::DEBUG.bits()) != 0;
        let pkrs = td_attributes & (Attributes::PKS.bits() | Attributes::DEBUG.bits()) != 0;
        Common {
            pin_based: PIN_BASED | required(msrs.pin_based),
            proc_based: PROC_BASED
                | required(msrs.proc_based)
                | when(!features.monitor, MWAIT_EXITING | MONITOR_EXITING)
                | when(!perfmon, RDPMC_EXITING),
            exit: EXIT | required(msrs.exit) | when(perf_global, EXIT_PERF_GLOBAL),
            entry: ENTRY
                | required(msrs.entry)
                | when(perf_global, ENTRY_PERF_GLOBAL)
                | when(pkrs, ENTRY_PKRS),
        }
    }
}

/// Tertiary control: guest-physical addresses have 52 bits.
const GUEST_PHYSICAL_WIDTH: u64 = 1 << 5;

/// Returns the bits that a capability MSR requires.
pub(super) const fn required(capability: u64) -> u64 {
    capability & 0xFFFF_FFFF
}

/// Fills the VMCS and its shadow fields in the TDVPS.
pub fn fill<M: Machine>(
    cx: Call<'_, M>,
    tdr: Tdr<'_>,
    tdcs: &Tdcs<'_, M>,
    tdvps: &Tdvps<'_, M>,
    vcpu: &Vcpu<'_>,
) {
    for (field, value) in CONSTANT {
        vcpu.set_vmcs(*field, *value);
    }
    let zero_page = tdcx(tdr, ZERO_PAGE);
    let guarded = |page| tdvps.get(tdvps::field::TDVPS_PAGE_PA.at(page));
    let masks = cr_masks(cx, tdcs);
    for (field, value) in [
        (Field::VIRTUAL_APIC, guarded(2)),
        (Field::MSR_BITMAP, tdcx(tdr, MSR_BITMAPS)),
        (Field::VE_INFO_ADDRESS, guarded(0)),
        (Field::PASID_LOW, zero_page),
        (Field::PASID_HIGH, zero_page),
        (Field::SHARED_EPTP, zero_page),
        (Field::HKID, tdr.hkid().into()),
        (Field::VPID, u64::from(tdr.hkid()) << 2),
        (
            Field::EPTP,
            cx.machine
                .platform()
                .without_keyid(tdcs.get(tdcs::field::EPTP)),
        ),
        (Field::TSC_MULTIPLIER, tdcs.get(tdcs::field::TSC_MULTIPLIER)),
        (Field::TSC_OFFSET, tdcs.get(tdcs::field::TSC_OFFSET)),
        (
            Field::SPEC_CTRL_MASK,
            tdcs.get(tdcs::field::IA32_SPEC_CTRL_MASK),
        ),
        (Field::CR0_MASK, masks.l1[0]),
        (Field::CR0_SHADOW, masks.l1[1]),
        (Field::CR4_MASK, masks.l1[2]),
        (Field::CR4_SHADOW, masks.l1[3]),
    ] {
        vcpu.set_vmcs(field, value);
    }
    set_controls(cx, tdcs, vcpu);

    let vms = 0..=tdcs.get(tdcs::field::NUM_L2_VMS) as u32;
    vcpu.set(fields::SHADOW_PID, u64::MAX);
    vcpu.set(fields::SHADOW_PIN_BASED, vcpu.vmcs(Field::PIN_BASED));
    vcpu.set(fields::SHADOW_VECTOR, fields::NO_VECTOR);
    let native = cx.native();
    let on_every_td = required(native.msrs.proc_based2) | native.user_wait_pause();
    for vm in vms {
        let initial = if vm == 0 {
            base::PROC_BASED2
        } else {
            base::PROC_BASED2_L2
        };
        vcpu.set(fields::SHADOW_PROC_BASED2.at(vm), initial | on_every_td);
        vcpu.set(fields::SHADOW_SHARED_EPTP.at(vm), u64::MAX);
        vcpu.set(fields::TSC_DEADLINE.at(vm), u64::MAX);
        for addresses in fields::L2_ADDRESSES {
            vcpu.set(addresses.at(vm), u64::MAX);
        }
        // An L2 VM owns no bit until its VMM sets the masks.
        let shadows = if vm == 0 {
            masks.l1
        } else {
            [u64::MAX, 0, u64::MAX, 0]
        };
        for (field, value) in fields::SHADOW_CR.into_iter().zip(shadows) {
            vcpu.set(field.at(vm), value);
        }
    }
    for (field, value) in fields::BASE_L2_CR.into_iter().zip(masks.l2) {
        vcpu.set(field, value);
    }
}

/// Returns the address of a TDCS page with the TD's KeyID.
fn tdcx(tdr: Tdr<'_>, index: u32) -> u64 {
    tdr.get(tdr::field::TDCX_PA.at(index))
}

fn set_controls<M: Machine>(cx: Call<'_, M>, tdcs: &Tdcs<'_, M>, vcpu: &Vcpu<'_>) {
    let native = cx.native();
    let (msrs, features) = (&native.msrs, features(native, tdcs));
    let release = cx.module.release;
    let attributes = tdcs.get(tdcs::field::ATTRIBUTES);
    let common = base::of_td(msrs, features, attributes);
    let proc_based2 =
        base::PROC_BASED2 | required(msrs.proc_based2) | base::configured_proc_based2(features);
    let width = if tdcs.is_wide() {
        GUEST_PHYSICAL_WIDTH
    } else {
        0
    };
    let hides_ddpd = native.has_ddpd() != features.ddpd;
    let proc_based3 = if hides_ddpd || !release.does(Change::REVISED_VMCS) {
        base::VIRTUAL_SPEC_CTRL
    } else {
        0
    };
    let (mut exit, mut entry) = (common.exit, common.entry);
    if release.does(Change::REVISED_VMCS) {
        // The defence against single-stepping counts the guest's instructions.
        exit |= base::EXIT_LOAD_PERF_GLOBAL;
        entry |= base::ENTRY_PERF_GLOBAL;
        if attributes & Attributes::PERFMON.bits() == 0 {
            vcpu.set_vmcs(Field::PERF_GLOBAL_CTRL, 1 << 32);
        }
    }
    for (field, value) in [
        (Field::PIN_BASED, common.pin_based),
        (Field::PROC_BASED, common.proc_based),
        (Field::PROC_BASED2, proc_based2),
        (Field::PROC_BASED3, proc_based3 | width),
        (Field::EXIT_CONTROLS, exit),
        (Field::ENTRY_CONTROLS, entry),
    ] {
        vcpu.set_vmcs(field, value);
    }
}

/// Returns the features of a TD, from its CPUID values and its choices.
pub fn features<M: Machine>(native: &Native, tdcs: &Tdcs<'_, M>) -> Features {
    let controls = tdcs.get(tdcs::field::TD_CTLS);
    let paravirtual = tdcs.get(tdcs::field::FEATURE_PARAVIRT_CTLS);
    let choices = Choices {
        controls: TdCtls::from_bits_retain(controls),
        paravirtual: FeatureParavirtCtls::from_bits_retain(paravirtual),
    };
    Features::of(native.table, choices, |row| cpuid_values(tdcs, row))
}

/// Returns a TD's CPUID values in a row of the table.
pub fn cpuid_values<M: Machine>(tdcs: &Tdcs<'_, M>, row: usize) -> [u32; 4] {
    let low = tdcs.get(fields::CPUID_VALUES.at(2 * row as u32));
    let high = tdcs.get(fields::CPUID_VALUES.at(2 * row as u32 + 1));
    [
        low as u32,
        (low >> 32) as u32,
        high as u32,
        (high >> 32) as u32,
    ]
}

/// Masks and shadows of CR0 and CR4. A bit set in a mask is not owned by the guest, and reads as in the shadow.
struct CrMasks {
    /// Those of the TD itself: CR0 mask and shadow, CR4 mask and shadow.
    l1: [u64; 4],
    /// The bits that no L2 VM owns.
    l2: [u64; 4],
}

fn cr_masks<M: Machine>(cx: Call<'_, M>, tdcs: &Tdcs<'_, M>) -> CrMasks {
    const PE: u64 = 1 << 0;
    const NE: u64 = 1 << 5;
    const NW_CD: u64 = 1 << 29 | 1 << 30;
    const PG: u64 = 1 << 31;
    const CR0_RESERVED: u64 = 0xFFFF_FFFF_1FFA_FFC0;
    const MCE: u64 = 1 << 6;
    const VMXE: u64 = 1 << 13;
    const SMXE: u64 = 1 << 14;
    /// Key Locker, which no TD has.
    const KL: u64 = 1 << 19;
    const CR4_RESERVED: u64 = !0 << 26 | 1 << 15;
    let msrs = &cx.native().msrs;
    let (xfam, attributes) = (
        tdcs.get(tdcs::field::XFAM),
        tdcs.get(tdcs::field::ATTRIBUTES),
    );

    let cr0_fixed = msrs.cr0_fixed0 | !msrs.cr0_fixed1;
    let cr0 = cr0_fixed & !PG | NE | NW_CD | CR0_RESERVED;
    let unless = |condition: bool, bit: u32| if condition { 0 } else { 1 << bit };
    let cr4 = msrs.cr4_fixed0
        | !msrs.cr4_fixed1
        | MCE
        | VMXE
        | SMXE
        | CR4_RESERVED
        | unless(xfam >> 9 & 1 != 0, 22)
        | unless(xfam >> 11 & 3 == 3, 23)
        | unless(xfam >> 14 & 1 != 0, 25)
        | KL
        | unless(attributes & Attributes::PKS.bits() != 0, 24);
    CrMasks {
        l1: [
            cr0 | PE,
            msrs.cr0_fixed0 | PE | NE,
            cr4,
            msrs.cr4_fixed0 & !VMXE | MCE,
        ],
        l2: [
            cr0 & !PE,
            msrs.cr0_fixed0 & !PG & !PE | NE,
            !l2_cr4_free(msrs, xfam, attributes),
            msrs.cr4_fixed0 | MCE | VMXE,
        ],
    }
}
