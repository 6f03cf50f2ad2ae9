//! The block device, by its driver and against a model of its disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use virtio_spec::DeviceStatus;

use super::driver::NOTIFY;
use super::{Driver, Ram, Ring, hostile, std};
use crate::access::{read, write};
use crate::{Block, Disk, Fault, Image};

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Where the driver has its header, its status and its data.
const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8800;
const DATA: u64 = 0x9003;

#[derive(Debug)]
struct Bytes(Vec<u8>);

impl Image for Bytes {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// An image of so many bytes, each block of which has its own content.
fn image(bytes: usize) -> Arc<Bytes> {
    let content = (0..bytes).map(|at| (at / 512 * 7 + at % 13 + 1) as u8);
    Arc::new(Bytes(content.collect()))
}

struct Guest<'r> {
    driver: Driver<'r, Block>,
    ring: Ring,
}

impl<'r> Guest<'r> {
    fn new(ram: &'r Ram, disk: Disk) -> Self {
        let mut driver = Driver::new(Block::new(disk), ram);
        driver.negotiate(u64::MAX);
        let ring = driver.set_up(0, 16, 0);
        driver.ready();
        Self { driver, ring }
    }

    /// Makes a request with data to write, or with room for data to read. Returns the status, the number of bytes that
    /// the device reports, and the data.
    fn request(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) -> (u8, u32, Vec<u8>) {
        let ram = self.driver.ram;
        write(ram, HEADER, &kind.to_le_bytes()).unwrap();
        write(ram, HEADER + 8, &sector.to_le_bytes()).unwrap();
        write(ram, STATUS, &[0xEE]).unwrap();
        write(ram, DATA, data).unwrap();
        let mut buffers = vec![(HEADER, 16, false)];
        let half = data.len() as u32 / 3;
        if !data.is_empty() {
            buffers.push((DATA, half, false));
            buffers.push((DATA + u64::from(half), data.len() as u32 - half, false));
        }
        if room != 0 {
            buffers.push((DATA, room / 3, true));
            buffers.push((DATA + u64::from(room / 3), room - room / 3, true));
        }
        buffers.push((STATUS, 1, true));
        self.ring.offer(ram, &buffers).unwrap();
        self.driver.kick(0);
        let (_, written) = self.ring.take(ram).unwrap();
        let mut status = [0];
        read(ram, STATUS, &mut status).unwrap();
        let mut content = vec![0; room as usize];
        read(ram, DATA, &mut content).unwrap();
        (status[0], written, content)
    }

    fn read(&mut self, sector: u64, bytes: u32) -> Vec<u8> {
        let (status, written, data) = self.request(READ, sector, &[], bytes);
        assert_eq!((status, written), (OK, bytes + 1));
        data
    }
}

#[test]
fn an_image_is_read_as_it_is_and_zeroes_follow_it() {
    let ram = Ram::new(80);
    let base = image(3 * 4096 + 700);
    let mut guest = Guest::new(&ram, Disk::read_only(base.clone(), "disk-1"));
    let mut expected = base.0.clone();
    expected.resize(4 * 4096, 0);
    assert_eq!(guest.driver.read(0x2000, 8), 32, "sectors");
    for (sector, bytes) in [(0, 512), (3, 4096), (7, 8192), (24, 4096), (0, 16384)] {
        let start = sector as usize * 512;
        assert_eq!(
            guest.read(sector, bytes),
            expected[start..start + bytes as usize]
        );
    }
    assert_eq!(guest.request(READ, 31, &[], 1024).0, IO_ERROR);
    assert_eq!(guest.request(READ, u64::MAX, &[], 512).0, IO_ERROR);
    assert_eq!(guest.request(READ, 0, &[], 500).0, IO_ERROR);
    assert_eq!(guest.request(WRITE, 0, &[1; 512], 0).0, IO_ERROR);
    assert_eq!(guest.request(DISCARD, 0, &[0; 16], 0).0, UNSUPPORTED);
    assert_eq!(guest.request(99, 0, &[], 0), (UNSUPPORTED, 1, vec![]));
    assert_eq!(guest.request(FLUSH, 0, &[], 0), (OK, 1, vec![]));
    let (status, written, serial) = guest.request(GET_ID, 0, &[], 20);
    assert_eq!(
        (status, written, &serial[..8]),
        (OK, 21, &b"disk-1\0\0"[..])
    );
    assert_eq!(
        guest.driver.features & (1 << 5 | 1 << 13),
        1 << 5,
        "read-only"
    );
}

