//! Grouping of 1 GiB blocks into TDMRs.
//!
//! First, every block that is worth its PAMT is gathered into *segments*: adjacent blocks of one NUMA node, cut before
//! their holes need more reserved areas than a TDMR has. If there are more segments than the module supports TDMRs, two
//! steps reduce their number: joining two neighbours (which costs PAMT for the space between, perhaps memory between
//! holes, and locality), or giving one up. The cheapest step is repeated until the segments fit. Every step costs no
//! more than the least valuable segment, so the whole costs no more than giving up the least valuable ones.

use alloc::{collections::BinaryHeap, vec::Vec};
use core::cmp::Reverse;

use super::{LeftOut, Limits, Memory, Span, TDMR_UNIT, Why, reserved};

/// Memory that one TDMR will cover.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// Whole 1 GiB blocks.
    pub span: Span,
    /// The node of most of its memory.
    pub node: Option<u32>,
}

/// Returns the segments in ascending order, at most as many as there are TDMRs, and the memory given up for that.
pub(super) fn segments(memory: &Memory, limits: &Limits) -> (Vec<Segment>, Vec<LeftOut>) {
    let mut segments: Vec<Segment> = Vec::new();
    for next in blocks(memory, limits) {
        match segments.last_mut() {
            Some(last) if last.node == next.node && joins_freely(last, &next, memory, limits) => {
                last.span.end = next.span.end;
            }
            _ => segments.push(next),
        }
    }
    let segments = join_small(segments, memory, limits);
    Squeeze::new(memory, limits, segments).run()
}

/// Returns whether two neighbours lose nothing in one TDMR: nothing lies between them, and a reserved area stays free
/// for a PAMT.
fn joins_freely(segment: &Segment, next: &Segment, memory: &Memory, limits: &Limits) -> bool {
    let joined = Span::new(segment.span.start, next.span.end);
    segment.span.end == next.span.start
        && memory.holes.count_in(joined) < usize::from(limits.max_reserved_per_tdmr)
}

/// Joins neighbours of different nodes that cost no memory to join, pair by pair, while there are more segments than
/// TDMRs. No segment grows beyond half an even share of memory: finely interleaved nodes need no more careful choice.
fn join_small(mut segments: Vec<Segment>, memory: &Memory, limits: &Limits) -> Vec<Segment> {
    let max = usize::from(limits.max_tdmrs);
    let largest = memory.pool.bytes() / max as u64 / 2;
    loop {
        let before = segments.len();
        let mut surplus = before.saturating_sub(max);
        let mut joined: Vec<Segment> = Vec::with_capacity(before);
        let mut is_pair = false;
        for next in segments {
            match joined.last_mut() {
                Some(last)
                    if surplus > 0
                        && !is_pair
                        && next.span.end - last.span.start <= largest
                        && joins_freely(last, &next, memory, limits) =>
                {
                    let pool = &memory.pool;
                    *last = last.join(&next, pool.bytes_in(last.span), pool.bytes_in(next.span));
                    (surplus, is_pair) = (surplus - 1, true);
                }
                _ => {
                    joined.push(next);
                    is_pair = false;
                }
            }
        }
        if joined.len() == before {
            return joined;
        }
        segments = joined;
    }
}

impl Segment {
    /// Joins a segment with its right neighbour. The result has the node of which there is more memory.
    fn join(&self, right: &Self, bytes: u64, right_bytes: u64) -> Self {
        Self {
            span: Span::new(self.span.start, right.span.end),
            node: if right_bytes > bytes {
                right.node
            } else {
                self.node
            },
        }
    }
}

/// Returns the runs of 1 GiB blocks of one node that are worth their PAMT: whole blocks in one run, a partly usable one
/// by itself.
fn blocks(memory: &Memory, limits: &Limits) -> Vec<Segment> {
    let mut runs = Vec::new();
    let mut partial = Partial::default();
    for piece in &memory.pieces {
        let mut rest = piece.span;
        while !rest.is_empty() {
            let whole = Span::new(rest.start, rest.end & !(TDMR_UNIT - 1));
            let taken = if rest.start.is_multiple_of(TDMR_UNIT) && !whole.is_empty() {
                partial.flush(&mut runs, limits);
                runs.push(Segment {
                    span: whole,
                    node: piece.node,
                });
                whole
            } else {
                let block = rest.start & !(TDMR_UNIT - 1);
                if partial.block != block {
                    partial.flush(&mut runs, limits);
                    partial.block = block;
                }
                let part = rest.intersect(Span::new(block, block + TDMR_UNIT));
                partial.add(piece.node, part.bytes());
                part
            };
            rest.start = taken.end;
        }
    }
    partial.flush(&mut runs, limits);
    runs
}

/// A 1 GiB block gathered from several pieces.
#[derive(Default)]
struct Partial {
    block: u64,
    by_node: Vec<(Option<u32>, u64)>,
}

impl Partial {
    fn add(&mut self, node: Option<u32>, bytes: u64) {
        match self.by_node.iter_mut().find(|(known, _)| *known == node) {
            Some((_, sum)) => *sum += bytes,
            None => self.by_node.push((node, bytes)),
        }
    }

    fn flush(&mut self, runs: &mut Vec<Segment>, limits: &Limits) {
        let bytes: u64 = self.by_node.iter().map(|(_, bytes)| bytes).sum();
        if bytes > limits.pamt_total(TDMR_UNIT) {
            let node = self
                .by_node
                .iter()
                .max_by_key(|(_, bytes)| *bytes)
                .and_then(|(node, _)| *node);
            runs.push(Segment {
                span: Span::new(self.block, self.block + TDMR_UNIT),
                node,
            });
        }
        self.by_node.clear();
    }
}

