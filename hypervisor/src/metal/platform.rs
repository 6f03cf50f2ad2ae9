//! The machine as a [`Platform`]: the SEAMCALL instruction, the frame allocator behind its lock, memory through the
//! direct map.
#![expect(
    unsafe_code,
    reason = "memory is reached through the direct map, and cleared and flushed by instructions"
)]

use alloc::vec::Vec;
use core::{
    arch::{
        asm,
        x86_64::{__cpuid, __cpuid_count, _mm_clflush, _mm_mfence},
    },
    ops::ControlFlow,
    ptr, slice,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed},
    },
};

use console::host::event::EventKind;
use host::functions::Functions;
use host::platform::{
    Attention, CpuPlace, Platform, Running, Stopwatch, TdEvent, shutdown::Shutdown,
};
use mm::{
    frames::{self, Frame, ORDER_1G, ORDER_2M, ORDER_4K, Retired},
    pages::Flush,
    private::FramePool,
    shared::{self, Words},
};
use seam::{
    abi::{FatalDiagnostics, FatalRecord, Gprs, PageSize},
    address::Hpa,
    call::{Fault, SeamCall},
    counters::Counters,
    hardware::Hardware,
    page::Clear,
    retry::{Pause, Wait},
    tdh::Tdh,
};
use spin::Once;
use sync::call::NoAnswer;
use vcpu::{PhysicalCpu, posted::Descriptor};
use x86_64::instructions::interrupts;

use crate::{
    cpu::{self, apic, timer, topology::Place, trap, vector, vmx},
    events::{self, Channel},
    memory::{self, HostFrames, direct},
    passthrough::Machines,
    rtc, time, watchdog,
};

/// The machine.
pub struct Metal {
    places: Once<Vec<CpuPlace>>,
    pool: FramePool<HostFrames, DirectMap>,
}

/// The only instance of [`Metal`].
pub static METAL: Metal = Metal {
    places: Once::new(),
    pool: FramePool::new(HostFrames, DirectMap),
};

impl Metal {
    /// Takes the 4 KiB page at `page`, whose memory is broken, out of use, now or when it is freed.
    ///
    /// # Errors
    /// Too many broken pages are in use.
    pub fn retire(&self, page: Hpa) -> Result<Retired, frames::FrameError> {
        self.pool.retire(page)
    }

    /// Notes the module's shutdown if the module has told of a fatal error since the last call.
    pub fn serve_module(&self) {
        // An interrupt with this vector that is not the module's means nothing.
        if cpu::module::take() && self.fatal_record().is_complete() {
            SHUTDOWN.note(|| self.fatal_record());
        }
    }

    /// Returns the SEAMCALL counts of the calling CPU.
    fn own_counters() -> &'static Counters {
        /// Counts the calls that are made before the CPU has its own data.
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

    fn stopwatch(&self) -> &Stopwatch {
        &STOPWATCH
    }

    fn shutdown(&self) -> &Shutdown {
        &SHUTDOWN
    }

    fn fatal_diagnostics(&self) -> Option<FatalDiagnostics> {
        let record = Hpa(memory::physical(&raw const FATAL_RECORD as u64));
        FatalDiagnostics::new(record, vector::MODULE_VECTOR)
    }

    fn fatal_record(&self) -> FatalRecord {
        let [state, error, rest @ ..] = &FATAL_RECORD.0;
        FatalRecord {
            state: state.load(Acquire),
            error: error.load(Relaxed),
            rest: rest.each_ref().map(|word| word.load(Relaxed)),
        }
    }

    fn pool(&self) -> &Self::Pool {
        &self.pool
    }

    /// The CPUs that run at the first call, which comes after all have had time to start.
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

    // Interrupts are on during the pause, so work that waits for this CPU can interrupt it.
    fn relax(&self) {
        // The waits that this is part of are bounded.
        if cpu::number() == 0 {
            watchdog::feed();
        }
        core::hint::spin_loop();
    }

