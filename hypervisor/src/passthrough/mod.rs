//! PCI functions of the machine that TDs have.

pub mod claims;
