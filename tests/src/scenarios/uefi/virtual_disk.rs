//! OVMF boots from a virtio disk: a file of the boot volume with an EFI system partition, in which there is a unified kernel
//! image of Debian's kernel with a busybox. The machine has no drive for the TD.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::media::Media;
use crate::programs::OVMF_13;
use crate::scenarios::Bench;
use crate::scenarios::linux::shell::{PROMPT, Shell};
use crate::scenarios::stage::{
    ANSWER, LIFE, Named, Words, config, nothing_is_left, used, wait_for_state,
};

/// The disk's name among those that are made for measured boots, and its largest size.
const DISK: &str = "uki-1";
const MOST: u64 = 128 << 20;
/// Time limit of a boot to the shell, far more than needed, for a busy computer.
const BOOT: Duration = Duration::from_secs(600);

/// Boots, and reads the disk once more by Linux's driver.
pub fn boots(bench: &mut Bench) -> Result<()> {
    let programs = bench.programs();
    let image = programs.measured().disk(DISK);
    let bytes = image.metadata()?.len();
    ensure!(bytes <= MOST, "the disk has {bytes} bytes");
    // One vCPU: QEMU's race on patched code needs two.
    let disk = "[[td.disk]]\nfile = \"disk\"\n[[file]]\nname = \"disk\"\npath = \"disk.img\"";
    let td = Named::new(OVMF_13, "1G", 1)
        .called("disk")
        .uefi()
        .with(disk);
    let media = Media::of_program(&programs.seamark())?
        .with_config_text(&config("", &[td]))
        .with_file(&format!("{OVMF_13}.fd"), &programs.guest(OVMF_13))?
        .with_file("disk.img", &image)?;
    let machine = bench.machine_with(&media)?.with_memory("3G");
    let mut console = bench.console(&machine)?;
    let before = used(&mut console)?;
    let started = Instant::now();
    console.succeed("td start disk", LIFE)?;
    Words::of("disk").wait(&mut console, PROMPT, BOOT)?;
    let took = started.elapsed().as_secs_f32();
    bench.note(format!(
        "a disk of {} MiB: shell after {took:.1} s",
        bytes >> 20
    ));
    let mut shell = Shell::reopen(&mut console, "disk")?;
    shell.run("dmesg -n 1", ANSWER)?;
    let found = shell.run("cat /sys/block/vda/size /sys/block/vda/ro", ANSWER)?;
    let found: Vec<_> = found.split_whitespace().collect();
    ensure!(found == [&*(bytes / 512).to_string(), "1"], "{found:?}");
    let firmware = shell.run("test -d /sys/firmware/efi && echo by UEFI", ANSWER)?;
    ensure!(firmware.trim() == "by UEFI", "{firmware}");
    shell.type_line("poweroff")?;
    shell.leave()?;
    wait_for_state(&mut console, "disk", "reclaimed", LIFE)?;
    nothing_is_left(&mut console, &[], before)
}
