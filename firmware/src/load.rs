//! The first vCPU's path from the reset vector to the kernel.
#![expect(
    unsafe_code,
    reason = "memory is used by its address: there is nobody else who gives it out"
)]

use core::slice;

use td_acpi::{Pci, Place, RSDP_BYTES, Wakeup};
use td_base::hob::{self, Kind};
use td_base::layout::{HOB, HOB_BYTES, PROGRAM};
use td_base::payload::{self, File, Payload, WINDOW};
use td_base::{board, long_mode, tdcall, vmcall};

use crate::console::{Part, fatal, say};
use crate::events::Log;
use crate::mailbox::{self, MAILBOX};
use crate::parameters::{self, Kind as Use, Told};
use crate::places::{self, COMMAND_LINE, PARAMETERS, Ranges};
use crate::{KEPT, KEPT_BYTES, TABLES, TABLES_BYTES, sha384, start, team};
use td_base::kernel::{ENTRY_64, HEAD_BYTES, Kernel};

/// The RTMRs that are extended with the kernel, and with command line and initial file system.
const KERNEL_REGISTER: u8 = 1;
const SYSTEM_REGISTER: u8 = 2;

/// Offset of the event log in [`KEPT`], behind the FACS.
const LOG_AT: usize = 0x1000;

/// Boots the kernel.
pub extern "sysv64" fn main() -> ! {
    let info = tdcall::vp_info();
    // SAFETY: the image reserves this memory for the list. The host wrote it before the TD ran.
    let list = unsafe { slice::from_raw_parts(HOB as *const u8, HOB_BYTES as usize) };
    let ranges = check(memory(list));
    let payload = payload_of(list);
    long_mode::map_shared(1 << (info.gpa_width - 1) | WINDOW);

    let mut head = [0; HEAD_BYTES];
    if payload.kernel.bytes < HEAD_BYTES as u64 {
        fatal("the kernel is no Linux kernel (bzImage)");
    }
    copy(payload.kernel, &mut head);
    let kernel = check(Kernel::read(&head, payload.kernel.bytes));
    if payload.command_line.len() > kernel.command_line {
        fatal("the command line is longer than the kernel takes");
    }
    let places = check(places::find(
        &ranges,
        &kernel,
        payload.initrd.bytes,
        info.vcpus,
    ));
    team::accept_all(&ranges, info.vcpus, places.waiting.start);

    // SAFETY: this is accepted memory, in which `places` gave each part its own range.
    let (file, initrd, page, line) = unsafe {
        (
            memory_at(places.file, payload.kernel.bytes),
            memory_at(places.initrd, payload.initrd.bytes),
            memory_at(PARAMETERS, parameters::BYTES as u64),
            memory_at(COMMAND_LINE, payload::COMMAND_LINE_MAX as u64 + 1),
        )
    };
    copy(payload.kernel, file);
    copy(payload.initrd, initrd);
    line[..payload.command_line.len()].copy_from_slice(payload.command_line);
    // The host could have changed the file since its head was read. Only the copy counts, and the copy is measured.
    if file.first_chunk() != Some(&head) {
        fatal("the host has changed the kernel");
    }

    // SAFETY: only this vCPU uses them, and only here.
    let (tables, kept) = unsafe { (&mut *TABLES.0.get(), &mut *KEPT.0.get()) };
    let (tables_at, kept_at) = (tables.as_ptr() as u64, kept.as_ptr() as u64);
    let (facs, log) = kept.split_at_mut(LOG_AT);
    facs[..td_acpi::FACS_BYTES].copy_from_slice(&td_acpi::facs());
    let log_bytes = log.len() as u64;
    let mut log = Log::new(log);
    measure(&mut log, KERNEL_REGISTER, file, b"kernel");
    measure(
        &mut log,
        SYSTEM_REGISTER,
        payload.command_line,
        payload.command_line,
    );
    if payload.initrd.bytes != 0 {
        measure(&mut log, SYSTEM_REGISTER, initrd, b"initrd");
    }

    place_pci();
    let mailbox = &raw const MAILBOX as u64;
    let td = td_acpi::Td {
        processors: info.vcpus,
        wakeup: Some(Wakeup {
            mailbox,
            reset: mailbox::reset_vector(),
        }),
        facs: kept_at,
        log: Some(td_acpi::Log {
            at: kept_at + LOG_AT as u64,
            bytes: log_bytes,
        }),
        pci: Pci::default(),
    };
    let place = Place {
        memory: &mut tables[..],
        at: tables_at,
        from: RSDP_BYTES,
    };
    let Ok(written) = td_acpi::write(place, &td) else {
        fatal("there are too many vCPUs for the ACPI tables");
    };
    tables[..RSDP_BYTES].copy_from_slice(&td_acpi::root(written.xsdt));
    let kept = [
        (places.waiting.clone(), Use::Reserved),
        (tables_at..tables_at + TABLES_BYTES as u64, Use::Acpi),
        (mailbox..mailbox + size_of_val(&MAILBOX) as u64, Use::Nvs),
        (kept_at..kept_at + KEPT_BYTES as u64, Use::Nvs),
        (
            board::PCI_CONFIG..board::PCI_CONFIG + board::PCI_CONFIG_BYTES,
            Use::Reserved,
        ),
    ];
    let told = Told {
        head: &head,
        kernel: &kernel,
        places: &places,
        initrd_bytes: payload.initrd.bytes,
        rsdp: tables_at,
        map: &parameters::map(&ranges, PROGRAM..1 << 32, &kept),
    };
    let Some(page) = page.first_chunk_mut() else {
        fatal("there is no room for the boot parameters");
    };
    parameters::write(page, &told);
    say(&[
        Part::Number(info.vcpus.into()),
        Part::Text(" vCPUs, "),
        Part::Number(
            ranges
                .iter()
                .map(|range| range.end - range.start)
                .sum::<u64>()
                >> 20,
        ),
        Part::Text(" MiB accepted; kernel of "),
        Part::Number(payload.kernel.bytes),
        Part::Text(" bytes, initrd of "),
        Part::Number(payload.initrd.bytes),
    ]);
    // SAFETY: the state is as the boot protocol demands.
    unsafe { start::enter(places.kernel + ENTRY_64, PARAMETERS) }
}

