//! The inventory's part of resets: they go on without its lock, since they take from 100 milliseconds to a minute.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};

use crate::{Address, Clock, Function, Inventory, Reset, ResetError, Resetting, Space};

impl Inventory {
    /// Begins to reset a function, as [`Self::begin_resets`].
    ///
    /// # Errors
    /// As there.
    pub fn begin_reset(
        &mut self,
        space: &impl Space,
        clock: &impl Clock,
        at: Address,
    ) -> Result<Resetting, ResetError> {
        let mut all = self.begin_resets(space, clock, &[at])?;
        all.pop().ok_or(ResetError::Unknown(at))
    }

    /// Begins resets of functions, each by the best way that there is. They are not bus masters then. Functions that one
    /// reset of their bus reaches are reset once. They are away until [`Self::end_reset`].
    ///
    /// # Errors
    /// [`ResetError::Unknown`], [`ResetError::NoWay`], [`ResetError::UnderWay`]; nothing has begun.
    pub fn begin_resets(
        &mut self,
        space: &impl Space,
        clock: &impl Clock,
        functions: &[Address],
    ) -> Result<Vec<Resetting>, ResetError> {
        let mut all: Vec<(Reset, Vec<Function>)> = Vec::new();
        for &at in functions {
            let function = self.find(at).ok_or(ResetError::Unknown(at))?;
            let way = self.resets(at).first().copied();
            let way = way.ok_or(ResetError::NoWay(at))?;
            let affected: Vec<_> = match way {
                Reset::Bus(_) if all.iter().any(|(other, _)| *other == way) => continue,
                Reset::Bus(_) => {
                    let on_bus = self.on_bus_of(at);
                    on_bus.map(|(_, function)| function.clone()).collect()
                }
                _ => Vec::from([function.clone()]),
            };
            if let Some(away) = affected.iter().find(|f| self.is_away(f.address)) {
                return Err(ResetError::UnderWay(away.address));
            }
            all.push((way, affected));
        }
        let begin = |(way, functions): (Reset, Vec<Function>)| {
            for function in &functions {
                self.set_away(function.address, true);
            }
            Resetting::begin(space, clock, functions, way)
        };
        Ok(all.into_iter().map(begin).collect())
    }

    /// Ends a reset with its outcome. Functions that did not come back are retired.
    pub fn end_reset(&mut self, reset: &Resetting, outcome: Result<Reset, ResetError>) {
        let error = outcome.err().filter(|error| error.is_final());
        let why: Option<String> = error.map(|error| error.to_string());
        for at in reset.functions() {
            self.set_away(at, false);
            if let Some(why) = &why {
                self.retire(at, why);
            }
        }
    }

    fn set_away(&mut self, at: Address, is_away: bool) {
        if let Some(place) = self.place_mut(at) {
            place.is_away = is_away;
        }
    }
}
