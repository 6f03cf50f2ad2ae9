//! DMARs: QEMU's, one shaped like a large server's, broken ones, and noise.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use proptest::prelude::*;
use vtd::{
    Function, Source,
    dmar::{self, ScopeKind},
    reserved,
    scope::{self, Buses},
};

use super::{at, table};

const ENDPOINT: u8 = 1;
const BRIDGE: u8 = 2;
const IO_APIC: u8 = 3;
const HPET: u8 = 4;

/// Bridges with the buses behind them.
struct Bridges(BTreeMap<Function, RangeInclusive<u8>>);

impl Buses for Bridges {
    fn behind(&self, bridge: Function) -> Option<RangeInclusive<u8>> {
        self.0.get(&bridge).cloned()
    }
}

/// The table of QEMU 7.2 for a machine with a root port: no unit has everything, and each function is named.
#[test]
fn qemu_s_table_names_every_function() {
    let table = table::dmar(
        48,
        1,
        &[table::unit(
            0xFED9_0000,
            0,
            false,
            &[
                table::scope(IO_APIC, 0, 0xFF, &[(0, 0)]),
                table::scope(ENDPOINT, 0, 0, &[(0, 0)]),
                table::scope(BRIDGE, 0, 0, &[(2, 0)]),
                table::scope(ENDPOINT, 0, 0, &[(31, 2)]),
            ],
        )],
    );
    let dmar = dmar::parse(&table);
    assert_eq!(dmar.problems, [""; 0]);
    assert!(dmar.remaps_interrupts && dmar.address_bits == 48);
    let buses = Bridges([(at(0, 2, 0), 1..=3)].into());
    let coverage = scope::coverage(&dmar, &buses);
    let unit = |function| scope::unit_of(&coverage, function);
    for function in [
        at(0, 0, 0),
        at(0, 2, 0),
        at(1, 0, 0),
        at(3, 31, 7),
        at(0, 31, 2),
    ] {
        assert_eq!(unit(function), Some(0), "{function}");
    }
    for function in [at(0, 1, 0), at(4, 0, 0), Function::new(1, Source(0))] {
        assert_eq!(unit(function), None, "{function}");
    }
    let io_apic = coverage[0].numbered(ScopeKind::IoApic, 0);
    assert_eq!(io_apic, Some(Source(0xFF00)));
}

