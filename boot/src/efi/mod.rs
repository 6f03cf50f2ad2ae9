//! The way through the firmware: files, memory map, ExitBootServices, and the host's own page tables and stack.
//!
//! The program's `efi_main` determines the order: [`attach`], then [`heap`] (which becomes the program's global
//! allocator), then [`boot`], which returns only if the hypervisor could not be started.
#![expect(
    unsafe_code,
    reason = "the firmware's tables and the memory it hands out are raw pointers; the CPU changes its page tables"
)]

mod dhcp;
mod disk;
mod exit;
mod http;
mod identity;
mod keep;
mod map;
mod screen;
mod secure;
mod source;
mod tables;
mod tftp;
mod url;
mod xd;

pub use screen::Screen;

pub use uefi::{Handle, Status};

use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::{arch::asm, ffi::c_void, fmt, mem::MaybeUninit, slice};

use config::Config;
use uefi::{
    boot::{self as services, AllocateType, MemoryType},
    proto::loaded_image::LoadedImage,
    table,
    table::cfg::ConfigTableEntry,
};
use x86_64::registers::{
    control::{Cr0, Cr0Flags, Cr4, Cr4Flags},
    model_specific::{Efer, EferFlags},
};

use self::{
    identity::Identity,
    secure::{ConfigFile, Trust},
    source::Place,
};
use crate::{BootInfo, File, layout, paging};

/// The entry point of the hypervisor, called on its own stack and page tables, with interrupts disabled.
pub type Entry = extern "sysv64" fn(info: *mut BootInfo) -> !;

/// The reason why the hypervisor could not be started. The firmware still runs.
#[derive(Debug)]
pub enum Error {
    /// The firmware does not have enough memory for the named item.
    NoMemory(&'static str),
    /// The location of the running image is unknown.
    NoImage,
    /// The image's headers are not in memory, or a section is both writable and executable.
    Sections,
    /// Building the page tables failed.
    Paging(paging::Error),
    /// The CPU does not offer the execute-disable bit, and it can't be enabled.
    NoExecuteDisable,
    /// Secure Boot is on, and the image has no usable seal, for this reason.
    Seal(String),
    /// The firmware did not exit boot services, however often it was asked.
    Exit(Status),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory(what) => write!(f, "the firmware has no memory for {what}"),
            Self::NoImage => write!(f, "the firmware does not say where it loaded the image"),
            Self::Sections => write!(
                f,
                "the image's sections can't be read, or one is both writable and executable"
            ),
            Self::Paging(e) => write!(f, "page tables: {e:?}"),
            Self::NoExecuteDisable => write!(
                f,
                "the CPU has no execute disable bit (CPUID 0x80000001 EDX bit 20): enable \"Execute Disable Bit\" (XD, \
                 NX) in the firmware's setup"
            ),
            Self::Seal(why) => write!(
                f,
                "Secure Boot is on, and the image has no usable seal ({why}): sign it with \"cargo xtask image --sign\""
            ),
            Self::Exit(status) => write!(f, "the firmware does not exit boot services: {status}"),
        }
    }
}

impl From<paging::Error> for Error {
    fn from(e: paging::Error) -> Self {
        Self::Paging(e)
    }
}

/// Registers the firmware's services with this crate.
///
/// # Safety
/// The arguments must be those that the firmware passed to the program's entry point.
pub unsafe fn attach(image: Handle, system_table: *const c_void) {
    // SAFETY: as promised by the caller.
    unsafe {
        services::set_image_handle(image);
        table::set_system_table(system_table.cast());
    }
    screen::set_attached(true);
}

/// Allocates `bytes` of memory below 4 GiB from the firmware, permanently. Returns `None` if there is no contiguous
/// range of that size.
#[must_use]
pub fn heap(bytes: usize) -> Option<&'static mut [MaybeUninit<u8>]> {
    let pages = pages(bytes.div_ceil(4096), 1 << 32)?;
    // SAFETY: the firmware gave these pages to the caller alone.
    Some(unsafe { slice::from_raw_parts_mut(pages as *mut MaybeUninit<u8>, bytes) })
}

/// Facts that are known before ExitBootServices.
#[derive(Debug)]
pub struct Found<'a> {
    /// The configuration, or the defaults if it is missing or not usable.
    pub config: &'a Config,
    /// Physical address of the ACPI RSDP, if the firmware has one.
    pub rsdp: Option<u64>,
    /// The ranges of RAM, identity-mapped: first address, and last address plus one.
    pub ram: &'a [(u64, u64)],
}

