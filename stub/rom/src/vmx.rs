//! VMX operation of one processor, excluding VMX non-root operation: the checks and effects of VMXON to VMWRITE.
//!
//! Source: Intel SDM volume 3, chapter "VMX Instruction Reference", and appendix B for field encodings. VMLAUNCH and
//! VMRESUME fail with "invalid control fields": the TDX module runs guests here, not the host.

use crate::personality::{MAX_PA, VMCS_REVISION};
use seam::abi::x86::{cr0, cr4};

/// Physical memory that VMX instructions access, in aligned 64-bit words.
pub trait Memory {
    /// Reads the word at `pa`.
    fn read(&self, pa: u64) -> u64;
    /// Writes the word at `pa`.
    fn write(&mut self, pa: u64, value: u64);
}

/// The outcome of a VMX instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// VMsucceed: all arithmetic flags clear.
    Succeed,
    /// VMfailInvalid: only CF set.
    FailInvalid,
    /// VMfailValid: only ZF set. The error number is already in the current VMCS.
    FailValid,
    /// #UD.
    Ud,
    /// #GP(0).
    Gp,
}

/// The processor state that the checks use.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// CR0.
    pub cr0: u64,
    /// CR4 as software sees it, including VMXE.
    pub cr4: u64,
    /// The current privilege level.
    pub cpl: u8,
    /// True if the processor executes 64-bit code.
    pub long_mode: bool,
}

const CR0_FIXED0: u64 = cr0::PG | cr0::NE | cr0::PE;

/// VM-instruction error numbers.
mod error {
    pub const VMCLEAR_ADDRESS: u32 = 2;
    pub const VMCLEAR_VMXON: u32 = 3;
    pub const VMLAUNCH_NOT_CLEAR: u32 = 4;
    pub const VMRESUME_NOT_LAUNCHED: u32 = 5;
    pub const CONTROL_FIELDS: u32 = 7;
    pub const VMPTRLD_ADDRESS: u32 = 9;
    pub const VMPTRLD_VMXON: u32 = 10;
    pub const VMPTRLD_REVISION: u32 = 11;
    pub const UNSUPPORTED_FIELD: u32 = 12;
    pub const VMXON_IN_ROOT: u32 = 15;
    pub const INVALIDATION_OPERAND: u32 = 28;
}

/// VMX operation of one processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vmx {
    vmxon: Option<u64>,
    current: Option<u64>,
}

