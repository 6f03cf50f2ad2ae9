//! The logical processors: their data, their state, and calls between them.
#![expect(
    unsafe_code,
    reason = "each CPU finds its own data through the GS base"
)]

pub mod apic;
pub mod check;
pub mod fatal;
pub mod ghes;
pub mod group;
pub mod line;
pub mod model;
pub mod module;
pub mod nmi;
pub mod speculation;
pub mod start;
mod tables;
pub mod timer;
pub mod topology;
pub mod trap;
mod tsc;
pub mod vector;
pub mod vmx;
pub mod wake;

use alloc::{boxed::Box, vec::Vec};
use core::{
    arch::asm,
    sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use x86_64::{
    VirtAddr, instructions,
    registers::{
        control::{Cr4, Cr4Flags},
        model_specific::GsBase,
    },
};

use self::{tables::Tables, topology::Place, vmx::Vmx};
use host::platform::Attention;
use mca::pages::Pages;
use seam::counters::Counters;
use sync::{
    IrqLock,
    call::{self, Mailbox, NoAnswer},
    irq::Switch,
};

use crate::{msr, seamlog::SeamLog, time};

/// The activity of a CPU.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The CPU was not asked to start because the machine can't start it.
    NotUsed,
    /// INIT-SIPI-SIPI was sent.
    Starting,
    /// The CPU executes something.
    Online,
    /// The CPU is halted until an interrupt arrives.
    Idle,
    /// The CPU did not report in time. If it comes up later, it halts for good.
    NeverStarted,
    /// The CPU was stopped for good.
    Stopped,
}

impl State {
    const ALL: [Self; 6] = [
        Self::NotUsed,
        Self::Starting,
        Self::Online,
        Self::Idle,
        Self::NeverStarted,
        Self::Stopped,
    ];
}

/// One CPU's data. The CPU's GS base points here.
#[repr(C)]
pub struct Cpu {
    this: *const Cpu,
    /// The hypervisor's number for the CPU; numbers start at 0 and have no gaps.
    pub number: u32,
    /// The x2APIC id, from the MADT.
    pub apic_id: u32,
    /// True for the CPU that the firmware booted on.
    pub bootstrap: bool,
    /// The mailbox for calls from other CPUs.
    pub mailbox: Mailbox,
    /// The reasons why the CPU must leave what it runs.
    pub attention: Attention,
    /// Ticks that the CPU may spend reclaiming memory before it runs a vCPU again. Only the CPU itself changes it.
    pub reclaim_credit: AtomicI64,
    /// On whose behalf the CPU works, as a number of [`crate::events::Channel`].
    pub channel: AtomicU32,
    /// Ticks in which the CPU was halted, without the present halt.
    halted: AtomicU64,
    /// The tick at which the present halt began; 0 while the CPU executes something.
    halted_at: AtomicU64,
    /// The CPU's timer.
    pub timer: timer::Armed,
    /// The CPU's machine checks.
    pub checks: check::Checks,
    /// The CPU's mitigations of speculative execution attacks.
    pub speculation: speculation::Speculation,
    /// The last SEAMCALLs that the CPU made.
    pub seam_log: SeamLog,
    /// Counts of the SEAMCALLs that the CPU made.
    pub seam_counters: Counters,
    state: AtomicU8,
    node: AtomicU32,
    place: IrqLock<Place>,
    vmx: IrqLock<Option<Result<Vmx, vmx::Error>>>,
    /// The revision of the CPU's microcode, which the CPU reads when it starts.
    microcode: spin::Once<Option<u32>>,
    /// The ends of the CPU's interrupt stacks, until it loads its tables.
    stacks: IrqLock<Option<[u64; tables::STACKS]>>,
}

// SAFETY: `this` is never written after creation, and points at this very structure, which is never freed.
unsafe impl Sync for Cpu {}
// SAFETY: as above; nothing else in the structure is bound to a CPU.
unsafe impl Send for Cpu {}

impl Cpu {
    /// Returns the CPU's activity.
    pub fn state(&self) -> State {
        State::ALL[usize::from(self.state.load(Ordering::Acquire))]
    }

    /// Returns the CPU's place. Before it has started, this is its APIC id split as the bootstrap CPU's is.
    pub fn place(&self) -> Place {
        *self.place.lock()
    }

