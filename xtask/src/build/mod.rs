//! Builds of the freestanding programs on the stock toolchain: cargo makes an ELF static-pie, which is converted to a
//! UEFI image.
//!
//! The flags below apply only to these programs, through an explicit `--target` and a target directory of their own.

mod cargo;
mod elf;
mod guest;
mod hot;
mod kernel;
mod merged;
mod pe;
mod rom;
mod size;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use seamark_tests::programs::Programs;
use sha2::{Digest, Sha256};

use self::elf::Program;
use self::pe::Subsystem;
use self::size::Sizes;
use crate::workspace;

/// The target of all programs, bare metal or not.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "efi";

/// Size limit of `seamark.efi` in bytes.
const SEAMARK_BUDGET: usize = (2 << 20) + (512 << 10);

/// The firmware of TDs that boot a kernel: the name of its package and program, and the size limit of its image in
/// bytes.
const TD_FIRMWARE: &str = "td-firmware";
const TD_FIRMWARE_BUDGET: u64 = 72 << 10;
/// The kernel that the tests of that firmware boot: the name of its package and program.
const TEST_KERNEL: &str = "test-kernel";
/// The variable that tells the hypervisor's build the path of that image.
const TD_FIRMWARE_VARIABLE: &str = "SEAMARK_TD_FIRMWARE";

/// A program of the workspace that runs without an operating system.
struct Bare {
    package: &'static str,
    bin: &'static str,
    /// A description for the person who waits for the build.
    what: &'static str,
    subsystem: Subsystem,
    /// True if the program is also wrapped as an option ROM.
    rom: bool,
    budget: Option<usize>,
    /// Features beyond those of every program of its kind, and the name of the output with them.
    variant: Option<(&'static str, &'static str)>,
}

const SEAMARK: Bare = Bare {
    package: "hypervisor",
    bin: "seamark",
    what: "the hypervisor",
    subsystem: Subsystem::Application,
    rom: false,
    budget: Some(SEAMARK_BUDGET),
    variant: None,
};

const STUB: Bare = Bare {
    package: "stub-rom",
    bin: "seamstub",
    what: "the SEAM stub",
    subsystem: Subsystem::BootServiceDriver,
    rom: true,
    budget: None,
    variant: None,
};

const PROBE: Bare = Bare {
    package: "probe",
    bin: "probe",
    what: "the probe of the emulated machine",
    subsystem: Subsystem::Application,
    rom: false,
    budget: None,
    variant: None,
};

/// The hypervisor with its benchmark instead of a console.
const BENCH: Bare = Bare {
    budget: None,
    variant: Some(("bench", "seamark-bench")),
    what: "the hypervisor that measures",
    ..SEAMARK
};

/// Builds the programs that the benchmarks in the machine need.
///
/// # Errors
/// As [`all`].
pub fn for_bench() -> Result<Programs> {
    let out = workspace::target().join("seamark");
    fs::create_dir_all(&out).with_context(|| format!("can't create {}", out.display()))?;
    td_firmware(&out)?;
    for program in [BENCH, STUB] {
        program.build(&out)?;
    }
    build_images(guests("build"), guests::ALL, &out)?;
    Ok(Programs::in_directory(&out))
}

/// Builds every program.
///
/// # Errors
/// Cargo fails, the ELF can't be converted, or a size limit is exceeded.
pub fn all() -> Result<Programs> {
    let out = workspace::target().join("seamark");
    fs::create_dir_all(&out).with_context(|| format!("can't create {}", out.display()))?;
    if !Programs::in_directory(&out).seamark().exists() {
        eprintln!(
            "The first build of all programs takes about two minutes on two cores; later ones take what has changed."
        );
    }
    td_firmware(&out)?;
    for program in present() {
        program.build(&out)?;
    }
    build_images(guests("build"), guests::ALL, &out)?;
    test_kernel(&out)?;
    Ok(Programs::in_directory(&out))
}

/// Builds the kernel for the tests of the firmware.
fn test_kernel(out: &Path) -> Result<()> {
    let elf = compiled(freestanding(TEST_KERNEL, "build"), TEST_KERNEL)?;
    let file = fs::read(&elf).with_context(|| format!("can't read {}", elf.display()))?;
    let program = Program::read(&file).with_context(|| format!("{}", elf.display()))?;
    write(&out.join(TEST_KERNEL).with_extension("elf"), &file)?;
    let image = kernel::image(&program).context(TEST_KERNEL)?;
    write(&out.join(TEST_KERNEL).with_extension("bzimage"), &image)
}

