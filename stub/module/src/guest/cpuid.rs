//! CPUID executed by a TD.

use super::Inside;
use crate::Machine;
use crate::cpuid::{EAX, EBX, ECX, EDX, LAST_BASE_LEAF, ROWS, find};
use crate::field::Structure;
use crate::vcpu::{Field, Gpr, Held, fields};
use crate::vp::vmcs::{cpuid_values, features};

/// Leaves reserved for hypervisors, which no CPU has. They are never treated as out of range.
const HYPERVISOR_LEAVES: core::ops::RangeInclusive<u32> = 0x4000_0000..=0x4FFF_FFFF;
/// The first extended leaf.
const FIRST_EXTENDED_LEAF: u32 = 0x8000_0000;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;
/// CPUID(7).EBX: HLE and RTM.
const TSX: u32 = 1 << 4 | 1 << 11;
/// IA32_TSX_CTRL.TSX_CPUID_CLEAR.
const TSX_CPUID_CLEAR: u64 = 1 << 1;

impl<M: Machine> Inside<'_, M> {
    /// Emulates CPUID, or raises #VE for a leaf that the module does not emulate or for which the guest requested #VE.
    #[inline(never)]
    pub fn cpuid(&self, reason: u32) {
        let vcpu = &self.vcpu;
        let (leaf, sub_leaf) = (vcpu.gpr(Gpr::Rax) as u32, vcpu.gpr(Gpr::Rcx) as u32);
        let beyond_base = leaf > LAST_BASE_LEAF && leaf < FIRST_EXTENDED_LEAF;
        let beyond_extended = leaf > self.cx.native().last_extended_leaf;
        let out_of_range = !HYPERVISOR_LEAVES.contains(&leaf) && (beyond_base || beyond_extended);
        let leaf = if out_of_range { LAST_BASE_LEAF } else { leaf };
        let row = find(leaf, sub_leaf).filter(|row| !ROWS[*row].faulting && !self.wants_ve(*row));
        let Some(row) = row else {
            return self.raise_ve(reason & 0xFFFF, 0, 0, 0);
        };
        let mut value = cpuid_values(&self.tdcs, row);
        let cr4 = vcpu.vmcs(Field::CR4);
        match (leaf, sub_leaf) {
            (1, _) => {
                value[EBX] = value[EBX] & 0x00FF_FFFF | (vcpu.get(fields::VCPU_INDEX) as u32) << 24;
                value[ECX] = value[ECX] & !(1 << 27) | u32::from(cr4 & CR4_OSXSAVE != 0) << 27;
            }
            (7, 0) => {
                if features(&self.tdcs).tsx && vcpu.held(Held::TsxCtrl) & TSX_CPUID_CLEAR != 0 {
                    value[EBX] &= !TSX;
                }
                value[ECX] = value[ECX] & !(1 << 4) | u32::from(cr4 & CR4_PKE != 0) << 4;
            }
            (0xD, 0) => value[EBX] = self.cx.native().standard_size(vcpu.held(Held::Xcr0)),
            (0xD, 1) => value[EBX] = self.cx.machine.td_cpuid(self.cx.lp, 0xD, 1)[EBX],
            (0x8000_0001, _) => {
                value[EDX] = value[EDX] & !(1 << 11) | u32::from(self.is_64_bit()) << 11
            }
            _ => {}
        }
        vcpu.set_gpr(Gpr::Rax, value[EAX].into());
        vcpu.set_gpr(Gpr::Rbx, value[EBX].into());
        vcpu.set_gpr(Gpr::Rcx, value[ECX].into());
        vcpu.set_gpr(Gpr::Rdx, value[EDX].into());
    }

    /// Returns whether the guest requested #VE at its privilege level, for this row or for all.
    fn wants_ve(&self, row: usize) -> bool {
        let vcpu = &self.vcpu;
        let control = vcpu.get(fields::CPUID_CONTROL.at(row as u32));
        if self.privilege() == 0 {
            vcpu.get(fields::CPUID_SUPERVISOR_VE) != 0 || control & 1 != 0
        } else {
            vcpu.get(fields::CPUID_USER_VE) != 0 || control & 2 != 0
        }
    }
}
