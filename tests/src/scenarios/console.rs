//! A scenario that sends random input to the console.

use std::env;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::{Bench, Scenario};

pub const ALL: &[Scenario] = &[Scenario::new("console-fuzz", fuzz)];

/// Number of random bytes that the console gets.
const FUZZ_BYTES: usize = 100_000;

/// An environment variable that repeats a run.
const SEED: &str = "SEAMARK_FUZZ_SEED";

fn fuzz(bench: &mut Bench) -> Result<()> {
    let seed = seed()?;
    bench.note(format!("{SEED}={seed}"));
    let machine = bench.machine()?;
    let mut console = bench.console(&machine)?;

    let mut random = fastrand::Rng::with_seed(seed);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(FUZZ_BYTES)
        .collect();
    let limit = Duration::from_secs(120);
    let context = || format!("repeat it with {SEED}={seed}");
    console.guest().send(&bytes).with_context(context)?;
    console.resume_after_noise(limit).with_context(context)?;
    console.succeed("version", limit).with_context(context)?;
    Ok(())
}

fn seed() -> Result<u64> {
    match env::var(SEED) {
        Ok(text) => text.parse().with_context(|| format!("{SEED} is no number")),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            Ok(now.as_secs() ^ u64::from(now.subsec_nanos()) << 32)
        }
    }
}
