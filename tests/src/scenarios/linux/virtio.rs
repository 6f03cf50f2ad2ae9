//! Debian's kernel with a virtio console, its port for scripts, and disks.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::shell::{PROMPT, Shell};
use super::{Bench, COMMAND, Counts, config, sound, start};
use crate::console::Console;

/// Maximum number of exits until the shell with the virtio console, in percent of those with the serial port.
const MOST_EXITS: u64 = 60;
/// The image of the disks has the numbers up to this one, each on a line.
const NUMBERS: u32 = 600_000;

/// Two disks of one image: one that can be written, and one that can't.
const DISKS: &str = "console = \"virtio\"\n\
     [[td.disk]]\nfile = \"disk\"\noverlay = \"16M\"\n\
     [[td.disk]]\nfile = \"disk\"\nserial = \"other\"\n";

fn td(name: &str, cmdline: &str, more: &str) -> String {
    format!(
        "[[td]]\nname = \"{name}\"\nkernel = \"vmlinuz\"\ninitrd = \"initrd\"\ncmdline = \"{cmdline}\"\n\
         memory = \"256M\"\n{more}"
    )
}

/// Boots with the serial port, then with the virtio console and disks, and compares the exits. Types at the virtio
/// console, runs a program from a file system on a disk, and lets a script talk to a process.
pub fn virtio(bench: &mut Bench) -> Result<()> {
    let numbers = (1..=NUMBERS).fold(String::new(), |mut text, number| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{number}");
        text
    });
    let tds = [
        "[[file]]\nname = \"disk\"\npath = \"disk.img\"\n".to_owned(),
        td("serial", "console=ttyS0", ""),
        td("virtio", "console=hvc0", DISKS),
    ];
    let media = bench.linux_media(&config(&tds))?;
    let machine = bench.machine_with(&media.with_bytes("disk.img", numbers.as_bytes()))?;
    let mut console = bench.console(&machine)?;
    let before = boot(bench, &mut console, "serial")?;
    console.succeed("td destroy serial", COMMAND)?;
    let after = boot(bench, &mut console, "virtio")?;
    let percent = after * 100 / before.max(1);
    bench.note(format!(
        "exits until the shell: {before} with the serial port, {after} with the virtio console ({percent} %)"
    ));
    ensure!(percent <= MOST_EXITS, "{percent} % of the exits");

    let mut shell = Shell::reopen(&mut console, "virtio")?;
    type_much(&mut shell)?;
    use_disks(&mut shell, numbers.len())?;
    await_script(&mut shell)?;
    shell.leave()?;
    run_script(&mut console)?;
    let mut shell = Shell::reopen(&mut console, "virtio")?;
    shell.type_line("poweroff")?;
    shell.leave()?;
    super::wait_for_state(&mut console, "virtio", "reclaimed")?;
    sound(&mut console)
}

/// Starts a TD. Returns the number of exits until its shell.
fn boot(bench: &mut Bench, console: &mut Console, name: &str) -> Result<u64> {
    let before = Counts::read(console)?.entries();
    let times = start(bench, console, name, &[PROMPT])?;
    let to_shell = times.first().context("a time")?;
    let exits = Counts::read(console)?.entries() - before;
    ensure!(exits > 0, "{name}: no exits are counted");
    bench.note(format!(
        "{name}: shell after {:.1} s",
        to_shell.as_secs_f32()
    ));
    Ok(exits)
}

/// Reads and writes more than a buffer of the console holds.
fn type_much(shell: &mut Shell<'_>) -> Result<()> {
    // The kernel's messages stay out of the answers.
    shell.run("dmesg -n 1", COMMAND)?;
    let consoles = shell.run("cat /proc/consoles", COMMAND)?;
    ensure!(consoles.contains("hvc0"), "{consoles}");
    let interrupts = shell.run("grep virtio0 /proc/interrupts", COMMAND)?;
    ensure!(interrupts.contains("virtio0"), "{interrupts}");
    let typed = "0123456789".repeat(20);
    let echoed = shell.run(&format!("echo {typed}"), COMMAND)?;
    ensure!(echoed.trim() == typed, "{echoed}");
    let many = shell.run("seq 1000 | tail -n 500", COMMAND)?;
    ensure!(many.lines().count() == 500, "{many}");
    Ok(())
}

/// Lets a process of the TD wait for a line at the port for scripts, which it answers there.
fn await_script(shell: &mut Shell<'_>) -> Result<()> {
    let name = shell.run("cat /sys/class/virtio-ports/vport0p1/name", COMMAND)?;
    ensure!(name.trim() == "org.seamark.script", "{name}");
    let port = "/dev/vport0p1";
    let answer = format!("(read line <{port}; echo \"you said $line\" >{port}) &");
    shell.run(&answer, COMMAND).map(drop)
}

/// Sends a line to the TD's port for scripts, and waits for the answer.
fn run_script(console: &mut Console) -> Result<()> {
    console.succeed(r"td send virtio hello\n", COMMAND)?;
    let deadline = Instant::now() + COMMAND;
    loop {
        let said = console.succeed("td script virtio", COMMAND)?;
        let said = said["output"].as_str().unwrap_or_default();
        if said.contains("you said hello\n") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the port has {said:?}");
    }
}

/// Reads an image of `bytes` bytes, then writes a file system over it and runs a program from there. The disk that shares
/// the image stays as it was.
fn use_disks(shell: &mut Shell<'_>, bytes: usize) -> Result<()> {
    let numbers = shell.run(&format!("seq {NUMBERS} | sha256sum"), COMMAND)?;
    let is_whole = |shell: &mut Shell<'_>, disk: &str| {
        let found = shell.run(&format!("head -c {bytes} /dev/{disk} | sha256sum"), COMMAND)?;
        ensure!(found == numbers, "{disk} has {found} instead of {numbers}");
        Ok(())
    };
    is_whole(shell, "vda")?;
    let facts = shell.run(
        "cat /sys/block/vda/serial /sys/block/vda/ro; echo; cat /sys/block/vdb/serial /sys/block/vdb/ro",
        COMMAND,
    )?;
    let facts: Vec<_> = facts.split_whitespace().collect();
    ensure!(facts == ["disk0", "other1"], "{facts:?}");
    let commands = [
        "mke2fs -q /dev/vda && mkdir -p /root/vda && mount -t ext2 /dev/vda /root/vda",
        "mkdir /root/vda/bin && cp /bin/busybox /root/vda/bin/sh && umount /root/vda",
        "sync; echo 3 >/proc/sys/vm/drop_caches",
        "mount -t ext2 /dev/vda /root/vda && chroot /root/vda /bin/sh -c 'echo from the disk'",
    ];
    let mut said = String::new();
    for command in commands {
        said = shell.run(command, COMMAND)?;
    }
    ensure!(said.trim() == "from the disk", "{said}");
    let refused = shell.run("dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>&1", COMMAND)?;
    ensure!(refused.contains("not permitted"), "{refused}");
    is_whole(shell, "vdb")
}
