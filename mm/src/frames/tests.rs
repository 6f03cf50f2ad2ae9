//! Tests of allocating, freeing, splitting, merging and quarantining blocks, and of their counts.

use alloc::{boxed::Box, vec};

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn frames(ranges: &[Range]) -> Frames {
    let mut frames = Frames::new();
    for span in zones_for(ranges) {
        let words = Box::leak(vec![0; words_for(span)].into_boxed_slice());
        frames.add_zone(span, words).unwrap();
    }
    for &range in ranges {
        frames.add(range).unwrap();
    }
    frames
}

fn bytes(frames: &Frames, of: impl Fn(&Counts) -> u64) -> u64 {
    let counts = frames.counts().iter().enumerate();
    counts.map(|(order, c)| of(c) * (FRAME << order)).sum()
}

#[test]
fn the_largest_blocks_stand_free() {
    let frames = frames(&[(4 * GIB, 6 * GIB + 2 * MIB + FRAME)]);
    assert_eq!(frames.counts()[18].free, 2);
    assert_eq!(frames.counts()[9].free, 1);
    assert_eq!(frames.counts()[0].free, 1);
    assert_eq!(frames.total_bytes(), 2 * GIB + 2 * MIB + FRAME);
}

#[test]
fn blocks_are_aligned_and_come_together_again() {
    let mut frames = frames(&[(GIB, 2 * GIB)]);
    let small = frames.alloc(ORDER_4K).unwrap();
    let large = frames.alloc(ORDER_2M).unwrap();
    assert!(large.pa.is_multiple_of(2 * MIB));
    assert_eq!(frames.counts()[18].free, 0);
    frames.free(small).unwrap();
    frames.free(large).unwrap();
    assert_eq!(frames.counts()[18].free, 1);
}

#[test]
fn a_frame_is_freed_once_and_in_its_allocated_size() {
    let mut frames = frames(&[(GIB, 2 * GIB)]);
    let frame = frames.alloc(ORDER_2M).unwrap();
    let wrong = Frame { order: 0, ..frame };
    assert_eq!(frames.free(wrong), Err(FrameError::NotAllocated(wrong)));
    frames.free(frame).unwrap();
    assert_eq!(frames.free(frame), Err(FrameError::NotAllocated(frame)));
    let odd = Frame {
        pa: GIB + FRAME,
        order: ORDER_2M,
    };
    assert_eq!(frames.free(odd), Err(FrameError::NotAllocated(odd)));
}

fn free_ranges(frames: &Frames) -> Vec<Range> {
    let mut ranges = Vec::new();
    if let Err(blocks) = frames.free_ranges(&mut ranges) {
        ranges.reserve_exact(blocks);
    }
    frames.free_ranges(&mut ranges).unwrap();
    ranges
}

#[test]
fn the_free_ranges_need_room_for_every_free_block() {
    let frames = frames(&[(GIB, 2 * GIB), (4 * GIB, 4 * GIB + 3 * FRAME)]);
    let mut ranges = Vec::with_capacity(2);
    ranges.push((1, 2));
    assert_eq!(frames.free_ranges(&mut ranges), Err(3));
    assert_eq!(ranges, [(1, 2)]);
}

#[test]
fn a_range_is_taken_as_a_whole_or_not_at_all() {
    let mut frames = frames(&[(GIB, 3 * GIB)]);
    let before = *frames.counts();
    let range = (GIB + 5 * FRAME, 2 * GIB + 4 * MIB);
    frames.alloc_range(range).unwrap();
    let blocks: Vec<_> = blocks_of(range).collect();
    let bytes: u64 = blocks.iter().map(|b| b.bytes()).sum();
    assert_eq!(bytes, range.1 - range.0);
    assert_eq!(blocks[0].pa, range.0);
    let rest = [(GIB, range.0), (range.1, 3 * GIB)];
    assert_eq!(free_ranges(&frames), rest);
    let taken = *frames.counts();
    for bad in [
        (range.1 - FRAME, range.1 + FRAME),
        (GIB + 1, GIB + FRAME),
        (3 * GIB - FRAME, 3 * GIB + FRAME),
    ] {
        assert_eq!(frames.alloc_range(bad), Err(FrameError::BadRange(bad)));
    }
    assert_eq!(*frames.counts(), taken);
    for block in blocks {
        frames.free(block).unwrap();
    }
    assert_eq!(*frames.counts(), before);
}

