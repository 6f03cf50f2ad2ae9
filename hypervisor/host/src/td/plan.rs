//! The plan for building a TD: everything that can be determined, and refused, before anything is taken.

use alloc::{sync::Arc, vec::Vec};
use core::ops::Range;

use mm::private::{Levels, Pool, Settings, Unowned};
use seam::abi::{PAGE_4K, TdParams};
use td_base::{kernel::HEAD_BYTES, payload::WINDOW};
use tdvf::TdImage;

use super::{
    Extent, Td,
    error::Error,
    files::{Files, Image, Loaded},
    hob,
    host::Host,
    memory::Layout,
    params::params,
};
use crate::{platform::Platform, tdx::hkids::NoHkid};

/// Frames for building in addition to the TD's own: one that passes TD_PARAMS and the image's pages to the module.
const SCRATCH_PAGES: u64 = 1;

/// Frames that stay free, so that the host's heap can grow: 2 MiB.
pub(super) const RESERVED_PAGES: u64 = 512;

/// A plan for building a TD.
pub struct Plan<'a> {
    /// TD_PARAMS.
    pub params: TdParams,
    /// The image, without the list of memory.
    pub image: TdImage<'a>,
    /// The list of memory (TD HOB).
    pub list: Vec<u8>,
    /// Guest address of the list; 0 if the image has no room for one.
    pub list_at: u64,
    /// The TD's map.
    pub map: Unowned,
    /// Exclusive upper limit of private addresses.
    pub limit: u64,
    /// The memory to populate before the guest starts, which the guest has to accept.
    pub populate: Vec<Range<u64>>,
    /// The first CPU of each vCPU.
    pub placement: Vec<u32>,
}

/// A TD to admit, and the state of the host that its admission depends on.
pub struct Candidate<'a, 'f> {
    /// The TD's number.
    pub id: u32,
    /// The TD's configuration.
    pub config: &'a Arc<config::Td>,
    /// The TD's files.
    pub files: &'f Files<'f>,
    /// Bytes promised to other TDs that they have not taken yet.
    pub promised: u64,
    /// Index among the CPUs from which on vCPUs are placed.
    pub first_cpu: usize,
}

/// Checks everything that can be checked about a TD before it exists: the configuration against the module, the image,
/// frames, HKIDs and CPUs.
///
/// # Errors
/// [`Error`], with what is missing. Nothing was taken.
pub fn plan<'f, P: Platform>(
    host: &Host<'_, P>,
    candidate: &Candidate<'_, 'f>,
) -> Result<(Td, Plan<'f>), Error> {
    let Candidate { config, files, .. } = candidate;
    let params = params(config, &host.capabilities, host.native).map_err(Error::Unsupported)?;
    if let Some(name) = files.missing(config) {
        return Err(Error::NoFile(name.into()));
    }
    if let Some(which) = config.empty_file(|name| files.length(config, name)) {
        return Err(Error::EmptyFile(which));
    }
    let head = |kernel: Loaded| {
        let mut head = [0; HEAD_BYTES];
        let bytes = head.len().min(kernel.bytes as usize);
        host.platform.read(kernel.hpa, &mut head[..bytes]);
        head
    };
    files.check_room(config, head).map_err(Error::Room)?;
    let image =
        TdImage::parse(files.image.as_ref().map_or(&[], Image::bytes)).map_err(Error::Image)?;
    let layout = Layout::of(config, config.memory).ok_or(Error::TooMuchMemory)?;
    let payload = files.payload(config);
    if payload.is_some() && layout.limit() > WINDOW {
        return Err(Error::TooMuchMemory);
    }
    let sections = Sections::of(&image, layout);
    let list_at = list_at(&image);
    let list = hob::list(list_at, &sections.list, payload.as_ref());
    if list_at != 0 {
        image.clone().with_hob(&list).map_err(Error::Hob)?;
    }
    let most = layout.most(sections.outside, config.max_4k);
    let most_pages = most.pages + control_pages(host, config);
    let needed = most_pages + SCRATCH_PAGES;
    let free = host
        .platform
        .pool()
        .free_bytes()
        .saturating_sub(candidate.promised + RESERVED_PAGES * PAGE_4K)
        / PAGE_4K;
    if needed > free {
        return Err(Error::NoFrames { needed, free });
    }
    let hkids = host.coordinator.hkids().count();
    if hkids.free == 0 {
        return Err(Error::NoHkid(NoHkid(hkids)));
    }
    let placement = placement(host, config.vcpus, candidate.first_cpu);
    check_cpus(host, &placement)?;
    let limit = layout.limit().max(sections.end);
    let map = Unowned::new(Settings {
        limit,
        levels: Levels::Four,
        keyid: host.keyid,
        sept_limit: most.sept,
    })?
    .clearing(host.clearing);
    let extent = Extent {
        layout,
        image_end: sections.inside_end,
        most_pages,
    };
    let td = Td::new(candidate.id, Arc::clone(config), extent, files).ok_or(Error::NoHeap)?;
    let mut populate = sections.augmented;
    if config.populate == config::Populate::Start {
        populate.extend(sections.rest);
    }
    Ok((
        td,
        Plan {
            params,
            image,
            list,
            list_at,
            map,
            limit,
            populate,
            placement,
        },
    ))
}

/// Returns the list of memory (TD HOB) that a TD with this configuration finds in its UEFI firmware. `None` if it has
/// more memory than there are addresses.
#[must_use]
pub fn uefi_list(config: &config::Td, image: &TdImage<'_>) -> Option<Vec<u8>> {
    let sections = Sections::of(image, Layout::of(config, config.memory)?);
    Some(hob::list(list_at(image), &sections.list, None))
}