impl Vmx {
    /// Returns whether the processor is in VMX (root) operation.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.vmxon.is_some()
    }

    /// Returns the CR0 and CR4 bits that must stay set.
    #[must_use]
    pub fn fixed_bits(&self) -> (u64, u64) {
        if self.is_on() {
            (CR0_FIXED0, cr4::VMXE)
        } else {
            (0, 0)
        }
    }

    /// Performs the checks that precede the read of a memory operand.
    ///
    /// # Errors
    /// The fault.
    pub fn may_execute(&self, cpu: &Cpu, is_vmxon: bool) -> Result<(), Outcome> {
        let usable = cpu.long_mode
            && if is_vmxon {
                cpu.cr4 & cr4::VMXE != 0
            } else {
                self.is_on()
            };
        if !usable {
            return Err(Outcome::Ud);
        }
        if cpu.cpl != 0 {
            return Err(Outcome::Gp);
        }
        if is_vmxon && !self.is_on() && cpu.cr0 & CR0_FIXED0 != CR0_FIXED0 {
            return Err(Outcome::Gp);
        }
        Ok(())
    }

    /// Executes VMXON with the region at `pa`. IA32_FEATURE_CONTROL always allows it. [`Self::may_execute`] has passed.
    pub fn vmxon(&mut self, pa: u64, memory: &mut impl Memory) -> Outcome {
        if self.is_on() {
            return self.fail(error::VMXON_IN_ROOT, memory);
        }
        if !is_region(pa) || memory.read(pa) as u32 != VMCS_REVISION {
            return Outcome::FailInvalid;
        }
        *self = Self {
            vmxon: Some(pa),
            current: None,
        };
        Outcome::Succeed
    }

    /// Executes VMXOFF.
    pub fn vmxoff(&mut self) -> Outcome {
        *self = Self::default();
        Outcome::Succeed
    }

    /// Executes VMCLEAR of the VMCS at `pa`.
    pub fn vmclear(&mut self, pa: u64, memory: &mut impl Memory) -> Outcome {
        if !is_region(pa) {
            return self.fail(error::VMCLEAR_ADDRESS, memory);
        }
        if self.vmxon == Some(pa) {
            return self.fail(error::VMCLEAR_VMXON, memory);
        }
        memory.write(pa + LAUNCH_STATE, CLEAR);
        if self.current == Some(pa) {
            self.current = None;
        }
        Outcome::Succeed
    }

    /// Executes VMPTRLD of the VMCS at `pa`.
    pub fn vmptrld(&mut self, pa: u64, memory: &mut impl Memory) -> Outcome {
        if !is_region(pa) {
            return self.fail(error::VMPTRLD_ADDRESS, memory);
        }
        if self.vmxon == Some(pa) {
            return self.fail(error::VMPTRLD_VMXON, memory);
        }
        if memory.read(pa) as u32 != VMCS_REVISION {
            return self.fail(error::VMPTRLD_REVISION, memory);
        }
        self.current = Some(pa);
        Outcome::Succeed
    }

    /// Executes VMPTRST: returns the current VMCS pointer, all ones if there is none.
    #[must_use]
    pub fn vmptrst(&self) -> u64 {
        self.current.unwrap_or(u64::MAX)
    }

    /// Executes VMREAD of the field `encoding`.
    ///
    /// # Errors
    /// The failure.
    pub fn vmread(&self, encoding: u64, memory: &mut impl Memory) -> Result<u64, Outcome> {
        let current = self.current.ok_or(Outcome::FailInvalid)?;
        let Some(field) = Field::decode(encoding) else {
            return Err(self.fail(error::UNSUPPORTED_FIELD, memory));
        };
        let value = memory.read(current + field.offset);
        Ok(if field.high {
            value >> 32
        } else {
            value & field.mask
        })
    }

    /// Executes VMWRITE of the field `encoding`. Read-only fields can be written too (IA32_VMX_MISC bit 29).
    pub fn vmwrite(&mut self, encoding: u64, value: u64, memory: &mut impl Memory) -> Outcome {
        let Some(current) = self.current else {
            return Outcome::FailInvalid;
        };
        let Some(field) = Field::decode(encoding) else {
            return self.fail(error::UNSUPPORTED_FIELD, memory);
        };
        let pa = current + field.offset;
        let value = if field.high {
            memory.read(pa) & 0xFFFF_FFFF | value << 32
        } else {
            value & field.mask
        };
        memory.write(pa, value);
        Outcome::Succeed
    }

    /// Executes VMLAUNCH, or VMRESUME if `resume`. It never enters a guest.
    pub fn enter(&mut self, resume: bool, memory: &mut impl Memory) -> Outcome {
        let Some(current) = self.current else {
            return Outcome::FailInvalid;
        };
        let clear = memory.read(current + LAUNCH_STATE) == CLEAR;
        let number = match (resume, clear) {
            (false, false) => error::VMLAUNCH_NOT_CLEAR,
            (true, true) => error::VMRESUME_NOT_LAUNCHED,
            _ => error::CONTROL_FIELDS,
        };
        self.fail(number, memory)
    }

    /// Executes INVEPT of `kind` with its 128-bit descriptor. No translations are cached here. A caller that caches
    /// translations of TDs drops them when this succeeds.
    pub fn invept(&self, kind: u64, descriptor: [u64; 2], memory: &mut impl Memory) -> Outcome {
        let [eptp, reserved] = descriptor;
        let eptp_is_valid = eptp & 7 == 6 && eptp >> 3 & 7 == 3 && eptp >> MAX_PA == 0;
        match kind {
            1 if reserved == 0 && eptp_is_valid => Outcome::Succeed,
            2 if reserved == 0 => Outcome::Succeed,
            _ => self.fail(error::INVALIDATION_OPERAND, memory),
        }
    }

    /// Executes INVVPID of `kind` with its 128-bit descriptor.
    pub fn invvpid(&self, kind: u64, descriptor: [u64; 2], memory: &mut impl Memory) -> Outcome {
        let [vpid, address] = descriptor;
        let canonical = (address as i64) << 16 >> 16 == address as i64;
        let ok = vpid >> 16 == 0
            && match kind {
                0 => vpid != 0 && canonical,
                1 | 3 => vpid != 0,
                2 => true,
                _ => false,
            };
        if ok {
            Outcome::Succeed
        } else {
            self.fail(error::INVALIDATION_OPERAND, memory)
        }
    }

    fn fail(&self, number: u32, memory: &mut impl Memory) -> Outcome {
        let Some(current) = self.current else {
            return Outcome::FailInvalid;
        };
        let field = Field::decode(VM_INSTRUCTION_ERROR).map_or(0, |field| field.offset);
        memory.write(current + field, u64::from(number));
        Outcome::FailValid
    }
}

