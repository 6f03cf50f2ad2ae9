//! The fields of the TD VMCS.
//!
//! Source: TDX module 1.5.01, TD VMCS field table.

use super::table::{HPA, NONE, PRIVATE_GPA, PRIVATE_HPA, R, RW, Row, SHARED_HPA, part, rw, vmcs};

#[rustfmt::skip]
/// The rows, in the order of the encodings.
pub const ROWS: &[Row] = &[
    vmcs(0x0000, 1, NONE, R, NONE), // VPID
    vmcs(0x0002, 1, RW, RW, NONE), // Posted-interrupt notification vector
    vmcs(0x0004, 1, NONE, R, NONE), // EPTP index
    vmcs(0x0006, 1, NONE, R, NONE), // HLAT prefix size
    vmcs(0x0800, 1, NONE, RW, NONE), // Guest ES selector
    vmcs(0x0802, 1, NONE, RW, NONE), // Guest CS selector
    vmcs(0x0804, 1, NONE, RW, NONE), // Guest SS selector
    vmcs(0x0806, 1, NONE, RW, NONE), // Guest DS selector
    vmcs(0x0808, 1, NONE, RW, NONE), // Guest FS selector
    vmcs(0x080A, 1, NONE, RW, NONE), // Guest GS selector
    vmcs(0x080C, 1, NONE, RW, NONE), // Guest LDTR selector
    vmcs(0x080E, 1, NONE, RW, NONE), // Guest TR selector
    vmcs(0x0810, 1, NONE, RW, NONE), // Guest Interrupt Status
    vmcs(0x0812, 1, NONE, RW, NONE), // PML Index
    vmcs(0x0814, 1, NONE, RW, NONE), // Guest UINV
    vmcs(0x2000, 2, NONE, R, NONE), // I/O-Bitmap Address n
    vmcs(0x2004, 1, R, R, NONE).holding(PRIVATE_HPA), // MSR-Bitmap Address
    vmcs(0x2006, 1, NONE, R, NONE).holding(HPA), // VM-exit MSR-store address
    vmcs(0x2008, 1, NONE, R, NONE).holding(HPA), // VM-exit MSR-load address
    vmcs(0x200A, 1, NONE, R, NONE).holding(HPA), // VM-entry MSR-load address
    vmcs(0x200C, 1, NONE, NONE, NONE).holding(HPA), // Executive-VMCS Pointer
    vmcs(0x200E, 1, R, part(0xFFFF_FFFF_FFFF_F000), NONE).holding(SHARED_HPA), // PML address
    vmcs(0x2010, 1, R, RW, NONE), // Time-Stamp Counter Offset
    vmcs(0x2012, 1, NONE, NONE, NONE).holding(PRIVATE_HPA), // Virtual-APIC address
    vmcs(0x2014, 1, NONE, R, NONE).holding(HPA), // APIC-access address
    vmcs(0x2016, 1, part(0xFFFF_FFFF_FFFF_FFC0), part(0xFFFF_FFFF_FFFF_FFC0), NONE).holding(SHARED_HPA), // Posted-interrupt descriptor address
    vmcs(0x2018, 1, R, R, NONE), // VM-Function Controls
    vmcs(0x201A, 1, R, R, NONE), // EPTP
    vmcs(0x201C, 4, NONE, R, NONE), // EOI-exit bitmap n
    vmcs(0x2024, 1, R, R, NONE), // EPTP-list address
    vmcs(0x2026, 1, NONE, R, NONE), // VMREAD-bitmap address
    vmcs(0x2028, 1, NONE, R, NONE), // VMWRITE-bitmap address
    vmcs(0x202A, 1, NONE, R, NONE), // Virtualization-exception information address
    vmcs(0x202C, 1, NONE, RW, NONE), // XSS-Exiting Bitmap
    vmcs(0x202E, 1, NONE, R, NONE), // ENCLS-Exiting Bitmap
    vmcs(0x2032, 1, R, RW, NONE), // Time-Stamp Counter Multiplier
    vmcs(0x2034, 1, NONE, part(0x1), NONE), // Tertiary Processor-Based VM-Execution Controls
    vmcs(0x2036, 1, NONE, R, NONE), // ENCLV-Exiting Bitmap
    vmcs(0x2038, 1, NONE, R, NONE).holding(PRIVATE_HPA), // low PASID directory address
    vmcs(0x203A, 1, NONE, R, NONE).holding(PRIVATE_HPA), // high PASID directory address
    vmcs(0x203C, 1, rw(0x000F_FFFF_FFFF_F000), part(0x000F_FFFF_FFFF_F000), NONE).holding(SHARED_HPA), // Shared EPTP
    vmcs(0x203E, 1, NONE, R, NONE), // PCONFIG-Exiting Bitmap
    vmcs(0x2040, 1, NONE, R, NONE), // HLAT pointer
    vmcs(0x204A, 1, NONE, R, NONE), // IA32_SPEC_CTRL mask
    vmcs(0x204C, 1, NONE, R, NONE), // IA32_SPEC_CTRL shadow
    vmcs(0x2400, 1, NONE, R, NONE), // Guest-physical Address
    vmcs(0x2800, 1, NONE, NONE, NONE).holding(PRIVATE_HPA), // VMCS Link Pointer
    vmcs(0x2802, 1, NONE, part(0xFFC7), NONE), // IA32_DEBUGCTL
    vmcs(0x2804, 1, NONE, RW, NONE), // IA32_PAT
    vmcs(0x2806, 1, NONE, RW, NONE), // IA32_EFER
    vmcs(0x2808, 1, NONE, RW, NONE), // IA32_PERF_GLOBAL_CTRL
    vmcs(0x280A, 4, NONE, R, NONE).holding(PRIVATE_GPA), // PDPTEn
    vmcs(0x2814, 1, NONE, RW, NONE), // IA32_RTIT_CTL
    vmcs(0x2816, 1, NONE, RW, NONE), // IA32_LBR_CTL
    vmcs(0x2818, 1, NONE, RW, NONE), // IA32_GUEST_PKRS
    vmcs(0x4000, 1, rw(0x80), part(0x80), NONE), // Pin-Based VM-Execution Controls
    vmcs(0x4002, 1, NONE, part(0x6999_9A04), NONE), // Primary Processor-Based VM-Execution Controls
    vmcs(0x4004, 1, NONE, part(0xFFFB_FFFF), NONE), // Exception Bitmap
    vmcs(0x4006, 1, NONE, RW, NONE), // Page-fault error-code mask
    vmcs(0x4008, 1, NONE, RW, NONE), // Page-fault error-code match
    vmcs(0x400A, 1, NONE, RW, NONE), // CR3-Target Count
    vmcs(0x400C, 1, NONE, R, NONE), // VM-Exit Controls
    vmcs(0x400E, 1, NONE, R, NONE), // VM-exit MSR-store count
    vmcs(0x4010, 1, NONE, R, NONE), // VM-exit MSR-load count
    vmcs(0x4012, 1, NONE, R, NONE), // VM-Entry Controls
    vmcs(0x4014, 1, NONE, R, NONE), // VM-entry MSR-load count
    vmcs(0x4016, 1, NONE, R, NONE), // VM-entry interruption information
    vmcs(0x4018, 1, NONE, R, NONE), // VM-entry exception error code
    vmcs(0x401A, 1, NONE, R, NONE), // VM-entry instruction length
    vmcs(0x401C, 1, NONE, R, NONE), // TPR threshold
    vmcs(0x401E, 1, rw(0xC000_0000), part(0xC013_0C04), NONE), // Secondary Processor-Based VM-Execution Controls
    vmcs(0x4020, 1, R, RW, NONE), // PLE_GAP
    vmcs(0x4022, 1, R, RW, NONE), // PLE_Window
    vmcs(0x4024, 1, RW, RW, NONE), // Instruction Timeout Control
    vmcs(0x4026, 1, R, R, NONE), // TD HKID
    vmcs(0x4400, 1, NONE, R, NONE), // VM-instruction error
    vmcs(0x4402, 1, NONE, R, NONE), // Exit reason
    vmcs(0x4404, 1, NONE, R, NONE), // VM-exit interruption information
    vmcs(0x4406, 1, NONE, R, NONE), // VM-exit interruption error code
    vmcs(0x4408, 1, NONE, R, NONE), // IDT-vectoring information
    vmcs(0x440A, 1, NONE, R, NONE), // IDT-vectoring error code
    vmcs(0x440C, 1, NONE, R, NONE), // VM-exit instruction length
    vmcs(0x440E, 1, NONE, R, NONE), // VM-exit instruction information
    vmcs(0x4800, 1, NONE, RW, NONE), // Guest ES limit
    vmcs(0x4802, 1, NONE, RW, NONE), // Guest CS limit
    vmcs(0x4804, 1, NONE, RW, NONE), // Guest SS limit
    vmcs(0x4806, 1, NONE, RW, NONE), // Guest DS limit
    vmcs(0x4808, 1, NONE, RW, NONE), // Guest FS limit
    vmcs(0x480A, 1, NONE, RW, NONE), // Guest GS limit
    vmcs(0x480C, 1, NONE, RW, NONE), // Guest LDTR limit
    vmcs(0x480E, 1, NONE, RW, NONE), // Guest TR limit
    vmcs(0x4810, 1, NONE, RW, NONE), // Guest GDTR limit
    vmcs(0x4812, 1, NONE, RW, NONE), // Guest IDTR limit
    vmcs(0x4814, 1, NONE, RW, NONE), // Guest ES access rights
    vmcs(0x4816, 1, NONE, RW, NONE), // Guest CS access rights
    vmcs(0x4818, 1, NONE, RW, NONE), // Guest SS access rights
    vmcs(0x481A, 1, NONE, RW, NONE), // Guest DS access rights
    vmcs(0x481C, 1, NONE, RW, NONE), // Guest FS access rights
    vmcs(0x481E, 1, NONE, RW, NONE), // Guest GS access rights
    vmcs(0x4820, 1, NONE, RW, NONE), // Guest LDTR access rights
    vmcs(0x4822, 1, NONE, RW, NONE), // Guest TR access rights
    vmcs(0x4824, 1, NONE, RW, NONE), // Interruptibility State
    vmcs(0x4826, 1, NONE, R, NONE), // Activity State
    vmcs(0x4828, 1, NONE, NONE, NONE), // Guest SMBASE
    vmcs(0x482A, 1, NONE, RW, NONE), // IA32_SYSENTER_CS
    vmcs(0x482E, 1, NONE, RW, NONE), // VMX-Preemption Timer Value
    vmcs(0x6000, 1, NONE, part(0xFFFF_FFFF_9FFF_FFDE), NONE), // CR0 Guest/Host Mask
    vmcs(0x6002, 1, NONE, part(0xFFFF_FFFF_FFFF_9FBF), NONE), // CR4 Guest/Host Mask
    vmcs(0x6004, 1, NONE, part(0xFFFF_FFFF_FFFF_FFDE), NONE), // CR0 Read Shadow
    vmcs(0x6006, 1, NONE, part(0xFFFF_FFFF_FFFF_FFBF), NONE), // CR4 Read Shadow
    vmcs(0x6008, 4, NONE, RW, NONE), // CR3-Target Values
    vmcs(0x6400, 1, NONE, R, NONE), // Exit qualification
    vmcs(0x6402, 1, NONE, R, NONE), // I/O RCX
    vmcs(0x6404, 1, NONE, R, NONE), // I/O RSI
    vmcs(0x6406, 1, NONE, R, NONE), // I/O RDI
    vmcs(0x6408, 1, NONE, R, NONE), // I/O RIP
    vmcs(0x640A, 1, NONE, R, NONE), // Guest-Linear Address
    vmcs(0x6800, 1, NONE, RW, NONE), // Guest CR0
    vmcs(0x6802, 1, NONE, RW, NONE).holding(PRIVATE_GPA), // Guest CR3
    vmcs(0x6804, 1, NONE, RW, NONE), // Guest CR4
    vmcs(0x6806, 1, NONE, RW, NONE), // Guest ES base
    vmcs(0x6808, 1, NONE, RW, NONE), // Guest CS base
    vmcs(0x680A, 1, NONE, RW, NONE), // Guest SS base
    vmcs(0x680C, 1, NONE, RW, NONE), // Guest DS base
    vmcs(0x680E, 1, NONE, RW, NONE), // Guest FS base
    vmcs(0x6810, 1, NONE, RW, NONE), // Guest GS base
    vmcs(0x6812, 1, NONE, RW, NONE), // Guest LDTR base
    vmcs(0x6814, 1, NONE, RW, NONE), // Guest TR base
    vmcs(0x6816, 1, NONE, RW, NONE), // Guest GDTR base
    vmcs(0x6818, 1, NONE, RW, NONE), // Guest IDTR base
    vmcs(0x681A, 1, NONE, RW, NONE), // Guest DR7
    vmcs(0x681C, 1, NONE, RW, NONE), // Guest RSP
    vmcs(0x681E, 1, NONE, RW, NONE), // Guest RIP
    vmcs(0x6820, 1, NONE, RW, NONE), // Guest RFLAGS
    vmcs(0x6822, 1, NONE, RW, NONE), // Pending Debug Exceptions
    vmcs(0x6824, 1, NONE, RW, NONE), // IA32_SYSENTER_ESP
    vmcs(0x6826, 1, NONE, RW, NONE), // IA32_SYSENTER_EIP
    vmcs(0x6828, 1, NONE, RW, NONE), // GUEST_IA32_S_CET
    vmcs(0x682A, 1, NONE, RW, NONE), // GUEST_SSP
    vmcs(0x682C, 1, NONE, RW, NONE), // GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR
    vmcs(0x6C08, 1, NONE, NONE, NONE), // Host GS Base
    vmcs(0x6C14, 1, NONE, NONE, NONE), // Host RSP
    vmcs(0x6C16, 1, NONE, NONE, NONE), // Host RIP
    vmcs(0x6C1A, 1, NONE, NONE, NONE), // HOST_SSP
];
