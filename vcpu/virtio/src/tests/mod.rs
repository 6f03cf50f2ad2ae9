//! Tests against a guest: memory that it shares and takes back, its driver, and its tricks.

mod block;
mod bound;
mod console;
mod driver;
mod hostile;
mod model;
mod net;
mod ram;
mod status;
mod vsock;

extern crate std;

pub use driver::{Driver, Ring};
pub use ram::Ram;
