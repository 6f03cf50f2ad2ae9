//! The TD's root page, in the phase that decides how memory comes back, behind the lock that every change of the map is made
//! under.
//!
//! Holding it shared is the only way to a [`Tdr<Keyed>`], and with it to every SEAMCALL that maps something: whoever maps has
//! checked under the lock that the TD is not being terminated. Nobody waits for this lock: who can't have it shared is
//! told that the TD is being terminated, who can't have it alone that it is busy, and both decide by themselves
//! what to do meanwhile.

use core::fmt;
use core::ops::ControlFlow;

use seam::call::SeamCall;
use seam::error::Rejected;
use seam::hkid::Hkid;
use seam::page::{Donated, Page};
use seam::retry::Wait;
use seam::tdh::{Keyed, Keyless, Releasing, Tdh, Tdr};

use super::error::Error;
use sync::RwLock;
use sync::hint::spin_loop;

/// How a TD's memory can be taken back now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By dynamic removal.
    Keyed,
    /// Not at all: the HKID is being released. Frees are queued.
    Releasing,
    /// By bulk reclaim.
    Keyless,
}

/// The root page and its phase.
enum Root {
    Keyed(Live),
    /// Closed, but not flushed: this can be undone.
    Closed(Live),
    Releasing(Tdr<Releasing>),
    Keyless(Tdr<Keyless>),
    /// Only within a change, and after the end.
    Gone,
}

/// A TD that has its key.
pub struct Live {
    tdr: Tdr<Keyed>,
    finalized: bool,
}

impl Live {
    /// Its root page.
    pub const fn tdr(&self) -> &Tdr<Keyed> {
        &self.tdr
    }

    /// Whether TDH.MR.FINALIZE was done: what is taken from the TD must be blocked and tracked from then on.
    pub const fn is_finalized(&self) -> bool {
        self.finalized
    }
}

/// The root page, its phase, and the lock.
pub(super) struct RootLock(RwLock<Root>);

impl RootLock {
    pub const fn new(tdr: Tdr<Keyed>) -> Self {
        Self(RwLock::new(Root::Keyed(Live {
            tdr,
            finalized: false,
        })))
    }

    pub fn mode(&self) -> Mode {
        match self.0.try_read().as_deref() {
            Some(Root::Keyed(_)) => Mode::Keyed,
            Some(Root::Keyless(_) | Root::Gone) => Mode::Keyless,
            // It is held alone only for a change away from keyed.
            None | Some(Root::Closed(_) | Root::Releasing(_)) => Mode::Releasing,
        }
    }

    /// Does `work` while the TD has its key, and keeps it from being closed meanwhile.
    pub fn keyed<R>(&self, work: impl FnOnce(&Live) -> Result<R, Error>) -> Result<R, Error> {
        let root = self.0.try_read().ok_or(Error::Terminated)?;
        match &*root {
            Root::Keyed(live) => work(live),
            _ => Err(Error::Terminated),
        }
    }

