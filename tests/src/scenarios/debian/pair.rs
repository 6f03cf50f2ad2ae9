//! Two Debians in one network, as their user sees it. They may be TDs or plain machines.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::COMMAND;
use crate::programs::Debian;
use crate::scenarios::Bench;
use crate::ssh::{Flow, Redirect, Ssh};

/// Time limit of making and of copying [`MIB`].
const COPY: Duration = Duration::from_secs(400);
/// The size of what is copied.
const MIB: u32 = 256;
/// The seconds for which throughput is measured.
const SECONDS: u32 = 10;
/// The port of the server that sends a file to whoever connects.
const PORT: u16 = 9000;
/// iperf3's port.
const IPERF: u16 = 5201;

/// The MAC addresses of the two cards in the network.
pub const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];
/// The addresses of the two in the network.
const ADDRESSES: [&str; 2] = ["10.0.0.1", "10.0.0.2"];

/// The two, and the user's way into them.
pub struct Pair(pub [Ssh; 2]);

impl Pair {
    /// Gives the cards in the network addresses, and starts iperf3's server in the second one.
    pub fn join(&self) -> Result<()> {
        for ((ssh, mac), address) in self.0.iter().zip(MACS).zip(ADDRESSES) {
            let join = format!(
                "card=$(ip -o link | grep -F {mac} | cut -d: -f2) && sudo ip address add {address}/24 dev $card"
            );
            ssh.run(&join, COMMAND).context(address)?;
        }
        let [_, two] = &self.0;
        two.run(
            &format!("iperf3 --server --daemon; {}", listens(IPERF)),
            COMMAND,
        )
        .map(drop)
        .context("iperf3's server")
    }

    /// Lets the first one ping the second one.
    pub fn ping(&self) -> Result<()> {
        let [one, _] = &self.0;
        let said = one.run(&format!("sudo ping -c 5 {}", ADDRESSES[1]), COMMAND)?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        Ok(())
    }

    /// Lets the first one execute a command in the second one by ssh.
    pub fn ssh(&self, key: &Path) -> Result<()> {
        const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
        let [one, two] = &self.0;
        let input = Redirect {
            input: Some(key),
            ..Redirect::default()
        };
        one.run_with("umask 077 && cat >.ssh/id_ed25519", input, COMMAND)?;
        let through = format!(
            "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new {}@{} {BOOT_ID}",
            Debian::USER,
            ADDRESSES[1]
        );
        let reached = one.run(&through, COMMAND)?;
        let [one, two] = [one.run(BOOT_ID, COMMAND)?, two.run(BOOT_ID, COMMAND)?];
        ensure!(
            reached == two && one != two,
            "it reached {reached}, not {two} from {one}"
        );
        Ok(())
    }

    /// Copies a file of random bytes from the second one's drive to the first one's by TCP, without encryption.
    pub fn copy(&self, bench: &mut Bench) -> Result<()> {
        let [one, two] = &self.0;
        let make = format!(
            "head --bytes={MIB}M /dev/urandom >blob && sha256sum <blob; \
             setsid systemd-socket-activate --listen={PORT} --accept --inetd cat blob </dev/null >/dev/null 2>&1 & {}",
            listens(PORT)
        );
        let sum = two.run(&make, COPY).context("making the file")?;
        let started = Instant::now();
        one.run(
            &format!("cat </dev/tcp/{}/{PORT} >blob", ADDRESSES[1]),
            COPY,
        )?;
        let took = started.elapsed().as_secs_f32();
        let copy = one.run("sha256sum <blob", COPY)?;
        ensure!(
            sum.len() > 64 && sum == copy,
            "the file is {sum}, the copy is {copy}"
        );
        bench.note(format!("{MIB} MiB by TCP from drive to drive: {took:.1} s"));
        Ok(())
    }

    /// Measures the throughput from the first one to the second one with iperf3. `cpu_time` returns the CPU time that the
    /// emulators of both have used so far.
    pub fn throughput(&self, mut cpu_time: impl FnMut() -> Result<Duration>) -> Result<Throughput> {
        let [one, _] = &self.0;
        let measure = format!("iperf3 --client {} --time {SECONDS} --json", ADDRESSES[1]);
        let before = cpu_time()?;
        let said = one.run(&measure, COMMAND)?;
        let used = cpu_time()? - before;
        let report: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let received = |key: &str| {
            let number = report["end"]["sum_received"][key].as_f64();
            number.filter(|number| *number > 0.0)
        };
        let (bits, bytes) = received("bits_per_second")
            .zip(received("bytes"))
            .with_context(|| said.clone())?;
        Ok(Throughput {
            per_second: bits / 1e6,
            per_cpu_second: bytes * 8.0 / 1e6 / used.as_secs_f64(),
        })
    }

    /// Lets the first one read registers of the host bridge, which exits each time. Returns the seconds that it took.
    pub fn exits(&self) -> Result<f64> {
        const READ: &str = "sudo perl -e 'sub now { open U, \"/proc/uptime\"; (split \" \", <U>)[0] } \
             open F, \"/sys/bus/pci/devices/0000:00:00.0/config\" or die; $began = now; \
             for (1..80) { sysseek F, 0, 0; sysread F, $bytes, 256 } print now() - $began'";
        let [one, _] = &self.0;
        let said = one.run(READ, COMMAND)?;
        said.trim().parse().with_context(|| said.clone())
    }

    /// Lets the first one send to the second one until the result is dropped. Returns when it has begun.
    pub fn stream(&self) -> Result<Flow> {
        /// Two lines of iperf3's report.
        const ENOUGH: usize = 300;
        let [one, _] = &self.0;
        let send = format!(
            "iperf3 --client {} --time 3600 --interval 1 --forceflush",
            ADDRESSES[1]
        );
        let flow = one.flow(&send, ENOUGH)?;
        flow.wait(COMMAND)?;
        Ok(flow)
    }
}

/// Throughput in Mbit.
pub struct Throughput {
    /// In a second.
    pub per_second: f64,
    /// In a second of the emulators' CPU time, which a busy computer changes less.
    pub per_cpu_second: f64,
}

impl fmt::Display for Throughput {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:.1} Mbit/s, {:.1} Mbit in a second of QEMU's CPU time",
            self.per_second, self.per_cpu_second
        )
    }
}

/// Returns commands that wait until a server listens at a port.
fn listens(port: u16) -> String {
    format!("until ss -Hltn sport = :{port} | grep -q .; do sleep 0.2; done")
}
