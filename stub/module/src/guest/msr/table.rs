//! The rules of the MSRs that a TD accesses, as tables.

/// The handling of an MSR access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// The TD accesses the MSR directly.
    Native,
    /// The module handles the access.
    Answer(Answer),
    /// Direct access with the feature; otherwise the module handles the access.
    If(Feature, Answer),
}

/// The module's handling of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// #VE.
    Ve,
    /// #GP(0).
    Gp,
    /// #GP(0) if the TD does not have the MSR, else #VE.
    Having(Owner),
    /// The module emulates the MSR.
    Emulated,
}

/// The reason why a TD has an MSR that its host emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Acpi,
    CoreCapabilities,
    Dca,
    Est,
    Mca,
    Mtrr,
    Pconfig,
    RdtA,
    RdtM,
    Tm2,
    Tme,
    TscDeadline,
    /// The guest has not asked for fewer #VEs.
    Unreduced,
}

/// A feature that gives a TD direct access to an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    Perfmon,
    Cet,
    Pt,
    Uintr,
    Lbr,
    Umwait,
    Xfd,
    Pks,
    Tsx,
    PerfMetrics,
    PerfmonAndPt,
    /// Performance monitoring of all events.
    Unfiltered,
}

/// MSRs with consecutive addresses and the same rules.
pub(super) struct Row {
    pub first: u32,
    pub last: u32,
    pub read: Rule,
    pub write: Rule,
}

const fn row(first: u32, last: u32, read: Rule, write: Rule) -> Row {
    Row {
        first,
        last,
        read,
        write,
    }
}

const fn if_(feature: Feature, answer: Answer) -> Rule {
    Rule::If(feature, answer)
}

use Answer::{Emulated, Gp};
use Feature::{
    Cet, Lbr, PerfMetrics, Perfmon, PerfmonAndPt, Pks, Pt, Tsx, Uintr, Umwait, Unfiltered, Xfd,
};

const NATIVE: Rule = Rule::Native;
const VE: Rule = Rule::Answer(Answer::Ve);
const GP: Rule = Rule::Answer(Answer::Gp);
const EMULATED: Rule = Rule::Answer(Answer::Emulated);
const REDUCIBLE: Rule = having(Owner::Unreduced);
const BY_ACPI: Rule = having(Owner::Acpi);
const BY_CORE_CAPABILITIES: Rule = having(Owner::CoreCapabilities);
const BY_DCA: Rule = having(Owner::Dca);
const BY_EST: Rule = having(Owner::Est);
const BY_MCA: Rule = having(Owner::Mca);
const BY_MTRR: Rule = having(Owner::Mtrr);
const BY_PCONFIG: Rule = having(Owner::Pconfig);
const BY_RDT_A: Rule = having(Owner::RdtA);
const BY_RDT_M: Rule = having(Owner::RdtM);
const BY_TM2: Rule = having(Owner::Tm2);
const BY_TME: Rule = having(Owner::Tme);
const BY_TSC_DEADLINE: Rule = having(Owner::TscDeadline);

const fn having(owner: Owner) -> Rule {
    Rule::Answer(Answer::Having(owner))
}

