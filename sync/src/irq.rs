//! Locks that interrupt handlers may also take. Interrupts are off while such a lock is held.
//!
//! The program installs the interrupt switch once, with [`set_switch`]. Without it, as in the host's tests, there are
//! no interrupts to switch.

use core::fmt;
use core::ops::{Deref, DerefMut};

use spin::Once;

use crate::{Mutex, MutexGuard};

/// Functions that switch the calling CPU's interrupts.
#[derive(Clone, Copy, Debug)]
pub struct Switch {
    /// Switches interrupts off. Returns whether they were on.
    pub off: fn() -> bool,
    /// Switches interrupts on.
    pub on: fn(),
}

static SWITCH: Once<Switch> = Once::new();

/// Installs the interrupt switch. Only the first call has an effect. The caller holds no lock of this module.
pub fn set_switch(switch: Switch) {
    SWITCH.call_once(|| switch);
}

/// A spin lock that keeps this CPU's interrupts off while it is held, so that a handler on the same CPU can take it.
///
/// NMI and machine-check handlers must not take one: use [`IrqLock::try_lock`] there.
pub struct IrqLock<T>(Mutex<T>);

impl<T> IrqLock<T> {
    /// Creates a lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Takes the lock, spinning until it is free.
    pub fn lock(&self) -> IrqGuard<'_, T> {
        let irq = IrqsOff::new();
        IrqGuard {
            inner: self.0.lock(),
            _irq: irq,
        }
    }

    /// Takes the lock if it is free.
    pub fn try_lock(&self) -> Option<IrqGuard<'_, T>> {
        let irq = IrqsOff::new();
        Some(IrqGuard {
            inner: self.0.try_lock()?,
            _irq: irq,
        })
    }
}

impl<T> fmt::Debug for IrqLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IrqLock").finish_non_exhaustive()
    }
}

/// Guard of an [`IrqLock`]. Dropping it releases the lock, then restores the interrupt state.
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

/// Proof that this CPU takes no interrupts. Dropping it restores the previous state.
pub struct IrqsOff {
    were_on: bool,
    // Interrupt state is per CPU, so the CPU that made the guard must drop it.
    _not_send: core::marker::PhantomData<*mut ()>,
}

impl IrqsOff {
    /// Switches this CPU's interrupts off.
    #[must_use]
    pub fn new() -> Self {
        Self {
            were_on: SWITCH.get().is_some_and(|switch| (switch.off)()),
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
        if self.were_on
            && let Some(switch) = SWITCH.get()
        {
            (switch.on)();
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::cell::Cell;
    use std::thread_local;

    use super::*;

    thread_local! {
        /// The interrupt flag of a test's thread.
        static ON: Cell<bool> = const { Cell::new(true) };
    }

    fn is_on() -> bool {
        ON.get()
    }

    #[test]
    fn interrupts_are_off_as_long_as_the_outermost_lock_is_held() {
        set_switch(Switch {
            off: || ON.replace(false),
            on: || ON.set(true),
        });
        let (outer, inner) = (IrqLock::new(1), IrqLock::new(2));
        assert!(is_on());
        let held = outer.lock();
        assert!(!is_on());
        drop(inner.lock());
        assert!(!is_on());
        assert!(outer.try_lock().is_none() && !is_on());
        drop(held);
        assert!(is_on());
        ON.set(false);
        drop(outer.lock());
        assert!(!is_on());
    }
}
