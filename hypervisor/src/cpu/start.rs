//! CPU start: the bootstrap CPU where it runs, all others at once by INIT-SIPI-SIPI.
//!
//! Hundreds of CPUs share locks and memory while they start, so the wait for them ends only when none has arrived for
//! a while.
#![expect(
    unsafe_code,
    reason = "a CPU that starts gets its data as a number from the trampoline"
)]

use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};

use boot::{BootInfo, ap};
use host::platform::Attention;
use seam::counters::Counters;
use spin::Once;
use sync::{IrqLock, call::Mailbox};
use x86_64::{
    instructions::interrupts,
    registers::{
        control::Cr4,
        model_specific::{Efer, EferFlags},
    },
};

use super::{
    ADOPTED, CPUS, Cpu, INTERRUPTS, NO_NODE, State, apic, check, group, model, speculation,
    stop_here, tables, timer, topology, tsc, vmx,
    wake::{self, Silent, Sleepers},
};
use crate::{firmware::madt::Processor, memory, msr, seamlog::SeamLog, time};

/// Size in bytes of a CPU's stack.
const STACK_BYTES: u64 = 64 << 10;
/// Makes the running CPU number 0, with its data and its tables. From here on exceptions are reported.
///
/// # Errors
/// Fails if there is no memory for the CPU's stacks.
pub fn adopt_bootstrap() -> Result<&'static Cpu, memory::Error> {
    let (place, shifts) = topology::read(&msr::ThisCpu);
    let cpu = create(0, place.x2apic_id, shifts)?;
    cpu.adopt();
    cpu.set_state(State::Online);
    ADOPTED.store(true, Ordering::Release);
    tsc::set_reference();
    cpu.microcode.call_once(model::microcode);
    Ok(cpu)
}

/// Registers `processors` as the machine's CPUs, the running one first. Returns one sentence for each unusable CPU.
pub fn know(bootstrap: &'static Cpu, processors: &[Processor]) -> Vec<String> {
    let (_, shifts) = topology::read(&msr::ThisCpu);
    let mut left_out = Vec::new();
    let mut cpus = Vec::from([bootstrap]);
    for processor in processors {
        if processor.apic_id != bootstrap.apic_id {
            match create(cpus.len() as u32, processor.apic_id, shifts) {
                Ok(cpu) => cpus.push(cpu),
                Err(e) => left_out.push((processor.apic_id, format!("{e}"))),
            }
        }
    }
    for processor in processors {
        for cpu in cpus.iter().filter(|c| c.apic_id == processor.apic_id) {
            cpu.node
                .store(processor.node.unwrap_or(NO_NODE), Ordering::Relaxed);
        }
    }
    CPUS.call_once(|| cpus);
    group::sentences(left_out, |cpus, verb, why| {
        format!("{cpus} (APIC ids) {verb} left out: {why}")
    })
}

fn create(
    number: u32,
    apic_id: u32,
    shifts: topology::Shifts,
) -> Result<&'static Cpu, memory::Error> {
    let mut stacks = [0; tables::STACKS];
    for top in &mut stacks {
        *top = memory::stack(tables::STACK_BYTES)?;
    }
    let cpu = Box::leak(Box::new(Cpu {
        this: core::ptr::null(),
        number,
        apic_id,
        bootstrap: number == 0,
        mailbox: Mailbox::new(),
        attention: Attention::new(),
        reclaim_credit: AtomicI64::new(0),
        channel: AtomicU32::new(0),
        halted: AtomicU64::new(0),
        halted_at: AtomicU64::new(0),
        timer: timer::Armed::new(),
        checks: check::Checks::default(),
        speculation: speculation::Speculation::default(),
        seam_log: SeamLog::new(),
        seam_counters: Counters::new(),
        state: AtomicU8::new(State::NotUsed as u8),
        node: AtomicU32::new(NO_NODE),
        place: IrqLock::new(shifts.place(apic_id)),
        vmx: IrqLock::new(None),
        microcode: Once::new(),
        stacks: IrqLock::new(Some(stacks)),
    }));
    cpu.this = &raw const *cpu;
    Ok(cpu)
}

/// Switches on the bootstrap CPU's local APIC and its interrupts.
pub fn enable_interrupts() {
    apic::enable();
    timer::enable();
    INTERRUPTS.store(true, Ordering::Release);
    interrupts::enable();
}

/// A function that does one piece of work for an otherwise idle CPU. It returns `false` when there is none.
pub type Work = fn() -> bool;

static WORK: Once<Work> = Once::new();

