//! Memory of a guest, for tests.

extern crate std;

use std::boxed::Box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::vec::Vec;

use devices::{Memory, Other, Page, Unshared};

/// Memory of a guest from address 0 on, all of it shared at first.
pub struct Ram {
    pages: Vec<Box<Page>>,
    shared: Vec<AtomicBool>,
    /// Number of accesses to come until this page is not shared any more.
    conversion: Mutex<Option<(u64, usize)>>,
    /// Number of times that another guest's device had news for this one's.
    pub rung: AtomicU64,
    /// Other guests can't access the memory.
    pub is_busy: AtomicBool,
}

impl Ram {
    pub fn new(pages: usize) -> Self {
        let page = || Box::new([const { AtomicU64::new(0) }; 512]);
        Self {
            pages: (0..pages).map(|_| page()).collect(),
            shared: (0..pages).map(|_| AtomicBool::new(true)).collect(),
            conversion: Mutex::new(None),
            rung: AtomicU64::new(0),
            is_busy: AtomicBool::new(false),
        }
    }

    pub fn unshare(&self, page: usize) {
        self.shared[page].store(false, SeqCst);
    }

    pub fn share_all(&self) {
        self.shared
            .iter()
            .for_each(|shared| shared.store(true, SeqCst));
        *self.conversion.lock().unwrap() = None;
    }

    /// Takes a page back after so many accesses.
    pub fn convert_after(&self, accesses: u64, page: usize) {
        *self.conversion.lock().unwrap() = Some((accesses, page));
    }
}

impl Memory for Ram {
    fn page(&self, gpa: u64) -> Result<&Page, Unshared> {
        let mut conversion = self.conversion.lock().unwrap();
        match &mut *conversion {
            Some((0, page)) => {
                self.unshare(*page);
                *conversion = None;
            }
            Some((accesses, _)) => *accesses -= 1,
            None => {}
        }
        drop(conversion);
        let page = (gpa / 4096) as usize;
        if !self
            .shared
            .get(page)
            .is_some_and(|shared| shared.load(SeqCst))
        {
            return Err(Unshared(gpa));
        }
        Ok(&self.pages[page])
    }

    fn with_other(&self, other: &Other, work: &mut dyn FnMut(&dyn Memory)) -> bool {
        let other = other.downcast_ref::<Self>().unwrap();
        let is_free = !other.is_busy.load(SeqCst);
        if is_free {
            work(other);
        }
        is_free
    }

    fn ring(&self, other: &Other) {
        let other = other.downcast_ref::<Self>().unwrap();
        other.rung.fetch_add(1, SeqCst);
    }
}
