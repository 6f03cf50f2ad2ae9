//! The platform's life: TDH.SYS.* but for its metadata.

mod config;
mod init;
mod key_config;
mod lp_init;
mod shutdown;
pub mod tdmr;

pub use config::config;
pub use init::{Sample, init};
pub use key_config::{key_config, program_key};
pub use lp_init::lp_init;
pub use shutdown::{shutdown, update};
pub use tdmr::tdmr_init;
