//! A driver for 16550-compatible serial ports.
//!
//! The driver is pure: it reaches the port through [`Registers`], the clock through its caller's arguments, and waits
//! for nothing by itself. Its owner keeps the [`Port`] behind a lock that interrupt handlers may take, and implements
//! [`Access`]. Each use of the port is one section with interrupts off, which moves at most one FIFO of output
//! ([`FIFO`] bytes). [`write()`], [`settle`] and [`finish`] are built from such sections.
//!
//! Output goes into a ring. The port's interrupt drains it, or a timer that calls [`Port::serve`] every
//! [`Port::poll_us`]. Output that does not fit is counted, and the ring contains a line with the count in its place.
//! Nothing is ever switched off: a transmitter that comes back is used again.
//!
//! Source: Texas Instruments PC16550D data sheet (SNLS378), section 8.
#![no_std]
#![forbid(unsafe_code)]

mod access;
mod output;
mod port;
mod registers;
mod ring;
mod setup;

pub use access::{Access, Patience, finish, settle, write};
pub use port::Port;
pub use registers::{FIFO, Register, Registers};
pub use setup::{Baud, NoPort, is_present};
