//! The machine as the host knows it: the implementation of the platform traits, the TDs that this machine runs, and its power
//! switch.

pub mod platform;
pub mod power;
pub mod tds;
pub mod tdx;
