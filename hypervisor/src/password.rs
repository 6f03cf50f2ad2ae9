//! The console's password: its hash is computed on a CPU that has nothing else to do.
//!
//! The console's CPU leaves the password here and goes on running vCPUs. A CPU that finds no work takes it ([`work`]).
//! If none does in time, the console's CPU computes the hash itself, with interrupts on. `host.console_lock` is bounded
//! so that this takes no longer than a few time slices of a vCPU. The memory for it is set aside at boot.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use argon2::Block;
use config::lock::{self, PasswordHash};
use sync::IrqLock;
use x86_64::{
    instructions::interrupts,
    registers::control::{Cr4, Cr4Flags},
};

use crate::{cpu, time, watchdog};

/// Microseconds within which an idle CPU takes a password.
const TAKE_US: u64 = 50_000;
/// Microseconds within which the CPU that took it answers. Emulated CPUs are slow.
const ANSWER_US: u64 = 60_000_000;

static CONSOLE: IrqLock<Option<Lock>> = IrqLock::new(None);
static JOB: IrqLock<Job> = IrqLock::new(Job::None);
/// True while a password waits for a CPU.
static WAITS: AtomicBool = AtomicBool::new(false);

/// The console's lock.
struct Lock {
    hash: &'static PasswordHash,
    /// The memory; `None` while a CPU computes a hash in it.
    blocks: Option<Vec<Block>>,
}

/// A password on its way.
enum Job {
    None,
    /// It waits for a CPU.
    Waits(Vec<u8>),
    /// A CPU computes its hash.
    Taken,
    /// It was compared.
    Done(bool),
}

/// Sets the console's password and its memory aside. Returns the problem, if any.
pub fn init(hash: Option<&'static PasswordHash>) -> Option<&'static str> {
    let hash = hash?;
    let mut blocks = Vec::new();
    let has_room = blocks.try_reserve_exact(hash.blocks()).is_ok();
    if has_room {
        blocks.resize(hash.blocks(), Block::new());
    }
    without_avx(lock::choose_instructions);
    *CONSOLE.lock() = Some(Lock {
        hash,
        blocks: has_room.then_some(blocks),
    });
    (!has_room).then_some("there is no memory to check the console's password: it stays locked")
}

/// Returns true if the console has a password.
pub fn is_set() -> bool {
    CONSOLE.lock().is_some()
}

/// Returns whether `password` is the console's; `None` if it could not be checked. `work` does the calling CPU's other
/// work meanwhile, and returns `false` if there is none.
pub fn check(password: &str, work: impl Fn() -> bool) -> Option<bool> {
    *JOB.lock() = Job::Waits(password.as_bytes().into());
    WAITS.store(true, SeqCst);
    wake_idle();
    let start = time::us();
    loop {
        let waited = time::us() - start;
        if let Job::Done(is_right) = *JOB.lock() {
            return Some(is_right);
        }
        // With one CPU, nobody else takes it.
        if (waited > TAKE_US || cpu::up().len() < 2) && WAITS.load(SeqCst) {
            compute();
            continue;
        }
        if waited > ANSWER_US || matches!(*JOB.lock(), Job::None) {
            return None;
        }
        watchdog::feed();
        if !work() {
            core::hint::spin_loop();
        }
    }
}

/// Computes the hash of a password that waits, on a CPU that has nothing else to do. Returns `false` if there is none.
pub fn work() -> bool {
    // The console's CPU has the console.
    WAITS.load(SeqCst) && cpu::number() != 0 && compute()
}

fn compute() -> bool {
    if !WAITS.swap(false, SeqCst) {
        return false;
    }
    let Job::Waits(mut password) = core::mem::replace(&mut *JOB.lock(), Job::Taken) else {
        return false;
    };
    let taken = CONSOLE
        .lock()
        .as_mut()
        .and_then(|lock| Some((lock.hash, lock.blocks.take()?)));
    let is_right = taken.and_then(|(hash, mut blocks)| {
        let is_right = hash.is_of(&password, &mut blocks);
        // The content of the memory follows from the password.
        blocks.fill(Block::new());
        core::hint::black_box(&blocks);
        if let Some(lock) = &mut *CONSOLE.lock() {
            lock.blocks = Some(blocks);
        }
        is_right
    });
    password.fill(0);
    core::hint::black_box(&password);
    *JOB.lock() = is_right.map_or(Job::None, Job::Done);
    true
}

fn wake_idle() {
    let idle = cpu::all()
        .iter()
        .find(|cpu| cpu.state() == cpu::State::Idle);
    if let Some(cpu) = idle {
        cpu.attention.poke();
        cpu::poke(cpu.number);
    }
}

/// Runs `work` on a CPU that says it has no AVX. Firmware may have enabled AVX on this CPU (XCR0), and no other CPU has
/// it enabled then.
fn without_avx(work: impl FnOnce()) {
    interrupts::without_interrupts(|| {
        let cr4 = Cr4::read();
        #[expect(unsafe_code, reason = "CR4.OSXSAVE tells whether AVX can be used")]
        // SAFETY: nothing but the choice of instructions depends on the bit, and it is restored.
        unsafe {
            Cr4::write(cr4 - Cr4Flags::OSXSAVE);
            work();
            Cr4::write(cr4);
        }
    });
}
