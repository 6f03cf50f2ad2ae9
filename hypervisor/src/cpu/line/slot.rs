//! A value that interrupt handlers use without waiting.

use spin::RwLock;

/// A value that may be missing. A reader never waits; the one who takes the value out waits for the readers that have
/// it, which are interrupt handlers.
#[derive(Debug)]
pub struct Slot<T>(RwLock<Option<T>>);

impl<T> Slot<T> {
    /// Uses the value. Returns `None` if there is none, or if it is put in or taken out at this moment.
    pub fn with<R>(&self, work: impl FnOnce(&T) -> R) -> Option<R> {
        self.0.try_read()?.as_ref().map(work)
    }

    /// Puts a value in if there is none, and returns whether it did.
    pub fn put(&self, value: T) -> bool {
        let mut slot = self.0.write();
        let is_free = slot.is_none();
        if is_free {
            *slot = Some(value);
        }
        is_free
    }

    /// Takes the value out. No reader has it once this has returned.
    pub fn take(&self) -> Option<T> {
        self.0.write().take()
    }
}

impl<T> Default for Slot<T> {
    /// Creates an empty slot.
    fn default() -> Self {
        Self(RwLock::new(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_in_use_is_not_taken_out() {
        let slot = Slot::default();
        assert!(slot.put(1) && !slot.put(2));
        let seen = slot.with(|value| (*value, slot.0.try_write().is_some()));
        assert_eq!(seen, Some((1, false)));
        assert_eq!(slot.take(), Some(1));
        assert_eq!(slot.with(|value| *value), None);
        let _taking = slot.0.write();
        assert_eq!(slot.with(|value| *value), None, "a reader does not wait");
    }
}
