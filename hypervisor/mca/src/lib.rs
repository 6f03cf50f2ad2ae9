//! Machine checks: what the registers mean, what an error requires of the host, and the books of all errors.
//!
//! Nothing here touches hardware, allocates or takes a lock: the handlers of machine checks and NMIs call this code,
//! and they interrupt anything.
//!
//! Sources: Intel SDM volume 3B, chapter 16 (Machine-Check Architecture) and 17 (Interpreting Machine Check Error
//! Codes); UEFI Specification 2.10, appendix N (Common Platform Error Record); ACPI Specification 6.5, chapter 18.
#![no_std]
#![forbid(unsafe_code)]

pub mod bank;
pub mod books;
pub mod capability;
pub mod cper;
pub mod decide;
pub mod deposit;
pub mod nmi;
pub mod pages;
pub mod scan;
pub mod verdict;

/// The machine-check registers of one CPU.
pub trait Msrs {
    /// Executes RDMSR. Returns `None` if the CPU has no such MSR (#GP).
    fn read(&self, msr: u32) -> Option<u64>;

    /// Executes WRMSR for a machine-check register. Returns `false` if the CPU refuses (#GP).
    fn write(&self, msr: u32, value: u64) -> bool;
}
