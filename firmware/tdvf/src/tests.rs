use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::locate::TAIL;
use super::*;

fn image(firmware: &[u8], entries: &[Entry]) -> Vec<u8> {
    write(firmware, entries, &[0x90; TAIL_BYTES])
}

fn bfv() -> Entry {
    Entry {
        data: 0..0x1000,
        gpa: 0xffff_f000,
        bytes: 0x1000,
        kind: 0,
        attributes: 1,
    }
}

fn temp() -> Entry {
    Entry {
        data: 0..0,
        gpa: 0x80_0000,
        bytes: 0x2000,
        kind: 3,
        attributes: 0,
    }
}

fn parsed(entries: &[Entry]) -> Result<Vec<Kind>, Malformed> {
    let file = image(&[0x55; 0x1000], entries);
    TdImage::parse(&file).map(|image| {
        image
            .sections()
            .iter()
            .map(|section| section.kind)
            .collect()
    })
}

fn second(change: impl FnOnce(&mut Entry)) -> Malformed {
    let mut entry = temp();
    change(&mut entry);
    parsed(&[bfv(), entry]).expect_err("malformed")
}

#[test]
fn metadata_is_found_as_ovmf_stores_it() {
    assert_eq!(parsed(&[bfv(), temp()]), Ok(vec![Kind::Bfv, Kind::TempMem]));
}

#[test]
fn metadata_is_found_as_td_shim_stores_it() {
    let mut file = vec![0; 0x1000];
    file.extend(write::descriptor(&[bfv(), temp()]));
    file.extend(0x1000u32.to_le_bytes());
    file.extend([0; TAIL - 4]);
    assert_eq!(TdImage::parse(&file).unwrap().sections().len(), 2);
}

#[test]
fn memory_beyond_the_data_is_zero() {
    let file = image(
        &[0x55; 0x1800],
        &[Entry {
            data: 0..0x1800,
            bytes: 0x3000,
            gpa: 0x1000,
            ..bfv()
        }],
    );
    let image = TdImage::parse(&file).unwrap();
    let pages: Vec<u8> = image.pages().flat_map(|page| page.content()).collect();
    assert!(
        pages[..0x1800].iter().all(|byte| *byte == 0x55)
            && pages[0x1800..].iter().all(|byte| *byte == 0)
    );
    assert_eq!(pages.len(), 0x3000);
}

#[test]
fn pages_come_section_by_section_and_upwards() {
    let accepted = Entry {
        gpa: 0x100_0000,
        bytes: 0x20_0000,
        kind: Kind::PermMem as u32,
        attributes: 2,
        ..temp()
    };
    let file = image(&[0x55; 0x1000], &[bfv(), accepted, temp()]);
    let image = TdImage::parse(&file).unwrap();
    let pages: Vec<_> = image
        .pages()
        .map(|page| (page.gpa.0, page.data.len(), page.measured))
        .collect();
    assert_eq!(
        pages,
        [
            (0xffff_f000, 0x1000, true),
            (0x80_0000, 0, false),
            (0x80_1000, 0, false)
        ]
    );
    let chunks: Vec<_> = chunks(seam::address::Gpa(0x1000))
        .map(|gpa| gpa.0)
        .collect();
    assert_eq!((chunks.len(), chunks[0], chunks[15]), (16, 0x1000, 0x1f00));
}

#[test]
fn the_hob_list_goes_where_the_image_has_room_for_it() {
    let hob = Entry {
        gpa: 0x80_9000,
        kind: Kind::TdHob as u32,
        ..temp()
    };
    let file = image(&[0x55; 0x1000], &[bfv(), hob]);
    let parsed = TdImage::parse(&file).unwrap();
    assert_eq!(parsed.hob().map(Section::range), Some(0x80_9000..0x80_b000));
    let list = [7; 0x2001];
    let error = parsed.clone().with_hob(&list).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("8192 bytes, and it would have 8193")
    );
    let filled = parsed.with_hob(&list[..0x1800]).unwrap();
    let pages: Vec<_> = filled.pages().skip(1).map(|page| page.data.len()).collect();
    assert_eq!(pages, [0x1000, 0x800]);

    let file = image(&[0x55; 0x1000], &[bfv(), temp()]);
    let without = TdImage::parse(&file).unwrap();
    assert_eq!(without.with_hob(&list), Err(HobError::NoSection));
}

