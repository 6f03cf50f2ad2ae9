//! `[[td]]`: the configuration of a TD.

use alloc::{format, string::String, vec::Vec};
use core::fmt::Write;

use toml::de::DeValue;

use super::{
    Paravirt, Xfam, XfamFeature,
    cpuid::Cpuid,
    disk::{self, Disk},
    features,
    keys::{self, Key, Keyed, Mistakes, choice, chosen, number, plain, quoted, text},
    pci::{self, Pci},
};

/// Granularity of a TD's memory in bytes: it consists of 2 MiB frames.
pub const MEMORY_STEP: u64 = 2 << 20;

/// Size of MRCONFIGID, MROWNER and MROWNERCONFIG in bytes.
const MEASUREMENT_BYTES: usize = 48;

/// Size of a UUID in bytes.
const UUID_BYTES: usize = 16;

/// Largest number of device paths in a boot order, and of characters in a path.
const DEVICE_PATHS: usize = 16;
const DEVICE_PATH: usize = 127;

/// Maximum length of a name.
const NAME: usize = 32;

/// Maximum length of a command line: Linux's on x86.
const COMMAND_LINE: usize = 2047;

/// The configuration of a TD.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a key of its own in the file"
)]
pub struct Td {
    /// Name of the TD: a letter, then up to 31 letters, digits, `-`, `_` or `.`.
    pub name: String,
    /// Name of the `[[file]]` with the TD's firmware image (TDVF format). By default the TD starts from the host's own
    /// firmware, which boots `kernel`.
    pub image: Option<String>,
    /// Name of the `[[file]]` with UEFI firmware (TDVF format), such as Debian's OVMF. The TD finds the PC that such
    /// firmware expects: the host tells it the machine by fw_cfg, and its memory below 4 GiB ends at 2 GiB.
    pub firmware: Option<String>,
    /// The devices that UEFI firmware boots from, as `OpenFirmware` device paths, the first one first.
    pub boot_order: Vec<String>,
    /// The UUID that UEFI firmware shows as the system's (SMBIOS), in the order in which it is written; zero if there is
    /// none.
    pub uuid: [u8; UUID_BYTES],
    /// Name of the `[[file]]` with the Linux kernel (bzImage) that the firmware boots.
    pub kernel: Option<String>,
    /// Name of the `[[file]]` with the kernel's initial file system.
    pub initrd: Option<String>,
    /// The kernel's command line: up to 2047 characters of printable ASCII.
    pub cmdline: String,
    /// Memory size in bytes, a multiple of 2 MiB; written as `"256M"` or `"1G"`.
    pub memory: u64,
    /// Maximum memory in bytes that may be mapped in pages of 4 KiB, a multiple of 2 MiB; written as `"8G"`. The TD ends
    /// when it needs more. Each GiB of it takes 6 MiB of the host's memory for tables. By default all memory may be.
    pub max_4k: Option<u64>,
    /// Number of vCPUs, from 1.
    pub vcpus: u16,
    /// True if the TD starts with the host.
    pub autostart: bool,
    /// ATTRIBUTES.DEBUG: the host may read and write the TD's memory and state.
    pub debug: bool,
    /// ATTRIBUTES.SEPT_VE_DISABLE: an access to an unaccepted page never raises #VE. Linux requires it.
    pub sept_ve_disable: bool,
    /// CONFIG_FLAGS.NO_RBP_MOD: TDVMCALLs of the TD can't pass RBP. [`Td::no_rbp_mod`] returns the effective value.
    pub no_rbp_mod: Option<bool>,
    /// ATTRIBUTES.MIGRATABLE.
    pub migratable: bool,
    /// ATTRIBUTES.PKS: supervisor protection keys.
    pub pks: bool,
    /// ATTRIBUTES.PERFMON: performance monitoring.
    pub perfmon: bool,
    /// ATTRIBUTES.ICSSD: the module's defence against counting the TD's instructions.
    pub icssd: bool,
    /// ATTRIBUTES.LASS: linear address space separation.
    pub lass: bool,
    /// XFAM, the extended features that the TD may use. By default x87, SSE, AVX, AVX-512, PKRU and AMX, as far as the
    /// module supports them.
    pub xfam: Option<Xfam>,
    /// The physical address width that the TD's CPUID shows (CONFIG_FLAGS.MAXPA_VIRT), in bits. By default the host's
    /// own.
    pub maxpa: Option<u8>,
    /// True if the guest may reduce #VE (TD_CTLS.REDUCE_VE), which takes the module's topology in CPUID along. By
    /// default it may where the module can do it.
    pub ve_reduction: Option<bool>,
    /// The features, of those in FEATURE_PARAVIRT_CTLS, that the TD has at all; a guest that reduces #VE keeps those that
    /// it asks for. By default those that the CPU has and that the module lets the host configure.
    pub paravirt: Option<Vec<Paravirt>>,
    /// Frequency of the virtual TSC in MHz, a multiple of 25 from 100 to 10,000. By default the host's frequency.
    pub tsc_mhz: Option<u16>,
    /// `[[td.cpuid]]`: values of the CPUID leaves that the module lets the host configure.
    pub cpuid: Vec<Cpuid>,
    /// `[[td.pci]]`: the PCI functions of the machine that the TD has while it runs.
    pub pci: Vec<Pci>,
    /// `[[td.disk]]`: its disks, up to 8.
    pub disk: Vec<Disk>,
    /// Time at which the TD gets the memory that is not part of its image.
    pub populate: Populate,
    /// The device of the TD's console that is there beside the serial port.
    pub console: TdConsole,
    /// True if the TD may name other TDs in hypercalls.
    pub control: bool,
    /// CPU shares relative to other TDs, from 1 to 10,000.
    pub shares: u32,
    /// Maximum CPU time in percent of one CPU. By default the TD gets all CPU time that is left.
    pub cap: Option<u32>,
    /// MRCONFIGID, 96 hexadecimal digits.
    pub mrconfigid: [u8; MEASUREMENT_BYTES],
    /// MROWNER, 96 hexadecimal digits.
    pub mrowner: [u8; MEASUREMENT_BYTES],
    /// MROWNERCONFIG, 96 hexadecimal digits.
    pub mrownerconfig: [u8; MEASUREMENT_BYTES],
}

