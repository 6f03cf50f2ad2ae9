//! TDMRs and their PAMTs, planned over the machine's memory map.
//!
//! [`plan`] is a pure function from the reports of firmware and module to the contents of every TDMR_INFO for
//! `TDH.SYS.CONFIG`. It decides three things, each in a file of its own: which 1 GiB blocks become part of which TDMR
//! (`segment`), where the PAMTs are placed (`pamt`), and what each TDMR has to reserve (`reserved`). [`violations`]
//! states the module's rules independently, and shares no reasoning with the planner.
//!
//! Only memory outside every CMR, and the PAMTs, have to be reserved. Memory in a CMR that must not become private
//! (firmware's, the hypervisor's image) is left open and simply never given to a TD: it costs none of a TDMR's few
//! reserved areas.
//!
//! Source: TDX Module ABI 1.5, TDMR_INFO and TDH.SYS.CONFIG.

mod check;
#[cfg(test)]
mod emulated;
#[cfg(test)]
mod machines;
mod pamt;
mod reserved;
mod segment;
mod span;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

use seam::abi::{MAX_RESERVED_PER_TDMR, PamtArea, ReservedArea, TdmrInfo};

pub use check::{Violation, violations};
pub use pamt::PamtLevel;
pub use span::{Span, SpanSet};

/// A TDMR's base and size are multiples of this.
pub const TDMR_UNIT: u64 = 1 << 30;
const PAGE: u64 = 4096;
/// Never convertible in practice, and used by firmware.
const FIRST_MIB: Span = Span {
    start: 0,
    end: 1 << 20,
};

/// The memory map, as far as planning needs it.
#[derive(Clone, Copy, Debug)]
pub struct MemoryMap<'a> {
    /// The convertible memory ranges that the module reports, in any order; null entries are ignored.
    pub cmrs: &'a [Span],
    /// RAM that the hypervisor may use. Where two regions overlap, the one that starts lower prevails.
    pub usable: &'a [UsableRegion],
    /// Usable memory that never becomes private or a PAMT: the hypervisor's image, memory that firmware keeps. The
    /// first MiB is always excluded and need not be listed.
    pub excluded: &'a [Span],
}

/// RAM that the hypervisor may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsableRegion {
    /// Its addresses; only whole 4 KiB pages count.
    pub span: Span,
    /// Its NUMA node (proximity domain), if firmware reports it.
    pub node: Option<u32>,
}

/// Limits of module and CPU, read from metadata and CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Metadata MAX_TDMRS.
    pub max_tdmrs: u16,
    /// Metadata MAX_RESERVED_PER_TDMR. No more areas are used than a TDMR_INFO can hold.
    pub max_reserved_per_tdmr: u16,
    /// Metadata PAMT_4K_ENTRY_SIZE, PAMT_2M_ENTRY_SIZE, PAMT_1G_ENTRY_SIZE, in bytes, by [`PamtLevel`].
    pub pamt_entry_bytes: [u16; 3],
    /// The first physical address that carries HKID bits: 2 to the power of MAXPHYADDR less the KeyID bits.
    pub first_hkid_address: u64,
}

/// The content of one TDMR_INFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tdmr {
    /// TDMR_BASE and TDMR_SIZE.
    pub span: Span,
    /// The three PAMT areas, by [`PamtLevel`].
    pub pamt: [Span; 3],
    /// The reserved areas, ascending, as physical addresses (TDMR_INFO holds offsets from TDMR_BASE).
    pub reserved: Vec<Span>,
    /// The NUMA node of most of its memory.
    pub node: Option<u32>,
}

/// Usable memory that no TD can have, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The memory.
    pub span: Span,
    /// The reason.
    pub why: Why,
}

/// Reason why usable memory cannot become a TD's. It still serves the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It is in no CMR: firmware did not declare it convertible.
    OutsideCmrs,
    /// Its address needs bits that carry the HKID.
    BeyondHkidBits,
    /// The PAMT for its 1 GiB block would be no smaller than the memory gained.
    NotWorthItsPamt,
    /// Memory is in more pieces than the module supports TDMRs, and this is one of the smallest.
    TooFewTdmrs,
    /// It lies between two holes that share one reserved area, because the TDMR has no more of them.
    TooFewReservedAreas,
    /// No piece of free convertible memory is large enough for the PAMT that it would need.
    NoRoomForPamt,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutsideCmrs => "not convertible: in no CMR",
            Self::BeyondHkidBits => "above the addresses that can carry an HKID",
            Self::NotWorthItsPamt => "its PAMT would exceed the memory gained",
            Self::TooFewTdmrs => "more pieces of memory than TDMRs",
            Self::TooFewReservedAreas => "more holes than a TDMR has reserved areas",
            Self::NoRoomForPamt => "no free piece of memory holds its PAMT",
        })
    }
}

