//! A server with four sockets and two segments, set up as firmware leaves it.

use super::{Behaviour, Config, Model, at};

const NEEDED: u16 = 0b1_1101;

/// Returns an NVMe drive with a function-level reset.
pub fn drive(address: u64) -> Config {
    Config::new(0x8086, 0x0A54, 0x01_0802)
        .memory64(0, address, 0x4000)
        .express(0, true)
        .power(true)
}

/// Returns a port of the root complex to `secondary`, with access control.
pub fn root_port(secondary: u8, subordinate: u8) -> Config {
    Config::bridge(0x347A, secondary, subordinate)
        .express(4, false)
        .access_control(NEEDED)
}

/// Returns uncore devices, whose registers must not be touched.
fn uncore(device: u16, class: u32) -> Config {
    Config::new(0x8086, device, class)
        .memory32(0, 0xFB00_0000, 0x1000)
        .behaving(Behaviour {
            untouchable: true,
            ..Behaviour::default()
        })
}

/// Returns the machine. Sockets 0 and 1 are in segment 0, sockets 2 and 3 in segment 1. Each has a root bus with the
/// chipset or uncore devices, and two root buses with devices; socket 1 has VMD on.
pub fn four_sockets() -> Model {
    let model = Model::default();
    for (segment, first) in [(0, 0x00), (0, 0x80), (1, 0x00), (1, 0x80)] {
        socket(&model, segment, first);
    }
    chipset(&model);
    // VMD has taken the ports of this root bus, and their drives.
    model.add(
        at(0, 0x80, 0, 0),
        uncore(0x09A2, 0x08_8000).multi_function(),
    );
    model.add(
        at(0, 0x80, 0, 5),
        Config::new(0x8086, 0x28C0, 0x01_0400)
            .memory64(0, 0x20_0000_0000, 0x200_0000)
            .memory64(2, 0x20_0200_0000, 0x200_0000)
            .express(9, false),
    );
    model
}

/// Adds what every socket has.
fn socket(model: &Model, segment: u16, first: u8) {
    let base = (u64::from(segment) << 8 | u64::from(first)) << 32;
    // Uncore devices and the IOMMU, several functions each.
    for function in 0..3 {
        let config = uncore(0x09A2, 0x08_8000).multi_function();
        model.add(at(segment, first + 0x7E, 0, function), config);
        model.add(
            at(segment, first + 0x7E, 5, function),
            uncore(0x3456, 0x11_0100).multi_function(),
        );
    }
    // A network card of two functions behind a root port.
    let port = first + 0x16;
    model.add(at(segment, port, 2, 0), root_port(port + 1, port + 1));
    for function in 0..2 {
        let card = Config::new(0x15B3, 0x101D, 0x02_0000)
            .memory64(
                0,
                base | 0x1000_0000 | u64::from(function) << 25,
                0x200_0000,
            )
            .express(0, true)
            .access_control(0)
            .multi_function();
        model.add(at(segment, port + 1, 0, function), card);
    }
    // A switch with access control in its ports, and two drives behind it.
    let port = first + 0x30;
    model.add(at(segment, port, 1, 0), root_port(port + 1, port + 5));
    let upstream = Config::bridge(0x8747, port + 2, port + 5).express(5, false);
    model.add(at(segment, port + 1, 0, 0), upstream);
    for (device, secondary) in [(8, port + 3), (9, port + 4)] {
        let downstream = Config::bridge(0x8747, secondary, secondary)
            .express(6, false)
            .access_control(NEEDED);
        model.add(at(segment, port + 2, device, 0), downstream);
        model.add(
            at(segment, secondary, 0, 0),
            drive(base | 0x2000_0000 | u64::from(device) << 16),
        );
    }
    // A switch without access control, and two drives behind it.
    let port = first + 0x40;
    model.add(at(segment, port, 1, 0), root_port(port + 1, port + 5));
    let upstream = Config::bridge(0x8608, port + 2, port + 5).express(5, false);
    model.add(at(segment, port + 1, 0, 0), upstream);
    for (device, secondary) in [(1, port + 3), (2, port + 4)] {
        let downstream = Config::bridge(0x8608, secondary, secondary).express(6, false);
        model.add(at(segment, port + 2, device, 0), downstream);
        model.add(
            at(segment, secondary, 0, 0),
            drive(base | 0x3000_0000 | u64::from(device) << 16),
        );
    }
}

/// Adds the chipset and the management controller behind a bridge to conventional PCI.
fn chipset(model: &Model) {
    model.add(at(0, 0, 0, 0), uncore(0x09A2, 0x06_0000));
    model.add(
        at(0, 0, 0x14, 0),
        Config::new(0x8086, 0xA1AF, 0x0C_0330).memory64(0, 0x9000_0000, 0x1_0000),
    );
    let lpc = uncore(0xA1C8, 0x06_0100).multi_function();
    model.add(at(0, 0, 0x1F, 0), lpc);
    model.add(at(0, 0, 0x1F, 4), uncore(0xA1A3, 0x0C_0500));
    model.add(
        at(0, 0, 0x1F, 5),
        Config::new(0x8086, 0xA1A4, 0x0C_8000).memory32(0, 0xFE01_0000, 0x1000),
    );
    // The management controller: a port, a bridge to PCI, a display.
    model.add(at(0, 0, 0x1C, 0), root_port(2, 3));
    model.add(
        at(0, 2, 0, 0),
        Config::bridge(0x1150, 3, 3).express(7, false),
    );
    model.add(
        at(0, 3, 0, 0),
        Config::new(0x1A03, 0x2000, 0x03_0000)
            .memory32(0, 0x9200_0000, 0x100_0000)
            .ports(2, 0x2000, 0x80),
    );
}
