//! A TD that the module knows nothing of, and the least of a host that runs it.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use mm::frames::{Frames, words_for};
use mm::pages::{Flush as CacheFlush, page_of};
use mm::private::{FramePool, Kick, Levels, NoAnswer, PrivateMap};
use mm::shared::{self, SharedMap, Words};
use seam::abi::PageSize;
use seam::address::Hpa;
use seam::counters::Counters;
use seam::hkid::Hkid;
use seam::page::{Clean, Clear, Page};
use seam::retry::Never;
use seam::tdh::{Keyed, Tdh, Tdr, Tdvpr};
use spin::Mutex;
use vcpu::clock::Clock;
use vcpu::{Console, Executor, PhysicalCpu, TimeSlice, Vm};

use crate::module::Module;

const MEMORY: u64 = 64 << 20;
const SHARED: u64 = 1 << 47;
/// As many vCPUs as the topology has to be told of.
const VCPUS: u32 = 64;

/// Memory that nobody looks into.
pub struct Unread;

impl CacheFlush for Unread {
    fn flush(&self, _: Hpa, _: PageSize) {}
}

impl Clear for Unread {
    fn clear(&self, _: Hpa, _: PageSize) {}
}

/// The root page of a shared EPT.
pub struct Root(Box<Words>);

impl shared::Frames for Root {
    fn take(&self, _: PageSize) -> Option<Hpa> {
        Some(Hpa(0x1000))
    }

    fn give(&self, _: Hpa, _: PageSize) {}

    fn quarantine(&self, _: Hpa, _: PageSize) {}

    fn split(&self, _: Hpa) {}

    fn words(&self, _: Hpa) -> &Words {
        &self.0
    }
}

/// The TD.
pub struct Td {
    pub vm: Vm,
    pub tdvpr: ManuallyDrop<Tdvpr>,
    counters: Counters,
    root: Root,
    _tdr: ManuallyDrop<Tdr<Keyed>>,
}

impl Td {
    pub fn new() -> Self {
        let counters = Counters::new();
        let tdh = Tdh::new(Module, Never, &counters);
        let span = (0, MEMORY);
        let mut frames = Frames::new();
        let words = Box::leak(vec![0; words_for(span)].into_boxed_slice());
        frames
            .add_zone(span, words)
            .and_then(|()| frames.add(span))
            .expect("a zone of 64 MiB");
        let mut frame = || -> Page<Clean> {
            let frame = frames.alloc_page(0).expect("64 MiB have a few frames");
            page_of(frame, &Unread).expect("a frame is a page")
        };
        #[expect(clippy::disallowed_methods, reason = "there is no other TD here")]
        let hkid = Hkid::mint(33);
        let tdr = tdh.mng_create(frame(), hkid);
        let tdr = tdr.unwrap_or_else(|_| unreachable!("this module refuses nothing"));
        let tdvpr = tdh.vp_create(&tdr, frame());
        let tdvpr = tdvpr.unwrap_or_else(|_| unreachable!("this module refuses nothing"));
        let root = Root(Box::new(
            [const { std::sync::atomic::AtomicU64::new(0) }; 512],
        ));
        let shared = SharedMap::new(&root, Levels::Four, SHARED).expect("it gets a root page");
        let clock = Clock::new(1 << 48, 0, 40);
        let memory = std::iter::once(0..MEMORY).collect();
        Self {
            vm: Vm::new(0..VCPUS, memory, shared, clock, Arc::new(Console::new())),
            tdvpr: ManuallyDrop::new(tdvpr),
            counters,
            root,
            _tdr: ManuallyDrop::new(tdr),
        }
    }

    /// A host that wants the vCPU back after so many entries.
    pub fn host(&self, entries: u64) -> OneTd<'_> {
        OneTd {
            td: self,
            tdh: Tdh::new(Module, Never, &self.counters),
            left: Cell::new(entries),
            notified: Cell::new(0),
        }
    }
}

/// The host.
pub struct OneTd<'t> {
    td: &'t Td,
    tdh: Tdh<'t, Module, Never>,
    left: Cell<u64>,
    notified: Cell<u64>,
}

impl Executor for OneTd<'_> {
    fn notify(&self, _: u32) {}

    fn interrupt(&self, _: u32) {}

    fn woken(&self) {}
}

impl Kick for OneTd<'_> {
    fn kick(&self) -> Result<(), NoAnswer> {
        Ok(())
    }
}

impl shared::Flush for OneTd<'_> {
    fn flush(&self) -> Result<(), NoAnswer> {
        Ok(())
    }
}

impl PhysicalCpu for OneTd<'_> {
    type Frames = Root;

    fn shared_frames(&self) -> &Root {
        &self.td.root
    }

    fn tsc(&self) -> u64 {
        0
    }

    fn monotonic_us(&self) -> u64 {
        0
    }

    fn unix_seconds(&self) -> u64 {
        0
    }

    fn serve_interrupt(&self, _: u8) {}

    fn serve_nmi(&self) {}

    fn serve_machine_check(&self) {}

    fn take_interrupts(&self) {}

    fn notify(&self, _: u32) {
        self.notified.set(self.notified.get() + 1);
    }

    fn wake_console(&self) {}
}

impl TimeSlice for OneTd<'_> {
    type Call = Module;
    type Wait = Never;
    type Pool = FramePool<Mutex<Frames>, Unread>;
    type Cpu = Self;

    fn cpu(&self) -> &Self {
        self
    }

    fn cpu_number(&self) -> u32 {
        0
    }

    fn executor(&self) -> &dyn Executor {
        self
    }

    fn tdh(&self) -> &Tdh<'_, Module, Never> {
        &self.tdh
    }

    fn private(&self) -> &PrivateMap {
        unreachable!("these calls are not about private memory")
    }

    fn pool(&self) -> &Self::Pool {
        unreachable!("these calls need no memory")
    }

    fn must_leave(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.wrapping_sub(1));
        left == 0
    }

    fn set_timer(&self, _: Option<u64>) {}
}