/// Places the configuration space of the PCI bus where the ACPI tables say that it is. If the host has no such bus, the
/// operating system finds nothing there.
fn place_pci() {
    /// Registers of the host bridge, device 0 on bus 0: both halves of PCIEXBAR. The lower one has the enable bit, and
    /// the size: 64 buses, the least.
    const LOWER: u32 = 1 << 31 | 0x60;
    const UPPER: u32 = LOWER + 4;
    const ON: u32 = 2 << 1 | 1;
    let (lower, upper) = (
        board::PCI_CONFIG as u32 | ON,
        (board::PCI_CONFIG >> 32) as u32,
    );
    for (register, value) in [(UPPER, upper), (LOWER, lower)] {
        let _ = vmcall::io_out(board::PCI_ADDRESS, 4, register);
        let _ = vmcall::io_out(board::PCI_ADDRESS + 4, 4, value);
    }
}

fn check<T>(result: Result<T, &'static str>) -> T {
    match result {
        Ok(value) => value,
        Err(why) => fatal(why),
    }
}

/// Returns the memory that the TD has to accept.
fn memory(list: &[u8]) -> Result<Ranges, &'static str> {
    let told = hob::memory::<{ places::MAX_RANGES }>(list);
    let told = told.map_err(|_| "the list of memory is broken")?;
    let unaccepted = told
        .into_iter()
        .filter(|(_, kind)| *kind == Kind::Unaccepted);
    places::check(unaccepted.map(|(range, _)| range).collect())
}

fn payload_of(list: &[u8]) -> Payload<'_> {
    match hob::named(list, &payload::GUID) {
        Ok(Some(block)) => check(Payload::read(block)),
        _ => fatal("the host hands over no kernel"),
    }
}

/// Copies the beginning of one of the host's files, as much as fits into `to`.
fn copy(file: File, to: &mut [u8]) {
    let from = long_mode::SHARED_WINDOW + (file.gpa - WINDOW);
    // SAFETY: the window maps the memory that the host shares, all of which may be read; an access to missing memory
    // raises an exception, and the TD ends. Nobody else has `to`.
    unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) }
}

/// # Safety
/// The memory was accepted, and nobody else uses it.
unsafe fn memory_at(at: u64, bytes: u64) -> &'static mut [u8] {
    // SAFETY: all memory is identity-mapped; the rest is the caller's promise. Places are never at address 0.
    unsafe { slice::from_raw_parts_mut(at as *mut u8, bytes as usize) }
}

/// Extends a register with the digest of `content`, and records that in the log.
fn measure(log: &mut Log<'_>, register: u8, content: &[u8], what: &[u8]) {
    let digest = sha384::digest(content);
    if tdcall::rtmr_extend(register, &digest).is_err() {
        fatal("a measurement register can't be extended");
    }
    log.extended(register, &digest, what);
}