    fn note(&self, event: &TdEvent<'_>) {
        let channel = event.asked_by.map(Channel::Td);
        let td = Some((event.td, event.name));
        events::note(EventKind::State, channel, td, event.what);
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

impl PhysicalCpu for Metal {
    type Frames = Shared;

    fn shared_frames(&self) -> &Shared {
        &Shared
    }

    fn tsc(&self) -> u64 {
        time::tsc()
    }

    fn monotonic_us(&self) -> u64 {
        self.now_us()
    }

    fn unix_seconds(&self) -> u64 {
        rtc::unix_seconds()
    }

    fn wake_console(&self) {
        cpu::wake_console();
    }

    fn notify(&self, cpu: u32) {
        if let Some(cpu) = cpu::all().get(cpu as usize) {
            apic::send(
                cpu.apic_id,
                apic::Message::Fixed(vector::NOTIFICATION_VECTOR),
            );
        }
    }

    fn serve_interrupt(&self, vector: u8) {
        trap::serve_interrupt(vector);
    }

    fn serve_nmi(&self) {
        trap::serve_nmi();
    }

    fn serve_machine_check(&self) {
        trap::serve_machine_check();
    }

    fn take_interrupts(&self) {
        interrupts::enable();
        core::hint::spin_loop();
        interrupts::disable();
    }
}

impl Running for Metal {
    fn tsc_hz(&self) -> u64 {
        time::hz()
    }

    fn descriptor_at(&self, descriptor: &Descriptor) -> Hpa {
        Hpa(memory::physical(&raw const *descriptor as u64))
    }

    fn core_of(&self, cpu: u32) -> u32 {
        let place = cpu::all().get(cpu as usize).map(|cpu| cpu.place());
        place.map_or(u32::MAX, Place::first_thread)
    }

    fn attention(&self, cpu: u32) -> &Attention {
        /// Stands in for a number that no CPU has.
        static NOBODY: Attention = Attention::new();
        cpu::all()
            .get(cpu as usize)
            .map_or(&NOBODY, |cpu| &cpu.attention)
    }

    fn poke(&self, cpu: u32) {
        cpu::poke(cpu);
    }

    fn set_timer(&self, tsc: Option<u64>) {
        timer::set(tsc);
    }

    fn notification_vector(&self) -> u8 {
        vector::NOTIFICATION_VECTOR
    }

    fn functions(&self) -> Option<&dyn Functions> {
        Some(&Machines)
    }

    fn flush_shared_ept(&self) {
        vmx::forget_epts();
    }
}

/// Measures the host's SEAMCALLs.
static STOPWATCH: Stopwatch = Stopwatch::new();

/// Records that the module has shut down.
static SHUTDOWN: Shutdown = Shutdown::new();

/// The place where the module records a fatal error.
#[repr(align(64))]
struct FatalPlace([AtomicU64; size_of::<FatalRecord>() / size_of::<u64>()]);

static FATAL_RECORD: FatalPlace = FatalPlace([const { AtomicU64::new(0) }; 8]);

/// The host's only path to SEAMCALL.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recorded;

impl SeamCall for Recorded {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        let slot = cpu::this().map(|cpu| cpu.seam_log.begin(time::tsc(), regs));
        let outcome = STOPWATCH.time(time::tsc, regs, |regs| Hardware.seamcall(regs));
        if let Some(slot) = slot {
            slot.end(&outcome, regs);
        }
        outcome
    }

    fn note_shutdown(&self) {
        SHUTDOWN.note(|| METAL.fatal_record());
    }
}

/// The host's frames that TDs share.
#[derive(Clone, Copy, Debug)]
pub struct Shared;

impl shared::Frames for Shared {
    fn take(&self, size: PageSize) -> Option<Hpa> {
        memory::alloc_zeroed(order(size)).map(|frame| Hpa(frame.pa))
    }

