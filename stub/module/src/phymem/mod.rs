//! TDH.PHYMEM.*: physical pages and caches.

mod cache_wb;
mod page;
mod reclaim;

pub use cache_wb::cache_wb;
pub use page::{page_rdmd, page_wbinvd};
pub use reclaim::page_reclaim;
