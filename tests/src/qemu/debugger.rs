//! A debugger of a running machine, over QEMU's gdb stub.
//!
//! Source: GDB's manual, appendix E (remote serial protocol). The registers are those of its target `i386:x86-64`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Time limit of an answer.
const ANSWER: Duration = Duration::from_secs(60);

const RIP: usize = 16;
const EFLAGS: usize = 17;
const INTERRUPTS: u64 = 1 << 9;

/// A connection to a machine that stands still as long as it exists.
pub struct Debugger(UnixStream);

impl Debugger {
    /// Connects to the socket of a machine, which stops it.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub fn attach(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("can't connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut debugger = Self(stream);
        debugger.ask("?")?;
        Ok(debugger)
    }

    /// Makes the first CPU repeat one instruction for ever, with interrupts off, and lets the machine go on.
    ///
    /// # Errors
    /// QEMU refuses or does not answer.
    pub fn hang_first_cpu(mut self) -> Result<()> {
        ensure!(self.ask("Hg1")? == "OK", "there is no first CPU");
        let rip = self.register(RIP)?;
        let eflags = self.register(EFLAGS)?;
        // `jmp` to itself.
        self.succeed(&format!("M{rip:x},2:ebfe"))?;
        let low = (eflags & !INTERRUPTS) as u32;
        self.succeed(&format!("P{EFLAGS:x}={:08x}", low.swap_bytes()))?;
        self.succeed("D")
    }

    /// Reads a register, least significant byte first on the wire.
    fn register(&mut self, number: usize) -> Result<u64> {
        let text = self.ask(&format!("p{number:x}"))?;
        let mut value = 0;
        for at in (0..text.len()).step_by(2).rev() {
            let byte = text.get(at..at + 2).context("half a byte")?;
            value = value << 8 | u64::from_str_radix(byte, 16)?;
        }
        Ok(value)
    }

    fn succeed(&mut self, request: &str) -> Result<()> {
        match &*self.ask(request)? {
            "OK" => Ok(()),
            other => bail!("QEMU's gdb stub answers {other:?} to {request:?}"),
        }
    }

    /// Sends a packet and returns the content of the answer.
    fn ask(&mut self, request: &str) -> Result<String> {
        let sum = request.bytes().fold(0u8, u8::wrapping_add);
        write!(self.0, "${request}#{sum:02x}")?;
        let mut answer = String::new();
        let mut inside = false;
        loop {
            let mut byte = [0];
            self.0
                .read_exact(&mut byte)
                .with_context(|| format!("no answer to {request:?}"))?;
            match byte[0] {
                b'$' => inside = true,
                b'#' if inside => break,
                byte if inside => answer.push(char::from(byte)),
                _ => {}
            }
        }
        self.0.read_exact(&mut [0; 2])?;
        self.0.write_all(b"+")?;
        Ok(answer)
    }
}
