//! Tests of the console's commands on TDs: the operator's view, and the errors.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use host::td::Td;
use host::td::host::{GuestEnd, Runner};
use host::td::life::State;
use host::td::registry::Tds;
use seam::abi::{Leaf, Operand, Status};
use serde_json::Value;
use vcpu::Wiring;

use super::kit::{FULL, ONE, Server, Wired};
use super::operator::Operator;
use super::rig::{Rig, Setup};

#[test]
fn a_td_s_whole_life_by_commands() {
    let server = Server::new("");
    let tds = server.tds(&format!("{FULL}{ONE}"));
    let mut operator = Operator::new(&tds);
    let before = operator.succeed("td show full");
    assert_eq!(
        (&before["state"], &before["mrtd"]),
        (&"created".into(), &Value::Null)
    );

    let built = operator.succeed("td create full");
    assert_eq!(built["state"], "paused");
    let shown = operator.succeed("td show 1");
    assert_eq!(shown["mrtd"], built["mrtd"]);
    assert_eq!(shown["mrtd"].as_str().unwrap().len(), 96);
    assert_eq!(shown["hkid"], 33);
    assert_eq!(shown["pages"]["private_2m"], 7);
    assert_eq!(shown["private_bytes"], (7 << 21) + (514 << 12));
    assert_eq!(shown["built"]["phases"][0]["name"], "key");
    assert_eq!(shown["cpus"][1]["cpu"], 1);
    assert_eq!(shown["cpus"][1]["running"], false);

    let hkids = operator.succeed("hkids");
    assert_eq!(hkids["taken"][0]["holder"], "module");
    assert_eq!(
        (&hkids["taken"][1]["hkid"], &hkids["taken"][1]["td"]),
        (&33.into(), &"full".into())
    );

    for (line, state) in [
        ("td start full", "runnable"),
        ("td pause full", "paused"),
        ("td resume full", "runnable"),
    ] {
        assert_eq!(operator.succeed(line)["state"], state);
        assert_eq!(operator.succeed("td list")["tds"][0]["state"], state);
    }
    let shrunk = operator.succeed("td shrink full 12M");
    assert_eq!(shrunk["memory_bytes"], 12 << 20);
    assert_eq!(shrunk["taken"]["private_2m"], 2);

    let reset = operator.succeed("td reset full");
    assert_eq!(reset["state"], "runnable");
    assert_eq!(operator.succeed("td show full")["memory_bytes"], 16 << 20);

    let ended = operator.succeed("td terminate full");
    assert_eq!(
        (&ended["state"], &ended["already"]),
        (&"teardown".into(), &false.into())
    );
    assert_eq!(ended["pages"]["private_2m"], 7);
    let reclaim = operator.succeed("reclaim");
    assert_eq!(reclaim["tds"][0]["name"], "full");
    assert_eq!(operator.succeed("hkids")["used"], 1);
    while tds.work() {}
    assert_eq!(operator.succeed("td show full")["state"], "reclaimed");
    assert_eq!(operator.succeed("td destroy full")["already"], true);
    assert_eq!(operator.succeed("reclaim")["tds"], Value::Array(Vec::new()));
    let stats = operator.succeed("stats");
    assert_eq!(stats["total"]["illegal"], 0);
    assert_eq!(
        (&stats["lost_pages"], &stats["faults"]),
        (&0.into(), &0.into())
    );
    server.assert_spotless();
}

#[test]
fn both_ways_to_destroy_report_the_pages_and_calls() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    let mut operator = Operator::new(&tds);
    for (line, leaf) in [
        ("td destroy full", Leaf::PhymemPageReclaim),
        ("td destroy --dynamic full", Leaf::MemPageRemove),
    ] {
        operator.succeed("td start full");
        let ended = operator.succeed(line);
        assert_eq!(ended["state"], "reclaimed");
        assert_eq!(
            (&ended["pages"]["private_2m"], &ended["pages"]["private_4k"]),
            (&7.into(), &514.into())
        );
        assert_eq!(ended["bytes"], (7 << 21) + (514 << 12));
        let calls: BTreeMap<_, _> = ended["work"]["leafs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                (
                    row["leaf"].as_str().unwrap(),
                    row["calls"].as_u64().unwrap(),
                )
            })
            .collect();
        assert!(calls[leaf.name()] >= 521, "{calls:?}");
        assert_eq!(calls[Leaf::MngKeyFreeid.name()], 1);
    }
    server.assert_spotless();
}

