//! Reasons why a request failed.

use alloc::string::String;
use core::fmt;

use crate::{Function, Source};

/// The longest time in microseconds that a unit has for one answer. The specification has no limit; units answer in
/// microseconds.
pub const LIMIT_US: u64 = 1_000_000;

/// An answer that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// GSTS.TES becomes 1.
    TranslationOn,
    /// GSTS.TES becomes 0.
    TranslationOff,
    /// GSTS.RTPS becomes 1.
    RootTable,
    /// GSTS.IRES becomes 1.
    RemappingOn,
    /// GSTS.IRES becomes 0.
    RemappingOff,
    /// GSTS.IRTPS becomes 1.
    InterruptTable,
    /// GSTS.CFIS becomes 0.
    CompatibilityBlocked,
    /// GSTS.QIES becomes 1.
    QueueOn,
    /// GSTS.QIES becomes 0.
    QueueOff,
    /// The firmware's invalidation queue runs empty: IQH reaches IQT.
    QueueEmpty,
    /// GSTS.WBFS becomes 0.
    WriteBuffer,
    /// PMEN.PRS becomes 0.
    ProtectedRegions,
    /// The unit writes the status of an invalidation wait descriptor.
    Invalidation,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TranslationOn => "switch translation on (GSTS.TES)",
            Self::TranslationOff => "switch translation off (GSTS.TES)",
            Self::RootTable => "take the root table (GSTS.RTPS)",
            Self::RemappingOn => "switch interrupt remapping on (GSTS.IRES)",
            Self::RemappingOff => "switch interrupt remapping off (GSTS.IRES)",
            Self::InterruptTable => "take the interrupt table (GSTS.IRTPS)",
            Self::CompatibilityBlocked => "block compatibility-format interrupts (GSTS.CFIS)",
            Self::QueueOn => "switch the invalidation queue on (GSTS.QIES)",
            Self::QueueOff => "switch the invalidation queue off (GSTS.QIES)",
            Self::QueueEmpty => "finish the firmware's invalidations (IQH)",
            Self::WriteBuffer => "flush its write buffer (GSTS.WBFS)",
            Self::ProtectedRegions => "give up the protected memory regions (PMEN.PRS)",
            Self::Invalidation => "finish an invalidation (wait descriptor)",
        })
    }
}

/// Reason why a request failed. Unless the variant says otherwise, nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The unit with registers at this address has not answered in [`LIMIT_US`]. It is not asked again.
    NoAnswer(u64, Wait),
    /// The unit at this address refused a descriptor of its queue twice (FSTS.IQE, ITE or ICE). It is not asked again.
    Queue(u64),
    /// The unit's registers can't be reached.
    Registers(u64, String),
    /// The unit's capability registers read as ones or zeros.
    Absent(u64),
    /// The unit lacks the named capability.
    Lacks(u64, &'static str),
    /// There is no memory for a table.
    NoMemory,
    /// The range is not whole pages, is empty, or is beyond the addresses that the units translate.
    Range(u64, u64),
    /// The page at this device address is mapped.
    Mapped(u64),
    /// The page at this device address is not mapped.
    NotMapped(u64),
    /// No unit that works remaps this function's requests.
    NotCovered(Function),
    /// The function has another domain.
    Attached(Function),
    /// The function is not attached to the domain.
    NotAttached(Function),
    /// All domain ids are used.
    NoDomainId,
    /// The units of the domain's functions have no table format in common.
    NoFormat,
    /// All interrupt entries are used.
    NoEntry,
    /// The interrupt entry is not used.
    NotRouted(u16),
    /// The interrupt's destination needs more than 8 bits, and a unit lacks extended interrupt mode.
    Destination(u32),
    /// The DMAR has no scope for the I/O APIC or HPET with this enumeration id.
    NoSource(&'static str, u8),
    /// The unit of this source does not remap interrupts.
    NoRemapping(Source),
    /// A unit that remaps interrupts can't post them (CAP.PI).
    CannotPost,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer(unit, wait) => write!(f, "the VT-d unit at {unit:#x} did not {wait}"),
            Self::Queue(unit) => {
                write!(
                    f,
                    "the VT-d unit at {unit:#x} refuses its invalidation queue"
                )
            }
            Self::Registers(unit, why) => write!(
                f,
                "the registers of the VT-d unit at {unit:#x} can't be reached: {why}"
            ),
            Self::Absent(unit) => write!(f, "there is no VT-d unit at {unit:#x}"),
            Self::Lacks(unit, what) => write!(f, "the VT-d unit at {unit:#x} has no {what}"),
            Self::NoMemory => f.write_str("there is no memory for a table"),
            Self::Range(from, bytes) => write!(
                f,
                "no {bytes:#x} bytes from {from:#x} on can be mapped for a device"
            ),
            Self::Mapped(at) => write!(f, "device address {at:#x} is mapped"),
            Self::NotMapped(at) => write!(f, "device address {at:#x} is not mapped"),
            Self::NotCovered(function) => {
                write!(f, "no VT-d unit that works remaps {function}")
            }
            Self::Attached(function) => write!(f, "{function} has another domain"),
            Self::NotAttached(function) => write!(f, "{function} is not attached to the domain"),
            Self::NoDomainId => f.write_str("all domain ids are used"),
            Self::NoFormat => f.write_str("the VT-d units have no table format in common"),
            Self::NoEntry => f.write_str("all interrupt remapping entries are used"),
            Self::NotRouted(entry) => write!(f, "interrupt remapping entry {entry} is not used"),
            Self::Destination(id) => write!(
                f,
                "APIC id {id} needs extended interrupt mode, which a VT-d unit lacks"
            ),
            Self::NoSource(what, id) => write!(f, "the DMAR names no source for {what} {id}"),
            Self::CannotPost => f.write_str("a VT-d unit can't post interrupts"),
            Self::NoRemapping(source) => {
                write!(
                    f,
                    "the VT-d unit of source {source} does not remap interrupts"
                )
            }
        }
    }
}

impl core::error::Error for Error {}
