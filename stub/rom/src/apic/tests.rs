use super::*;
use alloc::collections::BTreeMap;

#[derive(Default)]
struct Fake(BTreeMap<u32, u32>);

impl Xapic for Fake {
    fn read(&self, offset: u32) -> u32 {
        self.0.get(&offset).copied().unwrap_or(0)
    }
    fn write(&mut self, offset: u32, value: u32) {
        self.0.insert(offset, value);
    }
}

const HZ: u64 = 2_000_000_000;

fn x2apic(id: u32) -> (Apic, Fake) {
    (Apic::new(id, false, true, HZ), Fake::default())
}

#[test]
fn mode_transitions_follow_the_architecture() {
    let mut hw = Fake::default();
    let mut apic = Apic::new(1, false, false, HZ);
    assert_eq!(apic.mode(), Mode::Xapic);
    assert_eq!(
        apic.set_base(BASE | 1 << 10, &mut hw),
        Err(Gp),
        "EXTD without EN"
    );
    assert_eq!(
        apic.set_base(0x1000_0000 | 1 << 11, &mut hw),
        Err(Gp),
        "another base"
    );
    apic.set_base(BASE, &mut hw).unwrap();
    assert_eq!(apic.mode(), Mode::Disabled);
    assert_eq!(
        apic.set_base(BASE | 3 << 10, &mut hw),
        Err(Gp),
        "disabled to x2APIC"
    );
    apic.set_base(BASE | 1 << 11, &mut hw).unwrap();
    apic.set_base(BASE | 3 << 10, &mut hw).unwrap();
    assert_eq!(apic.mode(), Mode::X2apic);
    assert_eq!(
        apic.set_base(BASE | 1 << 11, &mut hw),
        Err(Gp),
        "x2APIC to xAPIC"
    );
    apic.set_base(BASE, &mut hw).unwrap();

    let (mut locked, mut hw) = x2apic(1);
    assert_eq!(
        locked.set_base(BASE, &mut hw),
        Err(Gp),
        "x2APIC mode is locked"
    );
    assert_eq!(locked.set_base(BASE | 3 << 10, &mut hw), Ok(()));
}

#[test]
fn reserved_bits_and_invalid_transitions_raise_gp() {
    let (mut apic, mut hw) = x2apic(1);
    for (msr, value) in [
        (0x802, 0),
        (0x803, 0),
        (0x808, 0x100),
        (0x80A, 0),
        (0x80B, 1),
        (0x80D, 0),
        (0x80E, 0),
        (0x80F, 0x1000),
        (0x810, 0),
        (0x828, 1),
        (0x830, 1 << 12),
        (0x831, 0),
        (0x832, 1 << 19),
        (0x839, 0),
        (0x83E, 4),
        (0x83F, 0x100),
        (0x840, 0),
        (0x838, 1 << 32),
    ] {
        assert_eq!(apic.write_msr(msr, value, &mut hw), Err(Gp), "{msr:#x}");
    }
    assert!(hw.0.is_empty(), "a refused write reaches nothing");
    for msr in [0x80B, 0x80E, 0x831, 0x83F, 0x800, 0x840, 0x8FF] {
        assert_eq!(apic.read_msr(msr, &hw), Err(Gp), "{msr:#x}");
    }
    let xapic = Apic::new(1, false, false, HZ);
    assert_eq!(xapic.read_msr(0x802, &hw), Err(Gp), "not in x2APIC mode");
}

#[test]
fn logical_ids_follow_from_the_apic_id() {
    let (apic, hw) = x2apic(0x25);
    assert_eq!(apic.read_msr(0x802, &hw), Ok(0x25));
    assert_eq!(apic.read_msr(0x80D, &hw), Ok(0x2_0020));
    assert_eq!(apic.read_msr(0x803, &hw), Ok(0x6_0015));
}