#[test]
fn a_long_request_is_carried_out_in_parts() {
    const BYTES: usize = 1 << 20;
    let ram = Ram::new(0x9 + 3 + BYTES / 4096);
    let base = image(2 * BYTES);
    let disk = Disk::read_only(base.clone(), "").with_overlay(BYTES as u64 / 2);
    let mut guest = Guest::new(&ram, disk.unwrap());
    let parts = |guest: &mut Guest<'_>, kind: u32, is_written: bool| {
        write(&ram, HEADER, &kind.to_le_bytes()).unwrap();
        write(&ram, HEADER + 8, &8u64.to_le_bytes()).unwrap();
        write(&ram, STATUS, &[0xEE]).unwrap();
        let data = (DATA, BYTES as u32, is_written);
        let buffers = [(HEADER, 16, false), data, (STATUS, 1, true)];
        guest.ring.offer(&ram, &buffers).unwrap();
        let parts = guest.driver.kick(0);
        let (_, written) = guest.ring.take(&ram).unwrap();
        let mut status = [0];
        read(&ram, STATUS, &mut status).unwrap();
        (parts, written, status[0])
    };
    let content = |guest: &mut Guest<'_>| {
        assert_eq!(parts(guest, READ, true), (5, BYTES as u32 + 1, OK));
        let mut found = vec![0; BYTES];
        read(&ram, DATA, &mut found).unwrap();
        found
    };
    let mut expected = base.0[4096..4096 + BYTES].to_vec();
    assert_eq!(content(&mut guest), expected);
    // The overlay has room for the first half.
    write(&ram, DATA, &[0xAB; BYTES]).unwrap();
    assert_eq!(parts(&mut guest, WRITE, false), (4, 1, IO_ERROR));
    expected[..BYTES / 2].fill(0xAB);
    assert_eq!(content(&mut guest), expected);
    assert_eq!(guest.read(1, 512), base.0[512..1024], "the next one");
}

#[test]
fn a_long_request_ends_with_a_reset_and_with_its_memory() {
    let ram = Ram::new(0x9 + 3 + 256);
    let mut guest = Guest::new(&ram, Disk::read_only(image(1 << 20), ""));
    for is_taken_back in [false, true] {
        write(&ram, HEADER, &[0; 16]).unwrap();
        let data = (DATA, 1 << 20, true);
        let buffers = [(HEADER, 16, false), data, (STATUS, 1, true)];
        guest.ring.offer(&ram, &buffers).unwrap();
        guest.driver.write(NOTIFY, 2, 0);
        for _ in 0..2 {
            assert!(guest.driver.serve().has_more);
        }
        if is_taken_back {
            ram.unshare(0x9 + 255);
            while guest.driver.serve().has_more {}
            assert!(
                guest
                    .driver
                    .status()
                    .contains(DeviceStatus::DEVICE_NEEDS_RESET)
            );
            ram.share_all();
        }
        guest.driver.negotiate(u64::MAX);
        guest.ring = guest.driver.set_up(0, 16, 0);
        guest.driver.ready();
        assert!(!guest.driver.serve().has_more);
        assert_eq!(guest.read(1, 512).len(), 512);
    }
}

#[test]
fn what_is_written_is_the_disk_s_own_and_lost_at_the_end() {
    let ram = Ram::new(80);
    let base = image(64 * 4096);
    let disk = || {
        Disk::read_only(base.clone(), "")
            .with_overlay(2 * 4096)
            .unwrap()
    };
    let mut guest = Guest::new(&ram, disk());
    assert_eq!(guest.request(WRITE, 9, &[0xAB; 512], 0), (OK, 1, vec![]));
    let mut block = base.0[4096..8192].to_vec();
    block[512..1024].fill(0xAB);
    assert_eq!(guest.read(8, 4096), block);
    assert_eq!(guest.request(WRITE, 16, &[0xCD; 4096], 0).0, OK);
    assert_eq!(
        guest.driver.function.device().disk().written(),
        (8192, 8192)
    );
    assert_eq!(
        guest.request(WRITE, 24, &[1; 512], 0).0,
        IO_ERROR,
        "it is full"
    );
    assert_eq!(guest.read(24, 512), base.0[24 * 512..25 * 512]);
    // A discarded block is zero, and makes room.
    let segment = |sector: u64, sectors: u32, flags: u32| {
        let words = [sector as u32, (sector >> 32) as u32, sectors, flags];
        words.map(u32::to_le_bytes).concat()
    };
    assert_eq!(guest.request(DISCARD, 0, &segment(8, 8, 0), 0).0, OK);
    assert_eq!(guest.read(8, 4096), [0; 4096]);
    assert_eq!(guest.request(WRITE, 24, &[1; 512], 0).0, OK);
    assert_eq!(guest.request(ZEROES, 0, &segment(18, 7, 1), 0).0, OK);
    let mut expected = [[0xCD; 1024].as_slice(), &[0; 3584]].concat();
    expected.truncate(4608);
    assert_eq!(guest.read(16, 4608), expected);
    for (sector, sectors, flags, status) in [
        (0, 8, 1, UNSUPPORTED),
        (512, 8, 0, IO_ERROR),
        (u64::MAX, 8, 0, IO_ERROR),
        (0, u32::MAX, 0, IO_ERROR),
    ] {
        assert_eq!(
            guest
                .request(DISCARD, 0, &segment(sector, sectors, flags), 0)
                .0,
            status
        );
    }
    assert_eq!(guest.request(DISCARD, 0, &[0; 32], 0).0, IO_ERROR);
    // Another disk of the same image has none of it.
    let mut other = Guest::new(&ram, disk());
    assert_eq!(other.read(0, 65536), base.0[..65536]);
    devices::pci::Function::retire(&mut guest.driver.function);
    assert_eq!(guest.driver.function.device().disk().written(), (0, 0));
}

