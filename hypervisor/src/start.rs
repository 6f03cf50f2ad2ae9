//! The order in which the machine is brought up, from the firmware's call to the console's loop.
#![expect(unsafe_code, reason = "the boot information arrives as a pointer")]

use core::{convert::Infallible, fmt::Write, panic::PanicInfo};

use boot::{BootInfo, efi};

use crate::{heap::Heap, logging, serial, time};

/// Size of the heap in bytes.
const HEAP_BYTES: usize = 16 << 20;

/// Starts the hypervisor while the firmware runs.
///
/// # Errors
/// When the firmware lacks something that the hypervisor can't do without; it was reported, and the firmware still
/// runs.
pub fn from_firmware(heap: &Heap) -> Result<Infallible, efi::Error> {
    let tsc = time::tsc();
    time::start_at(tsc);
    serial::init();
    let _ = writeln!(
        serial::port(),
        "\nseamark {} at TSC {tsc}",
        env!("CARGO_PKG_VERSION")
    );
    logging::init();
    let started = efi::heap(HEAP_BYTES)
        .ok_or(efi::Error::NoMemory("the heap"))
        .and_then(|memory| {
            heap.init(memory);
            efi::boot(heap.extent(), with_own_tables)
        });
    started.inspect_err(|e| log::error!("{e}; back to the firmware"))
}

/// The hypervisor on its own stack and page tables, without the firmware.
extern "sysv64" fn with_own_tables(info: *mut BootInfo) -> ! {
    // SAFETY: the boot path leaked it for the hypervisor alone.
    let info = unsafe { &mut *info };
    log::info!("loaded from {}", info.source);
    if let Some(problem) = &info.config_problem {
        log::error!("{problem}; the defaults are used");
    }
    loop {
        x86_64::instructions::hlt();
    }
}

/// What a panic comes to: a broken invariant, reported, and a machine that stops.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    log::error!("{info}");
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
