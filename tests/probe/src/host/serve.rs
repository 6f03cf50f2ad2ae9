//! The guest's requests by TDVMCALL.

use core::sync::atomic::Ordering;

use seam::abi::ghci::{self, Request};
use seam::abi::{Gprs, PAGE_4K};

use super::Host;
use crate::cpu::send_serial;
use crate::td::SHARED;

/// R10 of a request that only this host knows, and the requests.
const OWN: u64 = 0x0062_656F_7270;
mod own {
    /// R12 is a shared page in which host and guest tell each other how they are doing.
    pub const MAILBOX: u64 = 1;
    /// R12 is the page that is to be hammered.
    pub const TARGET: u64 = 2;
    /// Takes the private page at R12 away, and puts another in its place.
    pub const REPLACE: u64 = 3;
    /// Has an NMI delivered to the vCPU that asks, once it runs again.
    pub const NMI: u64 = 4;
    /// Adds a page of 2 MiB at R12.
    pub const ADD_LARGE: u64 = 5;
}

const SERIAL: u64 = 0x3F8;

impl Host {
    /// Serves a request. False if the vCPU can't go on.
    pub fn vmcall(&self, number: usize, r: &mut Gprs) -> bool {
        if r.r10 == OWN {
            r.r10 = ghci::SUCCESS;
            return self.own_request(number, r);
        }
        let request = (r.r10 == 0).then(|| Request::from_number(r.r11)).flatten();
        r.r10 = ghci::SUCCESS;
        match request {
            Some(Request::Io) => self.port(r),
            Some(Request::Hlt) => return self.halt(number, r.r12 & 1 == 0),
            Some(Request::Cpuid) => (r.r12, r.r13, r.r14, r.r15) = (0, 0, 0, 0),
            Some(Request::Rdmsr) => match read_msr(number, r.r12) {
                Some(value) => r.r11 = value,
                None => r.r10 = ghci::INVALID_OPERAND,
            },
            Some(Request::Wrmsr) => {
                if !self.write_msr(r.r12, r.r13) {
                    r.r10 = ghci::INVALID_OPERAND;
                }
            }
            // A value that no device returns shows that the device was asked.
            Some(Request::Mmio) => r.r11 = r.r14 & !SHARED,
            Some(Request::GetTdVmCallInfo) => (r.r11, r.r12, r.r13, r.r14) = (0, 0, 0, 0),
            Some(Request::MapGpa) => return self.map_gpa(r),
            Some(Request::ReportFatalError) => {
                self.fail(format_args!(
                    "vCPU {number} reports a fatal error {:#x}",
                    r.r12
                ));
                return false;
            }
            _ => r.r10 = ghci::SUBFUNC_UNSUPPORTED,
        }
        true
    }

    fn port(&self, r: &mut Gprs) {
        match (r.r14, r.r13) {
            (SERIAL, 1) => {
                let _line = self.console.lock();
                send_serial(r.r15 as u8);
            }
            (_, 1) => r.r10 = ghci::INVALID_OPERAND,
            _ => r.r11 = u64::MAX >> (64 - 8 * r.r12.clamp(1, 4)),
        }
    }

    /// Halts the vCPU until something comes; when all wait for good, the guest has ended.
    fn halt(&self, number: usize, interrupts: bool) -> bool {
        let seat = &self.seats[number];
        seat.halted.store(!interrupts, Ordering::SeqCst);
        let all = self.seats[..self.td.size]
            .iter()
            .all(|seat| seat.halted.load(Ordering::SeqCst));
        if all {
            self.call_off();
        }
        while !self.is_awake(number, interrupts) {
            core::hint::spin_loop();
        }
        seat.halted.store(false, Ordering::SeqCst);
        true
    }

    fn map_gpa(&self, r: &mut Gprs) -> bool {
        let (start, size) = (r.r12 & !SHARED, r.r13);
        let shared = r.r12 & SHARED != 0;
        if start % PAGE_4K != 0 || size % PAGE_4K != 0 {
            r.r10 = ghci::ALIGN_ERROR;
            return true;
        }
        if size == 0 || start.checked_add(size).is_none_or(|end| end > self.ram) {
            r.r10 = ghci::INVALID_OPERAND;
            r.r11 = r.r12;
            return true;
        }
        (start..start + size)
            .step_by(PAGE_4K as usize)
            .all(|gpa| self.convert(gpa, shared))
    }

    fn write_msr(&self, msr: u64, value: u64) -> bool {
        const SPURIOUS: u64 = 0x80F;
        const ICR: u64 = 0x830;
        const NMI: u64 = 4;
        match msr {
            SPURIOUS => true,
            ICR => {
                let target = self.seats[..self.td.size].get((value >> 32) as usize);
                let Some(seat) = target else { return false };
                match value >> 8 & 7 {
                    0 => seat.interrupt(value as u8),
                    NMI => seat.interrupt_nmi(),
                    _ => return false,
                }
                true
            }
            _ => false,
        }
    }

    fn own_request(&self, number: usize, r: &mut Gprs) -> bool {
        let gpa = r.r12 & !SHARED;
        match r.r11 {
            own::MAILBOX => match self.shared_page(gpa) {
                Some(page) => self.mailbox.store(page, Ordering::SeqCst),
                None => r.r10 = ghci::INVALID_OPERAND,
            },
            own::TARGET => self.target.store(gpa, Ordering::SeqCst),
            own::REPLACE => {
                let page = self.spare_page();
                let replaced = self.remove(gpa).and_then(|_| self.aug(gpa, 0, page));
                if let Err(why) = replaced {
                    self.fail(format_args!("replacing {gpa:#x}: {why:?}"));
                    return false;
                }
            }
            own::ADD_LARGE => {
                if let Err(why) = self.add(gpa, 1) {
                    self.fail(format_args!("adding {gpa:#x}: {why:?}"));
                    return false;
                }
            }
            own::NMI => self.seats[number].interrupt_nmi(),
            _ => r.r10 = ghci::SUBFUNC_UNSUPPORTED,
        }
        true
    }
}

/// The MSRs of a vCPU that the host knows.
fn read_msr(number: usize, msr: u64) -> Option<u64> {
    const APIC_BASE: u64 = 0x1B;
    const APIC_ID: u64 = 0x802;
    const APIC_VERSION: u64 = 0x803;
    match msr {
        APIC_BASE => Some(0xFEE0_0C00 | u64::from(number == 0) << 8),
        APIC_ID => Some(number as u64),
        APIC_VERSION => Some(0x5_0014),
        _ => None,
    }
}
