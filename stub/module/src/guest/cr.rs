//! Writes of a TD to control registers and XCR0.

use seam::abi::{Attributes, TdCtls};

use super::{Category, Inside, VeInfo, reason};
use crate::Machine;
use crate::cpuid::Msrs;
use crate::field::Structure;
use crate::vcpu::{Field, Gpr, Held, fields};

const PE: u64 = 1 << 0;
const NE: u64 = 1 << 5;
const WP: u64 = 1 << 16;
const NW: u64 = 1 << 29;
const CD: u64 = 1 << 30;
const PG: u64 = 1 << 31;
/// CR0 bits that MOV ignores: 28:19, 17, 15:6.
const CR0_IGNORED: u64 = 0x1FFA_FFC0;
/// Reserved CR0 bits.
const CR0_RESERVED: u64 = 0xFFFF_FFFF << 32;
/// CR0 bits that LMSW writes: MP, EM, TS.
const LMSW_BITS: u64 = 0xE;
const MCE: u64 = 1 << 6;
const VMXE: u64 = 1 << 13;
const KL: u64 = 1 << 19;
const PKE: u64 = 1 << 22;
const CET: u64 = 1 << 23;
const PKS: u64 = 1 << 24;
const UINTR: u64 = 1 << 25;
/// XFAM bits.
const XFAM_PK: u64 = 1 << 9;
const XFAM_CET: u64 = 3 << 11;
const XFAM_UINTR: u64 = 1 << 14;

/// The outcome of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The register gets this value.
    Write(u64),
    /// #GP(0).
    Gp,
    /// #VE.
    Ve,
}

/// Decides a MOV to CR0 by the values that the CPU allows and the current CR0 and CR4.
fn judge_cr0(value: u64, msrs: &Msrs, cr0: u64, cr4: u64) -> Verdict {
    let required = msrs.cr0_fixed0 & !(PE | PG);
    let illegal = !value & required != 0 || value & !msrs.cr0_fixed1 != 0;
    if illegal || value & (PE | PG) == PG || cr4 & CET != 0 && value & WP == 0 {
        Verdict::Gp
    } else if value & (PE | NE) != PE | NE || value & (NW | CD | CR0_RESERVED) != 0 {
        Verdict::Ve
    } else {
        Verdict::Write(value & !CR0_IGNORED | cr0 & CR0_IGNORED)
    }
}

/// Decides a MOV to CR4. It exits only if it changes bits that the guest does not own, and all such changes are
/// refused.
fn judge_cr4(value: u64, msrs: &Msrs, cr0: u64, xfam: u64, attributes: u64) -> Verdict {
    let illegal = !value & msrs.cr4_fixed0 & !VMXE != 0 || value & !msrs.cr4_fixed1 != 0;
    let without = |bits: u64, allowed: bool| value & bits != 0 && !allowed;
    let not_configured = without(PKE, xfam & XFAM_PK != 0)
        || without(CET, xfam & XFAM_CET == XFAM_CET)
        || without(UINTR, xfam & XFAM_UINTR != 0)
        || without(KL, false)
        || without(PKS, attributes & Attributes::PKS.bits() != 0);
    if illegal || not_configured || value & CET != 0 && cr0 & WP == 0 {
        Verdict::Gp
    } else {
        Verdict::Ve
    }
}

/// Returns whether a guest may load XCR0 with this value: bits enabled by XFAM, and no half of a pair.
fn accepts_xcr0(value: u64, allowed: u64) -> bool {
    let has = |bit: u32| value >> bit & 1 != 0;
    value & !allowed == 0
        && has(0)
        && (!has(2) || has(1))
        && (!has(5) || has(2))
        && has(5) == has(6)
        && has(5) == has(7)
        && has(17) == has(18)
}

