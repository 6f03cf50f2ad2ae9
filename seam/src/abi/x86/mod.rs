//! x86 definitions that both sides of SEAMCALL, the guests and the tests need.

pub mod cr0;
pub mod cr4;
pub mod dr6;
pub mod efer;
pub mod exit_reason;
pub mod msr;
pub mod rflags;
pub mod vector;
