//! A TD's vCPUs: a slot for each, with its own lock.
//!
//! Every operation on a vCPU (TDH.VP.*) holds its lock, and checks the TD's state after taking it. Once the state
//! forbids vCPUs to run and each lock has been held since, none runs and none will.

use alloc::{boxed::Box, collections::TryReserveError, vec::Vec};
use core::fmt;
use sync::atomic::{AtomicU32, Ordering::SeqCst};

use mm::private::{self, Kick};
use seam::{
    abi::{Status, metadata::vp},
    error::Error,
    page::{Donated, Page},
    tdh::Tdvpr,
};
use sync::{Mutex, MutexGuard};

use super::life::{Life, State};
use crate::platform::Platform;

/// No CPU.
const NONE: u32 = u32::MAX;

/// The slot of a vCPU.
#[derive(Debug)]
pub struct Slot {
    /// The root page; `None` before it is created, and after its pages were taken for reclaim.
    tdvpr: Mutex<Option<Tdvpr>>,
    /// The CPU that holds the lock to run or to inspect the vCPU.
    user: AtomicU32,
    /// The CPU that the module may have associated with the vCPU. Changed only with the lock held.
    association: AtomicU32,
}

/// The reason why a vCPU can't be used now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no vCPU of that number.
    NoVcpu,
    /// Another CPU has the vCPU.
    InUse,
    /// The TD's state does not allow any vCPU to be used.
    State(State),
    /// The CPU that the vCPU is associated with did not answer.
    NoAnswer(u32),
    /// The module did not end or begin the association.
    Seam(Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVcpu => f.write_str("there is no such vCPU"),
            Self::InUse => f.write_str("another CPU holds the vCPU"),
            Self::State(state) => write!(f, "the TD is {}", state.in_words()),
            Self::NoAnswer(cpu) => write!(f, "CPU {cpu}, which held the vCPU, does not answer"),
            Self::Seam(error) => error.fmt(f),
        }
    }
}

/// All vCPUs of a TD.
#[derive(Debug)]
pub struct Slots(Box<[Slot]>);

impl Slots {
    /// Creates slots for `count` vCPUs. `None` if the heap is used up.
    #[must_use]
    pub fn new(count: u16) -> Option<Self> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(count.into()).ok()?;
        slots.resize_with(count.into(), || Slot {
            tdvpr: Mutex::new(None),
            user: AtomicU32::new(NONE),
            association: AtomicU32::new(NONE),
        });
        Some(Self(slots.into_boxed_slice()))
    }

    /// Returns the number of vCPUs.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.0.len() as u16
    }

    /// Returns the CPU that uses vCPU `index`.
    #[must_use]
    pub fn user(&self, index: u16) -> Option<u32> {
        self.0.get(usize::from(index))?.user()
    }

    /// Returns the CPU that vCPU `index` is associated with.
    #[must_use]
    pub fn association(&self, index: u16) -> Option<u32> {
        self.0.get(usize::from(index))?.associated()
    }

    /// Returns the CPU that each vCPU is associated with, which is where it was created; 0 for one that is not
    /// associated.
    #[must_use]
    pub fn homes(&self) -> Vec<u32> {
        self.0
            .iter()
            .map(|slot| slot.associated().unwrap_or(0))
            .collect()
    }

    /// Returns the number of root pages, including those of vCPUs that are in use.
    #[must_use]
    pub fn made(&self) -> u64 {
        let made = |slot: &&Slot| slot.tdvpr.try_lock().is_none_or(|tdvpr| tdvpr.is_some());
        self.0.iter().filter(made).count() as u64
    }

    /// Returns the CPUs that run a vCPU or may still cache translations of one. A CPU can occur more than once.
    pub fn cpus(&self) -> impl Iterator<Item = u32> + '_ {
        let all = self.0.iter();
        all.flat_map(|slot| [slot.user(), slot.associated()])
            .flatten()
    }

    /// Takes vCPU `index` for the calling CPU, and associates it with that CPU.
    ///
    /// # Errors
    /// [`Refused`]. Nothing has changed, except that the vCPU may have lost its association with another CPU.
    pub fn hold<'a, P: Platform>(
        &'a self,
        platform: &P,
        life: &'a Life,
        index: u16,
    ) -> Result<Held<'a>, Refused> {
        let slot = self.0.get(usize::from(index)).ok_or(Refused::NoVcpu)?;
        let Some(tdvpr) = slot.tdvpr.try_lock() else {
            return Err(match life.state() {
                State::Runnable => Refused::InUse,
                state => Refused::State(state),
            });
        };
        let me = platform.this_cpu();
        slot.user.store(me, SeqCst);
        let held = Held {
            slot,
            tdvpr,
            life,
            index,
        };
        held.check()?;
        held.come_here(platform, me)?;
        Ok(held)
    }

    /// Takes all vCPUs, so that none is used. `None` for those that another CPU has.
    ///
    /// # Errors
    /// [`TryReserveError`] if the heap has no room for the list; none is taken.
    pub(super) fn try_stop(&self) -> Result<Vec<Option<Stopped<'_>>>, TryReserveError> {
        let mut vcpus = Vec::new();
        vcpus.try_reserve_exact(self.0.len())?;
        vcpus.extend(self.0.iter().map(Slot::stop));
        Ok(vcpus)
    }

    /// Takes vCPU `index`, so that it is not used. `None` if another CPU has it.
    pub(super) fn stop(&self, index: u16) -> Option<Stopped<'_>> {
        self.0.get(usize::from(index))?.stop()
    }

    /// Returns the CPUs that use a vCPU. A CPU can occur more than once.
    pub(super) fn users(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().filter_map(Slot::user)
    }
}

