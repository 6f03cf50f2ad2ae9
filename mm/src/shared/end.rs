//! The end of a shared map.

use core::sync::atomic::Ordering::SeqCst;

use seam::abi::PageSize;
use seam::address::Hpa;

use super::entry::Entry;
use super::{Frames, Holding, MirrorError, SharedMap};

impl SharedMap {
    /// Frees everything, including the root, at the TD's end. No vCPU of the TD can be entered any more, no CPU uses a
    /// translation, and no device reaches the memory. Nothing can be mapped from now on. Returns the bytes that went to
    /// quarantine instead: all memory, if the devices' view could not follow before ([`MirrorError::NoAnswer`]).
    pub fn dissolve(&self, frames: &impl Frames) -> u64 {
        let is_reached = self.state.read().is_astray == Some(MirrorError::NoAnswer);
        self.tear_down(frames, is_reached)
    }

    /// Does the same if devices may still reach the memory, which goes to quarantine. The tables, which no device
    /// walks, are freed.
    pub fn quarantine(&self, frames: &impl Frames) -> u64 {
        self.tear_down(frames, true)
    }

    fn tear_down(&self, frames: &impl Frames, is_reached: bool) -> u64 {
        let mut state = self.write();
        if state.holding.tables == 0 {
            return 0;
        }
        let keep = |hpa, size: PageSize| {
            if is_reached {
                frames.quarantine(hpa, size);
                size.bytes()
            } else {
                frames.give(hpa, size);
                0
            }
        };
        let kept = self.end_table(frames, self.root, self.top, &keep);
        state.holding = Holding::default();
        let mirror = state.mirror.take();
        // Its end may take a while.
        drop(state);
        drop(mirror);
        kept
    }

    /// Frees a table and what it maps. Returns the bytes that went to quarantine.
    fn end_table(
        &self,
        frames: &impl Frames,
        table: Hpa,
        level: u8,
        keep: &dyn Fn(Hpa, PageSize) -> u64,
    ) -> u64 {
        let mut kept = 0;
        for word in frames.words(table) {
            let entry = Entry(word.load(SeqCst));
            let is_leaf = level == 0 || entry.is_large();
            if !entry.is_present() || is_leaf && (entry.is_lent() || entry.is_io()) {
                continue;
            }
            kept += match (level, is_leaf) {
                (0, _) => keep(entry.hpa(), PageSize::Size4K),
                (_, true) => keep(entry.hpa(), PageSize::Size2M),
                _ => self.end_table(frames, entry.hpa(), level - 1, keep),
            };
        }
        frames.give(table, PageSize::Size4K);
        kept
    }
}
