//! A running machine.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::arguments::{EMULATOR, Files, arguments};
use super::crash;
use super::events::{Event, events};
use super::follow::Follower;
use super::machine::Machine;
use super::qtest::Bus;
use super::transcript::{Transcript, Waited, end_of};
use super::trouble::Watcher;

/// A copy of the serial port's output, byte by byte, besides the transcript. It is dropped when the machine has
/// stopped.
pub type Tee = Box<dyn Write + Send>;

/// Time limit of an answer of QEMU's monitor.
const MONITOR_LIMIT: Duration = Duration::from_secs(60);

/// Returns the path of the monitor's socket.
fn monitor_in(directory: &Path) -> PathBuf {
    directory.join("monitor")
}

/// Returns the path of the qtest server's socket.
fn bus_in(directory: &Path) -> PathBuf {
    directory.join("bus")
}

/// Number of the transcript's last lines that an error shows.
const SHOWN_LINES: usize = 25;

/// A running machine. It is stopped on drop, and when the process that holds it dies.
pub struct Guest {
    child: Child,
    input: Arc<Mutex<ChildStdin>>,
    transcript: Arc<Transcript>,
    /// Held while nobody reads the serial port.
    reading: Arc<Mutex<()>>,
    reader: Option<JoinHandle<()>>,
    directory: PathBuf,
    symbols: Option<PathBuf>,
    started: Instant,
    /// The end of the output that earlier waits have consumed.
    cursor: usize,
}

impl Guest {
    /// Starts `machine`. The run leaves its logs in `directory`: `serial.log`, `debug.log` (the debug console) and
    /// `qemu.log` (QEMU's own messages).
    ///
    /// # Errors
    /// QEMU or its firmware is missing, or a file can't be written.
    pub fn start(machine: &Machine, directory: &Path, tee: Option<Tee>) -> Result<Self> {
        machine.check()?;
        fs::create_dir_all(directory)
            .with_context(|| format!("can't create {}", directory.display()))?;
        let files = Files {
            vars: directory.join("vars.fd"),
            debug_console: directory.join("debug.log"),
            monitor: monitor_in(directory),
            bus: bus_in(directory),
        };
        let vars = machine.shape.firmware.vars;
        fs::copy(vars, &files.vars)
            .with_context(|| format!("can't copy {vars}; install the package ovmf"))?;
        let errors = File::create(directory.join("qemu.log"))?;
        let log = File::create(directory.join("serial.log"))?;
        let transcript = Arc::new(Transcript::default());
        let follower = Follower::start(&files.debug_console, {
            let transcript = Arc::clone(&transcript);
            let mut watcher = Watcher::new(&machine.provoked);
            move |bytes| {
                if let Some(why) = watcher.feed(bytes) {
                    transcript.trouble(why);
                }
            }
        });
        let follower =
            follower.with_context(|| format!("can't watch {}", files.debug_console.display()))?;

        // setpriv makes the kernel kill QEMU when the thread that started it is gone, for whatever reason.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", EMULATOR])
            .args(arguments(machine, &files))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("can't start setpriv (package util-linux)")?;
        let input = child.stdin.take().context("QEMU's input is a pipe")?;
        let output = child.stdout.take().context("QEMU's output is a pipe")?;
        let reading = Arc::new(Mutex::new(()));
        let reader = thread::spawn({
            let transcript = Arc::clone(&transcript);
            let reading = Arc::clone(&reading);
            move || {
                read(output, &reading, &transcript, log, tee);
                // The reason of the end must be known before the end itself.
                follower.finish();
                transcript.end();
            }
        });
        Ok(Self {
            child,
            input: Arc::new(Mutex::new(input)),
            transcript,
            reading,
            reader: Some(reader),
            directory: directory.to_owned(),
            symbols: machine.symbols.clone(),
            started: Instant::now(),
            cursor: 0,
        })
    }

    /// Executes a command of QEMU's monitor, which the machine must have. Returns its answer.
    ///
    /// # Errors
    /// The monitor does not answer.
    pub fn monitor(&self, command: &str) -> Result<String> {
        const PROMPT: &str = "(qemu) ";
        let path = monitor_in(&self.directory);
        let socket =
            UnixStream::connect(&path).with_context(|| format!("can't use {}", path.display()))?;
        socket.set_read_timeout(Some(MONITOR_LIMIT))?;
        let until_prompt = || -> Result<String> {
            let mut text = String::new();
            while !text.ends_with(PROMPT) {
                let mut byte = [0];
                (&socket).read_exact(&mut byte).context("QEMU's monitor")?;
                text.push(byte[0].into());
            }
            Ok(text)
        };
        until_prompt()?;
        writeln!(&socket, "{command}")?;
        until_prompt()
    }

