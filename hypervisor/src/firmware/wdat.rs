//! The machine's watchdog: the WDAT, and the TCO timer of an ICH9 in the same terms.
//!
//! The WDAT describes each action on the timer as a list of register accesses, so that no driver for the chip is needed.
//!
//! Sources: Microsoft, Hardware Watchdog Timers Design Specification 1.01; Intel I/O Controller Hub 9 data sheet,
//! sections 10.1.75 (GCS) and 13.9 (TCO registers).

use alloc::vec::Vec;

/// A watchdog timer that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wdat {
    /// Milliseconds of one count.
    pub period_ms: u32,
    /// Smallest and largest count.
    pub counts: (u32, u32),
    instructions: Vec<Instruction>,
}

/// A register of the timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// The place.
    pub place: Place,
    /// Width of an access in bytes: 1, 2 or 4.
    pub width: u8,
}

/// The place of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An I/O port.
    Port(u16),
    /// A physical address.
    Memory(u64),
}

/// Access to the timer's registers.
pub trait Registers {
    /// Reads a register.
    fn read(&mut self, register: Register) -> u32;
    /// Writes a register.
    fn write(&mut self, register: Register, value: u32);
}

/// One access to a register, as part of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    action: u8,
    /// True if the count is written, instead of `value`.
    count: bool,
    /// True if the bits outside of the field keep their value.
    preserve: bool,
    register: Register,
    shift: u8,
    value: u32,
    mask: u32,
}

/// Actions.
const RESET: u8 = 1;
const SET_COUNTDOWN: u8 = 6;
const SET_RUNNING: u8 = 9;
const SET_STOPPED: u8 = 11;
const SET_REBOOT: u8 = 17;

/// Instructions. Those that read serve queries, which are not used.
const WRITE_VALUE: u8 = 2;
const WRITE_COUNT: u8 = 3;
const PRESERVE: u8 = 0x80;

/// Flag: the timer may be used.
const ENABLED: u8 = 1;

const ENTRIES: usize = 68;
const ENTRY_BYTES: usize = 24;
/// Maximum number of instructions that are read.
const MAX_ENTRIES: usize = 256;

/// Parses the WDAT. Returns `None` if the timer is disabled or lacks an action that a watchdog needs.
#[must_use]
pub fn parse(table: &[u8]) -> Option<Wdat> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(*table.get(at..)?.first_chunk()?));
    if table.get(60)? & ENABLED == 0 {
        return None;
    }
    let count = (u32_at(64)? as usize).min(MAX_ENTRIES);
    let entries = table.get(ENTRIES..)?.chunks_exact(ENTRY_BYTES).take(count);
    let wdat = Wdat {
        period_ms: u32_at(48)?,
        counts: (u32_at(56)?, u32_at(52)?),
        instructions: entries.filter_map(instruction).collect(),
    };
    let has = |action| wdat.instructions.iter().any(|i| i.action == action);
    let usable = has(RESET) && has(SET_RUNNING) && has(SET_STOPPED);
    (usable && wdat.period_ms != 0).then_some(wdat)
}

/// Parses one instruction that writes.
fn instruction(entry: &[u8]) -> Option<Instruction> {
    let u32_at = |at: usize| u32::from_le_bytes(core::array::from_fn(|i| entry[at + i]));
    let kind = entry[1] & !PRESERVE;
    if kind != WRITE_VALUE && kind != WRITE_COUNT {
        return None;
    }
    let address = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
    let place = match entry[4] {
        0 if address != 0 => Place::Memory(address),
        1 => Place::Port(u16::try_from(address).ok()?),
        _ => return None,
    };
    let width = match (entry[7], entry[5]) {
        (1, _) | (0, 8) => 1,
        (2, _) | (0, 16) => 2,
        (3, _) | (0, 32) => 4,
        _ => return None,
    };
    Some(Instruction {
        action: entry[0],
        count: kind == WRITE_COUNT,
        preserve: entry[1] & PRESERVE != 0,
        register: Register { place, width },
        shift: entry[6] & 31,
        value: u32_at(16),
        mask: u32_at(20),
    })
}

