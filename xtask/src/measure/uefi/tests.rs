//! Predictions against logs of boots: Debian 13's OVMF, a TD with 1 GiB, two vCPUs and an NVMe drive of QEMU's; with a
//! unified kernel image, and with shim and GRUB.

use seamark_tests::media::Layout;
use tdvf::{Entry, TAIL_BYTES, write};

use super::*;
use crate::measure::log;

const UKI_LOG: &[u8] = include_bytes!("logs/uki.ccel");
const GRUB_LOG: &[u8] = include_bytes!("logs/grub.ccel");

/// Returns an image with the sections of Debian 13's OVMF, and no content.
fn image() -> Vec<u8> {
    let entry = |data, gpa, bytes, kind, attributes| Entry {
        data,
        gpa,
        bytes,
        kind,
        attributes,
    };
    let sections = [
        entry(0..0x1000, 0xFFC8_4000, 0x37_C000, 0, 1),
        entry(0..0x1000, 0xFFC0_0000, 0x8_4000, 1, 0),
        entry(0..0, 0x81_1000, 0xF000, 3, 0),
        entry(0..0, 0x80_B000, 0x2000, 3, 0),
        entry(0..0, 0x80_9000, 0x2000, 2, 0),
        entry(0..0, 0x80_0000, 0x6000, 3, 0),
    ];
    write(&[0; 0x1000], &sections, &[0; TAIL_BYTES])
}

fn td(keys: &str) -> config::Td {
    let text = format!(
        "[[file]]\nname = \"f\"\npath = \"f\"\n[[td]]\nname = \"a\"\nfirmware = \"f\"\nmemory = \"1G\"\n\
         vcpus = 2\n{keys}[[td.pci]]\ndevice = \"0000:01:00.0\"\n"
    );
    config::parse(text.as_bytes()).unwrap().td.remove(0)
}

/// Returns the predicted events of the firmware, and those of a log. Without those of the variables' volume, which the
/// image here does not have, and those of the host's tables, which change with the host.
fn of_firmware(td: &config::Td, log: &[u8]) -> [Vec<Event>; 2] {
    let image = image();
    let drive = Drive::new("QEMU NVMe Ctrl", "seamark1");
    let machine = Machine { td, drive: &drive };
    let predicted = firmware::events(&machine, &TdImage::parse(&image).unwrap()).unwrap();
    [predicted, log::parse(log).unwrap()].map(|mut events| {
        events.retain(|event| {
            event.register == Register::Rtmr0
                && ![Kind::FIRMWARE_BLOB, Kind::PLATFORM_CONFIG].contains(&event.kind)
        });
        events
    })
}

#[test]
fn the_firmware_s_events_are_those_of_a_boot() {
    let [predicted, logged] = of_firmware(&td(""), UKI_LOG);
    assert_eq!(predicted.len(), 11);
    assert_eq!(log::difference(&predicted, &logged), None);
    // shim adds one.
    let [mut predicted, logged] = of_firmware(&td(""), GRUB_LOG);
    let level = variables::record(&shim::GUID, "SbatLevel", shim::SBAT_LEVEL);
    predicted.push(Event::of(
        Register::Rtmr0,
        Kind::VARIABLE_AUTHORITY,
        "SbatLevel",
        &level,
    ));
    assert_eq!(log::difference(&predicted, &logged), None);
}

