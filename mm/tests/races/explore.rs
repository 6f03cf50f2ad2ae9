//! How a race is explored.

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

/// Orders that are tried with one scheduler.
const ORDERS: usize = 30;
/// Where the schedulers begin.
const SEED: u64 = 0x5ea_3a4c;
/// Times at which an order departs from running one thread after the other.
const DEPARTURES: usize = 3;

/// Runs `race` in many orders: half of them at random, half with few departures from one thread after the other.
pub fn explore(race: impl Fn() + Send + Sync + Clone + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    let random = RandomScheduler::new_from_seed(SEED, ORDERS);
    Runner::new(random, config.clone()).run(race.clone());
    let few = PctScheduler::new_from_seed(SEED, DEPARTURES, ORDERS);
    Runner::new(few, config).run(race);
}

/// A CPU that lets others run before each SEAMCALL and after it.
pub struct Yielding<'h>(Processor<'h>);

impl SeamCall for Yielding<'_> {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        thread::yield_now();
        let result = self.0.seamcall(regs);
        thread::yield_now();
        result
    }
}

/// Waits by letting others run.
pub struct Turn;

impl Wait for Turn {
    fn wait(&self, _: Pause) -> ControlFlow<()> {
        thread::yield_now();
        ControlFlow::Continue(())
    }
}

/// Nobody asks how long it took.
pub struct NoTime;

impl Clock for NoTime {
    fn ns(&self) -> u64 {
        0
    }
}

/// Works with CPU `lp`, in turns. The module has nothing against what it is asked.
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
