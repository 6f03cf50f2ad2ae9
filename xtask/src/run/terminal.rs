//! The terminal as the machine's serial console.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::thread;

use anstream::adapter::StripBytes;
use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use seamark_tests::qemu::{Guest, Machine, SerialWriter};

/// Ctrl-].
const LEAVE: u8 = 0x1D;
/// Ctrl-A, before `x`.
const PREFIX: u8 = 0x01;

/// Why the conversation ended.
enum End {
    Left,
    Stopped,
}

/// Connects this terminal to a new machine until it stops or is left.
pub fn interact(machine: &Machine, directory: &Path) -> Result<()> {
    eprintln!("This terminal is the serial console. Ctrl-] leaves (or Ctrl-A x).");
    let (ended, ends) = mpsc::channel();
    let screen = Screen {
        firmware: Some(Firmware::default()),
        ended: ended.clone(),
    };
    let guest = Guest::start(machine, directory, Some(Box::new(screen)))?;
    let raw = Raw::enter()?;
    let writer = guest.writer();
    thread::spawn(move || keyboard(writer, &ended));
    let end = ends.recv().context("the terminal's threads are gone")?;
    drop(raw);
    match end {
        End::Left => eprintln!("\nLeft; the machine is switched off."),
        End::Stopped => eprintln!("\nThe machine has stopped."),
    }
    if let Some(reason) = guest.stub_error()? {
        eprintln!("The machine had no SEAM: {reason}");
    }
    if let Some(record) = guest.crash_record() {
        eprintln!("The hypervisor has crashed:\n{record}");
    }
    Ok(())
}

/// Carries what is typed to the machine.
fn keyboard(mut writer: SerialWriter, ended: &Sender<End>) {
    let mut keys = Keys::default();
    let mut buffer = [0; 256];
    // Without more input (a closed pipe) the machine runs on until it stops.
    while let Ok(len @ 1..) = io::stdin().lock().read(&mut buffer) {
        let (bytes, leave) = keys.take(&buffer[..len]);
        if leave {
            // Nobody listens only when the machine has stopped in the meantime.
            let _ = ended.send(End::Left);
            return;
        }
        if writer.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// Finds the keys that leave among those for the machine.
#[derive(Default)]
struct Keys {
    after_prefix: bool,
}

impl Keys {
    /// What to pass on, and whether to leave. Ctrl-A twice passes one on.
    fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::new();
        for &key in typed {
            match (self.after_prefix, key) {
                (_, LEAVE) | (true, b'x' | b'X') => return (passed, true),
                (false, PREFIX) => self.after_prefix = true,
                (true, PREFIX) | (false, _) => {
                    self.after_prefix = false;
                    passed.push(key);
                }
                (true, _) => {
                    self.after_prefix = false;
                    passed.extend([PREFIX, key]);
                }
            }
        }
        (passed, false)
    }
}

/// What the hypervisor's first line begins with.
const FIRST_LINE: &[u8] = b"\nseamark ";

/// Standard output; tells when the machine has closed its side.
///
/// Until the hypervisor's first line, control sequences are left out: the firmware clears the screen several times, and
/// with it what this program and cargo had to say.
struct Screen {
    firmware: Option<Firmware>,
    ended: Sender<End>,
}

/// The firmware is still speaking.
#[derive(Default)]
struct Firmware {
    strip: StripBytes,
    /// The last bytes that it said, too few for the first line.
    last: Vec<u8>,
}

impl Firmware {
    /// The bytes without control sequences, and whether the hypervisor has taken over.
    fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let plain: Vec<u8> = self.strip.strip_next(bytes).flatten().copied().collect();
        self.last
            .extend(plain.iter().filter(|&&byte| byte != b'\r'));
        let over = self.last.windows(FIRST_LINE.len()).any(|w| w == FIRST_LINE);
        self.last
            .drain(..self.last.len().saturating_sub(FIRST_LINE.len() - 1));
        (plain, over)
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(firmware) = &mut self.firmware else {
            return io::stdout().write(bytes);
        };
        let (plain, over) = firmware.take(bytes);
        if over {
            self.firmware = None;
        }
        io::stdout().write_all(&plain)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody listens when the machine was left.
        let _ = self.ended.send(End::Stopped);
    }
}

/// A terminal in raw mode; it is set back when this value goes. Where standard input is no terminal there is nothing
/// to set.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Result<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin).context("can't read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("can't set the terminal's mode")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal may be gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firmware_can_not_clear_the_screen() {
        let mut firmware = Firmware::default();
        let (plain, over) = firmware.take(b"\x1b[2J\x1b[01;01HBdsDxe: starting\r\n\r\nsea");
        assert_eq!(
            (&*plain, over),
            (&b"BdsDxe: starting\r\n\r\nsea"[..], false)
        );
        assert_eq!(firmware.take(b"mark 0.1.0"), (b"mark 0.1.0".to_vec(), true));
    }

    #[test]
    fn ordinary_keys_are_passed_on() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"cpus\r\x03"), (b"cpus\r\x03".to_vec(), false));
    }

    #[test]
    fn both_ways_leave_even_when_typed_apart() {
        assert!(Keys::default().take(&[LEAVE]).1);
        let mut keys = Keys::default();
        assert_eq!(keys.take(&[PREFIX]), (vec![], false));
        assert!(keys.take(b"x").1);
    }

    #[test]
    fn the_prefix_reaches_the_machine_when_typed_twice_or_before_another_key() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(&[PREFIX, PREFIX]), (vec![PREFIX], false));
        assert_eq!(keys.take(&[PREFIX, b'b']), (vec![PREFIX, b'b'], false));
    }
}
