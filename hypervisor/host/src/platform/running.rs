//! Machine services for running vCPUs, beyond those for building and terminating TDs.

use seam::address::Hpa;
use sync::atomic::{AtomicU8, Ordering::SeqCst};
use vcpu::{PhysicalCpu, posted::Descriptor};

use super::Platform;
use crate::functions::Functions;

/// The machine as the code that runs vCPUs needs it. All methods except the clocks are called with interrupts off.
pub trait Running: Platform + PhysicalCpu {
    /// Returns the frequency of the time-stamp counter.
    fn tsc_hz(&self) -> u64;

    /// Returns the physical address of a posted-interrupt descriptor.
    fn descriptor_at(&self, descriptor: &Descriptor) -> Hpa;

    /// Returns the number of the core that CPU `cpu` is a thread of. By default each CPU is a core of its own.
    fn core_of(&self, cpu: u32) -> u32 {
        cpu
    }

    /// Returns the attention flags of CPU `cpu`.
    fn attention(&self, cpu: u32) -> &Attention;

    /// Interrupts another CPU, so that it checks its [`Attention`].
    fn poke(&self, cpu: u32);

    /// Sets the calling CPU's timer to `tsc`, or stops it. The timer calls [`Attention::ring`].
    fn set_timer(&self, tsc: Option<u64>);

    /// Returns the vector of the notification interrupt, the same on every CPU.
    fn notification_vector(&self) -> u8;

    /// Returns the machine's PCI functions that TDs can have. By default there are none.
    fn functions(&self) -> Option<&dyn Functions> {
        None
    }

    /// Flushes the calling CPU's cached translations of shared EPTs.
    fn flush_shared_ept(&self);
}

/// Reasons for a CPU to leave its current work. Any CPU may set them; the CPU itself checks them.
#[derive(Debug, Default)]
pub struct Attention(AtomicU8);

const TIMER: u8 = 1 << 0;
const POKED: u8 = 1 << 1;

impl Attention {
    /// Creates flags with no reason set.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    /// Notes a request from another CPU.
    pub fn poke(&self) {
        self.0.fetch_or(POKED, SeqCst);
    }

    /// Notes that the timer went off.
    pub fn ring(&self) {
        self.0.fetch_or(TIMER, SeqCst);
    }

    /// Returns whether any reason is set.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0.load(SeqCst) != 0
    }

    /// Returns whether another CPU has made a request.
    #[must_use]
    pub fn is_poked(&self) -> bool {
        self.0.load(SeqCst) & POKED != 0
    }

    /// Clears the timer's flag.
    pub fn take_timer(&self) {
        self.0.fetch_and(!TIMER, SeqCst);
    }

    /// Clears all flags. The CPU then checks everything again.
    pub fn clear(&self) {
        self.0.store(0, SeqCst);
    }
}
