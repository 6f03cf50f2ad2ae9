//! A CPU of plain data, whose registers behave as the manual says.

use std::cell::RefCell;
use std::collections::BTreeMap;

use mca::{
    Msrs,
    bank::{Reading, Status},
};
use seam::abi::x86::msr::{FEATURE_CONTROL, mc};

/// IA32_MCG_CAP: four banks, IA32_MCG_CTL, CMCI, recovery and local machine checks, as a server has them.
pub const SERVER: u64 = 4 | 1 << 8 | 1 << 10 | 1 << 24 | 1 << 27;

/// VAL and UC.
pub const LOST: u64 = 1 << 63 | 1 << 61 | 1 << 60;
/// ADDRV and MISCV.
pub const PLACED: u64 = 1 << 58 | 1 << 59;
/// S and AR.
pub const REQUIRED: u64 = 1 << 56 | 1 << 55;
/// A load of poisoned data.
pub const LOAD: u64 = 0x134;
/// MISC: a physical address, exact to a line.
pub const LINE: u64 = 2 << 6 | 6;

/// The registers that exist, and the bits that can't be set in some of them.
#[derive(Default)]
pub struct Cpu {
    pub values: RefCell<BTreeMap<u32, u64>>,
    pub stuck_at_zero: BTreeMap<u32, u64>,
}

impl Cpu {
    /// A server's CPU whose firmware opted in to local machine checks.
    pub fn server() -> Self {
        let cpu = Self::default();
        cpu.set(FEATURE_CONTROL, 1 | 1 << 2 | 1 << 20);
        cpu.set(mc::MCG_CAP, SERVER);
        for msr in [mc::MCG_STATUS, mc::MCG_CTL, mc::MCG_EXT_CTL] {
            cpu.set(msr, 0);
        }
        for bank in 0..4 {
            cpu.set(mc::MC0_CTL2 + bank, 0);
            for register in 0..4 {
                cpu.set(mc::MC0_CTL + 4 * bank + register, 0);
            }
        }
        cpu
    }

    pub fn set(&self, msr: u32, value: u64) {
        self.values.borrow_mut().insert(msr, value);
    }

    pub fn get(&self, msr: u32) -> Option<u64> {
        self.values.borrow().get(&msr).copied()
    }

    pub fn has(self, global: u64, bank: u32, [status, address, misc]: [u64; 3]) -> Self {
        self.set(mc::MCG_STATUS, global);
        self.set(mc::MC0_STATUS + 4 * bank, status);
        self.set(mc::MC0_ADDR + 4 * bank, address);
        self.set(mc::MC0_MISC + 4 * bank, misc);
        self
    }
}

impl Msrs for Cpu {
    fn read(&self, msr: u32) -> Option<u64> {
        self.get(msr)
    }

    fn write(&self, msr: u32, value: u64) -> bool {
        let mut values = self.values.borrow_mut();
        // IA32_MCi_STATUS accepts only zero.
        let is_status = (mc::MC0_CTL..mc::MC0_CTL + 128).contains(&msr) && msr % 4 == 1;
        if !values.contains_key(&msr) || is_status && value != 0 {
            return false;
        }
        let stuck = self.stuck_at_zero.get(&msr).copied().unwrap_or(0);
        values.insert(msr, value & !stuck);
        true
    }
}

pub fn reading(status: u64, address: u64, misc: u64) -> Reading {
    Reading {
        bank: 0,
        status: Status(status),
        address: Some(address),
        misc: Some(misc),
    }
}
