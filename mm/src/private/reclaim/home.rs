//! Collection of pages to be freed: 512 adjacent pages that arrive one by one are freed as the one frame that they
//! form. The frame allocator is thus called once for many of them, and gets the large frame back.

use arrayvec::ArrayVec;
use seam::abi::PageSize;
use seam::page::{Clean, Dirty, Page, Run, State};

use crate::private::pool::{Pool, clear_all};

/// Maximum number of runs collected before all of them are freed.
const MAX_RUNS: usize = 16;

/// Pages that wait to be freed or kept.
#[derive(Debug)]
pub struct Homeward<S: State> {
    runs: ArrayVec<Run<S>, MAX_RUNS>,
    /// Pages are not joined into frames larger than this.
    largest: PageSize,
}

impl<S: State> Homeward<S> {
    pub const fn new(largest: PageSize) -> Self {
        Self {
            runs: ArrayVec::new_const(),
            largest,
        }
    }

    /// Adds a page. Returns the page when [`Self::drain`] has to come first.
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

/// Number of pages of one size in one of the next.
const PARTS: usize = 512;

/// Returns whether a larger frame would begin with this page.
fn begins_larger<S: State>(page: &Page<S>) -> bool {
    page.hpa()
        .0
        .is_multiple_of(page.size().bytes() * PARTS as u64)
}

impl Homeward<Clean> {
    /// Adds a page, to be freed with others.
    pub fn add<P: Pool>(&mut self, pool: &P, page: Page<Clean>) {
        if let Err(page) = self.push(pool, page) {
            self.go(pool);
            pool.give(core::iter::once(page));
        }
    }

    /// Frees the collected pages.
    pub fn go<P: Pool>(&mut self, pool: &P) {
        if !self.is_empty() {
            pool.give(self.drain());
        }
    }
}

impl Homeward<Dirty> {
    /// Adds a page, to be kept for another TD with others. Returns the bytes that had to be cleared instead.
    pub fn add<P: Pool>(&mut self, pool: &P, page: Page<Dirty>) -> u64 {
        match self.push(pool, page) {
            Ok(()) => 0,
            Err(page) => self.go(pool) + keep(pool, page),
        }
    }

    /// Keeps the collected pages. Returns the bytes that had to be cleared instead.
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
