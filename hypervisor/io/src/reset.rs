//! Resets of functions.

use alloc::vec::Vec;
use core::fmt;

use crate::{
    Address, Clock, Express, Function, Space, quirk,
    space::register::{
        BASE, BRIDGE_CONTROL, BUS_MASTER, BUS_RESET, COMMAND, HEADER, ID, INTERRUPT, ROM,
    },
    standard,
};

/// A way to reset a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// A function-level reset by the PCI Express capability.
    Function,
    /// A function-level reset by the conventional capability for advanced features.
    Advanced,
    /// Power state D3hot and back to D0.
    Power,
    /// A reset of the bus behind the bridge at this address, with everything on it.
    Bus(Address),
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function => f.write_str("function-level"),
            Self::Advanced => f.write_str("function-level (conventional)"),
            Self::Power => f.write_str("power state"),
            Self::Bus(bridge) => write!(f, "bus behind {bridge}"),
        }
    }
}

/// The reason why a function was not reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetError {
    /// There is no such function.
    Unknown(Address),
    /// The function offers no reset, and its bus can't be reset for its sake.
    NoWay(Address),
    /// The function did not come back within 60 seconds.
    NotBack(Address),
    /// The function that came back has another id.
    Changed(Address),
    /// The function is being reset already.
    UnderWay(Address),
}

impl ResetError {
    /// Returns true if the function must not be used any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::NotBack(_) | Self::Changed(_))
    }
}

impl core::error::Error for ResetError {}

impl fmt::Display for ResetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(at) => write!(f, "there is no PCI function {at}"),
            Self::NoWay(at) => write!(f, "PCI function {at} offers no reset that the host can use"),
            Self::NotBack(at) => write!(
                f,
                "PCI function {at} did not answer within {} s of its reset",
                RETURN_US / 1_000_000
            ),
            Self::Changed(at) => {
                write!(f, "another device answers at {at} after the reset")
            }
            Self::UnderWay(at) => write!(f, "PCI function {at} is being reset already"),
        }
    }
}

/// The time that outstanding requests of a function are waited for before its reset, in microseconds. Linux waits as
/// long.
const PENDING_US: u64 = 1_500_000;
/// The time that a function has before it must answer after a function-level reset (PCI Express Base 5.0, 6.6.2).
const FUNCTION_US: u64 = 100_000;
/// The time that a change between D0 and D3hot takes (PCI Power Management 1.2, 5.6.1).
const POWER_US: u64 = 10_000;
/// The time that a bus is held in reset (PCI Express Base 5.0, 7.5.1.3.13: at least 1 ms).
const HOLD_US: u64 = 2_000;
/// The time that PCI Express functions have before they must answer after a reset of their bus.
const BUS_US: u64 = 100_000;
/// The same for conventional PCI: 2^25 cycles of 33 MHz.
const CONVENTIONAL_US: u64 = 1_010_000;
/// The time within which a function must have come back, in microseconds. Some drives take tens of seconds, during which
/// they answer that they are not ready.
pub const RETURN_US: u64 = 60_000_000;

const START: u16 = 1 << 15;
const PENDING: u16 = 1 << 5;
const STATE: u16 = 0b11;
const POWER_CONTROL: u16 = 4;
const ADVANCED_CONTROL: u16 = 4;

/// Returns the resets that a function offers by itself.
pub(crate) fn offered(space: &impl Space, function: &Function) -> Vec<Reset> {
    let at = function.address;
    let mut ways = Vec::new();
    let hangs = quirk::hangs_at_function_reset(function);
    if function.express.is_some_and(|e| e.function_reset) && !hangs {
        ways.push(Reset::Function);
    }
    if let Some(advanced) = function.capabilities.standard(standard::ADVANCED) {
        /// Both a function-level reset and the status that it needs.
        const OFFERED: u32 = 0b11 << 24;
        if space.read(at, advanced) & OFFERED == OFFERED && !hangs {
            ways.push(Reset::Advanced);
        }
    }
    if let Some(power) = function.capabilities.standard(standard::POWER) {
        /// The function keeps its state on the way back to D0.
        const KEEPS_STATE: u16 = 1 << 3;
        let control = space.read16(at, power + POWER_CONTROL);
        if control & KEEPS_STATE == 0 && function.physical.is_none() {
            ways.push(Reset::Power);
        }
    }
    ways
}

