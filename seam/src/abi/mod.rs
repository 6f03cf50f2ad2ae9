//! The ABI of TDX module 1.5. Each fact is stated once: registers, leafs, status codes, operands, structures, metadata.

mod bits;
mod diagnostics;
mod encoding;
mod gprs;
mod guest;
pub mod hypercall;
mod leaf;
pub mod metadata;
mod operand;
mod platform;
pub(crate) mod status;
mod td;
pub mod x86;

pub use bits::{Attributes, Bit, ConfigFlags, FeatureParavirtCtls, Features0, TdCtls, Xfam, names};
pub use diagnostics::{FatalDiagnostics, FatalRecord};
pub use encoding::*;
pub use gprs::Gprs;
pub use guest::{GuestLeaf, ghci};
pub use leaf::{Leaf, SeamldrLeaf};
pub use operand::Operand;
pub use platform::*;
pub use status::Status;
pub use td::*;
