//! Guests that make every call, well-formed or not. The host survives and answers each call, and loses nothing. The
//! test prints its seed; SEAMARK_SEED sets another.

mod kit;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use devices::{Memory, Now, Page, Unshared};
use guest_kit::hostile::{Call, Ground, QUOTES};
use guest_kit::numbers::Numbers;
use kit::{Act, Rig, SHARED, Script, Shape, Td, call};
use seam::abi::{PAGE_2M, PAGE_4K};
use seam::address::Gpa;
use vcpu::Stop;
use vcpu::ghci::{Branch, Status};
use vcpu::quotes::{QuotePort, Quotes};
use virtio::vsock::{Address, Caller, End, Link, Service};

/// Memory size of the TD, and the start of a part that few calls convert.
const MEMORY: u64 = 128 << 20;
const BUFFER: u64 = 100 << 20;
const GROUND: Ground = Ground {
    shared: SHARED,
    memory: 0..BUFFER,
    vcpus: 2,
};

const STATUSES: [u64; 5] = [
    Status::Success as u64,
    Status::Retry as u64,
    Status::InvalidOperand as u64,
    Status::AlignError as u64,
    Status::SubfunctionUnsupported as u64,
];

/// A quoting service, with its end of the connection to the quote port.
struct QuotingService {
    port: Arc<QuotePort>,
    end: Option<End>,
    is_there: bool,
    answers: bool,
}

/// The memory of the service's guest, of which the port needs nothing.
struct Nothing;

impl Memory for Nothing {
    fn page(&self, gpa: u64) -> Result<&Page, Unshared> {
        Err(Unshared(gpa))
    }
}

impl QuotingService {
    fn new() -> Self {
        Self {
            port: QuotePort::new(),
            end: None,
            is_there: false,
            answers: false,
        }
    }

    /// Makes the service be there, or answer.
    fn set(&mut self, is_there: bool, answers: bool) {
        (self.is_there, self.answers) = (is_there, answers);
        self.serve();
    }

    /// Connects or leaves, and answers what is there.
    fn serve(&mut self) {
        let end = self.end.take().filter(|end| !end.see().is_gone);
        self.end = match end {
            _ if !self.is_there => None,
            None => self.connected(),
            connected => connected,
        };
        let Some(end) = self.end.as_ref().filter(|_| self.answers) else {
            return;
        };
        let mut request = [0; 1052];
        if end.see().readable == request.len() {
            end.take(&mut request);
            // The length, version and type, length, no error, no key, a quote of four bytes.
            let words = [28u32.to_be(), 0x1_0001, 1, 28, 0, 0, 4, 0x5EA];
            for word in words {
                end.put(&word.to_le_bytes());
            }
            // Never late.
            let now = Now {
                monotonic_us: u64::MAX,
                unix_seconds: 0,
            };
            self.port.attend(&Nothing, now);
        }
    }

    fn connected(&self) -> Option<End> {
        let [own, other] = Link::new().begin()?;
        let address = Address { cid: 9, port: 1 };
        let guest = Arc::new(());
        self.port.connect(Caller { address, guest }, other);
        Some(own)
    }
}

/// Makes calls on vCPU 0.
fn run(td: &Td<'_>, calls: &[Call]) {
    let script = Script::new(calls.iter().map(|call| Act::Call(call.regs)));
    let host = td.host();
    // While vCPU 0 converts memory, vCPU 1 makes a call that needs the same lock.
    let outer = script.clone();
    host.meanwhile.replace(Some(Box::new(move || {
        let at = SHARED | BUFFER;
        let ask = Script::new([Act::Call(call(0x1_0005, [at, at, 0, 0]))]);
        assert_eq!(td.run_within(&outer, 1, &ask), Stop::Yield);
    })));
    loop {
        match td.run(&host, 0, &script) {
            Stop::Yield => break,
            Stop::Halted => host.post_nmi(0),
            other => panic!("{other:?}: {:?}", td.vm.end()),
        }
    }
    let answers = script.answers();
    assert_eq!(answers.len(), calls.len());
    for (asked, answer) in calls.iter().zip(answers) {
        let status = answer.regs().r10;
        assert!(STATUSES.contains(&status), "{asked:x?}: {status:#x}");
    }
}

