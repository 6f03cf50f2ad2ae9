//! TDH.MNG.*: management of a TD as a whole.

mod addcx;
pub mod event_filter;
mod init;
mod keys;

pub use addcx::addcx;
pub use init::init;
pub use keys::{create, key_config, key_freeid, vpflushdone};
