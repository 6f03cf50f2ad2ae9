//! Machines for the planner's tests: some like real servers, some like none.

use alloc::{vec, vec::Vec};
use proptest::prelude::*;

use super::*;

pub(super) const GIB: u64 = 1 << 30;
pub(super) const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// Limits that module 1.5.01 reports, with 6 KeyID bits below bit 52.
pub(super) const LIMITS_1_5: Limits = Limits {
    max_tdmrs: 64,
    max_reserved_per_tdmr: 16,
    pamt_entry_bytes: [16; 3],
    first_hkid_address: 1 << 46,
};

/// System management memory, which is in no CMR of any machine.
pub(super) const SMRR: Span = Span {
    start: 0xf000_0000,
    end: 0xf080_0000,
};

/// A memory map that owns its lists.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    pub(super) cmrs: Vec<Span>,
    pub(super) usable: Vec<UsableRegion>,
    pub(super) excluded: Vec<Span>,
}

impl Machine {
    /// Adds RAM that is also convertible.
    pub(super) fn ram(mut self, start: u64, end: u64, node: u32) -> Self {
        self.cmrs.push(Span::new(start, end));
        self.usable.push(UsableRegion {
            span: Span::new(start, end),
            node: Some(node),
        });
        self
    }

    pub(super) fn excluding(mut self, start: u64, end: u64) -> Self {
        self.excluded.push(Span::new(start, end));
        self
    }

    pub(super) fn map(&self) -> MemoryMap<'_> {
        MemoryMap {
            cmrs: &self.cmrs,
            usable: &self.usable,
            excluded: &self.excluded,
        }
    }

    pub(super) fn plan(&self, limits: &Limits) -> Plan {
        let plan = plan(&self.map(), limits).expect("a plan");
        self.check(&plan, limits);
        plan
    }

    /// Checks the invariants of a plan.
    pub(super) fn check(&self, plan: &Plan, limits: &Limits) {
        assert_eq!(violations(&plan.tdmrs, &self.cmrs, limits), []);
        let excluded: SpanSet = self.excluded.iter().copied().chain([FIRST_MIB]).collect();
        let usable: SpanSet = self
            .usable
            .iter()
            .map(|region| region.span.shrink_to(PAGE))
            .collect();
        let usable: SpanSet = usable
            .subtract(&excluded)
            .spans()
            .iter()
            .map(|span| span.shrink_to(PAGE))
            .collect();
        let left: SpanSet = plan.left_out.iter().map(|left| left.span).collect();
        let all: SpanSet = [&plan.private, &plan.pamt, &left]
            .iter()
            .flat_map(|set| set.spans())
            .copied()
            .collect();
        assert_eq!(
            all, usable,
            "every usable byte is private, PAMT or left out"
        );
        let sum = plan.private.bytes()
            + plan.pamt.bytes()
            + plan.left_out.iter().map(|l| l.span.bytes()).sum::<u64>();
        assert_eq!(sum, usable.bytes(), "and only one of them");
        for span in plan.private.spans() {
            let open: u64 = plan
                .tdmrs
                .iter()
                .map(|t| {
                    let part = span.intersect(t.span);
                    part.bytes()
                        - t.reserved
                            .iter()
                            .map(|r| r.intersect(part).bytes())
                            .sum::<u64>()
                })
                .sum();
            assert_eq!(
                open,
                span.bytes(),
                "private memory is in the open part of a TDMR"
            );
        }
    }
}