impl Td {
    /// Returns whether the TD's TDVMCALLs can't pass RBP. By default they can if the TD starts from the operator's own
    /// image: the GHCI lets a guest pass RBP, and OVMF 2022.11 does so in every request. The host's own firmware and
    /// Linux never do.
    #[must_use]
    pub fn no_rbp_mod(&self) -> bool {
        self.no_rbp_mod.unwrap_or(self.image_file().is_none())
    }

    /// Returns the name of the `[[file]]` that the TD starts from; `None` if that is the host's own firmware.
    #[must_use]
    pub fn image_file(&self) -> Option<&str> {
        self.image.as_deref().or(self.firmware.as_deref())
    }

    /// Returns the names of the `[[file]]`s that the TD names, each with its key.
    pub fn named_files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let named = [
            ("image", &self.image),
            ("firmware", &self.firmware),
            ("kernel", &self.kernel),
            ("initrd", &self.initrd),
        ];
        let named = named.into_iter();
        let named = named.filter_map(|(key, name)| Some((key, name.as_deref()?)));
        // A disk without a name is a mistake of its own.
        let disks = self.disk.iter().filter(|disk| !disk.file.is_empty());
        named.chain(disks.map(|disk| ("disk", &*disk.file)))
    }
}

pub(crate) const SIZE: &str = "a multiple of 2M that is not 0, with M, G or T, such as \"256M\"";
const FLAG: &str = "true or false";
pub(crate) const FILE: &str = "the name of a [[file]], in quotes";
const DIGITS: &str = "96 hexadecimal digits, in quotes";
/// 100 percent of as many CPUs as a TD can have vCPUs.
const WHOLE_HOST: u64 = 100 * u16::MAX as u64;

