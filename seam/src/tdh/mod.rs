//! The host's side of the TDX module: [`Tdh`] has one method, with typed operands, for each host leaf that concerns the
//! platform and a TD's life. Each method is named after its leaf.
//!
//! Every call goes through one function, which counts it and, if the module asks for it, repeats it under the policy of
//! [`crate::retry`]. A page that is donated to the module is moved into the call ([`crate::page`]). A method that takes
//! pages returns them in a [`Rejected`](crate::error::Rejected) if the module refused. A call that is valid only in one
//! phase of a TD's life takes the [`Tdr`] of that phase.
//!
//! There is one file per family of leafs, and [`resume`] for the leafs that are called until they are done.

mod mem;
mod metadata;
mod mng;
mod mr;
mod pamt;
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
pub use pamt::{Joined, PamtPair, Split, Tables};
pub use phymem::{CacheWb, CacheWbStart, PageMetadata, Reconsidered};
pub use sys::{SysInfo, TdmrProgress};
pub use td::{Keyed, Keyless, Phase, Releasing, Tdr, Tdvpr};
pub use vp::EnterFlags;

/// The TDX module, as called from one CPU.
///
/// `C` executes the instruction on the calling CPU, `W` spends the pauses between tries, and the counters are that
/// CPU's. A `Tdh` is cheap to create, so a CPU creates one when needed.
#[derive(Debug)]
pub struct Tdh<'a, C, W> {
    call: C,
    wait: W,
    counters: &'a Counters,
}

/// The result of a successful leaf: a status of the success class, and the outputs.
#[derive(Clone, Copy, Debug)]
struct Done {
    status: Status,
    regs: Gprs,
}

impl<'a, C: SeamCall, W: Wait> Tdh<'a, C, W> {
    /// Creates an interface that calls through `call`, waits with `wait`, and counts in `counters`.
    pub const fn new(call: C, wait: W, counters: &'a Counters) -> Self {
        Self {
            call,
            wait,
            counters,
        }
    }

    /// Returns the same interface without retries.
    pub fn once(&self) -> Tdh<'a, &C, Never> {
        Tdh::new(&self.call, Never, self.counters)
    }

    /// Returns the counters.
    pub const fn counters(&self) -> &'a Counters {
        self.counters
    }

    /// Calls version 0 of `leaf` with these operands.
    fn run(&self, leaf: Leaf, operands: Gprs) -> Result<Done, Error> {
        self.run_version(leaf, 0, operands)
    }

    /// Calls `leaf` with these operands, and repeats the call as the retry policy allows.
    fn run_version(&self, leaf: Leaf, version: u8, operands: Gprs) -> Result<Done, Error> {
        self.run_here(leaf, version, operands)
    }

    /// Like [`Self::run_version`], for leafs on a vCPU's exit path: the first try is inlined into the caller, without
    /// copying registers.
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

    /// Handles a first try of `leaf` that failed with `regs`: retries it as the policy allows, and returns the final
    /// result.
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
            Err(fault) => Err(self.count_fault(leaf, fault)),
        }
    }

    #[cold]
    #[inline(never)]
    fn count_fault(&self, leaf: Leaf, fault: Fault) -> Error {
        self.counters.count_fault();
        if matches!(fault, Fault::NotLoaded | Fault::NotEnabled) {
            self.call.note_shutdown();
        }
        Error::fault(leaf, fault)
    }

    #[cold]
    #[inline(never)]
    fn count_error(&self, leaf: Leaf, status: Status) {
        self.counters.count(leaf, Outcome::of(leaf, status));
        if status.code() == Status::SYS_SHUTDOWN {
            self.call.note_shutdown();
        }
    }
}

/// Register operands of leafs that take RCX alone, or RCX and RDX.
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
