//! TDs and their lifecycle: built from the configuration, run, shrunk, and terminated.
//!
//! A [`Td`] is one life: it begins when the TD is admitted, and is over when nothing of it is left. Its [`life::State`]
//! is the current stage. The holder of the TD's turn changes it. Terminating alone is entered without the turn, at any
//! time and once. Everything is written against [`Platform`], so the host's tests run it on the emulated module.

pub mod build;
pub mod capabilities;
pub mod debug;
pub mod end;
pub mod error;
mod features;
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
mod unsupported;
pub mod vcpu;

use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt;

use ::vcpu::Facts;
use mm::private::{Holding, PAGE_TABLE_FRAMES, PrivateMap, Reclaim, Refusal};
use seam::{
    abi::{Measurement, PAGE_4K, PageSize},
    address::Gpa,
    page::{Donated, Page},
};
use sync::{
    Mutex, Once,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::{
    platform::{Platform, TdEvent},
    tdx::release::Release,
};
use error::Error;
use files::{Content, Files, Loaded, store::PutFile};
use life::{Life, State};
use memory::Layout;
use meter::Summary;
use vcpu::{Held, Interrupt, Refused, Slots};

/// Returns the facts that a TD's UEFI firmware is told by fw_cfg.
#[must_use]
pub fn firmware_facts(config: &config::Td) -> Facts {
    Facts {
        vcpus: config.vcpus,
        uuid: config.uuid,
        boot_order: config.boot_order.clone(),
    }
}

/// One life of a TD.
pub struct Td {
    id: u32,
    config: Arc<config::Td>,
    life: Life,
    /// Held to change the state, except to terminating.
    turn: Mutex<()>,
    /// Ownership of the TD's termination.
    end: end::Ownership,
    joining: join::Joining,
    layout: Mutex<Layout>,
    /// End of the image, as far as the image lies within the TD's memory.
    image_end: u64,
    /// Maximum number of 4 KiB pages of the TD.
    most_pages: u64,
    /// The files that the firmware boots.
    lent: Vec<(Gpa, Loaded)>,
    /// The contents of the disks, in the order of the configuration.
    disks: Vec<Content>,
    /// Those of the TD's files that were put: their memory stays as long as the TD.
    _files: Vec<Arc<PutFile>>,
    slots: Slots,
    body: Once<Body>,
    mrtd: Once<Measurement>,
    notes: Mutex<Notes>,
    /// 1 more than the number of the TD that asked for the termination, or 1 for the host; 0 if nobody did.
    asked_by: AtomicU32,
}

/// The memory that a new TD can have.
struct Extent {
    /// Its layout.
    layout: Layout,
    /// End of the image, as far as the image lies within the TD's memory.
    image_end: u64,
    /// Maximum number of 4 KiB pages.
    most_pages: u64,
}

/// The resources of a TD.
struct Body {
    map: Arc<PrivateMap>,
    /// Exclusive upper limit of private addresses.
    limit: u64,
    hkid: u16,
    release: Release,
    /// The TDCX pages and the vCPUs' pages, except the root pages of existing vCPUs.
    control: Mutex<Vec<Page<Donated>>>,
    reclaim: Once<Reclaim<Arc<PrivateMap>>>,
}

/// Host frames that TDs hold, by size: 4 KiB, 2 MiB, 1 GiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames(pub [u64; 3]);

impl Frames {
    /// Returns the sum of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let Self([a, b, c]) = other;
        Self([self.0[0] + a, self.0[1] + b, self.0[2] + c])
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        let all = self.0.iter().zip(PageSize::ALL);
        all.map(|(frames, size)| frames * size.bytes()).sum()
    }
}

/// Notes for the operator.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// The phases of the build.
    pub built: Option<Summary>,
    /// The record of the termination.
    pub ended: Option<end::Termination>,
    /// A problem that needs the operator, with its reason.
    pub problem: Option<String>,
    /// The first few hundred quarantined pages with the reason why the TDX module did not give them back.
    pub quarantine: Vec<Refusal>,
}

impl Td {
    /// Creates a new life.
    fn new(id: u32, config: Arc<config::Td>, extent: Extent, files: &Files<'_>) -> Option<Self> {
        Some(Self {
            id,
            lent: files.lent(&config),
            disks: files.disks.iter().flatten().cloned().collect(),
            _files: files.held.clone(),
            slots: Slots::new(config.vcpus)?,
            config,
            life: Life::new(),
            turn: Mutex::new(()),
            end: end::Ownership::default(),
            joining: join::Joining::default(),
            layout: Mutex::new(extent.layout),
            image_end: extent.image_end,
            most_pages: extent.most_pages,
            body: Once::new(),
            mrtd: Once::new(),
            notes: Mutex::new(Notes::default()),
            asked_by: AtomicU32::new(0),
        })
    }

    /// Returns the TD's number, the same in each of its lives.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Returns the TD's configuration.
    #[must_use]
    pub fn config(&self) -> &config::Td {
        &self.config
    }

