//! The firmware's variables that keep a report.

use core::sync::atomic::{AtomicU16, Ordering::Relaxed};

use boot::keep::{MAX_VARIABLES, name};
use crashlog::piece::{HEADER, Identity, pieces};

use crate::runtime::{self, Error};

/// Maximum size of a value in bytes. Every firmware takes a value of this size.
const VALUE: usize = 1024;
const _: () = assert!(MAX_VARIABLES as usize * (VALUE - HEADER) >= crashlog::text::MAX_TEXT);

/// Number of variables that were found.
static USED: AtomicU16 = AtomicU16::new(0);

/// Notes how many variables were found.
pub fn note_used(count: usize) {
    USED.store(count.min(MAX_VARIABLES.into()) as u16, Relaxed);
}

/// Keeps a report. The firmware's first refusal ends it.
pub fn keep(of: Identity, text: &[u8]) {
    let mut value = [0; VALUE];
    for (number, piece) in (0..MAX_VARIABLES).zip(pieces(of, text, VALUE)) {
        let Some(len) = piece.encode(&mut value) else {
            return;
        };
        if runtime::set_variable(&name(number), &value[..len]).is_err() {
            return;
        }
    }
}

/// Removes the variables that were found, the first one last: what an interruption leaves is found again.
///
/// # Errors
/// The firmware's.
pub fn clear() -> Result<(), Error> {
    for number in (0..USED.load(Relaxed)).rev() {
        runtime::set_variable(&name(number), &[])?;
        USED.store(number, Relaxed);
    }
    Ok(())
}
