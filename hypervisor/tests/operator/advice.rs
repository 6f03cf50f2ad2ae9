//! Tests that the operator can follow each advice and that it does what it says, in each state of a TD, after each
//! command.

use host::sched::{Scheduler, ends};
use host::td::end::Way;
use host::td::registry::Tds;
use seam::abi::{Leaf, Operand, Status};

use super::kit::{Server, config, no_hypercall};
use super::operator::Operator;
use super::rig::Rig;
use super::script::{Act, Script, call};

const TD: &str = "[[td]]\nname = \"one\"\nmemory = \"16M\"\nvcpus = 1\n";
const BUSY: Status = Status::OPERAND_BUSY.with(Operand::RCX);

/// A TD's state, or an event in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    Created,
    Paused,
    Runnable,
    /// The TD's kernel has panicked, and the panic has not been handled yet.
    Panicking,
    Panicked,
    /// The same, after the operator paused the TD.
    PausedAndPanicked,
    /// Freeing the TD's key fails.
    KeyStuck,
    Teardown,
    /// Reclaiming the TD's memory fails.
    MemoryStuck,
    Reclaimed,
    /// Building the TD failed.
    NotBuilt,
}

pub const CASES: [Case; 11] = [
    Case::Created,
    Case::Paused,
    Case::Runnable,
    Case::Panicking,
    Case::Panicked,
    Case::PausedAndPanicked,
    Case::KeyStuck,
    Case::Teardown,
    Case::MemoryStuck,
    Case::Reclaimed,
    Case::NotBuilt,
];

const COMMANDS: [&str; 10] = [
    "td create one",
    "td start one",
    "td pause one",
    "td resume one",
    "td terminate one",
    "td destroy one",
    "td destroy --dynamic one",
    "td retry one",
    "td reset one",
    "td shrink one 12M",
];

/// A host with one TD, and its scheduler.
pub struct Site<'h> {
    server: &'h Server,
    scheduler: &'h Scheduler<'h, Rig>,
    tds: Tds<'h, Rig>,
}

/// Calls `look` with a TD in the given state.
pub fn with(case: Case, look: impl FnOnce(&Site<'_>, &mut Operator<'_, '_, Rig>)) {
    let server = Server::new("");
    let scheduler = Scheduler::new(&server.rig, &config(TD).host, no_hypercall);
    let site = Site {
        server: &server,
        scheduler: &scheduler,
        tds: server.tds_on(&server.rig, TD, &scheduler),
    };
    let mut operator = Operator::with(&site.tds, site.scheduler);
    site.bring_to(case);
    look(&site, &mut operator);
    if site.tds.destroy(1, Way::Terminate).is_err() {
        site.tds.retry(1).unwrap();
    }
    server.assert_nothing_lost();
}

impl Site<'_> {
    fn bring_to(&self, case: Case) {
        let tds = &self.tds;
        let rig = &self.server.rig;
        match case {
            Case::Created => {}
            Case::Paused => drop(tds.create(1).unwrap()),
            Case::Runnable => tds.start(1).unwrap(),
            Case::Panicking => self.panic(),
            Case::Panicked => {
                self.panic();
                assert!(ends::serve(self.scheduler, tds));
            }
            Case::PausedAndPanicked => {
                self.panic();
                tds.keep_ended(1, String::new()).unwrap();
                assert!(ends::serve(self.scheduler, tds));
            }
            Case::KeyStuck => {
                tds.start(1).unwrap();
                rig.refuse(Leaf::MngKeyFreeid, 1..=u64::MAX, BUSY);
                assert!(tds.destroy(1, Way::Terminate).is_err());
                rig.refuse_no_more();
            }
            Case::Teardown => {
                tds.start(1).unwrap();
                tds.terminate(1).unwrap();
            }
            Case::MemoryStuck => {
                tds.start(1).unwrap();
                rig.refuse(Leaf::PhymemPageReclaim, 1..=u64::MAX, BUSY);
                assert!(tds.destroy(1, Way::Terminate).is_err());
                rig.refuse_no_more();
            }
            Case::Reclaimed => {
                tds.start(1).unwrap();
                tds.destroy(1, Way::Terminate).unwrap();
            }
            Case::NotBuilt => {
                rig.refuse(Leaf::MngInit, 1..=1, Status::OPERAND_INVALID);
                assert!(tds.create(1).is_err());
                rig.refuse_no_more();
            }
        }
    }

    /// Makes the guest's kernel write to the pvpanic device.
    fn panic(&self) {
        const IO: u64 = 0x1E;
        self.tds.start(1).unwrap();
        let acts = [Act::Call(call(IO, [1, 1, 0x505, 1]))];
        let script = Script::new(acts);
        self.server.rig.set_guest(0, Some(script.player()));
        assert!(self.scheduler.schedule());
        self.server.rig.set_guest(0, None);
    }

    pub fn state(&self) -> String {
        self.tds.state(1).to_string()
    }
}