/// Four sockets with five units each, two segments, VMD, an accelerator that translates itself, RMRR of USB and of the
/// management controller.
#[test]
fn a_server_with_four_sockets_is_read() {
    let mut structures = Vec::new();
    for socket in 0..4u8 {
        let (segment, first) = (u16::from(socket / 2), socket % 2 * 0x80);
        let base = |unit: u64| 0xD000_0000 + u64::from(socket) * 0x1000_0000 + unit * 0x10_0000;
        let stack = |unit: u8| first + unit * 0x10;
        for unit in 1..5 {
            let port = table::scope(BRIDGE, 0, stack(unit), &[(1, 0)]);
            let mut scopes = vec![port];
            if unit == 2 {
                // VMD is an endpoint; its drives are in a domain of its own and use its requester id.
                scopes.push(table::scope(ENDPOINT, 0, stack(unit), &[(5, 5)]));
            }
            structures.push(table::unit(base(unit.into()), segment, false, &scopes));
        }
        let mut scopes = Vec::new();
        if first == 0 {
            scopes.push(table::scope(IO_APIC, 8 + socket, 0, &[(0x1E, 7)]));
            scopes.push(table::scope(HPET, 0, 0, &[(0x1F, 0)]));
        }
        structures.push(table::unit(base(0), segment, first == 0, &scopes));
    }
    let usb = table::scope(ENDPOINT, 0, 0, &[(0x14, 0)]);
    // The management controller is behind two bridges.
    let controller = table::scope(ENDPOINT, 0, 0, &[(0x1C, 4), (0, 0), (0, 0)]);
    structures.push(table::reserved(0, (0x7B80_0000, 0x7B88_0FFF), &[usb]));
    structures.push(table::reserved(
        0,
        (0x7C00_0000, 0x7C0F_FFFF),
        &[controller],
    ));
    structures.push(table::structure(
        2,
        &[0, 0, 0, 0],
        &[table::scope(BRIDGE, 0, 0x10, &[(1, 0)])],
    ));
    structures.push(table::structure(2, &[1, 0, 1, 0], &[]));
    let affinity = [
        &[0; 4][..],
        &0xD000_0000u64.to_le_bytes(),
        &3u32.to_le_bytes(),
    ]
    .concat();
    structures.push(table::structure(3, &affinity, &[]));
    structures.push(table::structure(
        4,
        &[&[0, 0, 0, 7][..], b"\\_SB.PC00.SPI0\0"].concat(),
        &[],
    ));
    structures.push(table::structure(
        5,
        &[1, 0, 0, 0],
        &[table::scope(ENDPOINT, 0, 0x70, &[(1, 0)])],
    ));
    structures.push(table::structure(
        6,
        &[0, 0, 1, 0],
        &[table::scope(ENDPOINT, 0, 0x71, &[(1, 0)])],
    ));
    // A kind that comes after this driver.
    structures.push(table::structure(77, &[1, 2, 3, 4, 5], &[]));
    let dmar = dmar::parse(&table::dmar(52, 1, &structures));
    assert_eq!(dmar.problems, [""; 0]);
    assert_eq!((dmar.units.len(), dmar.reserved.len()), (20, 2));
    assert!(
        dmar.root_ports.len() == 2 && dmar.root_ports[1].all && dmar.root_ports[1].segment == 1
    );
    assert_eq!(dmar.affinity, [(0xD000_0000, 3)]);
    assert_eq!(
        (dmar.named[0].number, &*dmar.named[0].name),
        (7, "\\_SB.PC00.SPI0")
    );
    assert!(dmar.translating.len() == 1 && dmar.properties[0].segment == 1);

    let bridges = [
        (at(0x20, 1, 0), 0x21..=0x2F),
        (Function::new(1, Source::new(0xC0, 1, 0)), 0xC1..=0xCF),
        (at(0, 0x1C, 4), 2..=3),
        (at(2, 0, 0), 3..=3),
    ];
    let buses = Bridges(bridges.into());
    let coverage = scope::coverage(&dmar, &buses);
    let base = |segment, source| {
        let unit = scope::unit_of(&coverage, Function::new(segment, source));
        unit.map(|unit| dmar.units[unit].base)
    };
    let on_bus = |bus| Source::new(bus, 0, 0);
    // A drive behind socket 0's second stack, its VMD, and the same bus number in the other segment.
    assert_eq!(base(0, on_bus(0x21)), Some(0xD020_0000));
    assert_eq!(base(0, Source::new(0x20, 5, 5)), Some(0xD020_0000));
    assert_eq!(base(1, on_bus(0x21)), Some(0xF000_0000));
    assert_eq!(base(1, on_bus(0xC5)), Some(0x1_0040_0000));
    // The rest of each segment, and a segment that no unit has.
    assert_eq!(base(0, on_bus(0xFE)), Some(0xD000_0000));
    assert_eq!(base(2, on_bus(0)), None);
    let controller = &dmar.reserved[1].scopes[0];
    assert_eq!(scope::resolve(controller, 0, &buses), Some(at(3, 0, 0)));
    assert_eq!(scope::resolve(controller, 1, &buses), None);
    // The first RMRR's first page is not reserved by the firmware, and the second overlaps what the module has.
    let firmware = [(0x7B80_1000, 0x7D00_0000)];
    let module = [(0x7C0F_F000, 0x7D00_0000)];
    let claims = |firmware: &[_], module: &[_]| reserved::claims(&dmar, &buses, firmware, module);
    for (claim, word) in claims(&firmware, &module)
        .iter()
        .zip(["0x7b800000", "0x7c0ff000"])
    {
        let why = claim.refusal.as_deref().unwrap_or("kept");
        assert!(why.contains(word), "{why}");
    }
    let firmware = [(0x7B80_0000, 0x7D00_0000)];
    let kept = claims(&firmware, &[]);
    assert!(kept.iter().all(|claim| claim.refusal.is_none()));
    let functions: Vec<_> = kept.iter().map(|claim| claim.function).collect();
    assert_eq!(functions, [at(0, 0x14, 0), at(3, 0, 0)]);
    let rest = coverage.iter().find(|unit| unit.is_all()).expect("one");
    assert_eq!(rest.numbered(ScopeKind::Hpet, 0), Some(Source(0xF8)));
}

