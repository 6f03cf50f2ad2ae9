//! Tests of machine checks in TDs and of pages whose data is lost: the owner ends alone.

use host::sched::lost::{Owner, end_owner};
use host::sched::{Scheduler, ends};
use host::td::end::Way;
use host::td::life::State;
use mm::frames::FRAME;
use mm::private::Pool;
use seam::abi::Leaf;
use seam::address::Hpa;
use vcpu::End;

use super::kit::{Server, TWO, config, no_hypercall};
use super::rig::BASE;
use super::site::{Site, on_site};

/// The module reports a machine check at the first entry: that TD ends with its status, and the other runs.
#[test]
fn a_machine_check_in_a_td_ends_that_td_alone() {
    let server = Server::new("machine-check TDH.VP.ENTER call 1");
    on_site(&server, TWO, |site| {
        site.tds.start(1).unwrap();
        site.tds.start(2).unwrap();
        site.play(&[]);
        assert_eq!(
            site.rig.served(0)[0],
            18,
            "the host's handler looks at the banks"
        );
        assert!(ends::serve(site.scheduler, &site.tds));
        let states = [1, 2].map(|id| site.tds.state(id));
        let struck = match states {
            [State::Paused, State::Runnable] => 1,
            [State::Runnable, State::Paused] => 2,
            _ => panic!("{states:?}"),
        };
        let guest = site.scheduler.guest(struck).unwrap();
        assert!(matches!(guest.vm().end(), Some(End::MachineCheck(_))));
        let problem = site.tds.notes(struck).unwrap().problem.unwrap();
        assert!(problem.contains("machine check"), "{problem}");
        // The other one gets every turn from here on, and the one that was struck can be started again.
        for _ in 0..3 {
            site.play(&[]);
        }
        site.tds.destroy(struck, Way::Terminate).unwrap();
        site.tds.start(struck).unwrap();
        assert_eq!(site.tds.state(struck), State::Runnable);
    });
    server.assert_spotless();
}

/// Returns a page of every kind that TD 1 owns, as the module tells: private pages, control pages, its root.
fn pages_of(site: &Site<'_>, owner: Hpa) -> Vec<Hpa> {
    let tdh = host::platform::Platform::tdh(site.rig);
    let mut kinds = std::collections::BTreeMap::new();
    for hpa in (BASE..BASE + (1 << 30)).step_by(FRAME as usize).map(Hpa) {
        let Ok(found) = tdh.phymem_page_rdmd(hpa) else {
            continue;
        };
        let Some(kind) = found.page_type else {
            continue;
        };
        if found.owner == owner || hpa == owner {
            kinds.entry(kind as u8).or_insert(hpa);
        }
    }
    kinds.into_values().collect()
}

#[test]
fn a_lost_page_of_any_kind_ends_its_td_and_stays_out_of_use() {
    let mut kinds = 0;
    for kind in 0.. {
        let server = Server::new("");
        let mut is_last = false;
        let scheduler = Scheduler::new(&server.rig, &config(TWO).host, no_hypercall);
        let tds = server.tds_on(&server.rig, TWO, &scheduler);
        let site = Site {
            rig: &server.rig,
            scheduler: &scheduler,
            tds,
        };
        site.tds.start(1).unwrap();
        site.tds.start(2).unwrap();
        let td = site.tds.get(1).unwrap();
        let root = td.map().unwrap();
        let root = root.keyed(|tdr| Ok(tdr.hpa())).unwrap();
        drop(td);
        let pages = pages_of(&site, root);
        let pool = host::platform::Platform::pool(site.rig);
        if let Some(page) = pages.get(kind) {
            kinds += 1;
            pool.retire(*page).unwrap();
            let owner = end_owner(site.scheduler, &site.tds, *page).unwrap();
            assert_eq!(owner, Owner::Td(1));
            let guest = site.scheduler.guest(1).unwrap();
            assert_eq!(guest.vm().end(), Some(&End::PageLost(*page)));
            assert_eq!(site.tds.state(2), State::Runnable);
            site.tds.destroy(1, Way::Terminate).unwrap();
            let problem = site.scheduler.problem(1).unwrap();
            assert!(problem.contains("lost the data"), "{problem}");
            let ledger = pool.ledger().lock();
            let quarantined: u64 = (0..)
                .zip(ledger.counts())
                .map(|(order, c)| c.quarantined * (FRAME << order))
                .sum();
            assert_eq!(quarantined, FRAME, "page of kind {kind}");
        } else {
            is_last = true;
            // A page that no TDMR has is nobody's, and so is a free one.
            let frame = pool.take(seam::abi::PageSize::Size4K).unwrap();
            let free = frame.hpa();
            pool.give(core::iter::once(frame));
            for page in [Hpa(1 << 20), free] {
                let owner = end_owner(site.scheduler, &site.tds, page).unwrap();
                assert_eq!(owner, Owner::Host);
            }
            assert_eq!([1, 2].map(|id| site.tds.state(id)), [State::Runnable; 2]);
        }
        for id in [1, 2] {
            site.tds.destroy(id, Way::Terminate).unwrap();
        }
        if is_last {
            break;
        }
    }
    assert!(
        kinds >= 5,
        "only {kinds} kinds of pages: {:?}",
        Leaf::PhymemPageRdmd
    );
}
