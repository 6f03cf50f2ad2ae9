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

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use seam::abi::ghci;
use vcpu::Stop;

/// A call that a guest makes.
struct Case {
    name: &'static str,
    /// R11 to R15.
    operands: [u64; 5],
    /// True if an interrupt is posted to the vCPU, and stays so.
    is_posted: bool,
    /// True if an interrupt is in its APIC page, where only the module sees it.
    is_virtual: bool,
}

const fn case(name: &'static str, request: ghci::Request, operands: [u64; 4]) -> Case {
    let [r12, r13, r14, r15] = operands;
    Case {
        name,
        operands: [request as u64, r12, r13, r14, r15],
        is_posted: false,
        is_virtual: false,
    }
}

const CASES: [Case; 8] = [
    case("cpuid", ghci::Request::Cpuid, [0x2, 0, 0, 0]),
    case(
        "cpuid-hypervisor",
        ghci::Request::Cpuid,
        [0x4000_0000, 0, 0, 0],
    ),
    case("cpuid-topology", ghci::Request::Cpuid, [0xB, 1, 0, 0]),
    case("in-absent", ghci::Request::Io, [4, 0, 0x9000, 0]),
    case("out-absent", ghci::Request::Io, [1, 1, 0x80, 0x55]),
    case("out-last", ghci::Request::Io, [1, 1, 0xFFFF, 0x55]),
    Case {
        is_posted: true,
        ..case("hlt-posted", ghci::Request::Hlt, [0; 4])
    },
    Case {
        is_virtual: true,
        ..case("hlt-virtual", ghci::Request::Hlt, [0; 4])
    },
];

/// The largest number of instructions of an exit.
const EXIT: u32 = 300;

/// A request to devices.
struct Request {
    name: &'static str,
    /// The largest number of instructions beside the copy.
    most: u32,
    /// Makes so many. Returns the number that succeeded.
    make: fn(u64) -> u64,
}

/// A few requests.
const FEW: u64 = 16;

const REQUESTS: [Request; 3] = [
    Request {
        name: "block-read",
        most: 1_500,
        make: |count| request_blocks(false, count),
    },
    Request {
        name: "block-write",
        most: 1_500,
        make: |count| request_blocks(true, count),
    },
    Request {
        name: "frame",
        most: 2_500,
        make: send_frames,
    },
];

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
        CASES
            .iter()
            .for_each(|case| println!("{} {EXIT}", case.name));
        for request in &REQUESTS {
            println!("{} {}", request.name, request.most);
        }
        return ExitCode::SUCCESS;
    };
    let case = CASES.iter().find(|case| case.name == name);
    let request = REQUESTS.iter().find(|request| request.name == name);
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

/// Makes requests: a few, then all. These must not allocate more.
fn make(request: &Request, count: u64) -> Result<(), String> {
    // They are there before anything is counted.
    td::frames();
    let allocations = [FEW.min(count), count].map(|count| {
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
    module::script(case.operands, case.is_virtual);
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
