//! The bus of a running machine, over QEMU's qtest protocol: accesses that no CPU makes.
//!
//! A test uses it to turn a device against the machine, as a device with hostile firmware turns itself: it switches on
//! what the hypervisor has switched off, and gives the device commands.
//!
//! Source: QEMU's `softmmu/qtest.c`, whose comment describes the protocol.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Time limit of an answer.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection to the bus of a machine, which goes on running.
pub struct Bus(BufReader<UnixStream>);

impl Bus {
    /// Connects to the socket of a machine.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("can't connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Reads 4 bytes at a physical address.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub fn read32(&mut self, address: u64) -> Result<u32> {
        let answer = self.ask(&format!("readl {address:#x}"))?;
        let digits = answer.trim_start_matches("0x");
        let value = u64::from_str_radix(digits, 16);
        Ok(value.with_context(|| format!("qtest answers {answer}"))? as u32)
    }

    /// Writes 4 bytes at a physical address.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub fn write32(&mut self, address: u64, value: u32) -> Result<()> {
        self.ask(&format!("writel {address:#x} {value:#x}"))
            .map(drop)
    }

    /// Writes 8 bytes at a physical address.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub fn write64(&mut self, address: u64, value: u64) -> Result<()> {
        self.ask(&format!("writeq {address:#x} {value:#x}"))
            .map(drop)
    }

    fn ask(&mut self, request: &str) -> Result<String> {
        writeln!(self.0.get_mut(), "{request}").context("QEMU's qtest socket")?;
        let mut line = String::new();
        self.0.read_line(&mut line).context("QEMU's qtest socket")?;
        match line.trim().strip_prefix("OK") {
            Some(answer) => Ok(answer.trim().to_owned()),
            None => bail!("qtest answers `{}` to `{request}`", line.trim()),
        }
    }
}
