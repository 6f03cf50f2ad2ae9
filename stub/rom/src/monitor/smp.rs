//! Multiprocessing: starts processors, and handles IPIs that must not reach a CPU unchanged.
//!
//! An INIT resets a CPU even under the monitor, so none is ever sent to a CPU that runs there. INIT and start-up IPIs
//! go through a mailbox instead, and an NMI makes the target check its mailbox.
#![expect(unsafe_code, reason = "local APIC, trampoline, start of processors")]

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use boot::ap;
use spin::{Mutex, Once};
use stub_rom::apic::{self, Delivery, Ipi, Station, Xapic};

use super::lp::{self, Lp};
use super::{panic, world};
use crate::{cpu, memory, report};

/// Flags, by processor number, of mailboxes that may hold something. Each processor checks its flag after every exit.
static POSTED: [AtomicBool; 256] = [const { AtomicBool::new(false) }; 256];

fn posted(number: u32) -> &'static AtomicBool {
    &POSTED[usize::from(number as u8)]
}

/// The part of a processor's state that other processors access.
pub struct Shared {
    pub number: u32,
    pub apic_id: u32,
    pub package: u32,
    mailbox: Mutex<Mailbox>,
    pub station: Mutex<Station>,
    /// True if an NMI is on its way whose purpose is to empty the mailbox.
    pub kicked: AtomicBool,
    phase: AtomicU8,
    pub slot: Once<Owned>,
}

/// Requests of other processors to a processor.
#[derive(Default)]
pub struct Mailbox {
    init: bool,
    start: Option<u8>,
    nmi: bool,
    waits: bool,
}

/// The phase of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Never started: firmware still runs on it, outside SVM.
    Outside,
    /// A start-up IPI is on its way. The processor will enter the monitor.
    Starting,
    /// The monitor runs on it.
    Running,
}

impl From<Phase> for AtomicU8 {
    fn from(phase: Phase) -> Self {
        Self::new(phase as u8)
    }
}

/// A processor's private state, to be taken by that processor.
pub struct Owned(AtomicUsize);

impl Owned {
    pub fn new(lp: &'static mut Lp) -> Self {
        Self(AtomicUsize::new(&raw mut *lp as usize))
    }

    /// Hands the state over, once.
    pub fn take(&self) -> Option<&'static mut Lp> {
        let at = self.0.swap(0, Ordering::AcqRel) as *mut Lp;
        // SAFETY: `new` got the only reference to it, and it is handed out once.
        (!at.is_null()).then(|| unsafe { &mut *at })
    }

    fn peek(&self) -> *const Lp {
        self.0.load(Ordering::Acquire) as *const Lp
    }
}

impl Shared {
    /// Creates processor `number`, which firmware still runs on.
    pub fn new(number: u32, apic_id: u32, package: u32, station: Station) -> Self {
        Self {
            number,
            apic_id,
            package,
            mailbox: Mutex::default(),
            station: Mutex::new(station),
            kicked: AtomicBool::new(false),
            phase: Phase::Outside.into(),
            slot: Once::new(),
        }
    }

    /// Posts a request to the mailbox.
    fn post(&self, put: impl FnOnce(&mut Mailbox)) {
        let mut mailbox = self.mailbox.lock();
        put(&mut mailbox);
        posted(self.number).store(true, Ordering::SeqCst);
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::SeqCst) == phase as u8
    }

    /// Makes the processor check its mailbox. A processor that is still starting checks it anyway.
    pub fn kick(&self) {
        if self.is(Phase::Running) && !self.kicked.swap(true, Ordering::SeqCst) {
            Hardware.send(self.apic_id, COMMAND_NMI);
        }
    }
}

const COMMAND_NMI: u32 = 0x4400;
const COMMAND_INIT: u32 = 0x4500;
const COMMAND_STARTUP: u32 = 0x4600;
const COMMAND_FIXED: u32 = 0x4000;

/// QEMU's local APIC of the executing processor, permanently in xAPIC mode.
pub struct Hardware;

