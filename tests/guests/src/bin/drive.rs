//! A guest that turns its own NVMe drive against everything: private memory, the host, MMIO, its own registers, with
//! decoding and bus mastering switched at every moment. It floods the host with interrupts.
//!
//! MRCONFIGID holds two numbers: the seed (0: another in each life), and the number of steps (0: 300).
#![no_std]
#![no_main]

use guest_kit::check::{Check, Checks, Failure, expect};
use guest_kit::numbers::Numbers;
use guest_kit::{cpu, ensure, guest, memory, say, vcpu, wishes};
use guests::nvme::{BAR, BYTES, EXPRESS, MSIX, Nvme, PLACE, TABLE};
use guests::pci::{COMMAND, ON};
use seam::abi::PAGE_4K;
use spin::Mutex;

guest!("drive", main);

/// The numbers of the parameters.
const SEED: usize = 0;
const STEPS: usize = 1;
/// Default number of steps.
const MANY: u64 = 300;
/// Number of steps per line of output.
const TOLD: u64 = 50;
/// Content of the guest's private page.
const CONTENT: u64 = 0x5EC2_E75E_C2E7_5EC2;
/// Addresses that are not the guest's, on QEMU's machine: low memory, the hypervisor's image and heap as a rule, an I/O
/// APIC, the VT-d unit, configuration space. The range of interrupt messages is left out: QEMU's unit lets messages in
/// compatibility format pass, which a server's blocks.
const OTHERS: [u64; 8] = [
    0x1000,
    0x10_0000,
    0x4000_0000,
    0x7B98_0000,
    0xB000_0000,
    0xFEC0_0000,
    0xFED9_0000,
    0x1_0000_0000,
];
/// Number of commands in a flood.
const FLOOD: u32 = 24;
/// Looks for a completion that may never come.
const SHORT: u32 = 2000;

static DRIVE: Mutex<Option<Nvme>> = Mutex::new(None);

fn main(checks: &mut Checks) {
    checks.once("finds-its-drive", find);
    checks.once("the-drive-describes-itself", describes_itself);
    checks.once("reaches-nothing-but-shared-memory", reaches_nothing);
    checks.once("floods", flood);
    checks.once("does-what-it-wants", rage);
    checks.once("the-drive-still-describes-itself", describes_itself);
}

fn with(work: impl FnOnce(&mut Nvme) -> Check) -> Check {
    match &mut *DRIVE.lock() {
        Some(drive) => work(drive),
        None => Err(Failure::new(format_args!("no drive"))),
    }
}

fn find() -> Check {
    *DRIVE.lock() = Some(Nvme::find()?);
    Ok(())
}

fn describes_itself() -> Check {
    with(|drive| {
        drive.start()?;
        drive.clear_data();
        let status = drive.identify(drive.page(2));
        ensure!(status == Some(0), "status {status:x?}");
        expect("the vendor", drive.data(0) & 0xFFFF, 0x1B36)
    })
}

/// Has the drive write to private memory and to what is not the guest's. The private page keeps its content.
fn reaches_nothing() -> Check {
    let private = memory::take(PAGE_4K, PAGE_4K);
    memory::set_word(private, CONTENT);
    let own = [private, PLACE, PLACE + TABLE];
    for target in own.into_iter().chain(OTHERS) {
        with(|drive| {
            // QEMU's drive reports success for some writes that VT-d has blocked. The host counts them.
            let _ = drive.identify(target);
            // A drive that could not write may have failed.
            drive.start()
        })?;
    }
    expect("the private page", memory::word(private), CONTENT)
}

