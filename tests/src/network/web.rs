//! An HTTP server for the files of a directory, which can fail as servers do.
//!
//! Source: RFC 9112 (HTTP/1.1).

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

/// The port of HTTP.
const PORT: u16 = 80;
/// Time after which the server gives up a client.
const PATIENCE: Duration = Duration::from_secs(120);

/// The way in which a file is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The answer is 500.
    Broken,
    /// The connection is never answered.
    Mute,
    /// The body stops in its middle.
    Stalled,
    /// The connection is closed in the middle of the body.
    Cut,
    /// The file has this length, as far as the server says.
    Claims(u64),
    /// The file grows by one byte after it was asked for first.
    Grows,
}

/// A running server.
pub struct Web {
    requests: Arc<Mutex<Vec<String>>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Content {
    root: PathBuf,
    faults: Vec<(&'static str, Fault)>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Web {
    /// Serves the files in `root`, in the calling thread's network namespace. Each path in `faults` fails in its way.
    ///
    /// # Errors
    /// The port is not free.
    pub fn start(root: PathBuf, faults: &[(&'static str, Fault)]) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))
            .context("can't serve on port 80 of the network namespace")?;
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stopped = Arc::new(AtomicBool::new(false));
        let content = Content {
            root,
            faults: faults.to_owned(),
            requests: Arc::clone(&requests),
        };
        let thread = thread::spawn({
            let stopped = Arc::clone(&stopped);
            move || {
                for client in listener.incoming().flatten() {
                    if stopped.load(Ordering::Acquire) {
                        break;
                    }
                    let content = content.clone();
                    thread::spawn(move || content.serve(client));
                }
            }
        });
        Ok(Self {
            requests,
            stopped,
            thread: Some(thread),
        })
    }

    /// Returns the requests so far, as method, host and path: `GET 10.77.1.1 /seamark.efi`.
    pub fn requests(&self) -> Vec<String> {
        let requests = self.requests.lock();
        requests.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // The connection wakes the thread that waits for one.
        let woken = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

impl Content {
    /// Answers a client's requests until it has no more.
    fn serve(&self, client: TcpStream) {
        // The client goes away, or is given up.
        let _ = client.set_read_timeout(Some(PATIENCE));
        let _ = client.set_write_timeout(Some(PATIENCE));
        let mut lines = BufReader::new(&client).lines().map_while(Result::ok);
        loop {
            let Some(request) = lines.next() else { return };
            let fields: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
            let host = fields.iter().find_map(|field| field.strip_prefix("Host: "));
            let mut words = request.split(' ');
            let (Some(method), Some(path)) = (words.next(), words.next()) else {
                return;
            };
            let host = host.unwrap_or("?");
            self.requests
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(format!("{method} {host} {path}"));
            if self.answer(&client, method == "HEAD", path).is_none() {
                return;
            }
        }
    }

    /// Answers one request. Returns `None` if the connection is at its end.
    fn answer(&self, mut client: &TcpStream, head_only: bool, path: &str) -> Option<()> {
        let path = decoded(path.trim_start_matches('/'));
        let fault = self.faults.iter().find(|(name, _)| *name == path);
        let fault = fault.map(|(_, fault)| *fault);
        let (status, body) = match fs::read(self.root.join(&path)) {
            _ if fault == Some(Fault::Broken) => ("500 Internal Server Error", Vec::new()),
            Ok(body) => ("200 OK", body),
            Err(_) => ("404 Not Found", Vec::new()),
        };
        let length = match fault {
            Some(Fault::Claims(length)) => length,
            Some(Fault::Grows) if !head_only => body.len() as u64 + 1,
            _ => body.len() as u64,
        };
        if fault == Some(Fault::Mute) {
            wait_for_end(client);
            return None;
        }
        write!(
            client,
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n"
        )
        .ok()?;
        if head_only {
            return Some(());
        }
        if matches!(fault, Some(Fault::Stalled | Fault::Cut)) {
            client.write_all(&body[..body.len() / 2]).ok()?;
            if fault == Some(Fault::Stalled) {
                wait_for_end(client);
            }
            return None;
        }
        client.write_all(&body).ok()
    }
}

/// Waits until the client closes the connection, or is given up.
fn wait_for_end(mut client: &TcpStream) {
    let _ = client.read(&mut [0]);
}

/// Replaces the escapes in a URL's path (RFC 3986, section 2.1).
fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2).unwrap_or(("", part));
        bytes.extend(u8::from_str_radix(code, 16).ok());
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_in_a_path_are_bytes() {
        assert_eq!(decoded("my%20kernel/%C3%BC"), "my kernel/ü");
        assert_eq!(decoded("plain"), "plain");
    }
}
