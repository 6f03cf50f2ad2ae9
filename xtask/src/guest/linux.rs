//! Debian's kernel, a static busybox, and an initial file system of them.
//!
//! Nothing is installed: packages are downloaded and unpacked. What is there already is taken as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use seamark_tests::programs::{Linux, Programs};

use super::cpio::Archive;
use super::packages::{Packages, depends, find, output, read, write};
use crate::{build, host, workspace};

/// The kernel of the 6.12 series, in bookworm-security and bookworm-backports; it depends on the one with the version in its name.
const KERNEL: &str = "linux-image-6.12-cloud-amd64";
const BUSYBOX: &str = "busybox-static";
/// Modules for the system, in the order in which they are loaded: for reports, to tell the host of a panic, and to follow
/// the power button; for a network card, disks and sockets.
const MODULES: [&str; 14] = [
    "kernel/fs/configfs/configfs.ko.xz",
    "kernel/drivers/virt/coco/tsm.ko.xz",
    "kernel/drivers/virt/coco/tdx-guest/tdx-guest.ko.xz",
    "kernel/drivers/misc/pvpanic/pvpanic.ko.xz",
    "kernel/drivers/misc/pvpanic/pvpanic-mmio.ko.xz",
    "kernel/drivers/input/evdev.ko.xz",
    "kernel/drivers/acpi/button.ko.xz",
    "kernel/net/core/failover.ko.xz",
    "kernel/drivers/net/net_failover.ko.xz",
    "kernel/drivers/net/virtio_net.ko.xz",
    "kernel/drivers/block/virtio_blk.ko.xz",
    "kernel/net/vmw_vsock/vsock.ko.xz",
    "kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko.xz",
    "kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko.xz",
];

/// Modules of a bridge, which few systems load: they stay compressed.
const BRIDGE: [&str; 3] = [
    "kernel/net/llc/llc.ko.xz",
    "kernel/net/802/stp.ko.xz",
    "kernel/net/bridge/bridge.ko.xz",
];

/// The project's own programs for Linux in a TD.
const PROGRAMS: [&str; 2] = ["tdreport", "vsock"];

/// The inittab of busybox's init.
const INITTAB: &str = "\
::sysinit:/etc/rc
::respawn:-/bin/sh
::shutdown:/bin/umount -a -r
";

/// The script that runs before the shell.
const RC: &str = "\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in configfs tsm tdx-guest pvpanic pvpanic-mmio evdev button; do insmod /lib/$module.ko; done
if grep -q 0x1af4 /sys/bus/pci/devices/*/vendor; then
  for module in failover net_failover virtio_net virtio_blk \\
      vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
    insmod /lib/$module.ko
  done
fi
mount -t configfs configfs /sys/kernel/config
acpid -l /dev/null -p /tmp/acpid.pid
for i in $(seq 200); do [ -s /tmp/acpid.pid ] && break; usleep 10000; done
echo \"Linux $(uname -r) with $(nproc) processors\"
";

/// The program that acpid runs when the power button is pressed.
const POWER_BUTTON: &str = "#!/bin/sh\nexec poweroff\n";

/// The program that udhcpc runs when something has changed.
const LEASE: &str =
    "#!/bin/sh\n[ \"$1\" = bound ] && ifconfig $interface $ip netmask $subnet\nexit 0\n";

/// The shell's profile: typed lines are shown unchanged, whatever their length.
const PROFILE: &str = "PS1='td# '\nstty columns 1000\n";

/// Kernel and initial file system; fetched and built where they are missing.
pub fn get() -> Result<Linux> {
    let linux = Programs::in_directory(&workspace::target().join("seamark")).linux();
    let directory = linux.directory();
    fs::create_dir_all(directory)
        .with_context(|| format!("can't create {}", directory.display()))?;
    let packages = Packages::in_directory(directory)?;
    let unpacked = packages.unpacked();
    if !linux.kernel().exists() {
        packages.fetch([&*kernel_package()?, BUSYBOX])?;
    }
    let programs = PROGRAMS.map(build::linux_program);
    let initrd = initrd(&unpacked, programs)?;
    write(&linux.initrd(), &initrd)?;
    // Last, for it is the sign that all is there.
    if !linux.kernel().exists() {
        let kernel = find(&unpacked.join("boot"), "vmlinuz-")?;
        write(&linux.kernel(), &read(&kernel)?)?;
    }
    Ok(linux)
}

/// The package that the one without content of its own stands for.
fn kernel_package() -> Result<String> {
    let name = |depends: Vec<String>| depends.into_iter().next();
    let mut found = depends(KERNEL).map(name);
    if found.is_err() {
        // A machine that never asked Debian what there is.
        host::apt_update()?;
        found = depends(KERNEL).map(name);
    }
    found?.with_context(|| format!("apt-get knows no {KERNEL}"))
}

/// The initial file system.
fn initrd(unpacked: &Path, programs: [Result<PathBuf>; PROGRAMS.len()]) -> Result<Vec<u8>> {
    let busybox = unpacked.join("bin/busybox");
    let mut archive = Archive::default();
    for directory in [
        "bin",
        "dev",
        "etc",
        "etc/acpi",
        "etc/acpi/PWRF",
        "lib",
        "proc",
        "root",
        "sbin",
        "sys",
        "tmp",
    ] {
        archive.directory(directory);
    }
    archive.program("bin/busybox", &read(&busybox)?);
    let names = output(Command::new(&busybox).arg("--list"))?;
    for name in names.lines().filter(|name| *name != "busybox") {
        archive.link(&format!("bin/{name}"), "busybox");
    }
    archive.link("init", "bin/init");
    archive.file("etc/inittab", INITTAB.as_bytes());
    archive.program("etc/rc", RC.as_bytes());
    archive.program("etc/acpi/PWRF/00000080", POWER_BUTTON.as_bytes());
    archive.program("etc/udhcpc", LEASE.as_bytes());
    archive.file("etc/profile", PROFILE.as_bytes());
    for (name, program) in PROGRAMS.iter().zip(programs) {
        archive.program(&format!("bin/{name}"), &read(&program?)?);
    }
    let modules = find(&unpacked.join("lib/modules"), "")?;
    for module in MODULES {
        let path = modules.join(module);
        let content = Command::new(&busybox).arg("xzcat").arg(&path).output();
        let content = content.with_context(|| format!("can't start {}", busybox.display()))?;
        ensure!(
            content.status.success(),
            "{} can't be unpacked: {}",
            path.display(),
            String::from_utf8_lossy(&content.stderr)
        );
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        archive.file(&format!("lib/{name}"), &content.stdout);
    }
    for module in BRIDGE {
        let path = modules.join(module);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("lib/{name}"), &read(&path)?);
    }
    Ok(archive.finish())
}
