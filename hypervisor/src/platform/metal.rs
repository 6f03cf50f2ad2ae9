//! The machine itself as a [`Platform`]: the SEAMCALL instruction, the frame allocator behind its lock, memory through the
//! direct map.
#![expect(
    unsafe_code,
    reason = "memory is reached through the direct map, and cleared and flushed by instructions"
)]

use alloc::vec::Vec;
use core::{
    arch::{
        asm,
        x86_64::{__cpuid, _mm_clflush, _mm_mfence},
    },
    ops::ControlFlow,
    ptr, slice,
};

use mm::{pages::Flush, private::FramePool};
use seam::{
    abi::PageSize,
    address::Hpa,
    counters::Counters,
    page::Clear,
    retry::{Pause, Wait},
    tdh::Tdh,
};
use spin::Once;

use super::{CpuPlace, Platform};
use crate::{
    cpu::{self, call::NoAnswer},
    memory::{HostFrames, direct},
    seamlog::Recorded,
    time,
};

/// The machine.
pub struct Metal {
    places: Once<Vec<CpuPlace>>,
    pool: FramePool<HostFrames, DirectMap>,
}

/// The machine, of which there is one.
pub static METAL: Metal = Metal {
    places: Once::new(),
    pool: FramePool::new(HostFrames, DirectMap),
};

impl Metal {
    /// Counts of the SEAMCALLs of the CPU that asks.
    fn own_counters() -> &'static Counters {
        /// For calls before the CPU has its own data.
        static EARLY: Counters = Counters::new();
        cpu::this().map_or(&EARLY, |cpu| &cpu.seam_counters)
    }
}

impl Platform for Metal {
    type Call = Recorded;
    type Wait = Spin;
    type Pool = FramePool<HostFrames, DirectMap>;

    fn tdh(&self) -> Tdh<'_, Recorded, Spin> {
        Tdh::new(Recorded, Spin, Self::own_counters())
    }

    fn counters(&self, cpu: u32) -> Option<&Counters> {
        cpu::all().get(cpu as usize).map(|cpu| &cpu.seam_counters)
    }

    fn pool(&self) -> &Self::Pool {
        &self.pool
    }

    /// Those that run at the first call, which comes when all have had their time to start.
    fn cpus(&self) -> &[CpuPlace] {
        self.places.call_once(|| {
            let up = cpu::all().iter().filter(|cpu| cpu.is_up());
            up.map(|cpu| CpuPlace {
                cpu: cpu.number,
                package: cpu.place().package,
            })
            .collect()
        })
    }

    fn this_cpu(&self) -> u32 {
        cpu::number()
    }

    fn on_each(&self, cpus: &[u32], work: &(dyn Fn(u32) + Sync)) -> Result<(), NoAnswer> {
        cpu::on_each(cpus, work)
    }

    // What waits for this CPU interrupts it.
    fn relax(&self) {
        core::hint::spin_loop();
    }

    fn write_back_caches(&self) {
        // SAFETY: WBINVD changes nothing but where data is.
        unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
    }

    fn read(&self, from: Hpa, into: &mut [u8]) {
        // SAFETY: the caller reads memory that is the host's own, which the direct map has.
        let bytes = unsafe { slice::from_raw_parts(direct(from.0) as *const u8, into.len()) };
        into.copy_from_slice(bytes);
    }

    fn write(&self, to: Hpa, bytes: &[u8]) {
        // SAFETY: the caller writes to memory that is the host's own, which the direct map has, and borrows nothing of
        // it.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), direct(to.0) as *mut u8, bytes.len());
        }
    }

    fn now_us(&self) -> u64 {
        time::us()
    }
}

/// Spends the pauses between two tries of a SEAMCALL by spinning; interrupts that are on are served.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spin;

impl Wait for Spin {
    fn wait(&self, pause: Pause) -> ControlFlow<()> {
        time::wait_us(pause.us.into(), || false);
        ControlFlow::Continue(())
    }
}

/// Frames that are the host's, through the direct map.
#[derive(Clone, Copy, Debug)]
pub struct DirectMap;

/// Bytes that one MOVDIR64B writes.
const DIRECT_STORE: u64 = 64;

impl Clear for DirectMap {
    fn clear(&self, hpa: Hpa, size: PageSize) {
        #[repr(align(64))]
        struct Zeroes([u8; DIRECT_STORE as usize]);
        static ZEROES: Zeroes = Zeroes([0; DIRECT_STORE as usize]);
        let start = direct(hpa.0);
        // SAFETY: the frame is the host's and nobody borrows from it; the direct map has all of it. MOVDIR64B is there,
        // for without it no module was started and no frame comes back from one.
        unsafe {
            asm!(
                "2:",
                "movdir64b {to}, [{zeroes}]",
                "add {to}, {step}",
                "cmp {to}, {end}",
                "jb 2b",
                "mfence",
                to = inout(reg) start => _,
                end = in(reg) start + size.bytes(),
                zeroes = in(reg) ZEROES.0.as_ptr(),
                step = const DIRECT_STORE,
                options(nostack),
            );
        }
    }
}

impl Flush for DirectMap {
    fn flush(&self, hpa: Hpa, size: PageSize) {
        let start = direct(hpa.0);
        for line in (start..start + size.bytes()).step_by(line_bytes()) {
            // SAFETY: the direct map has the frame; flushing a line changes nothing but where its data is.
            unsafe { _mm_clflush(line as *const u8) };
        }
        // SAFETY: a fence has no operands.
        unsafe { _mm_mfence() };
    }
}

/// Bytes of the cache line that CLFLUSH flushes (CPUID 1, EBX bits 15:8, in units of 8).
fn line_bytes() -> usize {
    static BYTES: Once<usize> = Once::new();
    *BYTES.call_once(|| (__cpuid(1).ebx as usize >> 8 & 0xFF).max(1) * 8)
}
