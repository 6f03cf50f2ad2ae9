//! Scenarios that boot several hosts from one server.

mod own;

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Bench, Scenario};
use crate::media::Media;

pub const ALL: &[Scenario] = &[
    Scenario::new("pxe-hosts", pxe_hosts),
    Scenario::new("network-boot", own::network_boot).with_network(),
    Scenario::new("network-faults", own::network_faults).with_network(),
];

/// Time limit of a report.
const ANSWER: Duration = Duration::from_secs(20);

/// One server has a configuration for each of three machines, which are known by their network card, UUID and serial
/// number, and one for all others.
fn pxe_hosts(bench: &mut Bench) -> Result<()> {
    const HOSTS: [(&str, &[&str]); 4] = [
        (
            "seamark-52-54-00-00-00-01.toml",
            &["-global", "virtio-net-pci.mac=52:54:00:00:00:01"],
        ),
        (
            "seamark-00112233-4455-6677-8899-aabbccddeeff.toml",
            &["-uuid", "00112233-4455-6677-8899-aabbccddeeff"],
        ),
        ("seamark-SN-42.toml", &["-smbios", "type=1,serial=SN-42"]),
        ("seamark.toml", &[]),
    ];
    let mut media = Media::of_program(&bench.programs().seamark())?;
    for (name, _) in HOSTS {
        // The error shows which file was parsed.
        media = media.with_bytes(name, b"[host]\nfred = 1\n");
    }
    let mut machine = bench.network_machine_with(&media)?.with_cpus(1, 1);
    machine.stub = None;
    for (name, further) in HOSTS {
        machine.shape.further = further;
        let boot = bench.console(&machine)?.succeed("boot", ANSWER)?;
        ensure!(boot["config"] == name, "{name}: {boot}");
        let problem = boot["config_problems"][0].as_str().unwrap_or_default();
        ensure!(problem.starts_with(&format!("{name}:2:")), "{boot}");
    }
    Ok(())
}
