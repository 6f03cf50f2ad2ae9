//! The monitor, which runs permanently beneath the software, in the SEAM range.
//!
//! From the top: [`begin`] starts it, [`run`] is the loop of a processor, and [`exits`] handles the exits of the
//! software. An [`lp::Lp`] is a processor, [`machine`] is what the emulated module runs on, and [`world::World`] is
//! shared by all processors, each of which holds a reference to it.

mod anchor;
mod begin;
mod detour;
mod exits;
mod guest;
mod hardware;
mod iommu;
mod lp;
mod machine;
mod npt;
mod panic;
mod presence;
mod reach;
mod run;
mod shadow_paging;
mod shared;
mod smp;
mod switch;
mod tables;
mod vmcb;
mod world;

pub use begin::{Begin, Inventory, begin, dive};