prop_compose! {
    /// A server: one to eight sockets, a PCI hole below 4 GiB, memory above it by socket (contiguous, or interleaved in
    /// slices), occasional holes that firmware keeps at the end of a socket's memory, and small ones that it takes out
    /// of RAM.
    pub(super) fn server()(
        sockets in 1u64..=8,
        low_end in (64u64..=3072).prop_map(|mib| 0x10_0000 * mib),
        per_socket in prop_oneof![2u64..64, 64u64..1024, 1024u64..8192],
        slice in prop::option::of(1u64..16),
        stolen in 0u64..=1024,
        mmio_after in 0u64..3,
        seeds in prop::collection::vec((any::<u64>(), 1u64..4096), 0..80),
    ) -> Machine {
        let mut machine = Machine::default();
        machine.cmrs.push(Span::new(MIB, low_end));
        machine.usable.push(UsableRegion { span: Span::new(0x1000, 0x9_f000), node: Some(0) });
        machine.usable.push(UsableRegion { span: Span::new(MIB, low_end), node: Some(0) });
        let mut at = 4 * GIB;
        if let Some(slice) = slice {
            let slices = (sockets * per_socket / slice).clamp(1, 4096);
            let end = at + slices * slice * GIB;
            machine.cmrs.push(Span::new(at, end));
            for i in 0..slices {
                let span = Span::new(at + i * slice * GIB, at + (i + 1) * slice * GIB);
                machine.usable.push(UsableRegion { span, node: Some((i % sockets) as u32) });
            }
            at = end;
        } else {
            for socket in 0..sockets {
                let end = at + per_socket * GIB;
                machine = machine.ram(at, end - stolen * MIB, socket as u32);
                at = end + mmio_after * GIB;
            }
        }
        for (place, pages) in seeds {
            let start = (place % at) & !(PAGE - 1);
            machine.excluded.push(Span::new(start, start + pages * PAGE));
        }
        machine
    }
}

prop_compose! {
    /// A map unlike that of any server: regions, CMRs and exclusions anywhere within 64 GiB, and tight limits.
    pub(super) fn shreds()(
        usable in prop::collection::vec((0u64..64 << 10, 1u64..4096, 0u32..4), 1..60),
        holes in prop::collection::vec((0u64..64 << 10, 1u64..300), 0..60),
        excluded in prop::collection::vec((0u64..64 << 10, 1u64..64), 0..60),
        max_tdmrs in 1u16..12,
        max_reserved_per_tdmr in 1u16..6,
    ) -> (Machine, Limits) {
        let span = |(mib, len): (u64, u64)| Span::new(mib * MIB, (mib + len) * MIB);
        let holes: SpanSet = holes.into_iter().map(span).chain([SMRR]).collect();
        let machine = Machine {
            cmrs: holes.gaps_in(Span::new(0, 64 * GIB)).collect(),
            usable: usable.into_iter().map(|(at, len, node)| UsableRegion { span: span((at, len)), node: Some(node) }).collect(),
            excluded: excluded.into_iter().map(span).collect(),
        };
        (machine, Limits { max_tdmrs, max_reserved_per_tdmr, ..LIMITS_1_5 })
    }
}

/// Maps of 64 TiB, by name: a few large regions; nodes that interleave by 1 GiB; thousands of pieces with gaps.
pub(super) fn maps_of_64_tib() -> [(&'static str, Machine); 3] {
    let mut contiguous = Machine::default().ram(MIB, 2 * GIB, 0);
    for node in 0..8 {
        contiguous = contiguous.ram(4 * GIB + node * 8 * TIB, (node + 1) * 8 * TIB, node as u32);
    }
    let mut interleaved = Machine {
        cmrs: vec![Span::new(4 * GIB, 64 * TIB)],
        ..Machine::default()
    };
    for block in 4..64 << 10 {
        let span = Span::new(block * GIB, (block + 1) * GIB);
        interleaved.usable.push(UsableRegion {
            span,
            node: Some((block % 8) as u32),
        });
    }
    let mut scattered = Machine {
        cmrs: vec![Span::new(4 * GIB, 64 * TIB)],
        ..Machine::default()
    };
    for i in 0..4096 {
        let start = (4 + 15 * i) * GIB + (i * 37 % 1000) * MIB;
        let span = Span::new(start, start + (10 + i % 5) * GIB);
        scattered.usable.push(UsableRegion {
            span,
            node: Some((i / 512) as u32),
        });
    }
    [
        ("contiguous", contiguous),
        ("interleaved", interleaved),
        ("scattered", scattered),
    ]
}
