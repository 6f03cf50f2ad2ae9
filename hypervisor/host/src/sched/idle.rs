//! CPUs that have nothing else to do, and the TDs whose devices they are offered to work for.
//!
//! A CPU with a vCPU offers the work: it claims an idle CPU's bit, leaves the guest in that CPU's place, and wakes it. It
//! waits for nobody, and takes no lock that is not free. An offer obliges to nothing: until the idle CPU begins
//! ([`devices::pci::Bus::begin_help`]), the work is that of the vCPUs, and an offer that is not taken can be withdrawn: its CPU
//! has found something else to do.

use alloc::{boxed::Box, sync::Arc};

use sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use super::guest::Guest;

/// Number of CPUs in a word of [`IdleCpus::idle`].
const BITS: u32 = u64::BITS;

/// The idle CPUs of a machine.
#[derive(Debug)]
pub(super) struct IdleCpus {
    /// A bit for each CPU. It is set by the CPU itself, when its place is empty and it has nothing to do, and cleared by the
    /// CPU or by the one that claims it.
    idle: Box<[AtomicU64]>,
    /// The offer to each CPU. Nothing is waited for with a lock held.
    places: Box<[Mutex<Option<Arc<Guest>>>]>,
}

impl IdleCpus {
    /// Creates places for CPUs 0 to `cpus` - 1, none of which is idle.
    pub fn new(cpus: u32) -> Self {
        Self {
            idle: (0..cpus.div_ceil(BITS))
                .map(|_| AtomicU64::new(0))
                .collect(),
            places: (0..cpus).map(|_| Mutex::new(None)).collect(),
        }
    }

    /// Notes that the calling CPU has nothing to do, before it looks for requests the last time and halts.
    pub fn enter(&self, cpu: u32) {
        if let Some((word, bit)) = self.bit(cpu) {
            word.fetch_or(bit, SeqCst);
        }
    }

    /// Notes that the calling CPU has something to do.
    pub fn leave(&self, cpu: u32) {
        if let Some((word, bit)) = self.bit(cpu)
            && word.load(SeqCst) & bit != 0
        {
            word.fetch_and(!bit, SeqCst);
        }
    }

    /// Takes the offer that was made to the calling CPU.
    pub fn take(&self, cpu: u32) -> Option<Arc<Guest>> {
        self.places.get(cpu as usize)?.lock().take()
    }

    /// Offers an idle CPU to work for the devices of a guest, which runs on CPU `from`. Returns the CPU, which the caller
    /// wakes.
    pub fn offer(&self, guest: &Arc<Guest>, from: u32) -> Option<u32> {
        let cpu = self.claim_beside(from)?;
        // The CPU may just look, or have another offer, if it was awake meanwhile.
        let mut place = self.place(cpu)?;
        if place.is_some() {
            return None;
        }
        *place = Some(guest.clone());
        Some(cpu)
    }

    /// Returns whether a CPU has not taken yet what it was offered for a guest.
    pub fn is_offered(&self, guest: &Arc<Guest>, cpu: u32) -> bool {
        let place = self.place(cpu);
        place.is_some_and(|place| place.as_ref().is_some_and(|it| Arc::ptr_eq(it, guest)))
    }

    /// Withdraws the offer that was made to a CPU for a guest, unless the CPU has taken it.
    pub fn withdraw(&self, guest: &Arc<Guest>, cpu: u32) {
        if let Some(mut place) = self.place(cpu) {
            // The caller has the guest, so that nothing is freed here.
            place.take_if(|offered| Arc::ptr_eq(offered, guest));
        }
    }

    /// Returns the place of a CPU, unless that CPU just looks.
    fn place(&self, cpu: u32) -> Option<MutexGuard<'_, Option<Arc<Guest>>>> {
        self.places.get(cpu as usize)?.try_lock()
    }

    /// Claims an idle CPU: the next one by number, because that is near as a rule.
    fn claim_beside(&self, cpu: u32) -> Option<u32> {
        let words = self.idle.len();
        let (first, low) = ((cpu / BITS) as usize, (1 << (cpu % BITS)) - 1);
        // The CPU's own word comes twice: the upper part, and in the end the lower one.
        (0..=words).find_map(|step| {
            let at = (first + step) % words;
            let part = match step {
                0 => !low,
                _ if step == words => low,
                _ => u64::MAX,
            };
            let bit = self.claim_in(at, part)?;
            Some(at as u32 * BITS + bit)
        })
    }

    /// Claims a CPU of a word, of those in `part`.
    fn claim_in(&self, at: usize, part: u64) -> Option<u32> {
        let word = self.idle.get(at)?;
        let mut left = word.load(SeqCst) & part;
        while left != 0 {
            let lowest = left & left.wrapping_neg();
            if word.fetch_and(!lowest, SeqCst) & lowest != 0 {
                return Some(lowest.trailing_zeros());
            }
            left &= !lowest;
        }
        None
    }

    fn bit(&self, cpu: u32) -> Option<(&AtomicU64, u64)> {
        let word = self.idle.get((cpu / BITS) as usize)?;
        Some((word, 1 << (cpu % BITS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_idle_cpu_is_claimed_and_none_twice() {
        let idle = IdleCpus::new(200);
        for cpu in [0, 9, 63, 64, 70, 130, 199] {
            idle.enter(cpu);
        }
        idle.leave(9);
        idle.leave(10);
        let claimed = core::iter::from_fn(|| idle.claim_beside(69));
        let claimed: alloc::vec::Vec<_> = claimed.collect();
        assert_eq!(claimed, [70, 130, 199, 0, 63, 64]);
        idle.enter(5);
        assert_eq!(idle.claim_beside(5), Some(5));
        assert_eq!(idle.claim_beside(199), None);
    }

    #[test]
    fn a_machine_may_have_one_cpu() {
        let idle = IdleCpus::new(1);
        assert_eq!(idle.claim_beside(0), None);
        idle.enter(0);
        assert_eq!(idle.claim_beside(0), Some(0));
    }
}
