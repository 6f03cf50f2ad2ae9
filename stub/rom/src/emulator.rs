//! Check that the emulator beneath can serve as a machine with VMX.
#![expect(unsafe_code, reason = "executes an instruction that may be undefined")]

use core::arch::{asm, naked_asm};

use crate::cpu::{TableRegister, interrupt_gate};
use seam::abi::x86::vector;

const VECTORS: usize = 256;

/// Returns whether VMX instructions with a memory operand raise #UD. The monitor can only intercept them through #UD.
///
/// QEMU 9.2 to 10.1.2 decode 0F C7 with such an operand as a no-op, unless it is CMPXCHG8B. Source: QEMU, issue 3172;
/// commits fcd16539ebfe ("target/i386: convert CMPXCHG8B/CMPXCHG16B to new decoder") and 4f503afc7eb5 ("target/x86:
/// Correctly handle invalid 0x0f 0xc7 0xxx insns").
pub fn leaves_vmx_undefined() -> bool {
    let mut firmware = TableRegister::default();
    let code: u16;
    // SAFETY: stores registers.
    unsafe {
        asm!("sidt [{}]", in(reg) &raw mut firmware, options(nostack));
        asm!("mov {:x}, cs", out(reg) code, options(nomem, nostack));
    }
    // Firmware's own handlers, except for #UD, in case of other exceptions.
    let mut gates = [[0u64; 2]; VECTORS];
    let count = (usize::from(firmware.limit) + 1) / size_of::<[u64; 2]>();
    let theirs = firmware.base as *const [u64; 2];
    for (at, gate) in gates.iter_mut().enumerate().take(count) {
        // SAFETY: the processor's table has this many gates, and firmware maps it.
        *gate = unsafe { theirs.add(at).read_unaligned() };
    }
    gates[usize::from(vector::UD)] = interrupt_gate(code, undefined as *const () as u64);
    let own = TableRegister {
        limit: size_of_val(&gates) as u16 - 1,
        base: gates.as_ptr() as u64,
    };
    let mut word = 0u64;
    let raised: u64;
    // SAFETY: interrupts are off, and the table lives until firmware's is loaded again. VMPTRST raises #UD, whose
    // handler skips it and sets RAX; or it executes as another instruction, which has the word to write to.
    unsafe {
        asm!(
            "pushfq",
            "cli",
            "lidt [{own}]",
            // VMPTRST [RDI]
            ".byte 0x0F, 0xC7, 0x3F",
            "lidt [{firmware}]",
            "popfq",
            own = in(reg) &raw const own,
            firmware = in(reg) &raw const firmware,
            in("rdi") &raw mut word,
            inout("rax") 0u64 => raised,
        );
    }
    raised != 0
}

/// Handles #UD: skips the instruction of three bytes and sets RAX to 1.
#[unsafe(naked)]
unsafe extern "C" fn undefined() {
    naked_asm!("add qword ptr [rsp], 3", "mov eax, 1", "iretq")
}
