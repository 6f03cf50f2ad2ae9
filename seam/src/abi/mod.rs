//! The ABI of the TDX module 1.5, each fact once: registers, leafs, status codes, operands, structures, metadata.

mod gprs;

pub use gprs::Gprs;
