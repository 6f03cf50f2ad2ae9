//! The state of a TD vCPU, as it lies in its TDVPS pages.
//!
//! This is what a [`Machine`](crate::Machine) is given to run: it enters the guest from these fields and leaves the
//! guest's new state and the reason of the VM exit in them, as VMLAUNCH does with a VMCS.

mod vmcs;

pub use vmcs::Field;

use core::sync::atomic::Ordering;

use crate::{machine::PageWords, pages::Pages};

/// Most pages a TDVPS can have: 6, and 3 for each of 3 nested VMs.
pub const MAX_TDVPS_PAGES: usize = 15;

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
    /// All of them, in the order of their numbers.
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

/// Guest state that no VMCS field holds: the offset of each 64-bit value in the TDVPS.
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
    pages: Pages<'m, MAX_TDVPS_PAGES>,
    vmcs: &'m PageWords,
}

impl<'m> Vcpu<'m> {
    /// Page number of the TD VMCS in the TDVPS.
    const VMCS_PAGE: usize = 1;
    /// Page number of the virtual APIC.
    const VAPIC_PAGE: usize = 2;
    /// Offset of the general-purpose registers.
    const GPRS: usize = 0x980;
    /// Offset of the extended-state area, in the format of XSAVES.
    const XBUFF: usize = 0x3000;
    /// Offset of XMM0 in an XSAVE area.
    const XMM: usize = 160;

    /// The vCPU whose TDVPS is `pages`; `None` until its VMCS page has been donated.
    pub fn new(pages: Pages<'m, MAX_TDVPS_PAGES>) -> Option<Self> {
        pages.page(Self::VMCS_PAGE).map(|vmcs| Self { pages, vmcs })
    }

    /// The pages beneath.
    pub const fn pages(&self) -> &Pages<'m, MAX_TDVPS_PAGES> {
        &self.pages
    }

    /// The virtual-APIC page.
    pub fn vapic(&self) -> Option<&'m PageWords> {
        self.pages.page(Self::VAPIC_PAGE)
    }

    /// Reads a general-purpose register. RSP is a VMCS field.
    pub fn gpr(&self, register: Gpr) -> u64 {
        match register {
            Gpr::Rsp => self.vmcs(Field::RSP),
            _ => self.pages.read(Self::GPRS + register as usize * 8, 8),
        }
    }

    /// Writes a general-purpose register.
    pub fn set_gpr(&self, register: Gpr, value: u64) {
        match register {
            Gpr::Rsp => self.set_vmcs(Field::RSP, value),
            _ => self
                .pages
                .write(Self::GPRS + register as usize * 8, 8, value),
        }
    }

    /// Reads a VMCS field; zero for an encoding that no field has.
    pub fn vmcs(&self, field: Field) -> u64 {
        field
            .word()
            .map_or(0, |word| self.vmcs[word].load(Ordering::Relaxed))
    }

    /// Writes a VMCS field; an encoding that no field has is ignored.
    pub fn set_vmcs(&self, field: Field, value: u64) {
        if let Some(word) = field.word() {
            self.vmcs[word].store(value, Ordering::Relaxed);
        }
    }

    /// Reads a register that no VMCS field holds.
    pub fn held(&self, register: Held) -> u64 {
        self.pages.read(register as usize, 8)
    }

    /// Writes a register that no VMCS field holds.
    pub fn set_held(&self, register: Held, value: u64) {
        self.pages.write(register as usize, 8, value);
    }

    /// Reads an XMM register (0 to 15).
    pub fn xmm(&self, index: usize) -> u128 {
        let offset = Self::XBUFF + Self::XMM + index % 16 * 16;
        u128::from(self.pages.read(offset, 8)) | u128::from(self.pages.read(offset + 8, 8)) << 64
    }

    /// Writes an XMM register (0 to 15).
    pub fn set_xmm(&self, index: usize, value: u128) {
        let offset = Self::XBUFF + Self::XMM + index % 16 * 16;
        self.pages.write(offset, 8, value as u64);
        self.pages.write(offset + 8, 8, (value >> 64) as u64);
    }

    /// Reads `size` bytes at `offset` of the TDVPS.
    pub fn read(&self, offset: usize, size: usize) -> u64 {
        self.pages.read(offset, size)
    }

    /// Writes `size` bytes at `offset` of the TDVPS.
    pub fn write(&self, offset: usize, size: usize, value: u64) {
        self.pages.write(offset, size, value);
    }
}
