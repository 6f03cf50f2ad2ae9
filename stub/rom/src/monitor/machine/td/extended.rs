//! Extended state: x87, SSE, AVX and protection keys, debug registers, and IA32_TSC_AUX.
//!
//! The monitor uses only the XMM registers. The world switch loads and saves them directly in the TD's extended state,
//! so a run switches the rest once. A register that already has the value is not written, because TCG leaves its
//! translated code at each such write.
//!
//! An XRSTOR of the x87 state makes TCG 7.2 clear a flag of CPU 0 (IGNNE#), without a lock, whichever CPU executes it.
//! If CPU 0 is exiting a guest at that moment, it stays in nested paging. The monitor therefore restores x87 state by
//! XRSTOR only if a guest has some. Source: QEMU 7.2, `cpu_clear_ignne`.
#![expect(
    unsafe_code,
    reason = "loads and saves extended state and debug registers"
)]

use core::arch::asm;
use core::hint::cold_path;
use core::sync::atomic::Ordering::Relaxed;

use stub_module::PageWords;
use stub_module::vcpu::{Held, Vcpu};

use super::Td;
use crate::cpu;

const TSC_AUX: u32 = 0xC000_0103;
/// XCR0 bits: x87, SSE and AVX.
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
/// Components that are switched register by register, because TCG's XSAVE and XRSTOR take longer for them.
const BY_REGISTER: u64 = SSE | AVX;
/// Words of the XSAVE area: XSTATE_BV and XCOMP_BV.
const XSTATE_BV: usize = 512 / 8;
const XCOMP_BV: usize = XSTATE_BV + 1;
/// The end of the legacy region and the header. Components that the header marks as initial are not read.
const XSAVE_HEADER_END: usize = 576 / 8;

/// Words of the x87 state: control, status, tags and opcode; instruction and data pointers; ST0 to ST7.
const X87_CONTROL: usize = 0;
const X87_CONTROL_INITIAL: u64 = 0x37F;
const X87_POINTERS: core::ops::Range<usize> = 1..3;
const X87_REGISTERS: core::ops::Range<usize> = 4..20;

/// The word that starts with MXCSR. Its initial value and its valid bits follow.
const MXCSR: usize = 3;
const MXCSR_INITIAL: u64 = 0x1F80;
const MXCSR_BITS: u32 = 0xFFFF;

/// The TDVPS fields of DR0 to DR3.
const DEBUG_ADDRESSES: [Held; 4] = [Held::Dr0, Held::Dr1, Held::Dr2, Held::Dr3];

/// Returns the components that this machine's XCR0 supports.
pub(super) fn supported() -> u64 {
    let [low, _, _, high] = cpu::cpuid(0xD, 0);
    u64::from(high) << 32 | u64::from(low)
}

/// An XSAVE area with only initial state.
#[repr(C, align(64))]
struct Initial([u64; XSAVE_HEADER_END]);

static INITIAL: Initial = Initial({
    let mut area = [0; XSAVE_HEADER_END];
    // XRSTOR loads MXCSR from there even if the header marks it as initial.
    area[MXCSR] = MXCSR_INITIAL;
    area
});

/// Sets the guest's IA32_TSC_AUX.
pub(super) fn set_tsc_aux(value: u64) {
    if cpu::rdmsr(TSC_AUX) != value {
        cold_path();
        // SAFETY: only RDTSCP and RDPID read it.
        unsafe { cpu::wrmsr(TSC_AUX, value) };
    }
}

#[inline(always)]
fn set_xcr0(value: u64) {
    if xcr0() == value {
        return;
    }
    // SAFETY: the monitor's CR4 has OSXSAVE, and the processor accepts the value: supported bits, x87 among them, AVX
    // not without SSE.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack));
    }
}

#[inline(always)]
fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register; the monitor's CR4 has OSXSAVE.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

fn debug_addresses() -> [u64; 4] {
    let (dr0, dr1, dr2, dr3): (u64, u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) dr0, out(reg) dr1, out(reg) dr2, out(reg) dr3, options(nomem, nostack));
    }
    [dr0, dr1, dr2, dr3]
}