impl Keyed for Td {
    const TABLE: &'static str = "[[td]]";
    const KEYS: &'static [Key<Self>] = &[
        Key::<Self>::new(
            "name",
            "a letter, then up to 31 letters, digits, '-', '_' or '.', in quotes",
            |td, value| {
                td.name = text(value).filter(|name| is_name(name))?;
                Some(())
            },
            |td| Some(quoted(&td.name)),
        )
        .required(),
        Key::<Self>::new(
            "image",
            FILE,
            |td, value| text(value).map(|name| td.image = Some(name)),
            |td| td.image.as_deref().map(quoted),
        ),
        Key::<Self>::new(
            "firmware",
            FILE,
            |td, value| text(value).map(|name| td.firmware = Some(name)),
            |td| td.firmware.as_deref().map(quoted),
        ),
        Key::<Self>::new(
            "boot_order",
            "a list of up to 16 OpenFirmware device paths, such as [\"/pci@i0cf8/*@1\"]",
            |td, value| {
                td.boot_order = device_paths(value)?;
                Some(())
            },
            |td| {
                let paths: Vec<_> = td.boot_order.iter().map(|path| quoted(path)).collect();
                (!paths.is_empty()).then(|| format!("[{}]", paths.join(", ")))
            },
        ),
        Key::<Self>::new(
            "uuid",
            "a UUID in the usual notation, in quotes",
            |td, value| {
                td.uuid = uuid(value.as_str()?)?;
                Some(())
            },
            |td| shown_uuid(&td.uuid),
        ),
        Key::<Self>::new(
            "kernel",
            FILE,
            |td, value| text(value).map(|name| td.kernel = Some(name)),
            |td| td.kernel.as_deref().map(quoted),
        ),
        Key::<Self>::new(
            "initrd",
            FILE,
            |td, value| text(value).map(|name| td.initrd = Some(name)),
            |td| td.initrd.as_deref().map(quoted),
        ),
        Key::<Self>::new(
            "cmdline",
            "up to 2047 characters of printable ASCII, in quotes",
            |td, value| {
                td.cmdline = text(value).filter(|line| is_command_line(line))?;
                Some(())
            },
            |td| Some(quoted(&td.cmdline)).filter(|_| !td.cmdline.is_empty()),
        ),
        Key::<Self>::new(
            "memory",
            SIZE,
            |td, value| whole_frames(value).map(|bytes| td.memory = bytes),
            |td| Some(quoted(&size(td.memory))),
        )
        .required(),
        Key::<Self>::new(
            "max_4k",
            SIZE,
            |td, value| whole_frames(value).map(|bytes| td.max_4k = Some(bytes)),
            |td| td.max_4k.map(|bytes| quoted(&size(bytes))),
        ),
        Key::<Self>::new(
            "vcpus",
            "a number from 1 to 65535",
            |td, value| number(value, 1..=u16::MAX.into()).map(|n| td.vcpus = n as u16),
            |td| plain(td.vcpus, 1),
        ),
        Key::<Self>::new(
            "autostart",
            FLAG,
            |td, value| value.as_bool().map(|on| td.autostart = on),
            |td| plain(td.autostart, false),
        ),
        Key::<Self>::new(
            "debug",
            FLAG,
            |td, value| value.as_bool().map(|on| td.debug = on),
            |td| plain(td.debug, false),
        ),
        Key::<Self>::new(
            "sept_ve_disable",
            FLAG,
            |td, value| value.as_bool().map(|on| td.sept_ve_disable = on),
            |td| plain(td.sept_ve_disable, true),
        ),
        Key::<Self>::new(
            "no_rbp_mod",
            FLAG,
            |td, value| value.as_bool().map(|on| td.no_rbp_mod = Some(on)),
            |td| td.no_rbp_mod.map(|on| format!("{on}")),
        ),
        Key::<Self>::new(
            "migratable",
            FLAG,
            |td, value| value.as_bool().map(|on| td.migratable = on),
            |td| plain(td.migratable, false),
        ),
        Key::<Self>::new(
            "pks",
            FLAG,
            |td, value| value.as_bool().map(|on| td.pks = on),
            |td| plain(td.pks, false),
        ),
        Key::<Self>::new(
            "perfmon",
            FLAG,
            |td, value| value.as_bool().map(|on| td.perfmon = on),
            |td| plain(td.perfmon, false),
        ),
        Key::<Self>::new(
            "icssd",
            FLAG,
            |td, value| value.as_bool().map(|on| td.icssd = on),
            |td| plain(td.icssd, false),
        ),
        Key::<Self>::new(
            "lass",
            FLAG,
            |td, value| value.as_bool().map(|on| td.lass = on),
            |td| plain(td.lass, false),
        ),
        Key::<Self>::new(
            "xfam",
            "a list such as [\"x87\", \"sse\", \"avx\"], or a number such as 0x7",
            |td, value| {
                td.xfam = Some(Xfam::read(value)?);
                Some(())
            },
            |td| td.xfam.as_ref().map(Xfam::show),
        )
        .inside(features::wrong_names::<XfamFeature>),
        Key::<Self>::new(
            "maxpa",
            "a number from 36 to 52",
            |td, value| {
                td.maxpa = Some(number(value, 36..=52)? as u8);
                Some(())
            },
            |td| td.maxpa.map(|bits| format!("{bits}")),
        ),
        Key::<Self>::new(
            "ve_reduction",
            FLAG,
            |td, value| {
                td.ve_reduction = Some(value.as_bool()?);
                Some(())
            },
            |td| td.ve_reduction.map(|on| format!("{on}")),
        ),
        Key::<Self>::new(
            "paravirt",
            "a list of names, such as [\"mtrr\"]",
            |td, value| {
                td.paravirt = Some(features::list(value)?);
                Some(())
            },
            |td| td.paravirt.as_deref().map(features::show_list),
        )
        .inside(features::wrong_names::<Paravirt>),
        Key::<Self>::new(
            "tsc_mhz",
            "a multiple of 25 from 100 to 10000",
            |td, value| {
                let mhz = number(value, 100..=10_000).filter(|mhz| mhz.is_multiple_of(25))?;
                td.tsc_mhz = Some(mhz as u16);
                Some(())
            },
            |td| td.tsc_mhz.map(|mhz| format!("{mhz}")),
        ),
        Key::<Self>::new(
            "cpuid",
            "[[td.cpuid]], a table for each leaf",
            |td, value| {
                let mut mistakes = Mistakes::of("");
                td.cpuid = keys::read_list(value, &mut mistakes)?;
                mistakes.found.is_empty().then_some(())
            },
            |td| keys::show_list(&td.cpuid),
        )
        .inside(|value, mistakes| drop(keys::read_list::<Cpuid>(value, mistakes))),
        Key::<Self>::new(
            "pci",
            "[[td.pci]], a table for each device",
            |td, value| {
                let mut mistakes = Mistakes::of("");
                td.pci = pci::functions(value, &mut mistakes)?;
                mistakes.found.is_empty().then_some(())
            },
            |td| keys::show_list(&td.pci),
        )
        .inside(|value, mistakes| drop(pci::functions(value, mistakes))),
        Key::<Self>::new(
            "disk",
            "[[td.disk]], up to 8 tables",
            |td, value| {
                let mut mistakes = Mistakes::of("");
                td.disk = disk::disks(value, &mut mistakes)?;
                mistakes.found.is_empty().then_some(())
            },
            |td| keys::show_list(&td.disk),
        )
        .inside(|value, mistakes| drop(disk::disks(value, mistakes))),
        Key::<Self>::new(
            "populate",
            "\"demand\" or \"start\"",
            |td, value| choice(value, POPULATE).map(|populate| td.populate = populate),
            |td| chosen(td.populate, Populate::Demand, POPULATE),
        ),
        Key::<Self>::new(
            "console",
            "\"serial\" or \"virtio\"",
            |td, value| choice(value, CONSOLES).map(|console| td.console = console),
            |td| chosen(td.console, TdConsole::Serial, CONSOLES),
        ),
        Key::<Self>::new(
            "control",
            FLAG,
            |td, value| value.as_bool().map(|on| td.control = on),
            |td| plain(td.control, false),
        ),
        Key::<Self>::new(
            "shares",
            "a number from 1 to 10000",
            |td, value| number(value, 1..=10_000).map(|n| td.shares = n as u32),
            |td| plain(td.shares, 100),
        ),
        Key::<Self>::new(
            "cap",
            "a number from 1 to 6553500, in percent of one CPU",
            |td, value| number(value, 1..=WHOLE_HOST).map(|n| td.cap = Some(n as u32)),
            |td| td.cap.map(|cap| format!("{cap}")),
        ),
        Key::<Self>::new(
            "mrconfigid",
            DIGITS,
            |td, value| measurement(value).map(|bytes| td.mrconfigid = bytes),
            |td| digits(&td.mrconfigid),
        ),
        Key::<Self>::new(
            "mrowner",
            DIGITS,
            |td, value| measurement(value).map(|bytes| td.mrowner = bytes),
            |td| digits(&td.mrowner),
        ),
        Key::<Self>::new(
            "mrownerconfig",
            DIGITS,
            |td, value| measurement(value).map(|bytes| td.mrownerconfig = bytes),
            |td| digits(&td.mrownerconfig),
        ),
    ];

    fn blank() -> Self {
        Self {
            name: String::new(),
            image: None,
            firmware: None,
            boot_order: Vec::new(),
            uuid: [0; UUID_BYTES],
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            memory: MEMORY_STEP,
            max_4k: None,
            vcpus: 1,
            autostart: false,
            debug: false,
            sept_ve_disable: true,
            no_rbp_mod: None,
            migratable: false,
            pks: false,
            perfmon: false,
            icssd: false,
            lass: false,
            xfam: None,
            maxpa: None,
            ve_reduction: None,
            paravirt: None,
            tsc_mhz: None,
            cpuid: Vec::new(),
            pci: Vec::new(),
            disk: Vec::new(),
            populate: Populate::Demand,
            console: TdConsole::Serial,
            control: false,
            shares: 100,
            cap: None,
            mrconfigid: [0; MEASUREMENT_BYTES],
            mrowner: [0; MEASUREMENT_BYTES],
            mrownerconfig: [0; MEASUREMENT_BYTES],
        }
    }
}