/// Starts every other CPU, all at once, and waits for them as long as one arrives every `timeout_us`. From then on each
/// CPU runs `work`. Returns the problems, one sentence for each.
pub fn start_others(work: Work, info: &BootInfo, timeout_us: u64) -> Vec<String> {
    WORK.call_once(|| work);
    let others: Vec<&'static Cpu> = super::all()
        .iter()
        .copied()
        .filter(|c| !c.bootstrap)
        .collect();
    if others.is_empty() {
        return Vec::new();
    }
    let Some(page) = info.trampoline else {
        return Vec::from([format!(
            "{} CPUs are not started: the firmware left no page below 1 MiB for them",
            others.len()
        )]);
    };
    let vector = match prepare(&others, page, info) {
        Ok(vector) => vector,
        Err(e) => return Vec::from([format!("{} CPUs are not started: {e}", others.len())]),
    };
    for cpu in &others {
        cpu.set_state(State::Starting);
    }
    let sleepers = Others {
        cpus: &others,
        vector,
    };
    wake::wake(&sleepers, timeout_us);
    let late = others
        .iter()
        .filter(|cpu| cpu.change_state(State::Starting, State::NeverStarted));
    let silent: Vec<Silent> = late
        .map(|cpu| Silent {
            number: cpu.number,
            place: cpu.place(),
        })
        .collect();
    let mut problems = wake::sentences(&silent, timeout_us);
    if tsc::changed() > 0 {
        log::warn!(
            "the firmware left another IA32_TSC_ADJUST on {} CPUs than on CPU 0; they have CPU 0's now",
            tsc::changed()
        );
    }
    problems.extend(tsc::compare_packages());
    problems
}

/// The CPUs other than the bootstrap CPU, and the SIPI's vector.
struct Others<'a> {
    cpus: &'a [&'static Cpu],
    vector: u32,
}

impl Sleepers for Others<'_> {
    fn count(&self) -> usize {
        self.cpus.len()
    }
    fn init(&self, at: usize) {
        apic::send(self.cpus[at].apic_id, apic::Message::Init);
    }
    fn startup(&self, at: usize) {
        let message = apic::Message::Startup(self.vector as u8);
        apic::send(self.cpus[at].apic_id, message);
    }
    fn is_asleep(&self, at: usize) -> bool {
        self.cpus[at].state() == State::Starting
    }
    fn wait_us(&self, us: u64, done: impl FnMut() -> bool) -> bool {
        time::wait_us(us, done)
    }
}

/// Fills the trampoline page. Returns the SIPI's vector, in a whole register: a byte that is kept in one looks like a
/// miscompilation to the check of the build (`xtask/src/build/merged.rs`).
fn prepare(cpus: &[&'static Cpu], page: u64, info: &BootInfo) -> Result<u32, String> {
    let mut slots = Vec::new();
    for cpu in cpus {
        let stack_top = memory::stack(STACK_BYTES).map_err(|e| format!("no stacks: {e}"))?;
        slots.push(ap::Slot {
            apic_id: cpu.apic_id,
            reserved: 0,
            stack_top,
            arg: &raw const **cpu as u64,
        });
    }
    // A CPU may be late, so the slots are never freed.
    let slots = Vec::leak(slots);
    let params = ap::Params {
        cr3: info.cr3,
        cr4: Cr4::read_raw() & !vmx::CR4_VMXE,
        efer: Efer::read_raw() & EFER_NXE,
        enable_xd: info.enable_xd,
        entry: entered as *const () as u64,
        slots: slots.as_ptr() as u64,
        slot_count: slots.len() as u32,
    };
    // SAFETY: the boot path keeps the page for this alone, and the direct map has it.
    let bytes = unsafe { &mut *(memory::direct(page) as *mut [u8; ap::PAGE]) };
    let vector = ap::install(bytes, page, &params);
    vector.map(u32::from).map_err(|e| format!("{e}"))
}

const EFER_NXE: u64 = EferFlags::NO_EXECUTE_ENABLE.bits();

/// The entry point into Rust of a started CPU.
extern "sysv64" fn entered(cpu: u64) -> ! {
    // SAFETY: the argument is the address of this CPU's data, which is never freed.
    let cpu: &'static Cpu = unsafe { &*(cpu as *const Cpu) };
    cpu.adopt();
    tsc::follow_reference();
    cpu.microcode.call_once(model::microcode);
    apic::enable();
    timer::enable();
    vmx::enter_here(cpu);
    check::start_here(cpu);
    if !cpu.change_state(State::Starting, State::Online) {
        // The start of this CPU timed out: nothing expects it to run any more.
        stop_here();
    }
    loop {
        if !WORK.get().is_some_and(|work| work()) {
            super::idle(|| cpu.attention.is_any());
        }
    }
}
