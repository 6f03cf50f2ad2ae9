//! Scripted guests: they run in place of a TD's code when a vCPU is entered on a host machine.

use seam::abi::x86::exit_reason;

use super::machine::HostMachine;
use crate::vcpu::{Field, Vcpu};

/// The guest of one logical processor.
pub trait Guest: Send {
    /// Runs the vCPU until its next VM exit; see [`Machine::run_vcpu`](crate::Machine::run_vcpu). An [`Exit`]
    /// implements the exit.
    fn run(&mut self, machine: &HostMachine, lp: u32, vcpu: &Vcpu<'_>);
}

/// A VM exit, with the information that the CPU reports about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// The full 32-bit exit reason.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// Guest-linear address.
    pub gla: u64,
    /// Instruction length in bytes.
    pub instruction_length: u32,
    /// Instruction information.
    pub instruction_info: u32,
    /// VM-exit interruption information and error code.
    pub interruption: (u32, u32),
    /// IDT-vectoring information and error code.
    pub idt_vectoring: (u32, u32),
}

impl Exit {
    /// An external interrupt that was not acknowledged.
    pub const EXTERNAL_INTERRUPT: Self = Self::of(exit_reason::EXTERNAL_INTERRUPT);

    /// Bytes that the guest's instruction pointer moves between an entry and an exit.
    pub const PROGRESS: u64 = 0x40;
    /// Ticks that pass between an entry and an exit.
    pub const TICKS: u64 = 100_000;

    /// Returns an exit for `reason` without further information.
    pub const fn of(reason: u32) -> Self {
        Self {
            reason,
            qualification: 0,
            gpa: 0,
            gla: 0,
            instruction_length: 0,
            instruction_info: 0,
            interruption: (0, 0),
            idt_vectoring: (0, 0),
        }
    }

    /// Leaves the guest: one or more instructions have retired, the injected event is delivered, and the exit is
    /// recorded in the VMCS.
    pub fn leave(&self, machine: &HostMachine, vcpu: &Vcpu<'_>) {
        const NMI: u64 = 1 << 31 | 2 << 8;
        const VALID_AND_TYPE: u64 = 1 << 31 | 7 << 8;
        const BLOCKING_BY_STI_AND_MOV_SS: u64 = 0b11;
        const BLOCKING_BY_NMI: u64 = 1 << 3;
        const RESUME_FLAG: u64 = 1 << 16;

        machine.advance_tsc(Self::TICKS);
        let injected = vcpu.vmcs(Field::ENTRY_INT_INFO);
        let mut blocking = vcpu.vmcs(Field::INTERRUPTIBILITY) & !BLOCKING_BY_STI_AND_MOV_SS;
        if injected & VALID_AND_TYPE == NMI {
            blocking |= BLOCKING_BY_NMI;
        }
        for (field, value) in [
            (
                Field::RIP,
                vcpu.vmcs(Field::RIP).wrapping_add(Self::PROGRESS),
            ),
            (Field::RFLAGS, vcpu.vmcs(Field::RFLAGS) & !RESUME_FLAG),
            (Field::INTERRUPTIBILITY, blocking),
            (Field::PENDING_DEBUG, 0),
            (Field::ENTRY_INT_INFO, injected & !(1 << 31)),
            (Field::EXIT_REASON, self.reason.into()),
            (Field::EXIT_QUALIFICATION, self.qualification),
            (Field::GUEST_PHYSICAL_ADDRESS, self.gpa),
            (Field::GUEST_LINEAR_ADDRESS, self.gla),
            (
                Field::EXIT_INSTRUCTION_LENGTH,
                self.instruction_length.into(),
            ),
            (Field::EXIT_INSTRUCTION_INFO, self.instruction_info.into()),
            (Field::EXIT_INT_INFO, self.interruption.0.into()),
            (Field::EXIT_INT_ERROR, self.interruption.1.into()),
            (Field::IDT_VECTORING, self.idt_vectoring.0.into()),
            (Field::IDT_VECTORING_ERROR, self.idt_vectoring.1.into()),
        ] {
            vcpu.set_vmcs(field, value);
        }
    }
}