    /// Returns the CPU's proximity domain if the SRAT names one.
    pub fn node(&self) -> Option<u32> {
        let node = self.node.load(Ordering::Relaxed);
        (node != NO_NODE).then_some(node)
    }

    /// Returns true if the CPU runs the hypervisor.
    pub fn is_up(&self) -> bool {
        matches!(self.state(), State::Online | State::Idle)
    }

    /// Returns the outcome of VMXON on the CPU, or `None` before the attempt.
    pub fn vmx(&self) -> Option<Result<Vmx, vmx::Error>> {
        *self.vmx.lock()
    }

    /// Returns the revision of the CPU's microcode, if the CPU has started and tells it.
    #[must_use]
    pub fn microcode(&self) -> Option<u32> {
        self.microcode.get().copied().flatten()
    }

    /// Returns the microseconds in which the CPU was halted.
    pub fn idle_us(&self) -> u64 {
        let present = match self.halted_at.load(Ordering::Relaxed) {
            0 => 0,
            since => time::tsc().saturating_sub(since),
        };
        time::to_us(self.halted.load(Ordering::Relaxed) + present)
    }

    fn count_halt(&self) {
        let since = self.halted_at.swap(0, Ordering::Relaxed);
        let ticks = time::tsc().saturating_sub(since);
        self.halted.fetch_add(ticks, Ordering::Relaxed);
    }

    fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    fn change_state(&self, from: State, to: State) -> bool {
        self.state
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Makes this structure the running CPU's: loads its tables, GS base and place.
    fn adopt(&'static self) {
        let stacks = self.stacks.lock().take();
        let tables = Box::leak(Box::new(Tables::new(stacks.unwrap_or_default())));
        tables.load();
        // SAFETY: the machine-check handler is there from here on; without this bit a machine check is a shutdown.
        unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::MACHINE_CHECK_EXCEPTION)) };
        GsBase::write(VirtAddr::from_ptr(self));
        speculation::start_here(self);
        *self.place.lock() = topology::read(&msr::ThisCpu).0;
    }
}

const NO_NODE: u32 = u32::MAX;

static CPUS: spin::Once<Vec<&'static Cpu>> = spin::Once::new();
/// True once the GS base of every CPU that runs Rust code points at its data.
static ADOPTED: AtomicBool = AtomicBool::new(false);
static CALL_TIMEOUT_US: AtomicU32 = AtomicU32::new(2_000_000);
/// True if CPUs can be interrupted: there is an x2APIC.
static INTERRUPTS: AtomicBool = AtomicBool::new(false);
/// True if the bootstrap CPU must poll for console input.
static POLLED: AtomicBool = AtomicBool::new(false);

/// Returns every CPU that the firmware lists as enabled, by number.
#[must_use]
pub fn all() -> &'static [&'static Cpu] {
    CPUS.get().map_or(&[], Vec::as_slice)
}

/// Returns the numbers of the CPUs that run the hypervisor.
#[must_use]
pub fn up() -> Vec<u32> {
    all()
        .iter()
        .filter(|c| c.is_up())
        .map(|c| c.number)
        .collect()
}

/// Returns the calling CPU, or `None` before it has its data.
#[must_use]
pub fn this() -> Option<&'static Cpu> {
    ADOPTED.load(Ordering::Relaxed).then(|| {
        let this: *const Cpu;
        // SAFETY: every CPU that runs Rust code has its GS base set, and `this` is the first field of the structure
        // there, which is never freed.
        unsafe {
            asm!("mov {}, gs:[0]", out(reg) this, options(nostack, preserves_flags, readonly));
            &*this
        }
    })
}

/// Returns the calling CPU's number, or 0 before it has its data.
#[must_use]
pub fn number() -> u32 {
    this().map_or(0, |cpu| cpu.number)
}

/// The interrupt switch of this machine's CPUs, for the locks of [`sync`].
pub const INTERRUPT_SWITCH: Switch = Switch {
    off: || {
        let were_on = instructions::interrupts::are_enabled();
        instructions::interrupts::disable();
        were_on
    },
    on: instructions::interrupts::enable,
};

/// Sets the time in microseconds that a CPU may take to answer a call.
pub fn set_call_timeout(us: u32) {
    CALL_TIMEOUT_US.store(us, Ordering::Relaxed);
}

