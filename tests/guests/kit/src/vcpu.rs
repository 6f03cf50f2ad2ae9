//! vCPUs: the data of each, their wakeup, and the work given to them.
#![expect(
    unsafe_code,
    reason = "starts vCPUs in assembly and finds their data through GS"
)]

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use spin::Mutex;
use td_base::long_mode;

use crate::attempt::Caught;
use crate::layout::{MAX_VCPUS, VCPU_AREA_BYTES};
use crate::trap::{self, Tables};
use crate::vmcall::Refused;
use crate::{cpu, memory, start, tdcall, vmcall};

/// Number of stacks for events, one for each kind, since the prebuilt `core` uses the red zone.
pub(crate) const EVENT_STACKS: usize = 5;
const EVENT_STACK_BYTES: usize = 0x2000;
const VCPU_BYTES: usize = 0x2000;

/// The memory of one vCPU. Zeros are a valid initial state.
#[repr(C, align(4096))]
pub struct Area {
    vcpu: Vcpu,
    event_stacks: [[u8; EVENT_STACK_BYTES]; EVENT_STACKS],
    stack: [u8; VCPU_AREA_BYTES as usize - VCPU_BYTES - EVENT_STACKS * EVENT_STACK_BYTES],
}

const _: () = assert!(size_of::<Area>() == VCPU_AREA_BYTES as usize);

/// A vCPU's own data.
#[repr(C, align(8192))]
pub struct Vcpu {
    /// The address of this structure; at GS:0.
    this: AtomicPtr<Vcpu>,
    index: AtomicU32,
    tables: Tables,
    /// The instruction that is being attempted; zero at other times.
    pub(crate) attempted: AtomicU64,
    /// The address at which to continue if the attempted instruction faults; zero at other times.
    pub(crate) resume: AtomicU64,
    /// The outcome of the last attempt.
    pub(crate) caught: Mutex<Option<Caught>>,
    /// Counts of interrupts, by vector.
    pub(crate) interrupts: [AtomicU32; 256],
    /// Count of NMIs.
    pub(crate) nmis: AtomicU32,
    /// Count of NMIs that came while another was handled.
    pub(crate) nested_nmis: AtomicU32,
    /// True while an NMI is handled.
    pub(crate) in_nmi: AtomicBool,
    /// A `fn()` for the next NMI's handler, or zero.
    pub(crate) nmi_hook: AtomicUsize,
    /// The last vectors, the latest in the lowest byte.
    pub(crate) order: AtomicU64,
    /// The frame of a #VE whose handler is to fault; zero at other times.
    pub(crate) ve_frame: AtomicU64,
    /// A number that a check keeps.
    noted: AtomicU64,
    /// The action of the next #VE's handler before it fetches the information.
    pub(crate) mischief: AtomicU32,
    /// Count of #VEs that were served outside attempts.
    pub(crate) served: AtomicU64,
    /// A `fn()` to run, or zero.
    job: AtomicUsize,
}

const _: () = assert!(size_of::<Vcpu>() == VCPU_BYTES);

/// Offsets that assembly uses through GS.
pub const ATTEMPTED: usize = offset_of!(Vcpu, attempted);
/// See [`ATTEMPTED`].
pub const RESUME: usize = offset_of!(Vcpu, resume);

const GS_BASE: u32 = 0xC000_0101;

/// Returns the vCPU that executes this.
pub fn current() -> &'static Vcpu {
    let this: *const Vcpu;
    // SAFETY: GS was set before this can be called, and areas are never freed.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) this, options(nostack, readonly, preserves_flags));
        &*this
    }
}

impl Vcpu {
    /// Returns the vCPU's number.
    pub fn index(&self) -> u32 {
        self.index.load(Ordering::Relaxed)
    }

    /// Returns the number of interrupts that came with `vector`.
    pub fn interrupts(&self, vector: u8) -> u32 {
        self.interrupts[usize::from(vector)].load(Ordering::Acquire)
    }

    /// Returns the number of NMIs that came.
    pub fn nmis(&self) -> u32 {
        self.nmis.load(Ordering::Acquire)
    }

