//! Defence against a host that single-steps a guest by interrupting it, or zero-steps it by removing pages.

use seam::abi::x86::msr::APIC_BASE;
use seam::abi::{Attributes, Features0};

use super::{Inside, reason};
use crate::Machine;
use crate::field::Structure;
use crate::vcpu::{Field, Gpr, Held, fields};

/// An interrupt so soon after the entry that at most two instructions can have run is suspicious.
const FEW_BYTES: u64 = 2 * 16;
const FEW_TICKS: u64 = 4096;
/// Number of EPT violations at one instruction that is not suspicious.
const USUAL_FAULTS: u64 = 6;
/// Entries of LAST_EPF_GPA_LIST.
const MAX_FAULTS: u64 = 32;
/// Task priority that blocks all external interrupts.
const BLOCK_INTERRUPTS: u64 = 15;
/// Primary controls: monitor trap flag.
const MONITOR_TRAP: u64 = 1 << 27;
/// Pending debug exceptions: enabled breakpoint, single step, in a transaction.
const DEBUG_PENDING: u64 = 1 << 12 | 1 << 14 | 1 << 16;
/// Interruptibility: blocking by STI.
const BLOCKED_BY_STI: u64 = 1;
/// IA32_APIC_BASE: global enable.
const APIC_ENABLED: u64 = 1 << 11;

/// State of the defence between an entry and the TD exit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stepping {
    entry_rip: u64,
    entry_tsc: u64,
    entry_rcx: u64,
    /// Instructions that count as executed although they were not, after a stepped guest.
    granted: u64,
    /// Remaining steps, while the guest is stepped.
    steps: Option<u32>,
    /// The host's task priority, saved while the guest is stepped.
    task_priority: u64,
}

/// The decision about a VM exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Handle it.
    Handle,
    /// Re-enter the guest.
    Resume,
    /// Report that the host disabled its APIC, without which the defence is impossible.
    WrongApicMode,
}

impl Stepping {
    /// Creates the state of an entry at this instruction pointer and time, with this RCX.
    pub const fn new(entry_rip: u64, entry_tsc: u64, entry_rcx: u64) -> Self {
        Self {
            entry_rip,
            entry_tsc,
            entry_rcx,
            granted: 0,
            steps: None,
            task_priority: 0,
        }
    }
}