    /// Does `work` while the TD has no key.
    pub fn keyless<R>(
        &self,
        work: impl FnOnce(&Tdr<Keyless>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        match self.0.try_read().as_deref() {
            Some(Root::Keyless(tdr)) => work(tdr),
            _ => Err(Error::NotKeyless),
        }
    }

    /// Changes the root with nobody else about. Newcomers are kept off while `pause` waits for those who are; of two who
    /// want to change it one waits for the other.
    fn change<R>(
        &self,
        mut pause: impl FnMut(u32) -> ControlFlow<()>,
        work: impl FnOnce(&mut Root) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut tries = 0;
        let mut wait = || {
            tries += 1;
            pause(tries)
        };
        let mut waiting = loop {
            match self.0.try_upgradeable_read() {
                Some(waiting) => break waiting,
                None if wait().is_break() => return Err(Error::Busy),
                None => {}
            }
        };
        let mut root = loop {
            match waiting.try_upgrade() {
                Ok(root) => break root,
                Err(again) => waiting = again,
            }
            if wait().is_break() {
                return Err(Error::Busy);
            }
        };
        work(&mut root)
    }

    pub fn finalize<C: SeamCall, W: Wait>(&self, tdh: &Tdh<'_, C, W>) -> Result<(), Error> {
        self.change(never, |root| match root {
            Root::Keyed(live) if live.finalized => Err(Error::Finalized),
            Root::Keyed(live) => {
                tdh.mr_finalize(&live.tdr)?;
                live.finalized = true;
                Ok(())
            }
            _ => Err(Error::Terminated),
        })
    }

    pub fn close(&self, pause: impl FnMut(u32) -> ControlFlow<()>) -> Result<(), Error> {
        self.change(pause, |root| {
            match core::mem::replace(root, Root::Gone) {
                Root::Keyed(live) => *root = Root::Closed(live),
                other => *root = other,
            }
            Ok(())
        })
    }

    pub fn reopen(&self) -> Result<(), Error> {
        self.change(briefly, |root| match core::mem::replace(root, Root::Gone) {
            Root::Closed(live) => {
                *root = Root::Keyed(live);
                Ok(())
            }
            other => {
                let result = match &other {
                    Root::Keyed(_) => Ok(()),
                    _ => Err(Error::Terminated),
                };
                *root = other;
                result
            }
        })
    }

    pub fn flush_done<C: SeamCall, W: Wait>(&self, tdh: &Tdh<'_, C, W>) -> Result<(), Error> {
        self.change(briefly, |root| match core::mem::replace(root, Root::Gone) {
            Root::Closed(Live { tdr, finalized }) => match tdh.mng_vpflushdone(tdr) {
                Ok(tdr) => {
                    *root = Root::Releasing(tdr);
                    Ok(())
                }
                Err(Rejected { error, given: tdr }) => {
                    *root = Root::Closed(Live { tdr, finalized });
                    Err(error.into())
                }
            },
            other => {
                let result = match &other {
                    Root::Keyed(_) => Err(Error::Busy),
                    _ => Ok(()),
                };
                *root = other;
                result
            }
        })
    }

    pub fn free_hkid<C: SeamCall, W: Wait>(
        &self,
        tdh: &Tdh<'_, C, W>,
    ) -> Result<Option<Hkid>, Error> {
        self.change(briefly, |root| match core::mem::replace(root, Root::Gone) {
            Root::Releasing(tdr) => match tdh.mng_key_freeid(tdr) {
                Ok((tdr, hkid)) => {
                    *root = Root::Keyless(tdr);
                    Ok(Some(hkid))
                }
                Err(Rejected { error, given: tdr }) => {
                    *root = Root::Releasing(tdr);
                    Err(error.into())
                }
            },
            other => {
                let result = match &other {
                    Root::Keyless(_) | Root::Gone => Ok(None),
                    _ => Err(Error::Busy),
                };
                *root = other;
                result
            }
        })
    }

    /// Takes the root page, whatever phase it is in, and the number of the key that the TD has.
    pub fn write_off(&self) -> Result<(Page<Donated>, Option<u16>), Error> {
        self.change(briefly, |root| {
            let (page, hkid) = match core::mem::replace(root, Root::Gone) {
                Root::Keyed(live) | Root::Closed(live) => live.tdr.write_off(),
                Root::Releasing(tdr) => tdr.write_off(),
                Root::Keyless(tdr) => return Ok((tdr.into_page(), None)),
                Root::Gone => return Err(Error::Terminated),
            };
            Ok((page, Some(hkid)))
        })
    }

    pub fn take(&self) -> Result<Tdr<Keyless>, Error> {
        self.change(briefly, |root| match core::mem::replace(root, Root::Gone) {
            Root::Keyless(tdr) => Ok(tdr),
            other => {
                *root = other;
                Err(Error::NotKeyless)
            }
        })
    }
}

fn never(_: u32) -> ControlFlow<()> {
    ControlFlow::Break(())
}

/// Once the map is closed, others hold the lock only for as long as it takes to be told so: some instructions, or an
/// interrupt.
fn briefly(tries: u32) -> ControlFlow<()> {
    const MAX_TRIES: u32 = 100_000;
    if tries == MAX_TRIES {
        return ControlFlow::Break(());
    }
    spin_loop();
    ControlFlow::Continue(())
}

impl fmt::Debug for RootLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mode().fmt(f)
    }
}