    fn give(&self, hpa: Hpa, size: PageSize) {
        let frame = Frame {
            pa: hpa.0,
            order: order(size),
        };
        if let Err(error) = memory::free(frame) {
            log::error!("a shared frame at {:#x} could not be freed: {error}", hpa.0);
        }
    }

    fn quarantine(&self, hpa: Hpa, size: PageSize) {
        let frame = Frame {
            pa: hpa.0,
            order: order(size),
        };
        if let Err(error) = memory::quarantine(frame) {
            log::error!("a shared frame at {:#x} is not put away: {error}", hpa.0);
        }
    }

    fn split(&self, hpa: Hpa) {
        let frame = Frame {
            pa: hpa.0,
            order: ORDER_2M,
        };
        if let Err(error) = memory::split(frame) {
            log::error!("a shared frame at {:#x} was not split: {error}", hpa.0);
        }
    }

    fn words(&self, hpa: Hpa) -> &Words {
        // SAFETY: the frame is handed out and the host's own, and the direct map has it; a guest may change the words
        // at any time, which is why they are atomic.
        unsafe { &*(direct(hpa.0) as *const Words) }
    }
}

const fn order(size: PageSize) -> u32 {
    match size {
        PageSize::Size4K => ORDER_4K,
        PageSize::Size2M => ORDER_2M,
        PageSize::Size1G => ORDER_1G,
    }
}

/// Spins between two tries of a SEAMCALL. Interrupts that are on are served.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spin;

impl Wait for Spin {
    fn wait(&self, pause: Pause) -> ControlFlow<()> {
        time::wait_us(pause.us.into(), || false);
        ControlFlow::Continue(())
    }
}

/// The host's frames, accessed through the direct map.
#[derive(Clone, Copy, Debug)]
pub struct DirectMap;

/// Number of bytes that one MOVDIR64B writes.
const DIRECT_STORE: u64 = 64;

impl Clear for DirectMap {
    fn clear(&self, hpa: Hpa, size: PageSize) {
        #[repr(align(64))]
        struct Zeroes([u8; DIRECT_STORE as usize]);
        static ZEROES: Zeroes = Zeroes([0; DIRECT_STORE as usize]);
        let start = direct(hpa.0);
        // SAFETY: the frame is the host's and nobody borrows from it; the direct map has all of it. The CPU has
        // MOVDIR64B: without it no module was started and no frame comes back from one.
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
        let lines = (start..start + size.bytes()).step_by(line_bytes());
        match flush_of(__cpuid_count(7, 0).ebx) {
            FlushBy::Clflushopt => lines.for_each(|line| {
                // SAFETY: the direct map has the frame; flushing a line changes nothing but where its data is. The
                // CPU enumerates the instruction.
                unsafe { asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags)) };
            }),
            FlushBy::Clflush => lines.for_each(|line| {
                // SAFETY: as above.
                unsafe { _mm_clflush(line as *const u8) };
            }),
        }
        // SAFETY: a fence has no operands. It orders both instructions with what follows.
        unsafe { _mm_mfence() };
    }
}

/// The instruction that flushes a cache line. CLFLUSHOPT does not wait for the previous line (Intel SDM volume 2A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlushBy {
    Clflushopt,
    Clflush,
}

/// Returns the best instruction of a CPU with this EBX of CPUID leaf 7.
const fn flush_of(leaf_7_ebx: u32) -> FlushBy {
    if leaf_7_ebx & 1 << 23 != 0 {
        FlushBy::Clflushopt
    } else {
        FlushBy::Clflush
    }
}

/// Returns the size in bytes of the cache line that both flush (CPUID 1, EBX bits 15:8, in units of 8).
fn line_bytes() -> usize {
    static BYTES: Once<usize> = Once::new();
    *BYTES.call_once(|| (__cpuid(1).ebx as usize >> 8 & 0xFF).max(1) * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_faster_flush_is_used_where_it_is_enumerated() {
        assert_eq!(flush_of(1 << 23), FlushBy::Clflushopt);
        assert_eq!(flush_of(!(1 << 23)), FlushBy::Clflush);
    }
}