/// A reset that is under way: of one function, or of all that are on a bus. When it is done they have lost their state,
/// are not bus masters, and have the base address registers that they had.
///
/// It needs no lock of the inventory. [`Inventory::end_reset`](crate::Inventory::end_reset) must follow, or the functions
/// stay away.
#[derive(Debug)]
#[must_use]
pub struct Resetting {
    way: Reset,
    functions: Vec<Function>,
    saved: Vec<Saved>,
    phase: Phase,
    /// The time at which the phase began, in microseconds.
    since_us: u64,
}

/// The phases of a reset, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The functions finish their outstanding requests.
    Quieting,
    /// The reset is asserted, for so many microseconds.
    Held(u64),
    /// The functions may not be accessed, for so many microseconds.
    Settling(u64),
    /// The function of this index must answer.
    Returning(usize),
    /// The functions are back.
    Done,
}

impl Resetting {
    /// Stops the functions, so that they can be reset.
    pub(crate) fn begin(
        space: &impl Space,
        clock: &impl Clock,
        functions: Vec<Function>,
        way: Reset,
    ) -> Self {
        let saved = functions.iter().map(|function| Saved::of(space, function));
        let saved = saved.collect();
        for function in &functions {
            function.stop(space);
        }
        Self {
            way,
            functions,
            saved,
            phase: Phase::Quieting,
            since_us: clock.us(),
        }
    }

    /// Returns the way of the reset.
    #[must_use]
    pub fn way(&self) -> Reset {
        self.way
    }

    /// Returns the functions that it resets.
    pub fn functions(&self) -> impl Iterator<Item = Address> {
        self.functions.iter().map(|function| function.address)
    }

    /// Does what is due, and never waits. Returns true when the reset is done.
    ///
    /// # Errors
    /// [`ResetError::NotBack`] and [`ResetError::Changed`]: the functions must not be used.
    pub fn step(&mut self, space: &impl Space, clock: &impl Clock) -> Result<bool, ResetError> {
        let passed = clock.us().saturating_sub(self.since_us);
        let next = match self.phase {
            // A reset ends what is still outstanding, so that a function that never becomes quiet is reset all the same.
            Phase::Quieting => {
                let mut functions = self.functions.iter();
                let are_quiet = functions.all(|function| is_quiet(space, function));
                (are_quiet || passed >= PENDING_US).then(|| self.assert(space))
            }
            Phase::Held(us) => (passed >= us).then(|| self.release(space)),
            Phase::Settling(us) => (passed >= us).then_some(Phase::Returning(0)),
            Phase::Returning(index) => match self.functions.get(index) {
                Some(function) if is_back(space, function, passed)? => {
                    Some(Phase::Returning(index + 1))
                }
                Some(_) => None,
                None => Some(self.restore(space)),
            },
            Phase::Done => None,
        };
        if let Some(next) = next {
            (self.phase, self.since_us) = (next, clock.us());
        }
        Ok(self.phase == Phase::Done)
    }

    /// Resets to the end.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn finish(&mut self, space: &impl Space, clock: &impl Clock) -> Result<Reset, ResetError> {
        while !self.step(space, clock)? {
            clock.relax();
        }
        Ok(self.way)
    }

    /// Asserts the reset.
    fn assert(&self, space: &impl Space) -> Phase {
        if let Reset::Bus(bridge) = self.way {
            let control = space.read16(bridge, BRIDGE_CONTROL);
            space.write16(bridge, BRIDGE_CONTROL, control | BUS_RESET);
            return Phase::Held(HOLD_US);
        }
        let one = |function| assert_one(space, function, self.way);
        let phases = self.functions.iter().filter_map(one);
        phases.last().unwrap_or(Phase::Returning(0))
    }

    /// Ends the assertion of a reset that has an end.
    fn release(&self, space: &impl Space) -> Phase {
        match self.way {
            Reset::Bus(bridge) => {
                let control = space.read16(bridge, BRIDGE_CONTROL);
                space.write16(bridge, BRIDGE_CONTROL, control & !BUS_RESET);
                let mut functions = self.functions.iter();
                let all_express = functions.all(|function| function.express.is_some());
                Phase::Settling(if all_express { BUS_US } else { CONVENTIONAL_US })
            }
            _ => {
                for function in &self.functions {
                    set_power(space, function, 0);
                }
                Phase::Settling(POWER_US)
            }
        }
    }

    fn restore(&mut self, space: &impl Space) -> Phase {
        for (function, saved) in self.functions.iter().zip(self.saved.drain(..)) {
            saved.restore(space, function);
        }
        Phase::Done
    }
}