impl Xapic for Hardware {
    fn read(&self, offset: u32) -> u32 {
        // SAFETY: the monitor's page tables map the APIC at itself; the offset is a register's, inside the page.
        unsafe { ((apic::BASE + u64::from(offset & 0xFF0)) as *const u32).read_volatile() }
    }

    fn write(&mut self, offset: u32, value: u32) {
        // SAFETY: as for `read`; what is written was checked by the APIC model.
        unsafe { ((apic::BASE + u64::from(offset & 0xFF0)) as *mut u32).write_volatile(value) };
    }
}

impl Hardware {
    /// Sends the command to the processor with this id. The software's own ICR is a shadow, so nothing is lost.
    fn send(&mut self, id: u32, command: u32) {
        self.write(0x310, id << 24);
        self.write(0x300, command);
    }
}

/// Delivers an IPI that the software on `lp` sends.
pub fn send(lp: &mut Lp, ipi: Ipi) {
    let world = world::get();
    if world.options.trace >= 2 {
        report::line("ipi", format_args!(r#""lp":{},"ipi":"{ipi:?}""#, lp.number));
    }
    for (number, target) in world.lps.iter().enumerate() {
        let is_sender = number as u32 == lp.number;
        let station = *target.station.lock();
        if !ipi.reaches(station, is_sender) {
            continue;
        }
        match ipi.delivery {
            Delivery::Fixed(vector) => deliver_vector(target, vector),
            Delivery::LowestPriority(vector) => {
                deliver_vector(target, vector);
                return;
            }
            Delivery::Nmi if is_sender => lp.nmi_pending = true,
            Delivery::Nmi => {
                target.post(|mailbox| mailbox.nmi = true);
                target.kick();
            }
            Delivery::Init => init(target),
            // Firmware starts all processors at once, and waits for all of them when boot services end.
            Delivery::Startup(_) if world.options.is_stuck(number as u32) && !ipi.is_for_all() => {}
            Delivery::Startup(page) => start(target, page),
            Delivery::Other => {}
        }
    }
}

fn deliver_vector(target: &Shared, vector: u8) {
    if target.is(Phase::Running) {
        Hardware.send(target.apic_id, COMMAND_FIXED | u32::from(vector));
    }
}

fn init(target: &Shared) {
    if target.is(Phase::Outside) {
        Hardware.send(target.apic_id, COMMAND_INIT);
        target.mailbox.lock().waits = true;
        return;
    }
    target.post(|mailbox| {
        mailbox.init = true;
        mailbox.start = None;
        mailbox.waits = true;
    });
    target.kick();
}

fn start(target: &Shared, page: u8) {
    let mut waited = false;
    target.post(|mailbox| {
        waited = core::mem::take(&mut mailbox.waits);
        if waited {
            mailbox.start = Some(page);
        }
    });
    if !waited {
        return;
    }
    if target.is(Phase::Outside) {
        target.set_phase(Phase::Starting);
        let vector = install_trampoline();
        Hardware.send(target.apic_id, COMMAND_STARTUP | u32::from(vector));
    } else {
        target.kick();
    }
}

/// Writes the trampoline to its page, which software above could have overwritten. Returns its vector.
fn install_trampoline() -> u8 {
    static SLOTS: Once<&'static [ap::Slot]> = Once::new();
    static INSTALLING: Mutex<()> = Mutex::new(());
    let world = world::get();
    let slots = SLOTS.call_once(|| {
        world
            .lps
            .iter()
            .map(|shared| {
                let lp = shared.slot.get().map_or(core::ptr::null(), Owned::peek);
                // SAFETY: null once its processor runs; nobody writes to an `Lp` whose processor has not started.
                let stack_top = unsafe { lp.as_ref() }.map_or(0, Lp::stack);
                ap::Slot {
                    apic_id: shared.apic_id,
                    reserved: 0,
                    stack_top,
                    arg: lp as u64,
                }
            })
            .collect::<alloc::vec::Vec<_>>()
            .leak()
    });
    let params = ap::Params {
        cr3: world.cr3,
        cr4: cpu::CR4,
        efer: 0,
        entry: arrive as *const () as u64,
        slots: slots.as_ptr() as u64,
        slot_count: slots.len() as u32,
    };
    let mut page = [0u8; memory::PAGE];
    let vector = match ap::install(&mut page, world.trampoline, &params) {
        Ok(vector) => vector,
        Err(error) => panic::stop(format_args!("{error}")),
    };
    let _guard = INSTALLING.lock();
    // SAFETY: the page was reserved for this. Processors on their way through it read the same bytes as before.
    unsafe {
        core::ptr::copy(page.as_ptr(), world.trampoline as *mut u8, page.len());
    }
    vector
}

/// Receives a started processor, in 64-bit mode on its own stack.
extern "C" fn arrive(at: u64) -> ! {
    let world = world::get();
    let shared = world.lps.iter().find(|shared| {
        shared
            .slot
            .get()
            .is_some_and(|owned| owned.peek() as u64 == at)
    });
    let Some((shared, lp)) = shared.and_then(|shared| Some((shared, shared.slot.get()?.take()?)))
    else {
        cpu::stop()
    };
    // SAFETY: interrupts are off after a SIPI, the trampoline has loaded the monitor's page tables, and this `Lp` is
    // this processor's: the trampoline chose it by the APIC id.
    unsafe {
        core::arch::asm!("cli", options(nostack));
        lp.take_over();
        lp.apic.adopt(&mut Hardware);
        *shared.station.lock() = lp.apic.station();
        lp.park();
        shared.set_phase(Phase::Running);
        check_mailbox(lp);
        lp.run()
    }
}

/// Handles the NMI exit: either another processor has posted to the mailbox, or the NMI is the software's.
pub fn nmi(lp: &mut Lp) {
    lp::take_nmi();
    let shared = &world::get().lps[lp.number as usize];
    if !shared.kicked.swap(false, Ordering::SeqCst) {
        lp.nmi_pending = true;
    }
}

/// The meaning of an NMI for a processor that runs a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InTd {
    /// A request of the monitor, which the exit from the TD has satisfied.
    Nothing,
    /// The host's NMI.
    Nmi,
    /// An INIT, which makes a TD exit.
    Init,
}

/// Handles the NMI exit of a TD on processor `number`.
pub fn nmi_in_td(number: u32) -> InTd {
    lp::take_nmi();
    let shared = &world::get().lps[number as usize];
    if !shared.kicked.swap(false, Ordering::SeqCst) {
        return InTd::Nmi;
    }
    let mut mailbox = shared.mailbox.lock();
    if core::mem::take(&mut mailbox.init) {
        InTd::Init
    } else if core::mem::take(&mut mailbox.nmi) {
        InTd::Nmi
    } else {
        InTd::Nothing
    }
}

/// Sends processor `number`, the executing one, an NMI that arrived where it could not be handled. The NMI makes the
/// processor exit the next guest that it enters.
pub fn send_nmi_again(number: u32) {
    Hardware.send(world::get().lps[number as usize].apic_id, COMMAND_NMI);
}

/// Handles the requests of other processors. INIT waits while the processor is in VMX operation.
#[inline(always)]
pub fn check_mailbox(lp: &mut Lp) {
    if posted(lp.number).load(Ordering::SeqCst) {
        empty_mailbox(lp);
    }
}

#[inline(never)]
fn empty_mailbox(lp: &mut Lp) {
    let shared = &world::get().lps[lp.number as usize];
    let mut mailbox = shared.mailbox.lock();
    if core::mem::take(&mut mailbox.nmi) && !lp.is_parked() {
        lp.nmi_pending = true;
    }
    if mailbox.init && !lp.vmx.is_on() {
        mailbox.init = false;
        lp.apic.init(&mut Hardware);
        *shared.station.lock() = lp.apic.station();
        lp.park();
    }
    if lp.is_parked()
        && let Some(page) = mailbox.start.take()
    {
        lp.start_at(page);
    }
    let is_empty = !mailbox.init && mailbox.start.is_none();
    posted(lp.number).store(!is_empty, Ordering::SeqCst);
}
