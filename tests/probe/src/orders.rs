//! The program's orders beside its checks: a line in `probe.txt` beside it, and for some the image of a guest in
//! `guest.fd`, or a program in `program.efi`.
#![expect(unsafe_code, reason = "reads a file into a buffer of the firmware")]

use uefi::boot::{self, AllocateType, MemoryType};
use uefi::proto::media::file::{File, FileAttribute, FileMode};
use uefi::{CStr16, cstr16};

use crate::host::{self, Scenario};
use crate::measure::{self, Meter};
use crate::{Check, Failure, dirty, dma, five_levels};

/// The largest file that is read.
const MAX_BYTES: usize = 8 << 20;

/// Something else than checks.
pub enum Order {
    /// `bench`, `count`: say what things cost, in time or in instructions.
    Measure(Meter),
    /// `dma`: let devices reach what they must not reach.
    Dma,
    /// `guest N RELEASE`, `interrupts N RELEASE`, `hammer N RELEASE`: run the guest with N vCPUs on module 1.5.RELEASE.
    Host {
        /// The host's work meanwhile.
        scenario: Scenario,
        /// vCPUs.
        vcpus: usize,
        /// The module's update number, for the guest.
        release: u64,
        /// The image.
        image: &'static [u8],
    },
    /// `five-levels`: start the program in `program.efi` in 5-level paging mode.
    FiveLevels(&'static [u8]),
    /// `dirty-firmware`: start the program in `program.efi`, and leave much behind when the firmware's services end.
    DirtyFirmware(&'static [u8]),
    /// Something that nobody understands.
    Unknown,
}

/// The orders; `None` if there are none.
pub fn read() -> Option<Order> {
    let text = file(cstr16!("\\EFI\\BOOT\\probe.txt"))?;
    let mut words = core::str::from_utf8(text)
        .unwrap_or_default()
        .split_whitespace();
    let scenario = match words.next() {
        Some("bench") => return Some(Order::Measure(Meter::Time)),
        Some("count") => return Some(Order::Measure(Meter::Instructions)),
        Some("dma") => return Some(Order::Dma),
        Some("five-levels") => return Some(with_program(Order::FiveLevels)),
        Some("dirty-firmware") => return Some(with_program(Order::DirtyFirmware)),
        Some("guest") => Scenario::Guest,
        Some("interrupts") => Scenario::Interrupts,
        Some("hammer") => Scenario::Hammer,
        _ => return Some(Order::Unknown),
    };
    let vcpus = words.next().and_then(|number| number.parse().ok());
    let release = words.next().and_then(|number| number.parse().ok());
    let image = file(cstr16!("\\EFI\\BOOT\\guest.fd"));
    Some(match (vcpus, release, image) {
        (Some(vcpus), Some(release), Some(image)) => Order::Host {
            scenario,
            vcpus,
            release,
            image,
        },
        _ => Order::Unknown,
    })
}

fn with_program(order: fn(&'static [u8]) -> Order) -> Order {
    let program = file(cstr16!("\\EFI\\BOOT\\program.efi"));
    program.map_or(Order::Unknown, order)
}

impl Order {
    /// Returns true if another program is started, which needs the firmware.
    pub fn starts_a_program(&self) -> bool {
        matches!(self, Self::FiveLevels(_) | Self::DirtyFirmware(_))
    }

    /// Does it.
    pub fn execute(self) -> Check {
        match self {
            Self::Measure(meter) => measure::run(meter),
            Self::Dma => dma::run(),
            Self::FiveLevels(program) => five_levels::start(program),
            Self::DirtyFirmware(program) => dirty::start(program),
            Self::Host {
                scenario,
                vcpus,
                release,
                image,
            } => host::run(scenario, vcpus, release, image),
            Self::Unknown => Err(Failure {
                what: "probe.txt",
                found: 0,
                expected: 1,
            }),
        }
    }
}

/// A file on the volume that the program was loaded from.
fn file(path: &CStr16) -> Option<&'static [u8]> {
    let mut volume = boot::get_image_file_system(boot::image_handle()).ok()?;
    let mut root = volume.open_volume().ok()?;
    let handle = root
        .open(path, FileMode::Read, FileAttribute::empty())
        .ok()?;
    let mut file = handle.into_regular_file()?;
    let buffer = boot::allocate_pages(
        AllocateType::AnyPages,
        MemoryType::LOADER_DATA,
        MAX_BYTES / 4096,
    )
    .ok()?;
    // SAFETY: pages that were just allocated, for as long as the program runs.
    let bytes = unsafe {
        buffer.write_bytes(0, MAX_BYTES);
        core::slice::from_raw_parts_mut(buffer.as_ptr(), MAX_BYTES)
    };
    let length = file.read(bytes).ok()?;
    Some(&bytes[..length])
}
