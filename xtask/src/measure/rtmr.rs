//! RTMRs: the registers that a TD's firmware and operating system extend while they run.
//!
//! Source: TDX Module ABI 1.5, TDG.MR.RTMR.EXTEND; for the project's firmware: `firmware/src/lib.rs`.

use seam::abi::Measurement;
use sha2::{Digest, Sha384};

/// Returns the four registers as the project's firmware leaves them. Register 1 has the kernel; register 2 has the
/// command line, then the initial file system if there is one.
pub fn of_boot(kernel: &[u8], initrd: Option<&[u8]>, command_line: &str) -> [Measurement; 4] {
    let mut registers = [[0; 48]; 4];
    extend(&mut registers[1], kernel);
    extend(&mut registers[2], command_line.as_bytes());
    if let Some(initrd) = initrd.filter(|initrd| !initrd.is_empty()) {
        extend(&mut registers[2], initrd);
    }
    registers
}

/// Extends a register with the digest of `content`.
fn extend(register: &mut Measurement, content: &[u8]) {
    extend_with(register, &Sha384::digest(content).into());
}

/// Extends a register with a digest, as TDG.MR.RTMR.EXTEND does.
pub fn extend_with(register: &mut Measurement, digest: &Measurement) {
    let both = [*register, *digest];
    *register = Sha384::digest(both.as_flattened()).into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_is_the_digest_of_what_it_was_and_what_came() {
        let once = |content: &[u8]| {
            let mut both = [0; 96];
            both[48..].copy_from_slice(&Sha384::digest(content));
            Measurement::from(Sha384::digest(both))
        };
        let registers = of_boot(b"kernel", None, "quiet");
        assert_eq!(
            registers,
            [[0; 48], once(b"kernel"), once(b"quiet"), [0; 48]]
        );
        let mut both = once(b"quiet").to_vec();
        both.extend(Sha384::digest(b"initrd"));
        let more = of_boot(b"kernel", Some(b"initrd"), "quiet");
        assert_eq!(more[2], Measurement::from(Sha384::digest(both)));
        assert_eq!(of_boot(b"kernel", Some(b""), "quiet"), registers);
    }
}
