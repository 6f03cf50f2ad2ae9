//! CPUID executed by a TD.

use seam::abi::{Features0, TdCtls};

use super::{Category, Inside, VeInfo};
use crate::cpuid::{
    EAX, EBX, ECX, EDX, Features, LAST_BASE_LEAF, NUM_CACHES, Registers, is_fixed0,
};
use crate::field::Structure;
use crate::td::tdcs;
use crate::vcpu::{Field, Gpr, Held, fields};
use crate::vp::vmcs::cpuid_values;
use crate::{Change, Machine};

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

/// Returns a register with a bit set or cleared.
const fn with_bit(register: u32, bit: u32, set: bool) -> u32 {
    register & !(1 << bit) | (set as u32) << bit
}

impl<M: Machine> Inside<'_, M> {
    /// Emulates CPUID, or raises #VE for a leaf that the module does not emulate or for which the guest requested #VE.
    #[inline(never)]
    pub fn cpuid(&self, reason: u32) {
        let vcpu = &self.vcpu;
        let (leaf, sub_leaf) = (vcpu.gpr(Gpr::Rax) as u32, vcpu.gpr(Gpr::Rcx) as u32);
        let refuse = |category| self.raise_ve_for(category, VeInfo::of(reason & 0xFFFF));
        if HYPERVISOR_LEAVES.contains(&leaf) {
            return refuse(Category::Paravirtual);
        }
        let beyond_base = leaf > LAST_BASE_LEAF && leaf < FIRST_EXTENDED_LEAF;
        let beyond_extended = leaf > self.cx.native().last_extended_leaf;
        let leaf = if beyond_base || beyond_extended {
            LAST_BASE_LEAF
        } else {
            leaf
        };
        let Some(value) = self.cpuid_value(leaf, sub_leaf) else {
            return refuse(Category::Configurable);
        };
        vcpu.set_gpr(Gpr::Rax, value[EAX].into());
        vcpu.set_gpr(Gpr::Rbx, value[EBX].into());
        vcpu.set_gpr(Gpr::Rcx, value[ECX].into());
        vcpu.set_gpr(Gpr::Rdx, value[EDX].into());
    }

    /// Returns the value of a leaf, or `None` if it raises #VE.
    fn cpuid_value(&self, leaf: u32, sub_leaf: u32) -> Option<Registers> {
        let table = self.cx.native().table;
        match table.find(leaf, sub_leaf) {
            Some(row) if table.rows[row].faulting || self.wants_ve(Some(row)) => None,
            Some(row) => self.known_cpuid(leaf, sub_leaf, cpuid_values(&self.tdcs, row)),
            None if self.wants_ve(None) => None,
            None => self.unknown_cpuid(leaf, sub_leaf),
        }
    }

    /// Returns the value of a leaf or sub-leaf that is not in the table.
    fn unknown_cpuid(&self, leaf: u32, sub_leaf: u32) -> Option<Registers> {
        let release = self.cx.module.release;
        if release.does(Change::MORE_CPUID) && is_fixed0(leaf) {
            return self.known_cpuid(leaf, sub_leaf, [0; 4]);
        }
        if !self.has_control(TdCtls::REDUCE_VE) {
            return None;
        }
        Some(match leaf {
            0xB | 0x1F => [0, 0, sub_leaf & 0xFF, self.x2apic_id()],
            _ => [0; 4],
        })
    }

    /// Adapts the configured value of a leaf to the guest's state and to its choices.
    #[inline(always)]
    fn known_cpuid(&self, leaf: u32, sub_leaf: u32, configured: Registers) -> Option<Registers> {
        let vcpu = &self.vcpu;
        let mut value = configured;
        let cr4 = vcpu.vmcs(Field::CR4);
        match (leaf, sub_leaf) {
            (1, _) => {
                let id = if self.has_control(TdCtls::ENUM_TOPOLOGY) {
                    self.x2apic_id()
                } else {
                    vcpu.get(fields::VCPU_INDEX) as u32
                };
                value[EBX] = value[EBX] & 0x00FF_FFFF | id << 24;
                value[ECX] = with_bit(value[ECX], 27, cr4 & CR4_OSXSAVE != 0);
                if self.cx.module.release.has(Features0::VE_REDUCTION) {
                    show_version_features(&mut value, self.features());
                }
            }
            (2, _) if !self.has_control(TdCtls::VIRT_CPUID2) => return None,
            (4, cache) if self.has_control(TdCtls::REDUCE_VE) && cache < NUM_CACHES as u32 => {
                value = self.native_cache(cache, value[EAX]);
            }
            (6 | 0xC | 0x16 | 0x17 | 0x8000_0002..=0x8000_0005, _) => {
                return self.has_control(TdCtls::REDUCE_VE).then_some(value);
            }
            (9 | 0xF | 0x10 | 0x1B, _) => {
                let features = self.features();
                let has = match leaf {
                    9 => features.dca,
                    0xF => features.rdt_m,
                    0x10 => features.rdt_a,
                    _ => features.mktme,
                };
                return (self.has_control(TdCtls::REDUCE_VE) && !has).then_some(value);
            }
            (7, 0) => {
                let features = self.features();
                if features.tsx && vcpu.held(Held::TsxCtrl) & TSX_CPUID_CLEAR != 0 {
                    value[EBX] &= !TSX;
                }
                value[ECX] = with_bit(value[ECX], 4, cr4 & CR4_PKE != 0);
                if self.cx.module.release.has(Features0::VE_REDUCTION) {
                    show_extended_features(&mut value, features);
                }
            }
            (0xB | 0x1F, _) => {
                if !self.has_control(TdCtls::ENUM_TOPOLOGY) {
                    return None;
                }
                value[EDX] = self.x2apic_id();
            }
            (0xD, 0) => value[EBX] = self.cx.native().standard_size(vcpu.held(Held::Xcr0)),
            (0xD, 1) => value[EBX] = self.cx.machine.td_cpuid(self.cx.lp, 0xD, 1)[EBX],
            (0x8000_0001, _) => value[EDX] = with_bit(value[EDX], 11, self.is_64_bit()),
            _ => {}
        }
        Some(value)
    }

    /// Returns CPUID(4) of the CPU, except for what the host configures: the processors that share the cache, and the
    /// cores of the package.
    fn native_cache(&self, cache: u32, configured: u32) -> Registers {
        const CONFIGURED: u32 = 0xFFF << 14 | 0x3F << 26;
        let field = |register| tdcs::field::CPUID4_NATIVE_VALUES.at(4 * cache + register);
        let mut value = [0, 1, 2, 3].map(|register| self.tdcs.get(field(register)) as u32);
        value[EAX] = value[EAX] & !CONFIGURED | configured & CONFIGURED;
        value
    }

    /// Returns whether the guest requested #VE at its privilege level, for this row or for all.
    fn wants_ve(&self, row: Option<usize>) -> bool {
        let vcpu = &self.vcpu;
        let control = row.map_or(0, |row| vcpu.get(fields::CPUID_CONTROL.at(row as u32)));
        if self.privilege() == 0 {
            vcpu.get(fields::CPUID_SUPERVISOR_VE) != 0 || control & 1 != 0
        } else {
            vcpu.get(fields::CPUID_USER_VE) != 0 || control & 2 != 0
        }
    }
}

/// Shows the features of leaf 1 that the guest has, which depends on whether it reduced #VE.
fn show_version_features(value: &mut Registers, features: Features) {
    for (register, bit, has) in [
        (ECX, 7, features.est),
        (ECX, 8, features.tm2),
        (ECX, 18, features.dca),
        (ECX, 24, features.tsc_deadline),
        (EDX, 7, features.mce),
        (EDX, 12, features.mtrr),
        (EDX, 14, features.mca),
        (EDX, 22, features.acpi),
    ] {
        value[register] = with_bit(value[register], bit, has);
    }
}

/// Shows the features of leaf 7 that the guest has, which depends on whether it reduced #VE.
fn show_extended_features(value: &mut Registers, features: Features) {
    for (register, bit, has) in [
        (EBX, 12, features.rdt_m),
        (EBX, 15, features.rdt_a),
        (ECX, 13, features.tme),
        (EDX, 18, features.mktme),
        (EDX, 30, features.core_capabilities),
    ] {
        value[register] = with_bit(value[register], bit, has);
    }
}
