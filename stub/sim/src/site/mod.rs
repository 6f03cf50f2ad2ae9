//! The simulated server: an emulated module that is up, and the host's frames.
//!
//! It is built once for many simulations, each of which is a [`Session`]: a number of its CPUs, a cost model, and a TD
//! that is built, ended and gone again.

mod memory;
mod session;
mod td;

use std::ops::Range;
use std::sync::Arc;

use hypervisor::tdx::hkids::Hkids;
use hypervisor::tdx::release::Coordinator;
use mm::frames::{Frames, words_for};
use mm::private::FramePool;
use seam::abi::PAGE_1G;
use seam::address::KeyIdPosition;
use seam::platform::KeyIds;
use stub_module::host::{Config, Server, TdmrPlan};

use crate::cost::Costs;
use crate::error::{Error, failed};
use crate::machine::{CPUS_PER_PACKAGE, Machine, Topology};
use memory::{Direct, Ledger};
pub use session::{Reclaimer, Session};
pub use td::{Leaves, Td, parameters};

/// Where memory for TDs begins.
pub const BASE: u64 = 4 * PAGE_1G;
/// The SEAM range: above all memory, which ends far below 16 TiB.
const SEAMRR: (u64, u64) = (1 << 44, 128 << 20);

/// The host's frames.
pub type Pool = FramePool<Ledger, Direct>;

/// A server.
pub struct Site {
    server: Arc<Server>,
    machine: Arc<Machine>,
    pool: Pool,
    coordinator: Coordinator,
    keyids: KeyIds,
    global_hkid: u16,
    packages: u32,
    room: u64,
    memory: Range<u64>,
}

impl Site {
    /// One of so many packages, with room for a TD of so many GiB.
    ///
    /// # Errors
    /// What the module or the frame allocator refused.
    pub fn new(packages: u32, room_gib: u64) -> Result<Self, Error> {
        let room = room_gib * PAGE_1G;
        // The S-EPT takes 4 KiB for each 2 MiB, the vCPUs' pages less than as much again.
        let size = room + (room / 256).next_multiple_of(PAGE_1G);
        let memory = BASE..BASE + size;
        // The PAMT lies behind, 16 bytes for each page of each size.
        let pamt = (size / 128).next_multiple_of(PAGE_1G);
        let config = Config {
            lp_to_package: (0..packages * CPUS_PER_PACKAGE)
                .map(|lp| lp / CPUS_PER_PACKAGE)
                .collect(),
            cmrs: [(BASE, size + pamt)].into(),
            seamrr: SEAMRR,
            ..Config::default()
        };
        let keyids = KeyIds {
            shared: config.num_mktme_keyids,
            private: config.num_tdx_keyids,
            max_pa: config.max_pa,
            bits: config.keyid_bits,
        };
        let hkids = Hkids::new(&keyids);
        let global_hkid = hkids.take_global().map_err(failed("HKIDs"))?.surrender();
        let server = Arc::new(Server::new(config));
        let tdmr = TdmrPlan { base: BASE, size };
        server
            .bring_up(tdmr, global_hkid.into())
            .map_err(|status| Error::new("the module", format!("{status:?}")))?;
        let topology = Topology::new(packages * CPUS_PER_PACKAGE, memory.clone());
        let machine = Arc::new(Machine::new(topology, Costs::default()));
        let span = (memory.start, memory.end);
        let mut frames = Frames::new();
        let words = Box::leak(vec![0; words_for(span)].into_boxed_slice());
        frames
            .add_zone(span, words)
            .and_then(|()| frames.add(span))
            .map_err(failed("the frame allocator"))?;
        let direct = Direct::new(Arc::clone(&server), Arc::clone(&machine));
        Ok(Self {
            pool: FramePool::new(Ledger::new(frames, Arc::clone(&machine)), direct),
            coordinator: Coordinator::new(hkids),
            server,
            machine,
            keyids,
            global_hkid,
            packages,
            room,
            memory,
        })
    }

    /// Bytes of a TD that it has room for.
    pub const fn room(&self) -> u64 {
        self.room
    }

    /// Its packages.
    pub const fn packages(&self) -> u32 {
        self.packages
    }

    /// The emulated module and its machine.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// What time passes on.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The module's own HKID.
    pub const fn global_hkid(&self) -> u16 {
        self.global_hkid
    }

    /// Where the KeyID is in a physical address.
    ///
    /// # Errors
    /// When the machine can't have such KeyIDs.
    pub fn keyid_position(&self) -> Result<KeyIdPosition, Error> {
        KeyIdPosition::new(self.keyids.max_pa, self.keyids.bits)
            .ok_or_else(|| Error::new("KeyIDs", "they do not fit a physical address"))
    }

    /// The CPUs of a simulation; they are in as few packages as can hold them, which are those of the server.
    pub fn topology(&self, cpus: u32) -> Topology {
        Topology::new(cpus, self.memory.clone())
    }
}
