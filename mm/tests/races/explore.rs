//! Exploration of thread schedules.

use core::ops::ControlFlow;

use mm::private::{Clock, Cpu};
use seam::abi::Gprs;
use seam::call::{Fault, SeamCall};
use seam::counters::Counters;
use seam::retry::{Pause, Wait};
use seam::tdh::Tdh;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};
use stub_module::host::Processor;

use crate::kit::{Host, Pool};

/// Number of orders tried by each scheduler.
const ORDERS: usize = 30;
/// Seed of the schedulers.
const SEED: u64 = 0x5ea_3a4c;
/// Number of points at which an order departs from running one thread after the other.
const DEPARTURES: usize = 3;

/// Runs `race` in many orders: half of them random, half with few departures from running one thread after the other.
pub fn explore(race: impl Fn() + Send + Sync + Clone + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    let random = RandomScheduler::new_from_seed(SEED, ORDERS);
    Runner::new(random, config.clone()).run(race.clone());
    let few = PctScheduler::new_from_seed(SEED, DEPARTURES, ORDERS);
    Runner::new(few, config).run(race);
}

/// A CPU that yields before and after each SEAMCALL.
pub struct Yielding<'h>(Processor<'h>);

impl SeamCall for Yielding<'_> {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        thread::yield_now();
        let result = self.0.seamcall(regs);
        thread::yield_now();
        result
    }

    fn note_shutdown(&self) {
        self.0.note_shutdown();
    }
}

/// Waits by yielding.
pub struct Turn;

impl Wait for Turn {
    fn wait(&self, _: Pause) -> ControlFlow<()> {
        thread::yield_now();
        ControlFlow::Continue(())
    }
}

/// A clock for tests that do not measure time.
pub struct NoTime;

impl Clock for NoTime {
    fn ns(&self) -> u64 {
        0
    }
}

/// Calls `work` as CPU `lp`, and checks that it makes no illegal call.
pub fn on<R>(host: &Host, lp: u32, work: impl FnOnce(Cpu<'_, Yielding<'_>, Turn, Pool>) -> R) -> R {
    let counters = Counters::new();
    let tdh = Tdh::new(
        Yielding(host.server.processor(lp).unwrap()),
        Turn,
        &counters,
    );
    let result = work(Cpu {
        tdh: &tdh,
        pool: &host.pool,
    });
    assert_eq!(counters.total().illegal, 0);
    result
}
