//! x86 definitions that both sides of SEAMCALL, the guests and the tests need.

pub mod efer;
pub mod exit_reason;
pub mod msr;
