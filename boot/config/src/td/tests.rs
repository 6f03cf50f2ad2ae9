use super::*;
use crate::{bytes, parse};

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
    assert_eq!(td.uuid.as_u128(), 0x0011_2233_4455_6677_8899_AABB_CCDD_EEFF);
    assert_eq!(
        shown_uuid(td.uuid).unwrap(),
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