fn is_quiet(space: &impl Space, function: &Function) -> bool {
    let at = function.address;
    let advanced = function.capabilities.standard(standard::ADVANCED);
    match (function.express, advanced) {
        (Some(express), _) => {
            let status = space.read16(at, express.offset + Express::STATUS);
            status & PENDING == 0 || status == u16::MAX
        }
        (None, Some(advanced)) => space.read16(at, advanced + ADVANCED_CONTROL) & 1 << 8 == 0,
        (None, None) => true,
    }
}

/// Asserts the reset of one function.
fn assert_one(space: &impl Space, function: &Function, way: Reset) -> Option<Phase> {
    let at = function.address;
    match way {
        Reset::Function => {
            let control = function.express?.offset + Express::CONTROL;
            space.write16(at, control, space.read16(at, control) | START);
            Some(Phase::Settling(FUNCTION_US))
        }
        Reset::Advanced => {
            let advanced = function.capabilities.standard(standard::ADVANCED)?;
            space.write16(at, advanced + ADVANCED_CONTROL, 1);
            Some(Phase::Settling(FUNCTION_US))
        }
        Reset::Power => {
            set_power(space, function, STATE);
            Some(Phase::Held(POWER_US))
        }
        Reset::Bus(_) => None,
    }
}

/// Sets the power state: 0 is D0, 3 is D3hot.
fn set_power(space: &impl Space, function: &Function, state: u16) {
    if let Some(power) = function.capabilities.standard(standard::POWER) {
        let control = power + POWER_CONTROL;
        let before = space.read16(function.address, control) & !STATE;
        space.write16(function.address, control, before | state);
    }
}

/// Returns true if the function answers with its id. While it is not ready it answers with ones, or with a vendor of 1.
fn is_back(space: &impl Space, function: &Function, passed_us: u64) -> Result<bool, ResetError> {
    let at = function.address;
    let own = u32::from(function.identity.device) << 16 | u32::from(function.identity.vendor);
    let id = space.read(at, ID);
    let is_back = match function.physical {
        Some(_) => function.answers(space),
        None => !matches!(id as u16, 0xFFFF | 0x0001),
    };
    match is_back {
        false if passed_us >= RETURN_US => Err(ResetError::NotBack(at)),
        true if function.physical.is_none() && id != own => Err(ResetError::Changed(at)),
        is_back => Ok(is_back),
    }
}

/// The registers that a reset loses and that the function needs again.
#[derive(Debug)]
struct Saved {
    command: u16,
    header: u32,
    bases: [u32; 6],
    rom: u32,
    interrupt: u32,
    control: Option<u16>,
}

impl Saved {
    fn of(space: &impl Space, function: &Function) -> Self {
        let at = function.address;
        Self {
            command: space.read16(at, COMMAND),
            header: space.read(at, HEADER),
            bases: core::array::from_fn(|index| space.read(at, BASE + index as u16 * 4)),
            rom: space.read(at, ROM),
            interrupt: space.read(at, INTERRUPT),
            control: function
                .express
                .map(|express| space.read16(at, express.offset + Express::CONTROL)),
        }
    }

    fn restore(self, space: &impl Space, function: &Function) {
        let at = function.address;
        // A function that its reset has not reached still decodes its registers.
        space.write16(at, COMMAND, 0);
        space.write(at, HEADER, self.header);
        for (index, base) in (0..).zip(self.bases) {
            space.write(at, BASE + index * 4, base);
        }
        space.write(at, ROM, self.rom);
        space.write(at, INTERRUPT, self.interrupt);
        if let (Some(express), Some(control)) = (function.express, self.control) {
            space.write16(at, express.offset + Express::CONTROL, control & !START);
        }
        space.write16(at, COMMAND, self.command & !BUS_MASTER);
    }
}
