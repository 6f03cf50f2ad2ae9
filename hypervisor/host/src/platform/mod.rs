//! What the TDX half of the host needs of the machine: the module as each CPU calls it, calls from CPU to CPU, frames,
//! physical memory, time.
//!
//! Bring-up, HKIDs and TDs are written against this trait alone. `seamark.efi` implements it with the machine itself, the
//! host's tests with threads on an emulated module: what they exercise is what runs.

mod running;
pub mod shutdown;
mod stopwatch;

pub use running::{Attention, Running};
pub use stopwatch::{Samples, Stopwatch};

use mm::private::Pool;
use seam::{address::Hpa, call::SeamCall, counters::Counters, retry::Wait, tdh::Tdh};
use sync::call::NoAnswer;

use self::shutdown::Shutdown;

/// A CPU that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuPlace {
    /// Its number.
    pub cpu: u32,
    /// Its package, by number.
    pub package: u32,
}

/// The machine as bring-up, HKIDs and TDs need it.
pub trait Platform: Sync {
    /// Executes SEAMCALL on the calling CPU.
    type Call: SeamCall;
    /// Spends the pauses between two tries.
    type Wait: Wait;
    /// The host's frames.
    type Pool: Pool;

    /// The module as the calling CPU calls it, counted on that CPU. For no longer than the caller stays on the CPU.
    fn tdh(&self) -> Tdh<'_, Self::Call, Self::Wait>;

    /// What CPU `cpu` has called; `None` for one that is not among [`Self::cpus`].
    fn counters(&self, cpu: u32) -> Option<&Counters>;

    /// What measures the SEAMCALLs of all CPUs, on a machine that has something for it.
    fn stopwatch(&self) -> &Stopwatch {
        static UNUSED: Stopwatch = Stopwatch::new();
        &UNUSED
    }

    /// Whether the module has shut down, as [`SeamCall::note_shutdown`] of [`Self::Call`] was told.
    fn shutdown(&self) -> &Shutdown;

    /// The host's frames.
    fn pool(&self) -> &Self::Pool;

    /// The CPUs that run, by number.
    fn cpus(&self) -> &[CpuPlace];

    /// The number of the calling CPU.
    fn this_cpu(&self) -> u32;

    /// Runs `work` with its number on each of `cpus` (the caller's own included, if it is listed), all at once, and
    /// waits for all.
    ///
    /// # Errors
    /// [`NoAnswer`] names those on which it did not run and will not; on the others it did.
    fn on_each(&self, cpus: &[u32], work: &(dyn Fn(u32) + Sync)) -> Result<(), NoAnswer>;

    /// Lets a moment pass, in which the calling CPU serves what waits for it.
    fn relax(&self);

    /// Writes back and drops everything that is in the calling CPU's caches (WBINVD).
    fn write_back_caches(&self);

    /// Reads physical memory that is the host's own.
    fn read(&self, from: Hpa, into: &mut [u8]);

    /// Writes physical memory that is the host's own.
    fn write(&self, to: Hpa, bytes: &[u8]);

    /// Microseconds since the host's start.
    fn now_us(&self) -> u64;
}
