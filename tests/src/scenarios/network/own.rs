//! Boots from a server in a network namespace that the test makes.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::console::Console;
use crate::media::Media;
use crate::network::{
    BootFields, Capture, Dnsmasq, FAR_SERVER, Fault, Files, Link, Web, in_namespace,
};
use crate::qemu::{Guest, Wire};
use crate::scenarios::Bench;

/// Time limit of a boot, on a busy computer.
const BOOT: Duration = Duration::from_secs(300);
/// Time limit of a report.
const ANSWER: Duration = Duration::from_secs(60);
/// The name of the HTTP server.
const NAME: &str = "boot.seamark.test";
/// The TFTP block size that the program asks for.
const BLOCK: u32 = 1428;

/// Three machines boot from one server, each in another way, and each gets the configuration for its MAC address:
///
/// 1. by PXE, from the TFTP server that option 66 names, behind the gateway. It is not the DHCP server.
/// 2. by PXE, from the DHCP server itself (option 54).
/// 3. by HTTP boot, from a server with a name, behind the gateway.
///
/// The header of DHCP's answers names no server and no file.
pub(super) fn network_boot(bench: &mut Bench) -> Result<()> {
    in_namespace(|| three_hosts(bench))
}

fn three_hosts(bench: &mut Bench) -> Result<()> {
    let links = [Link::create(1)?, Link::create(2)?, Link::create(3)?];
    let [first, second, third] = &links;
    let large: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let media = Media::of_program(&bench.programs().seamark())?
        .with_config_text("[host]\n")
        .with_bytes("my kernel", &large)
        .with_host_config_text(&first.mac(), &config("first", "my kernel"))?
        .with_host_config_text(&second.mac(), &config("second", "my kernel"))?
        .with_host_config_text(&third.mac(), &long_config())?;
    let home = bench.directory()?.to_owned();
    let root = home.join("root");
    media.write_directory(&root.join("hosts"), "seamark.efi")?;
    let options = [
        "dhcp-option=option:server-ip-address,0.0.0.0".to_owned(),
        format!("dhcp-option=tag:{},66,{FAR_SERVER}", first.name()),
        format!("dhcp-option=tag:{},67,hosts/seamark.efi", first.name()),
        format!("dhcp-option=tag:{},67,hosts/seamark.efi", second.name()),
        format!(
            "dhcp-option=tag:{},67,http://{NAME}/hosts/seamark.efi",
            third.name()
        ),
        format!("dhcp-option-force=tag:{},60,HTTPClient", third.name()),
    ];
    let files = Files {
        root: &root,
        log: &home.join("dnsmasq.log"),
    };
    let _dnsmasq = Dnsmasq::start(&links, NAME, &options, &files)?;
    let web = Web::start(root.clone(), &[])?;

    let guests = [
        start(bench, first, false)?,
        start(bench, second, false)?,
        start(bench, third, true)?,
    ];
    let [one, two, three] = guests.map(|guest| Console::wait(guest, BOOT));
    uses(one?, &format!("PXE from {FAR_SERVER}"), first, &["first"])?;
    uses(
        two?,
        &format!("PXE from {}", second.server()),
        second,
        &["second"],
    )?;
    let url = format!("http://{NAME}/hosts/seamark.efi");
    let tds = ["third", "middle", "last"];
    uses(three?, &format!("HTTP from {url}"), third, &tds)?;

    let requests = web.requests();
    let file = format!("GET {NAME} /hosts/my%20kernel");
    ensure!(requests.contains(&file), "{requests:?}");
    for (link, server) in [(first, FAR_SERVER), (second, second.server())] {
        let capture = Capture::read(&link.capture(&home))?;
        let answers = capture.dhcp_answers();
        let empty = answers.iter().all(BootFields::are_empty);
        ensure!(!answers.is_empty() && empty, "{answers:?}");
        let config = format!("hosts/{}", link.config_name()?);
        reads_in_large_blocks(&capture, server, &[&config, "hosts/my kernel"])?;
    }
    Ok(())
}

/// Checks that the program has read exactly `files`, from `server`, in blocks of [`BLOCK`] bytes. The firmware chooses the
/// server and the block size for the program itself, and repeats requests that are not answered in time.
fn reads_in_large_blocks(capture: &Capture, server: Ipv4Addr, files: &[&str]) -> Result<()> {
    let requests = capture.tftp_requests();
    let (program, ours): (Vec<_>, Vec<_>) = requests
        .iter()
        .filter(|request| request.reads())
        .partition(|request| request.name == "hosts/seamark.efi");
    ensure!(!program.is_empty(), "nobody has read the program");
    for request in &ours {
        let asked = (request.server, request.block_size());
        ensure!(asked == (server, Some(BLOCK)), "{request:?}");
    }
    let mut names: Vec<_> = ours.iter().map(|request| &*request.name).collect();
    names.dedup();
    ensure!(names == files, "{names:?}");
    let agreed = capture.agreed_block_sizes();
    let large = agreed.iter().filter(|size| **size == BLOCK).count();
    ensure!(large >= files.len(), "{agreed:?}");
    Ok(())
}

