//! The start under firmware: collects memory, processors, options and the clock, then moves beneath the caller.
#![expect(
    unsafe_code,
    reason = "contains the EFI entry point and relocates the program"
)]

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::fmt;

use uefi::boot::{self, AllocateType, MemoryType, ScopedProtocol};
use uefi::mem::memory_map::MemoryMap;
use uefi::proto::loaded_image::LoadedImage;
use uefi::proto::pi::mp::MpServices;
use uefi::{Handle, Status};

use stub_rom::options::{MAX_APIC_ID, NAMES, Options, PREFIX};
use stub_rom::personality::clock::Clock;
use stub_rom::room;

use crate::fwcfg::FwCfg;
use crate::memory::PAGE;
use crate::monitor::{self, Inventory};
use crate::relocate::Image;
use crate::{HEAP, cpu, emulator, report};

/// The driver's entry point.
#[unsafe(no_mangle)]
extern "efiapi" fn efi_main(handle: Handle, table: *const c_void) -> Status {
    // SAFETY: firmware calls this with its own handle for the image, and with the system table.
    unsafe {
        boot::set_image_handle(handle);
        uefi::table::set_system_table(table.cast());
    }
    match slip_under() {
        Ok(()) => Status::SUCCESS,
        Err(why) => {
            report::line("error", format_args!(r#""reason":"{why}""#));
            Status::UNSUPPORTED
        }
    }
}

/// The reason why the monitor can't run on this machine.
enum Refusal {
    /// The sentence states the reason.
    Because(&'static str),
    /// A processor's APIC id is too large.
    ApicId(u32),
    /// There is no aligned range of this size below 4 GiB for this many processors.
    NoRoom { bytes: u64, processors: usize },
}

impl From<&'static str> for Refusal {
    fn from(why: &'static str) -> Self {
        Self::Because(why)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Because(why) => f.write_str(why),
            Self::ApicId(id) => write!(
                f,
                "a processor has the APIC id {id}, and QEMU's xAPIC reaches {MAX_APIC_ID} at most: use fewer processors"
            ),
            Self::NoRoom { bytes, processors } => write!(
                f,
                "the SEAM range of {processors} processors takes {} MiB below 4 GiB, and no such range is free: use more memory or fewer processors",
                bytes >> 20
            ),
        }
    }
}

/// Collects the monitor's inventory and starts the monitor beneath the caller.
fn slip_under() -> Result<(), Refusal> {
    const SVM: u32 = 1 << 2;
    const NESTED_PAGING: u32 = 1;
    if cpu::cpuid(0x8000_0000, 0)[0] < 0x8000_000A
        || cpu::cpuid(0x8000_0001, 0)[2] & SVM == 0
        || cpu::cpuid(0x8000_000A, 0)[3] & NESTED_PAGING == 0
    {
        return Err(Refusal::Because(
            "the CPU has no SVM with nested paging: use -cpu max,+svm,+npt,phys-bits=48",
        ));
    }
    if cpu::cpuid(0x8000_0008, 0)[0] & 0xFF != 48 {
        return Err(Refusal::Because(
            "the CPU must have 48 physical address bits: use -cpu max,+svm,+npt,phys-bits=48",
        ));
    }
    if !emulator::leaves_vmx_undefined() {
        return Err(Refusal::Because(
            "this QEMU executes VMXON and its kind as if they did nothing, as 9.2 to 10.1.2 do: use another version",
        ));
    }
    let image = own_image()?;
    let image_size = image.size().next_multiple_of(PAGE);
    let processors = Processors::ask()?;
    let seamrr = reserve_seamrr(image_size as u64, processors.count)?;
    let trampoline =
        boot::allocate_pages(AllocateType::MaxAddress(0xA_0000), MemoryType::RESERVED, 1)
            .map_err(|_| "no page below 640 KiB for processors to start on")?;
    let heap = seamrr.base + image_size as u64;
    // SAFETY: the range was just allocated for this program alone, and is identity-mapped by firmware.
    unsafe {
        HEAP.lock()
            .init(heap as *mut u8, seamrr.size as usize - image_size)
    };

    // From here on the monitor owns everything on the heap: nothing may be dropped after the dive.
    let inventory = inventory(&processors, &seamrr, trampoline.as_ptr() as u64)?;
    drop(processors);
    // SAFETY: the copy's destination was allocated above, page-aligned, and lies before the heap.
    unsafe { image.copy_to(seamrr.base as *mut u8) }
        .ok_or("this program's relocations make no sense")?;
    let entry = image.moved(
        monitor::begin as *const () as usize,
        seamrr.base as *const u8,
    );
    // SAFETY: `entry` is `monitor::begin` in the relocated copy; the types of both copies are the same.
    unsafe {
        monitor::dive(
            core::mem::transmute::<usize, monitor::Begin>(entry),
            inventory,
        )
    };
    Ok(())
}

/// Collects the monitor's inventory. All other heap allocations are freed when this returns.
fn inventory(
    processors: &Processors,
    seamrr: &Range,
    trampoline: u64,
) -> Result<Inventory, Refusal> {
    let fw_cfg = FwCfg::open().ok_or("QEMU's fw_cfg device is missing")?;
    let options = read_options(&fw_cfg);
    let tsc_hz = measure_tsc()?;
    Ok(Inventory {
        clock: clock(&options, tsc_hz),
        tsc_hz,
        options,
        seamrr: (seamrr.base, seamrr.size),
        trampoline,
        apic_ids: processors.apic_ids()?,
        ram: ram(&fw_cfg)?,
    })
}

/// Returns the image of this program as firmware loaded it.
fn own_image() -> Result<Image, &'static str> {
    let loaded = boot::open_protocol_exclusive::<LoadedImage>(boot::image_handle())
        .map_err(|_| "firmware does not say where this program is")?;
    let (base, size) = loaded.info();
    // SAFETY: firmware reports the range; the program's statics are written before and after the copy, not during it.
    Ok(unsafe { Image::new(base.cast(), size as usize) })
}

