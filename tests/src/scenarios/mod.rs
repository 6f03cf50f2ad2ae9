//! The whole-system tests. Each starts one or more machines and observes them through the serial port and the debug
//! console.
//!
//! After each test, the SEAM stub must have reported exactly the violations that the test provokes, which are usually
//! none.

mod bench;
mod boot;
mod chaos;
mod console;
mod cost;
mod crash;
mod debian;
mod errors;
mod firmware;
mod guests;
mod hypercall;
mod io;
mod linux;
mod machines;
mod modules;
mod monitor;
mod network;
mod operate;
mod ovmf;
mod pci;
mod port;
mod rom;
mod secure;
mod shares;
mod shutdown;
mod smp;
mod stage;
mod tds;
mod uefi;
mod violations;
mod vtd;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Result, anyhow, ensure};

pub use bench::Bench;
pub use cost::{count as count_stub, measure as measure_stub};

use crate::programs::Programs;

/// An item that a scenario needs and that must be fetched first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Debian's kernel with a small system.
    Linux,
    /// Debian's stress-ng and kexec.
    Programs,
    /// Debian 13's OVMF.
    Ovmf13,
    /// A whole Debian as an initial file system.
    Debian,
    /// A disk with a whole Debian.
    DebianDisk,
    /// Disks whose boots are measured.
    Measured,
    /// The emulator Bochs.
    Bochs,
    /// The programs that sign an image.
    Signing,
    /// The programs that make a network.
    Network,
    /// The module of LKVS's tdx-compliance, if the developer has a checkout.
    Lkvs,
}

/// The stub's report of a defect of QEMU's that no software in the machine can cause or avoid (docs/emulation.md). The stub
/// recognises it by numbers that it drew at random and that nobody else can read.
const LOST: &str = "QEMU left CPU 0 in nested paging when a guest exited";

/// One whole-system test.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// The name on the command line.
    pub name: &'static str,
    /// True if it runs only when its whole name is given: it is slow, or needs the network.
    pub by_name_only: bool,
    /// The group that can be run by one name, if the scenario belongs to one.
    pub group: Option<&'static str>,
    /// The items that it needs besides the built programs.
    pub needs: &'static [Need],
    run: Run,
}

/// The content of a scenario.
#[derive(Clone, Copy)]
enum Run {
    /// A function of its own.
    Function(fn(&mut Bench) -> Result<()>),
    /// The boot of a plain machine.
    Plain(&'static machines::Plain),
}

impl Run {
    fn run(self, bench: &mut Bench) -> Result<()> {
        match self {
            Self::Function(run) => run(bench),
            Self::Plain(plain) => plain.run(bench),
        }
    }
}

impl Scenario {
    const fn new(name: &'static str, run: fn(&mut Bench) -> Result<()>) -> Self {
        Self {
            name,
            by_name_only: false,
            group: None,
            needs: &[],
            run: Run::Function(run),
        }
    }

    const fn by_name_only(name: &'static str, run: fn(&mut Bench) -> Result<()>) -> Self {
        Self {
            name,
            by_name_only: true,
            group: None,
            needs: &[],
            run: Run::Function(run),
        }
    }

    const fn with_network(mut self) -> Self {
        self.needs = &[Need::Network];
        self
    }

    const fn with_linux(mut self) -> Self {
        self.needs = &[Need::Linux];
        self
    }

    const fn with_debian(mut self) -> Self {
        self.needs = &[Need::DebianDisk];
        self
    }

    const fn with_debian_and_linux(mut self) -> Self {
        self.needs = &[Need::DebianDisk, Need::Linux];
        self
    }

    const fn with_debian_and_ovmf_13(mut self) -> Self {
        self.needs = &[Need::DebianDisk, Need::Ovmf13];
        self
    }

    /// GRUB is that of Debian's disk.
    const fn with_grub_and_linux(mut self) -> Self {
        self.needs = &[Need::DebianDisk, Need::Ovmf13, Need::Linux];
        self
    }

