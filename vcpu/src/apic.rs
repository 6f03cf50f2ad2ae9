//! The local APIC registers of a guest that the host emulates: identity, LVT, timer, and the command register.
//!
//! The CPU itself virtualizes priority, in-service and request registers, end of interrupt and self-IPI in a TD. A TD
//! is always in x2APIC mode. Accesses to these registers arrive as RDMSR and WRMSR TDVMCALLs.
//!
//! Source: Intel SDM volume 3A, chapter 11.

use crate::clock::{CRYSTAL_HZ, Clock};

/// Register addresses.
mod address {
    pub use seam::abi::x86::msr::TSC_DEADLINE;
    pub use seam::abi::x86::msr::x2apic::{
        CURRENT_COUNT, DIVIDE, ESR, ICR, ID, INITIAL_COUNT, LDR, LVT_CMCI, LVT_ERROR, LVT_THERMAL,
        LVT_TIMER, SVR, VERSION,
    };
}

/// Version register: version 0x15, seven LVT entries.
const VERSION: u64 = 6 << 16 | 0x15;
/// SVR: the enable bit, and all writable bits.
const ENABLED: u64 = 1 << 8;
const SVR_BITS: u64 = 0x13FF;
/// LVT: vector, mask, all writable bits, and the timer mode.
const LVT_VECTOR: u32 = 0xFF;
const LVT_MASKED: u32 = 1 << 16;
const LVT_BITS: u32 = 0x7 << 17 | LVT_MASKED | 0xA000 | 0x7 << 8 | LVT_VECTOR;
const TIMER_MODE: u32 = 3 << 17;
const TIMER_PERIODIC: u32 = 1 << 17;
const TIMER_DEADLINE: u32 = 2 << 17;
/// Lowest valid interrupt vector.
pub const FIRST_VECTOR: u8 = 16;
/// Shortest timer period that the host grants, in crystal ticks: 20 microseconds. A shorter one would keep the CPU
/// fully busy.
const MIN_PERIOD: u64 = 500;

/// The frequency that EDK II's firmware takes the timer for (`PcdFSBClock` in OVMF's packages), whatever CPUID says.
const FIRMWARE_HZ: u64 = 1_000_000_000;

/// An invalid value for the register, or a register that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// A request that results from a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// No further action.
    None,
    /// The timer was programmed.
    Timer,
    /// A message to other vCPUs.
    Send(Ipi),
}

/// An inter-processor interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// Type of the interrupt.
    pub kind: IpiKind,
    /// Target vCPUs.
    pub to: Destination,
}

/// The type of an inter-processor interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpiKind {
    /// A fixed interrupt with this vector, 16 or above.
    Fixed(u8),
    /// An NMI.
    Nmi,
}

/// The target vCPUs of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The sender.
    Itself,
    /// All vCPUs, including the sender.
    All,
    /// All vCPUs except the sender.
    Others,
    /// The vCPU with this x2APIC id.
    Physical(u32),
    /// The vCPUs of cluster `.0` whose bits are set in `.1`.
    Logical(u16, u16),
}

impl Destination {
    /// Returns whether the vCPU with x2APIC id `id` is a target of a message from `sender`.
    #[must_use]
    pub const fn includes(self, id: u32, sender: u32) -> bool {
        match self {
            Self::Itself => id == sender,
            Self::All => true,
            Self::Others => id != sender,
            Self::Physical(one) => one == id,
            Self::Logical(cluster, set) => id >> 4 == cluster as u32 && set >> (id & 0xF) & 1 != 0,
        }
    }
}

/// The local APIC registers of one vCPU.
#[derive(Clone, Debug)]
pub struct Apic {
    id: u32,
    svr: u64,
    error: u32,
    icr: u64,
    cmci: u32,
    lvt: [u32; 6],
    initial: u32,
    divide: u32,
    /// The timer's frequency in multiples of the crystal's.
    speed: u64,
    /// Guest TSC value when the timer was started.
    started: u64,
    /// Guest TSC value at which the timer expires; zero when it is not armed.
    due: u64,
}

impl Apic {
    /// Creates the registers in their reset state, with this x2APIC id.
    #[must_use]
    pub const fn new(id: u32) -> Self {
        Self {
            id,
            svr: 0xFF,
            error: 0,
            icr: 0,
            cmci: LVT_MASKED,
            lvt: [LVT_MASKED; 6],
            initial: 0,
            divide: 0,
            speed: 1,
            started: 0,
            due: 0,
        }
    }

    /// Lets the timer count as fast as UEFI firmware assumes, until the guest selects another mode than the periodic one.
    /// Firmware uses no other mode; the system that it starts goes by CPUID, and selects one.
    pub(crate) const fn count_for_firmware(&mut self) {
        self.speed = FIRMWARE_HZ / CRYSTAL_HZ;
    }