#[test]
fn elapsed_time_and_cpu_time_are_distinguished() {
    // The host and its TDs live as long as CPUs may work for them.
    let server: &'static Server = Box::leak(Box::new(Server::new("")));
    let tds: &'static _ = Box::leak(Box::new(server.tds(&FULL.replace("16M", "128M"))));
    let mut operator = Operator::new(tds);
    operator.succeed("td start full");
    let start = Instant::now();
    operator.succeed("td terminate full");
    let others = [1, 2, 3].map(|cpu| {
        server.rig.start(cpu, move || {
            while tds.state(1) != State::Reclaimed {
                tds.work();
                server.rig.serve();
            }
        })
    });
    while tds.state(1) != State::Reclaimed {
        tds.work();
        server.rig.serve();
    }
    others.into_iter().for_each(|job| job.wait(&server.rig));
    let passed = start.elapsed().as_micros() as u64;
    let ended = &operator.succeed("td show full")["ended"];
    let number = |value: &Value| value.as_u64().unwrap();
    let (us, cpu_us) = (number(&ended["us"]), number(&ended["cpu_us"]));
    assert!(us <= passed, "{us} us of {passed}: {ended}");
    let phases = ended["phases"].as_array().unwrap();
    let sum: u64 = phases.iter().map(|phase| number(&phase["cpu_us"])).sum();
    assert_eq!(cpu_us, sum);
    let [.., reclaim, clear] = &phases[..] else {
        panic!("{ended}");
    };
    assert_eq!(
        (&reclaim["name"], &clear["name"]),
        (&"reclaim".into(), &"clear".into())
    );
    assert_eq!(clear["us"], Value::Null, "it runs within the other");
    let busy = number(&reclaim["cpu_us"]) + number(&clear["cpu_us"]);
    assert!(
        busy <= 4 * number(&reclaim["us"]),
        "four CPUs at most: {ended}"
    );
    server.assert_spotless();
}

/// A runner of a host whose other CPUs reclaim a TD's memory and start the TD again as soon as its HKID is released.
#[derive(Default)]
struct Hasty {
    tds: OnceLock<&'static Tds<'static, Rig>>,
}

impl Runner for Hasty {
    fn prepare(&self, _: &Td) -> Result<(), String> {
        Ok(())
    }

    fn wiring(&self, td: &Td, index: u16) -> Option<Wiring> {
        Wired.wiring(td, index)
    }

    fn start(&self, _: &Arc<Td>) {}

    fn end(&self, _: &Td) {}

    fn shrunk(&self, _: &Td) -> bool {
        true
    }

    fn guest_end(&self, _: &Td) -> Option<GuestEnd> {
        None
    }

    fn work_waits(&self) {
        let tds = self.tds.get().unwrap();
        while tds.work() {}
        tds.create(1).unwrap();
    }
}

#[test]
fn a_new_life_in_between_leaves_the_answer_about_the_old_one() {
    let server: &'static Server = Box::leak(Box::new(Server::new("")));
    let runner: &'static Hasty = Box::leak(Box::default());
    let tds: &'static _ = Box::leak(Box::new(server.tds_on(&server.rig, FULL, runner)));
    assert!(runner.tds.set(tds).is_ok());
    let mut operator = Operator::new(tds);
    for (line, last) in [
        ("td terminate full", "free"),
        ("td destroy full", "clear"),
        ("td destroy --dynamic full", "clear"),
    ] {
        tds.start(1).unwrap();
        let ended = operator.succeed(line);
        assert_eq!(
            (&ended["state"], &ended["already"]),
            (&"paused".into(), &false.into()),
            "the new life"
        );
        assert_eq!(ended["pages"]["private_2m"], 7, "{line}: {ended}");
        let phases = ended["work"]["phases"].as_array().unwrap();
        assert_eq!(phases.last().unwrap()["name"], last, "{line}: {ended}");
    }
    assert_eq!(operator.succeed("td show full")["ended"], Value::Null);
}

