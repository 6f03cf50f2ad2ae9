//! A TD's control structures, and the checks that every leaf makes before it uses them.

mod access;
pub mod epoch;
pub mod op_state;
pub mod tdcs;
pub mod tdr;
pub mod tdvps;

pub use access::{Td, TdVcpu, lock_op_state, op_state_incorrect, reclaim_lane};
pub use op_state::OpState;
pub use tdcs::Tdcs;
pub use tdr::{LaneGuard, Lifecycle, Tdr};
pub use tdvps::{Tdvps, VcpuState};
