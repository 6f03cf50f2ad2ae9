//! Domains: creation, attachment, and the flush that makes changes certain.

use alloc::vec::Vec;

use super::Iommu;
use crate::{
    Access, Domain, Error, Function, Platform,
    reserved::Range,
    table::{Attached, Stale},
    unit::Translations,
};

/// Maximum number of domains.
const MAX: u32 = 4096;

/// The domain ids. Id 0 is not used: units that cache absent entries tag them with it.
#[derive(Debug)]
pub(super) struct Ids(Vec<bool>);

impl Ids {
    /// Creates the ids for units of which the weakest has `domains` of them.
    pub fn new(domains: Option<u32>) -> Self {
        let mut used = alloc::vec![false; domains.unwrap_or(0).min(MAX) as usize];
        if let Some(zero) = used.first_mut() {
            *zero = true;
        }
        Self(used)
    }

    fn take(&mut self) -> Result<u16, Error> {
        let id = self.0.iter().position(|used| !used);
        let id = id.ok_or(Error::NoDomainId)?;
        self.0[id] = true;
        Ok(id as u16)
    }

    fn give(&mut self, id: u16) {
        self.0[usize::from(id)] = false;
    }
}

impl<P: Platform> Iommu<P> {
    /// Creates an empty domain.
    ///
    /// # Errors
    /// [`Error::NoFormat`], [`Error::NoDomainId`], [`Error::NoMemory`].
    pub fn domain(&self) -> Result<Domain<P>, Error> {
        let format = self.format.ok_or(Error::NoFormat)?;
        let id = self.ids.lock().take()?;
        let domain = Domain::new(self.memory.clone(), id, format);
        if domain.is_err() {
            self.ids.lock().give(id);
        }
        domain
    }

    /// Attaches a function to a domain: it reaches what the domain maps.
    ///
    /// # Errors
    /// [`Error::NotCovered`], [`Error::Attached`], [`Error::NoMemory`]: nothing has changed. [`Error::NoAnswer`],
    /// [`Error::Queue`]: the unit failed, and the function counts as attached.
    pub fn attach(&self, domain: &mut Domain<P>, function: Function) -> Result<(), Error> {
        let (index, unit) = self.unit_of(function)?;
        if let Some(error) = unit.failure() {
            return Err(error);
        }
        let attached = Attached {
            id: domain.id,
            root: domain.root(),
            levels: domain.format.levels,
        };
        let outcome = unit.attach(function.source, &attached);
        if outcome.is_ok() || unit.failure().is_some() {
            domain.functions.push((function, index));
            self.books.lock().unmute(function);
        }
        outcome
    }

    /// Detaches a function from its domain. Once this has succeeded, it reaches nothing.
    ///
    /// # Errors
    /// [`Error::NotAttached`]; [`Error::NoAnswer`], [`Error::Queue`]: the function may reach what the domain maps, and
    /// counts as attached.
    pub fn detach(&self, domain: &mut Domain<P>, function: Function) -> Result<(), Error> {
        let mut attached = domain.functions.iter();
        let place = attached.position(|(of, _)| *of == function);
        let place = place.ok_or(Error::NotAttached(function))?;
        let unit = self.unit(domain.functions[place].1);
        unit.ok_or(Error::NotCovered(function))?
            .detach(function.source)?;
        domain.functions.swap_remove(place);
        Ok(())
    }

    /// Waits until no unit translates by what the domain mapped before its last changes. Only then may a page that was
    /// unmapped get another owner.
    ///
    /// # Errors
    /// [`Error::NoAnswer`], [`Error::Queue`]: devices may still reach what was unmapped.
    pub fn flush(&self, domain: &mut Domain<P>) -> Result<(), Error> {
        let Some(stale) = domain.stale else {
            return Ok(());
        };
        let mut units: Vec<_> = domain.functions.iter().map(|(_, unit)| *unit).collect();
        units.sort_unstable();
        units.dedup();
        for unit in units.into_iter().filter_map(|index| self.unit(index)) {
            let pages = unit.found.capability.page_selective();
            unit.forget(smallest(domain.id, stale, pages))?;
        }
        domain.stale = None;
        Ok(())
    }

    /// Ends a domain without functions. Its tables are freed.
    ///
    /// # Errors
    /// The domain still has functions.
    pub fn end(&self, domain: Domain<P>) -> Result<(), Domain<P>> {
        if !domain.functions.is_empty() {
            return Err(domain);
        }
        let id = domain.id;
        domain.free();
        self.ids.lock().give(id);
        Ok(())
    }

    /// Lets a function keep memory of the firmware's, at its own addresses, for good.
    ///
    /// # Errors
    /// As [`Self::domain`], [`Domain::map`] and [`Self::attach`]. The function reaches nothing then.
    pub fn keep(&self, function: Function, ranges: &[Range]) -> Result<(), Error> {
        let mut domain = self.domain()?;
        let mapped = ranges
            .iter()
            .try_for_each(|(start, end)| domain.map(*start, *start, end - start, Access::ReadWrite))
            .and_then(|()| self.attach(&mut domain, function));
        match self.end(domain) {
            Ok(()) => mapped,
            // It has a function: it is kept, as are the tables that a failed unit may read.
            Err(domain) => {
                self.kept.lock().push(domain);
                mapped
            }
        }
    }
}

/// Returns the smallest set of translations that contains the stale ones. `pages` is the highest number of pages, as a
/// power of two, that a unit can drop on their own.
fn smallest(id: u16, stale: Stale, pages: Option<u32>) -> Translations {
    let (first, last) = (stale.start >> 12, (stale.end - 1) >> 12);
    let order = u64::BITS - (first ^ last).leading_zeros();
    match pages {
        Some(highest) if order <= highest => Translations::Pages {
            id,
            iova: first >> order << order << 12,
            order,
        },
        _ => Translations::Domain(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_aligned_block_is_flushed() {
        let of = |start, end| smallest(3, Stale { start, end }, Some(9));
        let pages = |iova, order| Translations::Pages { id: 3, iova, order };
        assert_eq!(of(0x5000, 0x6000), pages(0x5000, 0));
        assert_eq!(of(0x5000, 0x7000), pages(0x4000, 2));
        assert_eq!(of(0x20_0000, 0x40_0000), pages(0x20_0000, 9));
        assert_eq!(of(0x1F_F000, 0x20_1000), Translations::Domain(3));
        let none = smallest(
            3,
            Stale {
                start: 0,
                end: 0x1000,
            },
            None,
        );
        assert_eq!(none, Translations::Domain(3));
    }
}
