//! A server with TDs from a configuration, and an image for them.

#[path = "sample.rs"]
mod sample;

use host::platform::Platform;
use host::td::files::Files;
use host::td::host::{GuestEnd, Host, Runner};
use host::td::{Td, capabilities::Capabilities, registry::Tds};
use host::tdx::hkids::Count;
use host::tdx::release::Coordinator;
use mm::private::Clearing;
use seam::abi::{Gprs, PAGE_4K};
use seam::address::Hpa;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use vcpu::Wiring;

use super::rig::{GLOBAL_HKID, Job, Rig, Setup};
#[allow(unused_imports, reason = "each test program uses a part of it")]
pub use sample::{Everything, FULL, ONE, image};

/// Two TDs with a vCPU each.
pub const TWO: &str = "[[td]]\nname = \"one\"\nmemory = \"16M\"\nvcpus = 1\n\
    [[td]]\nname = \"two\"\nmemory = \"16M\"\nvcpus = 1\n";

/// A runner that does not run vCPUs, but returns a wiring for each.
pub struct Wired;

impl Runner for Wired {
    fn prepare(&self, _: &Td) -> Result<(), String> {
        Ok(())
    }

    fn wiring(&self, _: &Td, index: u16) -> Option<Wiring> {
        /// Memory that belongs to the host.
        const OWN: u64 = 1 << 20;
        Some(Wiring {
            shared: Hpa(OWN),
            notification: 0xF2,
            descriptor: Hpa(OWN + PAGE_4K + 64 * u64::from(index)),
        })
    }

    fn start(&self, _: &Arc<Td>) {}

    fn end(&self, _: &Td) {}

    fn shrunk(&self, _: &Td) -> bool {
        true
    }

    fn guest_end(&self, _: &Td) -> Option<GuestEnd> {
        None
    }

    // No CPU waits for work.
    fn work_waits(&self) {}
}

/// Stands in for the hypercalls, which have their own tests.
pub fn no_hypercall(_: &Td, regs: &mut Gprs) {
    regs.r10 = u64::MAX;
}

/// A server with its module ready, and its HKIDs.
pub struct Server {
    pub rig: Rig,
    pub coordinator: Coordinator,
    pub image: Vec<u8>,
}

impl Server {
    /// Creates the default server, with the failures that `hooks` describes.
    pub fn new(hooks: &str) -> Self {
        Self::of(&Setup::failing(hooks))
    }

    pub fn of(setup: &Setup) -> Self {
        Self {
            rig: Rig::ready_with(setup),
            coordinator: setup.coordinator(),
            image: image(),
        }
    }

    /// Creates the TDs that `text` names, where `[[td]]` needs no `image`.
    pub fn tds(&self, text: &str) -> Tds<'_, Rig> {
        self.tds_on(&self.rig, text, &Wired)
    }

    /// Does the same on another platform, with a runner.
    pub fn tds_on<'h, P: Platform>(
        &'h self,
        platform: &'h P,
        text: &str,
        runner: &'h (dyn Runner + Sync),
    ) -> Tds<'h, P> {
        let named = config(text).td.into_iter();
        let named = named.map(|td| (td, Some(&*self.image)));
        self.tds_of(platform, named.collect(), runner)
    }

    /// Does the same with these files.
    pub fn tds_of<'h, P: Platform>(
        &'h self,
        platform: &'h P,
        named: Vec<(config::Td, impl Into<Files<'h>>)>,
        runner: &'h (dyn Runner + Sync),
    ) -> Tds<'h, P> {
        let host = Host {
            platform,
            coordinator: &self.coordinator,
            capabilities: Capabilities::read(&platform.tdh()).unwrap(),
            native: &Everything,
            keyid: self.rig.keyid_position(),
            global_hkid: GLOBAL_HKID,
            clearing: Clearing::Clear,
            stop_us: 200_000,
            runner,
        };
        Tds::new(host, named)
    }

    /// Returns the number of HKIDs that TDs have, and of those in quarantine.
    pub fn hkids(&self) -> (usize, usize) {
        let Count {
            used, quarantined, ..
        } = self.coordinator.hkids().count();
        (used - 1, quarantined)
    }

    /// Checks that everything was given back, and that no call was illegal.
    pub fn assert_spotless(&self) {
        self.rig.assert_spotless();
        assert_eq!(self.hkids(), (0, 0));
    }

    /// Checks that everything was given back.
    pub fn assert_nothing_lost(&self) {
        self.rig.audit();
        assert_eq!(self.rig.out(), (0, 0));
        assert_eq!(self.hkids(), (0, 0));
    }
}

/// CPU 1, which holds vCPU 1 of a TD and does not release it.
pub struct Stubborn {
    stays: Arc<AtomicBool>,
    job: Job<()>,
}

impl Stubborn {
    /// Makes CPU 1 hold the vCPU.
    pub fn holding(rig: &Rig, td: &Arc<Td>) -> Self {
        let stays = Arc::new(AtomicBool::new(true));
        let (own, its, stay) = (rig.clone(), Arc::clone(td), Arc::clone(&stays));
        let job = rig.start(1, move || {
            let _held = its.hold(&own, 1).unwrap();
            while stay.load(SeqCst) {
                own.serve();
            }
        });
        while td.vcpus().user(1) != Some(1) {
            rig.serve();
        }
        Self { stays, job }
    }

    /// Releases the vCPU.
    pub fn let_go(self, rig: &Rig) {
        self.stays.store(false, SeqCst);
        self.job.wait(rig);
    }
}

/// Parses `text` as a configuration in which each `[[td]]` has the image.
pub fn config(text: &str) -> config::Config {
    let text = text.replace("[[td]]\n", "[[td]]\nimage = \"i\"\n");
    let text = format!("[[file]]\nname = \"i\"\npath = \"i\"\n{text}");
    config::parse(text.as_bytes()).unwrap()
}

/// Returns the live TD with this number.
pub fn td(tds: &Tds<'_, Rig>, id: u32) -> Arc<Td> {
    tds.get(id).unwrap()
}