/// Returns a configuration with a TD of this name, whose kernel is the file `path`.
fn config(td: &str, path: &str) -> String {
    format!(
        "[[file]]\nname = \"kernel\"\npath = \"{path}\"\n{}",
        td_of(td)
    )
}

fn td_of(name: &str) -> String {
    format!("[[td]]\nname = \"{name}\"\nkernel = \"kernel\"\nmemory = \"256M\"\n")
}

/// Returns a configuration that comes in many pieces, which must be put together in order.
fn long_config() -> String {
    let mut text = config("third", "my kernel");
    for td in ["middle", "last"] {
        for line in 0..2000 {
            // Writing to a string does not fail.
            let _ = writeln!(text, "# {line}: the TD {td} comes after this");
        }
        text.push_str(&td_of(td));
    }
    text
}

/// Checks where a machine was loaded from, and that it has the TDs of its own configuration.
fn uses(mut console: Console, from: &str, link: &Link, tds: &[&str]) -> Result<()> {
    let boot = console.succeed("boot", ANSWER)?;
    let config = link.config_name()?;
    ensure!(
        boot["loaded_from"] == from
            && boot["config"] == *config
            && boot["config_problems"]
                .as_array()
                .is_some_and(Vec::is_empty),
        "{from}, {config}: {boot}"
    );
    let list = console.succeed("td list", ANSWER)?;
    let names: Vec<_> = list["tds"].as_array().into_iter().flatten().collect();
    let names: Vec<_> = names.iter().map(|td| &td["name"]).collect();
    ensure!(names == tds, "{list}");
    Ok(())
}

fn start(bench: &mut Bench, link: &Link, http: bool) -> Result<Guest> {
    let wire = Wire {
        interface: link.name(),
        mac: link.mac(),
        http,
        capture: link.capture(bench.directory()?),
    };
    let machine = bench.linked_machine(wire);
    bench.start(&machine)
}

/// A machine boots by HTTP from a server on which every file but one fails. It reaches its prompt, and says of each file
/// what is wrong, with its URL.
pub(super) fn network_faults(bench: &mut Bench) -> Result<()> {
    in_namespace(|| faults(bench))
}

fn faults(bench: &mut Bench) -> Result<()> {
    const FAULTS: [(&str, Option<Fault>, &str); 8] = [
        ("good", None, ""),
        ("missing", None, "there is no such file"),
        (
            "broken",
            Some(Fault::Broken),
            "the server answers 500 INTERNAL SERVER ERROR",
        ),
        (
            "mute",
            Some(Fault::Mute),
            "the server did not answer in time",
        ),
        (
            "stalled",
            Some(Fault::Stalled),
            "the server did not answer in time after 4 of 8 bytes",
        ),
        (
            "cut",
            Some(Fault::Cut),
            "the server closed the connection after 4 of 8 bytes",
        ),
        (
            "large",
            Some(Fault::Claims(5 << 30)),
            "5368709120 bytes are more than 4 GiB",
        ),
        (
            "grows",
            Some(Fault::Grows),
            "it had 8 bytes, and now it has 9: it changed while it was read",
        ),
    ];
    let links = [Link::create(1)?];
    let mut media = Media::of_program(&bench.programs().seamark())?;
    let mut config = String::new();
    for (name, _, _) in FAULTS {
        let _ = writeln!(config, "[[file]]\nname = \"{name}\"\npath = \"{name}\"");
        if name != "missing" {
            media = media.with_bytes(name, b"8 bytes!");
        }
    }
    let home = bench.directory()?.to_owned();
    let root = home.join("root");
    media
        .with_config_text(&config)
        .write_directory(&root, "seamark.efi")?;
    let server = links[0].server();
    let options = [
        format!("dhcp-option=67,http://{server}/seamark.efi"),
        "dhcp-option-force=60,HTTPClient".to_owned(),
    ];
    let files = Files {
        root: &root,
        log: &home.join("dnsmasq.log"),
    };
    let _dnsmasq = Dnsmasq::start(&links, NAME, &options, &files)?;
    let faults = FAULTS.iter();
    let faults: Vec<_> = faults
        .filter_map(|(name, fault, _)| Some((*name, (*fault)?)))
        .collect();
    let _web = Web::start(root, &faults)?;
    let guest = start(bench, &links[0], true)?;
    let boot = Console::wait(guest, BOOT)?.succeed("boot", ANSWER)?;
    let told = boot["config_problems"].as_array().into_iter().flatten();
    let told: Vec<_> = told.filter_map(Value::as_str).collect();
    let mut expected = Vec::new();
    for (name, _, words) in FAULTS {
        if !words.is_empty() {
            expected.push(format!("seamark.toml: http://{server}/{name}: {words}"));
        }
    }
    ensure!(told == expected, "{boot}");
    ensure!(boot["config"] == "seamark.toml", "{boot}");
    Ok(())
}