    /// Returns the number of NMIs that came while another was handled; zero on a real processor.
    pub fn nested_nmis(&self) -> u32 {
        self.nested_nmis.load(Ordering::Relaxed)
    }

    /// Makes the handler of the next NMI call `hook`.
    pub fn call_in_next_nmi(&self, hook: fn()) {
        self.nmi_hook.store(hook as usize, Ordering::Relaxed);
    }

    /// Starts recording the order of interrupts.
    pub fn note_order(&self) {
        self.order.store(0, Ordering::Relaxed);
    }

    /// Returns the vectors of the interrupts since [`Self::note_order`], the latest in the lowest byte.
    pub fn order(&self) -> u64 {
        self.order.load(Ordering::Relaxed)
    }

    /// Stores a number for [`Self::noted`].
    pub fn note(&self, number: u64) {
        self.noted.store(number, Ordering::Relaxed);
    }

    /// Returns the number stored by [`Self::note`].
    pub fn noted(&self) -> u64 {
        self.noted.load(Ordering::Relaxed)
    }

    /// Makes the handler of the next #VE raise another one before it fetches the information.
    pub fn fault_in_next_ve(&self) {
        self.mischief.store(trap::FAULT, Ordering::Relaxed);
    }

    /// Makes the handler of the next #VE call `hook` before it fetches the information.
    pub fn call_in_next_ve(&self, hook: fn()) {
        VE_HOOK.store(hook as usize, Ordering::Relaxed);
        self.mischief.store(trap::ASK, Ordering::Relaxed);
    }

    /// Returns the number of #VEs that the handler served.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

/// The mailbox by which vCPUs are woken. It is as firmware's, with a stack and an argument in the operating system's
/// part. The id is the vCPU's number.
///
/// Source: ACPI 6.5, section 5.2.12.19, "Multiprocessor Wakeup Mailbox Structure".
#[repr(C)]
pub(crate) struct Mailbox {
    command: AtomicU32,
    id: AtomicU32,
    address: AtomicU64,
    stack: AtomicU64,
    argument: AtomicU64,
}

const WAKE_UP: u32 = 1;

pub(crate) static MAILBOX: Mailbox = Mailbox {
    command: AtomicU32::new(0),
    id: AtomicU32::new(0),
    address: AtomicU64::new(0),
    stack: AtomicU64::new(0),
    argument: AtomicU64::new(0),
};

/// The running vCPUs, by number.
static RUNNING: [AtomicPtr<Vcpu>; MAX_VCPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_VCPUS];
static FINISHED: AtomicBool = AtomicBool::new(false);

unsafe extern "Rust" {
    fn guest_main() -> !;
}

/// The entry point into Rust of every vCPU, on its own stack.
pub(crate) extern "sysv64" fn enter(area: *mut Area) -> ! {
    // SAFETY: the area is this vCPU's alone, and both zeros and the leftovers of an earlier life are valid.
    let area = unsafe { &*area };
    let vcpu = &area.vcpu;
    let this = &raw const *vcpu;
    vcpu.this.store(this.cast_mut(), Ordering::Relaxed);
    // Zeros need not represent `None`.
    *vcpu.caught.lock() = None;
    // SAFETY: GS is used only for this.
    unsafe { cpu::wrmsr(GS_BASE, this as u64) };
    let info = tdcall::vp_info();
    vcpu.index.store(info.index, Ordering::Relaxed);
    let event_stacks = area
        .event_stacks
        .each_ref()
        .map(|stack| stack.as_ptr_range().end as u64);
    trap::load(&vcpu.tables, event_stacks);
    if info.index == 0 {
        long_mode::map_shared(1 << (info.gpa_width - 1));
        memory::read_hob(start::initial(0, start::Initial::R8));
    }
    RUNNING[info.index as usize].store(this.cast_mut(), Ordering::Release);
    if info.index == 0 {
        // SAFETY: `guest!` defined it, with this signature.
        unsafe { guest_main() }
    }
    work(vcpu)
}

/// Runs the vCPU's jobs until the guest has finished.
fn work(vcpu: &Vcpu) -> ! {
    while !FINISHED.load(Ordering::Relaxed) {
        let job = vcpu.job.load(Ordering::Acquire);
        if job == 0 {
            core::hint::spin_loop();
            continue;
        }
        // SAFETY: only `give` stores here, and it stores functions of this type.
        let job = unsafe { core::mem::transmute::<usize, fn()>(job) };
        job();
        vcpu.job.store(0, Ordering::Release);
    }
    halt()
}

/// A `fn()` for [`Vcpu::call_in_next_ve`], shared by all vCPUs that want one at a time.
static VE_HOOK: AtomicUsize = AtomicUsize::new(0);

/// Calls that hook.
pub(crate) fn call_ve_hook() {
    call(VE_HOOK.load(Ordering::Relaxed));
}

/// Calls a hook; zero is none.
pub(crate) fn call(hook: usize) {
    if hook != 0 {
        // SAFETY: hooks are stored where functions of this type are given.
        unsafe { core::mem::transmute::<usize, fn()>(hook)() }
    }
}

/// Returns the number of vCPUs of the TD that a guest can use.
pub fn count() -> u32 {
    tdcall::vp_info().vcpus.min(MAX_VCPUS as u32)
}

/// Returns the vCPU with this number, once it runs.
pub fn running(index: u32) -> Option<&'static Vcpu> {
    let vcpu = RUNNING.get(index as usize)?.load(Ordering::Acquire);
    // SAFETY: the list holds vCPUs in areas that are never freed.
    unsafe { vcpu.as_ref() }
}

