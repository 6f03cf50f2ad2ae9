//! `[[td]]`: the configuration of a TD.

use alloc::{format, string::String, vec::Vec};

use uuid::Uuid;

use super::{
    Paravirt, Xfam, XfamFeature,
    cpuid::Cpuid,
    disk::{self, Disk},
    features,
    keys::{self, Key, Keyed, Missed, Mistakes, choice, chosen, number, plain, quoted, text},
    network::{self, Net},
    pci::{self, Pci},
    value::{
        MEASUREMENT_BYTES, MEMORY_STEP, device_paths, digits, measurement, shown_uuid, size, uuid,
        whole_frames,
    },
    vsock::{self, Vsock},
};

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
    pub uuid: Uuid,
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
    /// `[[td.net]]`: its network cards, up to 4.
    pub net: Vec<Net>,
    /// Its socket device.
    pub vsock: Option<Vsock>,
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
    const MISSED: &'static [Missed] = &[Missed {
        names: &["variables", "vars", "nvram", "flash", "pflash"],
        why: "the variables of UEFI firmware can't be kept in a file, because a TD has no flash: the firmware holds them \
              in private memory, and they are gone with the TD's life; boot_order sets what it boots",
    }];
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
            |td| shown_uuid(td.uuid),
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
            "net",
            "[[td.net]], up to 4 tables",
            |td, value| {
                let mut mistakes = Mistakes::of("");
                td.net = network::cards(value, &mut mistakes)?;
                mistakes.found.is_empty().then_some(())
            },
            |td| keys::show_list(&td.net),
        )
        .inside(|value, mistakes| drop(network::cards(value, mistakes))),
        Key::<Self>::new(
            "vsock",
            "a table such as { cid = 3, peers = [4], services = [\"quote\"] }",
            |td, value| {
                let mut mistakes = Mistakes::of("");
                let vsock = vsock::vsock(value, &mut mistakes)?;
                td.vsock = mistakes.found.is_empty().then_some(vsock);
                td.vsock.is_some().then_some(())
            },
            |td| td.vsock.as_ref().map(Keyed::inline),
        )
        .inside(|value, mistakes| drop(vsock::vsock(value, mistakes))),
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
            uuid: Uuid::nil(),
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
            net: Vec::new(),
            vsock: None,
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

#[cfg(test)]
mod tests;
