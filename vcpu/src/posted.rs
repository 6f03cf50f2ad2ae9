//! The posted-interrupt descriptor: delivers interrupts to a vCPU without a lock.
//!
//! Posting a vector sets its bit, then the outstanding-notification bit. The poster that set the latter sends the
//! notification. When the notification interrupt arrives while the CPU is in the guest, the CPU moves the bits into the
//! vCPU's APIC page. The host can't do that itself, because a TD's APIC page is private. Instead it sends the
//! notification to its own CPU right before entry.
//!
//! Source: Intel SDM volume 3C, section 30.6 (posted-interrupt processing).

use sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Outstanding notification: bit 256 of the descriptor.
const ON: u64 = 1 << 0;

/// The descriptor of one vCPU, in the layout that the CPU defines.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Descriptor {
    /// Posted vectors, one bit each.
    requests: [AtomicU64; 4],
    /// ON, SN, the notification vector and its destination.
    control: AtomicU64,
    _reserved: [u64; 3],
}

#[cfg(not(feature = "shuttle"))]
const _: () = assert!(size_of::<Descriptor>() == 64);

impl Descriptor {
    /// Creates an empty descriptor.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            requests: [const { AtomicU64::new(0) }; 4],
            control: AtomicU64::new(0),
            _reserved: [0; 3],
        }
    }

    /// Posts `vector`. Returns whether the caller must send a notification, because none is outstanding yet.
    #[must_use]
    pub fn post(&self, vector: u8) -> bool {
        self.requests[usize::from(vector / 64)].fetch_or(1 << (vector % 64), SeqCst);
        self.control.fetch_or(ON, SeqCst) & ON == 0
    }

    /// Returns whether a vector was posted that the CPU has not taken yet.
    #[must_use]
    pub fn is_outstanding(&self) -> bool {
        self.control.load(SeqCst) & ON != 0
    }

    /// Returns the posted vectors that the CPU has not taken yet, as four words.
    #[must_use]
    pub fn pending(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|word: usize| self.requests[word].load(SeqCst))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn the_first_to_post_notifies() {
        let descriptor = Descriptor::new();
        assert!(!descriptor.is_outstanding());
        assert!(descriptor.post(0x31));
        assert!(!descriptor.post(0xFF));
        assert!(!descriptor.post(0x31));
        assert!(descriptor.is_outstanding());
        assert_eq!(descriptor.pending(), [1 << 0x31, 0, 0, 1 << 63]);
    }

    #[test]
    fn of_many_posters_one_notifies_and_nothing_is_lost() {
        for _ in 0..200 {
            let descriptor = Descriptor::new();
            let notifications = AtomicU64::new(0);
            std::thread::scope(|scope| {
                for vector in [32, 33, 100, 200] {
                    let (descriptor, notifications) = (&descriptor, &notifications);
                    scope.spawn(move || {
                        if descriptor.post(vector) {
                            notifications.fetch_add(1, SeqCst);
                        }
                    });
                }
            });
            assert_eq!(notifications.into_inner(), 1);
            assert_eq!(descriptor.pending(), [0b11 << 32, 1 << 36, 0, 1 << 8]);
        }
    }

    #[cfg(not(feature = "shuttle"))]
    #[test]
    fn the_cpu_finds_the_bits_where_the_manual_has_them() {
        let descriptor = Descriptor::new();
        let base = &raw const descriptor as usize;
        assert_eq!(&raw const descriptor.control as usize - base, 256 / 8);
        assert_eq!(base % 64, 0);
    }
}
