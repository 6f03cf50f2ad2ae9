//! The layout of the TD's memory.
//!
//! | From | Content |
//! |---|---|
//! | 64 KiB | boot parameters, then the command line: the kernel copies both before it uses that memory |
//! | 2 MiB | stacks, while memory is accepted |
//! | the kernel's preferred address | the kernel, preceded by its setup part |
//! | the end of that range, downwards | stacks of waiting vCPUs, which stay; the initial file system |
//!
//! Firmware, ACPI tables, mailbox and event log are in the image, below 4 GiB.

use core::ops::Range;

use arrayvec::ArrayVec;
use seam::abi::{PAGE_2M, PAGE_4K};
use td_base::layout::PROGRAM;
use td_base::payload::WINDOW;

use td_base::kernel::{Kernel, WAITING_STACK_BYTES};

/// Maximum number of ranges of memory.
pub const MAX_RANGES: usize = 32;
/// The TD's memory, ascending.
pub type Ranges = ArrayVec<Range<u64>, MAX_RANGES>;

/// The boot parameters.
pub const PARAMETERS: u64 = 0x1_0000;
/// The command line.
pub const COMMAND_LINE: u64 = PARAMETERS + PAGE_4K;
/// The first of the stacks that vCPUs use while they accept memory.
pub const STACKS: u64 = PAGE_2M;
/// Size in bytes of each stack.
pub const STACK_BYTES: u64 = 0x2000;
/// The range of a PC's video memory and firmware. It is left empty.
pub const LEGACY: Range<u64> = 0xA_0000..0x10_0000;

/// Checks the host's description of the memory that the TD has to accept, and sorts it.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn check(mut ranges: Ranges) -> Result<Ranges, &'static str> {
    put_in_order(&mut ranges, |range| range.start);
    let mut end = 0;
    for range in &ranges {
        let aligned = range.start.is_multiple_of(PAGE_4K) && range.end.is_multiple_of(PAGE_4K);
        if !aligned || range.is_empty() || range.start < end {
            return Err("ranges of memory overlap or are not aligned");
        }
        let is_elsewhere = range.end <= PROGRAM || range.start >= 1 << 32 && range.end <= WINDOW;
        if !is_elsewhere {
            return Err("a range of memory is where the firmware is");
        }
        end = range.end;
    }
    match ranges.first() {
        Some(first) if first.start == 0 && first.end >= LEGACY.end => Ok(ranges),
        _ => Err("there is no memory at address 0"),
    }
}

/// Sorts a few things. The library's sort functions would be a fifth of the program.
pub fn put_in_order<T>(things: &mut [T], start: impl Fn(&T) -> u64) {
    for end in 1..things.len() {
        let mut at = end;
        while at > 0 && start(&things[at]) < start(&things[at - 1]) {
            things.swap(at, at - 1);
            at -= 1;
        }
    }
}

/// Returns the stacks that `vcpus` vCPUs use while they accept memory. vCPU 0 accepts the stacks before it calls the
/// others.
///
/// # Errors
/// There is no memory for them.
pub fn stacks(ranges: &Ranges, vcpus: u32) -> Result<Range<u64>, &'static str> {
    let bytes = (u64::from(vcpus) * STACK_BYTES).next_multiple_of(PAGE_2M);
    let stacks = STACKS..STACKS + bytes;
    within(ranges, &stacks).map(|_| stacks).ok_or(TOO_LITTLE)
}

const TOO_LITTLE: &str = "the TD has too little memory for its kernel";

/// The places of kernel and initial file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The kernel's file. Its loaded part begins at the kernel's preferred address.
    pub file: u64,
    /// The loaded part of the kernel.
    pub kernel: u64,
    /// The initial file system.
    pub initrd: u64,
    /// The stacks of waiting vCPUs. They stay the firmware's.
    pub waiting: Range<u64>,
}

/// Finds places for everything.
///
/// # Errors
/// There is not enough memory.
pub fn find(
    ranges: &Ranges,
    kernel: &Kernel,
    initrd_bytes: u64,
    vcpus: u32,
) -> Result<Places, &'static str> {
    let loaded = kernel.address..kernel.address.saturating_add(kernel.bytes);
    let file = kernel.address.checked_sub(kernel.setup_bytes);
    let file = file
        .filter(|file| *file >= LEGACY.end)
        .ok_or("the kernel wants to be where it can't be")?;
    let range = within(ranges, &(file..loaded.end)).ok_or(TOO_LITTLE)?;
    let waiting_bytes = (u64::from(vcpus) * WAITING_STACK_BYTES).next_multiple_of(PAGE_4K);
    let waiting = range.end.checked_sub(waiting_bytes).ok_or(TOO_LITTLE)?;
    let initrd_end = waiting.min(kernel.initrd_limit.saturating_add(1));
    let initrd = initrd_end.checked_sub(initrd_bytes).ok_or(TOO_LITTLE)? / PAGE_4K * PAGE_4K;
    if initrd < loaded.end {
        return Err(TOO_LITTLE);
    }
    Ok(Places {
        file,
        kernel: kernel.address,
        initrd,
        waiting: waiting..range.end,
    })
}

/// Returns the range of memory that contains all of `part`.
fn within<'a>(ranges: &'a Ranges, part: &Range<u64>) -> Option<&'a Range<u64>> {
    ranges
        .iter()
        .find(|range| range.start <= part.start && part.end <= range.end)
}