/// Returns the TCO timer of an ICH9, given the base of its power-management ports and of its chipset registers. It
/// resets the machine when it has run down twice.
#[must_use]
pub fn ich9(pm_base: u16, rcba: u64) -> Wdat {
    const RUN_MS: u32 = 600;
    let tco = |offset: u16| Place::Port(pm_base + 0x60 + offset);
    let write = |action, place, width, shift, value, mask| Instruction {
        action,
        count: action == SET_COUNTDOWN,
        preserve: action != RESET,
        register: Register { place, width },
        shift,
        value,
        mask,
    };
    Wdat {
        period_ms: 2 * RUN_MS,
        counts: (4, 0x3FF),
        instructions: Vec::from([
            // TCO_RLD: any value reloads the timer. TCO1_STS and TCO2_STS: writing 1 clears the first run-down.
            write(RESET, tco(0), 2, 0, 1, 0x3FF),
            write(RESET, tco(4), 2, 3, 1, 1),
            write(SET_COUNTDOWN, tco(0x12), 2, 0, 0, 0x3FF),
            // TCO1_CNT, TMR_HLT.
            write(SET_RUNNING, tco(8), 2, 11, 0, 1),
            write(SET_STOPPED, tco(8), 2, 11, 1, 1),
            // GCS, NO_REBOOT.
            write(SET_REBOOT, Place::Memory(rcba + 0x3410), 4, 5, 0, 1),
        ]),
    }
}

impl Wdat {
    /// Returns every register that the actions use.
    pub fn registers(&self) -> impl Iterator<Item = Register> {
        self.instructions.iter().map(|i| i.register)
    }

    /// Starts the timer for at least `seconds`. Returns the milliseconds after which it resets the machine, or `None`
    /// if it can't run for so long.
    pub fn start(&self, seconds: u32, registers: &mut impl Registers) -> Option<u64> {
        let wanted = (u64::from(seconds) * 1000).div_ceil(self.period_ms.into());
        let count = u32::try_from(wanted).ok()?.max(self.counts.0);
        if count > self.counts.1 {
            return None;
        }
        self.run(SET_STOPPED, 0, registers);
        self.run(SET_COUNTDOWN, count, registers);
        // The specification requires the reset, and recommends that it can be switched off.
        self.run(SET_REBOOT, 0, registers);
        self.run(SET_RUNNING, 0, registers);
        self.run(RESET, count, registers);
        Some(u64::from(count) * u64::from(self.period_ms))
    }

    /// Starts the countdown anew.
    pub fn feed(&self, registers: &mut impl Registers) {
        self.run(RESET, 0, registers);
    }

    /// Stops the timer.
    pub fn stop(&self, registers: &mut impl Registers) {
        self.run(SET_STOPPED, 0, registers);
    }

