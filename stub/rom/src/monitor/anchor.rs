//! The end of the monitor's stack of each processor.
//!
//! FS, GS and the task register hold the guest's values even while the monitor runs. Code of the monitor finds its
//! processor through the stack pointer instead: each stack is aligned to its size and ends with an [`Anchor`].
#![expect(unsafe_code, reason = "finds data by the stack pointer")]

use core::ffi::c_void;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use spin::Once;

use crate::memory;

/// Size in bytes of a stack, a power of two. The emulated module runs on it too.
pub const STACK: usize = 128 << 10;
/// Size in bytes of an [`Anchor`].
pub const ANCHOR: usize = size_of::<Anchor>();

/// The data of a processor that assembly finds by the stack pointer alone.
#[repr(C, align(16))]
pub struct Anchor {
    /// The address of the processor's `Lp`. The loop of entries and exits reads it at the stack pointer.
    lp: AtomicPtr<c_void>,
    /// The vector of the interrupt that was last taken for the host; 0 for none. The interrupt handlers set it.
    pub interrupt: AtomicU32,
    /// Nonzero once an NMI has arrived. The NMI handler sets it.
    pub took_nmi: AtomicU32,
}

/// Base and size in bytes of the range that contains no stacks except the monitor's.
static RANGE: Once<(u64, u64)> = Once::new();

/// Declares the range that contains no stacks except the monitor's, so that [`current`] works.
pub fn declare(range: (u64, u64)) {
    RANGE.call_once(|| range);
}

impl Anchor {
    /// Allocates a stack and returns its end. It is never freed.
    pub fn new() -> &'static Self {
        let end = memory::aligned(STACK).address() + (STACK - ANCHOR) as u64;
        let anchor = end as *mut Self;
        // SAFETY: the stack was just allocated, is never freed, and nobody uses it yet.
        unsafe {
            anchor.write(Self {
                lp: AtomicPtr::default(),
                interrupt: AtomicU32::new(0),
                took_nmi: AtomicU32::new(0),
            });
            &*anchor
        }
    }

    /// Sets the address of the processor's `Lp`.
    pub fn set_lp<T>(&self, lp: *mut T) {
        self.lp.store(lp.cast(), Ordering::Release);
    }

    /// Returns the address of the processor's `Lp`.
    pub fn lp(&self) -> *mut c_void {
        self.lp.load(Ordering::Acquire)
    }

    /// Returns the initial stack pointer. The stack grows downwards, and nothing is pushed above this address.
    pub fn stack(&self) -> u64 {
        core::ptr::from_ref(self) as u64
    }
}

/// Returns the anchor of the executing processor; `None` before it runs on the monitor's stack.
pub fn current() -> Option<&'static Anchor> {
    let rsp: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack)) };
    let (base, size) = *RANGE.get()?;
    if !(base..base + size).contains(&rsp) {
        return None;
    }
    let anchor = (rsp | (STACK as u64 - 1)) - (ANCHOR as u64 - 1);
    // SAFETY: among all stacks, only those of the processors lie inside the range. Each is aligned to its size and ends
    // with an anchor, which is never freed.
    Some(unsafe { &*(anchor as *const Anchor) })
}
