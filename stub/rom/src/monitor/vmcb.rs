//! The virtual machine control block. Source: AMD64 APM volume 2, appendix B.
#![expect(unsafe_code, reason = "interprets a page as a VMCB")]

use crate::{cpu, memory};
use seam::abi::x86::{cr0, dr6, rflags, vector};

/// A segment register as the VMCB keeps it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    pub selector: u16,
    /// The packed form: type, S, DPL, P, AVL, L, D/B, G.
    pub attributes: u16,
    pub limit: u32,
    pub base: u64,
}

/// The used part of the block. It lies at the start of a page.
#[repr(C, align(16))]
pub struct Vmcb {
    /// CR reads (15:0) and writes (31:16).
    pub intercept_cr: u32,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    pub intercept_misc1: u32,
    pub intercept_misc2: u32,
    _reserved1: [u8; 0x2C],
    pub io_bitmap: u64,
    pub msr_bitmap: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub interrupt_control: u64,
    pub interrupt_shadow: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_interrupt_info: u64,
    pub nested_control: u64,
    _reserved2: [u8; 0x10],
    pub event_injection: u64,
    pub nested_cr3: u64,
    _reserved3: [u8; 0x348],
    pub save: Save,
}

/// The state save area.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Save {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    _reserved1: [u8; 0x2B],
    pub cpl: u8,
    _reserved2: [u8; 4],
    pub efer: u64,
    _reserved3: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    _reserved4: [u8; 0x58],
    pub rsp: u64,
    _reserved5: [u8; 0x18],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    _cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    _reserved6: [u8; 0x20],
    pub pat: u64,
    _debug: [u8; 0x28],
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Vmcb, io_bitmap) == 0x40);
    assert!(offset_of!(Vmcb, msr_bitmap) == 0x48);
    assert!(offset_of!(Vmcb, exit_code) == 0x70);
    assert!(offset_of!(Vmcb, event_injection) == 0xA8);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Save, cpl) == 0xCB);
    assert!(offset_of!(Save, efer) == 0xD0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1D8);
    assert!(offset_of!(Save, rax) == 0x1F8);
    assert!(offset_of!(Save, star) == 0x200);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, pat) == 0x268);
    assert!(size_of::<Save>() == 0x298);
    assert!(size_of::<Vmcb>() <= REST);
};

pub const CR4_READ: u32 = 1 << 4;
pub const CR0_WRITE: u32 = 1 << 16;
pub const CR4_WRITE: u32 = 1 << 20;
pub const CR8_WRITE: u32 = 1 << 24;

pub mod misc1 {
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const INIT: u32 = 1 << 3;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const IRET: u32 = 1 << 20;
    pub const INVD: u32 = 1 << 22;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IO: u32 = 1 << 27;
    pub const MSR: u32 = 1 << 28;
    pub const SHUTDOWN: u32 = 1 << 31;
}

pub mod misc2 {
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const XSETBV: u32 = 1 << 13;
}

/// Virtual interrupt control.
pub mod control {
    /// The guest's task priority.
    pub const TPR: u64 = 0xF;
    /// A virtual interrupt is pending.
    pub const IRQ: u64 = 1 << 8;
    /// The virtual interrupt ignores the guest's task priority.
    pub const IGNORE_TPR: u64 = 1 << 20;
    /// The guest's own flags do not mask the machine's interrupts.
    pub const MASKING: u64 = 1 << 24;
    /// First bit of the virtual interrupt's vector.
    pub const VECTOR_SHIFT: u32 = 32;
}

/// VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI and SKINIT.
pub const SVM_INSTRUCTIONS: u32 = 0x7F;

/// Exit codes.
pub mod exit {
    pub const CR4_READ: u64 = 0x04;
    pub const CR0_WRITE: u64 = 0x10;
    pub const CR4_WRITE: u64 = 0x14;
    pub const CR8_WRITE: u64 = 0x18;
    pub const EXCEPTION: u64 = 0x40;
    pub const LAST_EXCEPTION: u64 = 0x5F;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const RDPMC: u64 = 0x6F;
    pub const CPUID: u64 = 0x72;
    pub const IRET: u64 = 0x74;
    pub const INVD: u64 = 0x76;
    pub const HLT: u64 = 0x78;
    pub const INVLPGA: u64 = 0x7A;
    pub const IO: u64 = 0x7B;
    pub const MSR: u64 = 0x7C;
    pub const SHUTDOWN: u64 = 0x7F;
    pub const VMRUN: u64 = 0x80;
    pub const SKINIT: u64 = 0x86;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8A;
    pub const MWAIT: u64 = 0x8B;
    pub const XSETBV: u64 = 0x8D;
    pub const NPF: u64 = 0x400;
    /// The VMCB's state is invalid.
    pub const INVALID: u64 = 0xFFFF_FFFF;
}

const VALID: u64 = 1 << 31;
const ERROR_CODE: u64 = 1 << 11;
const TYPE_NMI: u64 = 2 << 8;
const TYPE_EXCEPTION: u64 = 3 << 8;

/// Offset in a VMCB's page from which on the processor reads and writes nothing.
const REST: usize = 0x800;