/// The time at which a TD gets the memory that is not part of its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Populate {
    /// When the guest first touches or accepts it.
    #[default]
    Demand,
    /// Before it starts.
    Start,
}

const POPULATE: &[(&str, Populate)] = &[("demand", Populate::Demand), ("start", Populate::Start)];

/// The devices of a TD's console. The serial port is always there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TdConsole {
    /// The serial port alone (ttyS0).
    #[default]
    Serial,
    /// A virtio console as well (hvc0), with one call to the host for many bytes.
    Virtio,
}

const CONSOLES: &[(&str, TdConsole)] =
    &[("serial", TdConsole::Serial), ("virtio", TdConsole::Virtio)];

/// Returns whether a TD can have this name.
pub(crate) fn is_name(name: &str) -> bool {
    let first_is_letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    first_is_letter && name.len() <= NAME && name.chars().all(plain)
}

fn is_command_line(line: &str) -> bool {
    line.len() <= COMMAND_LINE && line.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Reads a size in 2 MiB frames.
pub(crate) fn whole_frames(value: &DeValue<'_>) -> Option<u64> {
    bytes(value.as_str()?).filter(|bytes| *bytes != 0 && bytes.is_multiple_of(MEMORY_STEP))
}

/// Parses a size such as `"256M"` and returns the bytes. Returns `None` if the text is no such size, or if it exceeds
/// 64 bits.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = [('M', 20), ('G', 30), ('T', 40)]
        .into_iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = plain.then(|| digits.parse().ok())??;
    number.checked_mul(1 << shift)
}