#[test]
fn what_is_broken_is_said_and_left_out() {
    let good = || table::unit(0xFED9_0000, 0, true, &[]);
    let scope = |bytes: &[u8]| table::unit(0xFED9_1000, 0, false, &[bytes.to_vec()]);
    for (broken, words) in [
        (vec![9], "wrong length: its last 1 bytes"),
        (vec![0, 0, 0, 0, 1, 2], "wrong length: its last 6 bytes"),
        (vec![0, 0, 200, 0], "wrong length: its last 4 bytes"),
        (
            table::structure(0, &[0; 8], &[]),
            "has 12 bytes instead of 16",
        ),
        (table::structure(1, &[0; 8], &[]), "instead of 24"),
        (table::structure(3, &[0; 8], &[]), "instead of 20"),
        (table::structure(4, &[0; 4], &[]), "instead of 9"),
        (table::structure(5, &[0; 1], &[]), "instead of 8"),
        (table::unit(0, 0, false, &[]), "names a unit at 0x0"),
        (
            table::unit(0xFED9_0800, 0, false, &[]),
            "names a unit at 0xfed90800",
        ),
        (table::unit(1 << 52, 0, false, &[]), "names a unit at"),
        (
            table::unit(0xFED9_0000, 1, false, &[]),
            "the unit at 0xfed90000 again",
        ),
        (
            table::unit(0xFED9_1000, 0, true, &[]),
            "which another unit has",
        ),
        (scope(&[1]), "device scope 0"),
        (scope(&[1, 6, 0, 0, 0, 0]), "device scope 0"),
        (scope(&[1, 8, 0, 0, 0, 0, 3]), "device scope 0"),
        (scope(&[1, 9, 0, 0, 0, 0, 3, 0, 0]), "device scope 0"),
        (scope(&[1, 8, 0, 0, 0, 0, 32, 0]), "names device 32"),
        (scope(&[1, 8, 0, 0, 0, 0, 0, 8]), "function 8"),
        (
            table::reserved(0, (0x2000, 0x1FFF), &[]),
            "reserves memory from 0x2000",
        ),
        (
            table::reserved(0, (0x2000, 0x2FFE), &[]),
            "reserves memory from 0x2000",
        ),
        (
            table::reserved(0, (0x2001, 0x2FFF), &[]),
            "reserves memory from 0x2001",
        ),
        (
            table::reserved(0, (0, u64::MAX), &[]),
            "reserves memory from 0x0",
        ),
    ] {
        let dmar = dmar::parse(&table::dmar(46, 1, &[good(), broken]));
        assert_eq!(dmar.units.len(), 1, "{words}");
        assert!(dmar.reserved.is_empty());
        let [problem] = &dmar.problems[..] else {
            panic!("{words}: {:?}", dmar.problems);
        };
        assert!(problem.contains(words), "{problem}");
    }
    let empty = dmar::parse(&table::dmar(46, 0, &[]));
    assert_eq!(empty.problems, ["the DMAR lists no unit"]);
    assert!(dmar::parse(b"DMAR").problems[0].contains("less than its header"));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>, structures in prop::collection::vec(
        (0u16..8, prop::collection::vec(prop_oneof![0u8..9, any::<u8>()], 0..60)), 0..20,
    )) {
        let all: Vec<_> = structures
            .iter()
            .map(|(kind, fields)| table::structure(*kind, fields, &[]))
            .collect();
        for table in [bytes, table::dmar(46, 1, &all)] {
            let dmar = dmar::parse(&table);
            for unit in &dmar.units {
                prop_assert!(unit.base != 0 && unit.base % 4096 == 0);
                prop_assert!(unit.scopes.iter().all(|scope| !scope.path.is_empty()));
            }
            prop_assert!(dmar.reserved.iter().all(|reserved| reserved.start < reserved.end));
            let buses = Bridges([(at(0, 0, 0), 0..=255)].into());
            let coverage = scope::coverage(&dmar, &buses);
            for source in (0..=u16::MAX).step_by(97) {
                let _ = scope::unit_of(&coverage, Function::new(0, Source(source)));
            }
        }
    }
}