fn set_debug_addresses(addresses: [u64; 4]) {
    if debug_addresses() == addresses {
        return;
    }
    cold_path();
    let [dr0, dr1, dr2, dr3] = addresses;
    // SAFETY: the monitor uses no breakpoints; a guest's DR7 holds which of these it has enabled.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3, options(nomem, nostack));
    }
}

#[inline(always)]
fn restore(area: *const u64, components: u64) {
    // SAFETY: an aligned XSAVE area in standard format, large enough for the components, which XCR0 has, that its
    // header marks as present. No x87 or AVX state of the monitor is lost: it has none.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) area, in("eax") components as u32, in("edx") (components >> 32) as u32,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nostack, readonly));
    }
}

/// Loads the upper halves of the YMM registers. The lower halves are the monitor's until the world switch.
fn load_upper_halves(area: &PageWords) {
    // SAFETY: the area has room for them, XCR0 has AVX, and the monitor holds nothing in them.
    unsafe {
        asm!(
            "vinsertf128 ymm0, ymm0, [{area} + 576], 1",
            "vinsertf128 ymm1, ymm1, [{area} + 592], 1",
            "vinsertf128 ymm2, ymm2, [{area} + 608], 1",
            "vinsertf128 ymm3, ymm3, [{area} + 624], 1",
            "vinsertf128 ymm4, ymm4, [{area} + 640], 1",
            "vinsertf128 ymm5, ymm5, [{area} + 656], 1",
            "vinsertf128 ymm6, ymm6, [{area} + 672], 1",
            "vinsertf128 ymm7, ymm7, [{area} + 688], 1",
            "vinsertf128 ymm8, ymm8, [{area} + 704], 1",
            "vinsertf128 ymm9, ymm9, [{area} + 720], 1",
            "vinsertf128 ymm10, ymm10, [{area} + 736], 1",
            "vinsertf128 ymm11, ymm11, [{area} + 752], 1",
            "vinsertf128 ymm12, ymm12, [{area} + 768], 1",
            "vinsertf128 ymm13, ymm13, [{area} + 784], 1",
            "vinsertf128 ymm14, ymm14, [{area} + 800], 1",
            "vinsertf128 ymm15, ymm15, [{area} + 816], 1",
            area = in(reg) area.as_ptr(),
            options(nostack, readonly)
        );
    }
}

fn clear_upper_halves() {
    // SAFETY: XCR0 has AVX, and the monitor holds nothing in them.
    unsafe { asm!("vzeroupper", options(nomem, nostack)) };
}

/// Saves the upper halves of the YMM registers.
fn store_upper_halves(area: &PageWords) {
    // SAFETY: the area has room for them, in words that may be written through a shared reference; XCR0 has AVX.
    unsafe {
        asm!(
            "vextractf128 [{area} + 576], ymm0, 1",
            "vextractf128 [{area} + 592], ymm1, 1",
            "vextractf128 [{area} + 608], ymm2, 1",
            "vextractf128 [{area} + 624], ymm3, 1",
            "vextractf128 [{area} + 640], ymm4, 1",
            "vextractf128 [{area} + 656], ymm5, 1",
            "vextractf128 [{area} + 672], ymm6, 1",
            "vextractf128 [{area} + 688], ymm7, 1",
            "vextractf128 [{area} + 704], ymm8, 1",
            "vextractf128 [{area} + 720], ymm9, 1",
            "vextractf128 [{area} + 736], ymm10, 1",
            "vextractf128 [{area} + 752], ymm11, 1",
            "vextractf128 [{area} + 768], ymm12, 1",
            "vextractf128 [{area} + 784], ymm13, 1",
            "vextractf128 [{area} + 800], ymm14, 1",
            "vextractf128 [{area} + 816], ymm15, 1",
            area = in(reg) area.as_ptr(),
            options(nostack)
        );
    }
}

/// Returns whether the x87 state in the area is the initial one.
#[inline(always)]
fn has_initial_x87(area: &PageWords) -> bool {
    let mut others = 0;
    for word in X87_POINTERS {
        others |= area[word].load(Relaxed);
    }
    for word in X87_REGISTERS {
        others |= area[word].load(Relaxed);
    }
    area[XSTATE_BV].load(Relaxed) & X87 == 0
        || area[X87_CONTROL].load(Relaxed) == X87_CONTROL_INITIAL && others == 0
}

