//! Tests that `td shrink` says what is left to do.

use host::td::end::Way;
use seam::abi::Leaf;

use super::kit::{FULL, Server};
use super::operator::Operator;

#[test]
fn a_shrink_that_yields_to_a_termination_reports_it() {
    let server: &'static Server = Box::leak(Box::new(Server::new("")));
    let tds: &'static _ = Box::leak(Box::new(server.tds(&FULL.replace("16M", "256M"))));
    tds.start(1).unwrap();
    server.rig.meanwhile(Leaf::MemPageRemove, 1, || {
        assert_eq!(tds.ask_end(1), Ok(()));
    });
    let mut operator = Operator::new(tds);
    let shown = operator.succeed("td shrink full 14M");
    assert_eq!(shown["state"], "terminating", "{shown}");
    assert_eq!(shown["left_to"], "its termination, or when that has failed");
    tds.destroy(1, Way::Dynamic).unwrap();
    server.assert_spotless();
}
