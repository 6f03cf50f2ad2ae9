//! Writing off a TD's memory for good, in any phase of the TD: the only option once the module has shut down.
//!
//! No SEAMCALL is made. The frames may hold content that only the module may touch, so none of them is used again.

use super::PrivateMap;
use super::error::Error;
use super::pool::Pool;
use seam::page::{Page, State};

/// Memory that was written off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrittenOff {
    /// Quarantined 4 KiB pages.
    pub pages: u64,
    /// The number of the HKID that the TD had.
    pub hkid: Option<u16>,
}

impl PrivateMap {
    /// Quarantines all of the TD's pages: its private pages, its S-EPT, its root. The map is of no use afterwards. For
    /// a TD whose bulk reclaim has begun, use [`super::Reclaim::write_off`].
    ///
    /// # Errors
    /// [`Error::Busy`] while a CPU still works on the map; [`Error::Terminated`] when the root page is already gone.
    pub fn write_off<P: Pool>(&self, pool: &P) -> Result<WrittenOff, Error> {
        let (root, hkid) = self.root.write_off()?;
        let mut pages = 0;
        put_away(pool, root, &mut pages);
        self.mirror.drain(|page| put_away(pool, page, &mut pages));
        while let Some(page) = self.stock.next_stranded() {
            put_away(pool, page, &mut pages);
        }
        let holding = self.holding();
        self.stock.remove(holding.pages, holding.sept);
        Ok(WrittenOff { pages, hkid })
    }
}

fn put_away<S: State>(pool: &impl Pool, page: Page<S>, pages: &mut u64) {
    *pages += page.size().pages();
    pool.quarantine(page);
}
