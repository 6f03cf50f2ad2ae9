//! The world switch into a TD, and what it has to hand.
#![expect(unsafe_code, reason = "world switch")]

use core::arch::naked_asm;
use core::mem::offset_of;

use spin::Once;

use super::Td;
use crate::memory::{self, PAGE};

impl Td {
    /// Enters the guest; returns at its next SVM exit.
    pub(super) fn enter(&mut self) {
        // SAFETY: this processor is in SVM with GIF clear and has a host save area. The VMCB's nested tables map nothing
        // of the monitor's, and it intercepts everything that acts on the machine instead of the guest.
        unsafe { switch(self) }
        self.vmcb.tlb_control = 0;
        self.gprs.0[0] = self.vmcb.save.rax;
        self.gprs.0[4] = self.vmcb.save.rsp;
    }
}

/// A permission map by which every access to a port exits.
pub fn io_bitmap() -> u64 {
    const PAGES: usize = 3;
    static MAP: Once<u64> = Once::new();
    *MAP.call_once(|| {
        let address = memory::pages(PAGES).address();
        // SAFETY: pages of the monitor's own, to which nobody else refers yet.
        unsafe { core::slice::from_raw_parts_mut(address as *mut u8, PAGES * PAGE) }.fill(0xFF);
        address
    })
}

/// Loads the guest's registers, enters it, and saves them. Interrupts are enabled for the time in between, so that one that
/// comes makes the guest exit; GIF keeps them from the monitor.
#[unsafe(naked)]
unsafe extern "C" fn switch(td: &mut Td) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "movups xmm0, [rdi + {xmm} + 0x00]",
        "movups xmm1, [rdi + {xmm} + 0x10]",
        "movups xmm2, [rdi + {xmm} + 0x20]",
        "movups xmm3, [rdi + {xmm} + 0x30]",
        "movups xmm4, [rdi + {xmm} + 0x40]",
        "movups xmm5, [rdi + {xmm} + 0x50]",
        "movups xmm6, [rdi + {xmm} + 0x60]",
        "movups xmm7, [rdi + {xmm} + 0x70]",
        "movups xmm8, [rdi + {xmm} + 0x80]",
        "movups xmm9, [rdi + {xmm} + 0x90]",
        "movups xmm10, [rdi + {xmm} + 0xA0]",
        "movups xmm11, [rdi + {xmm} + 0xB0]",
        "movups xmm12, [rdi + {xmm} + 0xC0]",
        "movups xmm13, [rdi + {xmm} + 0xD0]",
        "movups xmm14, [rdi + {xmm} + 0xE0]",
        "movups xmm15, [rdi + {xmm} + 0xF0]",
        "mov rcx, [rdi + 1*8]",
        "mov rdx, [rdi + 2*8]",
        "mov rbx, [rdi + 3*8]",
        "mov rbp, [rdi + 5*8]",
        "mov rsi, [rdi + 6*8]",
        "mov r8, [rdi + 8*8]",
        "mov r9, [rdi + 9*8]",
        "mov r10, [rdi + 10*8]",
        "mov r11, [rdi + 11*8]",
        "mov r12, [rdi + 12*8]",
        "mov r13, [rdi + 13*8]",
        "mov r14, [rdi + 14*8]",
        "mov r15, [rdi + 15*8]",
        "mov rax, [rdi + {entered}]",
        "mov rdi, [rdi + 7*8]",
        "sti",
        "vmload rax",
        "vmrun rax",
        "vmsave rax",
        "cli",
        "mov rax, [rsp]",
        "mov [rax + 1*8], rcx",
        "mov [rax + 2*8], rdx",
        "mov [rax + 3*8], rbx",
        "mov [rax + 5*8], rbp",
        "mov [rax + 6*8], rsi",
        "mov [rax + 7*8], rdi",
        "mov [rax + 8*8], r8",
        "mov [rax + 9*8], r9",
        "mov [rax + 10*8], r10",
        "mov [rax + 11*8], r11",
        "mov [rax + 12*8], r12",
        "mov [rax + 13*8], r13",
        "mov [rax + 14*8], r14",
        "mov [rax + 15*8], r15",
        "movups [rax + {xmm} + 0x00], xmm0",
        "movups [rax + {xmm} + 0x10], xmm1",
        "movups [rax + {xmm} + 0x20], xmm2",
        "movups [rax + {xmm} + 0x30], xmm3",
        "movups [rax + {xmm} + 0x40], xmm4",
        "movups [rax + {xmm} + 0x50], xmm5",
        "movups [rax + {xmm} + 0x60], xmm6",
        "movups [rax + {xmm} + 0x70], xmm7",
        "movups [rax + {xmm} + 0x80], xmm8",
        "movups [rax + {xmm} + 0x90], xmm9",
        "movups [rax + {xmm} + 0xA0], xmm10",
        "movups [rax + {xmm} + 0xB0], xmm11",
        "movups [rax + {xmm} + 0xC0], xmm12",
        "movups [rax + {xmm} + 0xD0], xmm13",
        "movups [rax + {xmm} + 0xE0], xmm14",
        "movups [rax + {xmm} + 0xF0], xmm15",
        "cld",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        xmm = const offset_of!(Td, xmm),
        entered = const offset_of!(Td, entered),
    )
}
