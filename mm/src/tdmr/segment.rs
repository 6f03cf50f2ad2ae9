//! Which 1 GiB blocks form which TDMR.
//!
//! First every block that is worth its PAMT is gathered into *segments*: neighbouring blocks of one NUMA node, cut
//! before their holes need more than a TDMR can reserve. If these are more than the module takes TDMRs, two things make
//! them fewer: joining two neighbours (which costs PAMT for what lies between, perhaps memory between holes, and
//! locality), or giving one up. The cheapest is done until they fit. Every step costs no more than the least valuable
//! segment, so the whole costs no more than giving up the least valuable ones.

use alloc::{collections::BinaryHeap, vec::Vec};
use core::cmp::Reverse;

use super::{LeftOut, Limits, Memory, Span, TDMR_UNIT, Why, reserved};

/// Memory that one TDMR will cover.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// Whole 1 GiB blocks.
    pub span: Span,
    /// The node that most of its memory is in.
    pub node: Option<u32>,
}

/// The segments, at most as many as there are TDMRs, ascending; and what was given up for that.
pub(super) fn segments(memory: &Memory, limits: &Limits) -> (Vec<Segment>, Vec<LeftOut>) {
    let mut segments: Vec<Segment> = Vec::new();
    for next in blocks(memory, limits) {
        match segments.last_mut() {
            Some(last) if may_grow(last, &next, memory, limits) => last.span.end = next.span.end,
            _ => segments.push(next),
        }
    }
    Squeeze::new(memory, limits, segments).run()
}

/// A segment grows by its neighbour of the same node, as long as a reserved area stays free for a PAMT.
fn may_grow(segment: &Segment, next: &Segment, memory: &Memory, limits: &Limits) -> bool {
    segment.span.end == next.span.start
        && segment.node == next.node
        && memory
            .holes
            .count_in(Span::new(segment.span.start, next.span.end))
            < usize::from(limits.max_reserved_per_tdmr)
}

/// Runs of 1 GiB blocks of one node that are worth their PAMT: whole ones in one run, a partly usable one by itself.
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

/// A 1 GiB block that is being gathered from several pieces.
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

/// Makes segments fewer, cheapest step first.
struct Squeeze<'a> {
    memory: &'a Memory,
    limits: &'a Limits,
    links: Vec<Link>,
    /// The cheapest step of every living segment, and stale ones: those whose age is not their segment's.
    steps: BinaryHeap<Reverse<Step>>,
}

/// A segment in the chain; one that was joined to its left neighbour or given up stays behind, not alive.
struct Link {
    segment: Segment,
    worth: Worth,
    left: Option<usize>,
    right: Option<usize>,
    alive: bool,
    /// How often its cheapest step has changed.
    age: u32,
}

/// What a TDMR gives, in bytes.
#[derive(Clone, Copy)]
struct Worth {
    /// Usable convertible memory in it.
    bytes: u64,
    /// The same less what its PAMT costs and what is lost between holes.
    net: i64,
}

/// A way to have one segment less, ordered by what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    /// Bytes of private memory lost; joining can win a little, as PAMT areas are rounded up.
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

    /// The cheapest thing to do with segment `index`: give it up, or join it with its right neighbour.
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
        let node = if b.worth.bytes > a.worth.bytes {
            b.segment.node
        } else {
            a.segment.node
        };
        let span = Span::new(a.segment.span.start, b.segment.span.end);
        self.links[index].segment = Segment { span, node };
        self.links[index].worth = worth(span, self.memory, self.limits);
        self.remove(right);
        if let Some(left) = self.links[index].left {
            self.renew(left);
        }
    }

    /// Takes a segment out of the chain; its left neighbour's cheapest step changes with that.
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
