//! How long SEAMCALLs take: the host's own code, with a stopwatch around the instruction.
//!
//! A TD of its own is built, shrunk and ended again and again, by the same code as any TD, through a [`Platform`] that is the
//! host's in everything but that each SEAMCALL is timed. So what is measured is what the host does, in the order in which it
//! does it.

use alloc::{string::String, vec::Vec};
use core::ops::Range;

use boot::config;
use mm::{
    private::{NoneRuns, Pool},
    tdvf::{self, Entry, Kind, TAIL_BYTES},
};
use seam::{
    abi::{
        Gprs, Leaf, PAGE_2M, PAGE_4K, PageSize, Status,
        metadata::{td as td_field, vp},
    },
    address::{Gpa, Hpa, Level},
    call::{Fault, SeamCall},
    counters::Counters,
    tdh::Tdh,
};

use crate::{
    console::host::seam::{LeafTime, SeamBench},
    cpu::call::NoAnswer,
    platform::{CpuPlace, Platform},
    sync::IrqLock,
    td::{
        end::Way,
        error::Error,
        host::{Host, NoRunner},
        registry::Tds,
    },
    time,
};

/// Lives of the TD that are measured at most, and the time after which no further one is begun.
const MAX_ROUNDS: u32 = 100;
const MAX_US: u64 = 10_000_000;
/// Calls of a leaf that are kept; those that come later are not.
const MAX_SAMPLES: usize = 4096;
/// Calls of each harmless leaf in a round.
const HARMLESS: usize = 8;

/// The TD's memory, and what is left of it when it was shrunk.
const MEMORY: u64 = 16 << 20;
const SHRUNK: u64 = 8 << 20;
/// A large page of it that is split, and pages of another that are taken one by one. (Putting pages together takes a guest
/// that has accepted them.)
const SPLIT: u64 = 2 * PAGE_2M;
const SMALL: Range<u64> = 3 * PAGE_2M..3 * PAGE_2M + 16 * PAGE_4K;

/// Measures, with an HKID and memory that no other TD was promised.
///
/// # Errors
/// One sentence: why nothing could be measured.
pub fn run<P: Platform>(tds: &Tds<'_, P>) -> Result<SeamBench, String> {
    let host = tds.host();
    let free = host.platform.pool().free_bytes();
    if free.saturating_sub(tds.promised()) < 2 * MEMORY {
        return Err(alloc::format!(
            "a TD to measure with takes up to {} MiB, and so much is not free and unpromised; end a TD",
            (2 * MEMORY) >> 20
        ));
    }
    let record = Record::new();
    let timed = Timed {
        platform: host.platform,
        record: &record,
    };
    let image = image();
    let scratch = Tds::new(
        Host {
            platform: &timed,
            coordinator: host.coordinator,
            capabilities: host.capabilities.clone(),
            native: host.native,
            keyid: host.keyid,
            global_hkid: host.global_hkid,
            clearing: host.clearing,
            stop_us: host.stop_us,
            runner: &NoRunner,
        },
        Vec::from([(config(), Some(&*image))]),
    );
    let start = host.platform.now_us();
    let (mut rounds, mut problem) = (0, None);
    while rounds < MAX_ROUNDS && host.platform.now_us() - start < MAX_US {
        let lived = live(&scratch);
        // Whatever came of it: nothing of it stays.
        let ended = scratch.destroy(1, Way::Terminate);
        if let Err(error) = lived.and(ended.map(drop)) {
            problem = Some(alloc::format!("{error}"));
            break;
        }
        rounds += 1;
    }
    let leafs = record.times();
    match problem {
        Some(problem) if leafs.is_empty() => Err(problem),
        problem => Ok(SeamBench {
            tsc_hz: time::hz(),
            rounds,
            leafs,
            problem,
        }),
    }
}

/// A life in which every leaf is called that a host needs.
fn live<P: Platform>(tds: &Tds<'_, P>) -> Result<(), Error> {
    let td = tds.create(1)?;
    // Nobody runs it; but what looks at a vCPU wants it to be runnable.
    tds.resume(1)?;
    let platform = tds.host().platform;
    let tdh = platform.tdh();
    let map = td.map().ok_or(Error::NoHeap)?;
    for _ in 0..HARMLESS {
        tdh.sys_rd(seam::abi::metadata::sys::TDX_FEATURES0.id)?;
        map.keyed(|tdr| Ok(tdh.mng_rd(tdr, td_field::ATTRIBUTES.id)?))?;
        map.keyed(|tdr| Ok(tdh.mem_sept_rd(tdr, Gpa(SPLIT), Level::Pd)?))?;
        map.keyed(|tdr| Ok(tdh.phymem_page_rdmd(tdr.hpa())?))?;
        let held = td.hold(platform, 0).map_err(Error::Vcpu)?;
        tdh.vp_rd(
            held.tdvpr().map_err(Error::Vcpu)?,
            vp::VCPU_STATE_DETAILS.id,
        )?;
    }
    tds.host().with_cpu(|cpu| {
        map.demote(cpu, Gpa(SPLIT), PageSize::Size2M, &NoneRuns)?;
        map.remove(cpu, SMALL, &NoneRuns)
    })?;
    tds.shrink(1, SHRUNK)?;
    Ok(())
}

