//! A guest that does what a list says, and notes what it was answered.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use seam::abi::x86::{efer, exit_reason};
use seam::abi::{Gprs, GuestLeaf};
use stub_module::host::{Exit, Guest, HostMachine};
use stub_module::vcpu::{Field, Gpr, Vcpu};

use super::OUT_OF_LINES;

/// Which registers a guest shows to the host: RDX, RBX, RSI, RDI, R8 to R15.
pub const MASK: u64 = 0xFFCC;

/// One thing that the guest does.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// TDG.VP.VMCALL with these registers.
    Call(Gprs),
    /// Another TDCALL: RAX, RCX.
    Tdcall(u64, u64),
    /// Touches an address.
    Touch(u64),
    /// Is interrupted by the host's interrupt of this vector.
    Interrupted(u8),
    /// Any other VM exit.
    Exit(Exit),
}

/// TDG.MEM.PAGE.ACCEPT of the 4 KiB page at an address; plus 1 for 2 MiB.
pub const fn accept(gpa_and_level: u64) -> Act {
    Act::Tdcall(GuestLeaf::MemPageAccept.rax(), gpa_and_level)
}

/// The registers of a call: sub-function in R11, operands in R12 to R15.
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

/// What the guest found after an act.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// Its registers after a call.
    Regs(Gprs),
}

impl Answer {
    pub const fn regs(self) -> Gprs {
        let Self::Regs(regs) = self;
        regs
    }
}

/// The list.
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

    /// Who plays it.
    pub fn player(&self) -> Box<dyn Guest> {
        Box::new(Player(self.clone()))
    }

    /// What was answered so far, in order.
    pub fn answers(&self) -> Vec<Answer> {
        self.0.lock().unwrap().answers.clone()
    }

    /// Acts that are still to come.
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
                // The module went to the host in the middle of it, and has changed nothing: the instruction is executed
                // again.
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
            // The instruction has not been executed.
            vcpu.set_vmcs(Field::RIP, rip);
        }
    }
}

/// A TDCALL by 64-bit code.
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
