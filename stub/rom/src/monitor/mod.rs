//! The monitor, which runs permanently beneath the software, in the SEAM range.

mod exits;
mod guest;
mod lp;
mod machine;
mod npt;
mod panic;
mod presence;
mod smp;
mod switch;
mod tables;
mod td;
mod vmcb;
mod world;

pub use world::{Begin, Inventory, begin, dive};
