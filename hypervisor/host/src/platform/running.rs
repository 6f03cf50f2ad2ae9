//! What running vCPUs needs of the machine, beyond what building and ending TDs does.

use core::sync::atomic::{AtomicU8, Ordering::SeqCst};

use seam::address::Hpa;
use vcpu::posted::Descriptor;

use super::Platform;

/// The machine as those need it who run vCPUs. All but the clock is called with interrupts off.
pub trait Running: Platform {
    /// The frames for shared memory.
    type Frames: mm::shared::Frames;

    /// The frames for shared memory.
    fn shared_frames(&self) -> &Self::Frames;

    /// The calling CPU's time-stamp counter.
    fn tsc(&self) -> u64;

    /// Its frequency.
    fn tsc_hz(&self) -> u64;

    /// Seconds since 1970-01-01 00:00 UTC.
    fn unix_seconds(&self) -> u64;

    /// Where a posted-interrupt descriptor is in physical memory.
    fn descriptor_at(&self, descriptor: &Descriptor) -> Hpa;

    /// Why a CPU is to leave what it does.
    fn attention(&self, cpu: u32) -> &Attention;

    /// Interrupts another CPU, so that it looks at its [`Attention`].
    fn poke(&self, cpu: u32);

    /// Makes the CPU that the machine's console runs on look at it.
    fn wake_console(&self);

    /// Lets the calling CPU's timer go off at this time, or not at all. It rings for [`Attention`].
    fn set_timer(&self, tsc: Option<u64>);

    /// The vector of the notification interrupt, the same on every CPU.
    fn notification_vector(&self) -> u8;

    /// Sends a CPU the notification interrupt, the calling one too.
    fn notify(&self, cpu: u32);

    /// Runs the handler of an interrupt that a TD's exit acknowledged, and ends it.
    fn serve_interrupt(&self, vector: u8);

    /// Runs the handler of an NMI that a TD's exit consumed.
    fn serve_nmi(&self);

    /// Runs the machine-check handler.
    fn serve_machine_check(&self);

    /// Takes the interrupts that wait for the calling CPU.
    fn take_interrupts(&self);

    /// Makes the calling CPU forget what it knows of shared EPTs.
    fn flush_shared_ept(&self);
}

/// Why a CPU is to leave what it does. Anyone sets it, the CPU itself looks at it.
#[derive(Debug, Default)]
pub struct Attention(AtomicU8);

const TIMER: u8 = 1 << 0;
const POKED: u8 = 1 << 1;

impl Attention {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    /// Somebody has something for it.
    pub fn poke(&self) {
        self.0.fetch_or(POKED, SeqCst);
    }

    /// Its timer went off.
    pub fn ring(&self) {
        self.0.fetch_or(TIMER, SeqCst);
    }

    /// Whether there is anything.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0.load(SeqCst) != 0
    }

    /// Whether somebody has something for it.
    #[must_use]
    pub fn is_poked(&self) -> bool {
        self.0.load(SeqCst) & POKED != 0
    }

    /// Forgets the timer.
    pub fn take_timer(&self) {
        self.0.fetch_and(!TIMER, SeqCst);
    }

    /// Forgets everything: the CPU looks at all there is from here on.
    pub fn clear(&self) {
        self.0.store(0, SeqCst);
    }
}
