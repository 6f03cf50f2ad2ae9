//! Frames that others cut into segments: whole for a receiver that does it itself, cut for one that does not.

use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use proptest::prelude::*;

use super::super::{Driver, Ram, Ring, std};
use super::guest::{A, B, EVENTS, card, settings};
use super::sum;
use crate::access::{read, write};
use crate::net::{Count, Switch};
use crate::{Fault, Net};

/// Features: the driver leaves segmentation to others; it does it for them; it takes frames in several chains.
const LEAVES: u64 = 1 << 0 | 1 << 11 | 1 << 12;
const CHECKSUMS: u64 = 1 << 1;
const TAKES: u64 = CHECKSUMS | 1 << 7 | 1 << 8;
const SPREAD: u64 = 1 << 15;
/// Places: the frame to send, the buffers to receive.
const SENT: u64 = 0x1_0000;
const BUFFERS: u64 = 0x3_0000;
const PAGES: usize = 0x80;
/// Size of the receiver's queue.
const SIZE: u16 = 64;

/// Two guests, one that sends and one that receives.
struct Pair<'r> {
    sender: Driver<'r, Net>,
    transmit: Ring,
    receiver: Driver<'r, Net>,
    receive: Ring,
    /// The place of each buffer, by its head.
    places: Vec<u64>,
    end: u64,
}

impl<'r> Pair<'r> {
    /// Creates guests of which the second accepts these features.
    fn new(rams: &'r [Arc<Ram>; 2], features: u64) -> Self {
        let switch = Arc::new(Switch::default());
        let mut sender = Driver::new(card(&switch, settings(A), &rams[0], None), &rams[0]);
        sender.negotiate(LEAVES | EVENTS);
        let transmit = sender.set_up(1, 64, 0x4000);
        sender.ready();
        let mut receiver = Driver::new(card(&switch, settings(B), &rams[1], None), &rams[1]);
        receiver.negotiate(features | EVENTS);
        let receive = receiver.set_up(0, SIZE, 0);
        receiver.ready();
        Self {
            sender,
            transmit,
            receiver,
            receive,
            places: vec![0; SIZE.into()],
            end: BUFFERS,
        }
    }

    /// Offers a buffer of so many bytes.
    fn listen(&mut self, bytes: u64) {
        let buffer = [(self.end, bytes as u32, true)];
        let head = self.receive.offer(self.receiver.ram, &buffer).unwrap();
        self.places[usize::from(head)] = self.end;
        self.end += bytes;
    }

    /// Sends a frame in parts that end at these places.
    fn send(&mut self, header: &[u8; 12], frame: &[u8], ends: &[usize]) {
        let all = [header, frame].concat();
        write(self.sender.ram, SENT, &all).unwrap();
        let mut ends: Vec<_> = ends.iter().map(|end| *end % all.len()).collect();
        ends.push(all.len());
        ends.sort_unstable();
        let mut at = 0;
        let buffers = ends.iter().map(|end| {
            let start = std::mem::replace(&mut at, *end);
            (SENT + start as u64, (end - start) as u32, false)
        });
        let buffers: Vec<_> = buffers.collect();
        self.transmit.offer(self.sender.ram, &buffers).unwrap();
        self.sender.kick(1);
        assert_eq!(self.sender.function.fault(), None);
        assert!(
            self.transmit.take(self.sender.ram).is_some(),
            "the sender waits"
        );
    }

    /// Takes the next chains that were filled, as many as their first one says.
    fn take(&mut self) -> Option<([u8; 12], Vec<u8>)> {
        let first = self.take_chain()?;
        let header: [u8; 12] = first[..12].try_into().unwrap();
        let mut frame = first[12..].to_vec();
        for _ in 1..u16::from_le_bytes([header[10], header[11]]) {
            frame.extend(self.take_chain().expect("a chain that was announced"));
        }
        Some((header, frame))
    }

    fn take_chain(&mut self) -> Option<Vec<u8>> {
        let (head, bytes) = self.receive.take(self.receiver.ram)?;
        let mut all = vec![0; bytes as usize];
        read(self.receiver.ram, self.places[usize::from(head)], &mut all).unwrap();
        Some(all)
    }