/// The input for `TDH.SYS.CONFIG`, and its consequences for the host's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The TDMRs, ascending.
    pub tdmrs: Vec<Tdmr>,
    /// Memory that can be a TD's: usable, in a TDMR, not reserved.
    pub private: SpanSet,
    /// Memory that becomes the module's as PAMT when `TDH.SYS.CONFIG` succeeds.
    pub pamt: SpanSet,
    /// The rest of the usable memory, ascending.
    pub left_out: Vec<LeftOut>,
}

/// Reason why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The module reports a limit of zero for the named metadata field.
    ZeroLimit(&'static str),
    /// No usable memory is in any CMR: firmware offers TDX no memory.
    NothingConvertible,
    /// There is convertible memory, but none of it can be covered; the reason for the largest piece is given.
    NothingCovered(Why),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ZeroLimit(field) => write!(f, "the TDX module reports {field} as 0"),
            Self::NothingConvertible => {
                f.write_str("no usable memory lies in a convertible memory range (CMR)")
            }
            Self::NothingCovered(why) => write!(f, "no memory can be given to TDs: {why}"),
        }
    }
}

impl core::error::Error for PlanError {}

/// Plans the TDMRs and PAMTs for `map`.
///
/// As much memory as possible becomes private, net of the PAMTs. Where the module's limits force a loss, the smallest
/// pieces are left out. No more is lost than by giving up the smallest surplus pieces outright.
///
/// # Errors
/// The reason, if no memory at all can be made private.
pub fn plan(map: &MemoryMap<'_>, limits: &Limits) -> Result<Plan, PlanError> {
    limits.check()?;
    let limits = &Limits {
        max_reserved_per_tdmr: limits
            .max_reserved_per_tdmr
            .min(MAX_RESERVED_PER_TDMR as u16),
        ..*limits
    };
    let memory = Memory::new(map, limits);
    if memory.pool.bytes() == 0 {
        return Err(PlanError::NothingConvertible);
    }
    let (segments, mut given_up) = segment::segments(&memory, limits);
    let placed = pamt::place(&memory, limits, segments, &mut given_up);
    let plan = finish(&memory, limits, placed, &given_up);
    if plan.tdmrs.is_empty() {
        let most = plan
            .left_out
            .iter()
            .max_by_key(|left| (left.why > Why::BeyondHkidBits, left.span.bytes()));
        return Err(PlanError::NothingCovered(
            most.map_or(Why::NotWorthItsPamt, |left| left.why),
        ));
    }
    Ok(plan)
}

impl Limits {
    /// Returns the bytes of the PAMT area of one level for a TDMR of `tdmr_bytes`.
    pub fn pamt_bytes(&self, level: PamtLevel, tdmr_bytes: u64) -> u64 {
        let entries = tdmr_bytes >> level.page_shift();
        (entries * u64::from(self.pamt_entry_bytes[level as usize])).next_multiple_of(PAGE)
    }

    /// Returns the bytes of all three PAMT areas for a TDMR of `tdmr_bytes`.
    pub fn pamt_total(&self, tdmr_bytes: u64) -> u64 {
        PamtLevel::ALL
            .iter()
            .map(|level| self.pamt_bytes(*level, tdmr_bytes))
            .sum()
    }

    fn check(&self) -> Result<(), PlanError> {
        let fields = [
            ("MAX_TDMRS", self.max_tdmrs),
            ("MAX_RESERVED_PER_TDMR", self.max_reserved_per_tdmr),
            ("PAMT_4K_ENTRY_SIZE", self.pamt_entry_bytes[0]),
            ("PAMT_2M_ENTRY_SIZE", self.pamt_entry_bytes[1]),
            ("PAMT_1G_ENTRY_SIZE", self.pamt_entry_bytes[2]),
        ];
        match fields.iter().find(|(_, value)| *value == 0) {
            Some((field, _)) => Err(PlanError::ZeroLimit(field)),
            None => Ok(()),
        }
    }
}

impl Tdmr {
    /// Returns its TDMR_INFO, for `TDH.SYS.CONFIG`.
    pub fn info(&self) -> TdmrInfo {
        let area = |level: PamtLevel| {
            let Span { start: base, end } = self.pamt[level as usize];
            PamtArea {
                base,
                size: end - base,
            }
        };
        let mut info = TdmrInfo {
            base: self.span.start,
            size: self.span.bytes(),
            pamt_1g: area(PamtLevel::Page1G),
            pamt_2m: area(PamtLevel::Page2M),
            pamt_4k: area(PamtLevel::Page4K),
            ..TdmrInfo::default()
        };
        for (entry, area) in info.reserved.iter_mut().zip(&self.reserved) {
            *entry = ReservedArea {
                offset: area.start - self.span.start,
                size: area.bytes(),
            };
        }
        info
    }
}

impl Plan {
    /// Returns the memory that the PAMTs take, in bytes.
    pub fn pamt_bytes(&self) -> u64 {
        self.pamt.bytes()
    }
}

