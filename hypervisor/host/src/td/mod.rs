//! TDs and their life: built from the configuration, run, shrunk, and taken down again.
//!
//! A [`Td`] is one life: it begins when a TD was admitted, and is over when nothing of it is left. Its [`life::State`] says
//! where it is; who changes that has the TD's turn, but for terminating, which is entered from anywhere and once. All of it
//! stands on [`Platform`], so the host's tests run it against the emulated module.

pub mod build;
pub mod capabilities;
pub mod debug;
pub mod end;
pub mod error;
pub mod files;
pub mod hob;
pub mod host;
pub mod join;
pub mod life;
pub mod memory;
pub mod meter;
pub mod params;
pub mod plan;
pub mod registry;
pub mod vcpu;

use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt;

use mm::private::{Holding, PrivateMap, Reclaim, Refusal};
use seam::{
    abi::{Measurement, PAGE_4K, PageSize},
    address::Gpa,
    page::{Donated, Page},
};
use sync::{Mutex, Once};

use crate::{platform::Platform, tdx::release::Release};
use error::Error;
use files::Loaded;
use life::{Life, State};
use memory::Layout;
use meter::Summary;
use vcpu::{Held, Interrupt, Refused, Slots};

/// One life of a TD.
pub struct Td {
    id: u32,
    config: Arc<config::Td>,
    life: Life,
    /// Had by whoever changes the state, but for terminating.
    turn: Mutex<()>,
    /// Who sees to its end.
    end: end::Ownership,
    joining: join::Joining,
    layout: Mutex<Layout>,
    /// The image's memory ends here, as far as it is in the TD's own.
    image_end: u64,
    /// 4 KiB pages that it may need at most.
    most_pages: u64,
    /// What its firmware boots.
    lent: Vec<(Gpa, Loaded)>,
    slots: Slots,
    body: Once<Body>,
    mrtd: Once<Measurement>,
    notes: Mutex<Notes>,
}

/// What was taken for a TD.
struct Body {
    map: Arc<PrivateMap>,
    /// Private addresses are below this.
    limit: u64,
    hkid: u16,
    release: Release,
    /// TDCX, and the pages of vCPUs but the root pages of those that are there.
    control: Mutex<Vec<Page<Donated>>>,
    reclaim: Once<Reclaim<Arc<PrivateMap>>>,
}

/// Frames of the host's that TDs hold, by size: 4 KiB, 2 MiB, 1 GiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames(pub [u64; 3]);

impl Frames {
    /// Those of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let Self([a, b, c]) = other;
        Self([self.0[0] + a, self.0[1] + b, self.0[2] + c])
    }

    /// Bytes of them.
    #[must_use]
    pub fn bytes(self) -> u64 {
        let all = self.0.iter().zip(PageSize::ALL);
        all.map(|(frames, size)| frames * size.bytes()).sum()
    }
}

/// What the operator is told.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// How it was built.
    pub built: Option<Summary>,
    /// How it ended.
    pub ended: Option<Summary>,
    /// What does not go on by itself, and why.
    pub problem: Option<String>,
    /// The first few hundred pages that are out of use, and why: the TDX module did not give them back.
    pub quarantine: Vec<Refusal>,
}

impl Td {
    /// A life that has just begun.
    fn new(
        id: u32,
        config: Arc<config::Td>,
        layout: Layout,
        image_end: u64,
        most_pages: u64,
        lent: Vec<(Gpa, Loaded)>,
    ) -> Option<Self> {
        Some(Self {
            id,
            slots: Slots::new(config.vcpus)?,
            config,
            life: Life::new(),
            turn: Mutex::new(()),
            end: end::Ownership::default(),
            joining: join::Joining::default(),
            layout: Mutex::new(layout),
            image_end,
            most_pages,
            lent,
            body: Once::new(),
            mrtd: Once::new(),
            notes: Mutex::new(Notes::default()),
        })
    }

