//! The whole-system tests: each starts one or more machines and looks at them through the serial port and the debug
//! console.
//!
//! After each, the SEAM stub must have seen exactly the violations that the test says it provokes: none, as a rule.

mod bench;
mod boot;
mod chaos;
mod console;
mod guests;
mod hypercall;
mod linux;
mod monitor;
mod ovmf;
mod rom;
mod shutdown;
mod smp;
mod stage;
mod tds;
mod violations;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Result, anyhow, ensure};

pub use bench::Bench;
pub use rom::measure as measure_stub;

use crate::programs::Programs;

/// What a scenario needs that nobody has who did not fetch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Debian's kernel with a small system.
    Linux,
    /// Debian's stress-ng and kexec.
    Programs,
    /// A whole Debian.
    Debian,
    /// The module of LKVS's tdx-compliance, where the developer has a checkout.
    Lkvs,
}

/// One whole-system test.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Whether it runs only when it is asked for by its whole name: it is slow, or needs the network.
    pub by_name_only: bool,
    /// What it belongs to that can be asked for by one name, if it runs by name only.
    pub group: Option<&'static str>,
    /// What it needs beside the programs that are built.
    pub needs: &'static [Need],
    run: fn(&mut Bench) -> Result<()>,
}

impl Scenario {
    const fn new(name: &'static str, run: fn(&mut Bench) -> Result<()>) -> Self {
        Self {
            name,
            by_name_only: false,
            group: None,
            needs: &[],
            run,
        }
    }

    const fn by_name_only(name: &'static str, run: fn(&mut Bench) -> Result<()>) -> Self {
        Self {
            name,
            by_name_only: true,
            group: None,
            needs: &[],
            run,
        }
    }

    const fn with_linux(mut self) -> Self {
        self.needs = &[Need::Linux];
        self
    }

    /// A part of the tests with programs of others'.
    const fn foreign(
        name: &'static str,
        run: fn(&mut Bench) -> Result<()>,
        needs: &'static [Need],
    ) -> Self {
        Self {
            group: Some("foreign"),
            needs,
            ..Self::by_name_only(name, run)
        }
    }

    /// Runs it and gives the figures that it measured. It leaves its logs in a directory of its name in `home`, which it makes
    /// anew.
    ///
    /// # Errors
    /// What did not hold, with the last lines of the serial port where they help.
    pub fn run(&self, programs: &Programs, home: &Path) -> Result<Vec<String>> {
        let mut bench = Bench::new(self.name, programs, home);
        bench.clear()?;
        // A scenario that panics is a failed test and no reason to leave the others out.
        catch_unwind(AssertUnwindSafe(|| (self.run)(&mut bench)))
            .map_err(|_| anyhow!("the scenario panicked"))??;
        let seen = bench.complaints()?;
        ensure!(
            seen == bench.provoked(),
            "the stub reported {seen:?}, but the test provokes {:?}",
            bench.provoked()
        );
        Ok(bench.into_notes())
    }
}

/// Every scenario, in the order in which they run.
pub fn all() -> Vec<Scenario> {
    [
        boot::ALL,
        console::ALL,
        violations::ALL,
        monitor::ALL,
        linux::ALL,
        linux::foreign::ALL,
        guests::ALL,
        ovmf::ALL,
        chaos::ALL,
        hypercall::ALL,
        shutdown::ALL,
        tds::ALL,
        rom::ALL,
    ]
    .concat()
}