/// The memory map, reduced to the input of the planner.
struct Memory {
    /// Memory that may become private or PAMT, in whole pages, with its node; ascending.
    pieces: Vec<UsableRegion>,
    /// The same memory without the nodes.
    pool: SpanSet,
    /// Addresses in no CMR.
    holes: SpanSet,
    /// Usable memory that was cut away, and why.
    cut: Vec<LeftOut>,
}

impl Memory {
    fn new(map: &MemoryMap<'_>, limits: &Limits) -> Self {
        let everything = Span::new(0, u64::MAX);
        let reachable = Span::new(0, limits.first_hkid_address & !(TDMR_UNIT - 1));
        let cmrs: SpanSet = map.cmrs.iter().copied().collect();
        let cmrs: SpanSet = cmrs.spans().iter().map(|cmr| cmr.shrink_to(PAGE)).collect();
        let excluded: SpanSet = map.excluded.iter().copied().chain([FIRST_MIB]).collect();
        let convertible: SpanSet = cmrs
            .subtract(&excluded)
            .within(reachable)
            .map(|span| span.shrink_to(PAGE))
            .collect();

        let mut usable = map.usable.to_vec();
        usable.sort_unstable_by_key(|region| region.span);
        let (mut pieces, mut cut, mut taken) = (Vec::new(), Vec::new(), 0);
        for region in usable {
            let whole = Span::new(region.span.start.max(taken), region.span.end).shrink_to(PAGE);
            taken = taken.max(whole.end);
            for span in excluded.gaps_in(whole).map(|span| span.shrink_to(PAGE)) {
                pieces.extend(convertible.within(span).map(|span| UsableRegion {
                    span,
                    node: region.node,
                }));
                cut.extend(
                    convertible
                        .gaps_in(span.intersect(reachable))
                        .map(|span| LeftOut {
                            span,
                            why: Why::OutsideCmrs,
                        }),
                );
                let beyond = span.intersect(Span::new(reachable.end, u64::MAX));
                cut.extend((!beyond.is_empty()).then_some(LeftOut {
                    span: beyond,
                    why: Why::BeyondHkidBits,
                }));
            }
        }
        let pool = pieces.iter().map(|piece| piece.span).collect();
        Self {
            pieces,
            pool,
            holes: cmrs.gaps_in(everything).collect(),
            cut,
        }
    }

    /// Returns the node of the memory at `address`, if there is memory and firmware reports its node.
    fn node_at(&self, address: u64) -> Option<u32> {
        let piece = self.pieces.get(
            self.pieces
                .partition_point(|piece| piece.span.end <= address),
        )?;
        piece.node.filter(|_| piece.span.start <= address)
    }
}

/// Adds the reserved areas, and accounts for every usable byte.
fn finish(
    memory: &Memory,
    limits: &Limits,
    placed: Vec<(segment::Segment, [Span; 3])>,
    given_up: &[LeftOut],
) -> Plan {
    let pamt: SpanSet = placed.iter().flat_map(|(_, areas)| *areas).collect();
    let closed: SpanSet = memory
        .holes
        .spans()
        .iter()
        .chain(pamt.spans())
        .copied()
        .collect();
    let mut tdmrs: Vec<Tdmr> = placed
        .into_iter()
        .map(|(segment, pamt)| Tdmr {
            span: segment.span,
            pamt,
            reserved: reserved::areas(segment.span, &closed, &memory.pool, limits).areas,
            node: segment.node,
        })
        .collect();
    tdmrs.sort_unstable_by_key(|tdmr| tdmr.span);

    let covered: SpanSet = tdmrs.iter().map(|tdmr| tdmr.span).collect();
    let reserved: SpanSet = tdmrs
        .iter()
        .flat_map(|tdmr| tdmr.reserved.iter().copied())
        .collect();
    let private = memory.pool.intersect(&covered).subtract(&reserved);
    let rest = memory.pool.subtract(&private).subtract(&pamt);
    let mut left_out = memory.cut.clone();
    let mut explain = |spans: &SpanSet, why| {
        left_out.extend(spans.spans().iter().map(|&span| LeftOut { span, why }))
    };
    explain(&rest.intersect(&covered), Why::TooFewReservedAreas);
    let mut rest = rest.subtract(&covered);
    for why in [Why::TooFewTdmrs, Why::NoRoomForPamt] {
        let spans: SpanSet = given_up
            .iter()
            .filter(|left| left.why == why)
            .map(|left| left.span)
            .collect();
        explain(&rest.intersect(&spans), why);
        rest = rest.subtract(&spans);
    }
    explain(&rest, Why::NotWorthItsPamt);
    left_out.sort_unstable_by_key(|left| left.span);
    Plan {
        tdmrs,
        private,
        pamt,
        left_out,
    }
}
