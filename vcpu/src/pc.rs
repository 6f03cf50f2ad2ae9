//! The parts of a PC that guests look for and that a TD does not have. Their registers answer like a bus without a device,
//! and the operator sees their names.

use core::ops::RangeInclusive;

use crate::unanswered::Kind;

/// A part: the kind and the places of its registers, and its name.
struct Part(Kind, RangeInclusive<u64>, &'static str);

/// The parts that Linux, GRUB and OVMF look for. Memory is by pages.
const PARTS: [Part; 22] = [
    Part(Kind::Port, 0x20..=0x21, "8259 interrupt controller"),
    Part(Kind::Port, 0xA0..=0xA1, "8259 interrupt controller"),
    Part(Kind::Port, 0x4D0..=0x4D1, "8259 interrupt controller"),
    Part(Kind::Port, 0x60..=0x60, "keyboard"),
    Part(Kind::Port, 0x61..=0x61, "speaker"),
    Part(Kind::Port, 0x80..=0x80, "progress codes"),
    Part(Kind::Port, 0x92..=0x92, "gate of address line 20"),
    Part(Kind::Port, 0x2E8..=0x2EF, "fourth serial port"),
    Part(Kind::Port, 0x2F8..=0x2FF, "second serial port"),
    Part(Kind::Port, 0x3E8..=0x3EF, "third serial port"),
    Part(Kind::Port, 0x402..=0x402, "firmware's debug port"),
    Part(Kind::Port, 0xCD8..=0xCE3, "CPU hotplug"),
    Part(Kind::Memory, 0xFED0_0000..=0xFED0_0FFF, "HPET"),
    Part(Kind::Memory, 0xFED4_0000..=0xFED4_4FFF, "TPM"),
    Part(Kind::Msr, 0x34..=0x34, "count of SMIs"),
    Part(Kind::Msr, 0x198..=0x1A2, "frequency and temperature"),
    Part(Kind::Msr, 0x3F8..=0x3FF, "time in sleep states"),
    Part(Kind::Msr, 0x606..=0x606, "power meter"),
    Part(Kind::Msr, 0x60A..=0x60D, "time in sleep states"),
    Part(
        Kind::Msr,
        0x610..=0x64F,
        "power meter, and time in sleep states",
    ),
    Part(Kind::Msr, 0x981..=0x982, "memory encryption (TME)"),
    Part(Kind::Msr, 0xC001_0000..=0xC001_FFFF, "AMD's own"),
];

/// Returns the name of the part whose registers are there, if it is known.
#[must_use]
pub fn part(kind: Kind, at: u64) -> Option<&'static str> {
    let mut parts = PARTS.iter();
    let part = parts.find(|Part(of, places, _)| *of == kind && places.contains(&at));
    part.map(|Part(.., name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_parts_have_the_same_place() {
        for (at, Part(kind, places, name)) in PARTS.iter().enumerate() {
            assert!(!places.is_empty(), "{name}");
            for Part(other, others, second) in &PARTS[at + 1..] {
                let apart = places.end() < others.start() || others.end() < places.start();
                assert!(kind != other || apart, "{name} and {second}");
            }
        }
    }

    #[test]
    fn a_place_is_known_by_its_kind_and_its_address() {
        assert_eq!(part(Kind::Port, 0xA1), Some("8259 interrupt controller"));
        assert_eq!(part(Kind::Memory, 0xFED4_0000), Some("TPM"));
        assert_eq!(part(Kind::Msr, 0x34), Some("count of SMIs"));
        for (kind, at) in [
            (Kind::Port, 0x34),
            (Kind::Msr, 0x60),
            (Kind::Memory, 0xFED5_0000),
        ] {
            assert_eq!(part(kind, at), None);
        }
    }
}
