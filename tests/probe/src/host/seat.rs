//! A vCPU on its processor: the loop that enters it, and how others get at it.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use seam::abi::metadata::vp;
use seam::abi::x86::exit_reason as reason;
use seam::abi::x86::msr::x2apic::{
    EOI, ICR, ID as APIC_ID, ISR as IN_SERVICE, SELF_IPI, SVR as SPURIOUS,
};
use seam::abi::{Gprs, Leaf, Status};

use super::posted::NOTIFICATION;
use super::{Host, host};
use crate::attempt::{IPI, TIMER, rdmsr, seamcall_all, wrmsr};
use crate::cpu::disable_interrupts;
use crate::td::page_at;
use crate::tdx::call;

const APIC_ENABLED: u64 = 1 << 8;

/// Interruption information: valid.
const VALID: u64 = 1 << 31;

/// The part of a vCPU that the others see.
pub struct Seat {
    descriptor: AtomicU64,
    /// Its processor.
    apic_id: AtomicU32,
    /// The processor is in the guest, or on its way.
    inside: AtomicBool,
    /// Entries so far.
    pub entries: AtomicU64,
    /// An NMI is to be pended.
    nmi: AtomicBool,
    /// It waits for good.
    pub halted: AtomicBool,
    /// Accesses to the target page that the host saw.
    pub faults: AtomicU64,
    /// The round of the hammer in which it last tried, and how often.
    pub tried_in: AtomicU64,
    /// See `tried_in`.
    pub tries: AtomicU64,
    /// Timer interrupts that came in R9.
    pub timers: AtomicU64,
    /// The timer is to be armed before an entry.
    pub wants_timer: AtomicBool,
    /// Entries with the timer armed.
    pub armed: AtomicU64,
}

impl Seat {
    /// One that nobody sits on.
    pub const fn new() -> Self {
        Self {
            descriptor: AtomicU64::new(0),
            apic_id: AtomicU32::new(0),
            inside: AtomicBool::new(false),
            entries: AtomicU64::new(0),
            nmi: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            faults: AtomicU64::new(0),
            tried_in: AtomicU64::new(0),
            tries: AtomicU64::new(0),
            timers: AtomicU64::new(0),
            wants_timer: AtomicBool::new(false),
            armed: AtomicU64::new(0),
        }
    }

    /// The address of the posted-interrupt descriptor.
    pub fn descriptor(&self) -> u64 {
        self.descriptor.load(Ordering::Relaxed)
    }

    /// Says where the descriptor is.
    pub fn set_descriptor(&self, at: u64) {
        self.descriptor.store(at, Ordering::Relaxed);
    }

    fn send(&self, vector: u8) {
        let target = u64::from(self.apic_id.load(Ordering::Relaxed)) << 32;
        // A fixed interrupt for a processor that is there can't fail.
        let _ = wrmsr(ICR, target | u64::from(vector));
    }

    /// Interrupts the guest with `vector`.
    pub fn interrupt(&self, vector: u8) {
        if self.post(vector) && self.inside.load(Ordering::SeqCst) {
            self.send(NOTIFICATION);
        }
    }

    /// Has an NMI delivered to the guest.
    pub fn interrupt_nmi(&self) {
        self.nmi.store(true, Ordering::SeqCst);
        if self.inside.load(Ordering::SeqCst) {
            self.send(IPI);
        }
    }

    /// Wakes its processor if that sleeps outside the guest, for what has changed before this call.
    pub fn wake(&self) {
        if !self.inside.load(Ordering::SeqCst) {
            self.send(IPI);
        }
    }

    /// Makes the vCPU leave the guest once, if it is there, and waits for that.
    pub fn kick(&self) {
        let before = self.entries.load(Ordering::SeqCst);
        if !self.inside.load(Ordering::SeqCst) {
            return;
        }
        self.send(IPI);
        while self.inside.load(Ordering::SeqCst) && self.entries.load(Ordering::SeqCst) == before {
            core::hint::spin_loop();
        }
    }
}

