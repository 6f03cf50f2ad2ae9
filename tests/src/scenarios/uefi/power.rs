//! The ways in which a TD that booted by UEFI ends or begins again: by its firmware's menu, by Linux, by the operator, by a
//! panic; and drives from which nothing boots.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::medium::{self, MENU, key};
use super::{BOOT, SHELL};
use crate::console::Console;
use crate::programs::OVMF_13;
use crate::qemu::Device;
use crate::scenarios::Bench;
use crate::scenarios::linux::shell::{PROMPT, Shell};
use crate::scenarios::stage::{
    ANSWER, LIFE, NOTHING, Named, Words, machine, nothing_illegal, output, said, show, type_to,
    wait_for_problem, wait_for_state,
};

/// The interval at which a TD's next life is looked for.
const LOOK: Duration = Duration::from_millis(300);
/// The end of a life whose guest asked for the next one, as the TD's console shows it.
const ASKED: &str = "[it asked for a reset]";
const OFF: &str = "[it switched itself off]";
const PANICKED: &str = "its kernel has panicked";
/// A panic, from Linux's shell.
const PANIC: &str = "echo c >/proc/sysrq-trigger";
/// Switches off the device by which Linux tells the host of a panic.
const TELL_NOBODY: &str =
    "echo 0 >$(find /sys/devices -path '*QEMU0001*' -name events) && echo nobody is told";

/// Takes a TD through its lives, and starts two from drives from which nothing boots.
pub fn ways(bench: &mut Bench) -> Result<()> {
    let medium = medium::write(bench)?;
    let empty = bench.directory()?.join("empty.img");
    File::create(&empty)?.set_len(64 << 20)?;
    // It would boot if it could be read.
    let broken = bench.directory()?.join("broken.img");
    fs::copy(&medium, &broken)?;
    // One vCPU: QEMU's race on patched code needs two.
    let td = |name, memory, drive: u32| {
        Named::new(OVMF_13, memory, 1)
            .called(name)
            .uefi()
            .with(format!("[[td.pci]]\ndevice = \"0000:0{drive}:00.0\""))
    };
    let tds = [
        td("pc", "512M", 1),
        td("empty", "256M", 2),
        td("broken", "256M", 3),
    ];
    let machine = machine(bench, &tds)?
        .with_iommu()
        .with_device(Device::Nvme(medium))
        .with_device(Device::Nvme(empty))
        .with_device(Device::Unreadable(broken));
    let mut console = bench.console(&machine)?;
    let mut pc = Pc::start(&mut console)?;
    pc.in_its_menu()?;
    pc.by_panics()?;
    pc.by_linux()?;
    pc.by_its_menus_end()?;
    for name in ["empty", "broken"] {
        boots_nothing(bench, &mut console, name)?;
    }
    nothing_illegal(&mut console)
}

/// The TD with the menu.
struct Pc<'a> {
    console: &'a mut Console,
    /// The number of the byte at which its present life began.
    began: u64,
}

impl<'a> Pc<'a> {
    const NAME: &'static str = "pc";

    fn start(console: &'a mut Console) -> Result<Self> {
        console.succeed("td start pc", LIFE)?;
        let began = output(console, Self::NAME, NOTHING, ANSWER)?.began;
        Ok(Self { console, began })
    }

    /// Waits for the menu, and presses a key.
    fn choose(&mut self, key: &str) -> Result<()> {
        Words::of(Self::NAME).wait(self.console, MENU, BOOT)?;
        type_to(self.console, Self::NAME, key)
    }

    /// Chooses an entry with Linux. Runs a command at its shell, without waiting for its end.
    fn run_in(&mut self, key: &str, command: &str) -> Result<()> {
        self.choose(key)?;
        Words::of(Self::NAME).wait(self.console, PROMPT, BOOT)?;
        let mut shell = Shell::reopen(self.console, Self::NAME)?;
        shell.type_line(command)?;
        shell.leave()
    }

