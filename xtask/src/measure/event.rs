//! Events of a measured boot: each extends a register with a digest, and has an entry in the event log.
//!
//! Source: TCG PC Client Platform Firmware Profile 1.06, section 10.4 (events); UEFI Specification 2.10, section 38.4.1
//! (the registers).

use std::fmt;

use seam::abi::Measurement;
use sha2::{Digest, Sha384};

/// Number of registers.
pub const REGISTERS: usize = 4;

/// The register that a TPM's PCRs become, by PCR: RTMR0 for 1 and 7, RTMR1 for 2 to 6, RTMR2 for 8 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// The machine, as the host describes it, and the firmware's settings.
    Rtmr0,
    /// The programs up to the kernel.
    Rtmr1,
    /// Inputs of these programs: commands, files, command lines.
    Rtmr2,
    /// The operating system's own.
    Rtmr3,
}

impl Register {
    /// Returns the register with this index.
    pub fn of(index: usize) -> Option<Self> {
        let all = [Self::Rtmr0, Self::Rtmr1, Self::Rtmr2, Self::Rtmr3];
        all.get(index).copied()
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RTMR{}", *self as usize)
    }
}

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub u32);

impl Kind {
    pub const NO_ACTION: Self = Self(3);
    pub const SEPARATOR: Self = Self(4);
    pub const TAG: Self = Self(6);
    pub const PLATFORM_CONFIG: Self = Self(0xA);
    pub const IPL: Self = Self(0xD);
    pub const VARIABLE_CONFIG: Self = Self(0x8000_0001);
    pub const VARIABLE_BOOT: Self = Self(0x8000_0002);
    pub const APPLICATION: Self = Self(0x8000_0003);
    pub const GPT: Self = Self(0x8000_0006);
    pub const ACTION: Self = Self(0x8000_0007);
    pub const FIRMWARE_BLOB: Self = Self(0x8000_000A);
    pub const HANDOFF_TABLES: Self = Self(0x8000_000B);
    pub const VARIABLE_AUTHORITY: Self = Self(0x8000_00E0);
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::NO_ACTION => "EV_NO_ACTION",
            Self::SEPARATOR => "EV_SEPARATOR",
            Self::TAG => "EV_EVENT_TAG",
            Self::PLATFORM_CONFIG => "EV_PLATFORM_CONFIG_FLAGS",
            Self::IPL => "EV_IPL",
            Self::VARIABLE_CONFIG => "EV_EFI_VARIABLE_DRIVER_CONFIG",
            Self::VARIABLE_BOOT => "EV_EFI_VARIABLE_BOOT",
            Self::APPLICATION => "EV_EFI_BOOT_SERVICES_APPLICATION",
            Self::GPT => "EV_EFI_GPT_EVENT",
            Self::ACTION => "EV_EFI_ACTION",
            Self::FIRMWARE_BLOB => "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
            Self::HANDOFF_TABLES => "EV_EFI_HANDOFF_TABLES2",
            Self::VARIABLE_AUTHORITY => "EV_EFI_VARIABLE_AUTHORITY",
            Self(other) => return write!(f, "event type {other:#x}"),
        })
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub register: Register,
    pub kind: Kind,
    pub digest: Measurement,
    /// The measured thing, for a reader.
    pub name: String,
}

impl Event {
    /// Returns the event for some content.
    pub fn of(register: Register, kind: Kind, name: impl Into<String>, content: &[u8]) -> Self {
        Self {
            register,
            kind,
            digest: digest(content),
            name: name.into(),
        }
    }

    /// Returns whether another event extends the same register with the same digest for the same reason.
    pub fn equals(&self, other: &Self) -> bool {
        (self.register, self.kind, self.digest) == (other.register, other.kind, other.digest)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = super::hex(&self.digest);
        write!(f, "{} {} {}", digest, self.kind, self.name)
    }
}

/// Returns the digest of some content.
pub fn digest(content: &[u8]) -> Measurement {
    Sha384::digest(content).into()
}

/// Returns the registers after these events.
pub fn replay(events: &[Event]) -> [Measurement; REGISTERS] {
    let mut registers = [[0; 48]; REGISTERS];
    let extending = events.iter().filter(|event| event.kind != Kind::NO_ACTION);
    for event in extending {
        super::rtmr::extend_with(&mut registers[event.register as usize], &event.digest);
    }
    registers
}

/// Returns text in UTF-16 with a terminating zero, as UEFI has it.
pub fn utf16(text: &str) -> Vec<u8> {
    let units = text.encode_utf16().chain([0]);
    units.flat_map(u16::to_le_bytes).collect()
}
