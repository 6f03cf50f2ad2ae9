//! CPUs of several guests that meet at a switch, or at the hub of socket devices, in many orders.

#[allow(dead_code, reason = "the crate's own tests use the rest of it")]
#[path = "../../src/tests/driver.rs"]
mod driver;
mod explore;
mod ports;
#[allow(dead_code, reason = "the crate's own tests use the rest of it")]
#[path = "../../src/tests/ram.rs"]
mod ram;
mod sockets;

extern crate std;

use ram::Ram;
// The driver finds them here.
use virtio::{Device, Place, Transport, access};
