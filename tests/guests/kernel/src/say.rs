//! The output of checks: `ok NAME`, `FAIL NAME: why`, and at the end `KERNEL: N passed, N failed`.

use td_base::vmcall;

const SERIAL: u16 = 0x3F8;

/// Prints one line.
pub fn line(parts: &[&str]) {
    for part in parts.iter().chain(&["\r\n"]) {
        for byte in part.bytes() {
            // A host without the port shows no output.
            let _ = vmcall::io_out(SERIAL, 1, byte.into());
        }
    }
}

/// The results of the checks so far.
#[derive(Debug, Default)]
pub struct Checks {
    passed: u8,
    failed: u8,
}

impl Checks {
    /// Runs a check. A failed check ends the program, because later ones depend on it.
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

    /// Prints the tally and ends the program.
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
