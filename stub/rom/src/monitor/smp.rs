//! Multiprocessing: starts processors, and handles IPIs that must not reach a CPU unchanged.
//!
//! An INIT resets a CPU even under the monitor, so none is ever sent to a CPU that runs there. INIT and start-up IPIs
//! go through a mailbox instead, and an NMI makes the target check its mailbox.
#![expect(
    unsafe_code,
    reason = "writes the trampoline and hands processors their state"
)]

use alloc::vec::Vec;
use core::sync::atomic::{AtomicPtr, Ordering};

use boot::ap;
use spin::{Mutex, Once};
use stub_rom::apic::{Delivery, Ipi};

use super::hardware::{Hardware, command};
use super::lp::Lp;
use super::panic;
use super::shared::{Phase, Shared};
use super::world::World;
use crate::{cpu, memory, report};

/// The processors that have not started yet. Each is to be taken once, by itself.
static WAITING: Once<Vec<AtomicPtr<Lp>>> = Once::new();
/// The trampoline's page, complete.
static TRAMPOLINE: Once<Trampoline> = Once::new();

struct Trampoline {
    page: [u8; memory::PAGE],
    vector: u8,
}

/// Prepares the start of `others`, all processors except the executing one. Each will call `entry` with the address of
/// its `Lp`.
pub fn prepare(world: &World, others: Vec<&'static mut Lp>, entry: extern "C" fn(u64) -> !) {
    let slots: Vec<_> = (others.iter())
        .map(|lp| ap::Slot {
            apic_id: lp.shared().apic_id,
            reserved: 0,
            stack_top: lp.anchor.stack(),
            arg: core::ptr::from_ref::<Lp>(lp) as u64,
        })
        .collect();
    let slots = slots.leak();
    let params = ap::Params {
        cr3: world.cr3,
        cr4: cpu::CR4,
        efer: 0,
        enable_xd: false,
        entry: entry as *const () as u64,
        slots: slots.as_ptr() as u64,
        slot_count: slots.len() as u32,
    };
    let mut page = [0; memory::PAGE];
    let vector = match ap::install(&mut page, world.trampoline, &params) {
        Ok(vector) => vector,
        Err(error) => panic::stop(format_args!("{error}")),
    };
    TRAMPOLINE.call_once(|| Trampoline { page, vector });
    let others = others.into_iter();
    WAITING.call_once(|| others.map(|lp| AtomicPtr::new(&raw mut *lp)).collect());
}

/// Hands the `Lp` at this address over to its processor, once.
pub fn arrived(at: u64) -> Option<&'static mut Lp> {
    let expected = at as *mut Lp;
    let null = core::ptr::null_mut();
    let taken = WAITING.get()?.iter().any(|waiting| {
        let swapped = waiting.compare_exchange(expected, null, Ordering::AcqRel, Ordering::Relaxed);
        !expected.is_null() && swapped.is_ok()
    });
    // SAFETY: `prepare` got the only reference to it, and it is handed out once.
    taken.then(|| unsafe { &mut *expected })
}

/// Delivers an IPI that the software on `lp` sends.
pub fn send(lp: &mut Lp, ipi: Ipi) {
    let world = lp.world;
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
            Delivery::Startup(page) => start(target, page, world),
            Delivery::Other => {}
        }
    }
}

fn deliver_vector(target: &Shared, vector: u8) {
    if target.is(Phase::Running) {
        Hardware.send(target.apic_id, command::FIXED | u32::from(vector));
    }
}

fn init(target: &Shared) {
    if target.is(Phase::Outside) {
        Hardware.send(target.apic_id, command::INIT);
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

fn start(target: &Shared, page: u8, world: &World) {
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
        let vector = install_trampoline(world);
        Hardware.send(target.apic_id, command::STARTUP | u32::from(vector));
    } else {
        target.kick();
    }
}

/// Writes the trampoline to its page, which software above could have overwritten. Returns its vector.
fn install_trampoline(world: &World) -> u8 {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let Some(trampoline) = TRAMPOLINE.get() else {
        panic::stop(format_args!(
            "a processor was started before the trampoline was prepared"
        ));
    };
    let _guard = INSTALLING.lock();
    // SAFETY: the page was reserved for this. Processors on their way through it read the same bytes as before.
    unsafe {
        core::ptr::copy(
            trampoline.page.as_ptr(),
            world.trampoline as *mut u8,
            trampoline.page.len(),
        );
    }
    trampoline.vector
}

/// Handles the NMI exit: either another processor has posted to the mailbox, or the NMI is the software's.
pub fn nmi(lp: &mut Lp) {
    if lp.shared().take_nmi() {
        lp.nmi_pending = true;
    }
}

/// Handles the requests of other processors. INIT waits while the processor is in VMX operation.
#[inline(always)]
pub fn check_mailbox(lp: &mut Lp) {
    if lp.posted.load(Ordering::SeqCst) {
        empty_mailbox(lp);
    }
}

#[inline(never)]
fn empty_mailbox(lp: &mut Lp) {
    let shared = lp.shared();
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
    lp.posted.store(!is_empty, Ordering::SeqCst);
}