/// A range of physical memory.
struct Range {
    base: u64,
    size: u64,
}

/// Reserves the highest aligned range of free memory below 4 GiB, where starting processors can load a CR3. It has room
/// for this program's image and for the monitor's allocations for this many processors.
fn reserve_seamrr(image: u64, processors: usize) -> Result<Range, Refusal> {
    let map = boot::memory_map(MemoryType::LOADER_DATA).map_err(|_| "no memory map")?;
    let free = || {
        let regions = map.entries();
        let regions = regions.filter(|region| region.ty == MemoryType::CONVENTIONAL);
        regions.map(|region| {
            let end = region.phys_start + region.page_count * PAGE as u64;
            (region.phys_start, end)
        })
    };
    let end_of_ram = free().map(|(_, end)| end).max().unwrap_or(0);
    let size = room::seam_range(image, processors as u64, end_of_ram);
    let base = free()
        .filter_map(|(start, end)| {
            let base = (end.min(1 << 32) & !(size - 1)).checked_sub(size)?;
            (base >= start && base > 0).then_some(base)
        })
        .max()
        .ok_or(Refusal::NoRoom {
            bytes: size,
            processors,
        })?;
    let pages = size as usize / PAGE;
    boot::allocate_pages(AllocateType::Address(base), MemoryType::RESERVED, pages)
        .map_err(|_| "firmware refuses to reserve memory")?;
    Ok(Range { base, size })
}

fn read_options(fw_cfg: &FwCfg) -> Options {
    let mut options = Options::default();
    for name in NAMES {
        let mut path = String::from(PREFIX);
        path.push_str(name);
        let Some(bytes) = fw_cfg.file(&path) else {
            continue;
        };
        if let Err(why) = options.set(name, &bytes) {
            bad_option(name, &why);
        }
    }
    options
}

