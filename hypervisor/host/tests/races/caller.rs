//! The calls that guests of these races make, and their exits.

use seam::abi::GuestLeaf;
use seam::abi::x86::{efer, exit_reason};
use stub_module::host::{Exit, HostMachine};
use stub_module::vcpu::{Field, Gpr, Vcpu};
use sync::atomic::Ordering::SeqCst;

use crate::machine::Machine;

/// A call: sub-function, R12 to R15.
pub type Call = [u64; 5];

/// The exits of a guest's CPU: calls, with an exit for an interrupt in between.
#[derive(Default)]
pub struct Caller {
    /// True if the last exit was because of an interrupt.
    leaves: bool,
}

impl Caller {
    /// Leaves the guest: because of an interrupt, if one is posted and was not the last reason, else with the call that `next`
    /// returns. An interrupt that was posted stays so, because this CPU does not take it in the guest.
    pub fn leave(
        &mut self,
        machine: &Machine,
        (host, lp, vcpu): (&HostMachine, u32, &Vcpu<'_>),
        next: impl FnOnce() -> Call,
    ) {
        const VALID: u32 = 1 << 31;
        self.leaves = !self.leaves && machine.0.interrupts[lp as usize].load(SeqCst);
        if self.leaves {
            let exit = Exit {
                interruption: (VALID | 0xF2, 0),
                ..Exit::EXTERNAL_INTERRUPT
            };
            return exit.leave(host, vcpu);
        }
        call(host, vcpu, next());
    }
}

fn call(host: &HostMachine, vcpu: &Vcpu<'_>, [function, r12, r13, r14, r15]: Call) {
    const L: u64 = 1 << 13;
    /// R10 to R15 are exposed to the host.
    const MASK: u64 = 0xFC00;
    vcpu.set_vmcs(Field::EFER, vcpu.vmcs(Field::EFER) | efer::LMA);
    vcpu.set_vmcs(Field::CS_ACCESS, vcpu.vmcs(Field::CS_ACCESS) | L);
    for (register, value) in [
        (Gpr::Rax, GuestLeaf::VpVmcall.rax()),
        (Gpr::Rcx, MASK),
        (Gpr::R10, 0),
        (Gpr::R11, function),
        (Gpr::R12, r12),
        (Gpr::R13, r13),
        (Gpr::R14, r14),
        (Gpr::R15, r15),
    ] {
        vcpu.set_gpr(register, value);
    }
    let exit = Exit {
        instruction_length: 4,
        ..Exit::of(exit_reason::TDCALL)
    };
    exit.leave(host, vcpu);
}
