//! Metadata: the fields that SYS.RD, MNG.RD/WR, VP.RD/WR and their guest-side counterparts read and write.
//!
//! The tables (`rows_*`) define who may read and write which bits of each field. `table` walks them. `sys`, `td` and
//! `vp` locate the values and apply the rules of writes.

mod access;
mod rows_l2_vmcs;
mod rows_sys;
mod rows_td;
mod rows_vmcs;
mod rows_vp;
mod sys;
mod sys_info;
mod table;
mod td;
mod vp;

pub use access::{Fields, dump, first_id, next_id, read, write};
pub use sys::{ARCH_CAPABILITIES_CONFIGURABLE, SysFields, sys_rd, sys_rdall};
pub use sys_info::sys_info;
pub use table::Who;
pub use td::{TdFields, mng_rd, mng_wr};
pub use vp::{VpFields, vp_rd, vp_wr};
