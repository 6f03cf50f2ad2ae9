//! The #VE handler's emulation of instructions outside attempts, as in a small operating system.
//!
//! Source of exit reasons and qualifications: Intel SDM volume 3D, appendix C, and volume 3C, section 28.2.1.

pub use seam::abi::x86::exit_reason as reason;
use seam::abi::x86::rflags;

use crate::tdcall::VeInfo;
use crate::trap::Frame;
use crate::{memory, vmcall};

/// Emulates the interrupted instruction and continues behind it, or before it if memory was missing.
///
/// # Errors
/// The reason why that is not possible.
pub(crate) fn serve(info: &VeInfo, frame: &mut Frame) -> Result<(), &'static str> {
    let refused = |_| "was refused by the host";
    match info.reason {
        reason::CPUID => {
            let [a, b, c, d] =
                vmcall::cpuid(frame.rax as u32, frame.rcx as u32).map_err(refused)?;
            (frame.rax, frame.rbx) = (a.into(), b.into());
            (frame.rcx, frame.rdx) = (c.into(), d.into());
        }
        reason::HLT => vmcall::hlt(frame.rflags & rflags::IF == 0).map_err(refused)?,
        reason::IO => port(info.qualification, frame)?,
        reason::RDMSR => {
            let value = vmcall::rdmsr(frame.rcx as u32).map_err(refused)?;
            (frame.rax, frame.rdx) = (value & 0xFFFF_FFFF, value >> 32);
        }
        reason::WRMSR => {
            let value = frame.rdx << 32 | frame.rax & 0xFFFF_FFFF;
            vmcall::wrmsr(frame.rcx as u32, value).map_err(refused)?;
        }
        reason::EPT_VIOLATION => {
            return memory::accept_at(info.gpa).map_err(|_| "at memory that can't be accepted");
        }
        _ => return Err("that nobody expected"),
    }
    frame.rip += u64::from(info.length);
    Ok(())
}

/// Emulates IN and OUT. Qualification: bytes less one, direction, string, port.
fn port(qualification: u64, frame: &mut Frame) -> Result<(), &'static str> {
    let (bytes, port) = ((qualification & 7) as u8 + 1, (qualification >> 16) as u16);
    let (reads, is_string) = (qualification & 1 << 3 != 0, qualification & 1 << 4 != 0);
    if is_string {
        return Err("of a string instruction");
    }
    let refused = |_| "was refused by the host";
    if !reads {
        return vmcall::io_out(port, bytes, frame.rax as u32).map_err(refused);
    }
    let value = u64::from(vmcall::io_in(port, bytes).map_err(refused)?);
    frame.rax = match bytes {
        1 => frame.rax & !0xFF | value & 0xFF,
        2 => frame.rax & !0xFFFF | value & 0xFFFF,
        _ => value,
    };
    Ok(())
}
