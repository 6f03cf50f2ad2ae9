//! TDH.VP.*: virtual CPUs.

mod associate;
mod create;
mod enter;
mod init;
pub mod vmcs;
pub mod vmx_caps;

pub use associate::{Disabled, associate, check_pages, flush};
pub use create::{addcx, create};
pub use enter::enter;
pub use init::{LastExit, init};
