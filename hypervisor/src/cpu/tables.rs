//! Segments, task state and interrupt gates: the tables that the CPU reads by itself.
//!
//! Every vector has its own stack (IST): `core` is compiled with a red zone, which an interrupt on the same stack
//! would overwrite.
#![expect(
    unsafe_code,
    reason = "loading descriptor tables is how the CPU is told where they are"
)]

use core::arch::asm;

use x86_64::{
    PrivilegeLevel, VirtAddr,
    instructions::tables,
    registers::segmentation::{CS, DS, ES, SS, Segment, SegmentSelector},
    structures::{
        DescriptorTablePointer,
        gdt::{Descriptor, GlobalDescriptorTable},
        tss::TaskStateSegment,
    },
};

use super::trap;
use crate::exception::{MACHINE_CHECK, NMI};

/// Size in bytes of each interrupt stack.
pub const STACK_BYTES: u64 = 32 << 10;
/// Number of stacks per CPU that interrupts and exceptions switch to.
pub const STACKS: usize = 5;

const DOUBLE_FAULT: u8 = 8;
const FIRST_INTERRUPT: u8 = 32;

/// Returns the IST slot of a vector, 1 to [`STACKS`]. An exception in an interrupt handler, and an NMI or a machine
/// check in either, find an unused stack.
const fn stack_of(vector: u8) -> u8 {
    match vector {
        NMI => 3,
        MACHINE_CHECK => 4,
        DOUBLE_FAULT => 5,
        0..FIRST_INTERRUPT => 2,
        _ => 1,
    }
}

/// One CPU's segments and task state. It must not move.
pub struct Tables {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
}

impl Tables {
    /// Creates tables that use these stacks (their ends) for interrupts.
    #[must_use]
    pub fn new(stack_tops: [u64; STACKS]) -> Self {
        let mut tss = TaskStateSegment::new();
        tss.interrupt_stack_table =
            core::array::from_fn(|i| VirtAddr::new(stack_tops.get(i).copied().unwrap_or(0)));
        Self {
            gdt: GlobalDescriptorTable::new(),
            tss,
        }
    }

    /// Loads the tables, and the gates that all CPUs share, into this CPU. Call it once for each CPU.
    pub fn load(&'static mut self) {
        let code = self.gdt.append(Descriptor::kernel_code_segment());
        let data = self.gdt.append(Descriptor::kernel_data_segment());
        let tss = self.gdt.append(Descriptor::tss_segment(&self.tss));
        let null = SegmentSelector::new(0, PrivilegeLevel::Ring0);
        self.gdt.load();
        // SAFETY: the selectors are those of the table that was just loaded; the gates' handlers are never removed.
        unsafe {
            CS::set_reg(code);
            SS::set_reg(data);
            DS::set_reg(data);
            ES::set_reg(data);
            asm!("mov fs, {0:x}", "mov gs, {0:x}", in(reg) null.0, options(nostack, preserves_flags));
            tables::load_tss(tss);
            tables::lidt(&gates(code.0));
        }
    }
}

/// Encodes a 64-bit interrupt gate (Intel SDM volume 3A, section 7.14.1).
const fn gate(handler: u64, selector: u16, stack: u8) -> [u64; 2] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8E << 40;
    let low = handler & 0xFFFF
        | (selector as u64) << 16
        | (stack as u64) << 32
        | PRESENT_INTERRUPT_GATE
        | (handler >> 16 & 0xFFFF) << 48;
    [low, handler >> 32]
}

fn gates(code: u16) -> DescriptorTablePointer {
    static GATES: spin::Once<[[u64; 2]; 256]> = spin::Once::new();
    let gates = GATES.call_once(|| {
        core::array::from_fn(|vector| gate(trap::stub(vector as u8), code, stack_of(vector as u8)))
    });
    DescriptorTablePointer {
        limit: (size_of_val(gates) - 1) as u16,
        base: VirtAddr::from_ptr(gates),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_holds_its_handler_in_three_pieces() {
        let [low, high] = gate(0x1122_3344_5566_7788, 0x08, 3);
        assert_eq!(low, 0x5566_8E03_0008_7788);
        assert_eq!(high, 0x1122_3344);
    }

    #[test]
    fn every_vector_has_a_stack_and_the_gravest_have_their_own() {
        assert!((0..=255).all(|v| (1..=STACKS as u8).contains(&stack_of(v))));
        let grave = [NMI, MACHINE_CHECK, DOUBLE_FAULT].map(stack_of);
        for v in (0..=255u8).filter(|v| ![NMI, MACHINE_CHECK, DOUBLE_FAULT].contains(v)) {
            assert!(!grave.contains(&stack_of(v)), "vector {v}");
        }
    }
}
