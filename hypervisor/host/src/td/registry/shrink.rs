//! Removing memory from TDs.

use alloc::vec::Vec;

use mm::private::{Outcome, Taken};

use super::Tds;
use crate::{
    platform::Platform,
    td::{error::Error, life::State, memory::Layout},
};

impl<P: Platform> Tds<'_, P> {
    /// Removes memory from a TD so that `bytes` are left. The TD may run meanwhile. If it is being terminated, that
    /// takes the rest ([`Outcome::Queued`], [`Outcome::LeftToReclaim`]).
    ///
    /// # Errors
    /// [`Error::Size`], [`Error::State`]; [`Error::Busy`], [`Error::Map`], after which the same call continues the
    /// removal.
    pub fn shrink(&self, id: u32, bytes: u64) -> Result<Outcome, Error> {
        self.with_module(|| self.remove_above(id, bytes))
    }

    fn remove_above(&self, id: u32, bytes: u64) -> Result<Outcome, Error> {
        let td = self
            .living(id)
            .ok_or_else(|| Error::State(self.state(id)))?;
        let map = td.map().ok_or_else(|| Error::State(td.state()))?;
        if td.state() == State::Building {
            return Err(Error::State(State::Building));
        }
        let whole = Layout::of(&td.config, td.config.memory).ok_or(Error::TooMuchMemory)?;
        let layout = {
            let mut now = td.layout.lock();
            let (least, most) = (td.image_end, now.bytes());
            // Set the layout first, so that removed memory is not populated again on demand.
            *now = Layout::of(&td.config, bytes)
                .filter(|_| (least.max(config::MEMORY_STEP)..=most).contains(&bytes))
                .filter(|_| bytes.is_multiple_of(config::MEMORY_STEP))
                .ok_or(Error::Size { least, most })?;
            *now
        };
        let start = self.host.platform.now_us();
        while !self.host.runner.shrunk(&td) {
            if self.host.platform.now_us() - start >= self.host.stop_us {
                return Err(Error::Busy);
            }
            self.host.platform.relax();
        }
        let _quiet = td.joining.quiet(&self.host)?;
        let kept: Vec<_> = layout.parts().collect();
        // A termination changes the state before it waits for quiet, and must not encounter pages claimed here.
        let goes_on = || !td.state().is_ending();
        let kick = td.kick(self.host.platform);
        let mut sum = Taken::default();
        let mut left = None;
        for range in whole.without(&kept) {
            let outcome = self
                .host
                .with_cpu(|cpu| map.remove_while(cpu, range, &kick, &goes_on))?;
            match outcome {
                Outcome::Removed(taken) => {
                    for (sum, pages) in sum.pages.iter_mut().zip(taken.pages) {
                        *sum += pages;
                    }
                    sum.sept += taken.sept;
                    sum.batches += taken.batches;
                }
                other => left = Some(other),
            }
        }
        match left {
            // The TD lives on, and its revival may have processed the queue before this removal was queued.
            Some(Outcome::Queued) if goes_on() => Err(Error::Busy),
            left => Ok(left.unwrap_or(Outcome::Removed(sum))),
        }
    }
}
