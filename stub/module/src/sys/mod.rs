//! TDH.SYS.*: the module's life cycle, excluding its metadata.

mod config;
mod cpuid;
mod diagnostics;
mod handoff;
mod init;
mod key_config;
mod msr;
mod shutdown;
pub mod tdmr;

pub use config::{MIN_DYNAMIC_PAMT_HKID_BITS, config};
pub use diagnostics::Diagnostics;
pub use handoff::Handoff;
pub use init::{Sample, init, lp_init};
pub use key_config::{key_config, program_key};
pub use shutdown::{shutdown, update};
pub use tdmr::tdmr_init;