/// The MSRs with rules other than #VE.
///
/// Source: TDX module 1.5.01, MSR configuration table.
#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row(0x10, 0x10, NATIVE, VE),
    row(0x48, 0x49, NATIVE, NATIVE),
    row(0x87, 0x87, BY_PCONFIG, BY_PCONFIG),
    row(0x8C, 0x8F, GP, GP),
    row(0x98, 0x9B, GP, GP),
    row(0x9E, 0x9E, GP, GP),
    row(0xBC, 0xBC, NATIVE, VE),
    row(0xBD, 0xBD, EMULATED, NATIVE),
    row(0xC1, 0xC8, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0xE1, 0xE1, if_(Umwait, Gp), if_(Umwait, Gp)),
    row(0x10A, 0x10A, EMULATED, NATIVE),
    row(0x10B, 0x10B, NATIVE, NATIVE),
    row(0x122, 0x122, if_(Tsx, Gp), if_(Tsx, Gp)),
    row(0x174, 0x176, NATIVE, NATIVE),
    row(0x186, 0x18D, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x195, 0x195, GP, GP),
    row(0x1A0, 0x1A0, if_(Perfmon, Emulated), VE),
    row(0x1A6, 0x1A7, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x1C4, 0x1C5, if_(Xfd, Gp), if_(Xfd, Gp)),
    row(0x1D9, 0x1D9, EMULATED, EMULATED),
    row(0x1F8, 0x1FA, BY_DCA, BY_DCA),
    row(0x276, 0x276, GP, GP),
    row(0x277, 0x277, NATIVE, NATIVE),
    row(0x309, 0x310, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x329, 0x329, if_(PerfMetrics, Gp), if_(PerfMetrics, Gp)),
    row(0x345, 0x345, if_(PerfmonAndPt, Emulated), if_(Perfmon, Gp)),
    row(0x38D, 0x392, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x3F1, 0x3F2, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x3F6, 0x3F7, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x480, 0x480, EMULATED, GP),
    row(0x481, 0x484, VE, GP),
    row(0x485, 0x489, EMULATED, GP),
    row(0x48A, 0x48A, VE, GP),
    row(0x48B, 0x492, EMULATED, GP),
    row(0x4C1, 0x4C8, if_(Perfmon, Gp), if_(Perfmon, Gp)),
    row(0x500, 0x500, GP, GP),
    row(0x560, 0x561, if_(Pt, Gp), if_(Pt, Gp)),
    row(0x570, 0x572, if_(Pt, Gp), if_(Pt, Gp)),
    row(0x580, 0x587, if_(Pt, Gp), if_(Pt, Gp)),
    row(0x600, 0x600, NATIVE, NATIVE),
    row(0x6A0, 0x6A0, if_(Cet, Gp), if_(Cet, Gp)),
    row(0x6A2, 0x6A2, if_(Cet, Gp), if_(Cet, Gp)),
    row(0x6A4, 0x6A8, if_(Cet, Gp), if_(Cet, Gp)),
    row(0x6E0, 0x6E0, BY_TSC_DEADLINE, BY_TSC_DEADLINE),
    row(0x6E1, 0x6E1, if_(Pks, Gp), if_(Pks, Gp)),
    row(0x800, 0x801, GP, GP),
    row(0x804, 0x807, GP, GP),
    row(0x808, 0x80C, NATIVE, NATIVE),
    row(0x80E, 0x80E, NATIVE, NATIVE),
    row(0x810, 0x827, NATIVE, NATIVE),
    row(0x829, 0x82E, GP, GP),
    row(0x831, 0x831, GP, GP),
    row(0x83F, 0x83F, NATIVE, NATIVE),
    row(0x840, 0x8FF, GP, GP),
    row(0x981, 0x984, BY_TME, BY_TME),
    row(0x985, 0x98A, if_(Uintr, Gp), if_(Uintr, Gp)),
    row(0xC80, 0xC80, NATIVE, VE),
    row(0xD90, 0xD90, GP, GP),
    row(0xD93, 0xD93, GP, GP),
    row(0xDA0, 0xDA0, NATIVE, EMULATED),
    row(0x1200, 0x12FF, if_(Lbr, Gp), if_(Lbr, Gp)),
    row(0x14CE, 0x14CF, if_(Lbr, Gp), if_(Lbr, Gp)),
    row(0x1500, 0x16FF, if_(Lbr, Gp), if_(Lbr, Gp)),
    row(0x1B01, 0x1B01, NATIVE, NATIVE),
    row(0xC000_0080, 0xC000_0080, NATIVE, EMULATED),
    row(0xC000_0081, 0xC000_0082, NATIVE, NATIVE),
    row(0xC000_0084, 0xC000_0084, NATIVE, NATIVE),
    row(0xC000_0100, 0xC000_0103, NATIVE, NATIVE),
];

