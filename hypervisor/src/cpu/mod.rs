//! The logical processors: their data, their state, and calls between them.
#![expect(
    unsafe_code,
    reason = "each CPU finds its own data through the GS base"
)]

pub mod apic;
pub mod start;
mod tables;
pub mod timer;
pub mod topology;
pub mod trap;
pub mod vmx;

use alloc::{boxed::Box, vec::Vec};
use core::{
    arch::asm,
    sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, Ordering},
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
use seam::counters::Counters;
use sync::{
    IrqLock,
    call::{self, Mailbox, NoAnswer},
    irq::Switch,
};

use crate::{msr, seamlog::SeamLog, time};

/// What a CPU is doing.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was not asked to start: the machine can't start it.
    NotUsed,
    /// It was sent INIT-SIPI-SIPI.
    Starting,
    /// It executes something.
    Online,
    /// It is halted until an interrupt arrives.
    Idle,
    /// It did not report in time; should it come up later, it halts for good.
    NeverStarted,
    /// It was stopped for good.
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

/// One CPU's own data. The GS base of the CPU points here.
#[repr(C)]
pub struct Cpu {
    this: *const Cpu,
    /// The hypervisor's number for it, from 0 without holes.
    pub number: u32,
    /// Its x2APIC id, from the MADT.
    pub apic_id: u32,
    /// Whether the firmware booted on it.
    pub bootstrap: bool,
    /// Its mailbox.
    pub mailbox: Mailbox,
    /// Why it is to leave what it does.
    pub attention: Attention,
    /// Ticks that it may spend taking memory back before it runs a vCPU again. Only the CPU itself changes it.
    pub reclaim_credit: AtomicI64,
    /// Its timer.
    pub timer: timer::Armed,
    /// The last SEAMCALLs that it made.
    pub seam_log: SeamLog,
    /// Counts of the SEAMCALLs that it made.
    pub seam_counters: Counters,
    state: AtomicU8,
    node: AtomicU32,
    place: IrqLock<Place>,
    vmx: IrqLock<Option<Result<Vmx, vmx::Error>>>,
    /// The ends of its interrupt stacks, until it loads its tables.
    stacks: IrqLock<Option<[u64; tables::STACKS]>>,
}

// SAFETY: `this` is never written after creation, and points at this very structure, which is never freed.
unsafe impl Sync for Cpu {}
// SAFETY: as above; nothing else in it is bound to a CPU.
unsafe impl Send for Cpu {}

impl Cpu {
    /// What it is doing.
    pub fn state(&self) -> State {
        State::ALL[usize::from(self.state.load(Ordering::Acquire))]
    }

    /// Where it is. Before it has started, what its id says when it is cut as the bootstrap CPU's is.
    pub fn place(&self) -> Place {
        *self.place.lock()
    }

    /// Its proximity domain, where the SRAT names one.
    pub fn node(&self) -> Option<u32> {
        let node = self.node.load(Ordering::Relaxed);
        (node != NO_NODE).then_some(node)
    }

    /// Whether it runs the hypervisor.
    pub fn is_up(&self) -> bool {
        matches!(self.state(), State::Online | State::Idle)
    }

    /// How VMXON went on it; `None` before it was tried.
    pub fn vmx(&self) -> Option<Result<Vmx, vmx::Error>> {
        *self.vmx.lock()
    }

    fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    fn change_state(&self, from: State, to: State) -> bool {
        self.state
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Makes this structure the running CPU's own: tables, GS base, place.
    fn adopt(&'static self) {
        let stacks = self.stacks.lock().take();
        let tables = Box::leak(Box::new(Tables::new(stacks.unwrap_or_default())));
        tables.load();
        // SAFETY: the machine-check handler is there from here on; without this bit a machine check is a shutdown.
        unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::MACHINE_CHECK_EXCEPTION)) };
        GsBase::write(VirtAddr::from_ptr(self));
        *self.place.lock() = topology::read(&msr::ThisCpu).0;
    }
}

const NO_NODE: u32 = u32::MAX;

