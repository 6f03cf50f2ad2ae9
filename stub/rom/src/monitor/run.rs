//! The loop of a processor: enters the guest and handles its exits.
#![expect(
    unsafe_code,
    reason = "switches into the software and takes processors over"
)]

use stub_rom::insn::gpr;

use super::hardware::Hardware;
use super::lp::{Lp, offset};
use super::shared::Phase;
use super::switch::through_guest;
use super::{exits, panic, presence, smp};
use crate::cpu;

/// Enters the guest and handles its exits forever.
///
/// # Safety
/// [`Lp::take_over`] was called on this processor.
pub unsafe fn forever(lp: &'static mut Lp) -> ! {
    enter(lp);
    // SAFETY: by the contract; the loop uses the stack that belongs to this processor.
    unsafe { world_switch(lp) }
}

/// Receives a started processor, in 64-bit mode on its own stack.
pub extern "C" fn arrive(at: u64) -> ! {
    let Some(lp) = smp::arrived(at) else {
        cpu::stop()
    };
    // SAFETY: interrupts are off after a SIPI, the trampoline has loaded the monitor's page tables, and this `Lp` is
    // this processor's: the trampoline chose it by the APIC id.
    unsafe {
        core::arch::asm!("cli", options(nostack));
        lp.take_over();
        lp.apic.adopt(&mut Hardware);
        let shared = lp.shared();
        *shared.station.lock() = lp.apic.station();
        lp.park();
        shared.set_phase(Phase::Running);
        smp::check_mailbox(lp);
        forever(lp)
    }
}

/// Handles an exit. The loop calls it after each one.
extern "C" fn exited(lp: &mut Lp) {
    if panic::is_dead() {
        cpu::stop();
    }
    lp.presence.handle();
    let save = &lp.vmcb.save;
    (lp.gprs.0[gpr::RAX], lp.gprs.0[gpr::RSP]) = (save.rax, save.rsp);
    exits::handle(lp);
    enter(lp);
    let (rax, rsp) = (lp.gprs.0[gpr::RAX], lp.gprs.0[gpr::RSP]);
    let save = &mut lp.vmcb.save;
    (save.rax, save.rsp) = (rax, rsp);
}

/// Marks the processor as executing the software, before it enters the software.
#[inline(always)]
fn enter(lp: &mut Lp) {
    if lp.is_parked() {
        lp.presence.leave();
        return;
    }
    let epoch = presence::epoch();
    if epoch != lp.epoch {
        begin_epoch(lp, epoch);
    }
    lp.presence.execute(epoch);
}

#[inline(never)]
fn begin_epoch(lp: &mut Lp, epoch: u64) {
    lp.epoch = epoch;
    lp.vmcb.tlb_control = 1;
    lp.detour.refresh(lp.world.npt.address());
}

/// Loops over entries and exits. Between exit and entry, the XMM registers are the monitor's. The monitor executes no
/// VEX instructions, so the upper halves of the YMM registers are preserved. XCR0 always holds the guest's value.
#[unsafe(naked)]
unsafe extern "C" fn world_switch(lp: &mut Lp) -> ! {
    through_guest!(
        xmm_by: "lea",
        before: ["mov rsp, [rdi + {anchor}]", "2:", "mov rdi, [rsp]"],
        enter: ["vmload rax", "vmrun rax", "vmsave rax"],
        after: ["mov rdi, rax", "cld", "call {exited}", "jmp 2b"],
        anchor = const offset::ANCHOR,
        xmm = const offset::XMM,
        entered = const offset::ENTERED,
        exited = sym exited,
    )
}
