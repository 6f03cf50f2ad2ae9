//! Translation of SVM exits to VM exits as VMX reports them.

use iced_x86::{Instruction, Mnemonic};
use seam::abi::x86::{efer, vector};
use stub_module::vcpu::{Field, Vcpu};
use stub_rom::translation;

use super::{Next, Td, VmExit, code, cr, msr, reason};
use crate::monitor::machine::SeamCpu;
use crate::monitor::shared::InTd;
use crate::monitor::vmcb::{Segment, exit};
use crate::report;

/// Interruption information: valid, and the types of events.
const VALID: u64 = 1 << 31;
const HAS_ERROR: u64 = 1 << 11;
const NMI: u64 = VALID | 2 << 8 | vector::NMI as u64;
const EXCEPTION: u64 = VALID | 3 << 8;

/// Records an exit in the VMCS.
#[inline(always)]
pub fn record(exit: &VmExit, vcpu: &Vcpu<'_>) {
    vcpu.set_vmcs(Field::EXIT_REASON, exit.reason.into());
    vcpu.set_vmcs(Field::EXIT_QUALIFICATION, exit.qualification);
    vcpu.set_vmcs(Field::GUEST_PHYSICAL_ADDRESS, exit.gpa);
    vcpu.set_vmcs(Field::GUEST_LINEAR_ADDRESS, exit.gla);
    vcpu.set_vmcs(Field::EXIT_INSTRUCTION_LENGTH, exit.length as u64);
    vcpu.set_vmcs(Field::EXIT_INSTRUCTION_INFO, 0);
    vcpu.set_vmcs(Field::EXIT_INT_INFO, exit.interruption.0);
    vcpu.set_vmcs(Field::EXIT_INT_ERROR, exit.interruption.1);
    vcpu.set_vmcs(Field::IDT_VECTORING, exit.vectoring.0);
    vcpu.set_vmcs(Field::IDT_VECTORING_ERROR, exit.vectoring.1);
}

/// Returns the instructions that cause this SVM exit, and the reasons that VMX reports for them. TCG distinguishes INVD
/// from WBINVD only by the former's exit code, and reports the latter's for both. SVM and VMX treat WBNOINVD as WBINVD.
fn instructions(code: u64) -> Option<&'static [(Mnemonic, u32)]> {
    Some(match code {
        exit::CPUID => &[(Mnemonic::Cpuid, reason::CPUID)],
        exit::HLT => &[(Mnemonic::Hlt, reason::HLT)],
        exit::INVD | exit::WBINVD => &[
            (Mnemonic::Invd, reason::INVD),
            (Mnemonic::Wbinvd, reason::WBINVD),
            (Mnemonic::Wbnoinvd, reason::WBINVD),
        ],
        exit::RDPMC => &[(Mnemonic::Rdpmc, reason::RDPMC)],
        exit::MONITOR => &[(Mnemonic::Monitor, reason::MONITOR)],
        exit::MWAIT => &[(Mnemonic::Mwait, reason::MWAIT)],
        exit::XSETBV => &[(Mnemonic::Xsetbv, reason::XSETBV)],
        _ => return None,
    })
}

/// Returns whether the module intercepts RDPMC. TCG reports it to the monitor in any case.
fn exits_at_rdpmc(vcpu: &Vcpu<'_>) -> bool {
    const RDPMC_EXITING: u64 = 1 << 11;
    vcpu.vmcs(Field::PROC_BASED) & RDPMC_EXITING != 0
}

/// The instructions that access ports.
const PORT_ACCESSES: &[Mnemonic] = &[
    Mnemonic::In,
    Mnemonic::Out,
    Mnemonic::Insb,
    Mnemonic::Insw,
    Mnemonic::Insd,
    Mnemonic::Outsb,
    Mnemonic::Outsw,
    Mnemonic::Outsd,
];

impl Td {
    /// Handles the cause of the exit, or returns the exit that the module must handle.
    #[inline(always)]
    pub(super) fn exited(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>) -> Next {
        self.settle_interrupt(vcpu);
        let code = self.vmcb.exit_code;
        if let Some(next) = self.end_step(vcpu, code) {
            return next;
        }
        self.vmcb.event_injection = 0;
        if code != exit::SHUTDOWN {
            self.entered_at.settle();
        }
        match code {
            exit::EXCEPTION..=exit::LAST_EXCEPTION => {
                self.exception(machine, vcpu, (code - exit::EXCEPTION) as u8)
            }
            _ => self.exited_otherwise(machine, vcpu, code),
        }
    }

    /// Returns the exit if it matches VMX's exit for this SVM exit; else ends the vCPU.
    fn checked(&self, code: u64, next: Next) -> Next {
        let Next::Exit(exit) = &next else { return next };
        match translation::check(code, exit) {
            Ok(()) => next,
            Err(what) => self.unexplained(what),
        }
    }

