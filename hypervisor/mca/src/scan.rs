//! A CPU's banks: initialisation, reading, clearing.
//!
//! Source: Intel SDM volume 3B, sections 16.8 (Machine-Check Initialization), 16.5 (CMCI) and 16.10.3.

use arrayvec::ArrayVec;
use seam::abi::x86::msr::mc;

use crate::{
    Msrs,
    bank::{Reading, Status},
    capability::{Capability, GlobalStatus, MAX_BANKS},
    verdict::{Occasion, Verdict},
};

/// The banks that hold an error.
pub type Readings = ArrayVec<Reading, MAX_BANKS>;

/// A set of banks, one bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Banks(pub u32);

impl Banks {
    /// Every bank.
    pub const ALL: Self = Self(u32::MAX);

    /// Returns true if the set has the bank.
    #[must_use]
    pub const fn has(self, bank: u8) -> bool {
        self.0 >> (bank % MAX_BANKS as u8) & 1 != 0
    }

    /// Adds a bank.
    pub const fn add(&mut self, bank: u8) {
        self.0 |= 1 << (bank % MAX_BANKS as u8);
    }
}

/// One reading of a CPU's banks.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// IA32_MCG_CAP; `None` if the CPU has no such register.
    pub capability: Option<Capability>,
    /// IA32_MCG_STATUS; `None` if the CPU has no such register.
    pub global: Option<GlobalStatus>,
    /// The errors.
    pub readings: Readings,
}

impl Scan {
    /// Reads all banks. Nothing is cleared.
    pub fn take(msrs: &impl Msrs) -> Self {
        Self::of(msrs, Banks::ALL)
    }

    /// Reads the banks in `banks`. Nothing is cleared.
    pub fn of(msrs: &impl Msrs, banks: Banks) -> Self {
        let capability = Capability::read(msrs);
        let numbers = capability.into_iter().flat_map(Capability::banks);
        Self {
            capability,
            global: msrs.read(mc::MCG_STATUS).map(GlobalStatus),
            readings: numbers
                .filter(|bank| banks.has(*bank))
                .filter_map(|bank| read(msrs, bank))
                .collect(),
        }
    }

    /// Returns each error with its verdict.
    pub fn judged(&self, occasion: Occasion) -> impl Iterator<Item = (&Reading, Verdict)> {
        let global = self.global.unwrap_or_default();
        let capability = self.capability.unwrap_or_default();
        self.readings.iter().map(move |reading| {
            let verdict = Verdict::of(reading, global, capability, occasion);
            (reading, verdict)
        })
    }

    /// Clears the banks whose errors were handled: all but those that wait for another CPU.
    pub fn clear(&self, msrs: &impl Msrs, occasion: Occasion) {
        for (reading, verdict) in self.judged(occasion) {
            if verdict != Verdict::NotHere {
                msrs.write(mc::MC0_STATUS + 4 * u32::from(reading.bank), 0);
            }
        }
    }

    /// Ends the machine check: the CPU accepts another one from here on.
    pub fn end_machine_check(&self, msrs: &impl Msrs) {
        if self.global.is_some_and(GlobalStatus::is_in_progress) {
            msrs.write(mc::MCG_STATUS, 0);
        }
    }
}

fn read(msrs: &impl Msrs, bank: u8) -> Option<Reading> {
    let at = 4 * u32::from(bank);
    let status = Status(msrs.read(mc::MC0_STATUS + at)?);
    if !status.is_valid() {
        return None;
    }
    let when = |valid: bool, msr: u32| valid.then(|| msrs.read(msr + at)).flatten();
    Some(Reading {
        bank,
        status,
        address: when(status.has_address(), mc::MC0_ADDR),
        misc: when(status.has_misc(), mc::MC0_MISC),
    })
}

/// The result of a CPU's initialisation.
#[derive(Clone, Debug, Default)]
pub struct Started {
    /// The errors from before the CPU's start. They were cleared.
    pub stale: Scan,
    /// True if this CPU receives its machine checks alone.
    pub is_local: bool,
    /// The banks of this CPU that signal corrected errors by CMCI.
    pub signalling: Banks,
}

/// Initialises the running CPU's banks: every error is enabled, errors from before are collected and cleared, and
/// local machine checks and CMCI are switched on where the CPU and the firmware allow them. `without` are the banks
/// that the firmware handles.
pub fn start(msrs: &impl Msrs, without: Banks) -> Started {
    let stale = Scan::take(msrs);
    let Some(capability) = stale.capability else {
        return Started::default();
    };
    let is_local = capability.may_be_local(msrs) && msrs.write(mc::MCG_EXT_CTL, 1);
    if capability.has_control() {
        msrs.write(mc::MCG_CTL, u64::MAX);
    }
    let mut signalling = Banks::default();
    for bank in capability.banks() {
        msrs.write(mc::MC0_CTL + 4 * u32::from(bank), u64::MAX);
        if !without.has(bank) {
            msrs.write(mc::MC0_STATUS + 4 * u32::from(bank), 0);
        }
        if capability.has_cmci() && !without.has(bank) && signal(msrs, bank) {
            signalling.add(bank);
        }
    }
    Started {
        stale,
        is_local,
        signalling,
    }
}

/// Makes a bank signal every corrected error. Returns `false` if it can't, or if another CPU that shares the bank
/// receives its signals.
fn signal(msrs: &impl Msrs, bank: u8) -> bool {
    const CMCI_EN: u64 = 1 << 30;
    const THRESHOLD: u64 = 0x7FFF;
    let msr = mc::MC0_CTL2 + u32::from(bank);
    let Some(before) = msrs.read(msr) else {
        return false;
    };
    if before & CMCI_EN != 0 {
        return false;
    }
    // The threshold is 1: each error is signalled.
    msrs.write(msr, before & !THRESHOLD | CMCI_EN | 1)
        && msrs.read(msr).is_some_and(|now| now & CMCI_EN != 0)
}

/// Stops the signals of the banks in `banks`.
pub fn silence(msrs: &impl Msrs, banks: Banks) {
    const CMCI_EN: u64 = 1 << 30;
    for bank in (0..MAX_BANKS as u8).filter(|bank| banks.has(*bank)) {
        let msr = mc::MC0_CTL2 + u32::from(bank);
        if let Some(before) = msrs.read(msr) {
            msrs.write(msr, before & !CMCI_EN);
        }
    }
}
