//! TDG.VP.VMCALL: calls to the host.
//!
//! Source: Guest-Host-Communication Interface for Intel TDX 1.5, section 3.

use seam::abi::ghci::{self, Request};
use seam::abi::{Gprs, GuestLeaf};

use crate::tdcall;

/// The registers passed to and from the host: RBX, RDX, RSI, RDI, R8 to R15, as OVMF and Linux choose.
pub const REGISTERS: u64 = 0xFFCC;

/// The host's status (R10) if it is not success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub u64);

/// Makes a request with all registers; RCX selects those that are passed. Afterwards RAX holds the module's status and
/// R10 the host's.
pub fn raw(regs: &mut Gprs) {
    regs.rax = GuestLeaf::VpVmcall.rax();
    tdcall::raw(regs);
}

/// Makes a standard request with R12 to R15 as operands. The answer is in R11 to R15 of the registers returned.
///
/// # Errors
/// [`Refused`].
pub fn request(request: Request, [r12, r13, r14, r15]: [u64; 4]) -> Result<Gprs, Refused> {
    let mut regs = Gprs {
        rcx: REGISTERS,
        r10: 0,
        r11: request as u64,
        r12,
        r13,
        r14,
        r15,
        ..Gprs::default()
    };
    raw(&mut regs);
    match regs.r10 {
        ghci::SUCCESS => Ok(regs),
        status => Err(Refused(status)),
    }
}

/// Requests Instruction.CPUID. Returns EAX, EBX, ECX, EDX.
///
/// # Errors
/// [`Refused`].
pub fn cpuid(leaf: u32, sub_leaf: u32) -> Result<[u32; 4], Refused> {
    let regs = request(Request::Cpuid, [leaf.into(), sub_leaf.into(), 0, 0])?;
    Ok([regs.r12, regs.r13, regs.r14, regs.r15].map(|value| value as u32))
}

/// Requests Instruction.HLT, which waits for an event that wakes this vCPU.
///
/// # Errors
/// [`Refused`].
pub fn hlt(interrupts_blocked: bool) -> Result<(), Refused> {
    request(Request::Hlt, [interrupts_blocked.into(), 0, 0, 0]).map(drop)
}

/// Requests Instruction.IO: reads `bytes`, 1, 2 or 4, from a port.
///
/// # Errors
/// [`Refused`].
pub fn io_in(port: u16, bytes: u8) -> Result<u32, Refused> {
    let regs = request(Request::Io, [bytes.into(), 0, port.into(), 0])?;
    Ok(regs.r11 as u32)
}

/// Requests Instruction.IO: writes `bytes`, 1, 2 or 4, to a port.
///
/// # Errors
/// [`Refused`].
pub fn io_out(port: u16, bytes: u8, value: u32) -> Result<(), Refused> {
    request(Request::Io, [bytes.into(), 1, port.into(), value.into()]).map(drop)
}

/// Requests Instruction.RDMSR.
///
/// # Errors
/// [`Refused`].
pub fn rdmsr(msr: u32) -> Result<u64, Refused> {
    request(Request::Rdmsr, [msr.into(), 0, 0, 0]).map(|regs| regs.r11)
}

/// Requests Instruction.WRMSR.
///
/// # Errors
/// [`Refused`].
pub fn wrmsr(msr: u32, value: u64) -> Result<(), Refused> {
    request(Request::Wrmsr, [msr.into(), value, 0, 0]).map(drop)
}

/// Requests #VE.RequestMMIO: reads `bytes`, 1, 2, 4 or 8, at an address with the SHARED bit.
///
/// # Errors
/// [`Refused`].
pub fn mmio_load(gpa: u64, bytes: u8) -> Result<u64, Refused> {
    request(Request::Mmio, [bytes.into(), 0, gpa, 0]).map(|regs| regs.r11)
}

/// Requests #VE.RequestMMIO: writes `bytes`, 1, 2, 4 or 8, at an address with the SHARED bit.
///
/// # Errors
/// [`Refused`].
pub fn mmio_store(gpa: u64, bytes: u8, value: u64) -> Result<(), Refused> {
    request(Request::Mmio, [bytes.into(), 1, gpa, value]).map(drop)
}

/// Requests MapGPA for all of `bytes` at `gpa`. The SHARED bit of `gpa` selects shared or private. Repeats the call as
/// often as the host asks.
///
/// # Errors
/// [`Refused`]; also if the host asks for repetition without progress.
pub fn map_gpa(gpa: u64, bytes: u64) -> Result<(), Refused> {
    map_gpa_in_steps(gpa, bytes).map(drop)
}

/// Does the same as [`map_gpa`]. Returns how often the host asked for repetition.
///
/// # Errors
/// [`Refused`]; also if the host makes no progress at one address for very long.
pub fn map_gpa_in_steps(gpa: u64, bytes: u64) -> Result<u32, Refused> {
    /// Limit of repetitions without progress: another vCPU's conversion may be in the way, and the host may have many
    /// of them.
    const PATIENCE: u32 = 10_000;
    let end = gpa + bytes;
    let (mut at, mut steps, mut stuck) = (gpa, 0, 0);
    loop {
        let mut regs = Gprs {
            rcx: REGISTERS,
            r11: Request::MapGpa as u64,
            r12: at,
            r13: end - at,
            ..Gprs::default()
        };
        raw(&mut regs);
        match regs.r10 {
            ghci::SUCCESS => return Ok(steps),
            ghci::RETRY if (at..end).contains(&regs.r11) && stuck < PATIENCE => {
                stuck = if regs.r11 == at { stuck + 1 } else { 0 };
                at = regs.r11;
                steps += 1;
            }
            status => return Err(Refused(status)),
        }
    }
}

/// Makes the request ReportFatalError with a message of up to 64 bytes, in Linux's format. The host stops the TD.
pub fn report_fatal_error(code: u32, message: &str) -> ! {
    let mut words = [0; 8];
    for (word, bytes) in words.iter_mut().zip(message.as_bytes().chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(padded);
    }
    loop {
        let [r14, r15, rbx, rdi, rsi, r8, r9, rdx] = words;
        let mut regs = Gprs {
            rcx: REGISTERS,
            r11: Request::ReportFatalError as u64,
            r12: code.into(),
            r14,
            r15,
            rbx,
            rdi,
            rsi,
            r8,
            r9,
            rdx,
            ..Gprs::default()
        };
        raw(&mut regs);
    }
}
