//! The operator's console.
//!
//! It is pure: it owns no device. Whoever does owns a `Console` and
//!
//! 1. calls `Console::start(&mut self, host, out)` once, which greets and prints the first prompt;
//! 2. calls `Console::feed(&mut self, byte, host, out)` for every byte that arrives, outside interrupt handlers, since a
//!    byte that ends a line runs the command: `host` is a `&mut dyn` [`host::Host`], `out` a `&mut dyn core::fmt::Write`
//!    whose lines already end in `\r\n`;
//! 3. hands every line that is not a reply (a log record) to `Console::notice(&mut self, line, out)`, which prints it
//!    above the line that is being edited, and holds it back in JSON mode.

pub mod host;
