//! The machine as the host sees it: the platform traits' implementation, the TDs that this machine runs, and its power
//! switch.

pub mod ending;
pub mod errors;
pub mod platform;
pub mod power;
pub mod tds;
pub mod tdx;