#[test]
fn a_chain_that_is_no_request_stops_the_device() {
    let buffers = [
        &[(HEADER, 15, false), (STATUS, 1, true)][..],
        &[(HEADER, 16, false)],
        &[(STATUS, 1, true)],
        &[(HEADER, 16, false), (STATUS, 0, true)],
    ];
    for buffers in buffers {
        let ram = Ram::new(16);
        let mut guest = Guest::new(&ram, Disk::read_only(image(4096), ""));
        guest.ring.offer(&ram, buffers).unwrap();
        guest.driver.kick(0);
        assert_eq!(guest.driver.function.fault(), Some(Fault::Request));
    }
}

#[test]
fn many_requests_are_one_notification_and_one_interrupt() {
    let ram = Ram::new(80);
    let mut guest = Guest::new(&ram, Disk::read_only(image(4096 * 16), ""));
    guest.ring.want_after(&ram, 4);
    write(&ram, HEADER, &[0; 16]).unwrap();
    for number in 0..4 {
        let data = (0x1_0000 + 4096 * number, 4096, true);
        guest
            .ring
            .offer(&ram, &[(HEADER, 16, false), data, (STATUS, 1, true)])
            .unwrap();
    }
    assert_eq!(guest.driver.kick(0), 1);
    assert_eq!(guest.driver.interrupts(), [0x40]);
}

#[test]
fn a_million_operations_on_a_disk_hurt_nobody() {
    let disk = Disk::read_only(image(64 * 4096), "x")
        .with_overlay(32 * 4096)
        .unwrap();
    hostile::torment(Block::new(disk), &[0], 1_000_000);
}

proptest! {
    #[test]
    fn a_disk_does_as_its_model(
        requests in proptest::collection::vec((0u32..4, 0u64..70, 1u64..20, any::<u8>()), 1..60),
        own in 0u64..9,
    ) {
        let ram = Ram::new(80);
        let base = image(8 * 4096 - 100);
        let disk = Disk::read_only(base.clone(), "").with_overlay(own * 4096).unwrap();
        let mut guest = Guest::new(&ram, disk);
        let mut model = base.0.clone();
        model.resize(8 * 4096, 0);
        // Blocks that have memory of their own.
        let mut written = BTreeMap::new();
        for (kind, sector, sectors, byte) in requests {
            let bytes = (sectors * 512) as u32;
            let (start, end) = (sector as usize * 512, (sector + sectors) as usize * 512);
            let fits = end <= model.len();
            match kind {
                0 => {
                    let (status, _, data) = guest.request(READ, sector, &[], bytes);
                    prop_assert_eq!(status, if fits { OK } else { IO_ERROR });
                    prop_assert!(!fits || data == model[start..end]);
                }
                1 => {
                    let status = guest.request(WRITE, sector, &vec![byte; bytes as usize], 0).0;
                    let mut expected = if fits { OK } else { IO_ERROR };
                    for at in (start..end).step_by(512).take_while(|_| fits) {
                        let is_new = !written.contains_key(&(at / 4096));
                        if is_new && written.len() as u64 == own {
                            expected = IO_ERROR;
                            break;
                        }
                        written.insert(at / 4096, ());
                        model[at..at + 512].fill(byte);
                    }
                    prop_assert_eq!(status, expected);
                }
                _ => {
                    let segment = [sector as u32, 0, sectors as u32, 0].map(u32::to_le_bytes).concat();
                    let status = guest.request(DISCARD, 0, &segment, 0).0;
                    prop_assert_eq!(status, if fits { OK } else { IO_ERROR });
                    if fits {
                        for block in start.div_ceil(4096)..end / 4096 {
                            written.remove(&block);
                            model[block * 4096..(block + 1) * 4096].fill(0);
                        }
                    }
                }
            }
        }
        prop_assert_eq!(guest.read(0, 8 * 4096), model);
        let disk = guest.driver.function.device().disk();
        prop_assert_eq!(disk.written().0, written.len() as u64 * 4096);
    }
}