/// Returns the path of the firmware image that the hypervisor embeds, once it is built.
pub fn td_firmware_image() -> PathBuf {
    let out = workspace::target().join("seamark");
    out.join(TD_FIRMWARE).with_extension("fd")
}

/// Builds the firmware that the hypervisor embeds.
fn td_firmware(out: &Path) -> Result<()> {
    build_images(freestanding(TD_FIRMWARE, "build"), &[TD_FIRMWARE], out)?;
    let image = td_firmware_image();
    let bytes = fs::metadata(&image).map(|file| file.len());
    let bytes = bytes.with_context(|| format!("can't read {}", image.display()))?;
    ensure!(
        bytes <= TD_FIRMWARE_BUDGET,
        "{TD_FIRMWARE}.fd has {bytes} bytes, {} over its budget of {TD_FIRMWARE_BUDGET}",
        bytes - TD_FIRMWARE_BUDGET
    );
    Ok(())
}

/// Builds a static program for a TD's Linux: `tdreport` prints the measurements, `vsock` uses the socket device.
///
/// # Errors
/// Cargo fails.
pub fn linux_program(name: &str) -> Result<PathBuf> {
    let directory = workspace::target().join("linux");
    let mut cargo = Command::new(workspace::cargo());
    cargo
        .current_dir(workspace::root())
        .args(["build", "--release", "--package", name, "--target", TARGET])
        .arg("--target-dir")
        .arg(&directory)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Ctarget-feature=+crt-static\u{1f}-Cstrip=symbols",
        )
        .env_remove("RUSTFLAGS");
    cargo::build(cargo, &format!("{name} for Linux in a TD"))?;
    Ok(directory.join(TARGET).join("release").join(name))
}

/// Builds programs as TDVF images.
fn build_images(cargo: Command, names: &[&str], out: &Path) -> Result<()> {
    let what = match names {
        [TD_FIRMWARE] => "the firmware of TDs",
        _ => "the guests of the tests",
    };
    cargo::build(cargo, what)?;
    let built = GUESTS.directory().join(TARGET).join(PROFILE);
    for name in names {
        let elf = built.join(name);
        let file = fs::read(&elf).with_context(|| format!("can't read {}", elf.display()))?;
        merged::check(&file).with_context(|| (*name).to_owned())?;
        let program = Program::read(&file).with_context(|| format!("{}", elf.display()))?;
        let image = guest::image(&program).with_context(|| (*name).to_owned())?;
        write(&out.join(format!("{name}.elf")), &file)?;
        write(&out.join(format!("{name}.fd")), &image)?;
    }
    Ok(())
}

/// Runs clippy on every program as it is built.
///
/// # Errors
/// Clippy reports something.
pub fn lint() -> Result<()> {
    // The hypervisor can't be checked without the image that it embeds.
    let out = workspace::target().join("seamark");
    fs::create_dir_all(&out).with_context(|| format!("can't create {}", out.display()))?;
    td_firmware(&out)?;
    let programs = present().into_iter().map(|p| (p.cargo("clippy"), p.bin));
    for (mut cargo, name) in programs.chain([
        (freestanding(TD_FIRMWARE, "clippy"), TD_FIRMWARE),
        (freestanding(TEST_KERNEL, "clippy"), TEST_KERNEL),
        (guests("clippy"), "the guests"),
    ]) {
        let status = cargo.args(["--", "-D", "warnings"]).status();
        let status = status.context("can't start cargo")?;
        ensure!(status.success(), "clippy has something to say about {name}");
    }
    Ok(())
}

fn present() -> Vec<Bare> {
    let mut programs = vec![SEAMARK, STUB];
    if workspace::root().join("tests/probe/Cargo.toml").exists() {
        programs.push(PROBE);
    }
    programs
}

