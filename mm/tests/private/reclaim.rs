//! Bulk reclaim.

use std::time::Instant;

use mm::private::{Clearing, Clock, Plan, PrivateMap, Reclaim, Reclaimed, Step};
use seam::abi::{Leaf, PAGE_2M, PAGE_4K, PageSize};
use seam::address::Gpa;

use crate::kit::{GLOBAL_HKID, Host, Td};

/// The host's clock.
pub struct Now(Instant);

impl Now {
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Clock for Now {
    fn ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

pub fn plan(cpus: u32, clearing: Clearing) -> Plan {
    Plan {
        cpus,
        clearing,
        global_hkid: GLOBAL_HKID,
    }
}

/// Reclaims all of a TD that was released, on one CPU.
pub fn reclaim(td: Td<'_>, clearing: Clearing) -> Reclaimed {
    let clock = Now::new();
    let host = td.host;
    let (map, control) = td.into_parts();
    let reclaim = Reclaim::new(map, control, plan(1, clearing), &clock).unwrap();
    let step = host.with(0, |cpu| work_until(&reclaim, cpu, &clock));
    assert_eq!(step, Step::Done);
    let progress = reclaim.progress(&clock);
    assert!(progress.is_done && progress.quarantined == 0);
    progress.reclaimed
}

/// Works until there is nothing more to do.
pub fn work_until<M: std::borrow::Borrow<PrivateMap>>(
    reclaim: &Reclaim<M>,
    cpu: crate::kit::OnCpu<'_, '_>,
    clock: &Now,
) -> Step {
    loop {
        match reclaim.work(cpu, 0, clock) {
            Step::More => {}
            step => return step,
        }
    }
}

fn calls(host: &Host) -> u64 {
    Leaf::ALL.iter().map(|leaf| host.calls(*leaf)).sum()
}

#[test]
fn small_pages_cost_one_call_each_and_large_ones_one_for_512() {
    for (size, most) in [(PageSize::Size4K, 1.02), (PageSize::Size2M, 0.005)] {
        let host = Host::new("patterns");
        let td = Td::runnable(&host, 33, 1);
        // Of 4 KiB as many as a debug build maps in a moment; the S-EPT and the control pages weigh on both alike.
        let bytes = match size {
            PageSize::Size4K => 32 * PAGE_2M,
            _ => 500 * PAGE_2M,
        };
        host.with(0, |cpu| {
            for at in (0..bytes).step_by(size.bytes() as usize) {
                td.map.map(cpu, Gpa(at), size).unwrap();
            }
        });
        td.release();
        let before = calls(&host);
        let reclaimed = reclaim(td, Clearing::Clear);
        let calls = calls(&host) - before;
        assert_eq!(reclaimed.pages[size as usize], bytes / size.bytes());
        assert_eq!(reclaimed.bytes(), bytes);
        assert_eq!(reclaimed.calls(), calls);
        assert!(reclaimed.cleared > bytes);
        let per_page = calls as f64 / (bytes / PAGE_4K) as f64;
        assert!(per_page <= most, "{size:?}: {per_page}");
        host.assert_spotless();
    }
}
