//! Error reports of a function that a TD has: the guest's mistakes stay its own, and real errors end the TD.
//!
//! A guest that accesses what its function does not implement causes unsupported requests. Reported to the root complex,
//! they can reach the host as an NMI. Their reports are off while a TD has the function.

use core::fmt;

use crate::{
    Errors, Express, Function, Health, Space, extended,
    space::register::{COMMAND, SYSTEM_ERRORS},
};

/// Offset of the mask of uncorrectable errors from the AER capability.
const UNCORRECTABLE_MASK: u16 = 8;
/// The bit of unsupported requests in the registers of uncorrectable errors.
const UNSUPPORTED_REQUEST: u32 = 1 << 20;
/// In the device control register: unsupported requests are reported.
const REPORT_UNSUPPORTED: u16 = 1 << 3;
/// In the device status register: a non-fatal error, a fatal error, an unsupported request.
const NON_FATAL: u16 = 1 << 1;
const FATAL: u16 = 1 << 2;
const UNSUPPORTED: u16 = 1 << 3;

/// The reports of a function as they were before [`Function::quiet`]: only what it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Reporting {
    /// True if the AER capability did not mask unsupported requests.
    unmasked: bool,
    /// True if device control reported them.
    reported: bool,
    /// True if the command register let the function report errors.
    system_errors: bool,
}

/// The reason why a TD that has a function must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The function does not answer.
    Gone,
    /// It has reported these errors, which lost data.
    Errors(Errors),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("it does not answer"),
            Self::Errors(errors) => {
                f.write_str("it reported an error: ")?;
                for (number, name) in errors.names().iter().enumerate() {
                    f.write_str(if number == 0 { "" } else { ", " })?;
                    f.write_str(name)?;
                }
                Ok(())
            }
        }
    }
}

impl Function {
    /// Switches the reports of unsupported requests off and clears the errors of the past, before a TD gets the
    /// function. Returns what [`Self::unquiet`] restores. A reset may undo a part of it: it is called after each one, and
    /// the result of the first call is the one to restore.
    pub fn quiet(&self, space: &impl Space) -> Reporting {
        if let Health::Errors(errors) = self.health(space) {
            self.clear(space, errors);
        }
        let at = self.address;
        let mask = self
            .capabilities
            .extended(extended::AER)
            .map(|aer| aer + UNCORRECTABLE_MASK);
        let mask = mask.map(|offset| (offset, space.read(at, offset)));
        let control = self
            .express
            .map(|express| express.offset + Express::CONTROL);
        let control = control.map(|offset| (offset, space.read16(at, offset)));
        let command = space.read16(at, COMMAND);
        if let Some((offset, mask)) = mask {
            space.write(at, offset, mask | UNSUPPORTED_REQUEST);
        }
        if let Some((offset, control)) = control {
            space.write16(at, offset, control & !REPORT_UNSUPPORTED);
        }
        space.write16(at, COMMAND, command & !SYSTEM_ERRORS);
        Reporting {
            unmasked: mask.is_some_and(|(_, mask)| mask & UNSUPPORTED_REQUEST == 0),
            reported: control.is_some_and(|(_, control)| control & REPORT_UNSUPPORTED != 0),
            system_errors: command & SYSTEM_ERRORS != 0,
        }
    }

    /// Clears the errors that a TD has left, and restores the reports that [`Self::quiet`] has switched off.
    pub fn unquiet(&self, space: &impl Space, before: Reporting) {
        if let Health::Errors(errors) = self.health(space) {
            self.clear(space, errors);
        }
        let at = self.address;
        if let Some(aer) = self
            .capabilities
            .extended(extended::AER)
            .filter(|_| before.unmasked)
        {
            let offset = aer + UNCORRECTABLE_MASK;
            space.write(at, offset, space.read(at, offset) & !UNSUPPORTED_REQUEST);
        }
        if let Some(express) = self.express.filter(|_| before.reported) {
            let offset = express.offset + Express::CONTROL;
            space.write16(at, offset, space.read16(at, offset) | REPORT_UNSUPPORTED);
        }
        if before.system_errors {
            space.write16(at, COMMAND, space.read16(at, COMMAND) | SYSTEM_ERRORS);
        }
    }

    /// Returns why the TD that has the function must end, if it must. Unsupported requests are the guest's own matter.
    /// The function is not being reset.
    pub fn trouble(&self, space: &impl Space) -> Option<Trouble> {
        let mut errors = match self.health(space) {
            Health::Good => return None,
            Health::Gone => return Some(Trouble::Gone),
            Health::Errors(errors) => errors,
        };
        match self.capabilities.extended(extended::AER) {
            // The summary says nothing that AER's registers don't, and does not heed the mask.
            Some(aer) => {
                let mask = space.read(self.address, aer + UNCORRECTABLE_MASK);
                errors.uncorrectable &= !(mask | UNSUPPORTED_REQUEST);
                errors.summary = 0;
            }
            // An unsupported request is also a non-fatal error there.
            None if errors.summary & UNSUPPORTED != 0 => errors.summary &= FATAL,
            None => errors.summary &= FATAL | NON_FATAL,
        }
        errors.correctable = 0;
        errors.is_serious().then_some(Trouble::Errors(errors))
    }
}
