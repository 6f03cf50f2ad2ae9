//! Doubtful exits: the monitor can't determine the VMX exit, because the instruction can't be read or is not one that
//! causes such an exit.
//!
//! The processor may have executed from its TLB what the page tables no longer map, or another vCPU may have
//! overwritten the instruction since. In both cases the processor may execute the instruction again after a TLB flush,
//! as if it had dropped the translation earlier. It then faults, exits again, or executes the current instruction.

use crate::insn::GprFile;

/// The maximum number of consecutive doubtful exits that leave the vCPU unchanged: about 15 ms under TCG. The monitor
/// does not see faults that the guest handles itself, so exits at one address may be doubtful repeatedly, but not this
/// often with the same registers.
pub const PATIENCE: u32 = 1000;

/// The doubtful exits since the last one that was not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Doubt {
    rip: u64,
    gprs: GprFile,
    times: u32,
}

impl Doubt {
    /// Counts a doubtful exit with these registers. Returns whether the guest may execute the instruction again.
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

    /// Resets the count after an exit that was not doubtful.
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
    fn progress_resets_the_count() {
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