#[test]
fn ipis_reach_their_destinations() {
    let (mut apic, mut hw) = x2apic(1);
    let mut send = |value: u64| apic.write_msr(0x830, value, &mut hw).unwrap();
    let stations = |ipi: Ipi| {
        (0..20)
            .filter(|&id| ipi.reaches(Station::x2apic(id), id == 1))
            .collect::<alloc::vec::Vec<_>>()
    };
    let init = send(2 << 32 | 0x4500).unwrap();
    assert_eq!(
        (init.delivery, stations(init)),
        (Delivery::Init, [2].into())
    );
    assert_eq!(send(0x8500), None, "INIT level de-assert");
    let sipi = send(3 << 32 | 0x4608).unwrap();
    assert_eq!(
        (sipi.delivery, stations(sipi)),
        (Delivery::Startup(8), [3].into())
    );
    let cluster = send(0x1_0005 << 32 | 0x4840).unwrap();
    assert_eq!(stations(cluster), [16, 18]);
    assert_eq!(stations(send(0xC_4440).unwrap()).len(), 19, "all but self");
    assert_eq!(stations(send(0x8_4040).unwrap()).len(), 20, "all");
    assert_eq!(stations(send(0x4_4040).unwrap()), [1], "self");
    assert_eq!(
        stations(send(0xFFFF_FFFF_0000_4040).unwrap()).len(),
        20,
        "broadcast id"
    );
    assert_eq!(send(0x400A), None, "illegal vector");
    let own = apic.write_msr(0x83F, 0x55, &mut hw).unwrap().unwrap();
    assert_eq!(
        (own.delivery, stations(own)),
        (Delivery::Fixed(0x55), [1].into())
    );
}

#[test]
fn an_illegal_vector_shows_in_the_error_register_after_a_write() {
    let (mut apic, mut hw) = x2apic(1);
    apic.write_msr(0x83F, 3, &mut hw).unwrap();
    assert_eq!(apic.read_msr(0x828, &hw), Ok(0));
    apic.write_msr(0x828, 0, &mut hw).unwrap();
    assert_eq!(apic.read_msr(0x828, &hw), Ok(1 << 5));
    apic.write_msr(0x828, 0, &mut hw).unwrap();
    assert_eq!(apic.read_msr(0x828, &hw), Ok(0));
}

#[test]
fn xapic_commands_have_eight_bit_ids() {
    let mut hw = Fake::default();
    let mut apic = Apic::new(0, true, false, HZ);
    apic.write_memory(0x310, 0x0200_0000, &mut hw);
    let ipi = apic.write_memory(0x300, 0x4500, &mut hw).unwrap();
    assert!(ipi.reaches(Station::xapic(2, 0, u32::MAX), false));
    assert!(!ipi.reaches(Station::xapic(3, 0, u32::MAX), false));
    apic.write_memory(0x310, 0xFF00_0000, &mut hw);
    let ipi = apic.write_memory(0x300, 0x4040, &mut hw).unwrap();
    assert!(
        ipi.reaches(Station::x2apic(300), false),
        "0xFF is everybody"
    );
    assert_eq!(apic.read_memory(0x310, &hw), 0xFF00_0000);
    assert_eq!(apic.read_memory(0x20, &hw), 0);
    apic.write_memory(0xD0, 0x0200_0000, &mut hw);
    apic.write_memory(0x310, 0x0600_0000, &mut hw);
    let ipi = apic.write_memory(0x300, 0x4840, &mut hw).unwrap();
    assert!(ipi.reaches(apic.station(), true), "flat logical id");
}

#[test]
fn a_deadline_becomes_a_one_shot_count_and_clears_once_passed() {
    let (mut apic, mut hw) = x2apic(1);
    apic.set_deadline(1000, 0, &mut hw);
    assert_eq!(apic.deadline(0), 0, "not in deadline mode");
    apic.write_msr(0x832, 0x4_00E0, &mut hw).unwrap();
    assert_eq!(hw.read(0x320), 0xE0, "one-shot beneath");
    apic.set_deadline(2_000_000, 0, &mut hw);
    assert!((1_000_000..1_001_000).contains(&hw.read(0x380)));
    assert_eq!(
        (apic.deadline(1_999_999), apic.deadline(2_000_000)),
        (2_000_000, 0)
    );
    assert_eq!(apic.read_msr(0x832, &hw), Ok(0x4_00E0));
    apic.set_deadline(0, 0, &mut hw);
    assert_eq!(hw.read(0x380), 0, "disarmed");
    apic.set_deadline(5, 10, &mut hw);
    assert!(
        (1..4).contains(&hw.read(0x380)),
        "one in the past fires at once"
    );
    apic.write_msr(0x832, 0x2_00E0, &mut hw).unwrap();
    assert_eq!((hw.read(0x320), hw.read(0x380)), (0x2_00E0, 0));
}