/// A configuration as an operator would write it.
fn config() -> config::Td {
    let text = alloc::format!(
        "[[file]]\nname = \"scratch\"\npath = \"scratch\"\n[[td]]\nname = \"seam-bench\"\nimage = \"scratch\"\nvcpus = 2\n\
         memory = \"{}M\"\npopulate = \"start\"\n",
        MEMORY >> 20
    );
    let mut tds = config::parse(text.as_bytes()).map_or_else(|_| Vec::new(), |config| config.td);
    tds.pop().expect("the text names one TD")
}

/// An image of a few pages that halts if it is ever run.
fn image() -> Vec<u8> {
    const HLT: u8 = 0xF4;
    const BYTES: u32 = 8 * PAGE_4K as u32;
    let firmware = Entry {
        data: 0..BYTES,
        gpa: (1 << 32) - u64::from(BYTES),
        bytes: BYTES.into(),
        kind: Kind::Bfv as u32,
        attributes: 1,
    };
    let metadata = tdvf::metadata_bytes(1);
    let content = alloc::vec![HLT; BYTES as usize - metadata - TAIL_BYTES];
    tdvf::write(&content, &[firmware], &[HLT; TAIL_BYTES])
}

/// Ticks of each leaf.
struct Record(IrqLock<Vec<Samples>>);

struct Samples {
    leaf: Leaf,
    size: Option<PageSize>,
    ticks: Vec<u64>,
}

impl Record {
    const fn new() -> Self {
        Self(IrqLock::new(Vec::new()))
    }

    fn add(&self, leaf: Leaf, size: Option<PageSize>, ticks: u64) {
        let mut all = self.0.lock();
        let place = all.iter().position(|s| (s.leaf, s.size) == (leaf, size));
        let place = place.unwrap_or_else(|| {
            all.push(Samples {
                leaf,
                size,
                ticks: Vec::with_capacity(MAX_SAMPLES),
            });
            all.len() - 1
        });
        let samples = &mut all[place].ticks;
        if samples.len() < MAX_SAMPLES {
            samples.push(ticks);
        }
    }

    fn times(&self) -> Vec<LeafTime> {
        let mut all = self.0.lock();
        all.sort_unstable_by_key(|samples| (samples.leaf, samples.size.map(PageSize::bytes)));
        all.iter_mut().filter_map(Samples::time).collect()
    }
}

impl Samples {
    fn time(&mut self) -> Option<LeafTime> {
        self.ticks.sort_unstable();
        let at = |percent: usize| {
            self.ticks
                .get((self.ticks.len() - 1) * percent / 100)
                .copied()
        };
        Some(LeafTime {
            leaf: self.leaf.name(),
            page_bytes: self.size.map(PageSize::bytes),
            calls: self.ticks.len(),
            min: *self.ticks.first()?,
            median: at(50)?,
            p99: at(99)?,
        })
    }
}

/// The page that a call was about, where its size makes a difference.
fn size(leaf: Leaf, before: &Gprs, after: &Gprs) -> Option<PageSize> {
    /// The level in a GPA operand.
    const LEVEL: u64 = 7;
    match leaf {
        Leaf::MemPageAug
        | Leaf::MemPageDemote
        | Leaf::MemPagePromote
        | Leaf::MemPageRemove
        | Leaf::MemRangeBlock
        | Leaf::MemRangeUnblock => PageSize::from_level((before.rcx & LEVEL) as u8),
        Leaf::PhymemPageReclaim => PageSize::from_level(after.r8 as u8),
        _ => None,
    }
}

/// SEAMCALL with a stopwatch.
struct Stopwatch<'r, C> {
    call: C,
    record: &'r Record,
}

impl<C: SeamCall> SeamCall for Stopwatch<'_, C> {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        let before = *regs;
        let start = time::tsc();
        let result = self.call.seamcall(regs);
        let ticks = time::tsc() - start;
        let leaf = Leaf::from_number(before.rax as u16);
        if let (Some(leaf), Ok(())) = (leaf, &result)
            && !Status(regs.rax).is_error()
        {
            self.record.add(leaf, size(leaf, &before, regs), ticks);
        }
        result
    }
}

/// A machine whose SEAMCALLs are timed.
struct Timed<'p, P> {
    platform: &'p P,
    record: &'p Record,
}

impl<'p, P: Platform> Platform for Timed<'p, P> {
    type Call = Stopwatch<'p, P::Call>;
    type Wait = P::Wait;
    type Pool = P::Pool;

    fn tdh(&self) -> Tdh<'_, Self::Call, P::Wait> {
        self.platform.tdh().through(|call| Stopwatch {
            call,
            record: self.record,
        })
    }

    fn counters(&self, cpu: u32) -> Option<&Counters> {
        self.platform.counters(cpu)
    }

    fn pool(&self) -> &P::Pool {
        self.platform.pool()
    }

    fn cpus(&self) -> &[CpuPlace] {
        self.platform.cpus()
    }

    fn this_cpu(&self) -> u32 {
        self.platform.this_cpu()
    }

    fn on_each(&self, cpus: &[u32], work: &(dyn Fn(u32) + Sync)) -> Result<(), NoAnswer> {
        self.platform.on_each(cpus, work)
    }

    fn relax(&self) {
        self.platform.relax();
    }

    fn write_back_caches(&self) {
        self.platform.write_back_caches();
    }

    fn read(&self, from: Hpa, into: &mut [u8]) {
        self.platform.read(from, into);
    }

    fn write(&self, to: Hpa, bytes: &[u8]) {
        self.platform.write(to, bytes);
    }

    fn now_us(&self) -> u64 {
        self.platform.now_us()
    }
}