    const fn with_measured_disks(mut self) -> Self {
        self.needs = &[Need::DebianDisk, Need::Ovmf13, Need::Linux, Need::Measured];
        self
    }

    const fn with_ovmf_13(mut self) -> Self {
        self.needs = &[Need::Ovmf13];
        self
    }

    /// Creates one of the tests with third-party programs.
    const fn foreign(
        name: &'static str,
        run: fn(&mut Bench) -> Result<()>,
        needs: &'static [Need],
    ) -> Self {
        Self::in_group("foreign", name, run, needs)
    }

    /// Creates a test that runs only by its name or that of its group.
    const fn in_group(
        group: &'static str,
        name: &'static str,
        run: fn(&mut Bench) -> Result<()>,
        needs: &'static [Need],
    ) -> Self {
        Self {
            group: Some(group),
            needs,
            ..Self::by_name_only(name, run)
        }
    }

    /// Creates the boot of a plain machine, which runs only by name or with its group.
    const fn plain(name: &'static str, plain: &'static machines::Plain) -> Self {
        Self {
            name,
            by_name_only: true,
            group: Some(machines::GROUP),
            needs: &[],
            run: Run::Plain(plain),
        }
    }

    /// Lets a scenario of a group run when no name is given, too.
    const fn always(mut self) -> Self {
        self.by_name_only = false;
        self
    }

    /// Runs the scenario. It leaves its logs in a directory of its name in `home`, which is recreated. If QEMU loses a CPU,
    /// the scenario begins again, which its notes tell.
    ///
    /// # Errors
    /// The condition that failed, with the last lines of the serial port if they help.
    pub fn run(&self, programs: &Programs, home: &Path) -> Result<Outcome> {
        const AGAIN: usize = 2;
        let mut begun_again = 0;
        loop {
            match self.run_once(programs, home) {
                Err(error) if begun_again < AGAIN && format!("{error:#}").contains(LOST) => {
                    begun_again += 1;
                }
                Ok(mut outcome) if begun_again > 0 => {
                    let note = format!("began again {begun_again} times: {LOST}");
                    outcome.notes.push(note);
                    return Ok(outcome);
                }
                result => return result,
            }
        }
    }

    fn run_once(&self, programs: &Programs, home: &Path) -> Result<Outcome> {
        let mut bench = Bench::new(self.name, programs, home);
        bench.clear()?;
        // A scenario that panics is a failed test; the others still run.
        catch_unwind(AssertUnwindSafe(|| self.run.run(&mut bench)))
            .map_err(|_| anyhow!("the scenario panicked"))??;
        let seen = bench.complaints()?;
        ensure!(
            seen == bench.provoked(),
            "the stub reported {seen:?}, but the test provokes {:?}",
            bench.provoked()
        );
        Ok(bench.into_outcome())
    }
}

/// The outcome of a scenario that passed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The figures that it measured.
    pub notes: Vec<String>,
    /// True if one of its machines has a VT-d unit only if the run's machines have.
    pub follows_run: bool,
}

/// Returns every scenario, in the order in which they run.
pub fn all() -> Vec<Scenario> {
    [
        boot::ALL,
        firmware::ALL,
        machines::ALL,
        network::ALL,
        secure::ALL,
        console::ALL,
        errors::ALL,
        cost::ALL,
        crash::ALL,
        port::ALL,
        violations::ALL,
        vtd::ALL,
        monitor::ALL,
        linux::ALL,
        linux::foreign::ALL,
        guests::ALL,
        ovmf::ALL,
        uefi::ALL,
        pci::ALL,
        io::ALL,
        debian::ALL,
        chaos::ALL,
        hypercall::ALL,
        shutdown::ALL,
        tds::ALL,
        operate::ALL,
        modules::ALL,
        rom::ALL,
    ]
    .concat()
}