/// Returns the guest address of the list; 0 if the image has no room for one.
fn list_at(image: &TdImage<'_>) -> u64 {
    image.hob().map_or(0, |section| section.gpa)
}

/// The image's sections within a TD's memory.
struct Sections {
    /// The description of the memory for the guest.
    list: Vec<(Range<u64>, hob::Kind)>,
    /// Sections that the guest has to accept.
    augmented: Vec<Range<u64>>,
    /// Memory outside all sections.
    rest: Vec<Range<u64>>,
    /// Bytes of sections outside the configured memory: the firmware below 4 GiB.
    outside: u64,
    /// End of the last section.
    end: u64,
    /// End of the last section within the configured memory.
    inside_end: u64,
}

impl Sections {
    fn of(image: &TdImage<'_>, layout: Layout) -> Self {
        let ranges = |is_augmented| {
            let sections = image.sections().iter();
            sections
                .filter(move |section| section.augmented == is_augmented)
                .map(|section| section.gpa..section.gpa + section.bytes)
        };
        let added: Vec<_> = ranges(false).collect();
        let augmented: Vec<_> = ranges(true).collect();
        let all: Vec<_> = added.iter().chain(&augmented).cloned().collect();
        let inside = |ranges: &[Range<u64>]| {
            let parts = layout.parts();
            let overlaps = parts.flat_map(|part| {
                ranges
                    .iter()
                    .map(move |range| range.start.max(part.start)..range.end.min(part.end))
            });
            overlaps
                .filter(|range| range.start < range.end)
                .collect::<Vec<_>>()
        };
        let bytes = |ranges: &[Range<u64>]| -> u64 {
            ranges.iter().map(|range| range.end - range.start).sum()
        };
        let end = |ranges: &[Range<u64>]| ranges.iter().map(|range| range.end).max().unwrap_or(0);
        let mut list: Vec<_> = inside(&added)
            .into_iter()
            .map(|range| (range, hob::Kind::Added))
            .collect();
        let unaccepted = layout.without(&added).into_iter();
        list.extend(unaccepted.map(|range| (range, hob::Kind::Unaccepted)));
        list.sort_unstable_by_key(|(range, _)| range.start);
        Self {
            list,
            outside: bytes(&all) - bytes(&inside(&all)),
            end: end(&all),
            inside_end: end(&inside(&all)),
            rest: layout.without(&all),
            augmented,
        }
    }
}

/// Returns the number of control pages: TDR, TDCX, and the vCPUs' pages.
fn control_pages<P>(host: &Host<'_, P>, config: &config::Td) -> u64 {
    let capabilities = &host.capabilities;
    let vcpus = u64::from(config.vcpus) * u64::from(capabilities.tdvps_pages);
    1 + u64::from(capabilities.tdcx_pages) + vcpus
}

/// Assigns CPUs to vCPUs in turn, from the CPU at index `first` on.
fn placement<P: Platform>(host: &Host<'_, P>, vcpus: u16, first: usize) -> Vec<u32> {
    let cpus = host.platform.cpus().iter().map(|place| place.cpu);
    let from_first = cpus.cycle().skip(first % host.platform.cpus().len().max(1));
    from_first.take(vcpus.into()).collect()
}

/// Checks that every CPU that building needs answers.
fn check_cpus<P: Platform>(host: &Host<'_, P>, placement: &[u32]) -> Result<(), Error> {
    let mut cpus: Vec<_> = host.leaders();
    cpus.extend(placement);
    cpus.sort_unstable();
    cpus.dedup();
    let answered = host.platform.on_each(&cpus, &|_| {});
    answered.map_err(|silent| Error::Silent(silent.to_vec()))
}

#[cfg(test)]
mod tests {
    use seam::abi::PAGE_1G;
    use tdvf::{Entry, Kind, TAIL_BYTES, write};

    use super::*;

    /// An image with the sections of OVMF: firmware below 4 GiB, and memory from 8 MiB on.
    fn image() -> Vec<u8> {
        let entry = |data, gpa, bytes, kind: Kind| Entry {
            data,
            gpa,
            bytes,
            kind: kind as u32,
            attributes: 0,
        };
        let sections = [
            entry(0..0x1000, 0xFFFF_F000, 0x1000, Kind::Bfv),
            entry(0..0, 0x81_0000, 0x1_0000, Kind::TempMem),
            entry(0..0, 0x80_9000, 0x2000, Kind::TdHob),
        ];
        write(&[0; 0x1000], &sections, &[0; TAIL_BYTES])
    }

    /// OVMF stops accepting at the first range that begins at or above 4 GiB.
    #[test]
    fn uefi_firmware_is_told_its_low_memory_first_and_all_but_its_sections_is_unaccepted() {
        let text = b"[[file]]\nname = \"f\"\npath = \"f\"\n[[td]]\nname = \"a\"\nmemory = \"16G\"\nfirmware = \"f\"\n";
        let config = config::parse(text).unwrap().td.remove(0);
        let image = image();
        let image = TdImage::parse(&image).unwrap();
        let layout = Layout::of(&config, config.memory).unwrap();
        let list = Sections::of(&image, layout).list;
        assert_eq!(
            list,
            [
                (0..0x80_9000, hob::Kind::Unaccepted),
                (0x80_9000..0x80_B000, hob::Kind::Added),
                (0x80_B000..0x81_0000, hob::Kind::Unaccepted),
                (0x81_0000..0x82_0000, hob::Kind::Added),
                (0x82_0000..2 * PAGE_1G, hob::Kind::Unaccepted),
                (4 * PAGE_1G..18 * PAGE_1G, hob::Kind::Unaccepted),
            ]
        );
    }
}