    #[inline(never)]
    fn exited_otherwise(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>, code: u64) -> Next {
        let next = match code {
            exit::INTR => self.external_interrupt(machine, vcpu),
            exit::NMI => self.nmi(machine),
            exit::NPF => self.nested_page_fault(machine, vcpu),
            exit::MSR => msr::access(self, machine, vcpu),
            exit::CR0_WRITE | exit::CR4_WRITE | exit::CR8_WRITE => cr::access(self, machine, vcpu),
            exit::IRET => self.iret(vcpu),
            exit::RDPMC if !exits_at_rdpmc(vcpu) => self.read_counter(machine, vcpu),
            exit::IO => self.port_access(machine, vcpu),
            exit::SHUTDOWN => self.triple_fault(machine),
            exit::VMRUN..=exit::SKINIT | exit::INVLPGA => self.raise(vector::UD, None),
            exit::INVALID => self.entry_failed(),
            _ => match instructions(code) {
                Some(rows) => self.executed(machine, vcpu, rows),
                None => self.unexplained("an exit that VMX does not have"),
            },
        };
        self.checked(code, next)
    }

    /// Returns the exit for one of these instructions.
    fn executed(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>, rows: &[(Mnemonic, u32)]) -> Next {
        let reason = |i: &Instruction| {
            let row = rows.iter().find(|(mnemonic, _)| *mnemonic == i.mnemonic());
            row.map(|(_, reason)| *reason)
        };
        match self.instruction(machine, vcpu, |i| reason(i).is_some()) {
            Ok(i) => Next::Exit(VmExit::by(reason(&i).unwrap_or_default(), i.len())),
            Err(next) => next,
        }
    }

    /// Executes RDPMC of a TD that has the counters. They stand still, and there are no others.
    #[inline(never)]
    fn read_counter(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>) -> Next {
        match self.instruction(machine, vcpu, |i| i.mnemonic() == Mnemonic::Rdpmc) {
            Ok(instruction) => {
                self.gprs.set_edx_eax(0);
                self.vmcb.save.rax = 0;
                self.skip(instruction.len())
            }
            Err(next) => next,
        }
    }

    /// Ends the vCPU because VMX has no exit for the event: a triple fault, which ends only that TD. The debug console
    /// reports the event.
    #[inline(never)]
    pub(super) fn unexplained(&self, check: &str) -> Next {
        let (c, s) = (&self.vmcb, &self.vmcb.save);
        report::line(
            "td_unexplained",
            format_args!(
                r#""lp":{},"check":"{check}","exit":"{:#x}","info1":"{:#x}","info2":"{:#x}","rip":"{:#x}","cr0":"{:#x}","cr3":"{:#x}","cr4":"{:#x}","efer":"{:#x}""#,
                self.number,
                c.exit_code,
                c.exit_info1,
                c.exit_info2,
                s.rip,
                s.cr0,
                s.cr3,
                s.cr4,
                s.efer
            ),
        );
        Next::Exit(VmExit::of(reason::TRIPLE_FAULT))
    }

    /// Handles a triple fault. Reports the guest's registers on the debug console. Repeats the entry if TCG has lost it.
    #[inline(never)]
    fn triple_fault(&mut self, machine: &SeamCpu) -> Next {
        let lp = machine.number();
        let s = &mut self.vmcb.save;
        let repeated = self.entered_at.repeat(lp, s.rip, s.rsp);
        report::line(
            "td_triple_fault",
            format_args!(
                r#""lp":{lp},"again":{},"rip":"{:#x}","rsp":"{:#x}","rflags":"{:#x}","cr0":"{:#x}","cr2":"{:#x}","cr3":"{:#x}","cr4":"{:#x}""#,
                repeated.is_some(),
                s.rip,
                s.rsp,
                s.rflags,
                s.cr0,
                s.cr2,
                s.cr3,
                s.cr4
            ),
        );
        let Some(entry) = repeated else {
            return Next::Exit(VmExit::of(reason::TRIPLE_FAULT));
        };
        s.cr2 = entry.cr2;
        self.vmcb.event_injection = entry.event;
        self.vmcb.tlb_control = 1;
        Next::Resume
    }

    #[inline(never)]
    fn entry_failed(&self) -> Next {
        let s = &self.vmcb.save;
        report::line(
            "td_entry_failed",
            format_args!(
                r#""rip":"{:#x}","cr0":"{:#x}","cr4":"{:#x}","efer":"{:#x}""#,
                s.rip, s.cr0, s.cr4, s.efer
            ),
        );
        Next::Exit(VmExit::of(reason::ENTRY_FAILED | reason::ENTRY_GUEST_STATE))
    }

