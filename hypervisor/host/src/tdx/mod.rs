//! TDX: the bring-up of the module, and the allocation and release of HKIDs.
//!
//! Everything is written against [`Platform`](crate::platform::Platform), and tested on the developer's computer.

pub mod bring_up;
pub mod hkids;
pub mod owner;
pub mod release;
pub mod report;
