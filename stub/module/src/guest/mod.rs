//! Running a TD: the vCPU runs and the module handles its VM exits, until one goes to the host.

mod cpuid;
mod cr;
mod ept;
mod events;
mod exit;
mod msr;
mod stepping;
mod tdcall;

use seam::abi::x86::efer;
pub use seam::abi::x86::exit_reason as reason;
use seam::abi::{Attributes, ConfigFlags, Status, TdCtls};

use events::{Category, VeInfo};
pub use exit::{Check, Impossible, Stop, TdExit};
pub use msr::fill_bitmaps as fill_msr_bitmaps;
use stepping::{Filter, Stepping};
pub use tdcall::check_report;

use crate::call::Call;
use crate::cpuid::Features;
use crate::field::Structure;
use crate::hooks::Fault;
use crate::td::{Tdcs, Tdr, Tdvps, tdcs};
use crate::vcpu::{Field, Gpr, Vcpu, fields};
use crate::vp::vmcs;
use crate::{Change, Machine};

/// A vCPU inside its TD.
pub struct Inside<'m, M> {
    cx: Call<'m, M>,
    /// The root of the TD.
    pub tdr: Tdr<'m>,
    /// The TD's TDCS.
    pub tdcs: Tdcs<'m, M>,
    /// The vCPU's TDVPS.
    pub tdvps: Tdvps<'m, M>,
    /// The vCPU's state.
    pub vcpu: Vcpu<'m>,
    stepping: Stepping,
    /// True if a bus lock was reported with an exit that did not go to the host.
    bus_lock: bool,
}

impl<'m, M: Machine> Inside<'m, M> {
    /// Creates a vCPU that is about to enter its TD.
    #[inline(always)]
    pub fn new(
        cx: Call<'m, M>,
        tdr: Tdr<'m>,
        tdcs: Tdcs<'m, M>,
        tdvps: Tdvps<'m, M>,
        vcpu: Vcpu<'m>,
    ) -> Self {
        Self {
            cx,
            tdr,
            tdcs,
            tdvps,
            vcpu,
            stepping: Stepping::default(),
            bus_lock: false,
        }
    }

    /// Runs the vCPU until an exit goes to the host.
    #[inline(always)]
    pub fn run(&mut self) -> TdExit {
        self.stepping = Stepping::new(
            self.vcpu.vmcs(Field::RIP),
            self.cx.machine.rdtsc(self.cx.lp),
            self.vcpu.gpr(Gpr::Rcx),
        );
        loop {
            if self.cx.fault == Some(Fault::MachineCheck) {
                self.check_machine();
            } else {
                self.cx.machine.run_vcpu(self.cx.lp, &self.vcpu);
            }
            match self.handle() {
                Ok(()) => {}
                Err(Stop::Exit(exit)) => return self.leave(exit),
                Err(Stop::Shutdown(check)) => return self.shut_down(check),
            }
        }
    }

    /// Writes the VM exit of a machine check in the guest, once.
    #[cold]
    fn check_machine(&mut self) {
        const VALID: u64 = 1 << 31;
        const HARDWARE_EXCEPTION: u64 = 3 << 8;
        const MACHINE_CHECK: u64 = 18;
        let interruption = VALID | HARDWARE_EXCEPTION | MACHINE_CHECK;
        self.cx.fault = None;
        for (field, value) in [
            (Field::EXIT_REASON, reason::EXCEPTION_OR_NMI.into()),
            (Field::EXIT_QUALIFICATION, 0),
            (Field::EXIT_INT_INFO, interruption),
            (Field::IDT_VECTORING, 0),
        ] {
            self.vcpu.set_vmcs(field, value);
        }
    }

    #[inline(never)]
    fn shut_down(&self, check: Check) -> TdExit {
        self.tell(check, true);
        self.cx.die(check);
        TdExit::new(Status::SYS_SHUTDOWN, 0)
    }

