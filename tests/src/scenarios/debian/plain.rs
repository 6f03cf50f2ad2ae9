//! The disk in plain machines, without Seamark: it must be right before it is used to test something else.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{COMMAND, LOGIN, is_well, ssh};
use crate::programs::Debian;
use crate::qemu::{Boot, Device, Firmware, Forward, Machine, Shape};
use crate::scenarios::Bench;
use crate::ssh::Ssh;

/// Time limit of a boot to the login: far more than needed. Debian's 4 MiB build of OVMF alone takes a minute.
pub const BOOT: Duration = Duration::from_secs(400);

/// A way to boot the disk.
struct Way {
    name: &'static str,
    /// True if the firmware finds the disk, and else if it starts the kernel beside it.
    by_uefi: bool,
    shape: Shape,
    /// True if the firmware accepts signed programs alone.
    is_secure: bool,
}

const WAYS: [Way; 3] = [
    Way {
        name: "direct",
        by_uefi: false,
        shape: Shape::USUAL,
        is_secure: false,
    },
    Way {
        name: "UEFI",
        by_uefi: true,
        shape: Shape::USUAL,
        is_secure: false,
    },
    Way {
        name: "Secure Boot",
        by_uefi: true,
        shape: Shape {
            chipset: "q35,smm=on",
            cpu: "max,phys-bits=40",
            firmware: Firmware::MICROSOFT,
            ..Shape::USUAL
        },
        is_secure: true,
    },
];

/// Boots the disk in each way to its login and its network. The disk is as before then.
pub fn boots(bench: &mut Bench) -> Result<()> {
    let disk = bench.programs().debian().disk();
    let changed = || -> Result<_> { Ok(fs::metadata(&disk)?.modified()?) };
    let before = changed()?;
    for way in &WAYS {
        let check = |ssh: &Ssh| match way.by_uefi {
            true => grub_is_up_to_date(ssh),
            false => Ok(()),
        };
        way.boot(bench, &disk, check).with_context(|| way.name)?;
    }
    ensure!(changed()? == before, "the disk was written to");
    Ok(())
}

/// Boots a disk by UEFI to its login and its network, and runs further checks. The disk is as before then.
pub fn boots_by_uefi(
    bench: &mut Bench,
    disk: &Path,
    check: impl FnOnce(&Ssh) -> Result<()>,
) -> Result<()> {
    let [_, by_uefi, _] = &WAYS;
    by_uefi.boot(bench, disk, check)
}

impl Way {
    fn boot(
        &self,
        bench: &mut Bench,
        disk: &Path,
        check: impl FnOnce(&Ssh) -> Result<()>,
    ) -> Result<()> {
        let forward = Forward::to_isolated()?;
        let ssh = ssh(bench, forward)?;
        let started = Instant::now();
        let mut guest = bench.start(&self.machine(bench, disk, forward))?;
        guest.expect(LOGIN, BOOT)?;
        let to_login = started.elapsed().as_secs_f32();
        ssh.wait(COMMAND)?;
        let to_ssh = started.elapsed().as_secs_f32();
        bench.note(format!(
            "{}: login after {to_login:.1} s, ssh after {to_ssh:.1} s",
            self.name
        ));
        is_well(&ssh)?;
        self.came_this_way(&ssh)?;
        check(&ssh)?;
        // The connection may end before its answer.
        let _ = ssh.run("sudo systemctl poweroff", COMMAND);
        guest.wait_for_end(COMMAND).map(drop)
    }

    fn machine(&self, bench: &Bench, disk: &Path, forward: Forward) -> Machine {
        let debian = bench.programs().debian();
        let boot = if self.by_uefi {
            Boot::Devices
        } else {
            // As in GRUB's configuration on the disk.
            Boot::Linux {
                kernel: debian.kernel(),
                command_line: format!("{} no_timer_check", Debian::COMMAND_LINE),
            }
        };
        let mut machine = Machine::new(boot, None)
            .with_cpus(2, 1)
            .with_memory("1G")
            .with_device(Device::Snapshot(disk.to_owned()))
            .with_device(Device::NetWithSsh(forward));
        machine.shape = self.shape;
        machine
    }

    /// Checks that the kernel was started as it should be.
    fn came_this_way(&self, ssh: &Ssh) -> Result<()> {
        let command_line = ssh.run("cat /proc/cmdline", COMMAND)?;
        let by_grub = command_line.contains("BOOT_IMAGE=/boot/vmlinuz-");
        ensure!(by_grub == self.by_uefi, "{command_line}");
        // The shim leaves its lists to the kernel.
        let variables = ssh.run("ls /sys/firmware/efi/efivars", COMMAND)?;
        let by_shim = variables.contains("MokListRT-");
        ensure!(by_shim == self.by_uefi, "{variables}");
        let secure = ssh.run(
            "od -An -tu1 -j4 /sys/firmware/efi/efivars/SecureBoot-*",
            COMMAND,
        )?;
        ensure!((secure.trim() == "1") == self.is_secure, "{secure}");
        Ok(())
    }
}

/// Checks that GRUB's configuration on the disk is what `update-grub` makes of the machine.
fn grub_is_up_to_date(ssh: &Ssh) -> Result<()> {
    let update = "sudo cp /boot/grub/grub.cfg /tmp/built && sudo update-grub 2>&1 && \
                  sudo diff /tmp/built /boot/grub/grub.cfg";
    ssh.run(update, COMMAND).map(drop)
}