#[test]
fn what_cannot_be_built_is_refused_with_the_reason() {
    use SectionError::*;
    let told = |error| Malformed::Section(1, error);
    assert_eq!(second(|e| e.kind = 7), told(UnknownType(7)));
    assert_eq!(second(|e| e.attributes = 4), told(ReservedAttributes(4)));
    assert_eq!(second(|e| e.gpa += 1), told(Unaligned));
    assert_eq!(second(|e| e.bytes = 0), told(Unaligned));
    assert_eq!(second(|e| e.bytes = 1 << 47), told(OutOfRange));
    assert_eq!(second(|e| e.gpa = !0xfff), told(OutOfRange));
    assert_eq!(
        second(|e| e.data = 0x1000..0x10_0000),
        told(DataOutsideFile)
    );
    assert_eq!(second(|e| e.data = 0..16), told(UnexpectedData));
    assert_eq!(
        second(|e| (e.kind, e.data, e.bytes) = (1, 0..0x1001, 0x1000)),
        told(MoreDataThanMemory)
    );
    assert_eq!(second(|e| e.kind = 1), told(NoData));
    assert_eq!(second(|e| e.attributes = 2), told(WrongAug));
    assert_eq!(second(|e| e.kind = 4), told(WrongAug));
    assert_eq!(
        second(|e| (e.kind, e.attributes) = (2, 1)),
        told(Unmeasurable)
    );
    assert_eq!(
        second(|e| (e.kind, e.attributes) = (5, 1)),
        told(Unmeasurable)
    );
    assert_eq!(second(|e| e.gpa = 0xffff_e000), Malformed::Overlap(0, 1));
    assert_eq!(second(|e| e.bytes = 5 << 30), Malformed::Overlap(0, 1));
    assert_eq!(
        second(|e| (e.gpa, e.bytes) = (8 << 30, 4 << 30)),
        Malformed::TooLarge
    );
    let hob = |gpa| Entry {
        gpa,
        kind: 2,
        ..temp()
    };
    assert_eq!(
        parsed(&[bfv(), hob(0), hob(0x2000)]),
        Err(Malformed::ManyHobs)
    );
    let many: Vec<_> = (0..33)
        .map(|i| Entry {
            gpa: 0x2000 * i,
            ..temp()
        })
        .collect();
    assert_eq!(parsed(&many), Err(Malformed::TooManySections(33)));
    assert_eq!(parsed(&[temp()]), Err(Malformed::NoFirmware));
    assert_eq!(parsed(&[]), Err(Malformed::NoFirmware));
}

#[test]
fn a_file_that_is_no_image_is_refused_with_the_reason() {
    assert_eq!(TdImage::parse(&[]), Err(Malformed::TooShort));
    assert_eq!(TdImage::parse(&[0x90; 4096]), Err(Malformed::NoMetadata));
    let good = image(&[0; 0xff0], &[bfv()]);
    let with = |at: usize, byte: u8| {
        let mut file = good.clone();
        file[at] = byte;
        TdImage::parse(&file).expect_err("malformed")
    };
    assert_eq!(with(0x1000, b'X'), Malformed::NoMetadata);
    assert_eq!(with(0x1004, 1), Malformed::Length);
    assert_eq!(with(0x1008, 2), Malformed::Version(2));
    assert_eq!(with(0x100f, 0xff), Malformed::Length);
    assert_eq!(with(good.len() - TAIL - 17, 0xff), Malformed::BrokenTable);
    assert_eq!(with(good.len() - TAIL - 18, 3), Malformed::BrokenTable);
    assert!(with(0x1004, 1).to_string().contains("length"));
}

proptest! {
    /// Any input yields an image or an error with a message.
    #[test]
    fn no_file_makes_the_parser_fail(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut file = image(&[0; 64], &[Entry { data: 0..64, ..bfv() }, temp()]);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Err(error) = TdImage::parse(&file) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
