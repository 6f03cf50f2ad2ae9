//! Locks that interrupt handlers may take too: they are held with interrupts off.

use core::ops::{Deref, DerefMut};

use sync::{Mutex, MutexGuard};

/// A spin lock that keeps this CPU's interrupts off while it is held, so that a handler on the same CPU can take it.
///
/// NMI and machine-check handlers must not take one: use [`IrqLock::try_lock`] there.
pub struct IrqLock<T>(Mutex<T>);

impl<T> IrqLock<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> IrqGuard<'_, T> {
        let irq = IrqsOff::new();
        IrqGuard {
            inner: self.0.lock(),
            _irq: irq,
        }
    }

    /// Takes the lock if nobody holds it.
    pub fn try_lock(&self) -> Option<IrqGuard<'_, T>> {
        let irq = IrqsOff::new();
        Some(IrqGuard {
            inner: self.0.try_lock()?,
            _irq: irq,
        })
    }
}

/// Access to what an [`IrqLock`] protects. Interrupts come back on, if they were, after the lock is open.
pub struct IrqGuard<'a, T> {
    // Dropped in this order: first the lock, then the interrupt state.
    inner: MutexGuard<'a, T>,
    _irq: IrqsOff,
}

impl<T> Deref for IrqGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for IrqGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// Proof that this CPU takes no interrupts; dropping it restores what was before.
pub struct IrqsOff {
    were_on: bool,
    // A CPU's interrupt state is not another's business.
    _not_send: core::marker::PhantomData<*mut ()>,
}

impl IrqsOff {
    /// Switches this CPU's interrupts off. In host tests there are none.
    #[must_use]
    pub fn new() -> Self {
        let were_on = cfg!(feature = "bare") && x86_64::instructions::interrupts::are_enabled();
        if were_on {
            x86_64::instructions::interrupts::disable();
        }
        Self {
            were_on,
            _not_send: core::marker::PhantomData,
        }
    }
}

impl Default for IrqsOff {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for IrqsOff {
    fn drop(&mut self) {
        if self.were_on {
            x86_64::instructions::interrupts::enable();
        }
    }
}
