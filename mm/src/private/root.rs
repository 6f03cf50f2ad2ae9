//! The TD's root page and its phase, behind the lock that every change of the map takes.
//!
//! Holding the lock shared is the only way to a [`Tdr<Keyed>`], and with it to every SEAMCALL that maps something. Code
//! that maps has thus checked under the lock that the TD is not being terminated. No code blocks on this lock: if it
//! cannot be shared, the TD is being terminated; if it cannot be held exclusively, it is busy. The caller decides what
//! to do meanwhile.

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

/// The way in which a TD's memory can be taken back now.
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
    /// Closed but not flushed: this can be undone.
    Closed(Live),
    Releasing(Tdr<Releasing>),
    Keyless(Tdr<Keyless>),
    /// Only during a change, and after the end.
    Gone,
}

/// A TD that has its key.
pub struct Live {
    tdr: Tdr<Keyed>,
    finalized: bool,
}

impl Live {
    /// Returns its root page.
    pub const fn tdr(&self) -> &Tdr<Keyed> {
        &self.tdr
    }

    /// Returns whether TDH.MR.FINALIZE was done. From then on, pages must be blocked and tracked before the TD loses
    /// them.
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
            // An exclusive holder is taken to move the TD away from keyed.
            None | Some(Root::Closed(_) | Root::Releasing(_)) => Mode::Releasing,
        }
    }

    /// Calls `work` while the TD has its key, and keeps the map from being closed meanwhile.
    pub fn keyed<R>(&self, work: impl FnOnce(&Live) -> Result<R, Error>) -> Result<R, Error> {
        let root = self.0.try_read().ok_or(Error::Terminated)?;
        match &*root {
            Root::Keyed(live) => work(live),
            _ => Err(Error::Terminated),
        }
    }

    /// Calls `work` while the TD has no key.
    pub fn keyless<R>(
        &self,
        work: impl FnOnce(&Tdr<Keyless>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        match self.0.try_read().as_deref() {
            Some(Root::Keyless(tdr)) => work(tdr),
            _ => Err(Error::NotKeyless),
        }
    }

    /// Changes the root with exclusive access. New users are kept out while `pause` waits for the current ones. Of two
    /// concurrent changes, one waits for the other.
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

    /// Takes the root page in whatever phase it is. Also returns the number of the TD's HKID, if it has one.
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

/// Once the map is closed, other CPUs hold the lock only until they learn that it is closed: for some instructions, or
/// an interrupt.
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