    fn count(&self, of: &Driver<'_, Net>, count: Count) -> u64 {
        of.function.device().port().count(count)
    }
}

fn rams() -> [Arc<Ram>; 2] {
    [(); 2].map(|()| Arc::new(Ram::new(PAGES)))
}

/// A packet of TCP.
#[derive(Clone, Debug)]
struct Packet {
    is_v6: bool,
    is_tagged: bool,
    has_options: bool,
    /// FIN, PSH and CWR.
    flags: [bool; 3],
    sequence: u32,
    id: u16,
    data: Vec<u8>,
    size: u16,
}

impl Packet {
    fn plain(is_v6: bool, bytes: usize, size: u16) -> Self {
        Self {
            is_v6,
            is_tagged: false,
            has_options: false,
            flags: [true, true, false],
            sequence: u32::MAX - 2000,
            id: u16::MAX,
            data: (0..bytes).map(|at| (at % 251) as u8).collect(),
            size,
        }
    }

    fn headers(&self) -> usize {
        self.tcp() + 20 + if self.has_options { 12 } else { 0 }
    }

    fn tcp(&self) -> usize {
        14 + if self.is_tagged { 4 } else { 0 } + if self.is_v6 { 40 } else { 20 }
    }

    /// Returns the frame to send.
    fn frame(&self) -> Vec<u8> {
        let mac = |mac: u64| mac.to_be_bytes()[2..].try_into().unwrap();
        let builder = PacketBuilder::ethernet2(mac(A), mac(B));
        let ip = etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header {
                identification: self.id,
                dont_fragment: true,
                ..etherparse::Ipv4Header::new(
                    0,
                    64,
                    etherparse::IpNumber::TCP,
                    [10, 0, 0, 1],
                    [10, 0, 0, 2],
                )
                .unwrap()
            },
            etherparse::Ipv4Extensions::default(),
        );
        let ip = match self.is_v6 {
            false => ip,
            true => etherparse::IpHeaders::Ipv6(
                etherparse::Ipv6Header {
                    hop_limit: 64,
                    source: [0xFD; 16],
                    destination: [0xFE; 16],
                    ..etherparse::Ipv6Header::default()
                },
                etherparse::Ipv6Extensions::default(),
            ),
        };
        let mut tcp = etherparse::TcpHeader::new(1234, 80, self.sequence, 1000);
        [tcp.fin, tcp.psh, tcp.cwr] = self.flags;
        (tcp.ack, tcp.acknowledgment_number) = (true, 77);
        if self.has_options {
            tcp.set_options(&[TcpOptionElement::Timestamp(1, 2)])
                .unwrap();
        }
        let mut frame = Vec::new();
        if self.is_tagged {
            let tagged = builder.single_vlan(etherparse::VlanId::try_new(7).unwrap());
            tagged
                .ip(ip)
                .tcp_header(tcp)
                .write(&mut frame, &self.data)
                .unwrap();
        } else {
            builder
                .ip(ip)
                .tcp_header(tcp)
                .write(&mut frame, &self.data)
                .unwrap();
        }
        assert_eq!(frame.len(), self.headers() + self.data.len());
        frame
    }

    /// Returns the header before the frame. The length of the headers in it is wrong: nobody may trust it.
    fn header(&self) -> [u8; 12] {
        let [size, start] = [self.size, self.tcp() as u16].map(u16::to_le_bytes);
        let kind = if self.is_v6 { 4 } else { 1 };
        [
            1, kind, 0xFF, 0xFF, size[0], size[1], start[0], start[1], 16, 0, 9, 9,
        ]
    }

    /// Checks one segment, whose data begins at `at`. Returns the end of its data.
    fn check(&self, header: &[u8; 12], frame: &mut [u8], at: usize, number: u16) -> usize {
        let start = self.tcp();
        if header[0] == 1 {
            assert_eq!(header[6..10], [start as u8, 0, 16, 0]);
            let value = !sum(&frame[start..]);
            frame[start + 16..][..2].copy_from_slice(&value.to_be_bytes());
        }
        assert_eq!(header[1..6], [0; 5], "it is not to be cut");
        assert!(frame.len() <= 1514 + if self.is_tagged { 4 } else { 0 });
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
            panic!("not TCP")
        };
        let checksum = match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let ip = ip.header();
                assert_eq!(ip.identification(), self.id.wrapping_add(number));
                assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
                tcp.calc_checksum_ipv4(ip.source(), ip.destination())
                    .unwrap()
            }
            NetSlice::Ipv6(ip) => {
                let ip = ip.header();
                tcp.calc_checksum_ipv6(ip.source(), ip.destination())
                    .unwrap()
            }
            NetSlice::Arp(_) => panic!("not IP"),
        };
        assert_eq!(tcp.checksum(), checksum);
        assert_eq!(tcp.sequence_number(), self.sequence.wrapping_add(at as u32));
        let end = at + tcp.payload().len();
        assert_eq!(tcp.payload(), &self.data[at..end]);
        let [fin, psh, cwr] = self.flags;
        let is_last = end == self.data.len();
        assert_eq!((tcp.fin(), tcp.psh()), (fin && is_last, psh && is_last));
        assert_eq!((tcp.cwr(), tcp.ack()), (cwr && at == 0, true));
        end
    }
}