/// Reduction of the number of segments, cheapest step first.
struct Squeeze<'a> {
    memory: &'a Memory,
    limits: &'a Limits,
    links: Vec<Link>,
    /// The cheapest step of every living segment. Also stale steps, whose age is not that of their segment.
    steps: BinaryHeap<Reverse<Step>>,
}

/// A segment in the chain. One that was given up or joined to its left neighbour stays in the list, not alive.
struct Link {
    segment: Segment,
    worth: Worth,
    left: Option<usize>,
    right: Option<usize>,
    alive: bool,
    /// Number of times that its cheapest step has changed.
    age: u32,
}

/// Memory that a TDMR gains, in bytes.
#[derive(Clone, Copy)]
struct Worth {
    /// Usable convertible memory in it.
    bytes: u64,
    /// `bytes` less the cost of the PAMT and the memory lost between holes.
    net: i64,
}

/// A way to remove one segment, ordered by its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    /// Bytes of private memory lost. Joining can gain a little, as PAMT areas are rounded up.
    loss: i64,
    what: What,
    /// Small segments are joined before large ones.
    bytes: u64,
    index: usize,
    age: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// Join with the right neighbour, of the same node.
    Join,
    /// Join with the right neighbour, of another node.
    JoinAcrossNodes,
    GiveUp,
}

impl<'a> Squeeze<'a> {
    fn new(memory: &'a Memory, limits: &'a Limits, segments: Vec<Segment>) -> Self {
        let count = segments.len();
        let link = |(index, segment): (usize, Segment)| Link {
            segment,
            worth: worth(segment.span, memory, limits),
            left: index.checked_sub(1),
            right: (index + 1 < count).then_some(index + 1),
            alive: true,
            age: 0,
        };
        let links = segments.into_iter().enumerate().map(link).collect();
        Self {
            memory,
            limits,
            links,
            steps: BinaryHeap::new(),
        }
    }

    fn run(mut self) -> (Vec<Segment>, Vec<LeftOut>) {
        let mut given_up = Vec::new();
        let mut count = self.links.len();
        let max = usize::from(self.limits.max_tdmrs);
        if count > max {
            self.steps = (0..count)
                .map(|index| Reverse(self.cheapest(index)))
                .collect();
        }
        while count > max {
            let Some(Reverse(step)) = self.steps.pop() else {
                break;
            };
            let link = &self.links[step.index];
            if !link.alive || link.age != step.age {
                continue;
            }
            count -= 1;
            if step.what == What::GiveUp {
                given_up.push(LeftOut {
                    span: link.segment.span,
                    why: Why::TooFewTdmrs,
                });
                self.remove(step.index);
            } else {
                self.join(step.index);
            }
        }
        (
            self.links
                .into_iter()
                .filter(|link| link.alive)
                .map(|link| link.segment)
                .collect(),
            given_up,
        )
    }

    /// Returns the cheapest step for segment `index`: giving it up, or joining it with its right neighbour.
    fn cheapest(&self, index: usize) -> Step {
        let Link {
            segment,
            worth: own,
            right,
            age,
            ..
        } = self.links[index];
        let give_up = Step {
            loss: own.net,
            what: What::GiveUp,
            bytes: own.bytes,
            index,
            age,
        };
        let Some(right) = right.map(|right| &self.links[right]) else {
            return give_up;
        };
        let joined = worth(
            Span::new(segment.span.start, right.segment.span.end),
            self.memory,
            self.limits,
        );
        let same_node = segment.node == right.segment.node;
        give_up.min(Step {
            loss: own.net + right.worth.net - joined.net,
            what: if same_node {
                What::Join
            } else {
                What::JoinAcrossNodes
            },
            bytes: joined.bytes,
            index,
            age,
        })
    }

    fn join(&mut self, index: usize) {
        let Some(right) = self.links[index].right else {
            return;
        };
        let (a, b) = (&self.links[index], &self.links[right]);
        let joined = a.segment.join(&b.segment, a.worth.bytes, b.worth.bytes);
        self.links[index].worth = worth(joined.span, self.memory, self.limits);
        self.links[index].segment = joined;
        self.remove(right);
        if let Some(left) = self.links[index].left {
            self.renew(left);
        }
    }

    /// Removes a segment from the chain. This changes its left neighbour's cheapest step.
    fn remove(&mut self, index: usize) {
        let Link { left, right, .. } = self.links[index];
        self.links[index].alive = false;
        if let Some(right) = right {
            self.links[right].left = left;
        }
        if let Some(left) = left {
            self.links[left].right = right;
            self.renew(left);
        }
    }

    fn renew(&mut self, index: usize) {
        self.links[index].age += 1;
        self.steps.push(Reverse(self.cheapest(index)));
    }
}

fn worth(span: Span, memory: &Memory, limits: &Limits) -> Worth {
    let lost = if memory.holes.count_in(span) > usize::from(limits.max_reserved_per_tdmr) {
        reserved::areas(span, &memory.holes, &memory.pool, limits).lost
    } else {
        0
    };
    let bytes = memory.pool.bytes_in(span);
    Worth {
        bytes,
        net: bytes as i64 - lost as i64 - limits.pamt_total(span.bytes()) as i64,
    }
}
