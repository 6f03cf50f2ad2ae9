//! A small disk that UEFI firmware boots: GRUB with a menu, and Debian's kernel with a shell.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::media::{Layout, read_from_disk};
use crate::scenarios::Bench;

/// The title of the menu's first entry. It is on the screen when the menu takes a key.
pub const MENU: &str = "Linux with a shell";

/// The keys of the menu.
pub mod key {
    /// Linux, which stays after a panic.
    pub const LINUX: &str = "l";
    /// Linux, which restarts a second after a panic.
    pub const RESTARTING_LINUX: &str = "p";
    /// GRUB's own reboot.
    pub const REBOOT: &str = "r";
    /// GRUB's own power-off.
    pub const OFF: &str = "h";
}

/// GRUB's configuration. It waits for a key. The terminal is the firmware's: a byte at the serial port would go to the
/// firmware or to GRUB, whoever is first.
const CONFIG: &str = r#"
set timeout=-1
menuentry "Linux with a shell" --hotkey=l {
    linux /vmlinuz console=ttyS0 no_timer_check
    initrd /initrd
}
menuentry "Linux that restarts after a panic" --hotkey=p {
    linux /vmlinuz console=ttyS0 no_timer_check panic=1
    initrd /initrd
}
menuentry "Reboot" --hotkey=r {
    reboot
}
menuentry "Power off" --hotkey=h {
    halt
}
"#;

/// Writes the image.
pub fn write(bench: &Bench) -> Result<PathBuf> {
    let grub = read_from_disk(&bench.programs().debian().disk(), "EFI/BOOT/grubx64.efi");
    let grub = grub.context("no GRUB on Debian's disk")?;
    let linux = bench.programs().linux();
    let read =
        |path: PathBuf| fs::read(&path).with_context(|| format!("can't read {}", path.display()));
    let (kernel, initrd) = (read(linux.kernel())?, read(linux.initrd())?);
    let files: [(&str, &[u8]); 4] = [
        ("EFI/BOOT/BOOTX64.EFI", &grub),
        // Debian's signed GRUB looks for it there.
        ("EFI/debian/grub.cfg", CONFIG.as_bytes()),
        ("vmlinuz", &kernel),
        ("initrd", &initrd),
    ];
    let layout = Layout {
        label: *b"MENU       ",
        volume_id: 0x5EA3_0023,
        files: &files.map(|(name, bytes)| (name.to_owned(), bytes)),
        root: 0,
    };
    let image = bench.directory()?.join("menu.img");
    layout.write(&image)?;
    Ok(image)
}