/// Returns whether `pa` is a valid address of a VMXON region or VMCS.
fn is_region(pa: u64) -> bool {
    pa.is_multiple_of(4096) && pa >> MAX_PA == 0
}

const VM_INSTRUCTION_ERROR: u64 = 0x4400;

/// Offset of the launch state in a VMCS region of this implementation. That of the fields follows.
const LAUNCH_STATE: u64 = 8;
const CLEAR: u64 = 0;
const FIELDS: u64 = 64;
/// Number of fields of one width and type that fit a region: (4096 - 64) / 8 / 16.
const FIELDS_PER_GROUP: u64 = 31;

struct Field {
    offset: u64,
    mask: u64,
    high: bool,
}

impl Field {
    fn decode(encoding: u64) -> Option<Self> {
        let (high, index) = (encoding & 1 != 0, encoding >> 1 & 0x1FF);
        let (kind, width) = (encoding >> 10 & 3, encoding >> 13 & 3);
        let is_64_bit = width == 1;
        if encoding & !0x6FFF != 0 || index >= FIELDS_PER_GROUP || high && !is_64_bit {
            return None;
        }
        Some(Self {
            offset: FIELDS + ((width << 2 | kind) * FIELDS_PER_GROUP + index) * 8,
            mask: match width {
                0 => 0xFFFF,
                2 => 0xFFFF_FFFF,
                _ => u64::MAX,
            },
            high,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    #[derive(Default)]
    struct Ram(BTreeMap<u64, u64>);

    impl Memory for Ram {
        fn read(&self, pa: u64) -> u64 {
            self.0.get(&pa).copied().unwrap_or(0)
        }
        fn write(&mut self, pa: u64, value: u64) {
            self.0.insert(pa, value);
        }
    }

    const CPU: Cpu = Cpu {
        cr0: 0x8001_0033,
        cr4: cr4::VMXE,
        cpl: 0,
        long_mode: true,
    };
    const REGION: u64 = 0x1000;
    const VMCS: u64 = 0x2000;

    fn ram() -> Ram {
        let mut ram = Ram::default();
        for pa in [REGION, VMCS] {
            ram.write(pa, u64::from(VMCS_REVISION));
        }
        ram
    }

    fn on() -> (Vmx, Ram) {
        let (mut vmx, mut ram) = (Vmx::default(), ram());
        assert_eq!(vmx.vmxon(REGION, &mut ram), Outcome::Succeed);
        (vmx, ram)
    }

    #[test]
    fn vmxon_needs_vmxe_ring_0_and_fixed_cr0_bits() {
        let vmx = Vmx::default();
        assert_eq!(vmx.may_execute(&CPU, true), Ok(()));
        assert_eq!(
            vmx.may_execute(&Cpu { cr4: 0, ..CPU }, true),
            Err(Outcome::Ud)
        );
        assert_eq!(
            vmx.may_execute(&Cpu { cpl: 3, ..CPU }, true),
            Err(Outcome::Gp)
        );
        let no_ne = Cpu {
            cr0: CPU.cr0 & !0x20,
            ..CPU
        };
        assert_eq!(vmx.may_execute(&no_ne, true), Err(Outcome::Gp));
        assert_eq!(
            vmx.may_execute(&CPU, false),
            Err(Outcome::Ud),
            "not in VMX operation"
        );
    }

    #[test]
    fn vmxon_refuses_a_bad_region() {
        let (mut vmx, mut ram) = (Vmx::default(), ram());
        assert_eq!(
            vmx.vmxon(REGION + 8, &mut ram),
            Outcome::FailInvalid,
            "alignment"
        );
        assert_eq!(vmx.vmxon(1 << 52, &mut ram), Outcome::FailInvalid, "width");
        assert_eq!(
            vmx.vmxon(0x3000, &mut ram),
            Outcome::FailInvalid,
            "revision"
        );
        ram.write(REGION, u64::from(VMCS_REVISION | 1 << 31));
        assert_eq!(vmx.vmxon(REGION, &mut ram), Outcome::FailInvalid, "bit 31");
        assert!(!vmx.is_on());
    }

    #[test]
    fn a_second_vmxon_fails_and_vmxoff_ends_it() {
        let (mut vmx, mut ram) = on();
        assert_eq!(
            vmx.vmxon(REGION, &mut ram),
            Outcome::FailInvalid,
            "no current VMCS"
        );
        vmx.vmptrld(VMCS, &mut ram);
        assert_eq!(vmx.vmxon(REGION, &mut ram), Outcome::FailValid);
        assert_eq!(vmx.vmread(VM_INSTRUCTION_ERROR, &mut ram), Ok(15));
        assert_eq!(vmx.vmxoff(), Outcome::Succeed);
        assert_eq!(vmx, Vmx::default());
    }

    #[test]
    fn a_vmcs_becomes_current_and_is_cleared() {
        let (mut vmx, mut ram) = on();
        assert_eq!(vmx.vmptrst(), u64::MAX);
        assert_eq!(vmx.vmptrld(VMCS, &mut ram), Outcome::Succeed);
        assert_eq!(vmx.vmptrst(), VMCS);
        assert_eq!(vmx.vmptrld(REGION, &mut ram), Outcome::FailValid);
        assert_eq!(vmx.vmread(VM_INSTRUCTION_ERROR, &mut ram), Ok(10));
        assert_eq!(vmx.vmclear(VMCS, &mut ram), Outcome::Succeed);
        assert_eq!(
            vmx.vmread(VM_INSTRUCTION_ERROR, &mut ram),
            Err(Outcome::FailInvalid)
        );
    }

    #[test]
    fn fields_keep_written_values_at_their_width() {
        let (mut vmx, mut ram) = on();
        vmx.vmptrld(VMCS, &mut ram);
        for (field, value, read) in [
            (0x0802, 0x1_2345, 0x2345),
            (0x2000, 0x1122_3344_5566_7788, 0x1122_3344_5566_7788),
            (0x2001, 0xAABB_CCDD, 0xAABB_CCDD),
            (0x4002, 0x1_0000_0001, 1),
            (0x681E, u64::MAX, u64::MAX),
        ] {
            assert_eq!(vmx.vmwrite(field, value, &mut ram), Outcome::Succeed);
            assert_eq!(vmx.vmread(field, &mut ram), Ok(read), "{field:#x}");
        }
        assert_eq!(vmx.vmread(0x2000, &mut ram), Ok(0xAABB_CCDD_5566_7788));
        assert_eq!(vmx.vmwrite(0x1_0000, 0, &mut ram), Outcome::FailValid);
        assert_eq!(vmx.vmread(VM_INSTRUCTION_ERROR, &mut ram), Ok(12));
    }

    #[test]
    fn invalidations_check_type_and_descriptor() {
        let (vmx, mut ram) = on();
        assert_eq!(vmx.invept(2, [0, 0], &mut ram), Outcome::Succeed);
        assert_eq!(vmx.invept(1, [0x501E, 0], &mut ram), Outcome::Succeed);
        assert_eq!(vmx.invept(1, [0x5000, 0], &mut ram), Outcome::FailInvalid);
        assert_eq!(vmx.invept(0, [0, 0], &mut ram), Outcome::FailInvalid);
        assert_eq!(vmx.invept(2, [0, 1], &mut ram), Outcome::FailInvalid);
        assert_eq!(vmx.invvpid(0, [1, 0x1000], &mut ram), Outcome::Succeed);
        assert_eq!(vmx.invvpid(0, [1, 1 << 50], &mut ram), Outcome::FailInvalid);
        assert_eq!(vmx.invvpid(1, [0, 0], &mut ram), Outcome::FailInvalid);
        assert_eq!(vmx.invvpid(2, [0, 0], &mut ram), Outcome::Succeed);
    }

    #[test]
    fn no_guest_is_ever_entered() {
        let (mut vmx, mut ram) = on();
        assert_eq!(vmx.enter(false, &mut ram), Outcome::FailInvalid);
        vmx.vmclear(VMCS, &mut ram);
        vmx.vmptrld(VMCS, &mut ram);
        assert_eq!(vmx.enter(true, &mut ram), Outcome::FailValid);
        assert_eq!(vmx.vmread(VM_INSTRUCTION_ERROR, &mut ram), Ok(5));
        assert_eq!(vmx.enter(false, &mut ram), Outcome::FailValid);
        assert_eq!(vmx.vmread(VM_INSTRUCTION_ERROR, &mut ram), Ok(7));
    }
}
