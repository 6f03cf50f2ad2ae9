//! The MSRs that the host emulates: those for which the module raises #VE. [`TABLE`] lists each with its behaviour on
//! reads and writes. An access to any other MSR is refused, and the guest's #VE handler turns that into #GP.
//!
//! Source: TDX Module 1.5.01, MSR virtualization (an MSR in none of its rows raises #VE); Linux arch/x86/kvm/vmx/tdx.c,
//! tdx_has_emulated_msr and tdx_is_read_only_msr, and arch/x86/kvm/x86.c, kvm_set_msr_common, for the behaviour of
//! other hosts.

use crate::apic::{Apic, Invalid, Request};
use crate::clock::Clock;

/// MSR addresses.
mod address {
    pub use seam::abi::x86::msr::mc::{MCG_CAP, MCG_STATUS};
    pub use seam::abi::x86::msr::{APIC_BASE, FEATURE_CONTROL};

    pub const UCODE_REV: u32 = 0x8B;
    pub const PLATFORM_INFO: u32 = 0xCE;
    pub const MTRR_CAP: u32 = 0xFE;
    pub const MISC_FEATURES_ENABLES: u32 = 0x140;
    pub const MISC_ENABLE: u32 = 0x1A0;
    pub const POWER_CTL: u32 = 0x1FC;
    pub const MTRR_VARIABLE: u32 = 0x200;
    pub const MTRR_VARIABLE_LAST: u32 = MTRR_VARIABLE + 2 * super::VARIABLE as u32 - 1;
    pub const MTRR_FIX64K: u32 = 0x250;
    pub const MTRR_FIX16K: u32 = 0x258;
    pub const MTRR_FIX16K_LAST: u32 = 0x259;
    pub const MTRR_FIX4K: u32 = 0x268;
    pub const MTRR_FIX4K_LAST: u32 = 0x26F;
    pub const MTRR_DEF_TYPE: u32 = 0x2FF;
}

/// Number of variable ranges.
const VARIABLE: usize = 8;
/// MTRRCAP: 8 variable ranges, fixed ranges, write-combining.
const MTRR_CAP: u64 = 1 << 10 | 1 << 8 | VARIABLE as u64;
/// APIC_BASE: base address, enabled, x2APIC mode. The bootstrap processor has one more bit set.
const APIC_BASE: u64 = 0xFEE0_0000 | 1 << 11 | 1 << 10;
const BOOTSTRAP: u64 = 1 << 8;
/// FEATURE_CONTROL: locked, with nothing enabled.
const LOCKED: u64 = 1;
/// MISC_ENABLE: branch trace store and precise event sampling unavailable. Both bits are read-only.
const NO_BTS_NO_PEBS: u64 = 1 << 11 | 1 << 12;

/// Indices of the registers that keep written values. All of them are MTRRs. They are 0 after a reset, which means
/// disabled: an operating system that finds them enabled programs them with CR0.CD set, which a TD can't do. A TD's
/// memory is write-back whatever these registers say, but firmware expects to read back what it wrote.
mod place {
    pub const DEF_TYPE: usize = 0;
    pub const VARIABLE: usize = DEF_TYPE + 1;
    pub const FIX64K: usize = VARIABLE + 2 * super::VARIABLE;
    pub const FIX16K: usize = FIX64K + 1;
    pub const FIX4K: usize = FIX16K + 2;
    pub const COUNT: usize = FIX4K + 8;
}

/// A range of adjacent MSRs with the same behaviour.
struct Row {
    first: u32,
    last: u32,
    read: Read,
    write: Write,
}

/// The result of RDMSR.
enum Read {
    /// A constant value.
    Value(u64),
    /// APIC_BASE, which differs on the bootstrap processor.
    ApicBase,
    /// The value last written, at this index for the first MSR of the row.
    Kept(usize),
    /// Refused: the module handles the read, so that it never arrives here.
    Refused,
}

/// The result of WRMSR.
enum Write {
    /// Every value is refused.
    Refused,
    /// The write has no effect. Values that would change something that does not exist are refused.
    Ignored(fn(u64) -> bool),
    /// The value is kept for reads if it is valid for the MSR with this address.
    Kept(fn(u32, u64) -> bool),
}

const fn row(msr: u32, read: Read, write: Write) -> Row {
    rows(msr, msr, read, write)
}