#[test]
fn another_machine_is_told_by_the_entry_that_differs() {
    let more = config::Td {
        memory: 2 << 30,
        ..td("")
    };
    let [predicted, logged] = of_firmware(&more, UKI_LOG);
    let difference = log::difference(&predicted, &logged).unwrap();
    assert!(difference.starts_with("RTMR0, entry 1:\n"), "{difference}");
    assert!(
        difference.contains("TD HOB") && difference.contains("TdxTable"),
        "{difference}"
    );
    let wrong = Drive::new("QEMU NVMe Ctrl", "other");
    let td = td("");
    let machine = Machine {
        td: &td,
        drive: &wrong,
    };
    let entries: Vec<_> = variables::of_boot(&machine).collect();
    let boot: Vec<_> = log::parse(UKI_LOG).unwrap();
    let boot: Vec<_> = boot
        .into_iter()
        .filter(|event| event.kind == Kind::VARIABLE_BOOT)
        .collect();
    let difference = log::difference(&entries, &boot).unwrap();
    assert!(difference.starts_with("RTMR0, entry 3:\n"), "{difference}");
    assert!(difference.contains("Boot0001"), "{difference}");
}

#[test]
fn the_host_s_tables_have_the_place_of_the_drive() {
    let drive = Drive::new("", "");
    let tables = |td: &config::Td| acpi::files(&Machine { td, drive: &drive }).unwrap();
    let [usual, small] = ["", "maxpa = 40\n"].map(|keys| tables(&td(keys)));
    let names: Vec<_> = usual.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        ["etc/table-loader", "etc/acpi/tables", "etc/acpi/rsdp"]
    );
    let has = |tables: &[(&str, Vec<u8>)], address: u64| {
        let bytes = address.to_le_bytes();
        tables[1].1.windows(8).any(|window| window == bytes)
    };
    assert!(has(&usual, 0x3800_0000_0000) && !has(&small, 0x3800_0000_0000));
    assert!(has(&small, 0xE0_0000_0000) && usual[0] == small[0]);
}

#[test]
fn a_log_replays_to_the_registers_of_the_report() {
    let first = |log: &[u8]| -> Vec<_> {
        let registers = crate::measure::event::replay(&log::parse(log).unwrap());
        registers
            .iter()
            .map(|register| crate::measure::hex(&register[..8]))
            .collect()
    };
    assert_eq!(
        first(UKI_LOG),
        [
            "ed34a575e3a7a8cf",
            "cf0087a23fdbbf6f",
            "ce163221e5a804c8",
            "0000000000000000"
        ]
    );
    assert_eq!(
        first(GRUB_LOG),
        [
            "eae0b6d338d40c45",
            "54e0af59a22d518a",
            "a6ed11ead2b8c252",
            "0000000000000000"
        ]
    );
}

#[test]
fn a_td_with_virtual_devices_is_refused() {
    let image = image();
    let image = TdImage::parse(&image).unwrap();
    let drive = Drive::new("", "");
    for keys in ["console = \"virtio\"\n", "vsock = { cid = 3 }\n"] {
        let machine = Machine {
            td: &td(keys),
            drive: &drive,
        };
        let refused = events(&machine, &image, Path::new("/dev/null")).unwrap_err();
        assert!(refused.to_string().contains("no virtual disk"), "{refused}");
    }
}

#[test]
fn a_log_that_is_cut_off_or_of_another_kind_is_refused() {
    assert!(log::parse(&UKI_LOG[..UKI_LOG.len() - 20]).is_err());
    assert!(log::parse(b"hello, this is no log of events").is_err());
    let mut other = UKI_LOG.to_vec();
    // The algorithm of the second entry.
    other[65 + 12] = 11;
    let error = format!("{:#}", log::parse(&other).unwrap_err());
    assert!(
        error.contains("entry 2 of the log: it has another digest"),
        "{error}"
    );
}

