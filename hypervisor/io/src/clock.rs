//! Time, for waits with a limit.

/// A clock that a wait reads.
pub trait Clock {
    /// Returns microseconds since any moment.
    fn us(&self) -> u64;

    /// Lets a short time pass: a step of a loop that waits.
    fn relax(&self);

    /// Waits until `done`, at most `limit_us` microseconds. Returns whether it was.
    fn wait_until(&self, limit_us: u64, mut done: impl FnMut() -> bool) -> bool
    where
        Self: Sized,
    {
        let start = self.us();
        loop {
            if done() {
                return true;
            }
            if self.us().saturating_sub(start) >= limit_us {
                return false;
            }
            self.relax();
        }
    }

    /// Lets `us` microseconds pass, which a specification demands where no register says that a device is ready.
    fn pass(&self, us: u64)
    where
        Self: Sized,
    {
        self.wait_until(us, || false);
    }
}
