//! A guest that plays a list of acts and records the answers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use seam::abi::x86::{efer, exit_reason};
use seam::abi::{Gprs, GuestLeaf};
use stub_module::host::{Exit, Guest, HostMachine};
use stub_module::vcpu::{Field, Gpr, Vcpu};

use super::OUT_OF_LINES;

/// Registers that a guest exposes to the host: RDX, RBX, RSI, RDI, R8 to R15.
pub const MASK: u64 = 0xFFCC;

/// One act of the guest.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// TDG.VP.VMCALL with these registers.
    Call(Gprs),
    /// Another TDCALL with these values of RAX and RCX.
    Tdcall(u64, u64),
    /// Accesses an address.
    Touch(u64),
    /// A host interrupt with this vector arrives.
    Interrupted(u8),
    /// Any other VM exit.
    Exit(Exit),
}

/// Returns the act TDG.MEM.PAGE.ACCEPT for a 4 KiB page at an address; add 1 for 2 MiB.
pub const fn accept(gpa_and_level: u64) -> Act {
    Act::Tdcall(GuestLeaf::MemPageAccept.rax(), gpa_and_level)
}

/// Returns the registers of a call: sub-function in R11, operands in R12 to R15.
pub fn call(function: u64, operands: [u64; 4]) -> Gprs {
    let [r12, r13, r14, r15] = operands;
    Gprs {
        r11: function,
        r12,
        r13,
        r14,
        r15,
        ..Gprs::default()
    }
}

/// The result of an act.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// The registers after a call.
    Regs(Gprs),
}

impl Answer {
    pub const fn regs(self) -> Gprs {
        let Self::Regs(regs) = self;
        regs
    }
}

/// A script, shared by the test and the guest that plays it.
#[derive(Clone, Debug, Default)]
pub struct Script(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    left: VecDeque<Act>,
    asked: Option<Act>,
    answers: Vec<Answer>,
}

impl Script {
    pub fn new(acts: impl IntoIterator<Item = Act>) -> Self {
        Self(Arc::new(Mutex::new(Lines {
            left: acts.into_iter().collect(),
            ..Lines::default()
        })))
    }

    /// Returns a guest that plays the script.
    pub fn player(&self) -> Box<dyn Guest> {
        Box::new(Player(self.clone()))
    }

    /// Returns the answers so far, in order.
    pub fn answers(&self) -> Vec<Answer> {
        self.0.lock().unwrap().answers.clone()
    }

    /// Returns the number of acts left.
    pub fn left(&self) -> usize {
        self.0.lock().unwrap().left.len()
    }
}

struct Player(Script);

impl Guest for Player {
    fn run(&mut self, machine: &HostMachine, _: u32, vcpu: &Vcpu<'_>) {
        let mut lines = self.0.0.lock().unwrap();
        if let Some(act) = lines.asked.take() {
            let regs = registers(vcpu);
            match act {
                // The module exited to the host in the middle of the TDCALL and changed nothing. The guest executes the
                // instruction again.
                Act::Tdcall(rax, _) if regs.rax == rax => lines.left.push_front(act),
                _ => lines.answers.push(Answer::Regs(regs)),
            }
        }
        let act = lines.left.pop_front();
        let rip = vcpu.vmcs(Field::RIP);
        let exit = match act {
            None => interrupt(OUT_OF_LINES),
            Some(Act::Interrupted(vector)) => interrupt(vector),
            Some(Act::Exit(exit)) => exit,
            Some(Act::Touch(gpa)) => Exit {
                qualification: 1 << 1,
                gpa,
                ..Exit::of(exit_reason::EPT_VIOLATION)
            },
            Some(Act::Call(regs)) => {
                set_registers(vcpu, &regs);
                vcpu.set_gpr(Gpr::Rax, GuestLeaf::VpVmcall.rax());
                vcpu.set_gpr(Gpr::Rcx, MASK);
                lines.asked = act;
                tdcall(vcpu)
            }
            Some(Act::Tdcall(rax, rcx)) => {
                vcpu.set_gpr(Gpr::Rax, rax);
                vcpu.set_gpr(Gpr::Rcx, rcx);
                lines.asked = act;
                tdcall(vcpu)
            }
        };
        exit.leave(machine, vcpu);
        if matches!(act, Some(Act::Touch(_))) {
            // The instruction was not executed.
            vcpu.set_vmcs(Field::RIP, rip);
        }
    }
}

/// Returns the exit of a TDCALL in 64-bit code.
fn tdcall(vcpu: &Vcpu<'_>) -> Exit {
    const L: u64 = 1 << 13;
    vcpu.set_vmcs(Field::EFER, vcpu.vmcs(Field::EFER) | efer::LMA);
    vcpu.set_vmcs(Field::CS_ACCESS, vcpu.vmcs(Field::CS_ACCESS) | L);
    Exit {
        instruction_length: 4,
        ..Exit::of(exit_reason::TDCALL)
    }
}

fn interrupt(vector: u8) -> Exit {
    Exit {
        interruption: (1 << 31 | u32::from(vector), 0),
        ..Exit::of(exit_reason::EXTERNAL_INTERRUPT)
    }
}

fn registers(vcpu: &Vcpu<'_>) -> Gprs {
    let get = |register| vcpu.gpr(register);
    Gprs {
        rax: get(Gpr::Rax),
        rcx: get(Gpr::Rcx),
        rdx: get(Gpr::Rdx),
        rbx: get(Gpr::Rbx),
        rbp: get(Gpr::Rbp),
        rsi: get(Gpr::Rsi),
        rdi: get(Gpr::Rdi),
        r8: get(Gpr::R8),
        r9: get(Gpr::R9),
        r10: get(Gpr::R10),
        r11: get(Gpr::R11),
        r12: get(Gpr::R12),
        r13: get(Gpr::R13),
        r14: get(Gpr::R14),
        r15: get(Gpr::R15),
    }
}

fn set_registers(vcpu: &Vcpu<'_>, regs: &Gprs) {
    for (register, value) in [
        (Gpr::Rdx, regs.rdx),
        (Gpr::Rbx, regs.rbx),
        (Gpr::Rsi, regs.rsi),
        (Gpr::Rdi, regs.rdi),
        (Gpr::R8, regs.r8),
        (Gpr::R9, regs.r9),
        (Gpr::R10, regs.r10),
        (Gpr::R11, regs.r11),
        (Gpr::R12, regs.r12),
        (Gpr::R13, regs.r13),
        (Gpr::R14, regs.r14),
        (Gpr::R15, regs.r15),
    ] {
        vcpu.set_gpr(register, value);
    }
}