impl<M: Machine> Inside<'_, M> {
    /// Handles a CR access. Returns false if only a debugger can have caused it.
    #[inline(never)]
    pub fn cr_access(&self, qualification: u64) -> bool {
        const MOV_TO_CR: u64 = 0;
        const LMSW: u64 = 3;
        let vcpu = &self.vcpu;
        let (number, access) = (qualification & 0xF, qualification >> 4 & 3);
        if access == LMSW {
            let source = qualification >> 16 & 0xFFFF;
            let cr0 = vcpu.vmcs(Field::CR0);
            vcpu.set_vmcs(Field::CR0, source & LMSW_BITS | cr0 & !LMSW_BITS);
            return true;
        }
        if access != MOV_TO_CR {
            return false;
        }
        let value = vcpu.gpr(Gpr::ALL[(qualification >> 8 & 0xF) as usize]);
        let msrs = &self.cx.native().msrs;
        let (cr0, cr4) = (vcpu.vmcs(Field::CR0), vcpu.vmcs(Field::CR4));
        let verdict = match number {
            0 => judge_cr0(value, msrs, cr0, cr4),
            4 => {
                let attributes = self.tdcs.get(crate::td::tdcs::field::ATTRIBUTES);
                let verdict = judge_cr4(value, msrs, cr0, vcpu.get(fields::XFAM), attributes);
                if verdict == Verdict::Ve && self.has_control(TdCtls::REDUCE_VE) {
                    self.write_virtual_mce(value);
                    return true;
                }
                if verdict == Verdict::Ve && value & MCE == 0 {
                    self.raise_ve_for(
                        Category::Configurable,
                        VeInfo {
                            reason: reason::CR_ACCESS,
                            qualification,
                            gpa: 0,
                            gla: 0,
                        },
                    );
                    return true;
                }
                verdict
            }
            _ => return false,
        };
        match verdict {
            Verdict::Write(value) => vcpu.set_vmcs(Field::CR0, value),
            Verdict::Gp => self.raise_gp(),
            Verdict::Ve => {
                self.raise_ve_for(
                    Category::Unsupported,
                    VeInfo {
                        reason: reason::CR_ACCESS,
                        qualification,
                        gpa: 0,
                        gla: 0,
                    },
                );
            }
        }
        true
    }

    /// Writes the only bit of CR4 that a guest with fewer #VEs has in name only.
    fn write_virtual_mce(&self, value: u64) {
        let vcpu = &self.vcpu;
        let shadow = vcpu.vmcs(Field::CR4_SHADOW);
        if value & MCE != 0 && shadow & MCE == 0 && !self.features().mce {
            return self.raise_gp();
        }
        vcpu.set_vmcs(Field::CR4_SHADOW, shadow & !MCE | value & MCE);
    }

    /// Handles XSETBV.
    #[inline(never)]
    pub fn xsetbv(&self) {
        let vcpu = &self.vcpu;
        let value = vcpu.gpr(Gpr::Rdx) << 32 | vcpu.gpr(Gpr::Rax) & 0xFFFF_FFFF;
        let allowed = self.cx.native().xcr0 & vcpu.get(fields::XFAM);
        if vcpu.gpr(Gpr::Rcx) as u32 != 0 || !accepts_xcr0(value, allowed) {
            self.raise_gp();
        } else {
            vcpu.set_held(Held::Xcr0, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msrs() -> Msrs {
        Msrs {
            cr0_fixed0: 0x8000_0021,
            cr0_fixed1: 0xFFFF_FFFF,
            cr4_fixed0: 0x2000,
            cr4_fixed1: 0x03F7_7FFF,
            ..Msrs::default()
        }
    }

    #[test]
    fn cr0_without_protection_or_with_caches_off_raises_ve() {
        let judge = |value| judge_cr0(value, &msrs(), 0x21, 0);
        assert_eq!(judge(NE), Verdict::Ve);
        assert_eq!(judge(PE | NE | CD), Verdict::Ve);
        assert_eq!(judge(PE | NE | PG | WP), Verdict::Write(PE | NE | PG | WP));
        assert_eq!(judge(NE | PG), Verdict::Gp);
        assert_eq!(judge(PE), Verdict::Gp);
    }

    #[test]
    fn cr4_bits_that_the_td_was_not_given_are_illegal() {
        let judge = |value, xfam| judge_cr4(value, &msrs(), WP, xfam, 0);
        assert_eq!(judge(PKE, 0), Verdict::Gp);
        assert_eq!(judge(PKE, XFAM_PK), Verdict::Ve);
        assert_eq!(judge(KL, !0), Verdict::Gp);
        assert_eq!(judge(0, 0), Verdict::Ve);
    }

    #[test]
    fn xcr0_keeps_pairs_together_and_within_xfam() {
        assert!(accepts_xcr0(0xE7, 0xE7));
        assert!(!accepts_xcr0(0x27, 0xE7));
        assert!(!accepts_xcr0(0x6, 0xE7));
        assert!(!accepts_xcr0(0x7, 0x3));
    }
}
