//! The one runtime service of the UEFI firmware that the hypervisor calls: SetVariable.
//!
//! The firmware was never told of another address map, so its code runs at physical addresses, in an address space of
//! its own, on a stack of its own, with interrupts disabled. The upper half of that space is the host's: exceptions and
//! NMIs are handled as ever, and arguments may be anywhere in the host's memory.
//!
//! Firmware is not trusted to work: a fault in it ends the call. The services are not re-entrant: [`Busy`](Error::Busy)
//! is the answer while a call is on the way, which lasts for ever if the machine crashed in it.
//!
//! Source: UEFI Specification 2.10, sections 2.3.4 (x64 platforms) and 8.2 (SetVariable).
#![expect(
    unsafe_code,
    reason = "the firmware's code is entered at an address, with other page tables and another stack"
)]

use alloc::{string::String, vec::Vec};
use core::{
    arch::naked_asm,
    cell::UnsafeCell,
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use boot::{
    BootInfo,
    keep::{Runtime, VENDOR},
    paging::Access,
};
use spin::Once;
use x86_64::registers::control::{Cr4, Cr4Flags};

use crate::{
    exception::Frame,
    memory::{self, FirmwareTables},
};

/// The reason why a variable was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The firmware's services can't be called.
    Unavailable,
    /// A call is on the way.
    Busy,
    /// The firmware's code faulted. It is not called again.
    Faulted,
    /// The firmware's status (EFI_STATUS).
    Status(u64),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ERROR: u64 = 1 << 63;
        match self {
            Self::Unavailable => write!(f, "its services can't be called"),
            Self::Busy => write!(f, "a call of its services does not end"),
            Self::Faulted => write!(f, "its code faulted"),
            Self::Status(status) if *status == ERROR | 9 => write!(f, "it has no space left"),
            Self::Status(status) if *status == ERROR | 8 => {
                write!(f, "its variables are write-protected")
            }
            Self::Status(status) => write!(f, "it reports status {status:#x}"),
        }
    }
}

/// The firmware's answer that there is no such variable.
const NOT_FOUND: u64 = 1 << 63 | 14;

struct Services {
    tables: FirmwareTables,
    set_variable: u64,
    /// The memory that its code may be in.
    code: Vec<(u64, u64)>,
}

static SERVICES: Once<Services> = Once::new();
static BUSY: AtomicBool = AtomicBool::new(false);
/// True if a fault in the firmware's code is fatal.
static FATAL: AtomicBool = AtomicBool::new(false);
/// The caller's stack pointer during a call, else 0.
static CALLER: AtomicU64 = AtomicU64::new(0);

/// Size in bytes of the stack of the firmware's code. The specification asks for 8 KiB.
const STACK: usize = 64 << 10;

#[repr(align(4096))]
struct Stack(UnsafeCell<[u8; STACK]>);

// SAFETY: only the one CPU that set `BUSY` uses it.
unsafe impl Sync for Stack {}

static FIRMWARE_STACK: Stack = Stack(UnsafeCell::new([0; STACK]));

/// Prepares calls. Returns the problem, if any; a firmware that offers no service is none.
pub fn init(info: &BootInfo) -> Option<String> {
    let runtime = info.keep.runtime.as_ref()?;
    let tables = match memory::firmware_tables(&ranges(info, runtime)) {
        Ok(tables) => tables,
        Err(e) => {
            let sentence =
                "crashes are not kept in the firmware's variables: its memory can't be mapped";
            return Some(alloc::format!("{sentence}: {e}"));
        }
    };
    log::debug!(
        "the firmware's SetVariable is at {:#x}",
        runtime.set_variable
    );
    let memory = runtime.regions.iter().filter(|r| r.is_memory);
    SERVICES.call_once(|| Services {
        tables,
        set_variable: runtime.set_variable,
        code: memory.map(|r| (r.start, r.end)).collect(),
    });
    None
}

/// Returns what the address space of the firmware's code has in its lower half: its own regions, and the host's image
/// and first heap, which interrupt handlers need.
fn ranges(info: &BootInfo, runtime: &Runtime) -> Vec<(u64, u64, Access)> {
    let firmware = runtime.regions.iter().map(|r| {
        let access = if r.is_memory {
            Access::Firmware
        } else {
            Access::Device
        };
        (r.start, r.end, access)
    });
    let host = [info.image, info.heap];
    let host = host.map(|(start, end)| (start / 4096 * 4096, end.next_multiple_of(4096)));
    let host = host.map(|(start, end)| (start, end, Access::Firmware));
    firmware.chain(host).collect()
}

/// Returns true if the firmware's service can be called.
#[must_use]
pub fn is_available() -> bool {
    SERVICES.is_completed()
}

