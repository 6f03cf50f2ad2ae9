//! Unblocking of entries that failed work left blocked.

use seam::abi::{PAGE_1G, PAGE_2M, PAGE_4K};
use seam::address::{Gpa, Level};
use seam::call::SeamCall;
use seam::retry::Wait;

use super::error::Error;
use super::mirror::{Block, Boxed, Entry, Epoch, Gib, Leaf, Place, Upper, index, start};
use super::pool::Pool;
use super::{Cpu, Kick, Op, PrivateMap};

impl PrivateMap {
    /// Unblocks the entry at `gpa` and the tables above it, if failed work left them blocked.
    ///
    /// # Errors
    /// [`Error`]; an entry that is still blocked stays so until the next try.
    pub fn unblock<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        gpa: Gpa,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        self.change(cpu, kick, |op| op.unblock_live(gpa))
    }
}

impl<C: SeamCall, W: Wait, P: Pool> Op<'_, C, W, P> {
    /// Unblocks a page, if it is blocked and its block is tracked.
    pub(super) fn usable(&self, gpa: Gpa, leaf: Leaf) -> Leaf {
        match leaf.blocked_since() {
            Some(since) if self.map.tracker.is_tracked(since) => {
                let level = leaf.size().into();
                match self.cpu.tdh.mem_range_unblock(self.live.tdr(), gpa, level) {
                    Ok(()) => leaf.unblocked(),
                    Err(_) => leaf,
                }
            }
            _ => leaf,
        }
    }

    /// Unblocks a table, if it is blocked and its block is tracked.
    pub(super) fn usable_table<T>(
        &self,
        gpa: Gpa,
        level: Level,
        table: Boxed<T>,
        since: Option<Epoch>,
    ) -> Entry<T> {
        match since {
            None => Entry::Table(table),
            Some(since)
                if self.map.tracker.is_tracked(since)
                    && self
                        .cpu
                        .tdh
                        .mem_range_unblock(self.live.tdr(), gpa, level)
                        .is_ok() =>
            {
                Entry::Table(table)
            }
            Some(since) => Entry::BlockedTable { table, since },
        }
    }

    pub(super) fn unblock_live(&self, gpa: Gpa) -> Result<(), Error> {
        let pdpt = Place::pdpt(gpa);
        let uppers = [self.map.mirror.uppers.above(pdpt), Some(pdpt)];
        for place in uppers.into_iter().flatten() {
            self.unblock_upper(place)?;
        }
        let gib = gpa.0 / PAGE_1G;
        let (entry, result) =
            self.unblock_entry(start(gpa, PAGE_1G), self.map.mirror.claim_gib(gib)?);
        let goes_on = matches!(entry, Entry::Table(_));
        self.map.mirror.put_gib(gib, entry);
        result?;
        if !goes_on {
            return Ok(());
        }
        let block = start(gpa, PAGE_2M);
        let claimed = self.map.mirror.claim_block(gpa)?;
        let (mut entry, mut result) = self.unblock_entry(block, claimed);
        if let (Entry::Table(table), Ok(())) = (&mut entry, &result) {
            let at = index(gpa, PAGE_4K);
            if let Some(leaf) = table.take(at) {
                result = self.track(leaf.blocked_since());
                let leaf = self.usable(start(gpa, PAGE_4K), leaf);
                table.put(at, leaf);
            }
        }
        self.map.mirror.put_block(block, entry);
        result
    }

    pub(super) fn unblock_entry<T>(
        &self,
        gpa: Gpa,
        entry: Entry<T>,
    ) -> (Entry<T>, Result<(), Error>)
    where
        Entry<T>: AtLevel,
    {
        match entry {
            Entry::Leaf(leaf) => {
                let tracked = self.track(leaf.blocked_since());
                (Entry::Leaf(self.usable(gpa, leaf)), tracked)
            }
            Entry::BlockedTable { table, since } => {
                let tracked = self.track(Some(since));
                let level = <Entry<T>>::LEVEL;
                let entry = self.usable_table(gpa, level, table, Some(since));
                (entry, tracked)
            }
            other => (other, Ok(())),
        }
    }

    fn unblock_upper(&self, place: Place) -> Result<(), Error> {
        let uppers = &self.map.mirror.uppers;
        let blocked = uppers.with(place, |upper| match core::mem::take(upper) {
            Upper::Blocked { page, since } => {
                *upper = Upper::Claimed;
                Some((page, since))
            }
            other => {
                *upper = other;
                None
            }
        })?;
        let Some((page, since)) = blocked else {
            return Ok(());
        };
        let unblocked = self.track(Some(since)).and_then(|()| {
            Ok(self
                .cpu
                .tdh
                .mem_range_unblock(self.live.tdr(), place.gpa, place.level)?)
        });
        let upper = match &unblocked {
            Ok(()) => Upper::Linked { page, pins: 0 },
            Err(_) => Upper::Blocked { page, since },
        };
        uppers.put(place, upper);
        unblocked
    }
}

/// The level of the S-EPT entry that an entry of the mirror represents.
pub(super) trait AtLevel {
    const LEVEL: Level;
}

impl AtLevel for Block {
    const LEVEL: Level = Level::Pd;
}

impl AtLevel for Gib {
    const LEVEL: Level = Level::Pdpt;
}
