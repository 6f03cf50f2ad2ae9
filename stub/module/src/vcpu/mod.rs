//! The state of a TD vCPU, stored in its TDVPS pages.
//!
//! A [`Machine`] runs a vCPU from this state: it enters the guest with the values of these fields, and at a VM exit
//! stores the guest's new state and the exit reason in them, as VMLAUNCH does with a VMCS.

pub(crate) mod fields;
mod vmcs;

pub use vmcs::Field;

use core::sync::atomic::{AtomicU64, Ordering};

use crate::field::Structure;
use crate::td::Tdvps;
use crate::{Machine, PageWords};

/// Pages of a TDVPS that hold the vCPU's state: its own, the VMCS, the virtual APIC, and the first page of extended
/// state. The remaining pages are for AMX, which no vCPU has here, and for nested VMs.
pub const VCPU_PAGES: usize = 4;

/// Numbers of the general-purpose registers, as instructions encode them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[expect(missing_docs, reason = "each is the register of that name")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// All registers, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];
}

/// Guest state outside the VMCS: the offset of each 64-bit value in the TDVPS.
///
/// Source: TDX module 1.5.01, TDVPS field table (the offsets are the module's own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[expect(missing_docs, reason = "each is the register of that name")]
pub enum Held {
    Dr0 = 0xA00,
    Dr1 = 0xA08,
    Dr2 = 0xA10,
    Dr3 = 0xA18,
    Dr6 = 0xA20,
    Xcr0 = 0xA28,
    Cr2 = 0xA30,
    SpecCtrl = 0xA80,
    UmwaitControl = 0xA88,
    TsxCtrl = 0xA90,
    Xfd = 0xAE8,
    XfdErr = 0xAF0,
    DsArea = 0xBA8,
    Xss = 0xC70,
    LbrDepth = 0xC78,
    UarchMiscCtl = 0xC80,
    Star = 0xC88,
    Lstar = 0xC90,
    Fmask = 0xC98,
    KernelGsBase = 0xCA0,
    TscAux = 0xCA8,
}

/// A vCPU's TDVPS.
#[derive(Clone, Copy, Debug)]
pub struct Vcpu<'m> {
    pages: [&'m PageWords; VCPU_PAGES],
}

impl<'m> Vcpu<'m> {
    /// Page number of the TD VMCS in the TDVPS.
    const VMCS_PAGE: usize = 1;
    /// Page number of the virtual APIC.
    const VAPIC_PAGE: usize = 2;
    /// Page number of the extended-state area, in the format of XSAVES.
    const XBUFF_PAGE: usize = 3;
    /// Offset of the general-purpose registers.
    const GPRS: usize = 0x980;
    /// Offset of XMM0 in an XSAVE area.
    const XMM: usize = 160;

    /// Creates the vCPU whose TDVPS has these pages.
    pub const fn new(pages: [&'m PageWords; VCPU_PAGES]) -> Self {
        Self { pages }
    }

    /// Returns the vCPU of a complete TDVPS.
    #[inline(always)]
    pub(crate) fn of<M: Machine>(machine: &'m M, tdvps: &Tdvps<'m, M>) -> Self {
        Self::new([
            machine.page(tdvps.page_pa(0)),
            machine.page(tdvps.page_pa(1)),
            machine.page(tdvps.page_pa(2)),
            machine.page(tdvps.page_pa(3)),
        ])
    }

    /// Returns XFAM: the vCPU's extended-state components.
    pub fn xfam(&self) -> u64 {
        self.get(fields::XFAM)
    }

    /// Returns the virtual-APIC page.
    pub const fn vapic(&self) -> &'m PageWords {
        self.pages[Self::VAPIC_PAGE]
    }

