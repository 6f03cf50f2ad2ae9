//! Guests that ask for everything, well-formed and not: the host survives each call, gives each an answer, and loses
//! nothing. The seed is printed, and SEAMARK_SEED chooses another.

mod kit;

use kit::{Act, Rig, SHARED, Script, Shape, Td, call};
use seam::abi::{Gprs, PAGE_2M, PAGE_4K};
use seam::address::Gpa;
use std::sync::atomic::Ordering::SeqCst;
use vcpu::Stop;
use vcpu::ghci::{Branch, Status};

/// A sequence of numbers from a seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[(self.next() % choices.len() as u64) as usize]
    }

    /// A register: anything, or something that a host might take.
    fn operand(&mut self) -> u64 {
        let any = self.next();
        match any % 8 {
            0 => any,
            1 => any >> (any % 64),
            2 => 1 << (any >> 8 & 63),
            3 => self.of(&[
                0,
                1,
                2,
                3,
                4,
                8,
                16,
                u64::MAX,
                1 << 63,
                u64::MAX - PAGE_4K + 1,
            ]),
            4 => self.of(&[0, SHARED]) | ((any >> 40) % 40 * PAGE_4K),
            5 => self.of(&[0, SHARED]) | ((any >> 40) % 40 * PAGE_2M),
            6 => any >> 32 & 0xFFFF,
            _ => self.of(&[0x3F8, 0x3F9, 0x70, 0x71, 0x608, 0x600, 0x80, 0x510]),
        }
    }

    fn msr(&mut self) -> u64 {
        let any = self.next();
        match any % 4 {
            0 => 0x800 + (any >> 8) % 0x40,
            1 => 0x200 + (any >> 8) % 0x110,
            2 => self.of(&[0x6E0, 0x1B, 0xFE, 0x830, 0x832, 0x838, 0x83E, 0x80F, 0x179]),
            _ => self.operand(),
        }
    }

    /// Operands for a sub-function: those that it takes, half of the time.
    fn operands(&mut self, function: u64) -> [u64; 4] {
        let wild = [(); 4].map(|()| self.operand());
        let any = self.next();
        if any & 1 == 0 {
            return wild;
        }
        let any = any >> 1;
        let page = self.of(&[0, SHARED]) | (any % 40 * PAGE_4K);
        match function {
            0xA => [
                self.of(&[0xB, 0x1F, 6, 0x4000_0000, 0x4000_0001]),
                any % 4,
                0,
                0,
            ],
            0xC => [any % 3, 0, 0, 0],
            0x1E => [self.of(&[1, 2, 4]), any % 2, wild[2] & 0xFFFF, wild[3]],
            0x1F => [self.msr(), 0, 0, 0],
            0x20 if any.is_multiple_of(4) => [0x830, ((any % 4) << 32) | 0x40, 0, 0],
            0x20 => [self.msr(), self.of(&[0, 1, 0x31, 0x1FF, wild[1]]), 0, 0],
            0x30 => {
                let gpa = self.of(&[0xFEC0_0000, 0xFEC0_0010, 0xFED0_0000, wild[2] & 0xFF_FFF8]);
                [
                    self.of(&[1, 2, 4, 8]),
                    any % 2,
                    self.of(&[0, SHARED, SHARED]) | gpa,
                    wild[3],
                ]
            }
            0x1_0001 => [page, any % 1100 * PAGE_4K, 0, 0],
            0x1_0002 => [
                SHARED | self.of(&[0, BUFFER]),
                self.of(&[0, PAGE_4K, 0x800]),
                0,
                0,
            ],
            0x1_0004 => [any % 512, 0, 0, 0],
            0x1_0005 => [
                SHARED | BUFFER,
                SHARED | BUFFER | (any % 2 * 8),
                self.of(&[0, 0x50, 7]),
                0,
            ],
            _ => [any % 3, wild[1], wild[2], wild[3]],
        }
    }

    fn hostile(&mut self) -> Gprs {
        let function = self.of(&[
            0xA, 0xC, 0x1E, 0x1E, 0x1F, 0x20, 0x20, 0x30, 0x30, 0x1_0000, 0x1_0001, 0x1_0002,
            0x1_0004, 0x1_0005, 0x41, 0,
        ]);
        let function = if self.next().is_multiple_of(32) {
            self.next()
        } else {
            function
        };
        let mut regs = call(function, self.operands(function));
        regs.rdx = self.next();
        regs.rbx = self.next();
        regs.rsi = self.next();
        if self.next().is_multiple_of(64) {
            regs.r10 = self.next();
        }
        regs
    }
}

/// Memory of the TD, and a part of it that few calls convert.
const MEMORY: u64 = 128 << 20;
const BUFFER: u64 = 100 << 20;

/// Whether a call is meant to be the TD's last.
fn is_last(regs: &Gprs) -> bool {
    let is_power = regs.r11 == 0x1E && matches!(regs.r14, 0x604 | 0xCF9 | 0x64);
    regs.r10 == 0 && (regs.r11 == 0x1_0003 || is_power)
}

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
    let mut numbers = Numbers(seed);
    let rig = Rig::new("");
    let before = rig.out();
    let shape = Shape {
        memory: MEMORY,
        ..Shape::default()
    };
    let td = Td::new(&rig, &shape);
    let station = &td.board.stations()[0];
    let missing = || {
        let all = Branch::ALL.iter().filter(|branch| !branch.ends());
        all.filter(|branch| station.branches().get(**branch) < ENOUGH)
            .count()
    };
    // Only a guest that has no memory for it is told so.
    let mut spare = Vec::new();
    for batch in 0..MAX_BATCHES {
        if missing() == 0 {
            break;
        }
        // A buffer that asks for a quote.
        td.ask(&[call(0x1_0001, [SHARED | BUFFER, PAGE_2M, 0, 0])]);
        let version = |words: &mm::shared::Words| words[0].store(1, SeqCst);
        _ = td.board.shared().with_page(&rig, Gpa(BUFFER), version);
        if batch % 4 == 3 {
            while let Some(frame) = mm::shared::Frames::take(&rig, seam::abi::PageSize::Size4K) {
                spare.push(frame);
            }
        }
        let calls: Vec<_> = std::iter::repeat_with(|| numbers.hostile())
            .filter(|regs| !is_last(regs))
            .take(BATCH)
            .collect();
        let script = Script::new(calls.iter().map(|regs| Act::Call(*regs)));
        let host = td.host();
        loop {
            match td.run(&host, 0, &script) {
                Stop::Yield => break,
                Stop::Halted => td.board.post_nmi(&host, 0),
                other => panic!("{other:?}: {:?}", td.board.end()),
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
        let times = station.branches().get(*branch);
        println!("{times:8} {}", branch.name());
    }
    assert_eq!(missing(), 0);
    // Back to private with all of it: nothing but tables is left.
    let mut from = 0;
    loop {
        let answer = td.ask(&[call(0x1_0001, [from, MEMORY - from, 0, 0])])[0];
        match answer.r10 {
            0 => break,
            status => assert_eq!(status, Status::Retry as u64),
        }
        from = answer.r11;
    }
    assert_eq!(td.board.shared().holding().pages, [0, 0]);
    let tables = td.board.shared().holding().tables;
    let private = td.map.holding();
    assert_eq!(private.pages, [0; 3]);
    let control = rig.out() - before - tables - private.sept;
    println!("{control} control pages");
    assert_eq!(control, 1 + 6 + 6, "TDR, TDCS, TDVPS");
}
