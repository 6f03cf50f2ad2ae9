//! Uses the socket device of the TD in which this Linux runs:
//!
//! - `vsock connect CID PORT` sends its input, and prints what comes back, until both ends have no more.
//! - `vsock echo PORT TIMES` accepts so many connections, one after the other, and sends back what comes.
//! - `vsock quote` answers requests at the host's quote port with the words "quote of" and the report's data.
//!
//! Source: Linux include/uapi/linux/vm_sockets.h; the messages of Intel's Quote Generation Service.
#![expect(unsafe_code, reason = "rustix has no address of AF_VSOCK")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{
    AddressFamily, Shutdown, SocketType, accept, bind, connect, listen, shutdown, socket,
};
use seam::abi::TdReport;
use zerocopy::FromBytes;

/// The host, and its quote port.
const HOST: u32 = 2;
const QUOTES: u32 = 4050;
/// Any context id, for a socket that listens.
const ANY: u32 = u32::MAX;

/// struct `sockaddr_vm`.
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: [u8; 4],
}

impl Address {
    fn new(cid: u32, port: u32) -> Self {
        Self {
            family: AddressFamily::VSOCK.as_raw(),
            reserved: 0,
            port,
            cid,
            flags: [0; 4],
        }
    }
}

// SAFETY: the pointer is that of a whole address, which has the layout that the kernel wants.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let bytes = size_of::<Self>() as SocketAddrLen;
        f(std::ptr::from_ref(self).cast(), bytes)
    }
}

fn main() -> Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match *words {
        ["connect", cid, port] => talk(connected(cid.parse()?, port.parse()?)?),
        ["echo", port, times] => echo(port.parse()?, times.parse()?),
        ["quote"] => quote(),
        _ => bail!("vsock connect CID PORT, vsock echo PORT TIMES, or vsock quote"),
    }
}

fn stream() -> Result<OwnedFd> {
    socket(AddressFamily::VSOCK, SocketType::STREAM, None).context("there are no such sockets")
}

fn connected(cid: u32, port: u32) -> Result<OwnedFd> {
    let socket = stream()?;
    connect(&socket, &Address::new(cid, port))
        .with_context(|| format!("can't connect to port {port} of {cid}"))?;
    Ok(socket)
}

fn talk(socket: OwnedFd) -> Result<()> {
    let mut sends = File::from(socket.try_clone()?);
    let sender = thread::spawn(move || -> Result<()> {
        io::copy(&mut io::stdin().lock(), &mut sends)?;
        Ok(shutdown(&sends, Shutdown::Write)?)
    });
    io::copy(&mut File::from(socket), &mut io::stdout().lock())?;
    match sender.join() {
        Ok(sent) => sent,
        Err(_) => bail!("the sender has panicked"),
    }
}

fn echo(port: u32, times: u32) -> Result<()> {
    let listener = stream()?;
    bind(&listener, &Address::new(ANY, port))?;
    listen(&listener, 4)?;
    println!("echoes at port {port}");
    for _ in 0..times {
        let socket = accept(&listener)?;
        let mut reads = File::from(socket.try_clone()?);
        let bytes = io::copy(&mut reads, &mut File::from(socket))?;
        println!("echoed {bytes} bytes");
    }
    Ok(())
}

fn quote() -> Result<()> {
    let mut socket = File::from(connected(HOST, QUOTES)?);
    println!("quotes");
    loop {
        let mut length = [0; 4];
        socket.read_exact(&mut length)?;
        let mut message = vec![0; u32::from_be_bytes(length) as usize];
        socket.read_exact(&mut message)?;
        // A header of 16 bytes, two sizes, the report.
        let report = message.get(24..).context("a short message")?;
        ensure!(message[4..8] == [0; 4], "a message of another type");
        let report = TdReport::read_from_bytes(report)
            .map_err(|_| anyhow::anyhow!("a report of {} bytes", report.len()))?;
        let quote = [b"quote of ", &report.report_mac.report_data[..]].concat();
        let size = 24 + quote.len() as u32;
        socket.write_all(&size.to_be_bytes())?;
        let words = [0x1_0001, 1, size, 0, 0, quote.len() as u32];
        let head: Vec<_> = words
            .iter()
            .flat_map(|word: &u32| word.to_le_bytes())
            .collect();
        socket.write_all(&[head, quote].concat())?;
    }
}
