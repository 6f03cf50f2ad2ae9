//! The host's side of the TDX module: one method of [`Tdh`] for each host leaf of the platform's and a TD's life, named
//! after it, with its operands as types.
//!
//! Every call goes through one function, where it is counted and, if the module asks for it, repeated under the policy
//! of [`crate::retry`]. A page that becomes the module's is moved into the call ([`crate::page`]); a method that takes
//! pages gives them back in a [`Rejected`](crate::error::Rejected) when the module refused. What can only be done in a
//! phase of a TD's life takes the [`Tdr`] of that phase.
//!
//! One file for each family of leafs, and [`resume`] for those that are called until they are done.

mod mem;
mod metadata;
mod mng;
mod mr;
mod phymem;
pub mod resume;
mod sept;
mod sys;
mod td;
mod vp;

use crate::abi::{Gprs, Leaf, Status};
use crate::call::{Fault, SeamCall};
use crate::counters::{Counters, Outcome};
use crate::error::Error;
use crate::retry::{Never, Pause, Reason, Wait};

pub use mem::{Demoted, Promoted, RangeBlock, Relocated};
pub use metadata::Next;
pub use mng::KeyConfig;
pub use phymem::{CacheWb, CacheWbStart, PageMetadata};
pub use sys::{SysInfo, TdmrProgress};
pub use td::{Keyed, Keyless, Phase, Releasing, Tdr, Tdvpr};
pub use vp::EnterFlags;

/// The TDX module as the host calls it from one CPU.
///
/// `C` executes the instruction on the CPU that calls, `W` spends the pauses between tries, and the counters are that
/// CPU's. It is cheap to make, so a CPU makes one when it needs one.
#[derive(Debug)]
pub struct Tdh<'a, C, W> {
    call: C,
    wait: W,
    counters: &'a Counters,
}

/// How a leaf that did its work ended: a status of the success class, and its outputs.
#[derive(Clone, Copy, Debug)]
struct Done {
    status: Status,
    regs: Gprs,
}

impl<'a, C: SeamCall, W: Wait> Tdh<'a, C, W> {
    /// Calls through `call`, waits by `wait`, counts in `counters`.
    pub const fn new(call: C, wait: W, counters: &'a Counters) -> Self {
        Self {
            call,
            wait,
            counters,
        }
    }

    /// The same, but each call is tried once only.
    pub fn once(&self) -> Tdh<'a, &C, Never> {
        Tdh::new(&self.call, Never, self.counters)
    }

    /// The counters that it counts in.
    pub const fn counters(&self) -> &'a Counters {
        self.counters
    }

    /// Calls version 0 of `leaf` with these operands.
    fn run(&self, leaf: Leaf, operands: Gprs) -> Result<Done, Error> {
        self.run_version(leaf, 0, operands)
    }

    /// Calls `leaf` with these operands, as often as the policy allows while it says that it may succeed later.
    fn run_version(&self, leaf: Leaf, version: u8, operands: Gprs) -> Result<Done, Error> {
        self.run_here(leaf, version, operands)
    }

    /// [`Self::run_version`] for the leafs that a vCPU's exit waits for: the first try is made in the caller, without
    /// registers being copied.
    #[inline(always)]
    fn run_here(&self, leaf: Leaf, version: u8, operands: Gprs) -> Result<Done, Error> {
        let mut regs = operands;
        regs.rax = leaf.rax_version(version);
        let status = self.count(leaf, self.call.seamcall(&mut regs), &regs)?;
        if status.is_error() {
            return self.retry(leaf, version, &operands, regs);
        }
        Ok(Done { status, regs })
    }

    /// What `leaf` came to once it did not succeed at first, with `regs`.
    #[cold]
    fn retry(
        &self,
        leaf: Leaf,
        version: u8,
        operands: &Gprs,
        mut regs: Gprs,
    ) -> Result<Done, Error> {
        let mut tries = 1;
        loop {
            let status = Status(regs.rax);
            if !status.is_error() {
                return Ok(Done { status, regs });
            }
            let error = Error::status_of(leaf, &regs).after(tries);
            let Some(reason) = Reason::of(status) else {
                return Err(error);
            };
            if tries == reason.max_tries() || self.pause(leaf, status, reason, tries).is_break() {
                if tries > 1 {
                    self.counters.count_given_up(reason);
                }
                return Err(error);
            }
            self.counters.count_retry(reason);
            regs = *operands;
            regs.rax = leaf.rax_version(version);
            self.count(leaf, self.call.seamcall(&mut regs), &regs)?;
            tries += 1;
        }
    }

    fn pause(
        &self,
        leaf: Leaf,
        status: Status,
        reason: Reason,
        tries: u32,
    ) -> core::ops::ControlFlow<()> {
        let us = reason.pause_us(tries);
        self.wait.wait(Pause {
            leaf,
            status,
            reason,
            tries,
            us,
        })
    }

    /// Counts one SEAMCALL by its result.
    #[inline]
    fn count(&self, leaf: Leaf, result: Result<(), Fault>, regs: &Gprs) -> Result<Status, Error> {
        match result {
            Ok(()) => {
                let status = Status(regs.rax);
                if status.is_error() {
                    self.count_error(leaf, status);
                } else {
                    self.counters.count(leaf, Outcome::Done);
                }
                Ok(status)
            }
            Err(fault) => {
                self.counters.count_fault();
                if matches!(fault, Fault::NotLoaded | Fault::NotEnabled) {
                    self.call.note_shutdown();
                }
                Err(Error::fault(leaf, fault))
            }
        }
    }

    #[cold]
    fn count_error(&self, leaf: Leaf, status: Status) {
        self.counters.count(leaf, Outcome::of(leaf, status));
        if status.code() == Status::SYS_SHUTDOWN {
            self.call.note_shutdown();
        }
    }
}

/// The one and two register operands that most leafs take.
fn rcx(rcx: u64) -> Gprs {
    Gprs {
        rcx,
        ..Gprs::default()
    }
}

fn rcx_rdx(rcx: u64, rdx: u64) -> Gprs {
    Gprs {
        rcx,
        rdx,
        ..Gprs::default()
    }
}

#[cfg(test)]
mod tests;
