//! One interrupt of a function: its gate in the function, and the message that the TD gets.
//!
//! An interrupt is silent while the guest masks it, and while it rests because the TD's functions interrupted too
//! often. Handlers and the TD's CPUs change both without a lock: whoever changes one writes the gate until it says what
//! both say together.

use alloc::sync::Arc;
use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use devices::{Message, Trigger};
use io::{Address, Space};

use super::{machine::Machine, share::Share};
use crate::cpu::line::Receiver;

/// The guest does not want the interrupt.
const MASKED: u8 = 1;
/// The interrupt rests.
const RESTING: u8 = 2;
/// The function's interrupts are off, and the gate is their switch.
const OFF: u8 = 4;

/// The bit by which a function is kept from raising an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The word of vector control of an entry of the MSI-X table, at this address.
    Table(u64),
    /// The mask register of MSI, at this offset of configuration space.
    Register(u16),
    /// The message control of MSI, at this offset and with this value when it is open: there is no mask.
    Control(u16, u16),
}

/// The function that an interrupt is of.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// Its address.
    pub at: Address,
    /// Its index among the TD's functions.
    pub index: usize,
}

/// One interrupt of a function.
#[derive(Debug)]
pub struct Vector<M> {
    share: Arc<Share<M>>,
    owner: Owner,
    gate: Gate,
    /// True while the function's registers must not be accessed.
    is_away: Arc<AtomicBool>,
    flags: AtomicU8,
    target: AtomicU64,
}

impl<M: Machine> Vector<M> {
    /// Creates an interrupt that the guest does not want.
    pub fn new(share: &Arc<Share<M>>, owner: Owner, gate: Gate, is_away: &Arc<AtomicBool>) -> Self {
        Self {
            share: share.clone(),
            owner,
            gate,
            is_away: is_away.clone(),
            flags: AtomicU8::new(MASKED | OFF),
            target: AtomicU64::new(0),
        }
    }

    /// Returns the gate.
    pub fn gate(&self) -> Gate {
        self.gate
    }

    /// Sets the message that the TD gets from now on.
    pub fn aim(&self, message: Message) {
        self.target.store(encode(message), Release);
    }

    /// Opens the gate for the guest, or closes it.
    pub fn set_masked(&self, is_masked: bool) {
        self.set(MASKED, is_masked);
    }

    /// Opens the gate with the function's interrupts, or closes it.
    pub fn set_off(&self, is_off: bool) {
        self.set(OFF, is_off);
    }

    fn set(&self, flag: u8, is_set: bool) {
        if is_set {
            self.flags.fetch_or(flag, SeqCst);
        } else {
            self.flags.fetch_and(!flag, SeqCst);
        }
        self.write_gate();
    }

    /// Closes the gate after a reset of the function: the guest does not want the interrupt until it says so again.
    pub fn close(&self) {
        self.flags.store(MASKED | OFF, SeqCst);
        self.target.store(0, Relaxed);
        self.write(true);
    }

    /// Writes the gate until it says what the flags say.
    fn write_gate(&self) {
        loop {
            let is_closed = self.flags() != 0;
            if !self.is_away.load(Acquire) && !self.share.is_over() {
                self.write(is_closed);
            }
            // Each turn after the first is a change by another CPU.
            if (self.flags() != 0) == is_closed {
                return;
            }
        }
    }

    /// Returns the flags that close the gate, after this CPU's stores before the call were executed.
    fn flags(&self) -> u8 {
        let meant = match self.gate {
            Gate::Control(..) => MASKED | RESTING | OFF,
            Gate::Table(_) | Gate::Register(_) => MASKED | RESTING,
        };
        self.flags.fetch_or(0, SeqCst) & meant
    }

    fn write(&self, is_closed: bool) {
        let machine = &self.share.machine;
        match self.gate {
            Gate::Table(control) => machine.store(control, 4, is_closed.into()),
            Gate::Register(offset) => {
                machine
                    .space()
                    .write(self.owner.at, offset, is_closed.into())
            }
            Gate::Control(offset, open) => {
                let value = if is_closed { open & !1 } else { open };
                machine.space().write16(self.owner.at, offset, value);
            }
        }
    }

    fn deliver(&self) {
        if let Some(message) = decode(self.target.load(Acquire)) {
            self.share.deliver(self.owner.index, message);
        }
    }
}

impl<M: Machine> Receiver for Vector<M> {
    fn arrive(&self, cpu: usize) {
        if let Some(rest_us) = self.share.spend(self.owner.index, cpu) {
            self.flags.fetch_or(RESTING, SeqCst);
            self.write_gate();
            self.share.machine.rest(rest_us);
        }
        self.deliver();
    }

    fn end_rest(&self) {
        if self.flags.load(SeqCst) & RESTING == 0 {
            return;
        }
        self.flags.fetch_and(!RESTING, SeqCst);
        self.write_gate();
        // Without a mask, the function has not kept what it had to say.
        if let Gate::Control(..) = self.gate {
            self.deliver();
        }
    }
}

const VALID: u64 = 1 << 63;
const NMI: u64 = 1 << 17;
const LOGICAL: u64 = 1 << 16;

/// Encodes a message; 0 is none.
const fn encode(message: Message) -> u64 {
    let trigger = match message.trigger {
        Trigger::Fixed => 0,
        Trigger::Nmi => NMI,
    };
    let logical = if message.is_logical { LOGICAL } else { 0 };
    VALID | trigger | logical | (message.destination as u64) << 8 | message.vector as u64
}

const fn decode(value: u64) -> Option<Message> {
    if value & VALID == 0 {
        return None;
    }
    Some(Message {
        trigger: if value & NMI == 0 {
            Trigger::Fixed
        } else {
            Trigger::Nmi
        },
        vector: value as u8,
        destination: (value >> 8) as u8,
        is_logical: value & LOGICAL != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_kept_whole() {
        for trigger in [Trigger::Fixed, Trigger::Nmi] {
            for is_logical in [false, true] {
                let message = Message {
                    trigger,
                    vector: 0xA5,
                    destination: 0x5A,
                    is_logical,
                };
                assert_eq!(decode(encode(message)), Some(message));
            }
        }
        assert_eq!(decode(0), None);
    }
}
