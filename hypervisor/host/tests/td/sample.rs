//! Samples for tests of TDs: a configuration, an image, a CPU.

use host::td::params::Native;
use tdvf::{Entry, TAIL_BYTES};

/// A CPU that has every feature that the module leaves to the host.
pub struct Everything;

impl Native for Everything {
    fn cpuid(&self, _: u32, _: u32) -> [u32; 4] {
        [u32::MAX; 4]
    }

    fn tsc_mhz(&self) -> u32 {
        2000
    }
}

/// One TD with two vCPUs.
pub const ONE: &str = "[[td]]\nname = \"one\"\nmemory = \"16M\"\nvcpus = 2\n";
/// A TD that gets all of its memory before it starts.
pub const FULL: &str =
    "[[td]]\nname = \"full\"\nmemory = \"16M\"\nvcpus = 2\npopulate = \"start\"\n";

/// Returns an image of firmware below 4 GiB, a hand-off block and working memory below 16 MiB, and memory to accept.
pub fn image() -> Vec<u8> {
    let firmware: Vec<u8> = (0..0x1800u32).map(|i| (i / 7) as u8).collect();
    let entry = |data, gpa, bytes, kind, attributes| Entry {
        data,
        gpa,
        bytes,
        kind,
        attributes,
    };
    tdvf::write(
        &firmware,
        &[
            entry(0..0x1800, 0xffff_e000, 0x2000, 0, 1),
            entry(0..0, 0x80_9000, 0x2000, 2, 0),
            entry(0..0, 0x81_0000, 0x3000, 3, 0),
            entry(0..0, 0xA0_0000, 0x20_0000, 4, 2),
        ],
        &[0x90; TAIL_BYTES],
    )
}