#[test]
fn a_frame_is_allocated_at_the_requested_address_or_not_at_all() {
    let mut frames = frames(&[(GIB, 2 * GIB)]);
    let frame = Frame {
        pa: GIB + 5 * MIB + 3 * FRAME,
        order: ORDER_4K,
    };
    let before = *frames.counts();
    frames.alloc_at(frame).unwrap();
    let block = (frame.pa, frame.pa + FRAME);
    let rest = [(GIB, block.0), (block.1, 2 * GIB)];
    assert_eq!(free_ranges(&frames), rest);
    let taken = *frames.counts();
    let at = |pa, order| Frame { pa, order };
    for refused in [
        frame,
        // Around it, misaligned, beyond the zone, beyond all memory.
        at(GIB + 4 * MIB, ORDER_2M),
        at(GIB + MIB, ORDER_2M),
        at(2 * GIB, ORDER_4K),
        at(u64::MAX - FRAME + 1, ORDER_4K),
    ] {
        assert_eq!(frames.alloc_at(refused), Err(FrameError::NoMemory));
    }
    assert_eq!(frames.alloc_at(at(0, 19)), Err(FrameError::Order(19)));
    assert_eq!(*frames.counts(), taken);
    frames.free(frame).unwrap();
    assert_eq!(*frames.counts(), before);
    frames.set_for_tds([(GIB, GIB + MIB)].to_vec());
    assert_eq!(frames.alloc_at(frame), Err(FrameError::NoMemory));
    frames.alloc_at(at(GIB + FRAME, ORDER_4K)).unwrap();
}

#[test]
fn a_td_gets_nothing_but_what_is_for_tds() {
    let mut frames = frames(&[(GIB, 4 * GIB)]);
    let allowed = [
        (GIB + 3 * MIB, GIB + 7 * MIB),
        (2 * GIB + FRAME, 3 * GIB - FRAME),
    ];
    frames.set_for_tds(allowed.to_vec());
    assert_eq!(frames.alloc(ORDER_1G), Err(FrameError::NoMemory));
    let mut taken = 0;
    while let Ok(frame) = frames.alloc(ORDER_2M) {
        taken += 1;
        let end = frame.pa + frame.bytes();
        assert!(allowed.iter().any(|a| a.0 <= frame.pa && end <= a.1));
    }
    assert_eq!(taken, 1 + 510);
    while let Ok(frame) = frames.alloc(ORDER_4K) {
        assert!(allowed.iter().any(|a| a.0 <= frame.pa && frame.pa < a.1));
    }
    let rest: Vec<Range> = [
        (GIB, allowed[0].0),
        (allowed[0].1, allowed[1].0),
        (allowed[1].1, 4 * GIB),
    ]
    .into();
    assert_eq!(free_ranges(&frames), rest);
    assert_eq!(frames.alloc_for_host(ORDER_1G).unwrap().pa, 3 * GIB);
}

#[test]
fn quarantine_is_for_good() {
    let mut frames = frames(&[(GIB, GIB + 2 * FRAME)]);
    let bad = frames.alloc(ORDER_4K).unwrap();
    frames.quarantine(bad).unwrap();
    assert_eq!(frames.free(bad), Err(FrameError::NotAllocated(bad)));
    let other = frames.alloc(ORDER_4K).unwrap();
    assert_ne!(bad.pa, other.pa);
    assert_eq!(frames.alloc(ORDER_4K), Err(FrameError::NoMemory));
    assert_eq!(bytes(&frames, |c| c.quarantined), FRAME);
}

#[test]
fn a_split_block_goes_back_piece_by_piece_or_merged() {
    let mut frames = frames(&[(GIB, 2 * GIB)]);
    let block = frames.alloc(ORDER_2M).unwrap();
    frames.split(block, ORDER_4K).unwrap();
    assert_eq!(frames.free(block), Err(FrameError::NotAllocated(block)));
    let piece = |i| Frame {
        pa: block.pa + i * FRAME,
        order: ORDER_4K,
    };
    frames.merge(block, ORDER_4K).unwrap();
    frames.split(block, ORDER_4K).unwrap();
    frames.free(piece(7)).unwrap();
    assert_eq!(
        frames.merge(block, ORDER_4K),
        Err(FrameError::NotAllocated(piece(7)))
    );
    for i in (0..512).filter(|i| *i != 7) {
        frames.free(piece(i)).unwrap();
    }
    assert_eq!(frames.counts()[18].free, 1);
}

