//! The end of the machine in order, after its power button was pressed: every TD is terminated, then the machine is
//! switched off.

use host::{platform::Platform, td::life::State, td::registry::Tds};

use crate::time::Deadline;

/// The time that TDs may take to terminate, in microseconds. Their memory is not reclaimed: it ends with the machine.
const PATIENCE_US: u64 = 60_000_000;

/// The progress of the end.
#[derive(Clone, Copy, Debug, Default)]
pub enum Ending {
    /// The machine is to go on.
    #[default]
    None,
    /// TDs are being terminated.
    Begun(Deadline),
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on as before.
    Wait,
    /// Switch the machine off.
    Off,
}

impl Ending {
    /// Starts to terminate every TD, if the button was pressed for the first time. A second press switches the machine
    /// off without waiting.
    pub fn press<P: Platform>(&mut self, tds: Option<&Tds<'_, P>>) -> Next {
        if let Self::Begun(_) = self {
            log::warn!("the power button was pressed again: the machine is switched off at once");
            return Next::Off;
        }
        *self = Self::Begun(Deadline::after_us(PATIENCE_US));
        let mut count = 0;
        if let Some(tds) = tds {
            for id in tds.ids().filter(|id| tds.get(*id).is_some()) {
                // A TD that ends already needs no request.
                let _ = tds.ask_end(id);
                count += 1;
            }
        }
        log::warn!(
            "the power button was pressed: the TDs are terminated ({count}), then the machine is switched off"
        );
        Next::Wait
    }

    /// Returns true if the machine is about to end.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        matches!(self, Self::Begun(_))
    }

    /// Looks whether every TD has ended.
    pub fn step<P: Platform>(&self, tds: Option<&Tds<'_, P>>) -> Next {
        let Self::Begun(deadline) = self else {
            return Next::Wait;
        };
        let living = tds.map_or(0, |tds| {
            tds.ids().filter(|id| lives(tds.state(*id))).count()
        });
        if living == 0 {
            return Next::Off;
        }
        if deadline.passed() {
            log::error!(
                "not every TD has terminated within {} s ({living} are left); the machine is switched off",
                PATIENCE_US / 1_000_000
            );
            return Next::Off;
        }
        Next::Wait
    }
}

/// Returns true if a TD in this state still has its key, or will have one.
fn lives(state: State) -> bool {
    match state {
        State::Building | State::Runnable | State::Paused | State::Terminating => true,
        State::Created | State::Teardown | State::Reclaimed => false,
    }
}
