//! Machine services that the host needs: SEAMCALLs on each CPU, cross-CPU calls, frames, physical memory, time.
//!
//! Bring-up, HKIDs and TDs are written against this trait alone. `seamark.efi` implements it on the machine itself, the
//! host's tests with threads on an emulated module. The tests thus exercise the code that runs.

mod running;
pub mod shutdown;
mod stopwatch;

pub use running::{Attention, Running};
pub use stopwatch::{Samples, Stopwatch};

use core::fmt;

use arrayvec::ArrayVec;
use mm::private::Pool;
use seam::{
    abi::{FatalDiagnostics, FatalRecord},
    address::Hpa,
    call::SeamCall,
    counters::Counters,
    retry::Wait,
    tdh::Tdh,
};
use sync::call::NoAnswer;

use self::shutdown::Shutdown;

/// A running CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuPlace {
    /// The CPU's number.
    pub cpu: u32,
    /// The number of its package.
    pub package: u32,
}

/// Something that happened to a TD.
#[derive(Clone, Copy, Debug)]
pub struct TdEvent<'a> {
    /// The TD's number.
    pub td: u32,
    /// The TD's name.
    pub name: &'a str,
    /// The number of the TD that asked for it in a hypercall.
    pub asked_by: Option<u32>,
    /// The event.
    pub what: fmt::Arguments<'a>,
}

/// Maximum number of CPUs that [`Platform::on_all`] calls at the same time.
const AT_ONCE: usize = 128;

/// The machine as bring-up, HKIDs and TDs need it.
pub trait Platform: Sync {
    /// Executes SEAMCALL on the calling CPU.
    type Call: SeamCall;
    /// Waits between two tries of a call.
    type Wait: Wait;
    /// The host's frames.
    type Pool: Pool;

    /// Returns the calling CPU's access to the module, which counts its calls on that CPU. The caller must not keep it
    /// when it moves to another CPU.
    fn tdh(&self) -> Tdh<'_, Self::Call, Self::Wait>;

    /// Returns the call counters of CPU `cpu`; `None` for a CPU that is not in [`Self::cpus`].
    fn counters(&self, cpu: u32) -> Option<&Counters>;

    /// Returns the stopwatch for the SEAMCALLs of all CPUs. The default one is for a machine that has none and stays
    /// unused.
    fn stopwatch(&self) -> &Stopwatch {
        static UNUSED: Stopwatch = Stopwatch::new();
        &UNUSED
    }

    /// Returns the record of the module's shutdown, which [`SeamCall::note_shutdown`] of [`Self::Call`] sets.
    fn shutdown(&self) -> &Shutdown;

    /// Returns where the module is to record a fatal error, and the vector of the interrupt by which it tells the other
    /// CPUs. The record is the host's memory for good. By default the module is not asked for a record.
    fn fatal_diagnostics(&self) -> Option<FatalDiagnostics> {
        None
    }

    /// Reads the module's record of a fatal error.
    fn fatal_record(&self) -> FatalRecord {
        let mut bytes = [0; size_of::<FatalRecord>()];
        if let Some(asked) = self.fatal_diagnostics() {
            self.read(asked.record(), &mut bytes);
        }
        bytes.into()
    }

    /// Returns the pool of the host's frames.
    fn pool(&self) -> &Self::Pool;

    /// Returns the running CPUs, by number.
    fn cpus(&self) -> &[CpuPlace];

    /// Returns the number of the calling CPU.
    fn this_cpu(&self) -> u32;

    /// Runs `work` with the CPU's number on all of `cpus` in parallel (including the calling CPU, if listed), and waits
    /// for all of them.
    ///
    /// # Errors
    /// [`NoAnswer`] names the CPUs on which `work` did not run and will not; it did run on the others.
    fn on_each(&self, cpus: &[u32], work: &(dyn Fn(u32) + Sync)) -> Result<(), NoAnswer>;

    /// Does the same on any number of CPUs without allocating. A CPU that is listed twice may do the work twice.
    ///
    /// # Errors
    /// [`NoAnswer`]; the work was not begun on some of the CPUs.
    fn on_all(
        &self,
        cpus: impl Iterator<Item = u32>,
        work: &(dyn Fn(u32) + Sync),
    ) -> Result<(), NoAnswer> {
        let mut group = ArrayVec::<u32, AT_ONCE>::new();
        for cpu in cpus {
            if group.contains(&cpu) {
                continue;
            }
            if group.is_full() {
                self.on_each(&group, work)?;
                group.clear();
            }
            group.push(cpu);
        }
        self.on_each(&group, work)
    }

    /// Pauses for a moment, in which the calling CPU serves pending requests.
    fn relax(&self);

    /// Writes back and invalidates the calling CPU's caches (WBINVD).
    fn write_back_caches(&self);

    /// Reads physical memory that belongs to the host.
    fn read(&self, from: Hpa, into: &mut [u8]);

    /// Writes physical memory that belongs to the host.
    fn write(&self, to: Hpa, bytes: &[u8]);

    /// Returns the microseconds since the host's start.
    fn now_us(&self) -> u64;

    /// Records something that happened to a TD, for the operator. It must not wait or allocate. By default, no record
    /// is kept.
    fn note(&self, event: &TdEvent<'_>) {
        let _ = event;
    }
}