/// Runs `work` with the CPU's number on each of `cpus` at once, with interrupts off on all but the caller's.
///
/// # Errors
/// [`NoAnswer`] names the CPUs on which it did not run.
pub fn on_each(cpus: &[u32], work: &(dyn Fn(u32) + Sync)) -> Result<(), NoAnswer> {
    call::call(&Hardware, cpus, work)
}

struct Hardware;

impl call::Machine for Hardware {
    fn me(&self) -> u32 {
        number()
    }

    fn mailbox(&self, cpu: u32) -> &Mailbox {
        &all()[cpu as usize].mailbox
    }

    fn notify(&self, cpu: u32) {
        apic::send(
            all()[cpu as usize].apic_id,
            apic::Message::Fixed(vector::CALL_VECTOR),
        );
    }

    fn now(&self) -> u64 {
        time::us()
    }

    fn is_over(&self, since: u64) -> bool {
        time::us().saturating_sub(since) > CALL_TIMEOUT_US.load(Ordering::Relaxed).into()
    }
}

/// Wakes the bootstrap CPU, which the console runs on, to look for work.
pub fn wake_console() {
    if let Some(cpu) = all().first() {
        cpu.attention.poke();
    }
    if number() != 0 {
        poke(0);
    }
}

/// Wakes the bootstrap CPU from a handler that may have interrupted it just before it halts: the interrupt stays pending
/// and ends the halt.
fn call_console() {
    if let Some(cpu) = all().first() {
        cpu.attention.poke();
        poke(0);
    }
}

/// Interrupts a CPU so that it reads its [`Attention`].
pub fn poke(cpu: u32) {
    if interrupts()
        && let Some(cpu) = all().get(cpu as usize)
    {
        apic::send(cpu.apic_id, apic::Message::Fixed(vector::CALL_VECTOR));
    }
}

/// Returns true if CPUs can be interrupted. Without an x2APIC everything is polled.
#[must_use]
pub fn interrupts() -> bool {
    INTERRUPTS.load(Ordering::Relaxed)
}

/// Runs the call that waits for this CPU, if any.
fn serve_calls() {
    if let Some(cpu) = this() {
        cpu.mailbox.serve(cpu.number);
    }
}

/// Makes the bootstrap CPU poll for work instead of halting, because the serial port can't interrupt it.
pub fn poll_console() {
    POLLED.store(true, Ordering::Relaxed);
}

/// Returns true if the bootstrap CPU must poll for work: nothing interrupts it for the serial port.
#[must_use]
pub fn polls_console() -> bool {
    !interrupts() || POLLED.load(Ordering::Relaxed)
}

/// Halts until the next interrupt unless `busy` reports work. Without interrupts, waits for a moment.
pub fn idle(busy: impl FnOnce() -> bool) {
    if polls_console() && (!interrupts() || number() == 0) {
        core::hint::spin_loop();
        return;
    }
    instructions::interrupts::disable();
    if !busy() {
        if let Some(cpu) = this() {
            cpu.halted_at.store(time::tsc(), Ordering::Relaxed);
            cpu.set_state(State::Idle);
        }
        instructions::interrupts::enable_and_hlt();
        if let Some(cpu) = this() {
            cpu.set_state(State::Online);
            cpu.count_halt();
        }
    }
    instructions::interrupts::enable();
}

/// Stops this CPU for good.
pub fn stop_here() -> ! {
    if let Some(cpu) = this() {
        cpu.set_state(State::Stopped);
    }
    loop {
        instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// Pages whose data is lost, from the handlers that find them to the code that takes them out of use.
pub static LOST_PAGES: Pages = Pages::new();
/// The bits of a physical address that hold a KeyID.
static KEY_ID_BITS: AtomicU64 = AtomicU64::new(0);

/// Notes that the data in the page at `page` is lost. A KeyID in the address does not matter.
fn lose_page(page: u64) {
    LOST_PAGES.add(page & !KEY_ID_BITS.load(Ordering::Relaxed));
}

/// True while one CPU stops the others by NMI.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Returns true if an NMI is this program's own.
pub(crate) fn stopping() -> bool {
    STOPPING.load(Ordering::Acquire)
}

/// Stops every other running CPU without waiting for it.
pub fn stop_others() {
    STOPPING.store(true, Ordering::Release);
    if !INTERRUPTS.load(Ordering::Relaxed) {
        return;
    }
    let me = number();
    for cpu in all().iter().filter(|c| c.number != me && c.is_up()) {
        apic::send(cpu.apic_id, apic::Message::Nmi);
    }
}
