//! Basic VM-exit reasons, bits 15:0 of the full reason.
//!
//! Source: Intel SDM, volume 3, appendix C.
#![expect(missing_docs, reason = "each is the reason of that name in the SDM")]

pub const EXCEPTION_OR_NMI: u32 = 0;
pub const EXTERNAL_INTERRUPT: u32 = 1;
pub const TRIPLE_FAULT: u32 = 2;
pub const INIT: u32 = 3;
pub const SMI: u32 = 6;
pub const NMI_WINDOW: u32 = 8;
pub const TASK_SWITCH: u32 = 9;
pub const CPUID: u32 = 10;
pub const GETSEC: u32 = 11;
pub const HLT: u32 = 12;
pub const INVD: u32 = 13;
pub const RDPMC: u32 = 15;
pub const RSM: u32 = 17;
pub const VMCALL: u32 = 18;
pub const VMCLEAR: u32 = 19;
pub const VMXON: u32 = 27;
pub const CR_ACCESS: u32 = 28;
pub const IO: u32 = 30;
pub const RDMSR: u32 = 31;
pub const WRMSR: u32 = 32;
pub const ENTRY_GUEST_STATE: u32 = 33;
pub const MWAIT: u32 = 36;
pub const MONITOR_TRAP: u32 = 37;
pub const MONITOR: u32 = 39;
pub const ENTRY_MACHINE_CHECK: u32 = 41;
pub const C_STATE_SMI: u32 = 42;
pub const EPT_VIOLATION: u32 = 48;
pub const EPT_MISCONFIGURATION: u32 = 49;
pub const INVEPT: u32 = 50;
pub const INVVPID: u32 = 53;
pub const WBINVD: u32 = 54;
pub const XSETBV: u32 = 55;
pub const APIC_WRITE: u32 = 56;
pub const VMFUNC: u32 = 59;
pub const ENCLS: u32 = 60;
pub const PML_FULL: u32 = 62;
pub const PCONFIG: u32 = 65;
pub const ENCLV: u32 = 70;
pub const ENQCMD: u32 = 72;
pub const ENQCMDS: u32 = 73;
pub const BUS_LOCK: u32 = 74;
pub const NOTIFICATION: u32 = 75;
pub const SEAMCALL: u32 = 76;
pub const TDCALL: u32 = 77;
/// Bit 26 of the full reason: a bus lock occurred before the exit.
pub const AFTER_BUS_LOCK: u32 = 1 << 26;
/// Bit 31 of the full reason: the VM entry failed.
pub const ENTRY_FAILED: u32 = 1 << 31;
/// Bits of the full reason that a CPU may set for a TD.
pub const KNOWN: u32 = 0xFFFF | AFTER_BUS_LOCK | ENTRY_FAILED;
