//! TDX: the bring-up of the module, the HKIDs, and their way back.
//!
//! All is written against [`Platform`](crate::platform::Platform), and tested on the developer's computer.

pub mod bring_up;
pub mod hkids;
pub mod release;
pub mod report;
