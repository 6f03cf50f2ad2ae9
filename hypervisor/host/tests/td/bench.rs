//! Tests of the reclaim benchmark: each method makes the expected number of SEAMCALLs.

use host::bench::reclaim::{Method, Run, run};
use host::platform::Platform;
use mm::private::Clearing;
use seam::abi::Leaf;

use super::kit::{ONE, Server};

#[test]
fn each_way_takes_as_many_calls_as_it_should_and_nothing_is_lost() {
    for clearing in [Clearing::Clear, Clearing::Keep] {
        for (method, least, most) in [
            (Method::PerPage, 4.0, 4.02),
            (Method::Dynamic, 3.0, 3.05),
            (Method::Terminate4k, 1.0, 1.02),
            (Method::Terminate2m, 0.0, 0.02),
        ] {
            // No patterns: kept frames go to a TD uncleared.
            let server = Server::of(&super::rig::Setup {
                hooks: String::new(),
                ..Default::default()
            });
            let tds = server.tds(&ONE.replace("16M", "64M"));
            let config = tds.config(1).unwrap();
            let what = Run {
                method,
                spinning: false,
                clearing,
            };
            let measured = run(tds.host(), &config, Some(&server.image), what).unwrap();
            let large = u64::from(method == Method::Terminate2m);
            assert!(measured.pages_4k >= 26 * 512, "{measured:?}");
            let calls = |leaf| {
                let all = measured.summary.calls();
                all.iter().find(|(l, _)| *l == leaf).map_or(0, |(_, n)| *n)
            };
            // Exclude the calls that a TD of any size needs.
            let fixed = 100 + 600 * large;
            let per_page =
                (measured.calls() - fixed.min(measured.calls())) as f64 / measured.pages_4k as f64;
            assert!(per_page <= most, "{method}: {per_page} {measured:?}");
            // The image's pages are reclaimed in another method.
            let least = least * (26 * 512) as f64;
            assert!(measured.calls() as f64 >= least, "{method}: {measured:?}");
            if method == Method::PerPage {
                assert_eq!(calls(Leaf::MemRangeBlock), calls(Leaf::MemTrack));
                assert_eq!(measured.kicks, calls(Leaf::MemTrack));
            }
            while server.rig.pool().clear_kept() {}
            server.assert_spotless();
        }
    }
}
