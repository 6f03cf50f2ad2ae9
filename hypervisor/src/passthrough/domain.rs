//! The domain of one TD's functions, which follows the TD's shared memory.

use alloc::{
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::{fmt, ops::Range};

use mm::shared::{Mirror, MirrorError, Page};
use seam::address::Gpa;
use sync::IrqLock;
use vtd::{Access, Domain, Error, Function};

use super::machine::Machine;

/// The domain of one TD's functions.
///
/// Its lock is taken with the lock of the TD's shared memory held, and around the locks of VT-d units. While it is held,
/// interrupts are off, for as long as a unit takes to invalidate: microseconds, and at most
/// [`LIMIT_US`](vtd::LIMIT_US) once for each unit, which then counts as failed and is not waited for again.
pub struct Confinement<M: Machine> {
    machine: M,
    /// `None` once it has ended: no function reaches anything.
    domain: IrqLock<Option<Domain<M::Platform>>>,
}

impl<M: Machine> Confinement<M> {
    /// Creates an empty domain and attaches `functions` to it: all requester ids that requests of the TD's functions
    /// carry.
    ///
    /// # Errors
    /// A sentence. Nothing is attached, unless a unit has failed.
    pub fn new(machine: &M, functions: &[Function]) -> Result<Arc<Self>, String> {
        let iommu = machine.iommu()?;
        let mut domain = iommu.domain().map_err(|error| error.to_string())?;
        for function in functions {
            if let Err(error) = iommu.attach(&mut domain, *function) {
                let why = error.to_string();
                let confinement = Self::of(machine, domain);
                // The domain is empty, so that a function that stays attached reaches nothing.
                return match confinement.end() {
                    Ok(()) => Err(why),
                    Err(also) if also == why => Err(why),
                    Err(also) => Err(alloc::format!("{why}; {also}")),
                };
            }
        }
        Ok(Arc::new(Self::of(machine, domain)))
    }

    fn of(machine: &M, domain: Domain<M::Platform>) -> Self {
        Self {
            machine: machine.clone(),
            domain: IrqLock::new(Some(domain)),
        }
    }

    /// Detaches all functions, and frees the domain. May be called again.
    ///
    /// # Errors
    /// A sentence: functions may reach what is mapped.
    pub fn end(&self) -> Result<(), String> {
        let iommu = self.machine.iommu()?;
        let mut place = self.domain.lock();
        let Some(domain) = place.as_mut() else {
            return Ok(());
        };
        let functions: Vec<_> = domain.functions().collect();
        for function in functions {
            let detached = iommu.detach(domain, function);
            detached.map_err(|error| error.to_string())?;
        }
        if let Some(domain) = place.take()
            && let Err(domain) = iommu.end(domain)
        {
            // Unreachable: no function is attached.
            *place = Some(domain);
        }
        Ok(())
    }

    /// Changes the domain, and waits until no unit translates by what was there before. Returns `None` after the end.
    fn change(
        &self,
        change: impl FnOnce(&mut Domain<M::Platform>) -> Result<(), Error>,
    ) -> Option<Result<(), Error>> {
        let mut domain = self.domain.lock();
        let domain = domain.as_mut()?;
        Some(change(domain).and_then(|()| match self.machine.iommu() {
            Ok(iommu) => iommu.flush(domain),
            Err(_) => Ok(()),
        }))
    }
}

impl<M: Machine> Mirror for Confinement<M> {
    fn map(&self, gpa: Gpa, page: Page) -> Result<(), MirrorError> {
        let bytes = page.size.bytes();
        let access = if page.is_read_only {
            Access::Read
        } else {
            Access::ReadWrite
        };
        let mapped = self.change(|domain| domain.map(gpa.0, page.hpa.0, bytes, access));
        let outcome = mapped.unwrap_or(Ok(()));
        if let Err(Error::NoAnswer(..) | Error::Queue(_)) = outcome {
            // The page stays out of the tables, which a failed unit reads at any time.
            let unmapped = self.change(|domain| domain.unmap(gpa.0, bytes));
            log_failure(gpa, &unmapped.unwrap_or(Ok(())));
        }
        outcome.map_err(reason)
    }

    fn unmap(&self, range: Range<u64>) -> Result<(), MirrorError> {
        let bytes = range.end.saturating_sub(range.start);
        let unmapped = self.change(|domain| domain.unmap(range.start, bytes));
        unmapped.unwrap_or(Ok(())).map_err(reason)
    }
}

/// Translates the driver's error. Whatever else it finds is a mistake of the host's own, of which the caller must assume
/// the worst.
fn reason(error: Error) -> MirrorError {
    match error {
        Error::NoMemory => MirrorError::NoMemory,
        _ => MirrorError::NoAnswer,
    }
}

fn log_failure(gpa: Gpa, outcome: &Result<(), Error>) {
    if let Err(error) = outcome {
        log::error!("devices may still reach {:#x} of a TD: {error}", gpa.0);
    }
}

impl<M: Machine> fmt::Debug for Confinement<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domain = self.domain.try_lock();
        let id = domain.and_then(|domain| domain.as_ref().map(Domain::id));
        f.debug_struct("Confinement").field("id", &id).finish()
    }
}
