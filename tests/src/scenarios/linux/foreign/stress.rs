//! Debian's stress-ng on all vCPUs.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Time, boot, console, no_lockup};
use crate::scenarios::Bench;
use crate::scenarios::linux::shell::Shell;
use crate::scenarios::linux::sound;

/// The stressors, each of which runs for a minute.
const LONG: [&str; 6] = [
    "--cpu 4",
    "--vm 4 --vm-bytes 64M",
    "--timer 4",
    "--clock 4",
    "--switch 4",
    "--futex 4",
];
/// The stressors that choose their code by the CPU: shorter, for they do so at once.
const SHORT: [&str; 4] = [
    "--cpu 4 --cpu-method float",
    "--cpu 4 --cpu-method fft",
    "--cpu 4 --cpu-method matrixprod",
    "--matrix 4",
];
/// The time that a stressor may take to end.
const END: Duration = Duration::from_secs(180);

/// Nothing that stress-ng does stops a CPU, or is no instruction of the CPU that a TD is told it has.
pub fn stress(bench: &mut Bench) -> Result<()> {
    let time = Time::start();
    let initrd = bench.programs().foreign().programs();
    let mut console = console(bench, &initrd, "1G", "", "2G")?;
    boot(bench, &mut console)?;
    let mut shell = Shell::reopen(&mut console, "linux")?;
    let long = LONG.map(|stressor| (stressor, 60));
    for (stressor, seconds) in long.into_iter().chain(SHORT.map(|stressor| (stressor, 10))) {
        let command = format!("stress-ng {stressor} --timeout {seconds}s --metrics-brief");
        let limit = time.within(Duration::from_secs(seconds) + END);
        let said = shell.run(&command, limit)?;
        ensure!(
            said.contains("successful run completed"),
            "{stressor}:\n{said}"
        );
        no_lockup(&mut shell)?;
        let figures = said.lines().filter_map(operations).collect::<Vec<_>>();
        bench.note(format!("{stressor}, {seconds} s: {}", figures.join(", ")));
    }
    shell.leave()?;
    sound(&mut console)
}

/// Returns the operations that a line of the metrics states: `stress-ng: metrc: [PID] NAME OPERATIONS ...`.
fn operations(line: &str) -> Option<String> {
    let (_, metrics) = line.split_once("metrc: [")?;
    let mut words = metrics.split_whitespace().skip(1);
    let (name, count) = (words.next()?, words.next()?);
    count.parse::<u64>().ok()?;
    Some(format!("{count} bogo operations of {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_with_figures_is_found_among_the_others() {
        let said = [
            "stress-ng: metrc: [99] stressor       bogo ops real time  usr time",
            "stress-ng: metrc: [99]                           (secs)    (secs)",
            "stress-ng: metrc: [99] cpu                 152     60.72     75.44",
            "stress-ng: info:  [99] successful run completed in 60.72s",
        ];
        let found: Vec<_> = said.into_iter().filter_map(operations).collect();
        assert_eq!(found, ["152 bogo operations of cpu"]);
    }
}