    /// Returns whether `msr` is one of these registers.
    #[must_use]
    pub const fn has(msr: u32) -> bool {
        matches!(msr, 0x800..=0x8FF | address::TSC_DEADLINE)
    }

    /// Reads a register at guest TSC value `now`.
    ///
    /// # Errors
    /// [`Invalid`] if the register does not exist or is write-only.
    pub fn read(&self, msr: u32, now: u64, clock: Clock) -> Result<u64, Invalid> {
        Ok(match msr {
            address::ID => self.id.into(),
            address::VERSION => VERSION,
            address::LDR => u64::from(self.id >> 4) << 16 | 1 << (self.id & 0xF),
            address::SVR => self.svr,
            address::ESR => self.error.into(),
            address::LVT_CMCI => self.cmci.into(),
            address::ICR => self.icr,
            address::LVT_TIMER..=address::LVT_ERROR => {
                self.lvt[(msr - address::LVT_TIMER) as usize].into()
            }
            address::INITIAL_COUNT => self.initial.into(),
            address::CURRENT_COUNT => self.current(now, clock),
            address::DIVIDE => self.divide.into(),
            address::TSC_DEADLINE if self.mode() == TIMER_DEADLINE => self.due,
            address::TSC_DEADLINE => 0,
            _ => return Err(Invalid),
        })
    }

    /// Writes a register at guest TSC value `now`.
    ///
    /// # Errors
    /// [`Invalid`] if the register or the value is not valid; the state is unchanged.
    pub fn write(
        &mut self,
        msr: u32,
        value: u64,
        now: u64,
        clock: Clock,
    ) -> Result<Request, Invalid> {
        let word = u32::try_from(value).map_err(|_| Invalid);
        match msr {
            address::SVR if value & !SVR_BITS == 0 => self.svr = value,
            // Writing zero latches the errors recorded since the last write. The host records none.
            address::ESR if value == 0 => self.error = 0,
            address::LVT_CMCI => self.cmci = lvt(word?)?,
            address::ICR => return self.command(value),
            address::LVT_TIMER => {
                let entry = lvt(word?)?;
                if entry & TIMER_MODE == TIMER_MODE {
                    return Err(Invalid);
                }
                if (entry ^ self.lvt[0]) & TIMER_MODE != 0 {
                    self.due = 0;
                }
                if entry & TIMER_MODE != TIMER_PERIODIC {
                    self.speed = 1;
                }
                self.lvt[0] = entry;
                return Ok(Request::Timer);
            }
            address::LVT_THERMAL..=address::LVT_ERROR => {
                self.lvt[(msr - address::LVT_TIMER) as usize] = lvt(word?)?;
            }
            address::INITIAL_COUNT => {
                let count = word?;
                // Deadline mode does not use the count.
                if self.mode() != TIMER_DEADLINE {
                    self.initial = count;
                    self.start(now, clock);
                }
                return Ok(Request::Timer);
            }
            address::DIVIDE if value & !0xB == 0 => {
                self.divide = word?;
                if self.due != 0 && self.mode() != TIMER_DEADLINE {
                    self.start(now, clock);
                }
                return Ok(Request::Timer);
            }
            address::TSC_DEADLINE => {
                if self.mode() == TIMER_DEADLINE {
                    self.due = value;
                }
                return Ok(Request::Timer);
            }
            _ => return Err(Invalid),
        }
        Ok(Request::None)
    }

    /// Returns the guest TSC value at which the timer expires.
    #[must_use]
    pub const fn due(&self) -> Option<u64> {
        if self.due == 0 { None } else { Some(self.due) }
    }

    /// Expires the timer if it is due. Returns the vector to deliver, unless the timer is masked.
    pub fn expire(&mut self, now: u64, clock: Clock) -> Option<u8> {
        if self.due == 0 || now < self.due {
            return None;
        }
        if self.mode() == TIMER_PERIODIC {
            let period = self.period(clock).max(1);
            // Periods missed while the vCPU did not run count as one interrupt.
            let periods = (now - self.due) / period + 1;
            self.started = self.due + (periods - 1) * period;
            self.due = self.started + period;
        } else {
            self.due = 0;
        }
        let entry = self.lvt[0];
        let vector = (entry & LVT_VECTOR) as u8;
        (entry & LVT_MASKED == 0 && self.svr & ENABLED != 0 && vector >= FIRST_VECTOR)
            .then_some(vector)
    }

    const fn mode(&self) -> u32 {
        self.lvt[0] & TIMER_MODE
    }

    /// Returns the number of the timer's ticks per count: 1, or 2 to 128.
    const fn divisor(&self) -> u64 {
        let code = self.divide >> 1 & 4 | self.divide & 3;
        1 << ((code + 1) & 7)
    }