    /// Reports to the machine an exit that no CPU produces.
    #[inline(never)]
    fn tell(&self, check: Check, shuts_down: bool) {
        let vcpu = &self.vcpu;
        let exit = Impossible {
            check,
            reason: vcpu.vmcs(Field::EXIT_REASON) as u32,
            qualification: vcpu.vmcs(Field::EXIT_QUALIFICATION),
            rip: vcpu.vmcs(Field::RIP),
            length: vcpu.vmcs(Field::EXIT_INSTRUCTION_LENGTH),
            shuts_down,
        };
        self.cx.machine.impossible(self.cx.lp, &exit);
    }

    /// Adds the CPU's bus-lock report to an exit, unless the exit has no VM exit as its cause.
    fn leave(&mut self, mut exit: TdExit) -> TdExit {
        let has_reason = !matches!(
            exit.status.code(),
            Status::NON_RECOVERABLE_TD_CORRUPTED_MD | Status::HOST_PRIORITY_BUSY_TIMEOUT
        );
        if core::mem::take(&mut self.bus_lock) && has_reason {
            exit.status = Status(exit.status.0 | u64::from(reason::AFTER_BUS_LOCK));
        }
        exit
    }

    fn has_attribute(&self, bits: u64) -> bool {
        self.tdcs.get(tdcs::field::ATTRIBUTES) & bits != 0
    }

    /// Returns whether TDH.VP.ENTER preserves the host's RBP.
    pub fn keeps_rbp(&self) -> bool {
        self.tdcs.get(tdcs::field::CONFIG_FLAGS) & ConfigFlags::NO_RBP_MOD.bits() != 0
    }

    /// Returns whether the guest has set a bit of TD_CTLS.
    #[inline(always)]
    fn has_control(&self, control: TdCtls) -> bool {
        self.tdcs.get(tdcs::field::TD_CTLS) & control.bits() != 0
    }

    /// Returns the TD's features, by its configuration and its choices.
    fn features(&self) -> Features {
        vmcs::features(self.cx.native(), &self.tdcs)
    }

    /// Returns the vCPU's x2APIC id.
    fn x2apic_id(&self) -> u32 {
        let index = self.vcpu.get(fields::VCPU_INDEX) as u32;
        self.tdcs.get(tdcs::field::X2APIC_IDS.at(index)) as u32
    }

    /// Returns whether a guest-physical address is shared.
    pub fn is_shared(&self, gpa: u64) -> bool {
        gpa >> if self.tdcs.is_wide() { 51 } else { 47 } & 1 != 0
    }

    /// Returns whether the guest runs 64-bit code.
    fn is_64_bit(&self) -> bool {
        const L: u64 = 1 << 13;
        self.vcpu.vmcs(Field::EFER) & efer::LMA != 0 && self.vcpu.vmcs(Field::CS_ACCESS) & L != 0
    }

    /// Returns the guest's privilege level.
    fn privilege(&self) -> u64 {
        self.vcpu.vmcs(Field::SS_ACCESS) >> 5 & 3
    }

    /// Handles an exit that only a debugger can have enabled. It goes to the host; a production TD ends.
    #[inline(never)]
    fn debugger_only(&self, exit: TdExit) -> Stop {
        let reason = exit.status.detail();
        if self.has_attribute(Attributes::DEBUG.bits()) {
            exit.into()
        } else {
            TdExit {
                status: Status::NON_RECOVERABLE_TD.with_detail(reason),
                ..exit
            }
            .into()
        }
    }