/// Resets the x87 state to its initial state, including the registers, which FNINIT does not change.
#[inline(always)]
fn reset_x87() {
    // SAFETY: no x87 state of the monitor is lost: it has none.
    unsafe {
        asm!(
            "fninit", "fldz", "fldz", "fldz", "fldz", "fldz", "fldz", "fldz", "fldz", "fninit",
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nomem, nostack)
        );
    }
}

impl Td {
    /// Returns the components of the vCPU's extended state that this machine supports.
    fn components(&self, vcpu: &Vcpu<'_>) -> u64 {
        vcpu.xfam() & self.supported | X87 | SSE
    }

    /// Enables the components in XCR0, so that they can be loaded or saved.
    #[inline(always)]
    fn have_in_xcr0(&self, components: u64) {
        if xcr0() & components != components {
            cold_path();
            set_xcr0(self.supported);
        }
    }

    /// Loads the guest's extended state.
    #[inline(always)]
    pub(super) fn load_extended(&mut self, vcpu: &Vcpu<'_>) {
        set_debug_addresses(DEBUG_ADDRESSES.map(|register| vcpu.held(register)));
        set_tsc_aux(vcpu.held(Held::TscAux));
        self.xmm = vcpu.xmm_registers();
        let (area, components) = (vcpu.xbuff(), self.components(vcpu));
        let present = area[XSTATE_BV].load(Relaxed);
        self.have_in_xcr0(components | self.supported & AVX);
        if present & components & AVX != 0 {
            load_upper_halves(area);
        } else if self.supported & AVX != 0 {
            clear_upper_halves();
        }
        let mxcsr = match present & SSE {
            0 => MXCSR_INITIAL as u32,
            _ => area[MXCSR].load(Relaxed) as u32 & MXCSR_BITS,
        };
        // SAFETY: no reserved bit is set, not even one that the host has written; the monitor uses no floating point.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &mxcsr, options(nostack, readonly)) };
        let mut others = components & !BY_REGISTER;
        if has_initial_x87(area) {
            reset_x87();
            others &= !X87;
        }
        if others != 0 {
            // XRSTOR accepts only the standard format. Up to AVX it equals the compacted format.
            let format = area[XCOMP_BV].swap(0, Relaxed);
            restore(area.as_ptr().cast(), others);
            area[XCOMP_BV].store(format, Relaxed);
        }
        set_xcr0(vcpu.held(Held::Xcr0));
    }

    /// Saves the guest's extended state.
    #[inline(always)]
    pub(super) fn store_extended(&mut self, vcpu: &Vcpu<'_>) {
        let addresses = debug_addresses();
        for (number, register) in DEBUG_ADDRESSES.into_iter().enumerate() {
            vcpu.set_held(register, addresses[number]);
        }
        let (area, components) = (vcpu.xbuff(), self.components(vcpu));
        // TCG has no intercept for XSETBV. This drops components that the guest could enable but the TD does not have.
        vcpu.set_held(Held::Xcr0, xcr0() & components | X87);
        self.have_in_xcr0(components);
        let at: *const u64 = area.as_ptr().cast();
        let others = components & !BY_REGISTER;
        // SAFETY: an aligned page with room for the area in standard format, of words that may be written through a
        // shared reference.
        unsafe {
            asm!("xsave64 [{at}]", "stmxcsr [{at} + 24]", at = in(reg) at,
                in("eax") others as u32, in("edx") (others >> 32) as u32, options(nostack));
        }
        if components & AVX != 0 {
            store_upper_halves(area);
        }
        area[XSTATE_BV].fetch_or(components & BY_REGISTER, Relaxed);
    }

    /// Resets the extended state of all components that TDs can have to its initial state, so that no state of a TD is
    /// left for the host. XCR0 then has all of them.
    #[inline(always)]
    pub fn scrub(&self) {
        set_xcr0(self.supported);
        reset_x87();
        restore(INITIAL.0.as_ptr(), self.supported & !X87);
        set_tsc_aux(0);
        set_debug_addresses([0; 4]);
    }
}