const fn rows(first: u32, last: u32, read: Read, write: Write) -> Row {
    Row {
        first,
        last,
        read,
        write,
    }
}

/// Every MSR that the host emulates, except those of the APIC.
const TABLE: &[Row] = &[
    row(address::APIC_BASE, Read::ApicBase, Write::Refused),
    row(
        address::FEATURE_CONTROL,
        Read::Value(LOCKED),
        Write::Refused,
    ),
    // Guests write any value before they read the revision.
    row(address::UCODE_REV, Read::Value(0), Write::Ignored(|_| true)),
    row(address::PLATFORM_INFO, Read::Value(0), Write::Refused),
    row(address::MTRR_CAP, Read::Value(MTRR_CAP), Write::Refused),
    row(
        address::MISC_FEATURES_ENABLES,
        Read::Value(0),
        Write::Ignored(is_zero),
    ),
    row(address::MCG_CAP, Read::Value(0), Write::Refused),
    row(address::MCG_STATUS, Read::Value(0), Write::Ignored(is_zero)),
    // The module returns the host's own value, or one with those bits set.
    row(
        address::MISC_ENABLE,
        Read::Refused,
        Write::Ignored(|value| value & NO_BTS_NO_PEBS == NO_BTS_NO_PEBS),
    ),
    row(address::POWER_CTL, Read::Value(0), Write::Ignored(is_zero)),
    rows(
        address::MTRR_VARIABLE,
        address::MTRR_VARIABLE_LAST,
        Read::Kept(place::VARIABLE),
        Write::Kept(is_variable_range),
    ),
    row(
        address::MTRR_FIX64K,
        Read::Kept(place::FIX64K),
        Write::Kept(are_types),
    ),
    rows(
        address::MTRR_FIX16K,
        address::MTRR_FIX16K_LAST,
        Read::Kept(place::FIX16K),
        Write::Kept(are_types),
    ),
    rows(
        address::MTRR_FIX4K,
        address::MTRR_FIX4K_LAST,
        Read::Kept(place::FIX4K),
        Write::Kept(are_types),
    ),
    row(
        address::MTRR_DEF_TYPE,
        Read::Kept(place::DEF_TYPE),
        Write::Kept(is_default_type),
    ),
];

const fn is_zero(value: u64) -> bool {
    value == 0
}

/// Uncacheable, write-combining, write-through, write-protected, write-back.
const fn is_type(value: u64) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// Returns whether each byte is a valid type.
fn are_types(_: u32, value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|byte| is_type((*byte).into()))
}

/// Checks MTRR_DEF_TYPE: a type, and the enable bits: bit 11 for all MTRRs, bit 10 for the fixed ones.
const fn is_default_type(_: u32, value: u64) -> bool {
    value & !(3 << 10 | 0xFF) == 0 && is_type(value & 0xFF)
}

/// Checks a variable range register. An even address is a range's base, with the type in the lowest byte. An odd
/// address is a range's mask, with the valid flag in bit 11. Physical addresses have at most 52 bits.
const fn is_variable_range(msr: u32, value: u64) -> bool {
    const ADDRESS: u64 = (1 << 52) - 0x1000;
    if msr.is_multiple_of(2) {
        value & !(ADDRESS | 0xFF) == 0 && is_type(value & 0xFF)
    } else {
        value & !(ADDRESS | 1 << 11) == 0
    }
}

/// The emulated MSRs of one vCPU.
#[derive(Clone, Debug)]
pub struct Msrs {
    /// The local APIC.
    pub apic: Apic,
    bootstrap: bool,
    kept: [u64; place::COUNT],
}

impl Msrs {
    /// Creates the reset state of the vCPU with this x2APIC id.
    #[must_use]
    pub const fn new(apic_id: u32, bootstrap: bool) -> Self {
        Self {
            apic: Apic::new(apic_id),
            bootstrap,
            kept: [0; place::COUNT],
        }
    }

    /// Executes RDMSR at guest TSC value `now`.
    ///
    /// # Errors
    /// [`Invalid`] for an MSR that the guest does not have.
    pub fn read(&self, msr: u32, now: u64, clock: Clock) -> Result<u64, Invalid> {
        if Apic::has(msr) {
            return self.apic.read(msr, now, clock);
        }
        self.read_row(msr)
    }

