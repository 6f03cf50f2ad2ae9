//! The counts of passed and failed tests.

use std::process::ExitCode;
use std::time::Duration;

/// A count of tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    passed: usize,
    failures: Vec<Failure>,
    /// Failures that the test's runner, such as cargo, has reported.
    told: usize,
}

/// A test that failed.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    name: String,
    reason: String,
}

impl Tally {
    /// Counts tests that passed.
    pub fn passed(&mut self, count: usize) {
        self.passed += count;
    }

    /// Counts a test that failed and prints the reason. [`Tally::report`] repeats it.
    pub fn failed(&mut self, name: &str, error: &anyhow::Error) {
        let reason = format!("{error:#}");
        eprintln!("{name}: {reason}");
        self.failures.push(Failure {
            name: name.to_owned(),
            reason,
        });
    }

    /// Counts failed tests that were reported already.
    pub fn failed_already_told(&mut self, count: usize) {
        self.told += count;
    }

    fn all_passed(&self) -> bool {
        self.told == 0 && self.failures.is_empty()
    }

    /// Prints the outcome, with the reasons of all failures: the end of a long output is what is kept. Scripts read the
    /// last line.
    pub fn report(&self, took: Duration) -> ExitCode {
        for Failure { name, reason } in &self.failures {
            println!("failed: {name}: {reason}");
        }
        println!("took {} s", took.as_secs());
        println!("{}", self.last_line());
        if self.all_passed() && self.passed > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn last_line(&self) -> String {
        let failed = self.told + self.failures.len();
        format!("{} passed, {failed} failed", self.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_all_kinds_of_tests() {
        let mut tally = Tally::default();
        tally.passed(40);
        tally.passed(1);
        assert_eq!(tally.last_line(), "41 passed, 0 failed");
        tally.failed_already_told(2);
        tally.failed("boot-over-pxe", &anyhow::anyhow!("no prompt"));
        assert_eq!(tally.last_line(), "41 passed, 3 failed");
    }

    #[test]
    fn a_run_of_nothing_is_no_success() {
        let exit = Tally::default().report(Duration::ZERO);
        assert_eq!(format!("{exit:?}"), format!("{:?}", ExitCode::FAILURE));
    }
}
