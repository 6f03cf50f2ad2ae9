//! A network that a test makes for itself: a network namespace with one link for each machine, dnsmasq for DHCP, DNS and
//! TFTP, and an HTTP server. Nothing leaves the namespace, and the kernel removes it with its last user.
#![expect(
    unsafe_code,
    reason = "a thread that changes its namespaces could share file descriptors with others"
)]

mod capture;
mod dnsmasq;
mod web;

pub use capture::{BootFields, Capture, TftpRequest};
pub use dnsmasq::{Dnsmasq, Files};
pub use web::{Fault, Web};

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// An address of the server that is on no link: machines reach it through their gateway.
pub const FAR_SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 99, 1);

/// Runs `test` in a thread with a network namespace of its own. Its child processes and sockets are in there, too.
///
/// # Errors
/// Those of `test`, or the namespace can't be made here; the error says what to do.
pub fn in_namespace<T: Send>(test: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let run = || {
        // SAFETY: the flag unshares the network alone, not the file descriptors.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context(
            "this test needs a network namespace of its own: run it as root, or prefix the command with \
             `unshare --map-root-user`",
        )?;
        ensure!(
            Path::new("/dev/net/tun").exists(),
            "this test needs /dev/net/tun: load the kernel module tun (`modprobe tun`)"
        );
        ip("link set lo up")?;
        ip(&format!("address add {FAR_SERVER}/32 dev lo"))?;
        test()
    };
    thread::scope(|scope| scope.spawn(run).join())
        .map_err(|_| anyhow!("the test's thread panicked"))?
}

/// A link between the server and one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    number: u8,
}

impl Link {
    /// Creates a link, with a subnet of its own, in the calling thread's namespace.
    ///
    /// # Errors
    /// `ip` (package iproute2) fails.
    pub fn create(number: u8) -> Result<Self> {
        let link = Self { number };
        let name = link.name();
        ip(&format!("tuntap add dev {name} mode tap"))?;
        ip(&format!("address add {}/24 dev {name}", link.server()))?;
        ip(&format!("link set {name} up"))?;
        Ok(link)
    }

    /// Returns the name of the server's interface.
    pub fn name(&self) -> String {
        format!("link{}", self.number)
    }

    /// Returns the server's address on the link.
    pub fn server(&self) -> Ipv4Addr {
        self.address(1)
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, host)
    }

    /// Returns the machine's MAC address.
    pub fn mac(&self) -> String {
        format!("52:54:00:00:00:{:02x}", self.number)
    }

    /// Returns the name of the machine's own configuration.
    ///
    /// # Errors
    /// The MAC address can't be part of a file's name.
    pub fn config_name(&self) -> Result<String> {
        config::host_file_name(&self.mac()).context("the name of a configuration")
    }

    /// Returns the file in `directory` for the traffic on the link.
    pub fn capture(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.pcap", self.name()))
    }
}

/// Runs `ip` of iproute2.
fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("can't start ip: install the package iproute2")?;
    ensure!(
        output.status.success(),
        "`ip {arguments}`: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