/// The MSRs whose rules differ in releases with [`Change::STRICT_MSRS`], where all MSRs without a rule are
/// `REDUCIBLE`.
///
/// Source: TDX module 1.5.16, MSR configuration table.
#[rustfmt::skip]
pub(super) const REVISED: &[Row] = &[
row(0x0, 0x1, VE, VE),
    row(0x6, 0x6, VE, VE),
    row(0x17, 0x17, VE, REDUCIBLE),
    row(0x1B, 0x1B, VE, VE),
    row(0x33, 0x33, BY_CORE_CAPABILITIES, BY_CORE_CAPABILITIES),
    row(0x34, 0x34, EMULATED, EMULATED),
    row(0x3A, 0x3A, EMULATED, REDUCIBLE),
    row(0x4E, 0x4E, EMULATED, REDUCIBLE),
    row(0x79, 0x79, REDUCIBLE, EMULATED),
    row(0x8B, 0x8B, EMULATED, EMULATED),
    row(0xCE, 0xCE, EMULATED, REDUCIBLE),
    row(0xCF, 0xCF, BY_CORE_CAPABILITIES, GP),
    row(0xED, 0xF0, BY_CORE_CAPABILITIES, BY_CORE_CAPABILITIES),
    row(0xFE, 0xFE, BY_MTRR, GP),
    row(0x140, 0x140, EMULATED, EMULATED),
    row(0x179, 0x179, BY_MCA, GP),
    row(0x17A, 0x17B, BY_MCA, BY_MCA),
    row(0x186, 0x18D, if_(Unfiltered, Emulated), if_(Unfiltered, Emulated)),
    row(0x198, 0x199, BY_EST, BY_EST),
    row(0x19A, 0x19C, BY_ACPI, BY_ACPI),
    row(0x19D, 0x19D, BY_TM2, BY_TM2),
    row(0x1A0, 0x1A0, EMULATED, EMULATED),
    row(0x1F2, 0x1F3, BY_MTRR, BY_MTRR),
    row(0x1F6, 0x1F7, BY_MTRR, BY_MTRR),
    row(0x200, 0x213, BY_MTRR, BY_MTRR),
    row(0x250, 0x250, BY_MTRR, BY_MTRR),
    row(0x258, 0x259, BY_MTRR, BY_MTRR),
    row(0x268, 0x26F, BY_MTRR, BY_MTRR),
    row(0x280, 0x29F, BY_MCA, BY_MCA),
    row(0x2A0, 0x2A7, BY_MTRR, BY_MTRR),
    row(0x2C0, 0x2C1, BY_MTRR, BY_MTRR),
    row(0x2FF, 0x2FF, BY_MTRR, BY_MTRR),
    row(0x400, 0x473, BY_MCA, BY_MCA),
    row(0x481, 0x484, REDUCIBLE, GP),
    row(0x48A, 0x48A, REDUCIBLE, GP),
    row(0x4D0, 0x4D0, BY_MCA, BY_MCA),
    row(0x802, 0x802, EMULATED, GP),
    row(0x803, 0x803, VE, GP),
    row(0x80D, 0x80D, VE, GP),
    row(0x80F, 0x80F, VE, VE),
    row(0x828, 0x828, VE, VE),
    row(0x82F, 0x830, VE, VE),
    row(0x832, 0x838, VE, VE),
    row(0x839, 0x839, VE, GP),
    row(0x83A, 0x83A, VE, VE),
    row(0x83B, 0x83D, GP, GP),
    row(0x83E, 0x83E, VE, VE),
    row(0xC80, 0xC80, GP, REDUCIBLE),
    row(0xC81, 0xC82, BY_RDT_A, BY_RDT_A),
    row(0xC8D, 0xC8F, BY_RDT_M, BY_RDT_M),
    row(0xC90, 0xD8F, BY_RDT_A, BY_RDT_A),
    row(0xC000_0083, 0xC000_0083, VE, VE),
];
