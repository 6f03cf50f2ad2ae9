//! The private HKIDs of the machine, and who has them. The one place that makes their tokens.

use alloc::{string::String, vec, vec::Vec};
use core::fmt;

use seam::{hkid::Hkid, platform::KeyIds};
use sync::IrqLock;

/// Who has an HKID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody: a TD can have it.
    Nobody,
    /// The module, for its own pages.
    Module,
    /// A TD.
    Td,
    /// Nobody can have it, for this reason.
    Quarantined(String),
}

/// The pool of HKIDs.
pub struct Hkids {
    first: u16,
    holders: IrqLock<Vec<Holder>>,
}

/// How many HKIDs there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All that the firmware set aside for TDX.
    pub total: usize,
    /// Those that a TD can have now.
    pub free: usize,
    /// Those that TDs and the module have.
    pub used: usize,
    /// Those that can't be used again.
    pub quarantined: usize,
}

/// There is no HKID for another TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoHkid(pub Count);

impl fmt::Display for NoHkid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count {
            total,
            used,
            quarantined,
            ..
        } = self.0;
        write!(
            f,
            "no HKID is left for another TD: of {total}, {used} are in use (one by the TDX module itself)"
        )?;
        if quarantined > 0 {
            write!(
                f,
                " and {quarantined} in quarantine (\"td retry\" may bring them back)"
            )?;
        }
        f.write_str("; end a TD, or give TDX more KeyIDs in the firmware's setup (TDX key split)")
    }
}

impl Hkids {
    /// The HKIDs of a machine whose KeyIDs are divided so; all free.
    #[must_use]
    pub fn new(key_ids: &KeyIds) -> Self {
        // A KeyID has at most 15 bits; what a register claims beyond them does not exist.
        let first = key_ids.first_private().min(1 << 15);
        let total = key_ids.private.min((1 << 15) - first);
        Self {
            first: first as u16,
            holders: IrqLock::new(vec![Holder::Nobody; total as usize]),
        }
    }

    /// The first one, for the module's own pages: what TDH.SYS.CONFIG is given. It never comes back.
    ///
    /// # Errors
    /// [`NoHkid`].
    pub fn take_global(&self) -> Result<Hkid, NoHkid> {
        self.take_for(Holder::Module)
    }

    /// One for a TD.
    ///
    /// # Errors
    /// [`NoHkid`] for the one too many.
    pub fn take(&self) -> Result<Hkid, NoHkid> {
        self.take_for(Holder::Td)
    }

    fn take_for(&self, holder: Holder) -> Result<Hkid, NoHkid> {
        let mut holders = self.holders.lock();
        let free = holders.iter().position(|h| *h == Holder::Nobody);
        let Some(index) = free else {
            return Err(NoHkid(Count::of(&holders)));
        };
        holders[index] = holder;
        #[expect(
            clippy::disallowed_methods,
            reason = "this is where the pool makes tokens"
        )]
        Ok(Hkid::mint(self.first + index as u16))
    }

    /// Takes one back that the module accepts again.
    pub fn give(&self, hkid: Hkid) {
        self.set(hkid.surrender(), Holder::Nobody);
    }

    /// Notes why the HKID of this number, which is out, can't be used again for now. [`Self::give`] ends that.
    pub fn quarantine(&self, number: u16, reason: String) {
        self.set(number, Holder::Quarantined(reason));
    }

    fn set(&self, number: u16, holder: Holder) {
        let index = usize::from(number.wrapping_sub(self.first));
        if let Some(place) = self.holders.lock().get_mut(index) {
            *place = holder;
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> Count {
        Count::of(&self.holders.lock())
    }

    /// All of them, by number, with their holders.
    #[must_use]
    pub fn list(&self) -> Vec<(u16, Holder)> {
        (self.first..)
            .zip(self.holders.lock().iter().cloned())
            .collect()
    }
}

impl Count {
    fn of(holders: &[Holder]) -> Self {
        let mut count = Self {
            total: holders.len(),
            ..Self::default()
        };
        for holder in holders {
            match holder {
                Holder::Nobody => count.free += 1,
                Holder::Module | Holder::Td => count.used += 1,
                Holder::Quarantined(_) => count.quarantined += 1,
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    fn pool(private: u32) -> Hkids {
        Hkids::new(&KeyIds {
            shared: 31,
            private,
            max_pa: 52,
            bits: 6,
        })
    }

    #[test]
    fn the_one_too_many_is_refused_and_has_its_turn_when_another_is_back() {
        let pool = pool(3);
        let global = pool.take_global().unwrap();
        assert_eq!(global.number(), 32);
        let first = pool.take().unwrap();
        let second = pool.take().unwrap();
        assert_eq!((first.number(), second.number()), (33, 34));
        let refused = pool.take().unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no HKID is left for another TD: of 3, 3 are in use (one by the TDX module itself); end a TD, or give TDX \
             more KeyIDs in the firmware's setup (TDX key split)"
        );
        pool.give(first);
        assert_eq!(pool.take().unwrap().surrender(), 33);
        for hkid in [global, second] {
            hkid.surrender();
        }
    }

    #[test]
    fn what_is_in_quarantine_is_not_handed_out_before_it_is_back() {
        let pool = pool(2);
        pool.take_global().unwrap().surrender();
        let hkid = pool.take().unwrap();
        pool.quarantine(hkid.number(), "package 1 was not written back".into());
        let refused = pool.take().unwrap_err();
        assert_eq!(
            refused.0,
            Count {
                total: 2,
                free: 0,
                used: 1,
                quarantined: 1
            }
        );
        assert!(refused.to_string().contains("1 in quarantine"));
        let reason = "package 1 was not written back".to_string();
        assert_eq!(pool.list()[1], (33, Holder::Quarantined(reason)));
        pool.give(hkid);
        assert_eq!(pool.count().free, 1);
    }

    #[test]
    fn what_the_partitioning_claims_beyond_15_bits_does_not_exist() {
        let pool = pool(u32::MAX);
        assert_eq!(pool.count().total, (1 << 15) - 32);
    }
}