#[test]
fn every_hostile_call_has_an_answer_and_every_branch_is_gone_often() {
    const BATCH: usize = 10_000;
    const MAX_BATCHES: usize = 60;
    const ENOUGH: u64 = 1000;
    let seed = std::env::var("SEAMARK_SEED").map_or(7, |seed| seed.parse().unwrap());
    println!("SEAMARK_SEED={seed}");
    let mut numbers = Numbers::new(seed);
    let rig = Rig::new("");
    let before = rig.out();
    let shape = Shape {
        has_fw_cfg: true,
        memory: MEMORY,
        vcpus: 2,
        ..Shape::default()
    };
    let mut service = QuotingService::new();
    let td = Td::new(&rig, &shape).with_quotes(Quotes::new(service.port.clone()));
    let times = |branch| -> u64 {
        let vcpus = td.vm.vcpus().iter();
        vcpus.map(|state| state.branches().get(branch)).sum()
    };
    let missing = || {
        let all = Branch::ALL.iter().filter(|branch| !branch.ends());
        all.filter(|branch| times(**branch) < ENOUGH).count()
    };
    // Takes all spare frames from the host, for the branches where it has no memory for a guest.
    let mut spare = Vec::new();
    for batch in 0..MAX_BATCHES {
        if missing() == 0 {
            break;
        }
        // A shared buffer for the host's responses.
        let mut at = BUFFER;
        while at != 0 {
            let left = BUFFER + PAGE_2M - at;
            at = td.ask(&[call(0x1_0001, [SHARED | at, left, 0, 0])])[0].r11 & !SHARED;
        }
        service.set(batch % 4 != 3, batch % 4 != 2);
        // Requests for quotes, most of which stay whole.
        for page in 0..QUOTES {
            let at = Gpa(BUFFER + page * PAGE_4K);
            let request = |words: &mm::shared::Words| {
                words[0].store(1, SeqCst);
                words[2].store(1024, SeqCst);
            };
            td.vm.shared().with_page(&rig, at, request).unwrap();
        }
        if batch % 4 != 0 {
            while let Some(frame) = mm::shared::Frames::take(&rig, seam::abi::PageSize::Size4K) {
                spare.push(frame);
            }
        }
        let calls: Vec<_> = std::iter::repeat_with(|| GROUND.next(&mut numbers))
            .filter(|call| !call.is_last())
            .take(BATCH)
            .collect();
        for calls in calls.chunks(BATCH / 10) {
            run(&td, calls);
            // The service answers one request after the other, each of which is written before an entry.
            for _ in 0..10 {
                service.serve();
                td.ask(&[call(0xA, [0; 4])]);
            }
        }
        for frame in spare.drain(..) {
            mm::shared::Frames::give(&rig, frame, seam::abi::PageSize::Size4K);
        }
        rig.audit();
    }
    for branch in Branch::ALL {
        println!("{:8} {}", times(*branch), branch.name());
    }
    assert_eq!(missing(), 0);
    // Converts all memory back to private. Only tables are left.
    let mut from = 0;
    loop {
        let answer = td.ask(&[call(0x1_0001, [from, MEMORY - from, 0, 0])])[0];
        match answer.r10 {
            0 => break,
            status => assert_eq!(status, Status::Retry as u64),
        }
        from = answer.r11;
    }
    assert_eq!(td.vm.shared().holding().pages, [0, 0]);
    let tables = td.vm.shared().holding().tables;
    let private = td.map.holding();
    assert_eq!(private.pages, [0; 3]);
    let control = rig.out() - before - tables - private.sept;
    println!("{control} control pages");
    assert_eq!(control, 1 + 6 + 2 * 6, "TDR, TDCS, TDVPS");
}
