//! TDs and their life: built from the configuration, run, shrunk, and taken down again.

pub mod capabilities;
pub mod hob;
pub mod life;
pub mod memory;
pub mod params;
