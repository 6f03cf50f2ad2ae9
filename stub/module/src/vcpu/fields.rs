//! Fields of the TDVPS and TDCS, beside those that `td` has, that running a vCPU needs.
//!
//! Source: TDX module 1.5.01, field tables; a field that the tables do not have is at a place of our own.

use crate::field::Field;

/// The words of the TD VMCS.
pub const TD_VMCS: Field = Field::u64(0x1000);

/// The words of the VMCS of an L2 VM (1 to 3).
pub const fn l2_vmcs(vm: u8) -> Field {
    Field::u64(0x6000 + (vm as u32 - 1) * 0x3000)
}

/// The virtual APIC's processor priority.
pub const VAPIC_PPR: Field = Field::u32(0x20A0);

/// #VE information: the exit reason. The others follow.
pub const VE_EXIT_REASON: Field = Field::u32(0x00);
/// All ones while the information is waiting to be fetched.
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

/// The number of the vCPU in its TD.
pub const VCPU_INDEX: Field = Field::u32(0x1CC);
/// CPUID raises #VE in supervisor mode, whatever the leaf.
pub const CPUID_SUPERVISOR_VE: Field = Field::u8(0x1D8);
/// CPUID raises #VE in user mode, whatever the leaf.
pub const CPUID_USER_VE: Field = Field::u8(0x1D9);
/// TSC at the last TD exit.
pub const LAST_EXIT_TSC: Field = Field::u64(0x1E0);
/// The host wants an NMI injected.
pub const PEND_NMI: Field = Field::u8(0x1E8);
/// An IRET had unblocked NMIs when it caused the last VM exit.
pub const NMI_UNBLOCKING_DUE_TO_IRET: Field = Field::u8(0x1E9);
/// XFAM of this vCPU.
pub const XFAM: Field = Field::u64(0x1F0);
/// Entries of LAST_EPF_GPA_LIST that are used.
pub const LAST_EPF_GPA_LIST_IDX: Field = Field::u8(0x1F8);
/// The same instruction has faulted so often that the host may be stepping.
pub const POSSIBLY_EPF_STEPPING: Field = Field::u8(0x1F9);
/// The guest-physical addresses that the instruction at one RIP has faulted on: 32 of them.
pub const LAST_EPF_GPA_LIST: Field = Field::u64(0x700);
/// Per row of the CPUID table: bit 0 #VE in supervisor mode, bit 1 in user mode.
pub const CPUID_CONTROL: Field = Field::u8(0x900);
/// TSC when the host first kept a call of the guest waiting, while it still does.
pub const HP_LOCK_BUSY_START: Field = Field::u64(0x200);
/// The host keeps a call of the guest waiting.
pub const HP_LOCK_BUSY: Field = Field::u8(0x208);
/// TSC deadline per VM; all ones for none.
pub const TSC_DEADLINE: Field = Field::u64(0x268);
/// The posted-interrupt descriptor that the host gave.
pub const SHADOW_PID: Field = Field::u64(0x358);
/// The pin-based controls that the host gave.
pub const SHADOW_PIN_BASED: Field = Field::u32(0x378);
/// The posted-interrupt notification vector that the host gave.
pub const SHADOW_VECTOR: Field = Field::u16(0x3A8);
/// The secondary controls, per VM.
pub const SHADOW_PROC_BASED2: Field = Field::u32(0x3B0);
/// The shared EPT's root that the host gave, per VM.
pub const SHADOW_SHARED_EPTP: Field = Field::u64(0x3C0);
/// Addresses that L2 VMs use, per kind and VM; all ones for none.
pub const L2_ADDRESSES: [Field; 4] = [
    Field::u64(0x3E0),
    Field::u64(0x400),
    Field::u64(0x460),
    Field::u64(0x480),
];
/// CR0 bits that no L2 VM owns, and what it reads in them; the same for CR4.
pub const BASE_L2_CR: [Field; 4] = [
    Field::u64(0x2A8),
    Field::u64(0x2B0),
    Field::u64(0x2B8),
    Field::u64(0x2C0),
];
/// CR0 and CR4 masks and shadows that an L1 VMM gave, per VM.
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

/// In the TDCS: the offset of each extended-state component.
pub const XBUFF_OFFSETS: Field = Field::u32(0x190);
/// In the TDCS: IA32_ARCH_CAPABILITIES as the TD reads it.
pub const VIRTUAL_ARCH_CAPABILITIES: Field = Field::u64(0x778);
/// In the TDCS: two words for each row of the CPUID table.
pub const CPUID_VALUES: Field = Field::u64(0x800);

/// In the TDCS: the MSR bitmaps.
pub const MSR_BITMAPS: Field = Field::u64(0x2000);

/// In the TDCS: a VMX capability MSR as the TD reads it, for those that it can read.
pub const fn virtual_vmx_msr(msr: u32) -> Option<Field> {
    Some(Field::u64(match msr {
        0x480 => 0x700,
        0x485..=0x489 => 0x708 + (msr - 0x485) * 8,
        0x48B..=0x492 => 0x730 + (msr - 0x48B) * 8,
        _ => return None,
    }))
}