/// Allocates data beside a VMCB: in the rest of its page and as many further pages as needed. Data used together is
/// then in one page. `make` gets the VMCB.
pub fn beside<T>(make: impl FnOnce(&'static mut Vmcb) -> T) -> &'static mut T {
    const { assert!(REST.is_multiple_of(align_of::<T>())) };
    let pages = memory::pages((REST + size_of::<T>()).div_ceil(memory::PAGE));
    let place = (pages.address() + REST as u64) as *mut T;
    // SAFETY: zeroed pages without other references; a VMCB of zeroes is a valid value and ends before the rest, which
    // is large enough and aligned. They are never freed.
    unsafe {
        place.write(make(&mut *(pages.address() as *mut Vmcb)));
        &mut *place
    }
}

/// Allocates a VMCB on its own, all zeroes.
pub fn page() -> &'static mut Vmcb {
    let page = memory::page();
    // SAFETY: a zeroed page without other references, and a VMCB of zeroes is a valid value.
    unsafe { &mut *core::ptr::from_mut(page).cast() }
}

/// Allocates an MSR permission map: two bits for each register of three ranges. A set bit makes the access exit.
pub fn msr_bitmap(reads: impl Fn(u32) -> bool, writes: impl Fn(u32) -> bool) -> u64 {
    let address = memory::pages(2).address();
    // SAFETY: two pages of the monitor's own, without other references.
    let map = unsafe { core::slice::from_raw_parts_mut(address as *mut u8, 2 * memory::PAGE) };
    map.fill(0xFF);
    for (range, first) in [0, 0xC000_0000, 0xC001_0000].into_iter().enumerate() {
        for i in 0..0x2000usize {
            let msr = first + i as u32;
            let native = u8::from(reads(msr)) | u8::from(writes(msr)) << 1;
            map[range * 0x800 + i / 4] &= !(native << (i % 4 * 2));
        }
    }
    address
}

impl Vmcb {
    /// Injects an exception before the guest's next instruction.
    pub fn inject_exception(&mut self, vector: u8, error_code: Option<u32>) {
        let error = error_code.map_or(0, |code| ERROR_CODE | u64::from(code) << 32);
        self.event_injection = VALID | TYPE_EXCEPTION | error | u64::from(vector);
    }

    /// Injects an NMI before the guest's next instruction.
    pub fn inject_nmi(&mut self) {
        self.event_injection = VALID | TYPE_NMI | u64::from(vector::NMI);
    }

    /// Returns whether an event is being injected.
    pub fn is_injecting(&self) -> bool {
        self.event_injection & VALID != 0
    }

    /// Delivers an event again whose delivery the exit interrupted.
    pub fn redeliver(&mut self) {
        const TYPE: u64 = 7 << 8;
        const TYPE_SOFTWARE: u64 = 4 << 8;
        let event = self.exit_interrupt_info;
        if event & VALID != 0 && event & TYPE != TYPE_SOFTWARE {
            self.event_injection = event;
        }
    }

    /// Advances past an emulated instruction of `length` bytes.
    pub fn skip(&mut self, length: usize) {
        self.save.rip = self.save.rip.wrapping_add(length as u64);
        if self.save.cs.attributes & Segment::LONG == 0 {
            self.save.rip &= 0xFFFF_FFFF;
        }
        self.interrupt_shadow = 0;
        if self.save.rflags & rflags::TF != 0 {
            self.save.dr6 |= dr6::SINGLE_STEP;
            self.inject_exception(vector::DB, None);
        }
    }

    /// Sets the processor's state after INIT and a start-up IPI to `page`. EFER keeps SVME.
    pub fn start_at(&mut self, page: u8) {
        const DATA: u16 = 0x93;
        const CODE: u16 = 0x9B;
        let segment = |selector: u16, attributes, base| Segment {
            selector,
            attributes,
            limit: 0xFFFF,
            base,
        };
        let data = segment(0, DATA, 0);
        let table = segment(0, 0, 0);
        let s = &mut self.save;
        (s.es, s.ss, s.ds, s.fs, s.gs) = (data, data, data, data, data);
        s.cs = segment(u16::from(page) << 8, CODE, u64::from(page) << 12);
        (s.gdtr, s.idtr) = (table, table);
        s.ldtr = segment(0, 0x82, 0);
        s.tr = segment(0, 0x8B, 0);
        s.cpl = 0;
        s.efer = cpu::EFER_SVME;
        s.cr0 = cr0::CD | cr0::NW | cr0::ET;
        (s.cr2, s.cr3, s.cr4) = (0, 0, 0);
        (s.dr6, s.dr7) = (dr6::INITIAL, 0x400);
        s.rflags = rflags::RESERVED;
        (s.rip, s.rsp, s.rax) = (0, 0, 0);
        self.event_injection = 0;
        self.interrupt_shadow = 0;
    }
}

impl Segment {
    /// The attribute L: 64-bit code.
    pub const LONG: u16 = 1 << 9;
    /// The attribute D/B: 32-bit code.
    pub const BIG: u16 = 1 << 10;
}