/// Extracts the commands from a text, each with its promised effect.
fn advices(text: &str) -> Vec<(String, String)> {
    let mut parts = text.split('"');
    parts.next();
    let mut all = Vec::new();
    while let (Some(quoted), Some(after)) = (parts.next(), parts.next()) {
        if quoted.starts_with("td ") || quoted == "reclaim" {
            let says = after.split([',', ';', '.', '\n', ')', '(']).next();
            let says = says.unwrap_or_default().trim().to_owned();
            let about_it = quoted == "reclaim" || quoted.contains("one");
            let command = if about_it {
                quoted.to_owned()
            } else {
                format!("{quoted} one")
            };
            all.push((command, says));
        }
    }
    all
}

/// Runs the advised command and checks its promised effect.
fn follow(site: &Site<'_>, operator: &mut Operator<'_, '_, Rig>, command: &str, says: &str) {
    let answer = operator.ask(command);
    assert_eq!(answer["ok"], true, "{command:?}, which {says:?}: {answer}");
    let state = site.state();
    let expected: &[&str] = match says {
        "starts it" | "resumes it" | "builds it" | "restarts it" | "builds it again" => {
            &["runnable"]
        }
        "terminates it" => &["teardown", "reclaimed"],
        "resumes the termination" => &["reclaimed"],
        "shows the progress" | "shows any problem" => return,
        other => panic!("{command:?} is said to do {other:?}, of which this test knows nothing"),
    };
    assert!(expected.contains(&&*state), "{command:?} {says:?}: {state}");
}

#[test]
fn each_advice_can_be_followed_and_does_what_it_says() {
    let mut followed = 0;
    for case in CASES {
        for command in COMMANDS {
            let mut text = String::new();
            with(case, |_, operator| text = operator.read(command));
            for (advised, says) in advices(&text) {
                with(case, |site, operator| {
                    operator.ask(command);
                    eprintln!("{case:?}: {command}: {text:?}");
                    follow(site, operator, &advised, &says);
                });
                followed += 1;
            }
        }
    }
    assert!(followed > 40, "{followed}");
}

#[test]
fn each_problem_s_advice_can_be_followed_and_does_what_it_says() {
    for case in CASES {
        let mut problem = String::new();
        with(case, |_, operator| {
            let shown = operator.succeed("td show one");
            problem = shown["problem"].as_str().unwrap_or_default().to_owned();
        });
        let advised = advices(&problem);
        let needs = matches!(case, Case::Panicked | Case::KeyStuck | Case::MemoryStuck);
        assert!(!needs || !advised.is_empty(), "{case:?}: {problem}");
        for (command, says) in advised {
            with(case, |site, operator| {
                follow(site, operator, &command, &says);
            });
        }
    }
}

