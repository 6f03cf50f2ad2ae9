//! `exits CASE N`: runs a vCPU until its guest has made the call of that name N times, or a device until it has carried out
//! that many requests. `exits` alone lists the names, each with the number of instructions that it may take.
//!
//! `cargo xtask bench exits` runs it twice under callgrind, with N and with more, and counts what an exit costs: all
//! instructions of [`vcpu::Vcpu::run`] but for those of [`module::exits_module`], which stands for the module and the
//! guest. It fails if the run loop allocates.

mod disk;
mod frame;
mod host;
mod module;
mod td;
mod worst;

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use seam::abi::ghci;
use vcpu::Stop;

/// A call that a guest makes.
struct Case {
    name: &'static str,
    /// The largest number of instructions.
    most: u32,
    /// R11 to R15.
    operands: [u64; 5],
    /// The increase of R14 with each call.
    step: u64,
    /// True if an interrupt is posted to the vCPU, and stays so.
    is_posted: bool,
    /// True if an interrupt is in its APIC page, where only the module sees it.
    is_virtual: bool,
}

const fn case(name: &'static str, most: u32, request: ghci::Request, operands: [u64; 4]) -> Case {
    let [r12, r13, r14, r15] = operands;
    Case {
        name,
        most,
        operands: [request as u64, r12, r13, r14, r15],
        step: 0,
        is_posted: false,
        is_virtual: false,
    }
}

const fn cpuid(name: &'static str, most: u32, leaf: u64) -> Case {
    case(name, most, ghci::Request::Cpuid, [leaf, 1, 0, 0])
}

/// OUT of a byte.
const fn out(name: &'static str, most: u32, port: u64) -> Case {
    case(name, most, ghci::Request::Io, [1, 1, port, 0x55])
}

/// The limits are what the exits take, and less than a twentieth more.
const CASES: [Case; 9] = [
    cpuid("cpuid", 140, 0x2),
    cpuid("cpuid-hypervisor", 135, 0x4000_0000),
    cpuid("cpuid-topology", 140, 0xB),
    case("in-absent", 165, ghci::Request::Io, [4, 0, 0x9000, 0]),
    out("out-absent", 155, 0x80),
    out("out-last", 155, 0xFFFF),
    // All ports in turn, more than a vCPU's list of unanswered accesses has room for.
    Case {
        step: 1,
        ..out("out-others", 270, 0x1000)
    },
    Case {
        is_posted: true,
        ..case("hlt-posted", 130, ghci::Request::Hlt, [0; 4])
    },
    Case {
        is_virtual: true,
        ..case("hlt-virtual", 215, ghci::Request::Hlt, [0; 4])
    },
];

/// A request to devices.
struct Request {
    name: &'static str,
    /// The largest number of instructions, beside the copy unless that is counted too.
    most: u32,
    /// Makes so many. Returns the number that succeeded.
    make: fn(u64) -> u64,
}

/// A few requests, and enough of them to count what one costs.
const FEW: u64 = 16;
const MANY: u32 = 1_000;

const REQUESTS: [Request; 3] = [
    Request {
        name: "block-read",
        most: 1_290,
        make: |count| request_blocks(false, count),
    },
    Request {
        name: "block-write",
        most: 1_290,
        make: |count| request_blocks(true, count),
    },
    Request {
        name: "frame",
        most: 1_990,
        make: send_frames,
    },
];

const fn worst(name: &'static str, most: u32, make: fn(u64) -> u64) -> Request {
    Request { name, most, make }
}

/// The most that guests can make of a request, including the copy.
const WORST: [Request; 8] = [
    worst("worst-frame", 88_000, worst::frames),
    worst("worst-spread", 350_000, worst::spread),
    worst("worst-cut", 870_000, worst::cut),
    worst("worst-refused", 22_000, worst::refused),
    worst("worst-interrupt", 16_000, worst::interrupts),
    worst("worst-broadcast", 2_250_000, worst::broadcasts),
    worst("worst-packet", 133_000, worst::packets),
    worst("worst-request", 8_700, worst::requests),
];

/// Number of instructions that are counted at most to measure one of them.
const COUNTED: u32 = 50_000_000;

/// Counts allocations.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[expect(unsafe_code, reason = "implements an allocator")]
// SAFETY: it passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are the ones that the system's allocator wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; `memory` came from `alloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [name, count] = &arguments[..] else {
        list();
        return ExitCode::SUCCESS;
    };
    let case = CASES.iter().find(|case| case.name == name);
    let mut requests = REQUESTS.iter().chain(&WORST);
    let request = requests.find(|request| request.name == name);
    let result = match (case, request, count.parse()) {
        (Some(case), _, Ok(count)) => run(case, count),
        (_, Some(request), Ok(count)) => make(request, count),
        _ => Err("usage: exits [CASE N]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{name}: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Lists the cases: the name, the limit, how many are enough to be counted, and whether the copy is counted too.
fn list() {
    let most = CASES.iter().map(|case| (case.name, case.most));
    let requests = REQUESTS.iter().map(|request| (request.name, request.most));
    for (name, most) in most.chain(requests) {
        println!("{name} {most} {MANY} beside-copy");
    }
    for Request { name, most, .. } in &WORST {
        let count = (COUNTED / most).clamp(FEW as u32 + 1, MANY);
        println!("{name} {most} {count} with-copy");
    }
}

/// Makes requests: a few, then all. These must not allocate more.
fn make(request: &Request, count: u64) -> Result<(), String> {
    // They are there before anything is counted.
    td::frames();
    let few = if count > FEW { FEW } else { 1 };
    let allocations = [few, count].map(|count| {
        let before = ALLOCATIONS.load(Relaxed);
        let done = (request.make)(count);
        (done == count, ALLOCATIONS.load(Relaxed) - before)
    });
    match allocations {
        [(true, few), (true, many)] if few == many => Ok(()),
        [(true, few), (true, many)] => Err(format!("{} allocations", many - few)),
        _ => Err("some failed".into()),
    }
}

fn request_blocks(is_write: bool, count: u64) -> u64 {
    let td = disk::td();
    disk::request(&td, is_write, count)
}

fn send_frames(count: u64) -> u64 {
    frame::Pair::new().send(count)
}

fn run(case: &Case, count: u64) -> Result<(), String> {
    module::script(case.operands, case.step, case.is_virtual);
    let td = host::Td::new();
    let host = td.host(count);
    if case.is_posted {
        // The guest never gets to take it.
        let _ = td.vm.vcpus()[0].descriptor().post(0x31);
    }
    let mut vcpu = vcpu::Vcpu::new(0, 0);
    let before = ALLOCATIONS.load(Relaxed);
    let stop = vcpu.run(&td.vm, &td.tdvpr, &host);
    let allocations = ALLOCATIONS.load(Relaxed) - before;
    let calls = td.vm.vcpus()[0].tally().calls.get();
    match (stop, allocations) {
        (Stop::Yield, 0) if calls == count => Ok(()),
        (Stop::Yield, 0) => Err(format!("{calls} calls of {count}")),
        (Stop::Yield, allocations) => Err(format!("{allocations} allocations")),
        (stop, _) => Err(format!("it stopped: {stop:?} {:?}", td.vm.end())),
    }
}
