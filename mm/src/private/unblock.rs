//! What failed work left blocked, made usable.

use seam::abi::{PAGE_1G, PAGE_2M, PAGE_4K};
use seam::address::{Gpa, Level};
use seam::call::SeamCall;
use seam::retry::Wait;

use super::error::Error;
use super::mirror::{Block, Boxed, Entry, Epoch, Gib, Leaf, Place, Upper, index, start};
use super::pool::Pool;
use super::root::Live;
use super::{Cpu, Kick, PrivateMap};

impl PrivateMap {
    /// Takes the block from a page, if it has one that can be taken.
    pub(super) fn usable<C: SeamCall, W: Wait, P>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        leaf: Leaf,
    ) -> Leaf {
        match leaf.blocked_since() {
            Some(since) if self.tracker.is_tracked(since) => {
                let level = leaf.size().into();
                match cpu.tdh.mem_range_unblock(live.tdr(), gpa, level) {
                    Ok(()) => leaf.unblocked(),
                    Err(_) => leaf,
                }
            }
            _ => leaf,
        }
    }

    /// Takes the block from a table, if it has one that can be taken.
    pub(super) fn usable_table<T, C: SeamCall, W: Wait, P>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        level: Level,
        table: Boxed<T>,
        since: Option<Epoch>,
    ) -> Entry<T> {
        match since {
            None => Entry::Table(table),
            Some(since)
                if self.tracker.is_tracked(since)
                    && cpu.tdh.mem_range_unblock(live.tdr(), gpa, level).is_ok() =>
            {
                Entry::Table(table)
            }
            Some(since) => Entry::BlockedTable { table, since },
        }
    }

    /// Makes usable again what failed work left blocked on the way to `gpa`, and there.
    ///
    /// # Errors
    /// [`Error`]; what is still blocked stays so until the next time.
    pub fn unblock<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        gpa: Gpa,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        self.root
            .keyed(|live| self.unblock_live(cpu, live, gpa, kick))
    }

    pub(super) fn unblock_live<C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        let pdpt = Place::pdpt(gpa);
        let uppers = [self.mirror.uppers.above(pdpt), Some(pdpt)];
        for place in uppers.into_iter().flatten() {
            self.unblock_upper(cpu, live, place, kick)?;
        }
        let gib = gpa.0 / PAGE_1G;
        let (entry, result) = self.unblock_entry(
            cpu,
            live,
            start(gpa, PAGE_1G),
            self.mirror.claim_gib(gib)?,
            kick,
        );
        let goes_on = matches!(entry, Entry::Table(_));
        self.mirror.put_gib(gib, entry);
        result?;
        if !goes_on {
            return Ok(());
        }
        let block = start(gpa, PAGE_2M);
        let claimed = self.mirror.claim_block(gpa)?;
        let (mut entry, mut result) = self.unblock_entry(cpu, live, block, claimed, kick);
        if let (Entry::Table(table), Ok(())) = (&mut entry, &result) {
            let at = index(gpa, PAGE_4K);
            if let Some(leaf) = table.take(at) {
                result = self.track(cpu, live, leaf.blocked_since(), kick);
                let leaf = self.usable(cpu, live, start(gpa, PAGE_4K), leaf);
                table.put(at, leaf);
            }
        }
        self.mirror.put_block(block, entry);
        result
    }

    pub(super) fn unblock_entry<T, C: SeamCall, W: Wait, P: Pool>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        gpa: Gpa,
        entry: Entry<T>,
        kick: &dyn Kick,
    ) -> (Entry<T>, Result<(), Error>)
    where
        Entry<T>: AtLevel,
    {
        match entry {
            Entry::Leaf(leaf) => {
                let tracked = self.track(cpu, live, leaf.blocked_since(), kick);
                (Entry::Leaf(self.usable(cpu, live, gpa, leaf)), tracked)
            }
            Entry::BlockedTable { table, since } => {
                let tracked = self.track(cpu, live, Some(since), kick);
                let level = <Entry<T>>::LEVEL;
                let entry = self.usable_table(cpu, live, gpa, level, table, Some(since));
                (entry, tracked)
            }
            other => (other, Ok(())),
        }
    }

    fn unblock_upper<C: SeamCall, W: Wait, P>(
        &self,
        cpu: Cpu<'_, C, W, P>,
        live: &Live,
        place: Place,
        kick: &dyn Kick,
    ) -> Result<(), Error> {
        let uppers = &self.mirror.uppers;
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
        let unblocked = self.track(cpu, live, Some(since), kick).and_then(|()| {
            Ok(cpu
                .tdh
                .mem_range_unblock(live.tdr(), place.gpa, place.level)?)
        });
        let upper = match &unblocked {
            Ok(()) => Upper::Linked { page, pins: 0 },
            Err(_) => Upper::Blocked { page, since },
        };
        uppers.put(place, upper);
        unblocked
    }
}

/// The level of the S-EPT entry that an entry of the mirror stands for.
pub(super) trait AtLevel {
    const LEVEL: Level;
}

impl AtLevel for Block {
    const LEVEL: Level = Level::Pd;
}

impl AtLevel for Gib {
    const LEVEL: Level = Level::Pdpt;
}