/// Runs vCPU `number` on this processor to the end. Zero if all went well.
pub fn run(number: u64) -> u64 {
    let Some(host) = host() else { return 1 };
    let number = number as usize;
    let seat = &host.seats[number];
    let id = rdmsr(APIC_ID).unwrap_or(0) as u32;
    seat.apic_id.store(id, Ordering::SeqCst);
    // A processor that has just been started takes no interrupts yet.
    let _ = wrmsr(SPURIOUS, APIC_ENABLED | 0xFF);
    disable_interrupts();
    let mut registers = Gprs::default();
    while !host.is_over() {
        registers.rax = Leaf::VpEnter.rax();
        registers.rcx = host.td.vcpus[number];
        let answer = registers;
        seat.inside.store(true, Ordering::SeqCst);
        if !host.before_entry(number) {
            seat.inside.store(false, Ordering::SeqCst);
            return 1;
        }
        let entered = seamcall_all(&mut registers);
        seat.entries.fetch_add(1, Ordering::SeqCst);
        seat.inside.store(false, Ordering::SeqCst);
        if entered.is_err() {
            host.fail(format_args!("TDH.VP.ENTER faulted"));
            return 1;
        }
        let status = Status(registers.rax);
        if status.code() == Status::OPERAND_BUSY {
            // Nothing happened; what the guest waits for is still to be handed over.
            registers = answer;
            continue;
        }
        if !host.left(number, &mut registers) {
            return 1;
        }
    }
    0
}

/// TDH.VP.FLUSH on the processor that ran it; the status.
pub fn flush(number: u64) -> u64 {
    let Some(host) = host() else { return 1 };
    let tdvpr = host.td.vcpus[number as usize];
    match call(Leaf::VpFlush, page_at(tdvpr, 0)) {
        Err(status) if Status(status).code() == Status::VCPU_NOT_ASSOCIATED => 0,
        answer => answer.err().unwrap_or(0),
    }
}

impl Host {
    /// Hands over what came while the vCPU was out. The order is the point: `inside` is set, so that whatever comes later
    /// is announced by an interrupt, which waits until the guest runs.
    fn before_entry(&self, number: usize) -> bool {
        let seat = &self.seats[number];
        if seat.is_outstanding() {
            let _ = wrmsr(SELF_IPI, NOTIFICATION.into());
        }
        if seat.nmi.swap(false, Ordering::SeqCst) {
            let tdvpr = self.td.vcpus[number];
            if let Err(why) = self.td.write_field(tdvpr, vp::PEND_NMI.id, 1) {
                self.fail(format_args!("PEND_NMI: {why:?}"));
                return false;
            }
        }
        if seat.wants_timer.load(Ordering::SeqCst) {
            super::interrupts::arm_timer();
            seat.armed.fetch_add(1, Ordering::SeqCst);
        }
        true
    }

    /// Does what the guest left for. False if it can't be entered again.
    fn left(&self, number: usize, registers: &mut Gprs) -> bool {
        let seat = &self.seats[number];
        let status = registers.rax >> 32;
        match (status, registers.rax as u32) {
            (0, reason::TDCALL) => self.vmcall(number, registers),
            (0, reason::EXTERNAL_INTERRUPT) => {
                let vector = registers.r9 as u8;
                let valid = registers.r9 & !0xFF == VALID;
                let in_service = rdmsr(IN_SERVICE + u32::from(vector / 32)).unwrap_or(0);
                if !valid || in_service >> (vector % 32) & 1 == 0 {
                    self.fail(format_args!(
                        "an interrupt with R9 = {:#x}, which is not in service",
                        registers.r9
                    ));
                    return false;
                }
                let _ = wrmsr(EOI, 0);
                match vector {
                    TIMER => {
                        seat.timers.fetch_add(1, Ordering::SeqCst);
                    }
                    IPI => {}
                    _ => {
                        self.strangers.fetch_add(1, Ordering::SeqCst);
                    }
                }
                true
            }
            (0, reason::EXCEPTION_OR_NMI) if registers.r9 as u8 == 2 => true,
            (0, reason::EPT_VIOLATION) => self.missing(number, registers),
            _ => {
                let Gprs {
                    rax, rcx, rdx, r8, ..
                } = *registers;
                self.fail(format_args!(
                    "vCPU {number} left with RAX {rax:#x} RCX {rcx:#x} RDX {rdx:#x} R8 {r8:#x} R9 {:#x}",
                    registers.r9
                ));
                false
            }
        }
    }

    /// Returns true if the vCPU has something to wake up for.
    pub fn is_awake(&self, number: usize, interrupts: bool) -> bool {
        let seat = &self.seats[number];
        if self.is_over() || seat.nmi.load(Ordering::SeqCst) {
            return true;
        }
        interrupts && (seat.is_outstanding() || self.has_virtual_interrupt(number))
    }

    /// VCPU_STATE_DETAILS.VMXIP: an interrupt is pending in the virtual APIC.
    fn has_virtual_interrupt(&self, number: usize) -> bool {
        let tdvpr = self.td.vcpus[number];
        let details = call(Leaf::VpRd, page_at(tdvpr, vp::VCPU_STATE_DETAILS.id.0));
        details.is_ok_and(|regs| regs.r8 & 1 != 0)
    }
}