    #[inline(never)]
    fn read_row(&self, msr: u32) -> Result<u64, Invalid> {
        let row = Row::of(msr)?;
        match row.read {
            Read::Value(value) => Ok(value),
            Read::ApicBase => Ok(APIC_BASE | if self.bootstrap { BOOTSTRAP } else { 0 }),
            Read::Kept(place) => Ok(self.kept[row.place(place, msr)]),
            Read::Refused => Err(Invalid),
        }
    }

    /// Executes WRMSR at guest TSC value `now`.
    ///
    /// # Errors
    /// [`Invalid`] for an MSR that the guest does not have, or for an invalid value; the state is unchanged.
    pub fn write(
        &mut self,
        msr: u32,
        value: u64,
        now: u64,
        clock: Clock,
    ) -> Result<Request, Invalid> {
        if Apic::has(msr) {
            return self.apic.write(msr, value, now, clock);
        }
        self.write_row(msr, value)?;
        Ok(Request::None)
    }

    #[inline(never)]
    fn write_row(&mut self, msr: u32, value: u64) -> Result<(), Invalid> {
        let row = Row::of(msr)?;
        match (&row.write, &row.read) {
            (Write::Ignored(takes), _) if takes(value) => {}
            (Write::Kept(takes), Read::Kept(place)) if takes(msr, value) => {
                self.kept[row.place(*place, msr)] = value;
            }
            _ => return Err(Invalid),
        }
        Ok(())
    }
}

