//! Contended cache lines: what CPUs that reclaim one TD's pages at the same time all write to.
//!
//! A line is one CPU's at a time. Another one that writes to it waits for those before it and for the line's way; whoever
//! has it already pays nothing.

use seam::abi::{PAGE_1G, PAGE_2M, PAMT_ENTRY_SIZE};

use super::topology::Topology;
use crate::cost::{Costs, Item};

/// PAMT entries in one line of 64 bytes.
const ENTRIES_PER_LINE: u64 = 64 / PAMT_ENTRY_SIZE;

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The PAMT entry of the TDR, with the lock that every call about the TD takes shared.
    TdrLock,
    /// The TDR's count of the TD's pages.
    TdrCount,
    /// The PAMT entries of 1 GiB, four in a line, of which one is above this address.
    Pamt1g(u64),
    /// The PAMT entries of 2 MiB, four in a line, of which one is above this address.
    Pamt2m(u64),
    /// The lock of the frame allocator.
    Frames,
    /// The count of the units that were handed out.
    Handout,
}

const FIXED: [(Line, &str); 4] = [
    (Line::TdrLock, "the TDR's lock"),
    (Line::TdrCount, "the TDR's count of pages"),
    (Line::Frames, "the frame allocator's lock"),
    (Line::Handout, "the handing out"),
];

#[derive(Clone, Copy, Debug)]
struct State {
    owner: u32,
    free_at: u64,
    busy: u64,
}

const NOBODY: u32 = u32::MAX;

/// All lines of a machine.
#[derive(Debug)]
pub struct Lines {
    base: u64,
    gibs: usize,
    inside: u64,
    across: u64,
    states: Vec<State>,
}

impl Lines {
    pub fn new(topology: &Topology, costs: &Costs) -> Self {
        let bytes = topology.memory.end - topology.memory.start;
        let lines = |page| bytes.div_ceil(page * ENTRIES_PER_LINE) as usize + 1;
        let gibs = lines(PAGE_1G);
        let state = State {
            owner: NOBODY,
            free_at: 0,
            busy: 0,
        };
        Self {
            base: topology.memory.start,
            gibs,
            inside: costs.ps(Item::LineInside),
            across: costs.ps(Item::LineAcross),
            states: vec![state; FIXED.len() + gibs + lines(PAGE_2M)],
        }
    }

    /// The number of a line.
    pub fn number(&self, line: Line) -> u32 {
        let at = |address: u64, page| (address - self.base) / (page * ENTRIES_PER_LINE);
        let number = match line {
            Line::TdrLock => 0,
            Line::TdrCount => 1,
            Line::Frames => 2,
            Line::Handout => 3,
            Line::Pamt1g(hpa) => FIXED.len() + at(hpa, PAGE_1G) as usize,
            Line::Pamt2m(hpa) => FIXED.len() + self.gibs + at(hpa, PAGE_2M) as usize,
        };
        number as u32
    }

    /// A CPU writes to a line at `now`, and keeps it for `hold`. When it is through.
    pub fn write(
        &mut self,
        number: u32,
        cpu: u32,
        now: u64,
        hold: u64,
        topology: &Topology,
    ) -> u64 {
        let state = &mut self.states[number as usize];
        let way = match state.owner {
            owner if owner == cpu || owner == NOBODY => 0,
            owner if topology.package(owner) == topology.package(cpu) => self.inside,
            _ => self.across,
        };
        let begin = state.free_at.max(now);
        *state = State {
            owner: cpu,
            free_at: begin + way + hold,
            busy: state.busy + way + hold,
        };
        state.free_at
    }

    /// The line that was on its way or held for the longest time.
    pub fn busiest(&self) -> &'static str {
        let numbered = (0..).zip(&self.states);
        let busiest = numbered.max_by_key(|(_, state)| state.busy);
        let number = busiest.map_or(0, |(number, _)| number);
        match FIXED.get(number) {
            Some((_, name)) => name,
            None if number < FIXED.len() + self.gibs => "PAMT entries of 1 GiB",
            None => "PAMT entries of 2 MiB",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn machine() -> (Topology, Lines) {
        let topology = Topology::new(64, 4 * GIB..12 * GIB);
        let lines = Lines::new(&topology, &Costs::default());
        (topology, lines)
    }

    #[test]
    fn a_line_costs_its_way_and_the_wait_for_those_before() {
        let (topology, mut lines) = machine();
        let line = lines.number(Line::TdrLock);
        assert_eq!(
            lines.write(line, 0, 1_000, 0, &topology),
            1_000,
            "nobody had it"
        );
        assert_eq!(lines.write(line, 0, 2_000, 0, &topology), 2_000, "its own");
        assert_eq!(lines.write(line, 1, 2_000, 0, &topology), 102_000, "inside");
        assert_eq!(
            lines.write(line, 32, 2_000, 0, &topology),
            302_000,
            "across, after the other"
        );
        assert_eq!(lines.busiest(), "the TDR's lock");
    }

    #[test]
    fn four_neighbours_share_a_line_of_the_pamt() {
        let (_, lines) = machine();
        let gib = |number: u64| lines.number(Line::Pamt1g(4 * GIB + number * GIB));
        assert_eq!(gib(0), gib(3));
        assert_ne!(gib(3), gib(4));
        let block = |number: u64| lines.number(Line::Pamt2m(4 * GIB + number * (2 << 20)));
        assert_eq!(block(4), block(7));
        assert_ne!(block(7), block(8));
        assert_ne!(gib(0), block(0));
    }
}