/// Prints the size and SHA-256 of the files that a machine loads.
///
/// # Errors
/// A program can't be read.
pub fn report(programs: &Programs) -> Result<()> {
    for path in [programs.seamark(), programs.rom()] {
        let bytes = fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
        println!(
            "{}  {} bytes  SHA-256 {}",
            path.display(),
            bytes.len(),
            sha256(&bytes)
        );
    }
    Ok(())
}

/// Prints the size of each crate in `seamark.efi`.
///
/// # Errors
/// Its ELF can't be read.
pub fn report_sizes(programs: &Programs) -> Result<()> {
    let elf = programs.seamark().with_extension("elf");
    let file = fs::read(&elf).with_context(|| format!("can't read {}", elf.display()))?;
    print!(
        "bytes of {}.efi by crate:\n{}",
        SEAMARK.bin,
        Sizes::of(&file)?
    );
    Ok(())
}

impl Bare {
    fn build(&self, out: &Path) -> Result<()> {
        let elf = self.compile()?;
        let file = fs::read(&elf).with_context(|| format!("can't read {}", elf.display()))?;
        merged::check(&file).with_context(|| self.bin.to_owned())?;
        let program = Program::read(&file).with_context(|| format!("{}", elf.display()))?;
        let image = pe::write(&program, self.subsystem).with_context(|| self.bin.to_owned())?;

        let name = self.variant.map_or(self.bin, |(_, name)| name);
        let symbols = out.join(format!("{name}.elf"));
        write(&symbols, &file)?;
        write(&out.join(format!("{name}.efi")), &image)?;
        if self.rom {
            warn_of_cold(&file)?;
            let rom = rom::wrap(&image, rom::PCI_TESTDEV)?;
            write(&out.join(format!("{}.rom", self.bin)), &rom)?;
        }
        if let Some(budget) = self.budget {
            ensure!(
                image.len() <= budget,
                "{}.efi has {} bytes, {} over its budget of {budget}",
                self.bin,
                image.len(),
                image.len() - budget
            );
        }
        Ok(())
    }

    /// Builds the ELF with cargo. Returns its path.
    fn compile(&self) -> Result<PathBuf> {
        cargo::build(self.cargo("build"), self.what)?;
        Ok(FIRMWARE
            .directory()
            .join(TARGET)
            .join(PROFILE)
            .join(self.bin))
    }

    /// Creates a cargo command on this program, with the flags of all freestanding ones.
    fn cargo(&self, command: &str) -> Command {
        let mut cargo = FIRMWARE.cargo(command);
        cargo.args(["--package", self.package, "--bin", self.bin]);
        if let Some((feature, _)) = self.variant {
            cargo.args(["--features", feature]);
        }
        cargo
    }
}

/// Warns of patterns in the ROM's linker script that match nothing.
fn warn_of_cold(elf: &[u8]) -> Result<()> {
    const SCRIPT: &str = "stub/rom/hot.ld";
    let script = workspace::root().join(SCRIPT);
    let script = fs::read_to_string(&script).with_context(|| format!("can't read {SCRIPT}"))?;
    for pattern in hot::unmatched(&script, elf)? {
        println!("note: nothing in the ROM is called {pattern}, as {SCRIPT} has it");
    }
    Ok(())
}

/// Creates a cargo command on all guests, in their own package.
fn guests(command: &str) -> Command {
    let mut cargo = GUESTS.cargo(command);
    cargo.args(["--package", "guests", "--bins"]);
    cargo
}

/// Creates a cargo command on one of the other programs that run in TDs.
fn freestanding(package: &str, command: &str) -> Command {
    let mut cargo = GUESTS.cargo(command);
    cargo.args(["--package", package, "--bins"]);
    cargo
}

/// Builds a program that runs in TDs with cargo. Returns its path.
fn compiled(mut cargo: Command, name: &str) -> Result<PathBuf> {
    let status = cargo.status().context("can't start cargo")?;
    ensure!(status.success(), "cargo could not build {name}");
    Ok(GUESTS.directory().join(TARGET).join(PROFILE).join(name))
}

/// A kind of freestanding program, with its entry point.
struct Flavour {
    /// The symbol of the first instruction.
    entry: &'static str,
    /// The folder below the target directory. Other flags make other files of the same names.
    directory: &'static str,
}

/// Programs that UEFI starts.
const FIRMWARE: Flavour = Flavour {
    entry: "efi_main",
    directory: "bare",
};

