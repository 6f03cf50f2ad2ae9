//! A debugger of a running machine, over QEMU's gdb stub.
//!
//! Source: GDB's manual, appendix E (remote serial protocol). The registers are those of its target `i386:x86-64`.

use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Time limit of an answer.
const ANSWER: Duration = Duration::from_secs(60);

/// The places of RIP and of EFLAGS among the hexadecimal digits of all registers: 16 registers of 8 bytes come first.
const RIP: Range<usize> = 256..272;
const EFLAGS: Range<usize> = 272..280;
/// EFLAGS.IF, in the second byte.
const INTERRUPTS: u8 = 1 << 1;

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
        self.succeed("Hg1")?;
        let mut registers = self.ask("g")?;
        let digits = |place| registers.get(place).context("registers are missing");
        // Least significant byte first.
        let rip = u64::from_str_radix(digits(RIP)?, 16)?.swap_bytes();
        let second = u8::from_str_radix(&digits(EFLAGS)?[2..4], 16)?;
        let at = EFLAGS.start + 2;
        registers.replace_range(at..at + 2, &format!("{:02x}", second & !INTERRUPTS));
        // `jmp` to itself.
        self.succeed(&format!("M{rip:x},2:ebfe"))?;
        self.succeed(&format!("G{registers}"))?;
        self.succeed("D")
    }

    /// Writes to the memory that the first CPU sees at `address`, and lets the machine go on.
    ///
    /// # Errors
    /// QEMU refuses or does not answer.
    pub fn write(mut self, address: u64, bytes: &[u8]) -> Result<()> {
        use std::fmt::Write as _;
        self.succeed("Hg1")?;
        let mut packet = format!("M{address:x},{:x}:", bytes.len());
        for byte in bytes {
            write!(packet, "{byte:02x}")?;
        }
        self.succeed(&packet)?;
        self.succeed("D")
    }

    fn succeed(&mut self, request: &str) -> Result<()> {
        match &*self.ask(request)? {
            "OK" => Ok(()),
            other => bail!("QEMU's gdb stub answers {other:?} to {request:?}"),
        }
    }

    /// Sends a packet and returns the content of the answer. Reports that the machine has stopped are skipped.
    fn ask(&mut self, request: &str) -> Result<String> {
        let sum = request.bytes().fold(0u8, u8::wrapping_add);
        write!(self.0, "${request}#{sum:02x}")?;
        loop {
            let answer = self.receive(request)?;
            if request == "?" || !answer.starts_with('T') {
                return Ok(answer);
            }
        }
    }

    fn receive(&mut self, request: &str) -> Result<String> {
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
