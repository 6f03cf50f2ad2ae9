//! A user's way into a guest through ssh, with Debian's client.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Time limit of one attempt to connect, and of a server's silence on a connection.
const PATIENCE: Duration = Duration::from_secs(15);
/// Interval between attempts to connect: each costs the guest time.
const RETRY: Duration = Duration::from_secs(1);

/// A user on a server at this computer's loopback interface.
#[derive(Clone, Debug)]
pub struct Ssh {
    user: &'static str,
    key: PathBuf,
    port: u16,
    /// The server's key, as it was at the first connection.
    known_hosts: PathBuf,
}

/// The files that a remote command reads and writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Redirect<'a> {
    /// Its standard input; nothing if this is `None`.
    pub input: Option<&'a Path>,
    /// Its standard output, instead of the result.
    pub output: Option<&'a Path>,
}

impl Ssh {
    /// Creates the way of `user`, who has the private key in the file `key`. `known_hosts` is a file of the caller's own:
    /// the server's key goes there at the first connection, and must be the same at later ones.
    pub fn new(user: &'static str, key: PathBuf, port: u16, known_hosts: PathBuf) -> Self {
        Self {
            user,
            key,
            port,
            known_hosts,
        }
    }

    /// Waits until the server lets the user in.
    ///
    /// # Errors
    /// It does not within `limit`; the error is that of the last attempt.
    pub fn wait(&self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            match self.run("true", PATIENCE) {
                Ok(_) => return Ok(()),
                Err(error) if started.elapsed() > limit => {
                    let limit = limit.as_secs();
                    return Err(error).with_context(|| format!("no ssh within {limit} s"));
                }
                Err(_) => sleep(RETRY),
            }
        }
    }

    /// Runs a command. Returns its standard output.
    ///
    /// # Errors
    /// The command fails, or does not end within `limit`.
    pub fn run(&self, command: &str, limit: Duration) -> Result<String> {
        self.run_with(command, Redirect::default(), limit)
    }

    /// Runs a command with files as its input and output. Returns what it writes to neither.
    ///
    /// # Errors
    /// As [`Ssh::run`], or a file can't be opened.
    pub fn run_with(
        &self,
        command: &str,
        redirect: Redirect<'_>,
        limit: Duration,
    ) -> Result<String> {
        let open = |path: &Path| format!("can't open {}", path.display());
        let mut starter = Command::new("timeout");
        starter.arg(limit.as_secs().to_string());
        let mut client = self.client(starter, command);
        client.stdin(match redirect.input {
            Some(path) => Stdio::from(File::open(path).with_context(|| open(path))?),
            None => Stdio::null(),
        });
        if let Some(path) = redirect.output {
            client.stdout(File::create(path).with_context(|| open(path))?);
        }
        let child = client.spawn().context("can't start timeout (coreutils)")?;
        let output = child.wait_with_output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            // The exit status of timeout.
            output.status.code() != Some(124),
            "`{command}` did not end within {} s: {error}",
            limit.as_secs()
        );
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout);
            bail!(
                "`{command}` failed ({}): {}{said}",
                output.status,
                error.trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a command that goes on until the result is dropped. The result waits until `enough` bytes of its output have
    /// come; all of the output is dropped.
    ///
    /// # Errors
    /// ssh is missing.
    pub fn flow(&self, command: &str, enough: usize) -> Result<Flow> {
        // The kernel ends it with the thread that started it, for whatever reason.
        let mut client = Command::new("setpriv");
        client.args(["--pdeathsig", "KILL"]);
        let mut child = self.client(client, command).stdin(Stdio::null()).spawn()?;
        let mut output = child.stdout.take().context("the output is a pipe")?;
        let (sender, arrived) = channel();
        let reader = thread::spawn(move || {
            let mut buffer = [0; 1 << 16];
            let mut came = 0;
            while let Ok(len @ 1..) = output.read(&mut buffer) {
                if came < enough && came + len >= enough {
                    // Nobody waits if the result is gone.
                    let _ = sender.send(());
                }
                came += len;
            }
        });
        Ok(Flow {
            command: command.to_owned(),
            child,
            arrived,
            reader: Some(reader),
        })
    }

    /// Adds the client and its arguments to a command that starts another one.
    fn client(&self, mut starter: Command, command: &str) -> Command {
        let patience = PATIENCE.as_secs();
        starter
            .args(["ssh", "-F", "/dev/null", "-o", "BatchMode=yes"])
            .args(["-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"])
            .args(["-o", "StrictHostKeyChecking=accept-new", "-o"])
            .arg(format!("UserKnownHostsFile={}", self.known_hosts.display()))
            .args(["-o", &format!("ConnectTimeout={patience}")])
            .args(["-o", &format!("ServerAliveInterval={patience}")])
            .arg("-i")
            .arg(&self.key)
            .args(["-p", &self.port.to_string()])
            .arg(format!("{}@127.0.0.1", self.user))
            .arg(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        starter
    }
}

/// A remote command that goes on until this is dropped, as far as the client is concerned.
pub struct Flow {
    command: String,
    child: Child,
    arrived: Receiver<()>,
    reader: Option<JoinHandle<()>>,
}

impl Flow {
    /// Waits until enough output has come.
    ///
    /// # Errors
    /// It has not within `limit`, or the command has ended.
    pub fn wait(&self, limit: Duration) -> Result<()> {
        let context = || format!("`{}` said too little", self.command);
        self.arrived.recv_timeout(limit).with_context(context)
    }

    /// Returns true if the command has not ended.
    ///
    /// # Errors
    /// The client's state can't be read.
    pub fn goes_on(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        // Both fail only if the client has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
