//! Tests of building: the result, and what is refused before it begins.

use host::td::end::{Ended, Way};
use host::td::error::Error;
use host::td::life::State;
use host::td::params::Unsupported;
use seam::abi::{Leaf, Xfam};
use stub_module::Release;

use super::kit::{FULL, ONE, Server, td};
use super::rig::Setup;

#[test]
fn a_td_is_built_and_torn_down() {
    let server = Server::new("");
    let tds = server.tds(ONE);
    assert_eq!(tds.state(1), State::Created);
    tds.start(1).unwrap();
    let one = td(&tds, 1);
    assert_eq!(one.state(), State::Runnable);
    // Two pages of firmware, two of the hand-off block, three of working memory; 2 MiB to accept.
    assert_eq!(one.holding().pages, [7, 1, 0]);
    assert_eq!(one.hkid(), Some(33));
    assert!(one.mrtd().is_some());
    assert_eq!(server.hkids(), (1, 0));
    server.rig.audit();
    drop(one);
    assert!(matches!(tds.destroy(1, Way::Terminate), Ok(Ended::Now(_))));
    assert_eq!(tds.state(1), State::Reclaimed);
    assert!(tds.get(1).is_none());
    server.assert_spotless();
}

#[test]
fn vcpus_are_initialised_on_the_cpus_where_they_will_run() {
    let server = Server::new("");
    let tds = server.tds(&format!("{ONE}{}", ONE.replace("one", "two")));
    for id in [1, 2] {
        tds.create(id).unwrap();
    }
    let cpus = [1, 2].map(|id| {
        let td = td(&tds, id);
        [0, 1].map(|index| td.vcpus().association(index))
    });
    assert_eq!(cpus, [[Some(0), Some(1)], [Some(2), Some(3)]]);
    for id in [1, 2] {
        tds.destroy(id, Way::Terminate).unwrap();
    }
    server.assert_spotless();
}

#[test]
fn memory_that_a_td_gets_at_its_start_is_mapped_large() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    tds.create(1).unwrap();
    let full = td(&tds, 1);
    // The block with the working memory and the firmware are in pages of 4 KiB, the rest of the 16 MiB in pages of 2
    // MiB.
    assert_eq!(full.holding().pages, [512 + 2, 7, 0]);
    assert_eq!(full.promised_bytes() >> 20, 0);
    drop(full);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn the_same_image_has_the_same_measurement_and_no_other_has() {
    let server = Server::new("");
    let tds = server.tds(&format!("{ONE}{FULL}"));
    let mrtds = [1, 2].map(|id| *tds.create(id).unwrap().mrtd().unwrap());
    assert_eq!(mrtds[0], mrtds[1]);
    let mut other = Server::new("");
    other.image[0x1000] ^= 1;
    let others = other.tds(ONE);
    let mrtd = *others.create(1).unwrap().mrtd().unwrap();
    assert_ne!(mrtd, mrtds[0]);
    for id in [1, 2] {
        tds.destroy(id, Way::Terminate).unwrap();
    }
    others.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
    other.assert_spotless();
}