    /// Returns the first page of the extended-state area, in the format of XSAVES.
    pub const fn xbuff(&self) -> &'m PageWords {
        self.pages[Self::XBUFF_PAGE]
    }

    const fn at(&self, offset: usize) -> &'m AtomicU64 {
        &self.pages[offset / 4096][offset % 4096 / 8]
    }

    /// Reads `size` (1, 2, 4 or 8) bytes at `offset`, a multiple of `size`.
    pub fn read(&self, offset: usize, size: usize) -> u64 {
        let bits = u64::MAX >> (64 - 8 * size);
        self.at(offset).load(Ordering::Relaxed) >> (offset % 8 * 8) & bits
    }

    /// Reads a general-purpose register. RSP is a VMCS field.
    pub fn gpr(&self, register: Gpr) -> u64 {
        match register {
            Gpr::Rsp => self.vmcs(Field::RSP),
            _ => self
                .at(Self::GPRS + register as usize * 8)
                .load(Ordering::Relaxed),
        }
    }

    /// Writes a general-purpose register.
    pub fn set_gpr(&self, register: Gpr, value: u64) {
        match register {
            Gpr::Rsp => self.set_vmcs(Field::RSP, value),
            _ => self
                .at(Self::GPRS + register as usize * 8)
                .store(value, Ordering::Relaxed),
        }
    }

    /// Returns the location of the general-purpose register with that number, which must not be RSP's.
    #[inline(always)]
    pub fn numbered(&self, number: usize) -> &'m AtomicU64 {
        &self.pages[0][Self::GPRS / 8 + number % 16]
    }

    /// Reads all general-purpose registers.
    #[inline(always)]
    pub fn gprs(&self) -> [u64; 16] {
        let mut values = [0; 16];
        for (number, value) in values.iter_mut().enumerate() {
            *value = self.at(Self::GPRS + number * 8).load(Ordering::Relaxed);
        }
        values[Gpr::Rsp as usize] = self.vmcs(Field::RSP);
        values
    }

    /// Writes all general-purpose registers.
    #[inline(always)]
    pub fn set_gprs(&self, values: &[u64; 16]) {
        for (number, value) in values.iter().enumerate() {
            if number != Gpr::Rsp as usize {
                self.at(Self::GPRS + number * 8)
                    .store(*value, Ordering::Relaxed);
            }
        }
        self.set_vmcs(Field::RSP, values[Gpr::Rsp as usize]);
    }

    /// Reads a VMCS field. An encoding without a field reads as zero.
    #[inline(always)]
    pub fn vmcs(&self, field: Field) -> u64 {
        field.word().map_or(0, |word| {
            self.pages[Self::VMCS_PAGE][word].load(Ordering::Relaxed)
        })
    }

    /// Writes a VMCS field. An encoding without a field is ignored.
    #[inline(always)]
    pub fn set_vmcs(&self, field: Field, value: u64) {
        if let Some(word) = field.word() {
            self.pages[Self::VMCS_PAGE][word].store(value, Ordering::Relaxed);
        }
    }

    /// Reads a register that is not in the VMCS.
    pub fn held(&self, register: Held) -> u64 {
        self.at(register as usize).load(Ordering::Relaxed)
    }

    /// Writes a register that is not in the VMCS.
    pub fn set_held(&self, register: Held, value: u64) {
        self.at(register as usize).store(value, Ordering::Relaxed);
    }

    /// Returns the address of the 16 XMM registers, for a world switch. They are aligned to 16 bytes.
    pub fn xmm_registers(&self) -> *mut u128 {
        let area: *const AtomicU64 = self.xbuff().as_ptr();
        area.wrapping_byte_add(Self::XMM).cast_mut().cast()
    }

    /// Reads an XMM register (0 to 15).
    pub fn xmm(&self, index: usize) -> u128 {
        let words = &self.pages[Self::XBUFF_PAGE][(Self::XMM + index % 16 * 16) / 8..];
        u128::from(words[0].load(Ordering::Relaxed))
            | u128::from(words[1].load(Ordering::Relaxed)) << 64
    }

    /// Writes an XMM register (0 to 15).
    pub fn set_xmm(&self, index: usize, value: u128) {
        let words = &self.pages[Self::XBUFF_PAGE][(Self::XMM + index % 16 * 16) / 8..];
        words[0].store(value as u64, Ordering::Relaxed);
        words[1].store((value >> 64) as u64, Ordering::Relaxed);
    }
}

impl<'m> Structure<'m> for Vcpu<'m> {
    fn word(&self, offset: u32) -> &'m AtomicU64 {
        self.at(offset as usize)
    }
}
