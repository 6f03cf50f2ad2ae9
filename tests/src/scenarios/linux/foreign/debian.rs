//! A whole Debian with systemd, and a database in it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Time, console, no_lockup};
use crate::scenarios::Bench;
use crate::scenarios::linux::shell::Shell;
use crate::scenarios::linux::{COMMAND, TRIES, sound};

/// From the TD's start to the login.
const LOGIN: Duration = Duration::from_secs(600);
/// For the database.
const DATABASE: Duration = Duration::from_secs(600);

/// It comes up to its login without a unit that failed, and PostgreSQL's benchmark gives its figure.
pub fn debian(bench: &mut Bench) -> Result<()> {
    let time = Time::start();
    let initrd = bench.programs().foreign().debian();
    let mut console = console(bench, &initrd, "2560M", "", "4G")?;
    let mut tries = 0..TRIES;
    loop {
        if tries.next().is_none() {
            bail!("QEMU has lost the TD {TRIES} times");
        }
        console.succeed("td start linux", time.within(LOGIN))?;
        let mut shell = Shell::open(&mut console, "linux")?;
        let is_there = shell.wait_while_booting("td login: ", time.within(LOGIN))?;
        if is_there {
            shell.type_line("root")?;
            shell.wait_for(":~# ", COMMAND)?;
            // The kernel is silent from here on: what it has to complain about is looked for at the end.
            shell.type_line(
                "dmesg -n 1; bind 'set enable-bracketed-paste off'; stty cols 1000; PS1='td''# '",
            )?;
            shell.wait_for_prompt(COMMAND)?;
        }
        shell.leave()?;
        if is_there {
            break;
        }
        bench.note("TD linux executed code that was patched already; started again");
        console.succeed("td destroy linux", COMMAND)?;
    }
    let mut shell = Shell::reopen(&mut console, "linux")?;
    let said = shell.run("systemctl is-system-running --wait", time.within(LOGIN))?;
    let failed = shell.run("systemctl --failed --no-legend --plain", COMMAND)?;
    ensure!(said.trim() == "running", "{said}\n{failed}");
    let analyzed = shell.run("systemd-analyze time | head -1", COMMAND)?;
    bench.note(analyzed.trim());
    let command = "su postgres -c 'cd && /usr/lib/postgresql/*/bin/pgbench -i -q && \
                   /usr/lib/postgresql/*/bin/pgbench -c 4 -j 4 -T 30'";
    let said = shell.run(command, time.within(DATABASE))?;
    let result = said.lines().find(|line| line.starts_with("tps = "));
    bench.note(format!("pgbench: {}", result.context(said.clone())?.trim()));
    no_lockup(&mut shell)?;
    shell.leave()?;
    sound(&mut console)
}