#[test]
fn a_panicked_td_is_reported_with_advice() {
    let why = "TD one: its kernel has panicked, so it can't continue; \"td reset one\" restarts it, \"td terminate \
               one\" terminates it";
    for case in [Case::Panicking, Case::Panicked, Case::PausedAndPanicked] {
        for command in ["create", "start", "resume", "pause"] {
            with(case, |_, operator| {
                assert_eq!(operator.fail(&format!("td {command} one")), why);
            });
        }
        with(case, |site, operator| {
            let reset = operator.succeed("td reset one");
            assert_eq!(reset["state"], "runnable", "{case:?}: it ran before");
            assert_eq!(
                operator.succeed("td show one")["problem"],
                serde_json::Value::Null
            );
            assert!(
                !ends::serve(site.scheduler, &site.tds),
                "it is not stopped again"
            );
            assert_eq!(site.state(), "runnable");
        });
    }
}

#[test]
fn a_second_request_for_a_stuck_termination_is_no_success() {
    for (case, leaf) in [
        (Case::KeyStuck, Leaf::MngKeyFreeid),
        (Case::MemoryStuck, Leaf::PhymemPageReclaim),
    ] {
        for command in ["td destroy one", "td terminate one", "td reset one"] {
            with(case, |_, operator| {
                let said = operator.fail(command);
                assert!(said.contains(leaf.name()), "{said}");
                assert!(said.contains("\"td retry\""), "{said}");
            });
        }
    }
    with(Case::Reclaimed, |_, operator| {
        let again = operator.succeed("td destroy one");
        assert_eq!(again["already"], true);
    });
}

#[test]
fn the_reason_of_a_failed_build_stays_until_a_build_succeeds() {
    with(Case::Created, |site, operator| {
        let rig = &site.server.rig;
        // The first SEAMCALL of the build is refused.
        let busy = site.server.tds(TD);
        drop(busy);
        rig.refuse(Leaf::MngCreate, 1..=u64::MAX, BUSY);
        let failed = site.tds.start(1).unwrap_err().to_string();
        rig.refuse_no_more();
        for command in ["td list", "td show one"] {
            let answer = operator.succeed(command);
            let line = answer["tds"].get(0).unwrap_or(&answer);
            assert_eq!(line["problem"], failed, "{command}");
        }
        let list = operator.read("td list");
        assert!(list.lines().all(|line| line.len() <= 120), "{list}");
        assert!(
            list.contains("\"td show\" shows a problem in full."),
            "{list}"
        );
        operator.succeed("td start one");
        assert_eq!(
            operator.succeed("td show one")["problem"],
            serde_json::Value::Null
        );
    });
}

#[test]
fn memory_that_is_not_returned_is_quarantined_in_the_ledger_too() {
    use console::host::{FrameCount, Heap, Ledger, Memory};
    for case in [Case::KeyStuck, Case::MemoryStuck] {
        with(case, |site, operator| {
            let rig = &site.server.rig;
            let (used, quarantined) = rig.out();
            assert_eq!(quarantined, 0, "the allocator can have it back");
            let counts = rig.counts();
            let frames = [0, 9].map(|order| FrameCount {
                frame_bytes: 4096 << order,
                free: counts[order].free,
                used: counts[order].used,
                quarantined: 0,
            });
            let mut memory = Memory {
                frames: frames.into(),
                ledger: Ledger::new(1 << 30, (1 << 30) - used, used, 0),
                heap: Heap {
                    total_bytes: 0,
                    used_bytes: 0,
                },
                regions: Vec::new(),
            };
            hypervisor::machine::stuck::show(site.tds.stuck(), &mut memory);
            // The tables of the shared EPT are the host's own, and are freed with the key.
            let guest = site.scheduler.guest(1).unwrap();
            let tables = match case {
                Case::KeyStuck => guest.vm().shared().holding().tables,
                _ => 0,
            };
            assert_eq!(memory.ledger.used_bytes, tables * 4096, "{case:?}");
            assert_eq!(memory.ledger.quarantined_bytes, used - tables * 4096);
            assert!(memory.ledger.balanced());
            let used: Vec<_> = memory.frames.iter().map(|count| count.used).collect();
            assert_eq!(used, [tables, 0]);
            operator.succeed("td retry one");
            assert_eq!(site.tds.stuck(), Default::default());
            assert_eq!(rig.out(), (0, 0));
        });
    }
}
