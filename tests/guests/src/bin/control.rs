//! A guest that asks its host for the list of TDs, ends all others, and finally itself.
//!
//! Without `control = true` it only tries to, and must be refused.
#![no_std]
#![no_main]

use core::str;

use guest_kit::check::{Check, Checks, expect};
use guest_kit::{ensure, fail, guest, power, say, vmcall};
use seam::abi::Gprs;
use seam::abi::hypercall::{CONTROL, Function, SIGNATURE, Status, TdState, caps};

guest!("control", main, end);

/// Maximum number of queries about the end of another TD.
const MAX_LOOKS: u64 = 10_000_000;

fn main(checks: &mut Checks) {
    checks.once("host-says-what-it-can-do", host_says_what_it_can_do);
    checks.once("what-is-reserved-is-refused", what_is_reserved_is_refused);
    checks.once("knows-itself", knows_itself);
    if may_control() {
        checks.once("ends-all-others", ends_all_others);
        checks.once("ending-again-is-harmless", ending_again_is_harmless);
        checks.once("no-td-has-that-number", || {
            refused(Function::TdTerminate, 0xFFFF, Status::NoSuchTd)
        });
    } else {
        checks.once("may-not-name-others", may_not_name_others);
    }
}

/// Ends the guest itself. It does not return.
fn end() -> ! {
    say!("control: ends itself");
    let regs = call(Function::TdTerminate, 0);
    say!("FAIL ends-itself: {:#x}", regs.r10);
    power::off()
}

/// Makes a hypercall.
fn call(function: Function, r12: u64) -> Gprs {
    let mut regs = request(function, r12);
    vmcall::raw(&mut regs);
    regs
}

fn request(function: Function, r12: u64) -> Gprs {
    Gprs {
        rcx: vmcall::REGISTERS,
        r10: SIGNATURE,
        r11: function as u64,
        r12,
        ..Gprs::default()
    }
}

fn refused(function: Function, r12: u64, status: Status) -> Check {
    let regs = call(function, r12);
    expect("the status", regs.r10, status as u64)?;
    expect("R11", regs.r11, 0)
}

fn may_control() -> bool {
    call(Function::Caps, 0).r13 & CONTROL != 0
}

fn host_says_what_it_can_do() -> Check {
    let regs = call(Function::Caps, 0);
    expect("the status", regs.r10, Status::Success as u64)?;
    let all = caps::TERMINATE | caps::LIST | caps::RECLAIM_STATUS;
    expect("the capabilities", regs.r11, all)?;
    ensure!(regs.r12 != 0, "the TD has no number");
    say!("TD {}, control {}", regs.r12, regs.r13);
    Ok(())
}

fn what_is_reserved_is_refused() -> Check {
    for spoil in [
        |regs: &mut Gprs| regs.r13 = 1,
        |regs: &mut Gprs| regs.r15 = 1 << 63,
        |regs: &mut Gprs| regs.rbx = 1,
        |regs: &mut Gprs| regs.rdx = 1,
        |regs: &mut Gprs| regs.r12 = 1 << 32,
    ] {
        let mut regs = request(Function::TdTerminate, 0);
        spoil(&mut regs);
        vmcall::raw(&mut regs);
        expect("the status", regs.r10, Status::InvalidOperand as u64)?;
    }
    let mut regs = request(Function::TdTerminate, 0);
    regs.r10 += 1;
    vmcall::raw(&mut regs);
    expect(
        "another version's status",
        regs.r10,
        Status::Unsupported as u64,
    )?;
    let mut regs = request(Function::Caps, 0);
    regs.r11 = Function::ALL.len() as u64;
    vmcall::raw(&mut regs);
    expect(
        "another function's status",
        regs.r10,
        Status::Unsupported as u64,
    )
}

fn knows_itself() -> Check {
    let own = call(Function::Caps, 0).r12;
    let regs = call(Function::TdList, own);
    expect("the status", regs.r10, Status::Success as u64)?;
    expect("the number", regs.r11, own)?;
    let state = TdState::Runnable as u64 | 1 << 32;
    expect("the state", regs.r12, state)?;
    ensure!(
        regs.r13 > 0 && regs.r14 > 0 && regs.r15 > 0,
        "it has no memory or no vCPU"
    );
    expect(
        "its end",
        call(Function::ReclaimStatus, 0).r11,
        TdState::Runnable as u64,
    )
}

fn may_not_name_others() -> Check {
    let own = call(Function::Caps, 0).r12;
    for id in 1..4 {
        if id != own {
            refused(Function::TdTerminate, id, Status::NotPermitted)?;
            refused(Function::ReclaimStatus, id, Status::NotPermitted)?;
        }
    }
    let next = call(Function::TdList, own + 1);
    expect("the TD behind this one", next.r11, 0)
}

/// Iterates over the running TDs other than this one.
fn others() -> impl Iterator<Item = u64> {
    let mut from = 1;
    core::iter::from_fn(move || {
        loop {
            let regs = call(Function::TdList, from);
            if regs.r10 != 0 || regs.r11 == 0 {
                return None;
            }
            from = regs.r11 + 1;
            if regs.r12 == TdState::Runnable as u64 {
                tell(&regs);
                return Some(regs.r11);
            }
        }
    })
}

fn tell(regs: &Gprs) {
    let mut name = [0; 32];
    for (bytes, word) in name
        .chunks_mut(8)
        .zip([regs.rbx, regs.rdi, regs.rsi, regs.r8])
    {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let end = name
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(name.len());
    let name = str::from_utf8(&name[..end]).unwrap_or("?");
    say!(
        "TD {} {name}: {} MiB, {} vCPUs",
        regs.r11,
        regs.r13 >> 20,
        regs.r15
    );
}

fn ends_all_others() -> Check {
    let mut ended = 0;
    for id in others() {
        let regs = call(Function::TdTerminate, id);
        expect("the status", regs.r10, Status::Success as u64)?;
        expect("whether it was asked before", regs.r11, 0)?;
        wait_for(id)?;
        ended += 1;
    }
    ensure!(ended > 0, "there is no other TD");
    say!("ended {ended}");
    Ok(())
}

/// Waits until all of the TD's memory is reclaimed.
fn wait_for(id: u64) -> Check {
    for _ in 0..MAX_LOOKS {
        let regs = call(Function::ReclaimStatus, id);
        expect("the status", regs.r10, Status::Success as u64)?;
        match TdState::from_number(regs.r11) {
            Some(TdState::Reclaimed) => return Ok(()),
            Some(TdState::Terminating | TdState::Teardown) => core::hint::spin_loop(),
            _ => return fail!("TD {id} is in state {}", regs.r11),
        }
    }
    fail!("TD {id} is not gone")
}

fn ending_again_is_harmless() -> Check {
    let own = call(Function::Caps, 0).r12;
    for id in (1..).take_while(|id| call(Function::TdList, *id).r11 != 0) {
        if id != own {
            let regs = call(Function::TdTerminate, id);
            expect("the status", regs.r10, Status::Success as u64)?;
            expect("whether it was asked before", regs.r11, 1)?;
        }
    }
    Ok(())
}