    /// Handles a VM exit.
    #[inline(always)]
    fn handle(&mut self) -> Result<(), Stop> {
        let vcpu = self.vcpu;
        let now = self.cx.machine.rdtsc(self.cx.lp);
        vcpu.set(fields::LAST_EXIT_TSC, now);
        vcpu.set(fields::NMI_UNBLOCKING_DUE_TO_IRET, 0);
        let full = vcpu.vmcs(Field::EXIT_REASON) as u32;
        let qualification = vcpu.vmcs(Field::EXIT_QUALIFICATION);
        let interruption = vcpu.vmcs(Field::EXIT_INT_INFO);
        let exit = TdExit::success(full).qualified(qualification);
        let is_debug = self.has_attribute(Attributes::DEBUG.bits());
        if self.tdr.is_fatal() {
            core::hint::cold_path();
            let status = Status::NON_RECOVERABLE_TD_NON_ACCESSIBLE.with_detail(full);
            return Err(TdExit {
                status,
                ..exit.event(interruption)
            }
            .into());
        }
        self.bus_lock |= full & reason::AFTER_BUS_LOCK != 0;
        if !is_debug && full & !reason::KNOWN != 0 {
            return Err(Stop::Shutdown(Check::ExitReason));
        }
        match self.filter(full, now) {
            Filter::Handle => {}
            Filter::Resume => return self.check_debug_event(),
            Filter::WrongApicMode => {
                let status = Status::NON_RECOVERABLE_TD_WRONG_APIC_MODE.with_detail(full);
                return Err(TdExit {
                    status,
                    ..exit.event(interruption)
                }
                .into());
            }
        }
        let vectoring = vcpu.vmcs(Field::IDT_VECTORING);
        if vectoring >> 31 & 1 != 0 {
            core::hint::cold_path();
            let expected = matches!(
                full & 0xFFFF,
                reason::TASK_SWITCH | reason::EPT_VIOLATION | reason::EPT_MISCONFIGURATION
            );
            if !expected {
                return Err(if is_debug {
                    exit.into()
                } else {
                    Stop::Shutdown(Check::IdtVectoring)
                });
            }
            self.reinject(vectoring);
        }
        if full & reason::ENTRY_FAILED != 0 {
            return Err(self.entry_failure(exit));
        }
        let interrupted = match full & 0xFFFF {
            reason::TDCALL => self.tdcall()?,
            other => {
                self.dispatch(full, qualification, interruption, exit)?;
                // The NMI window opens between two instructions, but Intel's module uses a nonzero length nevertheless.
                other == reason::NMI_WINDOW && vcpu.vmcs(Field::EXIT_INSTRUCTION_LENGTH) == 0
            }
        };
        self.go_on(interrupted)
    }

    /// Continues the guest after a handled exit. It advances past the instruction, unless an event will be delivered or
    /// no instruction completed.
    #[inline(never)]
    fn go_on(&mut self, interrupted: bool) -> Result<(), Stop> {
        if !self.has_event() && !interrupted {
            self.ask_for_nmi_window();
            self.advance()?;
        }
        if self.bus_lock {
            return Err(TdExit::success(reason::BUS_LOCK).into());
        }
        self.check_debug_event()
    }

    /// Exits to the host for an exception in a debug TD that the host wants to see before the guest does.
    fn check_debug_event(&self) -> Result<(), Stop> {
        const HARDWARE_EXCEPTION: u64 = 3;
        let event = self.vcpu.vmcs(Field::ENTRY_INT_INFO);
        let is_exception = self.has_event() && event >> 8 & 7 == HARDWARE_EXCEPTION;
        let wanted = self.vcpu.vmcs(Field::EXCEPTION_BITMAP) >> (event & 0x1F) & 1 != 0;
        if self.has_attribute(Attributes::DEBUG.bits()) && is_exception && wanted {
            return Err(TdExit::success(reason::EXCEPTION_OR_NMI)
                .event(event)
                .into());
        }
        Ok(())
    }

    #[inline(never)]
    fn entry_failure(&self, exit: TdExit) -> Stop {
        match exit.status.detail() & 0xFFFF {
            reason::ENTRY_GUEST_STATE => self.debugger_only(exit),
            reason::ENTRY_MACHINE_CHECK => TdExit {
                status: Status::NON_RECOVERABLE_TD_NON_ACCESSIBLE.with_detail(exit.status.detail()),
                ..exit
            }
            .into(),
            _ => Stop::Shutdown(Check::EntryFailure),
        }
    }