/// Returns a PE image with these sections, and a directory of signatures with these bytes.
fn pe(sections: &[(&str, &[u8])], signatures: &[u8]) -> Vec<u8> {
    const HEADERS: usize = 0x400;
    let mut bytes = vec![0; 64];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[60] = 64;
    bytes.extend(b"PE\0\0\x64\x86");
    bytes.extend((sections.len() as u16).to_le_bytes());
    bytes.resize(64 + 20, 0);
    // The size of the optional header, and the flags of an executable.
    bytes.extend([0xF0, 0, 0x22, 0]);
    let optional = bytes.len();
    bytes.resize(optional + 0xF0, 0);
    let mut put = |at: usize, value: u32| {
        bytes[optional + at..][..4].copy_from_slice(&value.to_le_bytes());
    };
    put(0, 0x20B);
    // Alignments, sizes of the image and of the headers, subsystem, number of directories.
    for (at, value) in [
        (32, 0x1000),
        (36, 0x200),
        (56, 0x10_0000),
        (60, HEADERS as u32),
    ] {
        put(at, value);
    }
    put(68, 10);
    put(108, 16);
    let mut content = Vec::new();
    for (number, (name, data)) in sections.iter().enumerate() {
        let mut header = [0; 40];
        header[..name.len()].copy_from_slice(name.as_bytes());
        let at = HEADERS + content.len();
        content.extend(*data);
        content.resize(content.len().next_multiple_of(0x200), 0);
        let raw = HEADERS + content.len() - at;
        let fields = [data.len(), 0x1000 * (number + 1), raw, at];
        for (field, value) in header[8..24].chunks_mut(4).zip(fields) {
            field.copy_from_slice(&(value as u32).to_le_bytes());
        }
        bytes.extend(header);
    }
    bytes.resize(HEADERS, 0);
    bytes.extend(content);
    if !signatures.is_empty() {
        let entry = [bytes.len() as u32, signatures.len() as u32].map(u32::to_le_bytes);
        bytes[optional + 144..][..8].copy_from_slice(entry.as_flattened());
        bytes.extend(signatures);
    }
    bytes
}

#[test]
fn an_image_s_digest_is_without_checksum_and_signatures() {
    let optional = 64 + 24;
    let digest = |bytes: &[u8]| Image::parse(bytes).unwrap().digest().unwrap();
    let plain = pe(&[(".text", b"code"), (".data", b"more")], &[]);
    let left = [
        &plain[..optional + 64],
        &plain[optional + 68..optional + 144],
        &plain[optional + 152..],
    ];
    assert_eq!(
        digest(&plain),
        crate::measure::event::digest(&left.concat())
    );
    let mut signed = pe(&[(".text", b"code"), (".data", b"more")], b"12345678");
    assert_eq!(digest(&signed), digest(&plain));
    signed[optional + 64] = 1;
    assert_eq!(digest(&signed), digest(&plain));
    signed[0x400] ^= 1;
    assert_ne!(digest(&signed), digest(&plain));
    // The bytes behind the sections count.
    assert_ne!(digest(&[&plain[..], b"x"].concat()), digest(&plain));
}

#[test]
fn a_unified_kernel_image_is_measured_by_its_stub_and_its_kernel() {
    let kernel = pe(&[(".text", b"kernel")], &[]);
    let sections: [(&str, &[u8]); 6] = [
        (".sdmagic", b"stub"),
        (".sbat", b"sbat"),
        (".osrel", b"ID=debian\n"),
        (".cmdline", b" console=ttyS0 no_timer_check\n"),
        (".initrd", b"initrd"),
        (".linux", &kernel),
    ];
    let image = pe(&sections, &[]);
    let events = uki::events(&Image::parse(&image).unwrap()).unwrap();
    let names: Vec<_> = events.iter().map(|event| event.name.as_str()).collect();
    let both = |name: &str| [format!("name of section {name}"), format!("section {name}")];
    let mut expected: Vec<_> = [".linux", ".osrel", ".cmdline", ".initrd", ".sbat"]
        .into_iter()
        .flat_map(both)
        .collect();
    expected
        .extend(["kernel .linux", "LOADED_IMAGE::LoadOptions", "Linux initrd"].map(String::from));
    assert_eq!(names, expected);
    // The names' events, and that of the command line, are those of a boot.
    let logged = log::parse(UKI_LOG).unwrap();
    let same = |event: &&Event| logged.iter().any(|other| event.equals(other));
    let same: Vec<_> = events
        .iter()
        .filter(same)
        .map(|event| event.name.as_str())
        .collect();
    let mut known: Vec<_> = expected
        .iter()
        .filter(|name| name.starts_with("name"))
        .collect();
    let line = String::from("LOADED_IMAGE::LoadOptions");
    known.push(&line);
    assert_eq!(same, known);
    let more = pe(&[&sections[..], &[(".dtb", b"tree")]].concat(), &[]);
    let refused = uki::events(&Image::parse(&more).unwrap())
        .unwrap_err()
        .to_string();
    assert!(refused.contains("a section .dtb"), "{refused}");
}

