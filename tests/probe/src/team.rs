//! The other processors, started to do what they are told, one at a time.
#![expect(
    unsafe_code,
    reason = "prepares stacks and a page for other processors"
)]

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use boot::ap;
use seam::abi::x86::msr::x2apic::ICR;
use uefi::boot::{
    AllocateType, MemoryType, allocate_pages, get_handle_for_protocol, open_protocol_exclusive,
};
use uefi::proto::pi::mp::MpServices;

use crate::attempt::{load_tables, wrmsr};
use crate::cpu::{cpuid, cr3, cr4, wait};
use crate::{Check, Failure, expect};

const INIT: u64 = 0x4500;
const STARTUP: u64 = 0x4600;
const STACK_PAGES: usize = 4;
/// The time that a task may take, in seconds.
const PATIENCE: u64 = 60;
/// Processors beyond these stay where they are.
const SEATS: usize = 16;

/// A task, and its result.
pub type Task = fn(u64) -> u64;

struct Seat {
    /// Zero, or a [`Task`].
    task: AtomicUsize,
    argument: AtomicU64,
    result: AtomicU64,
}

static TEAM: [Seat; SEATS] = [const {
    Seat {
        task: AtomicUsize::new(0),
        argument: AtomicU64::new(0),
        result: AtomicU64::new(0),
    }
}; SEATS];

static mut SLOTS: [ap::Slot; SEATS] = [ap::Slot {
    apic_id: 0,
    reserved: 0,
    stack_top: 0,
    arg: 0,
}; SEATS];

/// Processors that have arrived.
static ARRIVED: AtomicU64 = AtomicU64::new(0);

/// The other processors.
#[derive(Clone, Copy)]
pub struct Team {
    size: usize,
}

/// Pages below `limit`; zero if there are none.
pub fn pages_below(limit: u64, count: usize) -> u64 {
    allocate_pages(
        AllocateType::MaxAddress(limit),
        MemoryType::LOADER_DATA,
        count,
    )
    .map_or(0, |at| at.as_ptr() as u64)
}

/// Starts all other processors, wherever they were.
pub fn gather() -> Result<Team, Failure> {
    let (ids, size) = other_ids();
    let trampoline = pages_below(0xA_0000, 1);
    for (number, id) in ids[..size].iter().enumerate() {
        let stack = pages_below(1 << 32, STACK_PAGES);
        // SAFETY: no processor is on its way yet.
        unsafe {
            let slots = &raw mut SLOTS;
            (*slots)[number] = ap::Slot {
                apic_id: *id,
                reserved: 0,
                stack_top: stack + (STACK_PAGES * ap::PAGE) as u64,
                arg: number as u64,
            };
        }
    }
    let params = ap::Params {
        cr3: cr3(),
        cr4: cr4(),
        efer: 1 << 11,
        enable_xd: false,
        entry: sit as *const () as u64,
        slots: &raw const SLOTS as u64,
        slot_count: size as u32,
    };
    // SAFETY: a page that was just allocated.
    let page = unsafe { &mut *(trampoline as *mut [u8; ap::PAGE]) };
    let Ok(vector) = ap::install(page, trampoline, &params) else {
        return Err(Failure {
            what: "the trampoline",
            found: trampoline,
            expected: 0x8000,
        });
    };
    for id in &ids[..size] {
        let target = u64::from(*id) << 32;
        for command in [INIT, STARTUP | u64::from(vector)] {
            let sent = wrmsr(ICR, target | command);
            expect("an IPI", sent.err().unwrap_or(0), 0)?;
        }
    }
    wait(PATIENCE, || ARRIVED.load(Ordering::SeqCst) == size as u64);
    expect(
        "processors that have started",
        ARRIVED.load(Ordering::SeqCst),
        size as u64,
    )?;
    Ok(Team { size })
}

/// The APIC ids of the others, and how many there are.
fn other_ids() -> ([u32; SEATS], usize) {
    let mut ids = [0; SEATS];
    let mut size = 0;
    let own = cpuid(0x1F, 0)[3];
    let services =
        get_handle_for_protocol::<MpServices>().and_then(open_protocol_exclusive::<MpServices>);
    if let Ok(services) = services {
        let total = services.get_number_of_processors().map_or(0, |n| n.total);
        for number in 0..total {
            if let Ok(info) = services.get_processor_info(number)
                && info.processor_id as u32 != own
                && size < SEATS
            {
                ids[size] = info.processor_id as u32;
                size += 1;
            }
        }
    }
    (ids, size)
}

/// Where the others arrive.
extern "C" fn sit(number: u64) -> ! {
    load_tables();
    ARRIVED.fetch_add(1, Ordering::SeqCst);
    let seat = &TEAM[number as usize];
    loop {
        let task = seat.task.load(Ordering::SeqCst);
        if task == 0 {
            core::hint::spin_loop();
            continue;
        }
        // SAFETY: `Team::ask` put a task there.
        let task: Task = unsafe { core::mem::transmute(task) };
        let result = task(seat.argument.load(Ordering::SeqCst));
        seat.result.store(result, Ordering::SeqCst);
        seat.task.store(0, Ordering::SeqCst);
    }
}

impl Team {
    /// The team that was gathered, of that size; `None` if it was not.
    pub fn gathered(size: usize) -> Option<Self> {
        (size as u64 == ARRIVED.load(Ordering::SeqCst)).then_some(Self { size })
    }

    /// Returns the number of processors.
    pub fn size(self) -> usize {
        self.size
    }

    /// Has processor `number` of the team do something, and waits for the result.
    pub fn ask(self, number: usize, task: Task, argument: u64) -> Result<u64, Failure> {
        self.start(number, task, argument);
        let done = wait(PATIENCE, || self.is_done(number));
        expect("a task's end", done.into(), 1)?;
        Ok(TEAM[number].result.load(Ordering::SeqCst))
    }

    /// Has processor `number` of the team do something meanwhile.
    pub fn start(self, number: usize, task: Task, argument: u64) {
        let seat = &TEAM[number];
        seat.argument.store(argument, Ordering::SeqCst);
        seat.task.store(task as usize, Ordering::SeqCst);
    }

    /// Returns true if processor `number` of the team has done its task.
    pub fn is_done(self, number: usize) -> bool {
        TEAM[number].task.load(Ordering::SeqCst) == 0
    }

    /// Has all of them do something one after the other; each must answer zero.
    pub fn all(self, what: &'static str, task: Task) -> Check {
        (0..self.size).try_for_each(|number| expect(what, self.ask(number, task, 0)?, 0))
    }

    /// Lets them go: they stop for good.
    pub fn dismiss(self) {
        for seat in &TEAM[..self.size] {
            seat.task
                .store(crate::cpu::stop_here as Task as usize, Ordering::SeqCst);
        }
    }
}
