//! The P-SEAMLDR, which loaded the TDX module: its information about itself and the module, and its statuses.
//!
//! It has its own leafs and statuses (RAX bit 63), and accepts only one call at a time in the whole machine.

use core::fmt;

use crate::abi::{Gprs, SeamldrLeaf};
use crate::address::Hpa;
use crate::call::{Fault, SeamCall};

/// The failure of a P-SEAMLDR leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The instruction faulted: no P-SEAMLDR handled the call.
    Fault(Fault),
    /// The P-SEAMLDR returned this status.
    Status(Status),
}

/// A completion status of the P-SEAMLDR.
///
/// Source: Intel P-SEAMLDR specification, "SEAMLDR completion status codes".
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u64);

/// The statuses: number, name, and meaning with remedy.
const STATUSES: &[(u64, &str, &str)] = &[
    (
        0x8000_0000_0000_0000,
        "EBADPARAM",
        "It does not know the function, or refuses an operand. This is a bug in Seamark: please report it.",
    ),
    (
        0x8000_0000_0000_0003,
        "EBADCALL",
        "It was called out of turn, or it is being shut down. Restart the machine.",
    ),
    (
        0x8000_0000_0000_0004,
        "EBADHANDOFF",
        "The module to be loaded can't take over from the one before. Restart the machine to load it afresh.",
    ),
    (
        0x8000_0000_0000_0005,
        "ECLEANUPREQ",
        "An update was not finished. Restart the machine.",
    ),
    (
        0x8000_0000_0000_0006,
        "EUNSUPPORTED",
        "It can't load a module of that version. Update the firmware, which brings another P-SEAMLDR.",
    ),
    (
        0x8000_0000_0001_0002,
        "ENOMEM",
        "The module does not fit in the memory that the firmware set aside for SEAM. Update the firmware.",
    ),
    (
        0x8000_0000_0001_0003,
        "EUNSPECERR",
        "The firmware set the platform up in a way that it does not accept. Update the firmware, or reset its setup.",
    ),
    (
        0x8000_0000_0001_0004,
        "EUNSUPCPU",
        "The module does not support this processor. Load one that does, which mostly comes with the firmware.",
    ),
    (
        0x8000_0000_0002_0000,
        "EBADSIG",
        "The module's signature is wrong. Load one that is intact.",
    ),
    (
        0x8000_0000_0002_0001,
        "EBADHASH",
        "The module is not the one that was signed. Load one that is intact.",
    ),
    (
        0x8000_0000_0003_0000,
        "EINTERRUPT",
        "An interrupt stopped it. The condition is temporary: try again.",
    ),
    (
        0x8000_0000_0003_0001,
        "ENOENTROPY",
        "The processor's random number generator had nothing to give. The condition is temporary: try again.",
    ),
];

impl Status {
    /// Returns the status's name, or `None` for an unknown status.
    pub fn name(self) -> Option<&'static str> {
        self.known().map(|(_, name, _)| *name)
    }

    /// Returns the meaning and the remedy, or `None` for an unknown status.
    pub fn advice(self) -> Option<&'static str> {
        self.known().map(|(.., advice)| *advice)
    }

    fn known(self) -> Option<&'static (u64, &'static str, &'static str)> {
        STATUSES.iter().find(|(number, ..)| *number == self.0)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#018x}", self.0),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "P-SEAMLDR: {fault:?}. {}", fault.advice()),
            Self::Status(status) => {
                write!(f, "P-SEAMLDR: {status:?} ({:#018x}).", status.0)?;
                status.advice().map_or(Ok(()), |text| write!(f, " {text}"))
            }
        }
    }
}

impl core::error::Error for Error {}

/// SEAMLDR.INFO: writes a [`SeamldrInfo`](crate::abi::SeamldrInfo) (256 bytes, aligned to 256) to `buffer` in host
/// memory. It may be called on any CPU at any time, except while another CPU calls the P-SEAMLDR.
///
/// # Errors
/// A fault if there is no P-SEAMLDR; EBADPARAM if the buffer is not usable.
pub fn info(call: &impl SeamCall, buffer: Hpa) -> Result<(), Error> {
    let mut regs = Gprs {
        rax: SeamldrLeaf::Info as u64,
        rcx: buffer.0,
        ..Gprs::default()
    };
    call.seamcall(&mut regs).map_err(Error::Fault)?;
    match regs.rax {
        0 => Ok(()),
        status => Err(Error::Status(Status(status))),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::string::ToString;

    /// A P-SEAMLDR that accepts one buffer.
    struct Loader;

    impl SeamCall for Loader {
        fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
            regs.rax = match (regs.rax, regs.rcx) {
                (0x8000_0000_0000_0000, 0x1000) => 0,
                _ => 0x8000_0000_0000_0000,
            };
            Ok(())
        }

        // No host keeps a record of it.
        fn note_shutdown(&self) {}
    }

    #[test]
    fn info_goes_to_the_loader_and_not_to_the_module() {
        assert_eq!(info(&Loader, Hpa(0x1000)), Ok(()));
        let error = info(&Loader, Hpa(0x1008)).unwrap_err();
        assert_eq!(error, Error::Status(Status(1 << 63)));
        assert!(
            error
                .to_string()
                .starts_with("P-SEAMLDR: EBADPARAM (0x8000000000000000). It ")
        );
    }

    #[test]
    fn every_status_has_a_name_and_advice_of_its_own() {
        for (i, (number, name, advice)) in STATUSES.iter().enumerate() {
            assert_eq!(Status(*number).name(), Some(*name));
            assert!(advice.len() > 30 && advice.ends_with('.'));
            for (other, _, same) in &STATUSES[..i] {
                assert!(number != other && advice != same, "{name}");
            }
        }
        assert_eq!(Status(1).advice(), None);
    }
}