    /// Its number, the same in each of its lives.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// What the operator wants it to be.
    #[must_use]
    pub fn config(&self) -> &config::Td {
        &self.config
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> State {
        self.life.state()
    }

    /// The host's files that it is shown, and where: what its firmware boots.
    #[must_use]
    pub fn lent(&self) -> &[(Gpa, Loaded)] {
        &self.lent
    }

    /// Where it has memory now.
    #[must_use]
    pub fn layout(&self) -> Layout {
        *self.layout.lock()
    }

    /// Its image's memory ends here, as far as it is in the TD's own: what [`registry::Tds::shrink`] leaves it at least.
    #[must_use]
    pub const fn image_end(&self) -> u64 {
        self.image_end
    }

    /// The number of its key while it has one.
    #[must_use]
    pub fn hkid(&self) -> Option<u16> {
        let has_key = !matches!(self.state(), State::Teardown | State::Reclaimed);
        self.body.get().filter(|_| has_key).map(|body| body.hkid)
    }

    /// Its private memory; `None` before it has a root page.
    #[must_use]
    pub fn map(&self) -> Option<&PrivateMap> {
        self.body.get().map(|body| &*body.map)
    }

    /// What it owns of the host's memory, but for its control pages.
    #[must_use]
    pub fn holding(&self) -> Holding {
        self.map().map(PrivateMap::holding).unwrap_or_default()
    }

    /// All frames that it holds: its memory, its S-EPT, its control pages.
    #[must_use]
    pub fn held(&self) -> Frames {
        let Some(body) = self.body.get() else {
            return Frames::default();
        };
        let holding = body.map.holding();
        let control = match body.reclaim.get() {
            Some(reclaim) => reclaim.control_left(),
            None => body.control.lock().len() as u64 + self.slots.made() + 1,
        };
        let [small, medium, large] = holding.pages;
        Frames([
            small + holding.sept + holding.stranded + control,
            medium,
            large,
        ])
    }

    /// Its bulk reclaim, once that has begun.
    #[must_use]
    pub fn reclaim(&self) -> Option<&Reclaim<Arc<PrivateMap>>> {
        self.body.get()?.reclaim.get()
    }

    /// MRTD, once it is closed.
    #[must_use]
    pub fn mrtd(&self) -> Option<&Measurement> {
        self.mrtd.get()
    }

    /// Its vCPUs.
    #[must_use]
    pub const fn vcpus(&self) -> &Slots {
        &self.slots
    }

    /// What the operator is told.
    #[must_use]
    pub fn notes(&self) -> Notes {
        self.notes.lock().clone()
    }

    /// Tells the operator what does not go on by itself, and why.
    pub fn note_problem(&self, problem: String) {
        self.notes.lock().problem = Some(problem);
    }

    /// Takes vCPU `index` for the calling CPU, to run it or to look at it, and associates it with that CPU.
    ///
    /// # Errors
    /// [`Refused`]; above all when the TD is in a state in which no vCPU may be used, which is looked at after the vCPU's
    /// lock was taken.
    pub fn hold<P: Platform>(&self, platform: &P, index: u16) -> Result<Held<'_>, Refused> {
        self.slots.hold(platform, &self.life, index)
    }

    /// What makes its vCPUs leave the guest.
    pub const fn kick<'a, P: Platform>(&'a self, platform: &'a P) -> Interrupt<'a, P> {
        Interrupt {
            platform,
            slots: &self.slots,
        }
    }

    /// Bytes that were promised to it and that it has not taken yet.
    #[must_use]
    pub fn promised_bytes(&self) -> u64 {
        if self.state().is_ending() {
            return 0;
        }
        let holding = self.holding();
        let control = self.body.get().map_or(0, |body| body.control.lock().len());
        let taken = holding.bytes() + (holding.sept + control as u64) * PAGE_4K;
        (self.most_pages * PAGE_4K).saturating_sub(taken)
    }

    /// Goes on only while the TD is being built.
    fn go_on_building(&self) -> Result<(), Error> {
        match self.state() {
            State::Building => Ok(()),
            state => Err(Error::State(state)),
        }
    }
}

impl fmt::Debug for Td {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Td")
            .field("id", &self.id)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