fn packet() -> impl Strategy<Value = Packet> {
    let kind = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<[bool; 3]>(),
    );
    let data = (1usize..40_000, 700u16..1400, any::<u32>(), any::<u16>());
    (kind, data).prop_map(|(kind, (bytes, size, sequence, id))| {
        let (is_v6, is_tagged, has_options, flags) = kind;
        Packet {
            is_tagged,
            has_options,
            flags,
            sequence,
            id,
            ..Packet::plain(is_v6, bytes, size)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_receiver_that_cuts_nothing_gets_segments(
        packet in packet(), completes: bool, ends in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let rams = rams();
        let mut pair = Pair::new(&rams, if completes { CHECKSUMS } else { 0 });
        (0..SIZE).for_each(|_| pair.listen(2048));
        pair.send(&packet.header(), &packet.frame(), &ends);
        let (mut at, mut number) = (0, 0);
        while let Some((header, mut frame)) = pair.take() {
            prop_assert_eq!(header[0] == 1, completes);
            at = packet.check(&header, &mut frame, at, number);
            number += 1;
        }
        prop_assert_eq!(at, packet.data.len());
        prop_assert_eq!(pair.count(&pair.receiver, Count::Received), number.into());
        prop_assert_eq!(pair.count(&pair.sender, Count::Sent), 1);
    }

    #[test]
    fn a_receiver_that_cuts_itself_gets_the_frame_whole(
        packet in packet(), buffer in 700u64..3000, ends in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let rams = rams();
        let mut pair = Pair::new(&rams, TAKES | SPREAD);
        (0..SIZE).for_each(|_| pair.listen(buffer));
        let sent = packet.frame();
        pair.send(&packet.header(), &sent, &ends);
        let (header, frame) = pair.take().unwrap();
        let chains = (sent.len() as u64 + 12).div_ceil(buffer);
        let mut expected = packet.header();
        expected[2..4].copy_from_slice(&(packet.headers() as u16).to_le_bytes());
        expected[10..].copy_from_slice(&(chains as u16).to_le_bytes());
        prop_assert_eq!(header, expected);
        prop_assert!(frame == sent, "the frame is another one");
        prop_assert!(pair.take().is_none());
    }

    #[test]
    fn any_frame_is_spread_over_small_buffers(
        bytes in 20usize..1500, buffer in 12u64..300, completes: bool,
    ) {
        let rams = rams();
        let mut pair = Pair::new(&rams, SPREAD | if completes { CHECKSUMS } else { 0 });
        (0..SIZE).for_each(|_| pair.listen(buffer));
        let mut sent = super::frame(B, A, &vec![7; bytes]);
        sent[30..32].fill(0);
        pair.send(&[1, 0, 0, 0, 0, 0, 14, 0, 16, 0, 0, 0], &sent, &[40]);
        let chains = (sent.len() as u64 + 12).div_ceil(buffer);
        let (header, frame) = match pair.take() {
            None if chains > SIZE.into() => return Ok(()),
            taken => taken.unwrap(),
        };
        prop_assert_eq!(u16::from_le_bytes([header[10], header[11]]), chains as u16);
        if !completes {
            prop_assert_eq!((header[0], sum(&frame[14..])), (0, 0xFFFF));
            sent[30..32].copy_from_slice(&frame[30..32]);
        }
        prop_assert_eq!(frame, sent);
    }
}

#[test]
fn the_largest_frame_arrives_whole_in_one_buffer_and_in_several() {
    for (features, buffers) in [
        (TAKES, [0x1_1000; 1].as_slice()),
        (TAKES | SPREAD, &[1536; 43]),
    ] {
        for is_v6 in [false, true] {
            let rams = rams();
            let mut pair = Pair::new(&rams, features);
            buffers.iter().for_each(|bytes| pair.listen(*bytes));
            let packet = Packet::plain(is_v6, 0xFFFF - if is_v6 { 60 } else { 40 }, 1400);
            let sent = packet.frame();
            pair.send(&packet.header(), &sent, &[]);
            let (_, frame) = pair.take().expect("the frame");
            assert!(frame == sent, "the frame is another one");
        }
    }
}

#[test]
fn headers_that_lie_reach_nobody() {
    let good = Packet::plain(false, 5000, 1400);
    let frame = good.frame();
    type Lie = fn(&mut [u8; 12], &mut Vec<u8>);
    let lies: [(&str, Lie); 20] = [
        ("to all", |_, frame| frame[..6].fill(0xFF)),
        ("no checksum", |header, _| header[0] = 0),
        ("IPv6", |header, _| header[1] = 4),
        ("UDP", |header, _| header[1] = 3),
        ("UDP's segments", |header, _| header[1] = 5),
        ("congestion is told", |header, _| header[1] = 0x81),
        ("empty segments", |header, _| header[4..6].fill(0)),
        ("too many segments", |header, _| {
            header[4..6].copy_from_slice(&[19, 0])
        }),
        ("segments too large", |header, _| {
            header[4..6].copy_from_slice(&1461u16.to_le_bytes())
        }),
        ("another checksum", |header, _| header[6] += 2),
        ("another place of it", |header, _| header[8] = 6),
        ("another protocol", |_, frame| frame[23] = 17),
        ("another version", |_, frame| frame[14] = 0x65),
        ("a short IP header", |_, frame| frame[14] = 0x44),
        ("a fragment", |_, frame| frame[20] = 0x20),
        ("a longer packet", |_, frame| frame[17] += 1),
        ("a short TCP header", |_, frame| frame[46] = 0x40),
        ("headers alone", |_, frame| frame.truncate(54)),
        ("no TCP header", |_, frame| frame.truncate(40)),
        ("another type", |_, frame| frame[12] = 9),
    ];
    let rams = rams();
    let mut pair = Pair::new(&rams, TAKES | SPREAD);
    (0..SIZE).for_each(|_| pair.listen(2048));
    for (number, (lie, tell)) in (1..).zip(lies) {
        let (mut header, mut frame) = (good.header(), frame.clone());
        tell(&mut header, &mut frame);
        pair.send(&header, &frame, &[]);
        assert_eq!(pair.take(), None, "{lie}");
        assert_eq!(pair.count(&pair.sender, Count::Malformed), number, "{lie}");
    }
    let v6 = Packet::plain(true, 5000, 1400);
    for (at, value) in [(20, 44), (20, 17), (20, 60), (18, 1), (14, 0x45)] {
        let mut frame = v6.frame();
        frame[at] = value;
        pair.send(&v6.header(), &frame, &[]);
        assert_eq!(pair.take(), None, "{at} {value}");
    }
    pair.send(&good.header(), &frame, &[]);
    assert_eq!(pair.take().unwrap().1, frame);
    // Not negotiated.
    pair.sender.negotiate(1 << 0 | EVENTS);
    pair.transmit = pair.sender.set_up(1, 64, 0x4000);
    pair.sender.ready();
    pair.send(&good.header(), &frame, &[]);
    assert_eq!(pair.take(), None);
}

#[test]
fn extensions_of_ipv6_are_skipped() {
    let packet = Packet::plain(true, 5000, 1300);
    let mut frame = packet.frame();
    // Hop-by-hop options of 8 bytes, then options for the destination of 16.
    frame[20] = 0;
    let extensions = [[60, 0, 1, 4, 0, 0, 0, 0], [6, 1, 1, 12, 0, 0, 0, 0], [0; 8]];
    frame.splice(54..54, extensions.concat());
    let length = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    let mut header = packet.header();
    header[6] += 24;
    let rams = rams();
    let mut pair = Pair::new(&rams, 0);
    (0..SIZE).for_each(|_| pair.listen(2048));
    pair.send(&header, &frame, &[]);
    let taken: Vec<_> = std::iter::from_fn(|| pair.take()).collect();
    assert_eq!(taken.len(), 4);
    for (_, frame) in taken {
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Tcp(tcp))) =
            (packet.net, packet.transport)
        else {
            panic!("no TCP over IPv6")
        };
        let ip = ip.header();
        assert_eq!(
            Ok(tcp.checksum()),
            tcp.calc_checksum_ipv6(ip.source(), ip.destination())
        );
    }
}