impl<M: Machine> Inside<'_, M> {
    /// Decides about a VM exit that occurred at `exit_tsc`.
    #[inline(always)]
    pub fn filter(&mut self, full_reason: u32, exit_tsc: u64) -> Filter {
        let vcpu = self.vcpu;
        let rip = vcpu.vmcs(Field::RIP);
        if rip != self.stepping.entry_rip {
            self.forget_faults();
        }
        let basic = full_reason & 0xFFFF;
        let is_host_caused = self.is_host_caused(basic);
        if !is_host_caused && self.stepping.steps.is_none() {
            return Filter::Handle;
        }
        self.filter_suspect(basic, is_host_caused, exit_tsc)
    }

    /// Decides about an exit that the host may have caused, or that occurred while the guest is stepped.
    #[inline(never)]
    fn filter_suspect(&mut self, basic: u32, is_host_caused: bool, exit_tsc: u64) -> Filter {
        let vcpu = self.vcpu;
        let rip = vcpu.vmcs(Field::RIP);
        if is_host_caused {
            let steps = match self.stepping.steps {
                Some(steps) => steps,
                None => {
                    if self.has_progressed(rip, exit_tsc) {
                        return Filter::Handle;
                    }
                    if self.cx.machine.rdmsr(self.cx.lp, APIC_BASE) & APIC_ENABLED == 0 {
                        return Filter::WrongApicMode;
                    }
                    self.begin_stepping(basic)
                }
            };
            if steps > 0 {
                let is_blocked = vcpu.vmcs(Field::INTERRUPTIBILITY) & BLOCKED_BY_STI != 0;
                if vcpu.vmcs(Field::PENDING_DEBUG) & DEBUG_PENDING == 0
                    && !self.has_breakpoint(rip)
                    && !is_blocked
                {
                    self.block_by_mov_ss();
                }
                self.stepping.steps = Some(steps - 1);
                return Filter::Resume;
            }
        }
        if self.stepping.steps.take().is_some() {
            self.end_stepping();
            if basic == reason::MONITOR_TRAP {
                self.stepping.entry_tsc = 0;
                self.stepping.granted = 2;
                return Filter::Resume;
            }
        }
        Filter::Handle
    }

    /// Returns whether the guest executed so much since its entry that it is not being stepped.
    fn has_progressed(&self, rip: u64, exit_tsc: u64) -> bool {
        let counts = self.cx.module.release.has(Features0::ICSSD)
            && !self.has_attribute(Attributes::PERFMON.bits());
        let retired = counts.then(|| self.cx.machine.instructions_retired(self.cx.lp));
        match retired.flatten() {
            Some(retired) => match retired + self.stepping.granted {
                // A repeated string instruction retires only at its end.
                0 => {
                    let rcx = self.vcpu.gpr(Gpr::Rcx);
                    self.stepping.entry_rcx.wrapping_sub(rcx) > 1
                }
                retired => retired > 1,
            },
            None => {
                rip.abs_diff(self.stepping.entry_rip) > FEW_BYTES
                    || exit_tsc.wrapping_sub(self.stepping.entry_tsc) > FEW_TICKS
            }
        }
    }

    /// Returns whether a host can cause the exit at will.
    #[inline(always)]
    fn is_host_caused(&self, basic: u32) -> bool {
        const NMI: u64 = 2;
        const MSMI: u64 = 1;
        match basic {
            reason::EXTERNAL_INTERRUPT | reason::MONITOR_TRAP | reason::INIT => true,
            reason::SMI => self.vcpu.vmcs(Field::EXIT_QUALIFICATION) & MSMI == 0,
            reason::EXCEPTION_OR_NMI => self.vcpu.vmcs(Field::EXIT_INT_INFO) & 0xFF == NMI,
            _ => false,
        }
    }

    /// Starts stepping: lets the guest make a random number of steps, undisturbed by interrupts. Returns that number.
    fn begin_stepping(&mut self, basic: u32) -> u32 {
        let (machine, lp) = (self.cx.machine, self.cx.lp);
        let random = machine.rdrand(lp).unwrap_or_else(|| machine.rdtsc(lp));
        self.stepping.task_priority = machine.task_priority(lp);
        machine.set_task_priority(lp, BLOCK_INTERRUPTS);
        if basic == reason::EXTERNAL_INTERRUPT {
            machine.send_self_ipi(lp, self.vcpu.vmcs(Field::EXIT_INT_INFO) as u8);
        }
        let controls = self.vcpu.vmcs(Field::PROC_BASED);
        self.vcpu
            .set_vmcs(Field::PROC_BASED, controls | MONITOR_TRAP);
        (random & 0x1F) as u32 + 1
    }

    fn end_stepping(&self) {
        self.cx
            .machine
            .set_task_priority(self.cx.lp, self.stepping.task_priority);
        let controls = self.vcpu.vmcs(Field::PROC_BASED);
        self.vcpu
            .set_vmcs(Field::PROC_BASED, controls & !MONITOR_TRAP);
    }

    /// Returns whether the guest has a code breakpoint at its next instruction.
    fn has_breakpoint(&self, rip: u64) -> bool {
        let dr7 = self.vcpu.vmcs(Field::DR7);
        [Held::Dr0, Held::Dr1, Held::Dr2, Held::Dr3]
            .into_iter()
            .enumerate()
            .any(|(n, register)| {
                let enabled = dr7 >> (2 * n) & 3 != 0;
                let is_code = dr7 >> (16 + 4 * n) & 0xF == 0;
                enabled && is_code && self.vcpu.held(register) == rip
            })
    }

    fn forget_faults(&self) {
        self.vcpu.set(fields::LAST_EPF_GPA_LIST_IDX, 0);
        self.vcpu.set(fields::POSSIBLY_EPF_STEPPING, 0);
    }

    /// Records an EPT violation on a private page at the instruction at which the vCPU was entered.
    pub fn log_fault(&self, gpa: u64) {
        let vcpu = &self.vcpu;
        if vcpu.vmcs(Field::RIP) != self.stepping.entry_rip {
            self.forget_faults();
        }
        let faults = vcpu.get(fields::POSSIBLY_EPF_STEPPING);
        if faults < USUAL_FAULTS {
            vcpu.set(fields::POSSIBLY_EPF_STEPPING, faults + 1);
            return;
        }
        let count = vcpu.get(fields::LAST_EPF_GPA_LIST_IDX);
        let known =
            (0..count as u32).any(|index| vcpu.get(fields::LAST_EPF_GPA_LIST.at(index)) == gpa);
        if count < MAX_FAULTS && !known {
            vcpu.set(fields::LAST_EPF_GPA_LIST.at(count as u32), gpa);
            vcpu.set(fields::LAST_EPF_GPA_LIST_IDX, count + 1);
        }
    }
}