/// Wakes every vCPU that waits at the mailbox, one after the other. vCPU 0 calls it.
pub fn start_all() {
    for index in (1..count()).filter(|index| running(*index).is_none()) {
        let area = memory::take(VCPU_AREA_BYTES, align_of::<Area>() as u64);
        MAILBOX
            .address
            .store(enter as *const () as u64, Ordering::Relaxed);
        MAILBOX
            .stack
            .store(area + VCPU_AREA_BYTES, Ordering::Relaxed);
        MAILBOX.argument.store(area, Ordering::Relaxed);
        MAILBOX.id.store(index, Ordering::Relaxed);
        MAILBOX.command.store(WAKE_UP, Ordering::Release);
        cpu::wait_until(|| MAILBOX.command.load(Ordering::Acquire) == 0);
        cpu::wait_until(|| running(index).is_some());
    }
}

/// Makes vCPU `index`, which runs and is not this one, execute `job`.
pub fn give(index: u32, job: fn()) {
    if let Some(vcpu) = running(index) {
        vcpu.job.store(job as usize, Ordering::Release);
    }
}

/// Waits until vCPU `index` has finished its job.
pub fn finish(index: u32) {
    if let Some(vcpu) = running(index) {
        cpu::wait_until(|| vcpu.job.load(Ordering::Acquire) == 0);
    }
}

/// Makes every running vCPU execute `job`, including this one, and waits for all.
pub fn on_all(job: fn()) {
    let others = || (0..count()).filter(|index| *index != current().index());
    others().for_each(|index| give(index, job));
    job();
    others().for_each(finish);
}

/// Makes vCPU `index` execute `job`, and waits for it.
pub fn on(index: u32, job: fn()) {
    if index == current().index() {
        job();
    } else {
        give(index, job);
        finish(index);
    }
}

/// Ends the guest: every vCPU halts.
pub fn finish_all() -> ! {
    FINISHED.store(true, Ordering::Relaxed);
    // vCPUs that never ran wait at the mailbox, which costs the host a CPU.
    start_all();
    halt()
}

/// Halts this vCPU until `condition` holds, which interrupts make true. Pending interrupts are taken before it
/// returns.
///
/// # Errors
/// [`Refused`].
pub fn sleep_until(condition: impl Fn() -> bool) -> Result<(), Refused> {
    loop {
        // From here on an interrupt stays pending, and thus keeps the vCPU from halting.
        cpu::disable_interrupts();
        let is_time = condition();
        if !is_time {
            vmcall::hlt(false)?;
        }
        cpu::enable_interrupts();
        if is_time {
            return Ok(());
        }
    }
}

/// Halts this vCPU for good.
pub fn halt() -> ! {
    cpu::disable_interrupts();
    loop {
        // Nothing else can be done, whether the request is refused or the vCPU is woken.
        let _ = vmcall::hlt(true);
    }
}
