//! The machine's private HKIDs and their holders. This is the only place that creates their tokens.

use alloc::{string::String, vec, vec::Vec};
use core::fmt;

use seam::{hkid::Hkid, platform::KeyIds};
use sync::IrqLock;

/// The holder of an HKID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// No holder: the HKID is free for a TD.
    Nobody,
    /// The module, for its own pages.
    Module,
    /// A TD.
    Td,
    /// The HKID can't be used, for this reason.
    Quarantined(String),
}

/// The pool of HKIDs.
pub struct Hkids {
    first: u16,
    holders: IrqLock<Vec<Holder>>,
}

/// Numbers of HKIDs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All HKIDs that the firmware has set aside for TDX.
    pub total: usize,
    /// HKIDs that are free for a TD.
    pub free: usize,
    /// HKIDs of TDs and of the module.
    pub used: usize,
    /// HKIDs that can't be used again for now.
    pub quarantined: usize,
}

/// No HKID is free for another TD.
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
                " and {quarantined} in quarantine (\"td retry\" may free them)"
            )?;
        }
        f.write_str(
            "; terminate a TD, or give TDX more KeyIDs in the firmware's setup (TDX key split)",
        )
    }
}

impl Hkids {
    /// Creates the pool of a machine with this partition of KeyIDs. All HKIDs are free.
    #[must_use]
    pub fn new(key_ids: &KeyIds) -> Self {
        // A KeyID has at most 15 bits. HKIDs beyond that do not exist, whatever the partitioning register claims.
        let first = key_ids.first_private().min(1 << 15);
        let total = key_ids.private.min((1 << 15) - first);
        Self {
            first: first as u16,
            holders: IrqLock::new(vec![Holder::Nobody; total as usize]),
        }
    }

    /// Takes the first HKID, for the module's own pages: the operand of TDH.SYS.CONFIG. It is never given back.
    ///
    /// # Errors
    /// [`NoHkid`].
    pub fn take_global(&self) -> Result<Hkid, NoHkid> {
        self.take_for(Holder::Module)
    }

    /// Takes an HKID for a TD.
    ///
    /// # Errors
    /// [`NoHkid`] if none is free.
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

    /// Takes an HKID back that the module accepts again.
    pub fn give(&self, hkid: Hkid) {
        self.set(hkid.surrender(), Holder::Nobody);
    }

    /// Notes why the HKID with this number, which is in use, can't be used again for now. [`Self::give`] ends the
    /// quarantine.
    pub fn quarantine(&self, number: u16, reason: String) {
        self.set(number, Holder::Quarantined(reason));
    }

    fn set(&self, number: u16, holder: Holder) {
        let index = usize::from(number.wrapping_sub(self.first));
        if let Some(place) = self.holders.lock().get_mut(index) {
            *place = holder;
        }
    }

    /// Counts the HKIDs.
    #[must_use]
    pub fn count(&self) -> Count {
        Count::of(&self.holders.lock())
    }

    /// Returns all HKIDs by number, with their holders.
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
    fn one_hkid_too_many_is_refused_until_another_is_returned() {
        let pool = pool(3);
        let global = pool.take_global().unwrap();
        assert_eq!(global.number(), 32);
        let first = pool.take().unwrap();
        let second = pool.take().unwrap();
        assert_eq!((first.number(), second.number()), (33, 34));
        let refused = pool.take().unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no HKID is left for another TD: of 3, 3 are in use (one by the TDX module itself); terminate a TD, or \
             give TDX more KeyIDs in the firmware's setup (TDX key split)"
        );
        pool.give(first);
        assert_eq!(pool.take().unwrap().surrender(), 33);
        for hkid in [global, second] {
            hkid.surrender();
        }
    }

    #[test]
    fn a_quarantined_hkid_is_not_handed_out_before_it_is_returned() {
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
    fn keyids_beyond_15_bits_do_not_exist() {
        let pool = pool(u32::MAX);
        assert_eq!(pool.count().total, (1 << 15) - 32);
    }
}
