//! The firmware's own console, which is the program's until ExitBootServices.

use core::{
    fmt::{self, Write},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// True while the firmware's services may be called.
static ATTACHED: AtomicBool = AtomicBool::new(false);

/// Notes that the firmware's services may be called, or that they are gone.
pub(super) fn set_attached(attached: bool) {
    ATTACHED.store(attached, Relaxed);
}

/// The firmware's console. After ExitBootServices, text is discarded.
#[derive(Clone, Copy, Debug)]
pub struct Screen;

impl Write for Screen {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if !ATTACHED.load(Relaxed) {
            return Ok(());
        }
        uefi::system::with_stdout(|out| out.write_str(text))
    }
}
