//! Routes of interrupts.

use super::Iommu;
use crate::{
    Error, Function, Platform, Source,
    dmar::ScopeKind,
    interrupt::{Handle, Posting, Route, Table, posted},
    unit::{Unit, interrupt},
};

/// The origin of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A function's messages.
    Function(Function),
    /// An input of the I/O APIC with this id.
    IoApic(u8),
    /// The messages of the HPET with this number.
    Hpet(u8),
}

impl<P: Platform> Iommu<P> {
    /// Returns true if a unit remaps interrupts.
    #[must_use]
    pub fn remaps_interrupts(&self) -> bool {
        self.interrupts.is_some() && self.remapping().next().is_some()
    }

    /// Returns true if destinations of interrupts have 32 bits.
    #[must_use]
    pub fn has_extended_destinations(&self) -> bool {
        let table = self.interrupts.as_ref();
        table.is_some_and(|table| table.lock().is_extended())
    }

    /// Returns the interrupt entries in use, and all of them.
    #[must_use]
    pub fn entries(&self) -> Option<(usize, usize)> {
        let table = self.interrupts.as_ref()?.lock();
        Some((table.used(), table.capacity()))
    }

    /// Makes the entry of an interrupt. Its origin alone can raise it.
    ///
    /// # Errors
    /// [`Error::NoSource`], [`Error::NotCovered`], [`Error::NoRemapping`], [`Error::Destination`], [`Error::NoEntry`].
    /// [`Error::NoAnswer`], [`Error::Queue`]: a unit failed, and the entry stays taken.
    pub fn route(&self, origin: Origin, route: &Route) -> Result<Handle, Error> {
        self.make(origin, |table, source| table.encode(source, route))
    }

    /// Returns true if every unit that remaps interrupts can post them.
    #[must_use]
    pub fn posts(&self) -> bool {
        let mut units = self.remapping();
        self.remaps_interrupts() && units.all(|unit| unit.found.capability.posts())
    }

    /// Makes the entry of an interrupt that is posted. Its origin alone can raise it.
    ///
    /// # Errors
    /// As [`Self::route`]; [`Error::CannotPost`]; [`Error::Range`] for a descriptor that is not aligned.
    pub fn post(&self, origin: Origin, posting: &Posting) -> Result<Handle, Error> {
        if !self.posts() {
            return Err(Error::CannotPost);
        }
        self.make(origin, |_, source| posted(source, posting))
    }

    fn make(
        &self,
        origin: Origin,
        encode: impl FnOnce(&Table<P>, Source) -> Result<[u64; 2], Error>,
    ) -> Result<Handle, Error> {
        let source = self.source_of(origin)?;
        let table = self.interrupts.as_ref();
        let mut table = table.ok_or(Error::NoRemapping(source))?.lock();
        let entry = encode(&table, source)?;
        let handle = table.take()?;
        table.set(handle, entry);
        drop(table);
        self.forget(handle)?;
        Ok(handle)
    }

    /// Changes the destination of an interrupt. Its origin must not raise it meanwhile.
    ///
    /// # Errors
    /// [`Error::NotRouted`], [`Error::Destination`]; [`Error::NoAnswer`], [`Error::Queue`]: the interrupt may still go to
    /// its old destination, or nowhere.
    pub fn reroute(&self, handle: Handle, route: &Route) -> Result<(), Error> {
        let table = self.interrupts.as_ref();
        let table = table.ok_or(Error::NotRouted(handle.index()))?;
        let entry = {
            let table = table.lock();
            table.check(handle)?;
            let entry = table.encode(table.source(handle), route)?;
            table.clear(handle);
            entry
        };
        self.forget(handle)?;
        table.lock().set(handle, entry);
        self.forget(handle)
    }

    /// Frees the entry of an interrupt. Nothing can raise it once this has succeeded.
    ///
    /// # Errors
    /// [`Error::NotRouted`]; [`Error::NoAnswer`], [`Error::Queue`]: the entry stays taken.
    pub fn unroute(&self, handle: Handle) -> Result<(), Error> {
        let table = self.interrupts.as_ref();
        let table = table.ok_or(Error::NotRouted(handle.index()))?;
        {
            let table = table.lock();
            table.check(handle)?;
            table.clear(handle);
        }
        self.forget(handle)?;
        table.lock().give(handle);
        Ok(())
    }

    /// Makes every unit forget an entry.
    fn forget(&self, handle: Handle) -> Result<(), Error> {
        self.remapping()
            .try_for_each(|unit| unit.invalidate(&[interrupt(handle.index())]))
    }

    fn remapping(&self) -> impl Iterator<Item = &Unit<P>> {
        let units = self.slots.iter().flat_map(|slot| &slot.unit);
        units.filter(|unit| unit.remaps && unit.failure().is_none())
    }

    /// Returns the requester id of an origin whose unit remaps interrupts.
    fn source_of(&self, origin: Origin) -> Result<Source, Error> {
        let numbered = |kind, name, id| {
            let units = self.coverage.iter().enumerate();
            let found = units
                .filter_map(|(index, unit)| Some((index, unit.numbered(kind, id)?)))
                .next();
            found.ok_or(Error::NoSource(name, id))
        };
        let (index, source) = match origin {
            Origin::Function(function) => (self.unit_of(function)?.0, function.source),
            Origin::IoApic(id) => numbered(ScopeKind::IoApic, "I/O APIC", id)?,
            Origin::Hpet(id) => numbered(ScopeKind::Hpet, "HPET", id)?,
        };
        match self.unit(index) {
            Some(unit) if unit.remaps && unit.failure().is_none() => Ok(source),
            _ => Err(Error::NoRemapping(source)),
        }
    }
}