/// Returns block `number`, counted through all ranges. Memory is accepted in blocks that end at the next multiple of 2
/// MiB.
pub fn block(ranges: &Ranges, mut number: u64) -> Option<Range<u64>> {
    for range in ranges {
        let first = range.start / PAGE_2M;
        let count = range.end.div_ceil(PAGE_2M) - first;
        if number < count {
            let start = (first + number) * PAGE_2M;
            return Some(start.max(range.start)..(start + PAGE_2M).min(range.end));
        }
        number -= count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::head;
    use td_base::kernel::memory_needed;

    fn kernel() -> Kernel {
        Kernel::read(&head(), 11_655_104).unwrap()
    }

    fn ranges(list: &[Range<u64>]) -> Ranges {
        list.iter().cloned().collect()
    }

    /// Returns the ranges of a TD whose memory is contiguous.
    fn low(end: u64) -> Ranges {
        core::iter::once(0..end).collect()
    }

    #[test]
    fn everything_has_its_own_place() {
        let ranges = low(256 << 20);
        let places = find(&ranges, &kernel(), 0x12_3456, 4).unwrap();
        assert_eq!((places.file, places.kernel), (0xFF_B000, 0x100_0000));
        assert_eq!(places.waiting, (256 << 20) - 0x2000..256 << 20);
        assert_eq!(places.initrd, (256 << 20) - 0x2000 - 0x12_4000);
        assert_eq!(stacks(&ranges, 4), Ok(PAGE_2M..2 * PAGE_2M));
    }

    #[test]
    fn a_large_td_has_the_initial_file_system_below_the_kernels_limit() {
        let ranges = ranges(&[0..3 << 30, 4 << 30..64 << 30]);
        let places = find(&ranges, &kernel(), 0x1000, 600).unwrap();
        assert_eq!(places.initrd, (2 << 30) - 0x1000);
        assert_eq!(places.waiting, (3 << 30) - 0x12_C000..3 << 30);
    }

    #[test]
    fn too_little_memory_is_told() {
        let small = low(64 << 20);
        assert_eq!(find(&small, &kernel(), 0x1000, 4), Err(TOO_LITTLE));
        let just = low(80 << 20);
        assert!(find(&just, &kernel(), 0x1000, 4).is_ok());
        assert_eq!(find(&just, &kernel(), 80 << 20, 4), Err(TOO_LITTLE));
        assert_eq!(find(&just, &kernel(), u64::MAX, 4), Err(TOO_LITTLE));
    }

    #[test]
    fn what_the_host_is_told_is_needed_is_enough_and_no_page_more() {
        let kernel = kernel();
        for (initrd, vcpus) in [(0, 1), (1, 1), (0x1000, 16), (0x12_3456, 17), (80 << 20, 4)] {
            let needed = memory_needed(&kernel, initrd, vcpus).unwrap();
            let found = |end| find(&low(end), &kernel, initrd, vcpus);
            assert!(found(needed).is_ok(), "{initrd:#x} {vcpus}");
            assert_eq!(found(needed - PAGE_4K), Err(TOO_LITTLE));
        }
        // One byte more exceeds the kernel's limit.
        let most = (2 << 30) - (kernel.address + kernel.bytes);
        for (initrd, fits) in [(most, true), (most + 1, false)] {
            assert_eq!(memory_needed(&kernel, initrd, 1).is_some(), fits);
            assert_eq!(find(&low(3 << 30), &kernel, initrd, 1).is_ok(), fits);
        }
    }

    #[test]
    fn a_host_that_contradicts_itself_is_refused() {
        let wrong = |list: &[Range<u64>]| check(ranges(list)).unwrap_err();
        assert!(wrong(&[0..PAGE_2M, PAGE_4K..2 * PAGE_2M]).contains("overlap"));
        assert!(wrong(&[0..PAGE_2M, 0x30_0800..0x40_0000]).contains("aligned"));
        assert!(check(low(1 << 32)).unwrap_err().contains("firmware"));
        assert!(wrong(&[0..PAGE_2M, 0xFFFF_F000..5 << 32]).contains("firmware"));
        assert!(wrong(&[0..PAGE_2M, 1 << 32..1 << 47]).contains("firmware"));
        assert!(
            check(core::iter::once(PAGE_2M..2 * PAGE_2M).collect())
                .unwrap_err()
                .contains("address 0")
        );
        assert!(wrong(&[]).contains("address 0"));
        let ordered = check(ranges(&[1 << 32..2 << 32, 0..PAGE_2M])).unwrap();
        assert_eq!(ordered[0], 0..PAGE_2M);
    }

    #[test]
    fn blocks_are_all_memory_once() {
        let ranges = ranges(&[0..PAGE_2M * 3 - PAGE_4K, 1 << 32..(1 << 32) + PAGE_2M]);
        let blocks: Vec<_> = (0..).map_while(|number| block(&ranges, number)).collect();
        assert_eq!(
            blocks,
            [
                0..PAGE_2M,
                PAGE_2M..2 * PAGE_2M,
                2 * PAGE_2M..3 * PAGE_2M - PAGE_4K,
                1 << 32..(1 << 32) + PAGE_2M
            ]
        );
    }
}