    /// Handles a VM exit other than a TDCALL.
    #[inline(never)]
    fn dispatch(
        &mut self,
        full: u32,
        qualification: u64,
        interruption: u64,
        exit: TdExit,
    ) -> Result<(), Stop> {
        let fatal = |code: Status| -> Stop {
            let status = code.with_detail(full);
            TdExit { status, ..exit }.into()
        };
        match full & 0xFFFF {
            reason::IO
            | reason::HLT
            | reason::INVD
            | reason::VMCALL
            | reason::WBINVD
            | reason::PCONFIG
            | reason::APIC_WRITE => self.raise_ve(full, qualification, 0, 0),
            reason::MWAIT | reason::MONITOR => {
                if self.cx.module.release.does(Change::MONITOR_IS_INVALID) {
                    self.raise_ud();
                } else {
                    self.raise_ve(full, qualification, 0, 0);
                }
            }
            reason::GETSEC
            | reason::RSM
            | reason::VMCLEAR..=reason::VMXON
            | reason::INVEPT
            | reason::INVVPID
            | reason::VMFUNC
            | reason::ENCLS
            | reason::ENCLV
            | reason::ENQCMDS
            | reason::SEAMCALL => self.raise_ud(),
            reason::ENQCMD => self.raise_gp(),
            reason::TASK_SWITCH | reason::BUS_LOCK | reason::INIT => return Err(exit.into()),
            reason::NOTIFICATION => {
                const CONTEXT_INVALID: u64 = 1;
                const NMI_UNBLOCKED_BY_IRET: u64 = 1 << 12;
                if qualification & NMI_UNBLOCKED_BY_IRET != 0 {
                    self.reblock_nmi();
                }
                return Err(if qualification & CONTEXT_INVALID != 0 {
                    fatal(Status::NON_RECOVERABLE_TD)
                } else {
                    exit.into()
                });
            }
            reason::TRIPLE_FAULT => return Err(fatal(Status::NON_RECOVERABLE_VCPU)),
            reason::SMI => {
                const MSMI: u64 = 1;
                let exit = exit.event(interruption);
                return Err(if qualification & MSMI != 0 {
                    let status = Status::NON_RECOVERABLE_TD_NON_ACCESSIBLE.with_detail(full);
                    TdExit { status, ..exit }.into()
                } else {
                    exit.into()
                });
            }
            reason::EXTERNAL_INTERRUPT | reason::C_STATE_SMI => {
                return Err(exit.event(interruption).into());
            }
            reason::RDPMC => {
                if self.has_attribute(Attributes::PERFMON.bits()) {
                    return Err(if self.has_attribute(Attributes::DEBUG.bits()) {
                        exit.into()
                    } else {
                        Stop::Shutdown(Check::Rdpmc)
                    });
                }
                self.raise_gp();
            }
            reason::EPT_MISCONFIGURATION => return Err(self.ept_misconfiguration(full)),
            reason::EPT_VIOLATION => self.ept_violation(full, qualification)?,
            reason::CPUID => self.cpuid(full),
            reason::XSETBV => self.xsetbv(),
            reason::CR_ACCESS => {
                if !self.cr_access(qualification) {
                    return Err(self.debugger_only(exit));
                }
            }
            reason::EXCEPTION_OR_NMI => {
                return Err(self.exception_or_nmi(exit.event(interruption), interruption));
            }
            reason::RDMSR => self.rdmsr(full)?,
            reason::WRMSR => self.wrmsr(full)?,
            reason::NMI_WINDOW => self.nmi_window(),
            reason::PML_FULL => {
                return Err(if self.has_attribute(Attributes::DEBUG.bits()) {
                    exit.into()
                } else {
                    Stop::Shutdown(Check::PmlFull)
                });
            }
            _ => return Err(self.debugger_only(exit)),
        }
        Ok(())
    }

    #[inline(never)]
    fn exception_or_nmi(&self, exit: TdExit, interruption: u64) -> Stop {
        const NMI_TYPE: u64 = 2;
        const MACHINE_CHECK: u64 = 18;
        if interruption >> 8 & 7 == NMI_TYPE {
            exit.into()
        } else if interruption & 0xFF == MACHINE_CHECK {
            let status =
                Status::NON_RECOVERABLE_TD_NON_ACCESSIBLE.with_detail(exit.status.detail());
            TdExit { status, ..exit }.into()
        } else if self.has_attribute(Attributes::DEBUG.bits()) {
            exit.into()
        } else {
            Stop::Shutdown(Check::Exception)
        }
    }
}
