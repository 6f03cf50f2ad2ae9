//! Named general-purpose registers, as far as a recording lists them.

use seam::abi::Gprs;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use std::collections::BTreeMap;

use super::number::Number;

/// Names of the registers, in the order in which instructions encode them.
pub const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Values for some of the general-purpose registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registers([Option<u64>; 16]);

impl Registers {
    /// Returns the value of a register if it is listed.
    pub fn get(&self, register: usize) -> Option<u64> {
        self.0[register]
    }

    /// Returns the listed registers and their values.
    pub fn listed(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let numbered = self.0.iter().enumerate();
        numbered.filter_map(|(register, value)| value.map(|value| (register, value)))
    }

    /// Returns the registers of a call. Those that are not listed are zero.
    pub fn gprs(&self) -> Gprs {
        let mut gprs = Gprs::default();
        for (register, value) in self.listed() {
            if let Some(cell) = cell(&mut gprs, register) {
                *cell = value;
            }
        }
        gprs
    }
}

/// Returns the value of a register of a call. RSP takes no part and reads as zero.
pub fn value(gprs: &Gprs, register: usize) -> u64 {
    cell(&mut { *gprs }, register).map_or(0, |cell| *cell)
}

fn cell(gprs: &mut Gprs, register: usize) -> Option<&mut u64> {
    Some(match register {
        0 => &mut gprs.rax,
        1 => &mut gprs.rcx,
        2 => &mut gprs.rdx,
        3 => &mut gprs.rbx,
        5 => &mut gprs.rbp,
        6 => &mut gprs.rsi,
        7 => &mut gprs.rdi,
        8 => &mut gprs.r8,
        9 => &mut gprs.r9,
        10 => &mut gprs.r10,
        11 => &mut gprs.r11,
        12 => &mut gprs.r12,
        13 => &mut gprs.r13,
        14 => &mut gprs.r14,
        15 => &mut gprs.r15,
        _ => return None,
    })
}

impl<'de> Deserialize<'de> for Registers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let named = BTreeMap::<String, Number>::deserialize(deserializer)?;
        let mut registers = Self::default();
        for (name, value) in named {
            let register = NAMES
                .iter()
                .position(|known| *known == name)
                .ok_or_else(|| D::Error::custom(format!("`{name}` is no register")))?;
            registers.0[register] = Some(value.0);
        }
        Ok(registers)
    }
}