    /// Delivers an exception that the processor would have raised itself.
    #[inline(never)]
    pub(super) fn raise(&mut self, number: u8, error_code: Option<u32>) -> Next {
        self.vmcb.inject_exception(number, error_code);
        Next::Resume
    }

    /// Advances past an instruction of `length` bytes.
    pub(super) fn skip(&mut self, length: usize) -> Next {
        self.vmcb.skip(length);
        Next::Resume
    }

    /// Returns whether the guest executes 64-bit code.
    pub(super) fn is_in_long_mode(&self) -> bool {
        let s = &self.vmcb.save;
        s.efer & efer::LMA != 0 && s.cs.attributes & Segment::LONG != 0
    }

    /// Handles the NMI exit: the host's NMI, or a request of another processor.
    #[inline(never)]
    fn nmi(&mut self, machine: &SeamCpu) -> Next {
        match machine.shared().take_nmi_in_td() {
            InTd::Nothing => {
                self.redeliver();
                Next::Resume
            }
            InTd::Nmi => Next::Exit(VmExit {
                interruption: (NMI, 0),
                ..VmExit::of(reason::EXCEPTION_OR_NMI)
            }),
            InTd::Init => Next::Exit(VmExit::of(reason::INIT)),
        }
    }

    /// Returns the exit for an external interrupt that has been acknowledged.
    pub(super) fn interrupt_exit(vector: u8) -> Next {
        Next::Exit(VmExit {
            interruption: (VALID | u64::from(vector), 0),
            ..VmExit::of(reason::EXTERNAL_INTERRUPT)
        })
    }

    #[inline(always)]
    fn exception(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>, number: u8) -> Next {
        if number == vector::UD
            && let Some(next) = self.unknown_instruction(machine, vcpu)
        {
            return next;
        }
        self.true_exception(vcpu, number)
    }

    /// Handles an exception that hardware would raise, too.
    #[inline(never)]
    fn true_exception(&mut self, vcpu: &Vcpu<'_>, number: u8) -> Next {
        let wanted = vcpu.vmcs(Field::EXCEPTION_BITMAP) >> number & 1 != 0;
        if number == vector::UD && !wanted {
            return self.raise(vector::UD, None);
        }
        let (error, address) = (self.vmcb.exit_info1, self.vmcb.exit_info2);
        let has_error = vector::has_error_code(number);
        let info = EXCEPTION | u64::from(number) | if has_error { HAS_ERROR } else { 0 };
        let found = VmExit {
            interruption: (info, if has_error { error } else { 0 }),
            vectoring: self.vectoring(),
            ..VmExit::of(reason::EXCEPTION_OR_NMI)
        };
        const DR6_CAUSES: u64 = 0x600F;
        let found = match number {
            vector::PF => found.qualified(address),
            vector::DB => found.qualified(self.vmcb.save.dr6 & DR6_CAUSES),
            _ => found,
        };
        self.checked(exit::EXCEPTION + u64::from(number), Next::Exit(found))
    }

    /// Handles instructions that TCG does not know, but a processor with TDX does; returns `None` for all others.
    #[inline(always)]
    fn unknown_instruction(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>) -> Option<Next> {
        let (reason, length) = if self.opcode(machine) == Some(u32::from_le_bytes(code::TDCALL)) {
            (reason::TDCALL, code::TDCALL.len())
        } else {
            let code = self.code(machine, vcpu);
            if code.is_empty() {
                return Some(self.execute_again(true));
            }
            code::known(&code)?
        };
        if reason == reason::TDCALL && self.vmcb.save.cpl != 0 {
            return Some(self.raise(vector::GP, Some(0)));
        }
        Some(Next::Exit(VmExit::by(reason, length)))
    }

    /// Returns the exit for a port access, with its qualification in VMX's format.
    #[inline(never)]
    fn port_access(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>) -> Next {
        const IN: u64 = 1 << 0;
        const STRING: u64 = 1 << 2;
        const REPEATED: u64 = 1 << 3;
        const SIZE_SHIFT: u64 = 4;
        const IMMEDIATE: u64 = 1 << 6;
        let accesses = |i: &Instruction| PORT_ACCESSES.contains(&i.mnemonic());
        let instruction = match self.instruction(machine, vcpu, accesses) {
            Ok(instruction) => instruction,
            Err(next) => return next,
        };
        let info = self.vmcb.exit_info1;
        let size = info >> SIZE_SHIFT & 7;
        let mut qualification = size.saturating_sub(1) | info >> 16 << 16;
        for (bit, there) in [(IN, 1 << 3), (STRING, 1 << 4), (REPEATED, 1 << 5)] {
            if info & bit != 0 {
                qualification |= there;
            }
        }
        if code::is_immediate_port(&instruction) {
            qualification |= IMMEDIATE;
        }
        Next::Exit(VmExit::by(reason::IO, instruction.len()).qualified(qualification))
    }
}
