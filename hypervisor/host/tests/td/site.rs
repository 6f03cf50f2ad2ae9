//! A server whose guests play scripts.

use host::sched::Scheduler;
use host::td::end::Way;
use host::td::registry::Tds;

use super::kit::{Server, config, no_hypercall};
use super::rig::Rig;
use super::rig::running::OUT_OF_LINES;
pub use script::{Act, Script, accept, call};

#[path = "../../../../vcpu/tests/kit/script.rs"]
#[allow(dead_code, reason = "it has what the tests of vcpu need, too")]
mod script;

/// A server whose TDs run on its CPU 0, the test's own thread.
pub struct Site<'h> {
    pub rig: &'h Rig,
    pub scheduler: &'h Scheduler<'h, Rig>,
    pub tds: Tds<'h, Rig>,
}

/// Runs `test` with the TDs that `text` names on `server`, and terminates them afterwards.
pub fn on_site(server: &Server, text: &str, test: impl FnOnce(&Site<'_>)) {
    let config = config(text);
    let scheduler = Scheduler::new(&server.rig, &config.host, no_hypercall);
    let scheduler = scheduler.with_networks(&config.network);
    {
        let tds = server.tds_on(&server.rig, text, &scheduler);
        let site = Site {
            rig: &server.rig,
            scheduler: &scheduler,
            tds,
        };
        test(&site);
        site.rig.set_guest(0, None);
        for id in site.tds.ids() {
            site.tds.destroy(id, Way::Terminate).unwrap();
        }
    }
}

impl Site<'_> {
    /// Lets the vCPU whose turn it is do `acts`.
    pub fn play(&self, acts: &[Act]) -> Script {
        let script = Script::new(acts.iter().copied());
        self.rig.set_guest(0, Some(script.player()));
        assert!(self.scheduler.schedule(), "nobody wants the CPU");
        script
    }

    /// Returns the console output of a TD, and the position at which its current life began.
    pub fn said(&self, id: u32) -> (String, u64) {
        let guest = self.scheduler.guest(id).unwrap();
        let mut bytes = [0; 256];
        let excerpt = guest.vm().console().read(0, &mut bytes);
        let text = String::from_utf8_lossy(&bytes[..excerpt.count]);
        (text.into_owned(), excerpt.began)
    }

    /// Removes the script, so that guests only use up their time.
    pub fn rest(&self) {
        self.rig.set_guest(0, None);
    }
}