    /// Waits for the next life. The console must show `why` the last one ended.
    fn begins_again(&mut self, why: &str) -> Result<()> {
        let start = Instant::now();
        let before = self.began;
        while self.began == before {
            ensure!(
                start.elapsed() < BOOT,
                "it does not begin again: {}",
                self.last()?
            );
            std::thread::sleep(LOOK);
            self.began = output(self.console, Self::NAME, NOTHING, ANSWER)?.began;
        }
        let told = output(self.console, Self::NAME, before, ANSWER)?.text;
        ensure!(
            told.contains(why) && told.contains("[started anew]"),
            "its console does not say {why}:\n{told}"
        );
        Ok(())
    }

    fn last(&mut self) -> Result<String> {
        Ok(show(self.console, Self::NAME)?.to_string())
    }

    /// The operator resets it.
    fn is_reset(&mut self) -> Result<()> {
        self.console.succeed("td reset pc", LIFE)?;
        self.begins_again("")
    }

    /// Firmware and GRUB do not listen to the power button. GRUB's own reboot, and the operator's.
    fn in_its_menu(&mut self) -> Result<()> {
        Words::of(Self::NAME).wait(self.console, MENU, BOOT)?;
        let asked = self.console.succeed("td shutdown pc 5", ANSWER)?;
        ensure!(asked["listens"] == false, "{asked}");
        self.choose(key::REBOOT)?;
        self.begins_again(ASKED).context("GRUB's reboot")?;
        Words::of(Self::NAME).wait(self.console, MENU, BOOT)?;
        self.is_reset().context("a reset in the menu")
    }

    /// A panic ends the TD, whether Linux would restart or not, because it tells the host first. If it does not, it goes
    /// on as on a PC.
    fn by_panics(&mut self) -> Result<()> {
        for key in [key::LINUX, key::RESTARTING_LINUX] {
            self.run_in(key, PANIC)?;
            let problem = wait_for_problem(self.console, Self::NAME, BOOT)?;
            ensure!(problem.contains(PANICKED), "{problem}");
            let told = said(self.console, Self::NAME, ANSWER)?;
            ensure!(told.contains(&format!("[{PANICKED}]")), "{told}");
            self.is_reset().context("a reset after a panic")?;
        }
        self.run_in(key::RESTARTING_LINUX, &format!("{TELL_NOBODY} && {PANIC}"))?;
        self.begins_again(ASKED).context("a panic that restarts")
    }

    /// Linux reboots, and powers off by its button.
    fn by_linux(&mut self) -> Result<()> {
        self.run_in(key::LINUX, "reboot")?;
        self.begins_again(ASKED).context("Linux's reboot")?;
        self.run_in(key::LINUX, "true")?;
        let asked = self.console.succeed("td shutdown pc 300", ANSWER)?;
        ensure!(asked["listens"] == true, "{asked}");
        self.is_off()
    }

    /// GRUB powers off.
    fn by_its_menus_end(&mut self) -> Result<()> {
        self.console.succeed("td start pc", LIFE)?;
        self.choose(key::OFF)?;
        self.is_off()
    }

    fn is_off(&mut self) -> Result<()> {
        wait_for_state(self.console, Self::NAME, "reclaimed", BOOT)?;
        let told = said(self.console, Self::NAME, ANSWER)?;
        ensure!(told.contains(OFF), "{told}");
        Ok(())
    }
}

/// Starts a TD that has nothing to boot. As a PC does, it says so, and goes on to the firmware's shell.
fn boots_nothing(bench: &mut Bench, console: &mut Console, name: &str) -> Result<()> {
    const SKIP: &str = "startup.nsh";
    console.succeed(&format!("td start {name}"), LIFE)?;
    let mut words = Words::of(name);
    words.wait(console, SKIP, BOOT)?;
    // Not to wait for its timer.
    type_to(console, name, "\r")?;
    words.wait(console, SHELL, BOOT)?;
    let failed = words.text.lines().find_map(|line| {
        let at = line.find("BdsDxe: failed to load")?;
        Some(line[at..].trim().to_owned())
    });
    let failed = failed.with_context(|| format!("nothing failed: {}", words.text))?;
    bench.note(format!("{name}: {failed}"));
    console
        .succeed(&format!("td destroy {name}"), LIFE)
        .map(drop)
}