/// Reads the configuration, calls `leave`, exits boot services and starts the hypervisor.
///
/// # Errors
/// [`Error`]; the firmware then still runs.
pub fn boot(
    heap: (u64, u64),
    leave: fn(&Found<'_>),
    entry: Entry,
) -> Result<core::convert::Infallible, Error> {
    disarm_watchdog();
    let enable_xd = xd::enable()?;
    let image = source::open::<LoadedImage>(services::image_handle()).ok_or(Error::NoImage)?;
    let (base, size) = image.info();
    let extent = (base as u64, (base as u64 + size).next_multiple_of(4096));
    let mut place = Place::of_image(&image);
    drop(image);

    // SAFETY: the firmware loaded the image there, and its headers and read-only sections are never written.
    let trust = Trust::of_image(unsafe { slice::from_raw_parts(base.cast(), size as usize) })?;
    let (config, config_file, mut problems) = read_config(&mut place, &trust);
    let mut files = Vec::new();
    for file in &config.file {
        match read_file(&mut place, file, &trust) {
            Ok(file) => files.push(file),
            Err(e) => {
                let name = config_file.as_deref().unwrap_or(config::FILE_NAME);
                problems.push(format!("{name}: {e}"));
            }
        }
    }

    let trampoline = pages(1, 1 << 20);
    let stack = pages((layout::BOOT_STACK.1 / 4096) as usize, 1 << 32)
        .ok_or(Error::NoMemory("the boot stack"))?;
    let map = exit::map().map_err(|_| Error::NoMemory("the memory map"))?;
    let ram = map::ram_extents(&map::regions(map.entries()));
    let keep = keep::find(map.entries());
    let sets_variables = keep::sets_variables();
    drop(map);
    let tables = tables::build(&ram, extent, heap, trampoline, stack)?;

    let rsdp = rsdp();
    leave(&Found {
        config: &config,
        rsdp,
        ram: &ram,
    });
    let info = Box::new(BootInfo {
        source: place.source.clone(),
        memory: Vec::new(),
        rsdp,
        smbios: smbios(),
        config,
        config_file,
        config_problems: problems,
        secure_boot: trust.is_secure(),
        files,
        trampoline,
        page_tables: tables.pml4,
        cr3: tables.cr3,
        enable_xd,
        keep,
        heap,
        image: extent,
        text: tables.text,
    });
    drop(place);
    let info = Box::leak(info);
    screen::set_attached(false);
    // SAFETY: every protocol that was opened here is closed again, and nothing below calls the firmware.
    let map = unsafe { exit::exit_boot_services() }.map_err(|status| {
        screen::set_attached(true);
        Error::Exit(status)
    })?;
    // The firmware's interrupt handlers are gone together with its memory.
    x86_64::instructions::interrupts::disable();
    info.memory = map::regions(map.entries());
    if sets_variables {
        info.keep.runtime = keep::runtime(map.entries());
    }
    let top = layout::BOOT_STACK.0 + layout::BOOT_STACK.1;
    // SAFETY: the tables map the image, the heap (with `info` on it) and the stack where they are used from here on.
    unsafe { enter(tables.cr3, top, info, entry) }
}

/// Disarms the timer with which the firmware resets a machine whose boot takes more than five minutes. Large files over
/// a slow network take longer.
fn disarm_watchdog() {
    // Codes up to 0xFFFF are the firmware's own.
    const CODE: u64 = 0x1_0000;
    if let Err(e) = services::set_watchdog_timer(0, CODE, None) {
        log::warn!("the firmware's watchdog stays armed: {}", e.status());
    }
}

/// Allocates whole pages below `limit`, permanently, and returns their physical address. The content is undefined.
fn pages(count: usize, limit: u64) -> Option<u64> {
    let at = services::allocate_pages(
        AllocateType::MaxAddress(limit - 1),
        MemoryType::LOADER_DATA,
        count,
    )
    .ok()?;
    Some(at.as_ptr() as u64)
}

/// Reads the configuration. Returns it, the name of its file if there is one, and the problems.
fn read_config(place: &mut Place, trust: &Trust) -> (Config, Option<String>, Vec<String>) {
    let names = Identity::read().config_names(place.mac.as_deref());
    let mut problems = Vec::new();
    let found = find_config(place, &names).unwrap_or_else(|e| {
        problems.push(e);
        None
    });
    let (chosen, refused) = trust.choose(&names, found);
    problems.extend(refused);
    let fallback = (!problems.is_empty()).then(|| config::FILE_NAME.into());
    let read = chosen.as_ref().map(|file| config::read(&file.content));
    let read = read.unwrap_or_default();
    let name = chosen.map(|file| file.name).or(fallback);
    let file = name.as_deref().unwrap_or(config::FILE_NAME);
    let mistakes = read.problems.iter();
    problems.extend(mistakes.map(|mistake| format!("{file}:{mistake}")));
    match read.lost_tds {
        0 => {}
        1 => problems.push(format!("{file}: the [[td]] with mistakes is left out")),
        lost => problems.push(format!("{file}: {lost} [[td]] with mistakes are left out")),
    }
    (read.config, name, problems)
}

/// Finds the configuration's file and reads it: the first of `names` that is next to the program or, if there is none, in
/// the root.
fn find_config(place: &mut Place, names: &[String]) -> Result<Option<ConfigFile>, String> {
    loop {
        for name in names {
            if let Some(len) = place.len(name)? {
                if len > 1 << 20 {
                    let name = place.name(name);
                    return Err(format!("{name}: {len} bytes are more than 1 MiB"));
                }
                let mut content = alloc::vec![0; len as usize];
                place.read(name, &mut content)?;
                return Ok(Some(ConfigFile {
                    name: name.clone(),
                    content,
                }));
            }
        }
        if !place.go_to_root() {
            return Ok(None);
        }
    }
}

fn read_file(place: &mut Place, file: &config::File, trust: &Trust) -> Result<File, String> {
    let len = place
        .len(&file.path)?
        .ok_or_else(|| format!("{}: there is no such file", place.name(&file.path)))?;
    let count = len.div_ceil(4096).max(1) as usize;
    let pa = pages(count, u64::MAX)
        .ok_or_else(|| format!("{}: no memory for {len} bytes", file.path))?;
    // SAFETY: the pages were taken for this file alone; any of their bytes is a `u8`.
    let buffer = unsafe { slice::from_raw_parts_mut(pa as *mut u8, count * 4096) };
    let (content, rest) = buffer.split_at_mut(len as usize);
    // The file is read once, so the bytes that were checked are the bytes in use.
    place.read(&file.path, content)?;
    if let Err(refused) = trust.check(&file.path, content) {
        content.fill(0);
        return Err(refused);
    }
    // TDs see whole pages, so no earlier content may remain after the file's end.
    rest.fill(0);
    Ok(File {
        name: file.name.clone(),
        pa,
        len,
    })
}

fn smbios() -> Option<u64> {
    uefi::system::with_config_table(|tables| {
        let find = |guid| tables.iter().find(|t| t.guid == guid);
        find(ConfigTableEntry::SMBIOS3_GUID)
            .or_else(|| find(ConfigTableEntry::SMBIOS_GUID))
            .map(|t| t.address as u64)
    })
}

fn rsdp() -> Option<u64> {
    uefi::system::with_config_table(|tables| {
        let find = |guid| tables.iter().find(|t| t.guid == guid);
        find(ConfigTableEntry::ACPI2_GUID)
            .or_else(|| find(ConfigTableEntry::ACPI_GUID))
            .map(|t| t.address as u64)
    })
}

/// Loads the page tables and the stack, and jumps to `entry`.
///
/// # Safety
/// `cr3` must be the top of tables that map this code, `info` and the stack, in the CPU's paging mode. The CPU has the
/// execute-disable bit. The firmware must not be needed any more.
unsafe fn enter(cr3: u64, stack_top: u64, info: *mut BootInfo, entry: Entry) -> ! {
    // SAFETY: the caller promises that there is an execute-disable bit to enable; write
    // protection and global pages are what the tables were built for; SSE is what this code is compiled for.
    unsafe {
        Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE));
        Cr0::update(|cr0| cr0.insert(Cr0Flags::WRITE_PROTECT));
        Cr4::update(|cr4| {
            cr4.insert(Cr4Flags::PAGE_GLOBAL | Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE);
        });
        asm!(
            "mov cr3, {cr3}",
            "mov rsp, {stack}",
            "xor ebp, ebp",
            "push 0",
            "jmp {entry}",
            cr3 = in(reg) cr3,
            stack = in(reg) stack_top,
            entry = in(reg) entry,
            in("rdi") info,
            options(noreturn),
        )
    }
}
