//! Fields of the TDVPS and TDCS that running a vCPU needs, in addition to those in `td`.
//!
//! Source: TDX module 1.5.01, field tables. A field that is not in the tables has an offset of our own.

use crate::field::Field;

/// The words of the TD VMCS.
pub const TD_VMCS: Field = Field::u64(0x1000);

/// Returns the words of the VMCS of an L2 VM (1 to 3).
pub const fn l2_vmcs(vm: u8) -> Field {
    Field::u64(0x6000 + (vm as u32 - 1) * 0x3000)
}

/// The virtual APIC's processor priority.
pub const VAPIC_PPR: Field = Field::u32(0x20A0);

/// #VE information: the exit reason. The others follow.
pub const VE_EXIT_REASON: Field = Field::u32(0x00);
/// All ones until the guest has fetched the information.
pub const VE_VALID: Field = Field::u32(0x04);
/// Exit qualification.
pub const VE_QUALIFICATION: Field = Field::u64(0x08);
/// Guest-linear address.
pub const VE_GLA: Field = Field::u64(0x10);
/// Guest-physical address.
pub const VE_GPA: Field = Field::u64(0x18);
/// EPTP index.
pub const VE_EPTP_INDEX: Field = Field::u16(0x20);
/// Instruction length.
pub const VE_INSTRUCTION_LENGTH: Field = Field::u32(0x24);
/// Instruction information.
pub const VE_INSTRUCTION_INFO: Field = Field::u32(0x28);

/// The reason for the #VE, for version 1 of TDG.VP.VEINFO.GET.
pub const VE_CATEGORY: Field = Field::u8(0x2C);
/// The guest's interruptibility when the #VE was raised.
pub const VE_INTERRUPTIBILITY: Field = Field::u32(0x38);
/// IA32_MISC_ENABLE as the guest reads it.
pub const MISC_ENABLE: Field = Field::u64(0xCD8);
/// MSR_SMI_COUNT as the guest reads it.
pub const SMI_COUNT: Field = Field::u64(0xCE0);
/// IA32_PERFEVTSELx: eight of them.
pub const PERFEVTSEL: Field = Field::u64(0xA98);

/// The index of the vCPU in its TD.
pub const VCPU_INDEX: Field = Field::u32(0x1CC);
/// CPUID raises #VE in supervisor mode for every leaf.
pub const CPUID_SUPERVISOR_VE: Field = Field::u8(0x1D8);
/// CPUID raises #VE in user mode for every leaf.
pub const CPUID_USER_VE: Field = Field::u8(0x1D9);
/// TSC at the last TD exit.
pub const LAST_EXIT_TSC: Field = Field::u64(0x1E0);
/// The host has requested an NMI.
pub const PEND_NMI: Field = Field::u8(0x1E8);
/// An IRET had unblocked NMIs when it caused the last VM exit.
pub const NMI_UNBLOCKING_DUE_TO_IRET: Field = Field::u8(0x1E9);
/// XFAM of this vCPU.
pub const XFAM: Field = Field::u64(0x1F0);
/// Number of used entries of LAST_EPF_GPA_LIST.
pub const LAST_EPF_GPA_LIST_IDX: Field = Field::u8(0x1F8);
/// The same instruction has faulted so often that the host may be zero-stepping.
pub const POSSIBLY_EPF_STEPPING: Field = Field::u8(0x1F9);
/// Guest-physical addresses on which the instruction at one RIP has faulted: 32 entries.
pub const LAST_EPF_GPA_LIST: Field = Field::u64(0x700);
/// Per row of the CPUID table: bit 0 #VE in supervisor mode, bit 1 in user mode.
pub const CPUID_CONTROL: Field = Field::u8(0x900);
/// TSC when the host started to hold up a call of the guest, while it still does.
pub const HP_LOCK_BUSY_START: Field = Field::u64(0x200);
/// Nonzero while the host holds up a call of the guest.
pub const HP_LOCK_BUSY: Field = Field::u8(0x208);
/// TSC deadline per VM; all ones for none.
pub const TSC_DEADLINE: Field = Field::u64(0x268);
/// The posted-interrupt descriptor set by the host.
pub const SHADOW_PID: Field = Field::u64(0x358);
/// The pin-based controls set by the host.
pub const SHADOW_PIN_BASED: Field = Field::u32(0x378);
/// The posted-interrupt notification vector set by the host.
pub const SHADOW_VECTOR: Field = Field::u16(0x3A8);
/// The secondary controls, per VM.
pub const SHADOW_PROC_BASED2: Field = Field::u32(0x3B0);
/// The shared EPT's root set by the host, per VM.
pub const SHADOW_SHARED_EPTP: Field = Field::u64(0x3C0);
/// Addresses used by L2 VMs, per kind and VM; all ones for none.
pub const L2_ADDRESSES: [Field; 4] = [
    Field::u64(0x3E0),
    Field::u64(0x400),
    Field::u64(0x460),
    Field::u64(0x480),
];
/// CR0 bits that no L2 VM owns, and the values that it reads in them; the same for CR4.
pub const BASE_L2_CR: [Field; 4] = [
    Field::u64(0x2A8),
    Field::u64(0x2B0),
    Field::u64(0x2B8),
    Field::u64(0x2C0),
];
/// CR0 and CR4 masks and shadows set by an L1 VMM, per VM.
pub const SHADOW_CR: [Field; 4] = [
    Field::u64(0x2C8),
    Field::u64(0x2E8),
    Field::u64(0x308),
    Field::u64(0x328),
];
/// "No vector" in the posted-interrupt notification vector.
pub const NO_VECTOR: u64 = 0xFFFF;
/// IA32_SPEC_CTRL.DDPD_U.
pub const SPEC_CTRL_DDPD_U: u64 = 1 << 8;
/// XCOMP_BV in the header of the extended-state area.
pub const XCOMP_BV: Field = Field::u64(0x3000 + 520);

/// TDCS: the offset of each extended-state component.
pub const XBUFF_OFFSETS: Field = Field::u32(0x190);
/// TDCS: IA32_ARCH_CAPABILITIES as the TD reads it.
pub const VIRTUAL_ARCH_CAPABILITIES: Field = Field::u64(0x778);
/// TDCS: two words for each row of the CPUID table.
pub const CPUID_VALUES: Field = Field::u64(0x800);

/// TDCS: the MSR bitmaps.
pub const MSR_BITMAPS: Field = Field::u64(0x2000);

/// Returns the field of the TDCS that holds a VMX capability MSR as the TD reads it, if the TD can read it.
pub const fn virtual_vmx_msr(msr: u32) -> Option<Field> {
    Some(Field::u64(match msr {
        0x480 => 0x700,
        0x485..=0x489 => 0x708 + (msr - 0x485) * 8,
        0x48B..=0x492 => 0x730 + (msr - 0x48B) * 8,
        _ => return None,
    }))
}
