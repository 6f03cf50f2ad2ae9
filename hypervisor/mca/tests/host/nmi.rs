//! The source of an NMI, and what it requires.

use mca::{
    cper::Severity,
    nmi::{Source, must_stop, rearm},
};

#[test]
fn the_source_is_the_firmwares_record_then_the_chipsets_status() {
    assert_eq!(Source::of(None, 0x30), Source::Unknown);
    assert_eq!(Source::of(None, 0x80), Source::Serr);
    assert_eq!(Source::of(None, 0x40), Source::IoCheck);
    assert_eq!(Source::of(None, 0xC0), Source::Serr);
    let record = Some(Severity::Corrected);
    assert_eq!(Source::of(record, 0xC0), Source::Firmware);
}

#[test]
fn a_source_is_switched_off_and_on_without_touching_the_rest() {
    assert_eq!(rearm(0x33), None);
    // The speaker's bits 1:0 stay, and the read-only bits are written as zero.
    assert_eq!(rearm(0xB3), Some([0x07, 0x03]));
    assert_eq!(rearm(0x51), Some([0x09, 0x01]));
    assert_eq!(rearm(0xC0), Some([0x0C, 0x00]));
    // A source that the firmware had switched off comes back on only if it had raised the NMI.
    assert_eq!(rearm(0x84), Some([0x04, 0x00]));
    assert_eq!(rearm(0x88), Some([0x0C, 0x08]));
}

#[test]
fn the_operator_decides_unless_the_firmware_knows_better() {
    for halts in [true, false] {
        assert!(must_stop(Some(Severity::Fatal), halts));
        assert!(!must_stop(Some(Severity::Corrected), halts));
        assert!(!must_stop(Some(Severity::Recoverable), halts));
        assert_eq!(must_stop(None, halts), halts);
    }
}
