//! `[[td]]`: the configuration of a TD.

use alloc::{format, string::String, vec::Vec};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected},
};

use super::{Paravirt, Xfam, ranged};

/// Granularity of a TD's memory in bytes: it consists of 2 MiB frames.
pub const MEMORY_STEP: u64 = 2 << 20;

/// Size of MRCONFIGID, MROWNER and MROWNERCONFIG in bytes.
const MEASUREMENT_BYTES: usize = 48;

/// The configuration of a TD.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a key of its own in the file"
)]
pub struct Td {
    /// Name of the TD: a letter, then up to 31 letters, digits, `-`, `_` or `.`.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Name of the `[[file]]` with the TD's firmware image (TDVF format). By default the TD starts from the host's own
    /// firmware, which boots `kernel`.
    #[serde(default)]
    pub image: Option<String>,
    /// Name of the `[[file]]` with the Linux kernel (bzImage) that the firmware boots.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Name of the `[[file]]` with the kernel's initial file system.
    #[serde(default)]
    pub initrd: Option<String>,
    /// The kernel's command line: up to 2047 characters of printable ASCII.
    #[serde(default, deserialize_with = "command_line")]
    pub cmdline: String,
    /// Memory size in bytes, a multiple of 2 MiB; written as `"256M"` or `"1G"`.
    #[serde(deserialize_with = "memory")]
    pub memory: u64,
    /// Maximum memory in bytes that may be mapped in pages of 4 KiB, a multiple of 2 MiB; written as `"8G"`. The TD ends
    /// when it needs more. Each GiB of it takes 6 MiB of the host's memory for tables. By default all memory may be.
    #[serde(default, deserialize_with = "max_4k")]
    pub max_4k: Option<u64>,
    /// Number of vCPUs, from 1.
    #[serde(default = "one", deserialize_with = "vcpus")]
    pub vcpus: u16,
    /// True if the TD starts with the host.
    #[serde(default)]
    pub autostart: bool,
    /// ATTRIBUTES.DEBUG: the host may read and write the TD's memory and state.
    #[serde(default)]
    pub debug: bool,
    /// ATTRIBUTES.SEPT_VE_DISABLE: an access to an unaccepted page never raises #VE. Linux requires it.
    #[serde(default = "yes")]
    pub sept_ve_disable: bool,
    /// CONFIG_FLAGS.NO_RBP_MOD: TDVMCALLs of the TD can't pass RBP. [`Td::no_rbp_mod`] returns the effective value.
    #[serde(default)]
    pub no_rbp_mod: Option<bool>,
    /// ATTRIBUTES.MIGRATABLE.
    #[serde(default)]
    pub migratable: bool,
    /// ATTRIBUTES.PKS: supervisor protection keys.
    #[serde(default)]
    pub pks: bool,
    /// ATTRIBUTES.PERFMON: performance monitoring.
    #[serde(default)]
    pub perfmon: bool,
    /// ATTRIBUTES.ICSSD: the module's defence against counting the TD's instructions.
    #[serde(default)]
    pub icssd: bool,
    /// ATTRIBUTES.LASS: linear address space separation.
    #[serde(default)]
    pub lass: bool,
    /// XFAM, the extended features that the TD may use. By default x87, SSE, AVX, AVX-512, PKRU and AMX, as far as the
    /// module supports them.
    #[serde(default)]
    pub xfam: Option<Xfam>,
    /// The physical address width that the TD's CPUID shows (CONFIG_FLAGS.MAXPA_VIRT), in bits. By default the host's
    /// own.
    #[serde(default, deserialize_with = "maxpa")]
    pub maxpa: Option<u8>,
    /// True if the guest may reduce #VE (TD_CTLS.REDUCE_VE), which takes the module's topology in CPUID along. By
    /// default it may where the module can do it.
    #[serde(default)]
    pub ve_reduction: Option<bool>,
    /// The features, of those in FEATURE_PARAVIRT_CTLS, that the TD has at all; a guest that reduces #VE keeps those that
    /// it asks for. By default those that the CPU has and that the module lets the host configure.
    #[serde(default)]
    pub paravirt: Option<Vec<Paravirt>>,
    /// Frequency of the virtual TSC in MHz, a multiple of 25 from 100 to 10,000. By default the host's frequency.
    #[serde(default, deserialize_with = "tsc_mhz")]
    pub tsc_mhz: Option<u16>,
    /// `[[td.cpuid]]`: values of the CPUID leaves that the module lets the host configure.
    #[serde(default)]
    pub cpuid: Vec<Cpuid>,
    /// Time at which the TD gets the memory that is not part of its image.
    #[serde(default)]
    pub populate: Populate,
    /// True if the TD may name other TDs in hypercalls.
    #[serde(default)]
    pub control: bool,
    /// CPU shares relative to other TDs, from 1 to 10,000.
    #[serde(default = "hundred", deserialize_with = "shares")]
    pub shares: u32,
    /// Maximum CPU time in percent of one CPU. By default the TD gets all CPU time that is left.
    #[serde(default, deserialize_with = "cap")]
    pub cap: Option<u32>,
    /// MRCONFIGID, 96 hexadecimal digits.
    #[serde(default = "zeros", deserialize_with = "measurement")]
    pub mrconfigid: [u8; MEASUREMENT_BYTES],
    /// MROWNER, 96 hexadecimal digits.
    #[serde(default = "zeros", deserialize_with = "measurement")]
    pub mrowner: [u8; MEASUREMENT_BYTES],
    /// MROWNERCONFIG, 96 hexadecimal digits.
    #[serde(default = "zeros", deserialize_with = "measurement")]
    pub mrownerconfig: [u8; MEASUREMENT_BYTES],
}