#[test]
fn a_receiver_without_enough_buffers_gets_the_first_segments_or_nothing() {
    let packet = Packet::plain(false, 8000, 1000);
    let rams = rams();
    let mut pair = Pair::new(&rams, 0);
    (0..3).for_each(|_| pair.listen(2048));
    pair.send(&packet.header(), &packet.frame(), &[]);
    let mut at = 0;
    for number in 0..3 {
        let (header, mut frame) = pair.take().unwrap();
        at = packet.check(&header, &mut frame, at, number);
    }
    assert_eq!((at, pair.take()), (3000, None));
    let counts = [Count::Received, Count::Full].map(|count| pair.count(&pair.receiver, count));
    assert_eq!(counts, [3, 1]);

    let rams = self::rams();
    let mut pair = Pair::new(&rams, TAKES | SPREAD);
    (0..3).for_each(|_| pair.listen(2048));
    pair.send(&packet.header(), &packet.frame(), &[]);
    assert_eq!(pair.take(), None);
    // The buffers are there still.
    (0..2).for_each(|_| pair.listen(2048));
    pair.send(&packet.header(), &packet.frame(), &[]);
    assert_eq!(pair.take().unwrap().1, packet.frame());
}

#[test]
fn a_buffer_that_is_not_shared_stops_the_receiver_alone() {
    let packet = Packet::plain(false, 8000, 1000);
    for features in [0, TAKES | SPREAD] {
        let rams = rams();
        let mut pair = Pair::new(&rams, features);
        pair.listen(2048);
        pair.end = 1 << 40;
        (0..7).for_each(|_| pair.listen(2048));
        pair.send(&packet.header(), &packet.frame(), &[]);
        pair.receiver.serve();
        let fault = pair.receiver.function.fault();
        assert_eq!(fault, Some(Fault::NotShared(1 << 40)), "{features:#x}");
    }
}

#[test]
fn a_receiver_s_splinters_are_not_filled_for_ever() {
    // Each chain is the same 64 descriptors of a byte, as often as the queue has places.
    let rams = rams();
    let mut pair = Pair::new(&rams, TAKES | SPREAD);
    let splinters: Vec<_> = (0..64).map(|at| (BUFFERS + at, 1, true)).collect();
    let head = pair.receive.offer(&rams[1], &splinters).unwrap();
    let ring = pair.receive.place.available;
    for slot in 0..u64::from(SIZE) {
        crate::access::set_field(&*rams[1], ring + 4 + 2 * slot, 2, head.into()).unwrap();
    }
    crate::access::set_field(&*rams[1], ring + 2, 2, SIZE.into()).unwrap();
    // One access to read each of 1,024 descriptors, one to fill it, and a few.
    rams[1].convert_after(2200, 0);
    let packet = Packet::plain(false, 20_000, 1000);
    pair.send(&packet.header(), &packet.frame(), &[]);
    pair.receiver.serve();
    assert_eq!(pair.receiver.function.fault(), None);
    assert_eq!(pair.count(&pair.receiver, Count::Full), 1);
}
