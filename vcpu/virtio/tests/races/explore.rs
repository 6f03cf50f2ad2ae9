//! Exploration of thread schedules.

use std::env;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// Number of orders tried by each scheduler, unless the environment variable `ORDERS` says another one, and their seed.
const ORDERS: usize = 200;
const SEED: u64 = 0x5ea_3a4c;
/// Number of points at which an order departs from running one thread after the other.
const DEPARTURES: usize = 3;

/// Runs `race` in many orders: half of them random, half with few departures from running one thread after the other.
pub fn explore(race: impl Fn() + Send + Sync + Clone + 'static) {
    let orders = env::var("ORDERS")
        .ok()
        .and_then(|orders| orders.parse().ok());
    let orders = orders.unwrap_or(ORDERS);
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    let random = RandomScheduler::new_from_seed(SEED, orders);
    Runner::new(random, config.clone()).run(race.clone());
    let few = PctScheduler::new_from_seed(SEED, DEPARTURES, orders);
    Runner::new(few, config).run(race);
}