impl Td {
    /// Returns whether the TD's TDVMCALLs can't pass RBP. By default they can if the TD starts from the operator's own
    /// image: the GHCI lets a guest pass RBP, and OVMF 2022.11 does so in every request. The host's own firmware and
    /// Linux never do.
    #[must_use]
    pub fn no_rbp_mod(&self) -> bool {
        self.no_rbp_mod.unwrap_or(self.image.is_none())
    }
}

/// The time at which a TD gets the memory that is not part of its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Populate {
    /// When the guest first touches or accepts it.
    #[default]
    Demand,
    /// Before it starts.
    Start,
}

/// The values of one CPUID leaf for a TD. Registers that are not named keep the module's value.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of CPUID")]
pub struct Cpuid {
    pub leaf: u32,
    /// `None` for a leaf without sub-leaves.
    #[serde(default)]
    pub subleaf: Option<u32>,
    #[serde(default)]
    pub eax: Option<u32>,
    #[serde(default)]
    pub ebx: Option<u32>,
    #[serde(default)]
    pub ecx: Option<u32>,
    #[serde(default)]
    pub edx: Option<u32>,
}

const fn one() -> u16 {
    1
}

const fn hundred() -> u32 {
    100
}

const fn yes() -> bool {
    true
}

const fn zeros() -> [u8; MEASUREMENT_BYTES] {
    [0; MEASUREMENT_BYTES]
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    const MAX: usize = 32;
    let name = String::deserialize(deserializer)?;
    let first_is_letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if first_is_letter && name.len() <= MAX && name.chars().all(plain) {
        Ok(name)
    } else {
        Err(Error::custom(format!(
            "name is {name:?}; it must be a letter, then up to {} letters, digits, '-', '_' or '.'",
            MAX - 1
        )))
    }
}

fn command_line<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    /// Linux's limit on x86.
    const MAX: usize = 2047;
    let line = String::deserialize(deserializer)?;
    match line.bytes().find(|byte| !matches!(byte, b' '..=b'~')) {
        Some(byte) => Err(Error::custom(format!(
            "cmdline has a byte {byte:#x}; it must be printable ASCII"
        ))),
        None if line.len() > MAX => Err(Error::custom(format!(
            "cmdline has {} characters; it must have {MAX} at most",
            line.len()
        ))),
        None => Ok(line),
    }
}

fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    whole_frames(deserializer, "memory")
}

fn max_4k<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    whole_frames(deserializer, "max_4k").map(Some)
}

/// Deserialises a size in 2 MiB frames. `key` is the operator's name for it.
fn whole_frames<'de, D: Deserializer<'de>>(deserializer: D, key: &str) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    match bytes(&text) {
        Some(bytes) if bytes != 0 && bytes % MEMORY_STEP == 0 => Ok(bytes),
        Some(_) => Err(Error::custom(format!(
            "{key} is {text:?}; it must be a multiple of 2M, and not 0"
        ))),
        None => Err(Error::custom(format!(
            "{key} is {text:?}; it must be a number with M, G or T, such as \"256M\""
        ))),
    }
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

fn vcpus<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    ranged(deserializer, "vcpus", 1..=u16::MAX.into()).map(|n| n as u16)
}

fn shares<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    ranged(deserializer, "shares", 1..=10_000).map(|n| n as u32)
}

fn cap<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let whole_host = 100 * i64::from(u16::MAX);
    ranged(deserializer, "cap", 1..=whole_host).map(|n| Some(n as u32))
}

fn maxpa<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    ranged(deserializer, "maxpa", 36..=52).map(|n| Some(n as u8))
}

fn tsc_mhz<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let mhz = ranged(deserializer, "tsc_mhz", 100..=10_000)?;
    if mhz % 25 == 0 {
        Ok(Some(mhz as u16))
    } else {
        Err(Error::custom(format!(
            "tsc_mhz is {mhz}; it must be a multiple of 25"
        )))
    }
}

fn measurement<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<[u8; MEASUREMENT_BYTES], D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = || {
        Error::invalid_value(
            Unexpected::Str(&text),
            &"a measurement of 96 hexadecimal digits",
        )
    };
    if text.len() != 2 * MEASUREMENT_BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut value = zeros();
    for (byte, at) in value.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(value)
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
             migratable = true\npks = true\nperfmon = true\nicssd = true\nlass = true\nxfam = 0xE7\nmaxpa = 46\nve_reduction = false\nparavirt = [\"mtrr\"]\ntsc_mhz = 2000\npopulate = \"start\"\ncontrol = true\n\
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
        assert_eq!(td.populate, Populate::Start);
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
        assert_eq!(neither, "seamark.toml:5: a needs an image, or a kernel");
        assert!(parse("image = \"k\"\nkernel = \"k\"\n").is_ok());
    }

    #[test]
    fn a_name_is_a_word() {
        for wrong in ["", "1a", "a b", "a/b", &"a".repeat(33)] {
            let e = parse(format!("[[td]]\nname = {wrong:?}\n").as_bytes()).unwrap_err();
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