    /// Returns the length of one timer run in guest TSC ticks.
    fn period(&self, clock: Clock) -> u64 {
        let ticks = u64::from(self.initial) * self.divisor();
        clock.ticks(ticks.max(MIN_PERIOD * self.speed)) / self.speed
    }

    fn start(&mut self, now: u64, clock: Clock) {
        self.started = now;
        self.due = match self.initial {
            0 => 0,
            _ => now.saturating_add(self.period(clock)).max(1),
        };
    }

    fn current(&self, now: u64, clock: Clock) -> u64 {
        if self.due == 0 || self.mode() == TIMER_DEADLINE {
            return 0;
        }
        let left = self.due.saturating_sub(now).saturating_mul(self.speed);
        let left = clock.crystal(left) / self.divisor();
        left.min(self.initial.into())
    }

    fn command(&mut self, value: u64) -> Result<Request, Invalid> {
        /// Vector, mode, destination mode, level, trigger, shorthand, destination.
        const DEFINED: u64 = 0xFFFF_FFFF_000C_CFFF;
        const LOGICAL: u64 = 1 << 11;
        if value & !DEFINED != 0 {
            return Err(Invalid);
        }
        let vector = value as u8;
        let kind = match value >> 8 & 7 {
            0 if vector >= FIRST_VECTOR => IpiKind::Fixed(vector),
            4 => IpiKind::Nmi,
            // All vCPUs of a TD start without INIT and SIPI, so neither exists. The other modes are reserved.
            _ => return Err(Invalid),
        };
        let destination = (value >> 32) as u32;
        let to = match value >> 18 & 3 {
            1 => Destination::Itself,
            2 => Destination::All,
            3 => Destination::Others,
            _ if destination == u32::MAX => Destination::All,
            _ if value & LOGICAL != 0 => {
                Destination::Logical((destination >> 16) as u16, destination as u16)
            }
            _ => Destination::Physical(destination),
        };
        self.icr = value;
        Ok(Request::Send(Ipi { kind, to }))
    }
}

