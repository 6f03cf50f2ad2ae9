//! Secure Boot on a plain machine: the signed image boots with the files that it was signed with, and everything else is
//! refused by name.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Bench, Need, Scenario};
use crate::console::Console;
use crate::media::Media;
use crate::network::{Dnsmasq, Files, Link, Web, in_namespace};
use crate::qemu::{Firmware, Machine, Shape, Wire};

pub const ALL: &[Scenario] = &[
    Scenario::in_group("secure-boot", "secure-boot", secure_boot, &[Need::Signing]),
    Scenario::in_group(
        "secure-boot",
        "secure-boot-hosts",
        |bench| in_namespace(|| hosts(bench)),
        &[Need::Signing, Need::Network],
    ),
];

/// Time limit of a boot: Debian's 4 MiB build of OVMF alone takes a minute.
const LIMIT: Duration = Duration::from_secs(400);

/// Debian's test key, whose certificate is in the variables of [`Firmware::SECURE_BOOT`].
const KEY: &str = "/usr/share/ovmf/PkKek-1-snakeoil.key";
const CERTIFICATE: &str = "/usr/share/ovmf/PkKek-1-snakeoil.pem";

const CONFIG: &str = "[[file]]\nname = \"kernel\"\npath = \"vmlinuz\"\n\
                      [[td]]\nname = \"linux\"\nkernel = \"kernel\"\nmemory = \"256M\"\n";

fn secure_boot(bench: &mut Bench) -> Result<()> {
    let key = key_without_passphrase(bench)?;
    let plain = Media::of_program(&bench.programs().seamark())?
        .with_config_text(CONFIG)
        .with_bytes("vmlinuz", b"the kernel that was signed");
    let signed = plain.clone().signed(&key, CERTIFICATE.as_ref())?;

    let mut console = boot(bench, &signed)?;
    let report = console.succeed("boot", LIMIT)?;
    ensure!(
        report["secure_boot"] == true
            && report["config_problems"]
                .as_array()
                .is_some_and(Vec::is_empty),
        "{report}"
    );
    let tds = console.succeed("td list", LIMIT)?;
    ensure!(tds["tds"][0]["name"] == "linux", "{tds}");
    drop(console);

    // The firmware accepts the program, which refuses what it was not signed with.
    let other = format!("{CONFIG}vcpus = 2\n");
    let changed = signed
        .with_replaced(config::FILE_NAME, other.as_bytes())?
        .with_replaced("vmlinuz", b"the kernel that an attacker likes")?;
    let report = boot(bench, &changed)?.succeed("boot", LIMIT)?;
    let problem = report["config_problems"].to_string();
    for refused in [
        "seamark.toml: refused, because it is not the configuration that was signed",
        "vmlinuz: refused, because it is not the file that was signed",
    ] {
        ensure!(problem.contains(refused), "{refused}: {report}");
    }

    // The firmware refuses a program without a signature, and the hypervisor one without a seal.
    let machine = machine(bench, &plain)?;
    bench.start(&machine)?.expect("Access Denied", LIMIT)?;
    Ok(())
}

/// Two machines boot the same signed program by HTTP. One has a signed configuration of its own, the other an unsigned one,
/// which is refused. The kernel's SHA-256 shows that it has come whole.
fn hosts(bench: &mut Bench) -> Result<()> {
    let key = key_without_passphrase(bench)?;
    let links = [Link::create(1)?, Link::create(2)?];
    let [own, foreign] = &links;
    let kernel: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let own_config = CONFIG.replace("\"linux\"", "\"own\"");
    let media = Media::of_program(&bench.programs().seamark())?
        .with_config_text(CONFIG)
        .with_host_config_text(&own.mac(), &own_config)?
        .with_bytes("vmlinuz", &kernel)
        .signed(&key, CERTIFICATE.as_ref())?
        .with_host_config_text(&foreign.mac(), &own_config)?;
    let home = bench.directory()?.to_owned();
    let root = home.join("root");
    media.write_directory(&root, "seamark.efi")?;
    let options: Vec<_> = links
        .iter()
        .flat_map(|link| {
            let (name, server) = (link.name(), link.server());
            [
                format!("dhcp-option=tag:{name},67,http://{server}/seamark.efi"),
                format!("dhcp-option-force=tag:{name},60,HTTPClient"),
            ]
        })
        .collect();
    let files = Files {
        root: &root,
        log: &home.join("dnsmasq.log"),
    };
    let _dnsmasq = Dnsmasq::start(&links, "boot.seamark.test", &options, &files)?;
    let _web = Web::start(root.clone(), &[])?;
    let guests = links.each_ref().map(|link| {
        let machine = secure(bench.linked_machine(Wire {
            interface: link.name(),
            mac: link.mac(),
            http: true,
            capture: link.capture(&home),
        }));
        bench.start(&machine)
    });
    let refused = format!(
        "{}: refused, because it is not the configuration that was signed (Secure Boot is on); the signed seamark.toml is \
         used",
        foreign.config_name()?
    );
    let expected = [("own", &[][..]), ("linux", &[&*refused][..])];
    for (guest, (td, problems)) in guests.into_iter().zip(expected) {
        let mut console = Console::wait(guest?, LIMIT)?;
        let report = console.succeed("boot", LIMIT)?;
        let told = report["config_problems"].as_array();
        let told: Vec<_> = told.into_iter().flatten().collect();
        ensure!(
            report["secure_boot"] == true && told == problems,
            "{report}"
        );
        let tds = console.succeed("td list", LIMIT)?;
        ensure!(tds["tds"][0]["name"] == td, "{tds}");
    }
    Ok(())
}

fn boot(bench: &mut Bench, media: &Media) -> Result<Console> {
    let machine = machine(bench, media)?;
    Console::wait(bench.start(&machine)?, LIMIT)
}

fn machine(bench: &Bench, media: &Media) -> Result<Machine> {
    let mut machine = bench.machine_with(media)?.with_cpus(1, 1);
    machine.stub = None;
    Ok(secure(machine))
}

/// Gives a machine without the stub a firmware with Secure Boot.
fn secure(mut machine: Machine) -> Machine {
    machine.shape = Shape {
        chipset: "q35,smm=on",
        cpu: "max,phys-bits=40",
        firmware: Firmware::SECURE_BOOT,
        ..Shape::USUAL
    };
    machine
}

/// Returns Debian's test key in a file of its own: sbsign would ask for its passphrase.
fn key_without_passphrase(bench: &Bench) -> Result<PathBuf> {
    let key = bench.directory()?.join("snakeoil.key");
    let status = Command::new("openssl")
        .args(["pkey", "-in", KEY, "-passin", "pass:snakeoil", "-out"])
        .arg(&key)
        .status()
        .context("can't start openssl: install the package openssl")?;
    ensure!(status.success(), "openssl can't read {KEY}");
    ensure!(fs::metadata(&key)?.len() > 0, "openssl has written nothing");
    Ok(key)
}
