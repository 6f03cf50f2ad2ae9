//! Exits about which the monitor can't say what VMX would: the instruction can't be read, or it is not one that causes
//! such an exit.
//!
//! The processor executes from its TLB what the page tables no longer map, and another vCPU may have written over the
//! instruction since. Either way the processor may execute the instruction again after a flush of its TLB, as if it had
//! dropped the translation earlier: then it faults, exits again, or executes what is there now.

use crate::insn::GprFile;

/// How often in a row an exit may be in doubt that leaves the vCPU as the last one did: some 15 ms under TCG. The monitor does not
/// see a fault that the guest handles by itself, so that a guest may be in doubt again and again at one address; but not
/// this often with the same registers.
pub const PATIENCE: u32 = 1000;

/// The exits that were in doubt since the last one that was not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Doubt {
    rip: u64,
    gprs: GprFile,
    times: u32,
}

impl Doubt {
    /// Counts an exit in doubt with these registers; whether the guest may execute it again.
    pub fn may_retry(&mut self, rip: u64, gprs: &GprFile) -> bool {
        if self.rip != rip || self.gprs != *gprs {
            *self = Self {
                rip,
                gprs: *gprs,
                times: 0,
            };
        }
        self.times += 1;
        let may = self.times <= PATIENCE;
        if !may {
            self.settle();
        }
        may
    }

    /// Forgets the exits in doubt: one was not.
    pub fn settle(&mut self) {
        self.times = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_rax(rax: u64) -> GprFile {
        let mut gprs = GprFile::default();
        gprs.0[0] = rax;
        gprs
    }

    #[test]
    fn an_exit_is_in_doubt_for_a_bounded_time() {
        let mut doubt = Doubt::default();
        for _ in 0..PATIENCE {
            assert!(doubt.may_retry(0x1000, &with_rax(1)));
        }
        assert!(!doubt.may_retry(0x1000, &with_rax(1)));
        assert!(
            doubt.may_retry(0x1000, &with_rax(1)),
            "what was decided is over"
        );
    }

    #[test]
    fn progress_ends_the_count() {
        let mut doubt = Doubt::default();
        for round in 0..2 * u64::from(PATIENCE) {
            assert!(doubt.may_retry(round % 2, &with_rax(1)), "two addresses");
        }
        for round in 0..2 * u64::from(PATIENCE) {
            assert!(doubt.may_retry(7, &with_rax(round)), "other registers");
        }
        for _ in 0..2 * PATIENCE {
            assert!(doubt.may_retry(7, &with_rax(1)));
            doubt.settle();
        }
    }
}
