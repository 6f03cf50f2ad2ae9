//! NMIs that this program did not send: their source, and what they require.
//!
//! Source: Intel 500 Series Chipset Family datasheet volume 2, NMI Status and Control (port 0x61).

use crate::cper::Severity;

/// The port of the chipset's NMI status and control register.
pub const PORT: u16 = 0x61;

/// A source of NMIs.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The firmware has a record of an error.
    Firmware,
    /// A device raised SERR#.
    Serr,
    /// A device raised IOCHK#.
    IoCheck,
    /// No source reports anything: an operator's request through the service processor, or a watchdog.
    Unknown,
}

impl Source {
    /// Every source.
    pub const ALL: [Self; 4] = [Self::Firmware, Self::Serr, Self::IoCheck, Self::Unknown];

    /// Returns the name for tools.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Firmware => "firmware",
            Self::Serr => "serr",
            Self::IoCheck => "iochk",
            Self::Unknown => "unknown",
        }
    }

    /// Finds the source. `record` is the severity of the firmware's record, if there is one; `status` is the value of
    /// [`PORT`].
    #[must_use]
    pub const fn of(record: Option<Severity>, status: u8) -> Self {
        match (
            record,
            status & SERR_STATUS != 0,
            status & IOCHK_STATUS != 0,
        ) {
            (Some(_), ..) => Self::Firmware,
            (None, true, _) => Self::Serr,
            (None, false, true) => Self::IoCheck,
            (None, false, false) => Self::Unknown,
        }
    }
}

const SERR_STATUS: u8 = 1 << 7;
const IOCHK_STATUS: u8 = 1 << 6;
const IOCHK_OFF: u8 = 1 << 3;
const SERR_OFF: u8 = 1 << 2;
/// Bits 7:4 are read-only and must be written as zero.
const WRITABLE: u8 = 0xF;

/// Returns the values to write to [`PORT`], in this order, so that its sources can raise the next NMI: each source
/// that has raised one is switched off, which clears its status, and on again.
#[must_use]
pub const fn rearm(status: u8) -> Option<[u8; 2]> {
    let mut off = 0;
    if status & SERR_STATUS != 0 {
        off |= SERR_OFF;
    }
    if status & IOCHK_STATUS != 0 {
        off |= IOCHK_OFF;
    }
    let kept = status & WRITABLE;
    match off {
        0 => None,
        off => Some([kept | off, kept & !off]),
    }
}

/// Returns true if the machine must stop. A fatal record always stops it; `halts` is the operator's choice for
/// everything but a record of an error that the machine survives.
#[must_use]
pub const fn must_stop(record: Option<Severity>, halts: bool) -> bool {
    match record {
        Some(Severity::Fatal) => true,
        Some(_) => false,
        None => halts,
    }
}
