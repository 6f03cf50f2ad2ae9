//! TDH.VP.*: virtual CPUs.

mod associate;
mod create;
mod enter;
mod init;
pub mod vmcs;

pub use associate::{Disabled, associate, check_pages, flush};
pub use create::{addcx, create};
pub use enter::enter;
pub use init::{LastExit, init};
