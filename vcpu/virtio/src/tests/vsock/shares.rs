//! The share of a guest's connections that each other guest can take, and hold.

use super::*;

/// A third guest.
const C: u64 = 5;

/// Creates a guest that connects with both others and with the host.
fn guest<'r>(hub: &Arc<Hub>, cid: u64, ram: &'r Arc<Ram>) -> Guest<'r> {
    let others = [A, B, C].into_iter().filter(|other| *other != cid);
    let settings = Settings {
        cid,
        peers: others.collect(),
        ports: vec![ECHO],
    };
    Guest::new(hub, settings, ram)
}

fn memories() -> [Arc<Ram>; 3] {
    [(); 3].map(|()| Arc::new(Ram::new(64)))
}

/// Lets a guest ask for connections from ports on, until one is refused. Returns the number that were not.
fn ask(guest: &mut Guest<'_>, ports: std::ops::Range<u32>, to: Address) -> usize {
    let mut count = 0;
    for port in ports {
        // A buffer for the refusal, unless there is one still.
        if guest.receive.has_room(16) {
            guest.listen(1, BUFFER);
        }
        guest.send(Op::Request, port, to, &[]);
        match guest.take() {
            Some((header, _)) => assert_eq!(header.op, Some(Op::Rst)),
            None => count += 1,
        }
    }
    count
}

#[test]
fn no_guest_takes_the_connections_that_others_may_ask_for() {
    let (rams, (hub, _)) = (memories(), hub());
    let mut asked = guest(&hub, B, &rams[1]);
    let mut greedy = guest(&hub, A, &rams[0]);
    let mut other = guest(&hub, C, &rams[2]);
    let to = asked.at(5);
    assert_eq!(ask(&mut greedy, 0..20, to), 4);
    // Those that wait count, and so do those that the asked one has not accepted.
    assert_eq!(ask(&mut other, 0..20, to), 4);
    asked.look();
    assert_eq!(asked.driver.function.device().connections(), 8);
    (0..4).for_each(|port| other.send(Op::Rst, port, to, &[]));
    asked.listen(16, BUFFER);
    while asked.take().is_some() {}
    assert_eq!(asked.driver.function.device().connections(), 4);
    ask(&mut greedy, 20..40, to);
    asked.look();
    assert_eq!(asked.driver.function.device().connections(), 4);
    assert_eq!(ask(&mut other, 20..40, to), 4);
    asked.look();
    assert_eq!(asked.driver.function.device().connections(), 8);
}

#[test]
fn no_guest_holds_the_links_that_another_has_for_the_rest() {
    let (rams, (hub, _)) = (memories(), hub());
    let mut victim = guest(&hub, A, &rams[0]);
    // They have no buffers, and one of them is not even served.
    let mut silent = guest(&hub, B, &rams[1]);
    let paused = guest(&hub, C, &rams[2]);
    for round in 0..10 {
        for to in [silent.at(5), paused.at(5)] {
            let ports = 100 * round..100 * round + 20;
            ask(&mut victim, ports.clone(), to);
            // It gives up, and tries again.
            ports.for_each(|port| victim.send(Op::Rst, port, to, &[]));
            silent.look();
            assert!(victim.take().is_none());
        }
        assert_eq!(victim.driver.function.device().connections(), 0);
    }
    for port in 0..4 {
        if victim.receive.has_room(16) {
            victim.listen(1, BUFFER);
        }
        victim.connect(9000 + port, echo());
    }
}

#[test]
fn the_other_side_is_told_of_a_reset() {
    let (rams, (hub, _)) = (rams(), hub());
    let mut asking = Guest::new(&hub, settings(A), &rams[0]);
    let mut asked = Guest::new(&hub, settings(B), &rams[1]);
    let to = asked.at(5);
    assert_eq!(ask(&mut asking, 1000..1001, to), 1);
    asked.look();
    rams[0].rung.store(0, SeqCst);
    // The driver does nothing but reset the device.
    let effect = asked.driver.write(0x14, 1, 0);
    assert_eq!(effect, devices::Effect::Work);
    asked.driver.serve();
    assert_eq!(rams[0].rung.load(SeqCst), 1);
    asking.listen(1, BUFFER);
    asking.look();
    asking.expect(Op::Rst);
}
