//! One SEAMCALL: who executes it, on what.

use crate::{Machine, Module, Point};

/// What every leaf is given: the module, the machine beneath it, and the logical processor that called.
#[derive(Debug)]
pub struct Call<'m, M> {
    /// The module.
    pub module: &'m Module,
    /// What it runs on.
    pub machine: &'m M,
    /// The number of the logical processor.
    pub lp: u32,
}

impl<M> Clone for Call<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Call<'_, M> {}

impl<M: Machine> Call<'_, M> {
    /// The package of the calling processor.
    pub fn package(&self) -> u32 {
        self.machine.platform().lp_to_package[self.lp as usize]
    }

    /// Tells the machine that the call has come to `point`.
    pub fn reached(&self, point: Point) {
        self.machine.reached(self.lp, point);
    }
}