/// Programs that a TD's reset vector starts.
const GUESTS: Flavour = Flavour {
    entry: guest_kit::layout::ENTRY_SYMBOL,
    directory: "guests",
};

impl Flavour {
    fn directory(&self) -> PathBuf {
        workspace::target().join(self.directory)
    }

    fn cargo(&self, command: &str) -> Command {
        let mut cargo = Command::new(workspace::cargo());
        cargo
            .current_dir(workspace::root())
            .args([command, "--features", "bare"])
            .args(["--profile", PROFILE, "--target", TARGET])
            .arg("--target-dir")
            .arg(self.directory())
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                rustflags(self.entry).join("\u{1f}"),
            )
            .env(TD_FIRMWARE_VARIABLE, td_firmware_image())
            .env_remove("RUSTFLAGS");
        cargo
    }
}

/// Creates a cargo command on programs for this computer with the code generation of the freestanding ones: their
/// profile (optimisation, one codegen unit, link-time optimisation), their relocation model, and no red zone. They use
/// `std`, and only panics unwind, because tests need it.
pub fn as_bare(command: &str) -> Command {
    let flags: Vec<_> = CODE
        .iter()
        .filter(|option| !option.contains("unwind"))
        .map(|option| format!("-C{option}"))
        .collect();
    let mut cargo = Command::new(workspace::cargo());
    cargo
        .current_dir(workspace::root())
        .args([command, "--profile", PROFILE, "--target", TARGET])
        .arg("--target-dir")
        .arg(workspace::target().join("rom-profile"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS");
    cargo
}

/// Options of code generation.
const CODE: [&str; 3] = [
    "relocation-model=pic",
    "no-redzone=yes",
    "force-unwind-tables=no",
];

/// Returns the flags: no red zone (interrupts would overwrite it), no unwinding, and one position-independent file
/// that needs no loader beyond base relocations. The image base leaves room for the PE headers. Paths are shortened so
/// that the same source gives the same bytes wherever it is built.
fn rustflags(entry: &str) -> Vec<String> {
    let first = format!("-Wl,-e,{entry}");
    // The prebuilt `core` has tables for unwinding, which never happens: a tenth of the image.
    let script = workspace::root().join("xtask/src/build/no-unwind-tables.ld");
    let script = format!("-Wl,-T,{}", script.display());
    let image_base = format!("-Wl,--image-base={:#x}", pe::HEADERS);
    let link = [
        "-nostdlib",
        "-nostartfiles",
        "-static-pie",
        "-Wl,--no-dynamic-linker,--gc-sections,--build-id=none",
        "-Wl,-z,relro,-z,max-page-size=4096,-z,separate-code",
        &image_base,
        &first,
        &script,
    ];
    let mut flags = Vec::new();
    for option in CODE
        .map(str::to_owned)
        .into_iter()
        .chain(link.map(|l| format!("link-arg={l}")))
    {
        flags.extend(["-C".to_owned(), option]);
    }
    for (path, name) in [
        (Some(workspace::root()), "seamark"),
        (cargo_home(), "cargo"),
    ] {
        if let Some(path) = path {
            flags.push(format!("--remap-path-prefix={}={name}", path.display()));
        }
    }
    flags
}

fn cargo_home() -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home)
}

/// Writes a file unless it has these bytes already, so that builds from it stay up to date.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|written| written == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).with_context(|| format!("can't write {}", path.display()))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one binary does not know where it runs: no part of the emulation may be in it.
    #[test]
    fn nothing_of_the_stub_is_in_the_hypervisor() {
        let output = Command::new(workspace::cargo())
            .current_dir(workspace::root())
            .args([
                "tree",
                "--offline",
                "--package",
                SEAMARK.package,
                "--features",
                "bare",
            ])
            .args(["--edges", "normal,build", "--target", TARGET])
            .args(["--prefix", "none", "--format", "{p}"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let tree = String::from_utf8(output.stdout).unwrap();
        assert!(tree.starts_with("hypervisor "), "{tree}");
        let stub = workspace::root().join("stub").display().to_string();
        let found: Vec<_> = tree.lines().filter(|line| line.contains(&stub)).collect();
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn sha256_is_printed_as_sha256sum_prints_it() {
        assert_eq!(
            sha256(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