    fn run(&self, action: u8, count: u32, registers: &mut impl Registers) {
        for i in self.instructions.iter().filter(|i| i.action == action) {
            let value = if i.count { count } else { i.value };
            let mut value = (value & i.mask) << i.shift;
            if i.preserve {
                value |= registers.read(i.register) & !(i.mask << i.shift);
            }
            registers.write(i.register, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeMap, vec};

    use proptest::prelude::*;

    use super::*;

    /// Registers as memory, and the ports that were written, in order.
    #[derive(Default)]
    struct Fake {
        values: BTreeMap<u64, u32>,
        written: Vec<u64>,
    }

    fn key(register: Register) -> u64 {
        match register.place {
            Place::Port(port) => port.into(),
            Place::Memory(pa) => pa,
        }
    }

    impl Registers for Fake {
        fn read(&mut self, register: Register) -> u32 {
            self.values.get(&key(register)).copied().unwrap_or(0)
        }

        fn write(&mut self, register: Register, value: u32) {
            self.values.insert(key(register), value);
            self.written.push(key(register));
        }
    }

    const PORT: u16 = 0x460;

    /// A WDAT with a count of 1 s to 1,000 s, and these instructions on ports behind [`PORT`].
    fn table(instructions: &[(u8, u8, u16, u32, u32)]) -> Vec<u8> {
        let mut table = vec![0; ENTRIES];
        table[48..52].copy_from_slice(&1000u32.to_le_bytes());
        table[52..56].copy_from_slice(&1000u32.to_le_bytes());
        table[56..60].copy_from_slice(&1u32.to_le_bytes());
        table[60] = ENABLED;
        table[64] = instructions.len() as u8;
        for &(action, instruction, offset, value, mask) in instructions {
            table.extend([action, instruction, 0, 0, 1, 16, 0, 2]);
            table.extend(u64::from(PORT + offset).to_le_bytes());
            table.extend(value.to_le_bytes());
            table.extend(mask.to_le_bytes());
        }
        table
    }

    /// The table of firmware with a TCO timer.
    const USUAL: [(u8, u8, u16, u32, u32); 6] = [
        (RESET, WRITE_VALUE, 0, 1, 0x3FF),
        (5, 1, 0x12, 0, 0x3FF),
        (SET_COUNTDOWN, WRITE_COUNT | PRESERVE, 0x12, 0, 0x3FF),
        (8, PRESERVE, 8, 0, 0x800),
        (SET_RUNNING, WRITE_VALUE | PRESERVE, 8, 0, 0x800),
        (SET_STOPPED, WRITE_VALUE | PRESERVE, 8, 0x800, 0x800),
    ];

    #[test]
    fn a_table_s_timer_is_started_fed_and_stopped() {
        let wdat = parse(&table(&USUAL)).unwrap();
        let mut fake = Fake::default();
        let (rld, cnt, tmr) = (0x460, 0x468, 0x472);
        fake.values.insert(cnt, 0x1001);
        fake.values.insert(tmr, 0xF404);
        assert_eq!(wdat.start(60, &mut fake), Some(60_000));
        assert_eq!(fake.written, [cnt, tmr, cnt, rld]);
        assert_eq!((fake.values[&cnt], fake.values[&tmr]), (0x1001, 0xF43C));
        fake.written.clear();
        wdat.feed(&mut fake);
        assert_eq!((&*fake.written, fake.values[&rld]), (&[rld][..], 1));
        wdat.stop(&mut fake);
        assert_eq!(fake.values[&cnt], 0x1801);
    }

    #[test]
    fn a_time_beyond_the_timer_is_refused_and_a_short_one_is_extended() {
        let mut table = table(&USUAL);
        table[56] = 20;
        let wdat = parse(&table).unwrap();
        assert_eq!(wdat.start(10, &mut Fake::default()), Some(20_000));
        assert_eq!(wdat.start(1001, &mut Fake::default()), None);
    }

    #[test]
    fn a_timer_that_is_disabled_or_incomplete_is_not_used() {
        let mut disabled = table(&USUAL);
        disabled[60] = 0;
        assert_eq!(parse(&disabled), None);
        assert_eq!(parse(&table(&USUAL[..4])), None);
        let mut elsewhere = table(&USUAL);
        elsewhere[ENTRIES + 4] = 2;
        assert_eq!(parse(&elsewhere), None);
    }

    #[test]
    fn the_ich9_s_timer_runs_down_twice() {
        let wdat = ich9(0x600, 0xFED1_C000);
        let mut fake = Fake::default();
        fake.values.insert(0xFED1_F410, 0x21);
        fake.values.insert(0x668, 0x0800);
        // 50 runs of 0.6 s, twice.
        assert_eq!(wdat.start(60, &mut fake), Some(60_000));
        assert_eq!(fake.values[&0x672], 50);
        assert_eq!((fake.values[&0xFED1_F410], fake.values[&0x668]), (1, 0));
        assert_eq!(fake.values[&0x664], 8);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes: Vec<u8>, fill in any::<[u8; 12]>()) {
            let _ = parse(&bytes);
            let mut whole = table(&USUAL);
            whole[48..60].copy_from_slice(&fill);
            whole.append(&mut bytes);
            if let Some(wdat) = parse(&whole) {
                wdat.start(60, &mut Fake::default());
            }
        }
    }
}