    /// Connects to the machine's bus, which the machine must have opened.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub fn bus(&self) -> Result<Bus> {
        Bus::connect(&bus_in(&self.directory))
    }

    /// Returns QEMU's own messages so far.
    ///
    /// # Errors
    /// They can't be read.
    pub fn qemu_log(&self) -> Result<String> {
        let log = self.directory.join("qemu.log");
        fs::read_to_string(&log).with_context(|| format!("can't read {}", log.display()))
    }

    /// Returns the CPU time that QEMU has used so far.
    ///
    /// # Errors
    /// QEMU is not running, or the kernel's data is malformed.
    pub fn cpu_time(&self) -> Result<Duration> {
        // Linux's USER_HZ.
        const TICK: Duration = Duration::from_millis(10);
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(')').context("a process's state")?;
        // utime and stime are fields 14 and 15; the second field ends with the parenthesis.
        let times = fields.split_whitespace().skip(11).take(2);
        let ticks: u32 = times.map(|ticks| ticks.parse().unwrap_or(0)).sum();
        Ok(TICK * ticks)
    }

    /// Waits for `pattern`, for at most `limit`. Returns the serial port's output since the last wait, up to and
    /// including the pattern.
    ///
    /// # Errors
    /// The limit is over, the machine stopped or crashed first, or the stub has reported its end. The error shows the
    /// crash record or the last lines.
    pub fn expect(&mut self, pattern: &str, limit: Duration) -> Result<String> {
        self.expect_any(&[pattern], limit).map(|(_, text)| text)
    }

    /// Waits for the first of several patterns. Also returns its index.
    ///
    /// # Errors
    /// As [`Guest::expect`].
    pub fn expect_any(&mut self, patterns: &[&str], limit: Duration) -> Result<(usize, String)> {
        let start = self.cursor;
        let all = patterns.iter().chain([&crash::END]);
        let waited = self.transcript.wait(start, Instant::now() + limit, |text| {
            let ends = all.clone().enumerate();
            let ends = ends.filter_map(|(i, pattern)| Some((end_of(text, pattern)?, i)));
            ends.min()
        });
        let what = patterns.join("` or `");
        match waited {
            Waited::Found((_, index)) if index == patterns.len() => bail!(
                "the hypervisor crashed while `{what}` was waited for\n{}",
                self.crash_record().unwrap_or_default()
            ),
            Waited::Found((end, index)) => {
                self.cursor = start + end;
                let mut text = self.transcript.since(start);
                text.truncate(text.floor_char_boundary(end));
                Ok((index, text))
            }
            Waited::Troubled(why) => bail!(
                "{why}\n(while `{what}` was waited for)\n{}",
                self.last_lines()
            ),
            Waited::Ended => bail!(
                "the machine stopped while `{what}` was waited for ({})\n{}",
                self.end_of_qemu(),
                self.last_lines()
            ),
            Waited::TimedOut => bail!(
                "`{what}` did not come within {} s, {} s after the start\n{}",
                limit.as_secs(),
                self.started.elapsed().as_secs(),
                self.last_lines()
            ),
        }
    }

    /// Waits for the hypervisor to crash, for at most `limit`. Returns the record. Later waits begin behind it.
    ///
    /// # Errors
    /// As [`Guest::expect`].
    pub fn expect_crash(&mut self, limit: Duration) -> Result<String> {
        let start = self.cursor;
        let waited = self.transcript.wait(start, Instant::now() + limit, |text| {
            end_of(text, crash::END)
        });
        match waited {
            Waited::Found(end) => {
                self.cursor = start + end;
                let symbols = self.symbols.as_deref().unwrap_or(Path::new(""));
                crash::record(&self.transcript.since(start), symbols).context("no record")
            }
            Waited::Troubled(why) => bail!("{why}\n{}", self.last_lines()),
            Waited::Ended => bail!("the machine stopped ({})", self.end_of_qemu()),
            Waited::TimedOut => bail!("the hypervisor goes on\n{}", self.last_lines()),
        }
    }

    /// Waits for `time`.
    ///
    /// # Errors
    /// The machine stops or crashes meanwhile, or the stub reports its end.
    pub fn pause(&mut self, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        let waited = self
            .transcript
            .wait(self.cursor, deadline, |text| end_of(text, crash::END));
        match waited {
            Waited::TimedOut => Ok(()),
            Waited::Found(_) => bail!(
                "the hypervisor crashed\n{}",
                self.crash_record().unwrap_or_default()
            ),
            Waited::Troubled(why) => bail!("{why}"),
            Waited::Ended => bail!("the machine stopped ({})", self.end_of_qemu()),
        }
    }

    /// Returns the stub's report of an end of the machine, unless it was provoked.
    pub fn trouble(&self) -> Option<String> {
        self.transcript.troubled()
    }

    /// Returns a handle with which another thread can wait for the machine's end.
    pub fn ending(&self) -> Ending {
        Ending(Arc::clone(&self.transcript))
    }

    /// Writes to the serial port.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer().write_all(bytes)
    }

    /// Stops reading the serial port, until the result is dropped. The port stalls when the pipe to it is full.
    pub fn stop_reading(&self) -> NotReading {
        let (release, released) = channel();
        let (held, is_held) = channel();
        let reading = Arc::clone(&self.reading);
        thread::spawn(move || {
            let _held = reading.lock();
            let _ = held.send(());
            // The sender was dropped.
            let _: Result<(), _> = released.recv();
        });
        let _ = is_held.recv();
        NotReading(release)
    }

    /// Returns a writer to the serial port that another thread can own.
    pub fn writer(&self) -> SerialWriter {
        SerialWriter(Arc::clone(&self.input))
    }

    /// Returns the whole output of the serial port without control sequences.
    pub fn transcript(&self) -> String {
        self.transcript.since(0)
    }

    /// Returns the directory of this run's logs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the events of the debug console so far.
    ///
    /// # Errors
    /// Its log can't be read.
    pub fn events(&self) -> Result<Vec<Event>> {
        let path = self.directory.join("debug.log");
        let log = fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
        Ok(events(&log))
    }

    /// Returns the hypervisor's crash record if it has printed one.
    pub fn crash_record(&self) -> Option<String> {
        let symbols = self.symbols.as_deref().unwrap_or(Path::new(""));
        crash::record(&self.transcript(), symbols)
    }

    /// Waits until the machine has stopped by itself.
    ///
    /// # Errors
    /// It still runs after `limit`, or the stub has reported its end.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = self
            .transcript
            .wait(0, Instant::now() + limit, |_| None::<()>);
        match end {
            Waited::TimedOut => bail!(
                "the machine did not stop within {} s\n{}",
                limit.as_secs(),
                self.last_lines()
            ),
            Waited::Troubled(why) => bail!("{why}\n{}", self.last_lines()),
            Waited::Ended | Waited::Found(()) => {}
        }
        // QEMU's output is closed, so it is about to exit.
        Ok(self.child.wait()?)
    }

    /// Returns how QEMU ended, once it has, and its messages.
    fn end_of_qemu(&mut self) -> String {
        let status = match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let log = fs::read_to_string(self.directory.join("qemu.log")).unwrap_or_default();
        format!("QEMU: {status} {}", log.trim())
    }

    /// Returns the reason why QEMU failed, once it has stopped; `None` if it succeeded.
    ///
    /// # Errors
    /// The reason can't be determined.
    pub fn failure_of_qemu(&mut self) -> Result<Option<String>> {
        let failed = !self.child.wait()?.success();
        Ok(failed.then(|| self.end_of_qemu()))
    }

    fn last_lines(&self) -> String {
        let text = self.transcript();
        let lines: Vec<_> = text.lines().collect();
        let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
        format!(
            "--- the serial port's last lines ---\n{}\n---",
            shown.join("\n")
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if QEMU has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The end of a machine.
pub struct Ending(Arc<Transcript>);

impl Ending {
    /// Waits until the machine has stopped, or the stub has reported its end. Returns the stub's report, if any.
    pub fn wait(&self) -> Option<String> {
        self.0.wait_for_end()
    }
}

/// A writer to a guest's serial port.
#[derive(Clone)]
pub struct SerialWriter(Arc<Mutex<ChildStdin>>);

impl SerialWriter {
    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        let mut input = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        input
            .write_all(bytes)
            .and_then(|()| input.flush())
            .context("the machine takes no input any more")
    }
}

/// While this exists, nobody reads the serial port.
pub struct NotReading(#[expect(dead_code, reason = "its drop is the signal")] Sender<()>);

/// Copies the serial port's output to the transcript, the log and the tee until it is closed.
fn read(
    mut output: ChildStdout,
    reading: &Mutex<()>,
    transcript: &Transcript,
    mut log: File,
    mut tee: Option<Tee>,
) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = output.read(&mut buffer) {
        drop(reading.lock());
        let bytes = &buffer[..len];
        // A full disk or a closed terminal must not stop the machine.
        let _ = log.write_all(bytes);
        if let Some(tee) = &mut tee {
            let _ = tee.write_all(bytes).and_then(|()| tee.flush());
        }
        // Last, so that text that a waiter finds is on the screen too.
        transcript.push(bytes);
    }
}
