//! Guests that make every call, well-formed or not. The host survives and answers each call, and loses nothing. The
//! test prints its seed; SEAMARK_SEED sets another.

mod kit;

use guest_kit::hostile::Ground;
use guest_kit::numbers::Numbers;
use kit::{Act, Rig, SHARED, Script, Shape, Td, call};
use seam::abi::PAGE_2M;
use vcpu::Stop;
use vcpu::ghci::{Branch, Status};

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
    let td = Td::new(&rig, &shape);
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
        if batch % 4 != 0 {
            while let Some(frame) = mm::shared::Frames::take(&rig, seam::abi::PageSize::Size4K) {
                spare.push(frame);
            }
        }
        let calls: Vec<_> = std::iter::repeat_with(|| GROUND.next(&mut numbers))
            .filter(|call| !call.is_last())
            .take(BATCH)
            .collect();
        let script = Script::new(calls.iter().map(|call| Act::Call(call.regs)));
        let host = td.host();
        // While vCPU 0 converts memory, vCPU 1 makes a call that needs the same lock.
        let (td, outer) = (&td, script.clone());
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
        assert_eq!(answers.len(), BATCH);
        for (asked, answer) in calls.iter().zip(answers) {
            let status = answer.regs().r10;
            assert!(STATUSES.contains(&status), "{asked:x?}: {status:#x}");
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
