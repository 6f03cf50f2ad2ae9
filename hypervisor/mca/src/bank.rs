//! One error as a bank reports it: IA32_MCi_STATUS, IA32_MCi_ADDR and IA32_MCi_MISC.
//!
//! Source: Intel SDM volume 3B, sections 16.3.2.2 to 16.3.2.4 and 16.9 (error codes).

use core::fmt;

/// IA32_MCi_STATUS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status(pub u64);

impl Status {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    /// VAL: the bank holds an error.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.bit(63)
    }

    /// OVER: an earlier or later error was lost.
    #[must_use]
    pub const fn has_lost(self) -> bool {
        self.bit(62)
    }

    /// UC: hardware could not correct the error.
    #[must_use]
    pub const fn is_uncorrected(self) -> bool {
        self.bit(61)
    }

    /// EN: the bank's control register enables the signalling of the error.
    #[must_use]
    pub const fn is_enabled(self) -> bool {
        self.bit(60)
    }

    /// MISCV: IA32_MCi_MISC is valid.
    #[must_use]
    pub const fn has_misc(self) -> bool {
        self.bit(59)
    }

    /// ADDRV: IA32_MCi_ADDR is valid.
    #[must_use]
    pub const fn has_address(self) -> bool {
        self.bit(58)
    }

    /// PCC: the CPU's state may be corrupt.
    #[must_use]
    pub const fn is_context_corrupt(self) -> bool {
        self.bit(57)
    }

    /// S: a machine check was signalled for the error. Only with IA32_MCG_CAP.MCG_SER_P.
    #[must_use]
    pub const fn is_signalled(self) -> bool {
        self.bit(56)
    }

    /// AR: the error must be handled before the program continues. Only with IA32_MCG_CAP.MCG_SER_P.
    #[must_use]
    pub const fn requires_action(self) -> bool {
        self.bit(55)
    }

    /// Returns the bank's count of corrected errors, bits 52:38. 0 if the bank does not count.
    #[must_use]
    pub const fn corrected(self) -> u32 {
        (self.0 >> 38 & 0x7FFF) as u32
    }

    /// Returns the architectural error code, bits 15:0, without the filter bit 12 where that is one.
    #[must_use]
    pub const fn code(self) -> Code {
        Code(self.0 as u16)
    }
}

/// An architectural error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u16);

impl Code {
    /// Memory scrubbing found the error (memory controller, SCRUB).
    #[must_use]
    pub const fn is_scrub(self) -> bool {
        self.0 & 0xEFF0 == 0x00C0
    }

    /// A last-level cache wrote the line back (cache hierarchy, L3, explicit write-back).
    #[must_use]
    pub const fn is_write_back(self) -> bool {
        self.0 & 0xEFFF == 0x017A
    }

    /// A program loaded the data.
    #[must_use]
    pub const fn is_data_load(self) -> bool {
        self.0 & 0xEFFF == 0x0134
    }

    /// A program fetched an instruction.
    #[must_use]
    pub const fn is_instruction_fetch(self) -> bool {
        self.0 & 0xEFFF == 0x0150
    }

    /// The error is one of memory: the controller's, or a program's access to poisoned data.
    #[must_use]
    pub const fn is_memory(self) -> bool {
        // 000F 0000 1MMM CCCC, and 000F 0010 1MMM CCCC for memory that is a cache.
        self.0 & 0xEF80 == 0x0080
            || self.0 & 0xEF80 == 0x0280
            || self.is_write_back()
            || self.is_data_load()
            || self.is_instruction_fetch()
    }

    /// Returns the kind of error in words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        const FILTER: u16 = 1 << 12;
        match self.0 & !FILTER {
            0 => "no error",
            1 => "unclassified",
            2 => "microcode ROM parity",
            3 => "external error",
            4 => "functional redundancy check",
            5 => "internal parity",
            6 => "SMM handler code access",
            0x400 => "internal timer",
            0xE0B => "I/O error",
            0x0134 => "load of poisoned data",
            0x0150 => "fetch of a poisoned instruction",
            0x017A => "write-back by the last-level cache",
            code if code & 0xFFFC == 0x000C => "cache",
            code if code & 0xFFF0 == 0x0010 => "TLB",
            code if code & 0xFFF0 == 0x00C0 => "memory scrubbing",
            code if code & 0xFF80 == 0x0080 => "memory controller",
            code if code & 0xFF80 == 0x0280 => "memory controller of a memory-side cache",
            code if code & 0xFF00 == 0x0100 => "cache hierarchy",
            code if code & 0xFC00 == 0x0400 => "internal",
            code if code & 0xF800 == 0x0800 => "bus or interconnect",
            _ => "unknown",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#06x})", self.name(), self.0)
    }
}

/// The registers of a bank that holds an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The bank's number.
    pub bank: u8,
    /// IA32_MCi_STATUS.
    pub status: Status,
    /// IA32_MCi_ADDR; `None` if it is not valid or does not exist.
    pub address: Option<u64>,
    /// IA32_MCi_MISC; `None` if it is not valid or does not exist.
    pub misc: Option<u64>,
}

impl Reading {
    /// Returns the physical address of the 4 KiB page with the error, if the bank names it. `key_id_bits` are the bits
    /// of an address that hold a KeyID.
    ///
    /// Only an address that MISC calls physical and exact to a page is one.
    #[must_use]
    pub fn page(&self, key_id_bits: u64) -> Option<u64> {
        const PAGE_BITS: u64 = 12;
        const PHYSICAL: u64 = 2;
        let (address, misc) = (self.address?, self.misc?);
        let lowest_valid_bit = misc & 0x3F;
        let mode = misc >> 6 & 7;
        let is_usable = mode == PHYSICAL && lowest_valid_bit <= PAGE_BITS;
        is_usable.then_some(address & !key_id_bits & !0xFFF)
    }
}