/// Writes a disk with these files in its EFI system partition.
fn disk_with(folder: &Path, files: &[(&str, &[u8])]) -> Disk {
    let files: Vec<_> = files
        .iter()
        .map(|(name, content)| ((*name).to_owned(), *content))
        .collect();
    let layout = Layout {
        label: *b"TEST       ",
        volume_id: 1,
        files: &files,
        root: 0,
    };
    let image = folder.join("disk.img");
    layout.write(&image).unwrap();
    Disk::open(&image).unwrap()
}

#[test]
fn what_the_first_program_is_decides_what_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = pe(&[(".text", b"kernel")], &[]);
    let sections: [(&str, &[u8]); 4] = [
        (".sdmagic", b"stub"),
        (".cmdline", b"quiet"),
        (".initrd", b"initrd"),
        (".linux", &kernel),
    ];
    let uki = pe(&sections, &[]);
    let disk = disk_with(folder.path(), &[(FIRST, &uki)]);
    let events = programs(&disk).unwrap();
    assert_eq!(events[0].name, FIRST);
    assert_eq!(events.len(), 1 + 6 + 3);
    // The header, the count, and one partition.
    let partitions = disk.partitions().unwrap();
    assert_eq!(partitions.len(), 92 + 8 + 128);
    assert_eq!(partitions[92..100], 1u64.to_le_bytes());
    let refused = |files: &[(&str, &[u8])]| {
        let disk = disk_with(folder.path(), files);
        format!("{:#}", programs(&disk).unwrap_err())
    };
    for companion in ["loader/addons/a.efi", "EFI/BOOT/BOOTX64.EFI.extra.d/b.cred"] {
        let said = refused(&[(FIRST, &uki), (companion, b"x")]);
        assert!(said.contains("whose effect is not predicted"), "{said}");
    }
    assert!(refused(&[("EFI/other", b"")]).contains(FIRST));
    let other = pe(&[(".text", b"hello")], &[]);
    assert!(refused(&[(FIRST, &other)]).contains("neither a unified kernel image"));
    let grub = |version: &str| {
        let sbat =
            format!("sbat,1,SBAT,sbat,1,x\ngrub,5,Free Software Foundation,grub,{version},x\n");
        pe(&[(".text", b"grub"), (".sbat", sbat.as_bytes())], &[])
    };
    assert!(refused(&[(FIRST, &grub("2.14"))]).contains("it is GRUB 2.14"));
    assert!(
        refused(&[(FIRST, &grub("2.12"))]).contains("there is no (hd0,gpt1)/EFI/debian/grub.cfg")
    );
}

proptest::proptest! {
    /// The guest can write anything into its log.
    #[test]
    fn a_damaged_log_is_read_or_refused(at in 0..UKI_LOG.len(), bytes: [u8; 8]) {
        let mut damaged = UKI_LOG.to_vec();
        let end = (at + bytes.len()).min(damaged.len());
        damaged[at..end].copy_from_slice(&bytes[..end - at]);
        if let Ok(events) = log::parse(&damaged) {
            let shown = log::difference(&[], &events).unwrap_or_default();
            assert!(shown.chars().all(|letter| letter == '\n' || !letter.is_control()), "{shown:?}");
        }
    }
}
