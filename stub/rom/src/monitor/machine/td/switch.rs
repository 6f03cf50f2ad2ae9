//! The world switch into a TD, and its permission map for ports.
#![expect(unsafe_code, reason = "switches into a TD")]

use core::mem::offset_of;

use spin::Once;

use super::Td;
use crate::memory::{self, PAGE};
use crate::monitor::switch::through_guest;

impl Td {
    /// Enters the guest. Returns at its next SVM exit.
    pub(super) fn enter(&mut self) {
        // SAFETY: this processor is in SVM with GIF clear and has a host save area. The VMCB's nested tables map
        // nothing of the monitor's, and it intercepts everything that acts on the machine instead of the guest. The
        // address of the XMM registers was set when the vCPU's state was loaded, and its pages can't be removed while
        // it runs.
        unsafe { switch(self) }
        self.vmcb.tlb_control = 0;
        self.gprs.0[0] = self.vmcb.save.rax;
        self.gprs.0[4] = self.vmcb.save.rsp;
    }
}

/// Allocates a permission map by which every access to a port exits.
pub fn io_bitmap() -> u64 {
    const PAGES: usize = 3;
    static MAP: Once<u64> = Once::new();
    *MAP.call_once(|| {
        let address = memory::pages(PAGES).address();
        // SAFETY: pages of the monitor's own, without other references yet.
        unsafe { core::slice::from_raw_parts_mut(address as *mut u8, PAGES * PAGE) }.fill(0xFF);
        address
    })
}

/// Loads the guest's registers, enters it, and saves them. Interrupts are enabled in between, so that one that arrives
/// makes the guest exit. GIF keeps them from the monitor.
#[unsafe(naked)]
unsafe extern "C" fn switch(td: &mut Td) {
    through_guest!(
        xmm_by: "mov",
        before: ["push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15", "push rdi"],
        enter: ["sti", "vmload rax", "vmrun rax", "vmsave rax", "cli"],
        after: ["cld", "pop rdi", "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx", "ret"],
        xmm = const offset_of!(Td, xmm),
        entered = const offset_of!(Td, entered),
    )
}