#[test]
fn a_td_beyond_the_hkids_is_refused_until_another_has_ended() {
    let server = Server::of(&Setup {
        hkids: 3,
        ..Setup::default()
    });
    let tds = server.tds(
        &["a", "b", "c"]
            .map(|name| ONE.replace("one", name))
            .concat(),
    );
    let mut operator = Operator::new(&tds);
    operator.succeed("td start a");
    operator.succeed("td start b");
    assert_eq!(
        operator.fail("td start c"),
        "TD c: no HKID is left for another TD: of 3, 3 are in use (one by the TDX module itself); terminate a TD, or \
         give TDX more KeyIDs in the firmware's setup (TDX key split)"
    );
    assert_eq!(tds.state(3), State::Created);
    // The TD's memory may still be in reclaim; only the HKID matters.
    operator.succeed("td terminate a");
    operator.succeed("td start c");
    for name in ["a", "b", "c"] {
        operator.succeed(&format!("td destroy {name}"));
    }
    server.assert_spotless();
}

#[test]
fn an_error_about_a_td_s_state_says_what_to_do() {
    let server = Server::new("");
    let tds = server.tds(ONE);
    let mut operator = Operator::new(&tds);
    for (line, said) in [
        (
            "td pause one",
            "TD one is created, so it is not built; \"td start one\" builds it",
        ),
        ("td retry one", "TD one is created, and nothing is stuck"),
        (
            "td console one",
            "TD one has no console yet; \"td start one\" starts it",
        ),
        (
            "td shrink one 8M",
            "TD one is created, so it is not built; \"td start one\" builds it",
        ),
    ] {
        assert_eq!(operator.fail(line), said);
    }
    assert_eq!(operator.succeed("td destroy one")["already"], true);
    operator.succeed("td create one");
    for (line, said) in [
        (
            "td create one",
            "TD one is paused, so it is built; \"td start one\" starts it",
        ),
        (
            "td pause one",
            "TD one is paused already; \"td resume one\" resumes it",
        ),
        (
            "td shrink one 1T",
            "TD one: its memory can only shrink: choose 12 to 16 MiB",
        ),
        (
            "td retry one",
            "TD one is paused, and is not terminating; \"td destroy one\" terminates it",
        ),
    ] {
        assert_eq!(operator.fail(line), said);
    }
    operator.succeed("td start one");
    for (line, said) in [
        (
            "td create one",
            "TD one is runnable already; \"td reset one\" builds it again",
        ),
        ("td start one", "TD one is runnable, so it is running"),
        ("td resume one", "TD one is runnable, so it is running"),
    ] {
        assert_eq!(operator.fail(line), said);
    }
    operator.succeed("td terminate one");
    assert_eq!(
        operator.fail("td create one"),
        "TD one is in teardown; wait until its memory is reclaimed (\"reclaim\" shows the progress)"
    );
    operator.succeed("td destroy one");
    server.assert_spotless();
}

#[test]
fn a_stuck_termination_is_reported_and_td_retry_resumes_it() {
    let server = Server::new("");
    let tds = server.tds(ONE);
    let mut operator = Operator::new(&tds);
    operator.succeed("td start one");
    let busy = Status::OPERAND_BUSY.with(Operand::KOT);
    server.rig.refuse(Leaf::MngKeyFreeid, 1..=u64::MAX, busy);
    let said = operator.fail("td destroy one");
    assert!(
        said.starts_with("TD one: ") && said.contains("\"td retry\""),
        "{said}"
    );
    let shown = operator.succeed("td show one");
    assert_eq!(shown["state"], "terminating");
    assert!(shown["problem"].as_str().unwrap().contains("quarantine"));
    let hkids = operator.succeed("hkids");
    assert_eq!(hkids["taken"][1]["holder"], "quarantine");
    assert_eq!(hkids["taken"][1]["td"], "one");
    server.rig.refuse_no_more();
    let ended = operator.succeed("td retry one");
    assert_eq!(
        (&ended["state"], &ended["already"]),
        (&"reclaimed".into(), &false.into())
    );
    assert_eq!(
        operator.succeed("td list")["tds"][0]["problem"],
        Value::Null
    );
    server.assert_nothing_lost();
}

#[test]
fn text_replies_contain_tables() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    let mut operator = Operator::new(&tds);
    operator.succeed("td start full");
    let shown = operator.read("td show full");
    for line in [
        "state   runnable\n",
        "pages   7 of 2 MiB, 514 of 4 KiB, ",
        "VCPU  CPU",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
    let ended = operator.read("td destroy full");
    for line in ["write-back of package 1", "TDH.PHYMEM.PAGE.RECLAIM"] {
        assert!(ended.contains(line), "{ended}");
    }
    server.assert_spotless();
}