/// Returns a size in the largest unit that it is a multiple of.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 40) => format!("{}T", bytes >> 40),
        _ if bytes.is_multiple_of(1 << 30) => format!("{}G", bytes >> 30),
        _ => format!("{}M", bytes >> 20),
    }
}

fn measurement(value: &DeValue<'_>) -> Option<[u8; MEASUREMENT_BYTES]> {
    let text = value.as_str()?;
    if text.len() != 2 * MEASUREMENT_BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; MEASUREMENT_BYTES];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Reads a list of device paths: printable ASCII without blanks.
fn device_paths(value: &DeValue<'_>) -> Option<Vec<String>> {
    let list = value.as_array()?;
    let paths = list.iter().map(|path| {
        let is_path = |path: &String| {
            path.starts_with('/')
                && path.len() <= DEVICE_PATH
                && path.bytes().all(|byte| byte.is_ascii_graphic())
        };
        text(path.get_ref()).filter(is_path)
    });
    (list.len() <= DEVICE_PATHS).then(|| paths.collect())?
}

/// The numbers of digits between the hyphens of a UUID.
const UUID_GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

fn uuid(text: &str) -> Option<[u8; UUID_BYTES]> {
    let groups: Vec<_> = text.split('-').map(str::len).collect();
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let is_uuid = groups == UUID_GROUPS && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let value = u128::from_str_radix(&digits, 16).ok()?;
    is_uuid.then(|| value.to_be_bytes())
}

