//! dnsmasq as the server of a network: DHCP, DNS and TFTP.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};

use super::{FAR_SERVER, Link};

/// The message of dnsmasq after it has bound its sockets.
const READY: &str = "TFTP root is";

/// A running dnsmasq. It is stopped on drop.
pub struct Dnsmasq {
    child: Child,
    log: Option<JoinHandle<()>>,
}

impl Dnsmasq {
    /// Starts dnsmasq on the links, with the TFTP root `root`. `options` are more of its long options, without the
    /// dashes. Machines resolve `name` to [`FAR_SERVER`]. Its log is `log`.
    ///
    /// # Errors
    /// It does not start; the error has its last words.
    pub fn start(
        links: &[Link],
        name: &str,
        options: &[String],
        files: &Files<'_>,
    ) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "dnsmasq", "--no-daemon"]);
        command.args(["--conf-file=/dev/null", "--log-facility=-", "--log-dhcp"]);
        command.args(["--no-hosts", "--no-resolv", "--leasefile-ro"]);
        command.args(["--bind-interfaces", "--interface=lo", "--enable-tftp"]);
        command.arg(format!("--tftp-root={}", files.root.display()));
        command.arg(format!("--address=/{name}/{FAR_SERVER}"));
        for link in links {
            let (first, last) = (link.address(10), link.address(99));
            command.arg(format!("--interface={}", link.name()));
            command.arg(format!("--dhcp-range={first},{last},1h"));
        }
        command.args(options.iter().map(|option| format!("--{option}")));
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("can't start setpriv (package util-linux)")?;
        let output = child.stderr.take().context("dnsmasq's log is a pipe")?;
        let mut lines = BufReader::new(output).lines();
        let mut log = File::create(files.log)?;
        let mut last = String::new();
        loop {
            let Some(line) = lines.next().transpose()? else {
                let _ = child.wait();
                bail!("dnsmasq (package dnsmasq-base) does not start: {last}");
            };
            writeln!(log, "{line}")?;
            if line.contains(READY) {
                break;
            }
            last = line;
        }
        let log = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // A full disk must not stop dnsmasq.
                let _ = writeln!(log, "{line}");
            }
        });
        Ok(Self {
            child,
            log: Some(log),
        })
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        // Both fail only if it has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = self.log.take() {
            let _ = log.join();
        }
    }
}

/// The files of a server.
pub struct Files<'a> {
    /// The directory that TFTP shows.
    pub root: &'a Path,
    /// The log.
    pub log: &'a Path,
}
