//! A guest that says what it likes.

use super::*;
use crate::tests::hostile;

#[test]
fn a_million_operations_on_sockets_hurt_nobody() {
    let ram = Arc::new(Ram::new(1));
    let (hub, _) = hub();
    let device = device(&hub, settings(A), &ram);
    hostile::torment(device, &[0, 0x4000], 1_000_000);
}

/// Returns a packet of a hostile guest: whole, but for what it says.
fn hostile_packet(random: &mut fastrand::Rng) -> Header {
    let cids = [A, A, A, A, A, A, B, HOST, 0, u64::MAX];
    let from = Address {
        cid: random.choice(cids).unwrap(),
        port: random.u32(..6),
    };
    let to = Address {
        cid: random.choice([HOST, HOST, B, B, B, A, 99]).unwrap(),
        port: random.choice([ECHO, ECHO, 5, 5, u32::MAX]).unwrap(),
    };
    let op = random
        .choice([0, 1, 1, 2, 3, 4, 5, 5, 5, 5, 6, 7, 99])
        .unwrap();
    let any = random.u32(..);
    Header {
        bytes: 0,
        kind: random.choice([1, 1, 1, 1, 1, 1, 1, 1, 2, 77]).unwrap(),
        op: Op::try_from(op).ok(),
        flags: random.u32(..5),
        room: random.choice([any, 0, 100, 1 << 20]).unwrap(),
        taken: random.choice([any, 0, 0, 50]).unwrap(),
        ..packet(Op::Rw, from, to)
    }
}

#[test]
fn lies_of_a_guest_stay_its_own_trouble() {
    let seed = fastrand::u64(..);
    std::eprintln!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (rams, (hub, echoes)) = (rams(), hub());
    let mut good = Guest::new(&hub, settings(B), &rams[1]);
    good.listen(14, BUFFER);
    good.connect(1, echo());
    let mut bad = Guest::new(&hub, settings(A), &rams[0]);
    let bytes = vec![7; CAPACITY];
    for number in 0..100_000u32 {
        let header = hostile_packet(&mut random);
        let bytes = &bytes[..random.usize(..bytes.len()) >> random.u32(..13)];
        let header = Header {
            bytes: bytes.len() as u32,
            ..header
        };
        while bad.transmit.take(&rams[0]).is_some() {}
        while bad.take().is_some() {}
        if random.u32(..4) > 0 && bad.transmit.has_room(2) {
            bad.send_raw(header, bytes);
        }
        while bad.receive.has_room(1) && random.bool() {
            let bytes = random.u32(45..BUFFER);
            bad.listen(1, bytes);
        }
        assert!(bad.driver.function.device().connections() <= 16);
        assert!(echoes.ends.lock().unwrap().len() <= 4);
        // The other one answers what it is asked, and is served.
        good.look();
        while let Some((header, payload)) = good.take() {
            good.listen(1, BUFFER);
            if header.from == echo() {
                assert_eq!(payload, b"still");
                good.taken += 5;
            } else if header.op == Some(Op::Request) && random.bool() {
                good.send_raw(packet(Op::Response, header.to, header.from), &[]);
                good.transmit.take(&rams[1]);
            }
        }
        if number % 8 == 0 {
            good.send(Op::Rw, 1, echo(), b"still");
        }
    }
    assert_eq!(good.driver.function.fault(), None);
    bad.driver.write(0x14, 1, 0);
    assert_eq!(bad.driver.function.device().connections(), 0);
}