    /// Returns the state of the TD.
    #[must_use]
    pub fn state(&self) -> State {
        self.life.state()
    }

    /// Moves from one state to another, and records the change.
    ///
    /// # Errors
    /// As [`Life::advance`].
    fn advance<P: Platform>(&self, platform: &P, from: State, to: State) -> Result<(), State> {
        self.life.advance(from, to)?;
        self.note_change(platform, from, to);
        Ok(())
    }

    /// Moves to a state from any that leads to it, and records the change. Returns the state before.
    ///
    /// # Errors
    /// As [`Life::enter`].
    fn enter<P: Platform>(&self, platform: &P, to: State) -> Result<State, State> {
        let from = self.life.enter(to)?;
        self.note_change(platform, from, to);
        Ok(from)
    }

    fn note_change<P: Platform>(&self, platform: &P, from: State, to: State) {
        let asked_by = match to {
            State::Terminating => self.asked_by.load(Relaxed).saturating_sub(1),
            _ => 0,
        };
        platform.note(&TdEvent {
            td: self.id,
            name: &self.config.name,
            asked_by: (asked_by != 0).then_some(asked_by),
            what: format_args!("{from} -> {to}"),
        });
    }

    /// Returns the contents of the TD's disks, in the order of the configuration.
    #[must_use]
    pub fn disks(&self) -> &[Content] {
        &self.disks
    }

    /// Returns the host's files that are mapped into the guest for its firmware to boot, and their addresses.
    #[must_use]
    pub fn lent(&self) -> &[(Gpa, Loaded)] {
        &self.lent
    }

    /// Returns the current memory layout.
    #[must_use]
    pub fn layout(&self) -> Layout {
        *self.layout.lock()
    }

    /// Returns the end of the image, as far as the image lies within the TD's memory. [`registry::Tds::shrink`] leaves
    /// at least this much.
    #[must_use]
    pub const fn image_end(&self) -> u64 {
        self.image_end
    }

    /// Returns the HKID while the TD has one.
    #[must_use]
    pub fn hkid(&self) -> Option<u16> {
        let has_key = !matches!(self.state(), State::Teardown | State::Reclaimed);
        self.body.get().filter(|_| has_key).map(|body| body.hkid)
    }

    /// Returns the TD's private memory; `None` before it has a root page.
    #[must_use]
    pub fn map(&self) -> Option<&PrivateMap> {
        self.body.get().map(|body| &*body.map)
    }

    /// Returns the host memory that the TD owns, without its control pages.
    #[must_use]
    pub fn holding(&self) -> Holding {
        self.map().map(PrivateMap::holding).unwrap_or_default()
    }

    /// Returns all frames that the TD holds: its memory, its S-EPT, its control pages.
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

    /// Returns the TD's bulk reclaim, once it has begun.
    #[must_use]
    pub fn reclaim(&self) -> Option<&Reclaim<Arc<PrivateMap>>> {
        self.body.get()?.reclaim.get()
    }

    /// Returns MRTD, once it is final.
    #[must_use]
    pub fn mrtd(&self) -> Option<&Measurement> {
        self.mrtd.get()
    }

    /// Returns the TD's vCPUs.
    #[must_use]
    pub const fn vcpus(&self) -> &Slots {
        &self.slots
    }

    /// Returns the notes for the operator.
    #[must_use]
    pub fn notes(&self) -> Notes {
        self.notes.lock().clone()
    }

    /// Notes a problem that needs the operator, with its reason.
    pub fn note_problem(&self, problem: impl fmt::Display) {
        let text = crate::heap::text(problem);
        self.notes.lock().problem = Some(text);
    }

    /// Takes vCPU `index` for the calling CPU, to run or to inspect it, and associates it with that CPU.
    ///
    /// # Errors
    /// [`Refused`], in particular if the TD's state does not allow any vCPU to be used. The state is checked after the
    /// vCPU's lock is taken.
    pub fn hold<P: Platform>(&self, platform: &P, index: u16) -> Result<Held<'_>, Refused> {
        self.slots.hold(platform, &self.life, index)
    }

    /// Returns the kick that makes the TD's vCPUs leave the guest.
    pub const fn kick<'a, P: Platform>(&'a self, platform: &'a P) -> Interrupt<'a, P> {
        Interrupt {
            platform,
            slots: &self.slots,
        }
    }

    /// Returns the bytes that are promised to the TD and that it has not taken yet.
    #[must_use]
    pub fn promised_bytes(&self) -> u64 {
        if self.state().is_ending() {
            return 0;
        }
        let holding = self.holding();
        let control = self.body.get().map_or(0, |body| body.control.lock().len());
        // A page of the S-EPT, and at least the mirror of a page table. The few tables above the directories have none.
        let table = 1 + PAGE_TABLE_FRAMES;
        let taken = holding.bytes() + (holding.sept * table + control as u64) * PAGE_4K;
        (self.most_pages * PAGE_4K).saturating_sub(taken)
    }

    /// Checks that the TD is still being built.
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