fn lvt(value: u32) -> Result<u32, Invalid> {
    if value & !LVT_BITS == 0 {
        Ok(value)
    } else {
        Err(Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 GHz, the same as the host's.
    const CLOCK: Clock = Clock::new(1 << 48, 0, 40);

    fn write(apic: &mut Apic, msr: u32, value: u64, now: u64) -> Request {
        apic.write(msr, value, now, CLOCK).unwrap()
    }

    fn enabled() -> Apic {
        let mut apic = Apic::new(0x12);
        write(&mut apic, 0x80F, 0x1FF, 0);
        apic
    }

    #[test]
    fn who_it_is_follows_from_its_id() {
        let apic = Apic::new(0x12);
        let read = |msr| apic.read(msr, 0, CLOCK);
        assert_eq!(read(0x802), Ok(0x12));
        assert_eq!(read(0x80D), Ok(0x0001_0004));
        assert_eq!(read(0x803), Ok(0x6_0015));
        for msr in [0x800, 0x804, 0x831, 0x83F, 0x840, 0x8FF] {
            assert_eq!(read(msr), Err(Invalid), "{msr:#x}");
        }
    }

    #[test]
    fn the_deadline_goes_off_once() {
        let mut apic = enabled();
        write(&mut apic, 0x832, 2 << 17 | 0x31, 0);
        assert_eq!(write(&mut apic, 0x6E0, 1000, 0), Request::Timer);
        assert_eq!(apic.due(), Some(1000));
        assert_eq!(apic.expire(999, CLOCK), None);
        assert_eq!(apic.expire(1000, CLOCK), Some(0x31));
        assert_eq!(apic.expire(2000, CLOCK), None);
        assert_eq!(apic.read(0x6E0, 0, CLOCK), Ok(0));
    }

    #[test]
    fn another_mode_disarms_and_a_deadline_outside_its_mode_is_ignored() {
        let mut apic = enabled();
        write(&mut apic, 0x6E0, 1000, 0);
        assert_eq!(apic.due(), None);
        write(&mut apic, 0x832, 2 << 17 | 0x31, 0);
        write(&mut apic, 0x6E0, 1000, 0);
        write(&mut apic, 0x832, 0x31, 0);
        assert_eq!(apic.due(), None);
    }

    #[test]
    fn a_period_repeats_and_missed_ones_are_one() {
        let mut apic = enabled();
        write(&mut apic, 0x832, 1 << 17 | 0x40, 0);
        // Divide by 1: 25,000 crystal ticks are a millisecond, or 1,000,000 TSC ticks.
        write(&mut apic, 0x83E, 0xB, 0);
        write(&mut apic, 0x838, 25_000, 0);
        assert_eq!(apic.due(), Some(1_000_000));
        assert_eq!(apic.read(0x839, 400_000, CLOCK), Ok(15_000));
        assert_eq!(apic.expire(1_000_000, CLOCK), Some(0x40));
        assert_eq!(apic.due(), Some(2_000_000));
        assert_eq!(apic.expire(5_500_000, CLOCK), Some(0x40));
        assert_eq!(apic.due(), Some(6_000_000));
        write(&mut apic, 0x838, 0, 5_600_000);
        assert_eq!(apic.due(), None);
    }

    #[test]
    fn firmware_has_the_frequency_that_it_assumes_and_the_system_the_crystals() {
        let mut apic = enabled();
        apic.count_for_firmware();
        write(&mut apic, 0x83E, 0xB, 0);
        write(&mut apic, 0x832, 1 << 17 | 0x40, 0);
        // 10 ms at 1 GHz.
        write(&mut apic, 0x838, 10_000_000, 0);
        assert_eq!(apic.due(), Some(10_000_000));
        assert_eq!(apic.read(0x839, 4_000_000, CLOCK), Ok(6_000_000));
        assert_eq!(apic.expire(10_000_000, CLOCK), Some(0x40));
        assert_eq!(apic.due(), Some(20_000_000));
        // Masked and unmasked again, as firmware does.
        write(&mut apic, 0x832, 1 << 17 | 1 << 16 | 0x40, 0);
        write(&mut apic, 0x838, 1, 0);
        assert_eq!(apic.due(), Some(20_000), "the shortest period is the same");
        for mode in [0, 2 << 17] {
            let mut system = apic.clone();
            write(&mut system, 0x832, mode | 0x31, 0);
            write(&mut system, 0x832, 1 << 17 | 0x31, 0);
            write(&mut system, 0x838, 25_000, 0);
            assert_eq!(system.due(), Some(1_000_000), "for good");
        }
    }

    #[test]
    fn a_masked_timer_runs_and_tells_nobody() {
        let mut apic = enabled();
        write(&mut apic, 0x832, 1 << 16 | 0x31, 0);
        write(&mut apic, 0x838, 1, 0);
        // The host's minimum period applies.
        assert_eq!(apic.due(), Some(20_000));
        assert_eq!(apic.expire(20_000, CLOCK), None);
        assert_eq!(apic.due(), None);
    }

    #[test]
    fn divide_codes_are_powers_of_two() {
        let mut apic = enabled();
        for (code, divisor) in [
            (0, 2),
            (1, 4),
            (2, 8),
            (3, 16),
            (8, 32),
            (9, 64),
            (0xA, 128),
            (0xB, 1),
        ] {
            write(&mut apic, 0x83E, code, 0);
            assert_eq!(apic.divisor(), divisor);
        }
    }

    #[test]
    fn a_command_names_its_destination() {
        let mut apic = enabled();
        let mut send = |value| apic.write(0x830, value, 0, CLOCK);
        let fixed = |to| {
            Ok(Request::Send(Ipi {
                kind: IpiKind::Fixed(0x50),
                to,
            }))
        };
        assert_eq!(send(3 << 32 | 0x50), fixed(Destination::Physical(3)));
        assert_eq!(send(0xC_0050), fixed(Destination::Others));
        assert_eq!(
            send(0x1_0003 << 32 | 0x850),
            fixed(Destination::Logical(1, 3))
        );
        assert_eq!(send(0xFFFF_FFFF << 32 | 0x50), fixed(Destination::All));
        // INIT, SIPI, SMI, a vector below 16, a reserved bit.
        for bad in [0x500, 0x600, 0x200, 0x0F, 0x1000_0050, 1 << 20 | 0x50] {
            assert_eq!(send(bad), Err(Invalid), "{bad:#x}");
        }
        let logical = Destination::Logical(1, 0b100);
        assert!(logical.includes(0x12, 0) && !logical.includes(0x13, 0) && !logical.includes(2, 0));
        assert!(!Destination::Others.includes(1, 1) && Destination::Others.includes(0, 1));
    }

    #[test]
    fn reserved_bits_are_refused_and_change_nothing() {
        let mut apic = enabled();
        for (msr, value) in [
            (0x80F, 1 << 16),
            (0x828, 1),
            (0x832, 3 << 17),
            (0x832, 1 << 32),
            (0x835, 1 << 24),
            (0x838, 1 << 32),
            (0x83E, 4),
            (0x802, 0),
            (0x839, 0),
        ] {
            assert_eq!(apic.write(msr, value, 0, CLOCK), Err(Invalid), "{msr:#x}");
        }
        assert_eq!((apic.due(), apic.read(0x80F, 0, CLOCK)), (None, Ok(0x1FF)));
    }
}