/// Sets a variable of this program's own that outlives a reset, or removes it if `value` is empty. `name` ends with a
/// zero. Removing a variable that does not exist succeeds.
///
/// # Errors
/// [`Error`].
pub fn set_variable(name: &[u16], value: &[u8]) -> Result<(), Error> {
    /// Non-volatile, accessible during boot, accessible at run time.
    const ATTRIBUTES: u64 = 7;
    let services = SERVICES.get().ok_or(Error::Unavailable)?;
    debug_assert_eq!(name.last(), Some(&0));
    if BUSY.swap(true, Relaxed) {
        return Err(Error::Busy);
    }
    services.tables.update();
    let call = Call {
        cr3: services.tables.cr3,
        stack: FIRMWARE_STACK.0.get() as u64 + STACK as u64,
        function: services.set_variable,
        arguments: [
            name.as_ptr() as u64,
            VENDOR.as_ptr() as u64,
            ATTRIBUTES,
            value.len() as u64,
            value.as_ptr() as u64,
        ],
    };
    let status = x86_64::instructions::interrupts::without_interrupts(|| {
        // SAFETY: the tables map the firmware's code and data, this program, and the arguments; interrupts are off;
        // nothing else uses the stack. The firmware's function takes these arguments.
        let status = unsafe { enter(&call) };
        CALLER.store(0, Relaxed);
        flush();
        status
    });
    if status == FAULTED {
        // Its locks and its flash may be in any state: it stays busy.
        return Err(Error::Faulted);
    }
    BUSY.store(false, Relaxed);
    match status {
        0 => Ok(()),
        NOT_FOUND if value.is_empty() => Ok(()),
        status => Err(Error::Status(status)),
    }
}

/// Lets a fault in the firmware's code be reported as any other from now on. The report of a crash needs it: the fault's
/// handler may use the stack that the report runs on, so that there is no way back.
pub fn let_faults_be_fatal() {
    FATAL.store(true, Relaxed);
}

/// Ends a call whose code faulted, if `frame` is such a fault: the interrupted code continues after the call.
pub fn recover_from(frame: &mut Frame) -> bool {
    let is_firmware = SERVICES.get().is_some_and(|services| {
        let inside = |&(start, end): &(u64, u64)| (start..end).contains(&frame.rip);
        !FATAL.load(Relaxed) && CALLER.load(Relaxed) != 0 && services.code.iter().any(inside)
    });
    if is_firmware {
        const INTERRUPTS: u64 = 1 << 9;
        frame.rip = leave as *const () as u64;
        frame.rflags &= !INTERRUPTS;
        frame.rax = FAULTED;
    }
    is_firmware
}

/// Forgets the firmware's translations, which are global.
fn flush() {
    let cr4 = Cr4::read();
    // SAFETY: global pages are switched off and on again, which flushes the TLB and changes nothing else.
    unsafe {
        Cr4::write(cr4 - Cr4Flags::PAGE_GLOBAL);
        Cr4::write(cr4);
    }
}

/// Takes the place of a status if the firmware's code faulted. No EFI_STATUS has all bits set.
const FAULTED: u64 = u64::MAX;

/// A call of a firmware function of five arguments.
#[repr(C)]
struct Call {
    cr3: u64,
    stack: u64,
    function: u64,
    arguments: [u64; 5],
}

/// Calls a function of the firmware by its calling convention (Microsoft's for x64). Returns its status.
///
/// # Safety
/// The address space must map the function and all that it uses, the stack must be free, interrupts must be disabled.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(call: &Call) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov rax, cr3",
        "push rax",
        "mov [rip + {caller}], rsp",
        "mov rbx, rdi",
        "mov rax, [rbx]",
        "mov cr3, rax",
        "mov rsp, [rbx + 8]",
        // 32 bytes for the callee, the fifth argument, and the alignment.
        "sub rsp, 48",
        "mov rcx, [rbx + 24]",
        "mov rdx, [rbx + 32]",
        "mov r8, [rbx + 40]",
        "mov r9, [rbx + 48]",
        "mov rax, [rbx + 56]",
        "mov [rsp + 32], rax",
        "cld",
        "call [rbx + 16]",
        "jmp {leave}",
        caller = sym CALLER,
        leave = sym leave,
    )
}

/// Returns from [`enter`] with the status in RAX, whatever the other registers hold.
#[unsafe(naked)]
unsafe extern "sysv64" fn leave() {
    naked_asm!(
        "cli",
        "cld",
        "mov rsp, [rip + {caller}]",
        "pop rdx",
        "mov cr3, rdx",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        caller = sym CALLER,
    )
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn without_services_nothing_is_called() {
        assert!(!is_available());
        assert_eq!(set_variable(&[0], &[]), Err(Error::Unavailable));
        let mut frame = Frame {
            rip: 0x1000,
            ..Frame::default()
        };
        assert!(!recover_from(&mut frame));
        assert_eq!(frame.rip, 0x1000);
    }

    #[test]
    fn statuses_that_an_operator_can_act_on_have_words() {
        assert_eq!(
            Error::Status(1 << 63 | 9).to_string(),
            "it has no space left"
        );
        assert_eq!(Error::Status(3).to_string(), "it reports status 0x3");
    }
}