fn shown_uuid(uuid: &[u8; UUID_BYTES]) -> Option<String> {
    let value = u128::from_be_bytes(*uuid);
    if value == 0 {
        return None;
    }
    let digits = format!("{value:032x}");
    let mut rest = &*digits;
    let groups = UUID_GROUPS.map(|length| {
        let (group, next) = rest.split_at(length);
        rest = next;
        group
    });
    Some(quoted(&groups.join("-")))
}

fn digits(bytes: &[u8; MEASUREMENT_BYTES]) -> Option<String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    let mut digits = String::new();
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
    }
    Some(quoted(&digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    /// Parses the configuration of one TD, with its image, and `more` from line 7 on.
    fn td(more: &str) -> Result<Td, String> {
        let text = format!(
            "[[file]]\nname = \"hello\"\npath = \"hello.fd\"\n[[td]]\nname = \"a\"\nimage = \"hello\"\n{more}"
        );
        parse(text.as_bytes()).map(|mut config| config.td.remove(0))
    }

    #[test]
    fn a_name_an_image_and_memory_are_enough() {
        let td = td("memory = \"256M\"\n").unwrap();
        assert_eq!((td.memory, td.vcpus, td.shares), (256 << 20, 1, 100));
        assert!(td.sept_ve_disable && !td.debug && !td.autostart && !td.control);
        assert!(!td.no_rbp_mod(), "an image may pass RBP");
        assert_eq!(
            (td.populate, td.xfam, td.cap),
            (Populate::Demand, None, None)
        );
    }

    #[test]
    fn every_key_is_read() {
        let digits = "0123456789ABCDEFabcdef000000000000000000000000000000000000000000000000000000000000000000000000FF";
        let td = td(&format!(
            "memory = \"1G\"\nmax_4k = \"64M\"\nvcpus = 4\nautostart = true\ndebug = true\nsept_ve_disable = false\nno_rbp_mod = true\n\
             migratable = true\npks = true\nperfmon = true\nicssd = true\nlass = true\nxfam = 0xE7\nmaxpa = 46\nve_reduction = false\nparavirt = [\"mtrr\"]\ntsc_mhz = 2000\npopulate = \"start\"\nconsole = \"virtio\"\ncontrol = true\n\
             shares = 200\ncap = 150\nmrconfigid = \"{digits}\"\nmrowner = \"{digits}\"\nmrownerconfig = \"{digits}\"\n\
             [[td.cpuid]]\nleaf = 7\nsubleaf = 0\nebx = 0x10\n"
        ))
        .unwrap();
        assert_eq!(
            (td.memory, td.max_4k, td.vcpus),
            (1 << 30, Some(64 << 20), 4)
        );
        assert!(td.autostart && td.debug && !td.sept_ve_disable && td.migratable);
        assert!(td.pks && td.perfmon && td.icssd && td.lass && td.control && td.no_rbp_mod());
        assert_eq!((td.xfam, td.tsc_mhz), (Some(Xfam::Bits(0xE7)), Some(2000)));
        assert_eq!((td.maxpa, td.ve_reduction), (Some(46), Some(false)));
        assert_eq!(td.paravirt, Some(vec![Paravirt::Mtrr]));
        assert_eq!((td.shares, td.cap), (200, Some(150)));
        assert_eq!(
            (td.populate, td.console),
            (Populate::Start, TdConsole::Virtio)
        );
        assert_eq!(
            (td.mrconfigid[..3].to_vec(), td.mrowner[47]),
            (vec![1, 0x23, 0x45], 0xFF)
        );
        assert_eq!(td.mrownerconfig, td.mrowner);
        let cpuid = &td.cpuid[0];
        assert_eq!((cpuid.leaf, cpuid.subleaf), (7, Some(0)));
        assert_eq!((cpuid.eax, cpuid.ebx), (None, Some(0x10)));
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_line_and_key() {
        let memory = "memory = \"2M\"\n";
        let long = "x".repeat(2048);
        for (line, wrong) in [
            (7, "memory = \"3M\"\n"),
            (8, &format!("{memory}cmdline = \"{long}\"\n")),
            (8, &format!("{memory}cmdline = \"a\\tb\"\n")),
            (8, &format!("{memory}kernel = \"none\"\n")),
            (8, &format!("{memory}initrd = \"hello\"\n")),
            (8, &format!("{memory}cmdline = \"quiet\"\n")),
            (7, "memory = \"0M\"\n"),
            (7, "memory = \"+2M\"\n"),
            (7, "memory = \"2\"\n"),
            (7, "memory = \"99999999999T\"\n"),
            (8, &format!("{memory}max_4k = \"3M\"\n")),
            (8, &format!("{memory}vcpus = 0\n")),
            (8, &format!("{memory}vcpus = 65536\n")),
            (8, &format!("{memory}shares = 0\n")),
            (8, &format!("{memory}cap = 0\n")),
            (8, &format!("{memory}tsc_mhz = 99\n")),
            (8, &format!("{memory}tsc_mhz = 2001\n")),
            (8, &format!("{memory}mrowner = \"00\"\n")),
            (8, &format!("{memory}mrowner = \"{}\"\n", "+1".repeat(48))),
            (8, &format!("{memory}populate = \"never\"\n")),
            (8, &format!("{memory}xfam = -1\n")),
            (8, &format!("{memory}maxpa = 53\n")),
            (8, &format!("{memory}colour = 3\n")),
            (10, &format!("{memory}\n[[td.cpuid]]\nleaf = -7\n")),
        ] {
            let e = td(wrong).unwrap_err();
            assert!(e.starts_with(&format!("seamark.toml:{line}: ")), "{e}");
        }
    }

    #[test]
    fn a_kernel_takes_the_place_of_an_image() {
        let parse = |keys: &str| {
            let text = format!(
                "[[file]]\nname = \"k\"\npath = \"k\"\n[[td]]\nname = \"a\"\nmemory = \"64M\"\n{keys}"
            );
            parse(text.as_bytes()).map(|mut config| config.td.remove(0))
        };
        let td = parse("kernel = \"k\"\ninitrd = \"k\"\ncmdline = \"console=ttyS0\"\n").unwrap();
        assert!(td.no_rbp_mod(), "the host's own firmware does not pass RBP");
        assert_eq!((td.image, td.kernel.as_deref()), (None, Some("k")));
        assert_eq!(
            (td.initrd.as_deref(), &*td.cmdline),
            (Some("k"), "console=ttyS0")
        );
        let neither = parse("").unwrap_err();
        assert_eq!(
            neither,
            "seamark.toml:5: a needs an image, firmware, or a kernel"
        );
        assert!(parse("image = \"k\"\nkernel = \"k\"\n").is_ok());
    }

    #[test]
    fn uefi_firmware_boots_from_devices_and_has_no_image_or_kernel_beside_it() {
        let parse = |keys: &str| {
            let text = format!(
                "[[file]]\nname = \"k\"\npath = \"k\"\n[[td]]\nname = \"a\"\nmemory = \"64M\"\n{keys}"
            );
            parse(text.as_bytes()).map(|mut config| config.td.remove(0))
        };
        let td = parse(
            "firmware = \"k\"\nboot_order = [\"/pci@i0cf8/*@1\", \"/x\"]\nuuid = \"00112233-4455-6677-8899-AABBCCDDEEFF\"\n",
        )
        .unwrap();
        assert_eq!(
            (td.firmware.as_deref(), td.image_file()),
            (Some("k"), Some("k"))
        );
        assert!(!td.no_rbp_mod(), "OVMF passes RBP");
        assert_eq!(td.boot_order, ["/pci@i0cf8/*@1", "/x"]);
        assert_eq!((td.uuid[0], td.uuid[1], td.uuid[15]), (0, 0x11, 0xFF));
        assert_eq!(
            shown_uuid(&td.uuid).unwrap(),
            "\"00112233-4455-6677-8899-aabbccddeeff\""
        );
        for (line, wrong) in [
            (8, "firmware = \"k\"\nimage = \"k\"\n"),
            (8, "firmware = \"k\"\nkernel = \"k\"\n"),
            (7, "firmware = \"none\"\n"),
            (7, "boot_order = [\"/x\"]\nkernel = \"k\"\n"),
            (
                7,
                "uuid = \"00112233-4455-6677-8899-aabbccddeeff\"\nkernel = \"k\"\n",
            ),
            (8, "firmware = \"k\"\nboot_order = [\"x\"]\n"),
            (8, "firmware = \"k\"\nboot_order = [\"/x y\"]\n"),
            (8, "firmware = \"k\"\nboot_order = \"/x\"\n"),
            (
                8,
                "firmware = \"k\"\nuuid = \"+0112233-4455-6677-8899-aabbccddeeff\"\n",
            ),
            (
                8,
                "firmware = \"k\"\nuuid = \"0011223344556677-8899-aabbccddeeff\"\n",
            ),
        ] {
            let e = parse(wrong).unwrap_err();
            assert!(
                e.starts_with(&format!("seamark.toml:{line}: ")),
                "{wrong}: {e}"
            );
        }
    }

    #[test]
    fn a_name_is_a_word() {
        for wrong in ["", "1a", "a b", "a/b", &"a".repeat(33)] {
            let text = format!("[[td]]\nname = {wrong:?}\nmemory = \"2M\"\nkernel = \"k\"\n");
            let e = parse(text.as_bytes()).unwrap_err();
            assert!(e.starts_with("seamark.toml:2: name is "), "{e}");
        }
    }

    #[test]
    fn memory_has_units() {
        assert_eq!(bytes("1T"), Some(1 << 40));
        assert_eq!(bytes("3G"), Some(3 << 30));
        for wrong in ["", "M", "1", "1K", "1m", "-1M", "99999999999T"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
