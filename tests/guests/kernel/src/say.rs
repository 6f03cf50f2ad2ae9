//! How checks are told: `ok NAME`, `FAIL NAME: why`, and at the end `KERNEL: N passed, N failed`.

use td_base::vmcall;

const SERIAL: u16 = 0x3F8;

/// Says one line.
pub fn line(parts: &[&str]) {
    for part in parts.iter().chain(&["\r\n"]) {
        for byte in part.bytes() {
            // A host without the port has nobody who listens.
            let _ = vmcall::io_out(SERIAL, 1, byte.into());
        }
    }
}

/// What came of the checks so far.
#[derive(Debug, Default)]
pub struct Checks {
    passed: u8,
    failed: u8,
}

impl Checks {
    /// Runs one. After one that failed there is nothing to build on: it is the last.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Result<(), &'static str>) {
        match check() {
            Ok(()) => {
                line(&["ok ", name]);
                self.passed += 1;
            }
            Err(why) => {
                line(&["FAIL ", name, ": ", why]);
                self.failed += 1;
                self.end();
            }
        }
    }

    /// The tally, and the end.
    pub fn end(&self) -> ! {
        let [passed, failed] = [self.passed, self.failed].map(|count| [b'0' + count]);
        let digit = |digit: &'_ [u8; 1]| if digit[0] <= b'9' { digit[0] } else { b'?' };
        let (passed, failed) = ([digit(&passed)], [digit(&failed)]);
        let text = |digit| core::str::from_utf8(digit).unwrap_or("?");
        line(&[
            "test-kernel: ",
            text(&passed),
            " passed, ",
            text(&failed),
            " failed",
        ]);
        crate::halt()
    }
}
