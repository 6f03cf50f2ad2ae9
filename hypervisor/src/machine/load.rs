//! The host's counts, as the console samples them.

use alloc::vec::Vec;

use console::host::{
    load::{Spent, TdSample},
    td::Tds as _,
};
use host::platform::Platform;
use seam::abi::Leaf;

use crate::machine::console_tds::{ConsoleTds, SchedulerView};

/// Returns the number of SEAMCALLs of all CPUs.
pub fn calls<P: Platform>(platform: &P) -> u64 {
    let counters = platform
        .cpus()
        .iter()
        .filter_map(|place| platform.counters(place.cpu));
    counters
        .map(|counters| {
            let leafs = Leaf::ALL.iter();
            leafs.map(|leaf| counters.leaf(*leaf).calls).sum::<u64>()
        })
        .sum()
}

/// Returns the samples of all TDs.
pub fn tds<P: Platform>(tds: &ConsoleTds<'_, '_, P>) -> Vec<TdSample> {
    let sample = |line: console::host::td::TdLine| TdSample {
        spent: spent(tds.scheduler, line.id, line.vcpus),
        id: line.id,
        name: line.name,
        state: line.state,
        vcpus: line.vcpus,
        private_bytes: line.private_bytes,
        memory_bytes: line.memory_bytes,
    };
    tds.list().into_iter().map(sample).collect()
}

fn spent(scheduler: &dyn SchedulerView, id: u32, vcpus: u16) -> Spent {
    (0..vcpus).fold(Spent::default(), |sum, index| {
        let vcpu = scheduler.vcpu(id, index);
        Spent {
            run_us: sum.run_us + vcpu.run_us.unwrap_or(0),
            wait_us: sum.wait_us + vcpu.wait_us.unwrap_or(0),
            steal_us: sum.steal_us + vcpu.steal_us.unwrap_or(0),
            exits: sum.exits + vcpu.entries.unwrap_or(0),
        }
    })
}
