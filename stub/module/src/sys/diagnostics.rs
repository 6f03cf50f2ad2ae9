//! The module's actions at a fatal error, as the host chose at TDH.SYS.INIT.

use seam::abi::{FatalDiagnostics, FatalRecord};

use crate::{Check, Machine, Platform, memory};

/// Bytes of the record of a fatal error.
const LOG_SIZE: u64 = size_of::<FatalRecord>() as u64;
/// Interrupt command: level asserted, to all processors but the sender.
const ASSERT_TO_OTHERS: u64 = 1 << 14 | 3 << 18;
/// Delivery modes of an interrupt command.
const SMI: u64 = 2 << 8;
const NMI: u64 = 4 << 8;

/// The host's choice of record and notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    log: Option<u64>,
    icr: Option<u64>,
}

impl Diagnostics {
    /// Parses R8 of TDH.SYS.INIT: the record's address in bits 51:6, the kind of notification in 55:54, its vector in
    /// 63:56.
    pub fn from_operand(operand: u64, platform: &Platform<'_>) -> Option<Self> {
        const ADDRESS: u64 = FatalDiagnostics::ADDRESS;
        const RESERVED: u64 = 0x3F | 3 << 52;
        const FIRST_VECTOR: u64 = FatalDiagnostics::FIRST_VECTOR as u64;
        let (address, vector) = (operand & ADDRESS, operand >> FatalDiagnostics::VECTOR);
        if operand & RESERVED != 0 {
            return None;
        }
        let log = (address != ADDRESS).then_some(address);
        if log.is_some_and(|pa| !platform.is_shared_buffer(pa, LOG_SIZE, LOG_SIZE)) {
            return None;
        }
        let icr = match operand >> FatalDiagnostics::KIND & 3 {
            0 => None,
            1 if vector < FIRST_VECTOR => return None,
            1 => Some(vector),
            2 => Some(NMI | 2),
            _ => Some(SMI),
        };
        Some(Self {
            log: log.map(|pa| platform.without_keyid(pa)),
            icr: icr.map(|command| command | ASSERT_TO_OTHERS),
        })
    }

    /// Clears the record.
    pub fn clear<M: Machine>(&self, machine: &M) {
        if let Some(pa) = self.log {
            memory::write_bytes(machine, pa, &[0; LOG_SIZE as usize]);
        }
    }

    /// Records a fatal error, and notifies the other processors. A record that the host has not read remains.
    pub fn report<M: Machine>(&self, machine: &M, lp: u32, check: Check) {
        if let Some(pa) = self.log
            && memory::read(machine, pa) as u8 == 0
        {
            // The number of a check is this module's own, as Intel's numbers are those of a build.
            memory::write_bytes(machine, pa + 8, &(check as u64).to_le_bytes());
            memory::write_bytes(machine, pa, &FatalRecord::COMPLETE.to_le_bytes());
        }
        if let Some(command) = self.icr {
            machine.write_icr(lp, command);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(operand: u64) -> Option<Diagnostics> {
        let platform = Platform {
            lp_to_package: &[0],
            cmrs: &[],
            max_pa: 52,
            keyid_bits: 6,
            num_mktme_keyids: 31,
            num_tdx_keyids: 32,
            seamrr: (128 << 30, 1 << 27),
            wbinvd_sub_blocks: 1,
        };
        Diagnostics::from_operand(operand, &platform)
    }

    #[test]
    fn a_notification_is_an_interrupt_to_all_other_processors() {
        let of = |operand| parse(operand).and_then(|diagnostics| diagnostics.icr);
        assert_eq!(of(0x4040_0001_6003_0000), Some(0xC_4040));
        assert_eq!(of(0x0080_0001_6003_0000), Some(0xC_4402));
        assert_eq!(of(0x00C0_0001_6003_0000), Some(0xC_4200));
        assert_eq!(of(0x0000_0001_6003_0000), None);
    }

    #[test]
    fn a_record_lies_in_a_cache_line_of_the_host() {
        assert_eq!(parse(0x1_6003_0001), None);
        assert_eq!(parse(1 << 52), None);
        assert_eq!(parse(32 << 46 | 0x1_6003_0000), None);
        assert_eq!(parse(128 << 30), None);
        let nowhere = Diagnostics {
            log: None,
            icr: None,
        };
        assert_eq!(parse(0xF_FFFF_FFFF_FFC0), Some(nowhere));
        assert_eq!(parse(0x0F40_0001_6003_0000), None);
    }
}
