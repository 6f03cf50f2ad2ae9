//! TDH.PHYMEM.*: physical pages and caches.

mod cache_wb;
mod page;
mod pamt_pair;
mod reclaim;

pub use cache_wb::cache_wb;
pub use page::{page_rdmd, page_wbinvd};
pub use pamt_pair::{pamt_add, pamt_remove};
pub use reclaim::page_reclaim;
