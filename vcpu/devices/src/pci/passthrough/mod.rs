//! A physical function on a TD's bus.
//!
//! The guest sees a configuration space of its own making. Of the physical one, it reads what cannot hurt anybody, and
//! writes one register: the address of the vital product data. Its memory decoding, bus mastering, interrupts, power
//! state and reset are virtual; [`Physical`] carries out those that matter. The memory of the base address registers is
//! the physical one's, except for the table of MSI-X.
//!
//! While the function is being reset, its registers are not accessed: everything reads as all ones.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6; PCI Express Base Specification, sections 6.6.2 (function level
//! reset) and 7.8 (capability).

mod counts;
mod space;
mod vectors;

use alloc::{sync::Arc, vec::Vec};
use core::ops::Range;

use super::{Config, Direct, Function, Physical};
use crate::{Effect, Now, Place, open_bus};

pub use counts::Counts;
use space::Space;
use vectors::Vectors;

/// A page: what the guest may access without the host consists of whole ones.
const PAGE: u64 = 4096;

/// The function.
#[derive(Debug)]
pub struct Passthrough {
    physical: Arc<dyn Physical>,
    space: Space,
    /// The configuration space as the guest has it.
    config: Config,
    vectors: Vectors,
    is_master: bool,
    /// True from the guest's request of a reset until its accesses without the host have ended.
    wants_reset: bool,
    counts: Arc<Counts>,
}

impl Passthrough {
    /// Creates the model of `physical`, which is not away.
    #[must_use]
    pub fn new(physical: Arc<dyn Physical>) -> Self {
        let vectors = Vectors::new(physical.shape());
        let space = Space::new(&*physical, &vectors);
        Self {
            config: space.initial.clone(),
            vectors: vectors.at(space.interrupts),
            space,
            physical,
            is_master: false,
            wants_reset: false,
            counts: Arc::default(),
        }
    }

    /// Returns the counters.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    fn is_away(&self) -> bool {
        self.wants_reset || self.physical.is_away()
    }

    /// Switches bus mastering to what the guest says.
    fn follow_master(&mut self) {
        let is_master = self.config.is_master();
        if self.is_master != is_master {
            self.is_master = is_master;
            self.physical.set_master(is_master);
        }
    }

    /// Forgets the guest's settings. The physical reset begins once the guest's accesses have ended.
    fn begin_reset(&mut self) -> Effect {
        self.vectors.silence(&*self.physical);
        self.config = self.space.initial.clone();
        self.follow_master();
        self.wants_reset = true;
        Effect::Windows
    }
}

impl Function for Passthrough {
    fn config(&mut self) -> &mut Config {
        &mut self.config
    }

    fn read(&mut self, at: usize, size: usize) -> u64 {
        self.counts.note_config();
        if self.is_away() {
            return open_bus(size as u8);
        }
        let shadow = self.config.read(at, size);
        self.space.with_live(&*self.physical, at..at + size, shadow)
    }

    fn write(&mut self, at: usize, size: usize, value: u64) {
        self.counts.note_config();
        if !self.is_away() {
            self.config.write(at, size, value);
        }
    }

    fn configured(&mut self, written: Range<usize>) -> Effect {
        if self.is_away() {
            return Effect::None;
        }
        if self.space.is_reset_wanted(&self.config) {
            return self.begin_reset();
        }
        self.space
            .select_vital_data(&*self.physical, &self.config, written.clone());
        self.follow_master();
        let vectors = &mut self.vectors;
        let refused = vectors.configured(written, &self.config, &*self.physical);
        self.counts.note_refused(refused);
        Effect::None
    }

    fn load(&mut self, bar: usize, place: Place, _: Now) -> u64 {
        if self.is_away() {
            return open_bus(place.size);
        }
        if self.vectors.has_table_at(bar, place) {
            return self.vectors.load(place);
        }
        if !place.offset.is_multiple_of(place.size.into()) {
            return open_bus(place.size);
        }
        self.counts.note_memory();
        self.physical.load(bar, place)
    }

    fn store(&mut self, bar: usize, place: Place, value: u64, _: Now) -> Effect {
        if self.is_away() {
            return Effect::None;
        }
        if self.vectors.has_table_at(bar, place) {
            let refused = self.vectors.store(place, value, &*self.physical);
            self.counts.note_refused(refused);
        } else if !self.vectors.has_pending_at(bar, place)
            && place.offset.is_multiple_of(place.size.into())
        {
            self.counts.note_memory();
            self.physical.store(bar, place, value);
        }
        Effect::None
    }

    fn direct(&self) -> Vec<Direct> {
        let mut all = Vec::new();
        for memory in &self.space.memory {
            let bytes = memory.range.end - memory.range.start;
            if bytes < PAGE || !memory.range.start.is_multiple_of(PAGE) {
                // A page of it may have registers of other functions.
                continue;
            }
            let mut offset = 0;
            for kept in self.vectors.pages_in(memory.index) {
                let end = kept.start.min(bytes);
                all.push((offset..end, memory));
                offset = offset.max(kept.end);
            }
            all.push((offset..bytes, memory));
        }
        let pieces = all.into_iter().filter(|(range, _)| range.start < range.end);
        pieces
            .map(|(range, memory)| Direct {
                bar: memory.index,
                offset: range.start,
                hpa: memory.range.start + range.start,
                bytes: range.end - range.start,
            })
            .collect()
    }

    fn settled(&mut self) {
        if core::mem::take(&mut self.wants_reset) {
            self.physical.reset();
        }
    }
}

#[cfg(test)]
mod tests;