static CPUS: spin::Once<Vec<&'static Cpu>> = spin::Once::new();
/// Whether the GS base of every CPU that runs Rust code points at its data.
static ADOPTED: AtomicBool = AtomicBool::new(false);
static CALL_TIMEOUT_US: AtomicU32 = AtomicU32::new(2_000_000);
/// Whether CPUs can be interrupted: there is an x2APIC.
static INTERRUPTS: AtomicBool = AtomicBool::new(false);
/// Whether the bootstrap CPU must look for console input itself.
static POLLED: AtomicBool = AtomicBool::new(false);

/// Every CPU that the firmware lists as enabled, by number.
#[must_use]
pub fn all() -> &'static [&'static Cpu] {
    CPUS.get().map_or(&[], Vec::as_slice)
}

/// The numbers of the CPUs that run the hypervisor.
#[must_use]
pub fn up() -> Vec<u32> {
    all()
        .iter()
        .filter(|c| c.is_up())
        .map(|c| c.number)
        .collect()
}

/// The CPU that asks; `None` before it has its data.
#[must_use]
pub fn this() -> Option<&'static Cpu> {
    ADOPTED.load(Ordering::Relaxed).then(|| {
        let this: *const Cpu;
        // SAFETY: every CPU that runs Rust code has its GS base set, and `this` is the first field of what it
        // points at, which is never freed.
        unsafe {
            asm!("mov {}, gs:[0]", out(reg) this, options(nostack, preserves_flags, readonly));
            &*this
        }
    })
}

/// The number of the CPU that asks, from 0; 0 before it has its data.
#[must_use]
pub fn number() -> u32 {
    this().map_or(0, |cpu| cpu.number)
}

/// How this machine's CPUs switch their interrupts for the locks of [`sync`].
pub const INTERRUPT_SWITCH: Switch = Switch {
    off: || {
        let were_on = instructions::interrupts::are_enabled();
        instructions::interrupts::disable();
        were_on
    },
    on: instructions::interrupts::enable,
};

/// How long a CPU may take to answer a call, in microseconds.
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
            apic::Message::Fixed(trap::CALL_VECTOR),
        );
    }

    fn timeout(&self) -> impl FnMut() -> bool {
        let deadline = time::Deadline::after_us(CALL_TIMEOUT_US.load(Ordering::Relaxed).into());
        move || deadline.passed()
    }
}

/// Makes the bootstrap CPU, which the console runs on, look for something to do.
pub fn wake_console() {
    if let Some(cpu) = all().first() {
        cpu.attention.poke();
    }
    if number() != 0 {
        poke(0);
    }
}

/// Interrupts a CPU, so that it looks at its [`Attention`].
pub fn poke(cpu: u32) {
    if interrupts()
        && let Some(cpu) = all().get(cpu as usize)
    {
        apic::send(cpu.apic_id, apic::Message::Fixed(trap::CALL_VECTOR));
    }
}

/// Whether CPUs can be interrupted; without an x2APIC everything is polled.
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

/// Makes the bootstrap CPU look for work instead of halting: the serial port can't interrupt it.
pub fn poll_console() {
    POLLED.store(true, Ordering::Relaxed);
}

/// Halts until the next interrupt, unless `busy` says that there is work; without interrupts, waits for a moment.
pub fn idle(busy: impl FnOnce() -> bool) {
    if !interrupts() || (POLLED.load(Ordering::Relaxed) && number() == 0) {
        core::hint::spin_loop();
        return;
    }
    instructions::interrupts::disable();
    if !busy() {
        if let Some(cpu) = this() {
            cpu.set_state(State::Idle);
        }
        instructions::interrupts::enable_and_hlt();
        if let Some(cpu) = this() {
            cpu.set_state(State::Online);
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

/// Whether one CPU stops the others, by NMI.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Whether an NMI is this program's own.
pub(crate) fn stopping() -> bool {
    STOPPING.load(Ordering::Acquire)
}

/// Stops every other CPU that runs, without waiting for them.
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
