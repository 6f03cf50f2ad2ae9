//! Pages on their way home, put together: 512 neighbours that came one by one go home as the one frame that they are. So
//! the frame allocator is asked once for many of them, and has the large frame again.

use arrayvec::ArrayVec;
use seam::abi::PageSize;
use seam::page::{Clean, Dirty, Page, Run, State};

use crate::private::pool::{Pool, clear_all};

/// Stretches that are collected before all of them go.
const MAX_RUNS: usize = 16;

/// Pages that wait to go home.
#[derive(Debug)]
pub struct Homeward<S: State> {
    runs: ArrayVec<Run<S>, MAX_RUNS>,
    /// Larger frames than this are not made.
    largest: PageSize,
}

impl<S: State> Homeward<S> {
    pub const fn new(largest: PageSize) -> Self {
        Self {
            runs: ArrayVec::new_const(),
            largest,
        }
    }

    /// Adds a page. `false`, and the page, when [`Self::drain`] has to come first.
    pub fn push<P: Pool>(&mut self, pool: &P, mut page: Page<S>) -> Result<(), Page<S>> {
        loop {
            if let Some(run) = self.runs.last_mut()
                && !begins_larger(&page)
            {
                match run.push(page) {
                    Ok(()) if run.len() < PARTS || self.largest <= run.size() => return Ok(()),
                    Ok(()) => {}
                    Err(stray) => return self.begin(stray),
                }
                match self.runs.pop().map(Run::join) {
                    Some(Ok(whole)) => {
                        pool.merge(whole.hpa(), whole.size());
                        page = whole;
                        continue;
                    }
                    Some(Err(run)) => self.runs.push(run),
                    None => {}
                }
                return Ok(());
            }
            return self.begin(page);
        }
    }

    fn begin(&mut self, page: Page<S>) -> Result<(), Page<S>> {
        if self.runs.is_full() {
            return Err(page);
        }
        self.runs.push(Run::from(page));
        Ok(())
    }

    /// Takes everything out.
    pub fn drain(&mut self) -> impl Iterator<Item = Page<S>> + '_ {
        self.runs.drain(..).flatten()
    }

    pub const fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

/// Pages of one size in one of the next.
const PARTS: usize = 512;

/// Whether a larger frame would begin with this page.
fn begins_larger<S: State>(page: &Page<S>) -> bool {
    page.hpa()
        .0
        .is_multiple_of(page.size().bytes() * PARTS as u64)
}

impl Homeward<Clean> {
    /// Sends a page home, with others.
    pub fn add<P: Pool>(&mut self, pool: &P, page: Page<Clean>) {
        if let Err(page) = self.push(pool, page) {
            self.go(pool);
            pool.give(core::iter::once(page));
        }
    }

    /// Sends them off.
    pub fn go<P: Pool>(&mut self, pool: &P) {
        if !self.is_empty() {
            pool.give(self.drain());
        }
    }
}

impl Homeward<Dirty> {
    /// Has a page kept for another TD, with others. Bytes that had to be cleared instead.
    pub fn add<P: Pool>(&mut self, pool: &P, page: Page<Dirty>) -> u64 {
        match self.push(pool, page) {
            Ok(()) => 0,
            Err(page) => self.go(pool) + keep(pool, page),
        }
    }

    /// Has them kept. Bytes that had to be cleared instead.
    pub fn go<P: Pool>(&mut self, pool: &P) -> u64 {
        self.drain().map(|page| keep(pool, page)).sum()
    }
}

fn keep<P: Pool>(pool: &P, page: Page<Dirty>) -> u64 {
    match pool.keep(page) {
        Ok(()) => 0,
        Err(page) => {
            let bytes = page.size().bytes();
            pool.give(core::iter::once(clear_all(pool, page)));
            bytes
        }
    }
}
