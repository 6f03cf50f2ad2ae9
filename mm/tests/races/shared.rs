//! Races for shared memory: CPUs that work for other TDs read it, while the TD converts it and ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use mm::private::{Levels, NoAnswer};
use mm::shared::{Flush, Frames, SharedMap, Words};
use seam::abi::{PAGE_4K, PageSize};
use seam::address::{Gpa, Hpa};
use shuttle::thread;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::explore::explore;

const SHARED: u64 = 1 << 47;
/// Number of readers, and of pages that each looks at.
const READERS: usize = 2;
const LOOKS: u64 = 4;
/// Number of pages, and of times that they are converted.
const PAGES: u64 = 2;
const CONVERSIONS: u64 = 2;
/// The first word of a frame that is free.
const FREE: u64 = 0xDEAD;

/// Frames from a counter.
#[derive(Default)]
struct Host(Mutex<BTreeMap<u64, &'static Words>>);

impl Frames for Host {
    fn take(&self, size: PageSize) -> Option<Hpa> {
        assert_eq!(size, PageSize::Size4K);
        let mut frames = self.0.lock().unwrap();
        let at = (frames.len() as u64 + 1) * PAGE_4K;
        let words: &'static Words = Box::leak(Box::new([const { AtomicU64::new(0) }; 512]));
        frames.insert(at, words);
        Some(Hpa(at))
    }

    fn give(&self, hpa: Hpa, _: PageSize) {
        let word = &self.words(hpa)[0];
        assert_ne!(word.swap(FREE, SeqCst), FREE, "freed twice");
    }

    fn quarantine(&self, _: Hpa, _: PageSize) {
        unreachable!("no device is silent");
    }

    fn split(&self, _: Hpa) {
        unreachable!("no page is large");
    }

    fn words(&self, hpa: Hpa) -> &Words {
        self.0.lock().unwrap()[&hpa.0]
    }
}

impl Flush for Host {
    fn flush(&self) -> Result<(), NoAnswer> {
        thread::yield_now();
        Ok(())
    }
}

#[test]
fn no_frame_changes_hands_while_another_tds_cpu_reads_it() {
    explore(|| {
        let host = Arc::new(Host::default());
        let map = Arc::new(SharedMap::new(&*host, Levels::Four, SHARED).unwrap());
        let readers = [0; READERS].map(|_| {
            let (host, map) = (host.clone(), map.clone());
            thread::spawn(move || read(&host, &map))
        });
        for _ in 0..CONVERSIONS {
            for page in 0..PAGES {
                map.map(&*host, Gpa(page * PAGE_4K), PageSize::Size4K)
                    .unwrap();
            }
            thread::yield_now();
            map.unmap(&*host, 0..PAGE_4K, &*host).unwrap();
            map.unmap(&*host, PAGE_4K..PAGES * PAGE_4K, &*host).unwrap();
        }
        map.map(&*host, Gpa(0), PageSize::Size4K).unwrap();
        assert_eq!(map.dissolve(&*host), 0);
        for reader in readers {
            reader.join().unwrap();
        }
        let frames = host.0.lock().unwrap();
        let is_free = |words: &&'static Words| words[0].load(SeqCst) == FREE;
        assert!(frames.values().all(is_free), "a frame is left");
    });
}

fn read(host: &Host, map: &SharedMap) {
    for look in 0..LOOKS {
        let Some(reader) = map.try_reader(host) else {
            thread::yield_now();
            continue;
        };
        let Some(page) = reader.page(Gpa(look % PAGES * PAGE_4K)) else {
            continue;
        };
        for _ in 0..2 {
            thread::yield_now();
            assert_ne!(page[0].load(SeqCst), FREE, "it changed hands");
        }
    }
}