impl Row {
    fn of(msr: u32) -> Result<&'static Self, Invalid> {
        let mut rows = TABLE.iter();
        let row = rows.find(|row| (row.first..=row.last).contains(&msr));
        row.ok_or(Invalid)
    }

    /// Returns the index of an MSR of this row, whose first MSR is at `place`.
    const fn place(&self, place: usize, msr: u32) -> usize {
        place + (msr - self.first) as usize
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    const CLOCK: Clock = Clock::new(1 << 48, 0, 40);

    fn read(msr: u32) -> Result<u64, Invalid> {
        Msrs::new(0, true).read(msr, 0, CLOCK)
    }

    /// Returns the value of a register after a write, or that the write was refused.
    fn written(msr: u32, value: u64) -> Result<Result<u64, Invalid>, Invalid> {
        let mut msrs = Msrs::new(0, true);
        let result = msrs.write(msr, value, 0, CLOCK);
        let found = msrs.read(msr, 0, CLOCK);
        match result {
            Ok(request) => {
                assert_eq!(request, Request::None);
                Ok(found)
            }
            Err(Invalid) => {
                assert_eq!(found, read(msr), "{msr:#x}: nothing has changed");
                Err(Invalid)
            }
        }
    }

    #[test]
    fn the_bootstrap_processor_is_one_and_the_apic_is_in_x2apic_mode() {
        let base = |bootstrap| Msrs::new(0, bootstrap).read(0x1B, 0, CLOCK);
        assert_eq!(base(true), Ok(0xFEE0_0D00));
        assert_eq!(base(false), Ok(0xFEE0_0C00));
    }

    #[test]
    fn what_reads_and_writes_come_to_is_as_on_other_hosts() {
        /// An empty list of values.
        const NONE: &[u64] = &[];
        const REFUSED: Result<u64, Invalid> = Err(Invalid);
        let no_bts_no_pebs = 3 << 11;
        for (msr, value, ignored, refused) in [
            (
                0x1B,
                Ok(0xFEE0_0D00),
                NONE,
                &[0, 0xFEE0_0D00, 0xFEE0_0900][..],
            ),
            (0x3A, Ok(1), NONE, &[0, 1, 5]),
            (0x8B, Ok(0), &[0, 1 << 32, u64::MAX], NONE),
            (0xCE, Ok(0), NONE, &[0, 1 << 31]),
            (0xFE, Ok(0x508), NONE, &[0, 0x508]),
            (0x140, Ok(0), &[0], &[1, 2]),
            (0x179, Ok(0), NONE, &[0, 1]),
            (0x17A, Ok(0), &[0], &[1, 4]),
            (
                0x1A0,
                REFUSED,
                &[no_bts_no_pebs, no_bts_no_pebs | 1, u64::MAX],
                &[0, 1, 1 << 11, 1 << 12, !no_bts_no_pebs],
            ),
            (0x1FC, Ok(0), &[0], &[1, 2]),
        ] {
            assert_eq!(read(msr), value, "{msr:#x}");
            for ignored in ignored {
                assert_eq!(written(msr, *ignored), Ok(value), "{msr:#x} {ignored:#x}");
            }
            for refused in refused {
                assert_eq!(
                    written(msr, *refused),
                    Err(Invalid),
                    "{msr:#x} {refused:#x}"
                );
            }
        }
    }

    #[test]
    fn mtrrs_take_types_and_addresses_and_nothing_else() {
        for (msr, taken, refused) in [
            (
                0x200,
                &[0, 6, 0xF_FFFF_FFFF_F001][..],
                &[2, 7, 0x100, 1 << 52][..],
            ),
            (0x201, &[0x800, 0xF_FFFF_FFFF_F800], &[1, 0x400, 1 << 52]),
            (0x20F, &[0], &[0xFF]),
            (0x250, &[0x0606_0505_0404_0100], &[2, 0x0700, 3 << 56]),
            (0x259, &[0x0606_0505_0404_0100], &[2, 0xFF << 56]),
            (0x26F, &[6 << 56], &[2 << 8]),
            (0x2FF, &[0, 0xC06, 0x800], &[2, 7, 0x100, 1 << 12, 1 << 63]),
        ] {
            for value in taken {
                assert_eq!(written(msr, *value), Ok(Ok(*value)), "{msr:#x}");
            }
            for value in refused {
                assert_eq!(written(msr, *value), Err(Invalid), "{msr:#x} {value:#x}");
            }
        }
    }

    #[test]
    fn mtrrs_are_found_as_they_were_left() {
        let mut msrs = Msrs::new(0, true);
        let bases = (0x200..=0x20F).step_by(2).map(|msr| (msr, 6));
        let masks = (0x201..=0x20F).step_by(2).map(|msr| (msr, 0x800));
        let fixed = [0x250, 0x258, 0x259].into_iter().chain(0x268..=0x26F);
        let all = bases.chain(masks).chain(fixed.map(|msr| (msr, 0)));
        // Distinct values: the number of the register, where the format has room for it.
        let values = |number: u64, (msr, low): (u32, u64)| match msr {
            0x200..=0x20F => (msr, number << 12 | low),
            _ => (
                msr,
                [0, 1, 4, 5, 6][number as usize % 5] << (number % 8 * 8),
            ),
        };
        let all: std::vec::Vec<_> = (1..).zip(all).map(|(n, msr)| values(n, msr)).collect();
        assert_eq!(all.len() + 1, place::COUNT);
        for (msr, value) in &all {
            assert_eq!(msrs.write(*msr, *value, 0, CLOCK), Ok(Request::None));
        }
        for (msr, value) in &all {
            assert_eq!(msrs.read(*msr, 0, CLOCK), Ok(*value), "{msr:#x}");
        }
        assert_eq!(msrs.read(0x2FF, 0, CLOCK), Ok(0), "off, as after a reset");
    }

    #[test]
    fn an_msr_that_is_not_in_the_table_is_refused() {
        let is_served = |msr| {
            Apic::has(msr)
                || TABLE
                    .iter()
                    .any(|row| (row.first..=row.last).contains(&msr))
        };
        let all = (0..0x2000)
            .chain(0x4000_0000..0x4000_0100)
            .chain(0xC000_0000..0xC000_2000);
        for msr in all.filter(|msr| !is_served(*msr)) {
            assert_eq!(read(msr), Err(Invalid), "{msr:#x}");
            for value in [0, 1, u64::MAX] {
                assert_eq!(written(msr, value), Err(Invalid), "{msr:#x}");
            }
        }
    }

    #[test]
    fn every_row_has_its_own_addresses_and_places() {
        let mut places = [0; place::COUNT];
        for (number, row) in TABLE.iter().enumerate() {
            assert!(row.first <= row.last && !Apic::has(row.first));
            for other in &TABLE[number + 1..] {
                assert!(row.last < other.first, "ascending: {:#x}", other.first);
            }
            assert_eq!(
                matches!(row.read, Read::Kept(_)),
                matches!(row.write, Write::Kept(_)),
                "{:#x}",
                row.first
            );
            if let Read::Kept(place) = row.read {
                (row.first..=row.last).for_each(|msr| places[row.place(place, msr)] += 1);
            }
        }
        assert_eq!(places, [1; place::COUNT]);
    }
}