#[test]
fn the_guest_finds_the_list_of_its_memory() {
    let server = Server::new("");
    let tds = server.tds(&ONE.replace("vcpus = 2", "debug = true"));
    let one = tds.create(1).unwrap();
    let tdh = host::platform::Platform::tdh(&server.rig);
    let word = |offset: u64| {
        let gpa = seam::address::Gpa(0x80_9000 + offset);
        one.map()
            .unwrap()
            .keyed(|tdr| Ok(tdh.mem_rd(tdr, gpa)?))
            .unwrap()
    };
    // The hand-off table, and its first descriptor: memory to accept, from 0 to the hand-off block.
    assert_eq!(word(0), 0x38 << 16 | 1);
    assert_eq!(word(0x38), 0x30 << 16 | 3);
    assert_eq!(word(0x38 + 24), 7 << 32 | 7);
    assert_eq!((word(0x38 + 32), word(0x38 + 40)), (0, 0x80_9000));
    assert_eq!(word(0x68 + 24), 7 << 32);
    drop(one);
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn an_impossible_td_is_refused_before_anything_is_taken() {
    let server = Server::of(&Setup {
        hkids: 2,
        ..Setup::default()
    });
    let tds = server.tds(&format!(
        "{ONE}{}{}{}{}",
        ONE.replace("one", "two"),
        ONE.replace("one", "big").replace("16M", "2G"),
        ONE.replace("one", "wide")
            .replace("vcpus = 2", "xfam = 0x8"),
        ONE.replace("one", "huge").replace("16M", "200T"),
    ));
    tds.create(1).unwrap();
    let calls = server.rig.calls(Leaf::MngCreate);
    let refused = [2, 3, 4, 5].map(|id| tds.create(id).unwrap_err());
    assert!(matches!(refused[0], Error::NoHkid(_)), "{}", refused[0]);
    assert!(
        matches!(refused[1], Error::NoFrames { .. }),
        "{}",
        refused[1]
    );
    assert_eq!(
        refused[2],
        Error::Unsupported(Unsupported::XfamBits(Xfam::BNDREGS))
    );
    assert_eq!(refused[3], Error::TooMuchMemory);
    assert_eq!(server.rig.calls(Leaf::MngCreate), calls);
    // The refused TD starts once another has ended.
    tds.destroy(1, Way::Terminate).unwrap();
    tds.start(2).unwrap();
    tds.destroy(2, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn attributes_of_newer_modules_are_the_operators_choice_where_they_exist() {
    let create = |release, key: &str| {
        let server = Server::of(&Setup {
            release,
            ..Setup::default()
        });
        let tds = server.tds(&format!("{ONE}{key} = true\n"));
        let created = tds.create(1).map(|td| td.config().icssd);
        if created.is_ok() {
            tds.destroy(1, Way::Terminate).unwrap();
        }
        server.assert_spotless();
        created.map_err(|error| error.to_string())
    };
    assert_eq!(create(Release::default(), "icssd"), Ok(true));
    let both = create(Release::default(), "perfmon = true\nicssd");
    assert_eq!(
        both.unwrap_err(),
        "icssd: it can't be combined with perfmon"
    );
    for key in ["icssd", "lass"] {
        let refused = create(Release::V1_5_01, key).unwrap_err();
        assert_eq!(
            refused,
            format!("{key}: this TDX module does not support it")
        );
    }
}

#[test]
fn memory_that_was_promised_to_one_td_is_not_promised_to_another() {
    let server = Server::new("");
    let half = |name| ONE.replace("one", name).replace("16M", "512M");
    let tds = server.tds(&format!("{}{}", half("one"), half("two")));
    tds.create(1).unwrap();
    assert!(server.rig.out().0 < 4 << 20, "it has next to nothing yet");
    let refused = tds.create(2).unwrap_err();
    assert!(matches!(refused, Error::NoFrames { .. }), "{refused}");
    tds.destroy(1, Way::Terminate).unwrap();
    tds.create(2).unwrap();
    tds.destroy(2, Way::Terminate).unwrap();
    server.assert_spotless();
}

#[test]
fn a_file_that_is_no_image_is_refused_in_words() {
    let mut server = Server::new("");
    server.image.truncate(100);
    let tds = server.tds(ONE);
    let refused = tds.create(1).unwrap_err();
    assert!(matches!(refused, Error::Image(_)));
    assert!(refused.to_string().starts_with("its image can't be used: "));
    assert_eq!(tds.state(1), State::Created);
    server.assert_spotless();
}

#[test]
fn a_silent_cpu_is_named_before_anything_is_taken() {
    let server = Server::new("");
    let tds = server.tds(ONE);
    server.rig.set_silent(1, true);
    assert_eq!(tds.create(1).unwrap_err(), Error::Silent([1].into()));
    server.rig.set_silent(1, false);
    assert_eq!(server.rig.calls(Leaf::MngCreate), 0);
    server.assert_spotless();
}

#[test]
fn the_summary_tells_which_calls_each_phase_made() {
    let server = Server::new("");
    let tds = server.tds(ONE);
    let built = tds.create(1).unwrap().notes().built.unwrap();
    let names: Vec<_> = built.phases.iter().map(|phase| &*phase.name).collect();
    assert_eq!(
        names,
        ["key", "control", "image", "memory", "vcpus", "finalize"]
    );
    let key = &built.phases[0].calls;
    assert!(key.contains(&(Leaf::MngCreate, 1)) && key.contains(&(Leaf::MngKeyConfig, 2)));
    assert_eq!(key.len(), 2);
    let image = &built.phases[2].calls;
    assert!(image.contains(&(Leaf::MemPageAdd, 7)) && image.contains(&(Leaf::MrExtend, 32)));
    tds.destroy(1, Way::Terminate).unwrap();
    let ended = tds.notes(1).unwrap().ended.unwrap().work;
    let names: Vec<_> = ended.phases.iter().map(|phase| &*phase.name).collect();
    assert_eq!(
        names,
        [
            "stop",
            "flush",
            "write-back of package 0",
            "write-back of package 1",
            "free",
            "reclaim",
            "clear"
        ]
    );
    let all = ended.calls();
    for expected in [
        (Leaf::VpFlush, 2),
        (Leaf::MngVpflushdone, 1),
        (Leaf::PhymemCacheWb, 2),
        (Leaf::MngKeyFreeid, 1),
    ] {
        assert!(all.contains(&expected), "{all:?}");
    }
    server.assert_spotless();
}