#[test]
fn memory_is_added_once_and_inside_its_zone() {
    let mut frames = frames(&[(GIB, GIB + 8 * FRAME)]);
    for range in [
        (GIB, GIB + FRAME),
        (GIB + 4 * FRAME, GIB + 9 * FRAME),
        (0, FRAME),
    ] {
        assert_eq!(frames.add(range), Err(FrameError::BadRange(range)));
    }
    assert_eq!(frames.total_bytes(), 8 * FRAME);
}

#[test]
fn far_memory_gets_a_zone_of_its_own() {
    let zones = zones_for(&[(MIB, GIB), (GIB + MIB, 2 * GIB), (1024 * GIB, 1025 * GIB)]);
    assert_eq!(zones, [(MIB, 2 * GIB), (1024 * GIB, 1025 * GIB)]);
    let four_bits_a_frame = (words_for((0, 1024 * GIB)) * 64) as f64 / (1u64 << 28) as f64;
    assert!(four_bits_a_frame < 4.1, "{four_bits_a_frame}");
}

#[derive(Clone, Debug)]
enum Action {
    Alloc(u32),
    Free(usize),
    Quarantine(usize),
    Split(usize, u32),
    /// The first page, and the number of pages.
    Range(u64, u64),
    /// A page, and an order.
    At(u64, u32),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => prop_oneof![Just(0), Just(0), Just(9), 0..=18u32].prop_map(Action::Alloc),
        3 => any::<usize>().prop_map(Action::Free),
        1 => any::<usize>().prop_map(Action::Quarantine),
        1 => (0..150_000u64, 1..3_000u64).prop_map(|(at, pages)| Action::Range(at, pages)),
        1 => (0..150_000u64, prop_oneof![Just(0), Just(9)]).prop_map(|(at, order)| Action::At(at, order)),
        1 => (any::<usize>(), 0..4u32).prop_map(|(i, down)| Action::Split(i, down)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// No two blocks overlap, and free + used + quarantined equals the total after every step.
    #[test]
    fn the_ledger_balances(actions in prop::collection::vec(action(), 1..80)) {
        let ranges = [(MIB, 600 * MIB + 3 * FRAME), (3 * GIB, 5 * GIB + 2 * MIB)];
        let mut frames = frames(&ranges);
        let (mut held, mut gone): (Vec<Frame>, Vec<Frame>) = (vec![], vec![]);
        for action in actions {
            match action {
                Action::Alloc(order) => {
                    if let Ok(new) = frames.alloc(order) {
                        prop_assert!(new.pa.is_multiple_of(new.bytes()));
                        prop_assert!(ranges.iter().any(|r| r.0 <= new.pa && new.pa + new.bytes() <= r.1));
                        for old in held.iter().chain(&gone) {
                            prop_assert!(new.pa + new.bytes() <= old.pa || old.pa + old.bytes() <= new.pa);
                        }
                        held.push(new);
                    }
                }
                Action::Free(i) if !held.is_empty() => {
                    let frame = held.swap_remove(i % held.len());
                    frames.free(frame).unwrap();
                }
                Action::Quarantine(i) if !held.is_empty() => {
                    let frame = held.swap_remove(i % held.len());
                    frames.quarantine(frame).unwrap();
                    gone.push(frame);
                }
                Action::Split(i, down) if !held.is_empty() => {
                    let i = i % held.len();
                    let frame = held[i];
                    let order = frame.order.saturating_sub(down);
                    if frames.split(frame, order).is_ok() {
                        held.swap_remove(i);
                        held.extend((0..1 << (frame.order - order)).map(|i| Frame {
                            pa: frame.pa + i * (FRAME << order),
                            order,
                        }));
                    }
                }
                Action::At(page, order) => {
                    let frame = Frame { pa: (page * FRAME) >> (12 + order) << (12 + order), order };
                    if frames.alloc_at(frame).is_ok() {
                        for old in held.iter().chain(&gone) {
                            prop_assert!(frame.pa + frame.bytes() <= old.pa || old.pa + old.bytes() <= frame.pa);
                        }
                        held.push(frame);
                    }
                }
                Action::Range(start, pages) => {
                    let start = MIB + start * FRAME;
                    let range = (start, start + pages * FRAME);
                    if frames.alloc_range(range).is_ok() {
                        held.extend(blocks_of(range));
                    }
                }
                _ => {}
            }
            let used: u64 = held.iter().map(|f| f.bytes()).sum();
            prop_assert_eq!(bytes(&frames, |c| c.used), used);
            let quarantined: u64 = gone.iter().map(|f| f.bytes()).sum();
            prop_assert_eq!(bytes(&frames, |c| c.quarantined), quarantined);
            let free = bytes(&frames, |c| c.free);
            prop_assert_eq!(free, free_ranges(&frames).iter().map(|r| r.1 - r.0).sum::<u64>());
            prop_assert_eq!(free + used + quarantined, frames.total_bytes());
        }
        for frame in held {
            frames.free(frame).unwrap();
        }
        if gone.is_empty() {
            let fresh = self::frames(&ranges);
            prop_assert_eq!(frames.counts(), fresh.counts());
        }
    }
}

#[test]
fn a_broken_page_goes_out_of_use_now_or_when_its_block_is_freed() {
    let mut frames = frames(&[(GIB, 2 * GIB)]);
    assert_eq!(frames.retire(3 * GIB), Ok(Retired::Unknown));
    assert_eq!(frames.retire(GIB + 5 * FRAME + 64), Ok(Retired::Now));
    assert_eq!(bytes(&frames, |c| c.quarantined), FRAME);
    let whole = Frame {
        pa: GIB + 4 * MIB,
        order: ORDER_2M,
    };
    frames.alloc_at(whole).unwrap();
    for page in [0, 7, 511, 7] {
        let retired = frames.retire(whole.pa + page * FRAME);
        assert_eq!(retired, Ok(Retired::WhenFreed));
    }
    // It stays in use, in parts or whole, until it is freed.
    frames.split(whole, ORDER_4K).unwrap();
    frames.merge(whole, ORDER_4K).unwrap();
    assert_eq!(bytes(&frames, |c| c.quarantined), FRAME);
    frames.free(whole).unwrap();
    assert_eq!(bytes(&frames, |c| c.quarantined), 4 * FRAME);
    assert_eq!(bytes(&frames, |c| c.free), GIB - 4 * FRAME);
    for page in [0, 7, 511] {
        let frame = Frame {
            pa: whole.pa + page * FRAME,
            order: ORDER_4K,
        };
        assert_eq!(frames.alloc_at(frame), Err(FrameError::NoMemory));
    }
}

#[test]
fn too_many_broken_pages_are_refused() {
    let mut frames = frames(&[(GIB, 2 * GIB)]);
    frames.alloc(ORDER_1G).unwrap();
    for page in 0..MAX_BROKEN as u64 {
        assert_eq!(frames.retire(GIB + page * FRAME), Ok(Retired::WhenFreed));
    }
    assert_eq!(frames.retire(2 * GIB - 1), Err(FrameError::NoMemory));
}

proptest! {
    /// Whatever is allocated, freed and broken: every byte is free, used or in quarantine, and no broken page is handed
    /// out again.
    #[test]
    fn broken_pages_are_never_handed_out_again(
        steps in prop::collection::vec((0u8..4, any::<u16>()), 1..60),
    ) {
        let size = 64 * MIB;
        let mut frames = frames(&[(GIB, GIB + size)]);
        let mut used: Vec<Frame> = Vec::new();
        let mut retired = Vec::new();
        for (kind, number) in steps {
            match kind {
                0 | 1 => {
                    if let Ok(frame) = frames.alloc([0, 3, 9][usize::from(number) % 3]) {
                        let fresh = |pa: &u64| !(frame.pa..frame.pa + frame.bytes()).contains(pa);
                        prop_assert!(retired.iter().all(fresh));
                        used.push(frame);
                    }
                }
                2 if !used.is_empty() => {
                    let frame = used.swap_remove(usize::from(number) % used.len());
                    frames.free(frame).unwrap();
                }
                _ => {
                    let pa = GIB + u64::from(number) % (size / FRAME) * FRAME;
                    frames.retire(pa).unwrap();
                    retired.push(pa);
                }
            }
            let all = bytes(&frames, |c| c.free + c.used + c.quarantined);
            prop_assert_eq!(all, size);
        }
    }
}