impl Slot {
    fn user(&self) -> Option<u32> {
        some(self.user.load(SeqCst))
    }

    fn associated(&self) -> Option<u32> {
        some(self.association.load(SeqCst))
    }

    fn stop(&self) -> Option<Stopped<'_>> {
        Some(Stopped {
            slot: self,
            tdvpr: self.tdvpr.try_lock()?,
        })
    }
}

fn some(cpu: u32) -> Option<u32> {
    Some(cpu).filter(|cpu| *cpu != NONE)
}

/// A vCPU that the calling CPU has taken and that is associated with it. Unlocked on drop.
#[derive(Debug)]
#[must_use = "the vCPU is free again when it is dropped"]
pub struct Held<'a> {
    slot: &'a Slot,
    tdvpr: MutexGuard<'a, Option<Tdvpr>>,
    life: &'a Life,
    index: u16,
}

impl Held<'_> {
    /// Returns the vCPU's number.
    #[must_use]
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Returns the root page for calls on the vCPU: TDH.VP.ENTER, TDH.VP.RD, TDH.VP.WR. Must be called again after each
    /// exit, because the vCPU may have been asked to stop meanwhile.
    ///
    /// # Errors
    /// [`Refused::State`] if the vCPU must not run any more. The holder then releases it.
    pub fn tdvpr(&self) -> Result<&Tdvpr, Refused> {
        self.check()?;
        self.tdvpr.as_ref().ok_or(Refused::NoVcpu)
    }

    /// Returns whether the vCPU may be entered: it was not asked to stop.
    #[must_use]
    pub fn may_run(&self) -> bool {
        self.life.state() == State::Runnable
    }

    fn check(&self) -> Result<(), Refused> {
        match self.life.state() {
            State::Runnable => Ok(()),
            state => Err(Refused::State(state)),
        }
    }

    /// Ends the association with another CPU, and associates the vCPU with this one by TDH.VP.RD, the leaf that does
    /// nothing else.
    fn come_here<P: Platform>(&self, platform: &P, me: u32) -> Result<(), Refused> {
        let tdvpr = self.tdvpr.as_ref().ok_or(Refused::NoVcpu)?;
        match self.slot.associated() {
            Some(cpu) if cpu == me => return Ok(()),
            Some(cpu) => {
                let failed = Mutex::new(None);
                let flush = |_| *failed.lock() = flush(platform, tdvpr).err();
                let answered = platform.on_each(&[cpu], &flush);
                answered.map_err(|_| Refused::NoAnswer(cpu))?;
                if let Some(error) = failed.into_inner() {
                    return Err(Refused::Seam(error));
                }
                self.slot.association.store(NONE, SeqCst);
            }
            None => {}
        }
        let read = platform.tdh().vp_rd(tdvpr, vp::VCPU_STATE_DETAILS.id);
        // The module may have associated the vCPU although the call failed. It must then be flushed here.
        self.slot.association.store(me, SeqCst);
        read.map_err(Refused::Seam)?;
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.slot.user.store(NONE, SeqCst);
    }
}

/// A vCPU that is not used while this exists.
#[derive(Debug)]
pub struct Stopped<'a> {
    slot: &'a Slot,
    tdvpr: MutexGuard<'a, Option<Tdvpr>>,
}

impl Stopped<'_> {
    /// Sets the root page of a vCPU that was just created.
    pub(super) fn put(&mut self, tdvpr: Tdvpr) {
        *self.tdvpr = Some(tdvpr);
    }

    /// Returns the root page, if the vCPU was created.
    pub(super) fn tdvpr(&self) -> Option<&Tdvpr> {
        self.tdvpr.as_ref()
    }

    /// Notes that the module has associated the vCPU with this CPU.
    pub(super) fn associate(&self, cpu: u32) {
        self.slot.association.store(cpu, SeqCst);
    }

    /// Returns the CPU that the module associates with the vCPU.
    pub(super) fn associated(&self) -> Option<u32> {
        self.slot.associated()
    }

    /// Executes TDH.VP.FLUSH. Must run on the CPU that the vCPU is associated with.
    pub(super) fn flush<P: Platform>(&self, platform: &P) -> Result<(), Error> {
        if let Some(tdvpr) = &*self.tdvpr {
            flush(platform, tdvpr)?;
        }
        self.slot.association.store(NONE, SeqCst);
        Ok(())
    }

    /// Takes the root page for reclaim.
    pub(super) fn into_page(mut self) -> Option<Page<Donated>> {
        self.tdvpr.take().map(Tdvpr::into_page)
    }
}

/// Executes TDH.VP.FLUSH for a vCPU that the module may have associated with the calling CPU.
fn flush<P: Platform>(platform: &P, tdvpr: &Tdvpr) -> Result<(), Error> {
    match platform.tdh().vp_flush(tdvpr) {
        Err(error) if error.is(Status::VCPU_NOT_ASSOCIATED) => Ok(()),
        result => result,
    }
}

/// Makes a TD's vCPUs leave the guest by interrupting the CPUs that have them.
#[derive(Debug)]
pub struct Interrupt<'a, P> {
    /// The machine.
    pub platform: &'a P,
    /// The vCPUs.
    pub slots: &'a Slots,
}

impl<P: Platform> Kick for Interrupt<'_, P> {
    fn kick(&self) -> Result<(), private::NoAnswer> {
        let answered = self.platform.on_all(self.slots.users(), &|_| {});
        answered.map_err(|silent| private::NoAnswer {
            cpu: silent.first().copied().unwrap_or(NONE),
        })
    }
}
