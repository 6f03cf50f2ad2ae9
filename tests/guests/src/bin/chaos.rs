//! A guest that executes anything: every opcode in turn, with operands, prefixes and modes of all kinds, while its
//! page tables, descriptor tables and stacks are overwritten, until that kills it.
//!
//! MRCONFIGID holds two numbers: the seed (0: another in each life), and the number of steps after which it destroys
//! itself for good (0: 2,000). The seed also determines the first opcode, so that many lives cover all of them.
#![no_std]
#![no_main]

use guest_kit::check::{Check, Checks};
use guest_kit::numbers::Numbers;
use guest_kit::{cpu, guest, say, wishes};
use guests::opcodes::instruction;
use guests::sandbox::Sandbox;

guest!("chaos", main);

/// The numbers of the parameters.
const SEED: usize = 0;
const STEPS: usize = 1;
/// Default number of steps in a life.
const MANY: u64 = 2000;
/// Number of steps per line of output.
const TOLD: u64 = 16;
/// Average number of steps until one begins with something vital overwritten.
const SELDOM: u64 = 256;
/// Number of opcodes at which a life can begin.
const STARTS: u64 = 1 << 16;

fn main(checks: &mut Checks) {
    checks.once("dies-of-it", live);
}

fn live() -> Check {
    let seed = match wishes::word(SEED) {
        0 => cpu::tsc(),
        seed => seed,
    };
    let steps = match wishes::word(STEPS) {
        0 => MANY,
        steps => steps,
    };
    let mut numbers = Numbers::new(seed);
    let start = numbers.below(STARTS);
    say!("chaos: seed {seed:#x}");
    let sandbox = Sandbox::new();
    let mut step = 0;
    loop {
        let is_late = step >= steps;
        let ruin = match numbers.once_in(SELDOM) {
            _ if is_late => 1 + step - steps,
            true => 1,
            false => 0,
        };
        sandbox.step(&instruction(start + step, &mut numbers), &mut numbers, ruin);
        step += 1;
        if step % TOLD == 0 {
            say!("chaos: {step} steps");
        }
    }
}
