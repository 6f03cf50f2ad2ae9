//! The terminal as the machine's serial console.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::thread;

use anstream::adapter::StripBytes;
use anyhow::{Context, Result, bail};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use seamark_tests::qemu::{Guest, Machine, SerialWriter};

/// Ctrl-A, the prefix of a key for this program.
const PREFIX: u8 = 0x01;

const HELP: &str = "Ctrl-A x leaves and switches the machine off; Ctrl-A Ctrl-A types one Ctrl-A; Ctrl-A h shows this. \
                    Every other key goes to the machine.";

/// The reason why the conversation ended.
enum End {
    Left,
    /// The machine has stopped, or the stub has said why it stops.
    Stopped(Option<String>),
}

/// Connects this terminal to a new machine until it stops or the user leaves.
pub fn interact(machine: &Machine, directory: &Path) -> Result<()> {
    eprintln!("This terminal is the serial console. Ctrl-A x leaves, Ctrl-A h helps.");
    let screen = Screen(Some(Firmware::default()));
    let mut guest = Guest::start(machine, directory, Some(Box::new(screen)))?;
    let raw = Raw::enter()?;
    let (ended, ends) = mpsc::channel();
    let (writer, ending) = (guest.writer(), guest.ending());
    let left = ended.clone();
    thread::spawn(move || keyboard(writer, &left));
    thread::spawn(move || ended.send(End::Stopped(ending.wait())));
    let end = ends.recv().context("the terminal's threads are gone")?;
    if machine.gdb && matches!(end, End::Stopped(Some(_))) {
        eprintln!(
            "\r\nThe stub says that the machine is at its end; Ctrl-A x leaves the debugger's machine.\r"
        );
        // From now on only the keyboard sends.
        let _ = ends.recv();
    }
    drop(raw);
    if let Some(record) = guest.crash_record() {
        eprintln!("\nThe hypervisor has crashed:\n{record}");
    }
    match end {
        End::Left => eprintln!("\nLeft; the machine is switched off."),
        End::Stopped(Some(why)) => {
            eprintln!();
            bail!("{why}");
        }
        End::Stopped(None) => {
            eprintln!("\nThe machine has stopped.");
            if let Some(why) = guest.failure_of_qemu()? {
                bail!("{why}");
            }
        }
    }
    Ok(())
}

/// Passes typed bytes to the machine.
fn keyboard(mut writer: SerialWriter, ended: &Sender<End>) {
    let mut keys = Keys::default();
    let mut buffer = [0; 256];
    // Without more input (a closed pipe) the machine runs on until it stops.
    while let Ok(len @ 1..) = io::stdin().lock().read(&mut buffer) {
        let typed = keys.take(&buffer[..len]);
        if writer.write_all(&typed.passed).is_err() {
            return;
        }
        if typed.help {
            eprint!("\r\n{HELP}\r\n");
        }
        if typed.leave {
            // The receiver is gone only if the machine has stopped in the meantime.
            let _ = ended.send(End::Left);
            return;
        }
    }
}

/// Separates the keys for this program from those for the machine.
#[derive(Default)]
struct Keys {
    after_prefix: bool,
}

/// The result of typed keys.
#[derive(Debug, Default, PartialEq, Eq)]
struct Typed {
    /// The bytes for the machine.
    passed: Vec<u8>,
    help: bool,
    leave: bool,
}

impl Keys {
    /// Takes typed bytes. A key after Ctrl-A that is not for this program is passed on together with the Ctrl-A.
    fn take(&mut self, keys: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &key in keys {
            if !self.after_prefix {
                match key {
                    PREFIX => self.after_prefix = true,
                    _ => typed.passed.push(key),
                }
                continue;
            }
            self.after_prefix = false;
            match key {
                b'x' | b'X' => {
                    typed.leave = true;
                    return typed;
                }
                b'h' | b'H' | b'?' => typed.help = true,
                PREFIX => typed.passed.push(PREFIX),
                _ => typed.passed.extend([PREFIX, key]),
            }
        }
        typed
    }
}

/// The start of the hypervisor's first line.
const FIRST_LINE: &[u8] = b"\nseamark ";

/// Standard output.
///
/// Until the hypervisor's first line, control sequences are left out: the firmware clears the screen several times,
/// and with it the output of this program and of cargo.
struct Screen(Option<Firmware>);

/// The state while the firmware prints.
#[derive(Default)]
struct Firmware {
    strip: StripBytes,
    /// The last bytes of its output, too few for the first line.
    last: Vec<u8>,
}

impl Firmware {
    /// Returns the bytes without control sequences, and true once the hypervisor has taken over.
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
        let Some(firmware) = &mut self.0 else {
            return io::stdout().write(bytes);
        };
        let (plain, over) = firmware.take(bytes);
        if over {
            self.0 = None;
        }
        io::stdout().write_all(&plain)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// A terminal in raw mode, which is restored on drop. Nothing is set if standard input is no terminal.
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

    fn passed(bytes: &[u8]) -> Typed {
        Typed {
            passed: bytes.to_vec(),
            ..Typed::default()
        }
    }

    #[test]
    fn ordinary_keys_are_passed_on_and_so_is_what_leads_back_from_a_td() {
        let mut keys = Keys::default();
        for typed in [&b"cpus\r\x03"[..], b"\x1d", b"\r~."] {
            assert_eq!(keys.take(typed), passed(typed));
        }
    }

    #[test]
    fn the_prefix_and_x_leave_even_when_typed_apart() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ab\x01"), passed(b"ab"));
        let left = keys.take(b"xy");
        assert!(left.leave && left.passed.is_empty());
    }

    #[test]
    fn the_prefix_and_h_help() {
        for keys in [b"\x01h", b"\x01?"] {
            let typed = Keys::default().take(keys);
            assert!(typed.help && typed.passed.is_empty() && !typed.leave);
        }
    }

    #[test]
    fn the_prefix_reaches_the_machine_when_typed_twice_or_before_another_key() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"\x01\x01"), passed(b"\x01"));
        assert_eq!(keys.take(b"x"), passed(b"x"));
        assert_eq!(keys.take(b"\x01b"), passed(b"\x01b"));
    }
}