fn bad_option(name: &str, why: &str) {
    let why = report::Escaped(why);
    report::line(
        "bad_option",
        format_args!(r#""option":"{PREFIX}{name}","reason":"{why}""#),
    );
}

/// Returns the clocks that CPUID reports.
fn clock(options: &Options, measured_hz: u64) -> Clock {
    let Some(claimed_hz) = options.tsc_hz else {
        return Clock::of(measured_hz);
    };
    Clock::claiming(claimed_hz, measured_hz).unwrap_or_else(|| {
        bad_option(
            "tsc_hz",
            "it is more than four times what this computer's counter runs at",
        );
        Clock::of(measured_hz)
    })
}

/// The processors that firmware knows.
struct Processors {
    services: ScopedProtocol<MpServices>,
    count: usize,
}

impl Processors {
    const SILENT: &str = "firmware's multi-processor services do not answer";

    fn ask() -> Result<Self, Refusal> {
        let handle = boot::get_handle_for_protocol::<MpServices>().map_err(|_| Self::SILENT)?;
        let services =
            boot::open_protocol_exclusive::<MpServices>(handle).map_err(|_| Self::SILENT)?;
        let count = services.get_number_of_processors();
        let count = count.map_err(|_| Self::SILENT)?.total;
        Ok(Self { services, count })
    }

    /// Returns their APIC ids in firmware's order. The first is the executing processor's.
    fn apic_ids(&self) -> Result<Vec<u32>, Refusal> {
        let mut ids = Vec::with_capacity(self.count);
        for number in 0..self.count {
            let info = self.services.get_processor_info(number);
            let info = info.map_err(|_| Self::SILENT)?;
            let id = info.processor_id as u32;
            if id > MAX_APIC_ID {
                return Err(Refusal::ApicId(id));
            }
            if info.is_bsp() {
                ids.insert(0, id);
            } else {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

/// Returns the ranges of RAM, base and size, as QEMU reports them.
fn ram(fw_cfg: &FwCfg) -> Result<Vec<(u64, u64)>, &'static str> {
    const RAM: u32 = 1;
    let table = fw_cfg
        .file("etc/e820")
        .ok_or("QEMU does not say where memory is")?;
    let mut ranges: Vec<(u64, u64)> = table
        .chunks_exact(20)
        .filter_map(|entry| {
            let base = u64::from_le_bytes(entry[..8].try_into().ok()?);
            let size = u64::from_le_bytes(entry[8..16].try_into().ok()?);
            let kind = u32::from_le_bytes(entry[16..].try_into().ok()?);
            (kind == RAM).then_some((base, size))
        })
        .collect();
    ranges.sort_unstable();
    Ok(ranges)
}

/// Measures the frequency of the time-stamp counter in Hz against the ACPI power management timer of QEMU's q35.
fn measure_tsc() -> Result<u64, &'static str> {
    const TIMER_HZ: u64 = 3_579_545;
    const DURATION: u64 = TIMER_HZ / 20;
    const DISTURBED: u64 = 200_000;
    let port = power_management_timer()?;
    let read = || {
        // A slow reading, during which the computer beneath ran something else, pairs two different moments.
        (0..1000)
            .map(|_| {
                let before = cpu::rdtsc();
                // SAFETY: reading the timer has no side effect.
                let ticks = unsafe { cpu::in32(port) } & 0xFF_FFFF;
                let after = cpu::rdtsc();
                (
                    after - before,
                    u64::from(ticks),
                    before + (after - before) / 2,
                )
            })
            .find(|&(took, ..)| took < DISTURBED)
            .ok_or("the host is too busy to measure the clock")
    };
    let (_, start, tsc_start) = read()?;
    for _ in 0..10_000_000 {
        let (_, now, tsc) = read()?;
        let elapsed = now.wrapping_sub(start) & 0xFF_FFFF;
        if elapsed >= DURATION {
            return Ok((tsc - tsc_start) * TIMER_HZ / elapsed);
        }
    }
    Err("the power management timer stands still")
}

/// Returns the I/O port of the power management timer: PMBASE of the LPC bridge 00:1f.0, plus 8.
fn power_management_timer() -> Result<u16, &'static str> {
    const CONFIG_ADDRESS: u16 = 0xCF8;
    const CONFIG_DATA: u16 = 0xCFC;
    const LPC_PMBASE: u32 = 0x8000_F840;
    // SAFETY: one PCI configuration read. Firmware called this program, so it is not in the middle of another one.
    let base = unsafe {
        cpu::out32(CONFIG_ADDRESS, LPC_PMBASE);
        cpu::in32(CONFIG_DATA)
    };
    match base & 0xFF80 {
        0 | 0xFF80 => Err("this is no q35 machine: use -M q35"),
        base => Ok(base as u16 + 8),
    }
}