/// Has the drive interrupt as often as it can.
fn flood() -> Check {
    const VECTOR: u8 = 0x91;
    let before = vcpu::current().interrupts(VECTOR);
    with(|drive| {
        drive.start()?;
        let Some(msix) = drive.capability(MSIX) else {
            return Err(Failure::new(format_args!("no MSI-X")));
        };
        for (word, value) in (0..).zip([0xFEE0_0000, 0, VECTOR.into(), 0]) {
            drive.set_register(TABLE + word * 4, value);
        }
        drive.set_config(msix & 0xFC, 1 << 31);
        for _ in 0..20 {
            for _ in 0..FLOOD {
                drive.submit(drive.page(2));
            }
            for _ in 0..FLOOD {
                let status = drive.identify(drive.page(2));
                ensure!(status == Some(0), "status {status:x?}");
                if drive.complete(1).is_none() {
                    break;
                }
            }
            drive.start()?;
        }
        Ok(())
    })?;
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    let came = vcpu::current().interrupts(VECTOR) - before;
    say!("drive: {came} interrupts taken");
    ensure!(came > 0, "no interrupt came");
    Ok(())
}

/// Makes random steps.
fn rage() -> Check {
    let seed = match wishes::word(SEED) {
        0 => cpu::tsc(),
        seed => seed,
    };
    let steps = match wishes::word(STEPS) {
        0 => MANY,
        steps => steps,
    };
    say!("drive: seed {seed:#x}, {steps} steps");
    let mut numbers = Numbers::new(seed);
    for step in 1..=steps {
        with(|drive| rage_once(drive, &mut numbers))?;
        if step % TOLD == 0 {
            say!("drive: {step} steps");
        }
    }
    Ok(())
}

fn rage_once(drive: &mut Nvme, numbers: &mut Numbers) -> Check {
    match numbers.below(10) {
        // Decoding and bus mastering, while commands are under way.
        0 | 1 => drive.set_config(COMMAND, numbers.next() as u32 & 0x407),
        2 => {
            let place = match numbers.below(4) {
                0 => numbers.next(),
                1 => 0x10_0000,
                _ => PLACE + numbers.below(64) * BYTES,
            };
            drive.set_config(BAR, place as u32);
            drive.set_config(
                BAR + 4,
                if numbers.once_in(8) {
                    numbers.next() as u32
                } else {
                    0
                },
            );
        }
        3 => {
            if let Some(express) = drive.capability(EXPRESS)
                && numbers.once_in(3)
            {
                // A function-level reset.
                let control = drive.config(express + 8);
                drive.set_config(express + 8, control & 0xFFFF | 1 << 15);
            }
        }
        4 => {
            let entry = TABLE + numbers.below(80) * 16;
            let message = [
                0xFEE0_0000 | numbers.below(4) << 12,
                0,
                0x20 + numbers.below(0xE0),
                0,
            ];
            for (word, value) in (0..).zip(message) {
                let value = if numbers.once_in(8) {
                    numbers.next()
                } else {
                    value
                };
                drive.set_register(entry + word * 4, value);
            }
        }
        5 => {
            if let Some(msix) = drive.capability(MSIX) {
                drive.set_config(msix & 0xFC, numbers.next() as u32);
            }
        }
        // The queue goes while the drive uses it.
        6 => {
            drive.submit(drive.page(2));
            let page = numbers.below(3);
            drive.unshare(page..page + 1)?;
            drive.ring();
            drive.share(page..page + 1)?;
        }
        7 => {
            let offset = numbers.below(BYTES / 4) * 4;
            drive.set_register(offset, numbers.next());
            let _ = drive.register(offset);
        }
        8 => {
            let offset = numbers.below(64) as u8 * 4;
            drive.set_config(offset, numbers.next() as u32);
            let _ = drive.config(offset);
        }
        _ => {
            if numbers.once_in(2) {
                drive.set_config(BAR, PLACE as u32);
                drive.set_config(BAR + 4, 0);
                drive.set_config(COMMAND, ON);
                // It may be in its reset, or have failed.
                let _ = drive.start();
            }
            drive.submit(numbers.of(&OTHERS));
            let _ = drive.complete(SHORT);
        }
    }
    Ok(())
}
