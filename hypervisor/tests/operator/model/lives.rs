//! Steps in the life of a TD.

use super::*;

impl World<'_, '_> {
    /// Returns a name, by its number sometimes, and the TD if there is one.
    pub(super) fn td(&mut self) -> (&'static str, String, Option<ModelTd>) {
        let name = self.any(&NAMES);
        let td = self.model.tds.get(name).cloned();
        let word = match &td {
            Some(td) if self.chance(20) => td.id.to_string(),
            _ => name.to_owned(),
        };
        (name, word, td)
    }

    pub(super) fn start_or_create(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let start = self.chance(70);
        let line = format!("td {} {word}", if start { "start" } else { "create" });
        let Some(td) = td else {
            return (line, Err("no-such-td"));
        };
        let next = if start {
            State::Runnable
        } else {
            State::Paused
        };
        let expected = match td.state {
            State::Created | State::Reclaimed => {
                if !self.model.is_image(&td.defined.image, &self.server.image) {
                    return (line, Err("unsupported"));
                }
                self.model.begin_life(name, next);
                Ok(vec![field("state", next.name()), field("id", td.id)])
            }
            State::Paused if start => {
                self.model.tds.get_mut(name).unwrap().state = State::Runnable;
                Ok(vec![field("state", "runnable")])
            }
            _ => Err("wrong-state"),
        };
        (line, expected)
    }

    pub(super) fn pause_or_resume(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let (verb, from, to) = match self.chance(50) {
            true => ("pause", State::Runnable, State::Paused),
            false => ("resume", State::Paused, State::Runnable),
        };
        let expected = match td {
            None => Err("no-such-td"),
            Some(td) if td.state == from => {
                self.model.tds.get_mut(name).unwrap().state = to;
                Ok(vec![field("state", to.name())])
            }
            Some(_) => Err("wrong-state"),
        };
        (format!("td {verb} {word}"), expected)
    }

    pub(super) fn end(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let (verb, to) = self.any(&[
            ("terminate", State::Teardown),
            ("destroy", State::Reclaimed),
            ("destroy --dynamic", State::Reclaimed),
            ("retry", State::Reclaimed),
        ]);
        let line = format!("td {verb} {word}");
        let Some(td) = td else {
            return (line, Err("no-such-td"));
        };
        let expected = match td.state {
            // The rest of a teardown is done at once.
            State::Teardown if verb == "retry" => {
                self.model.tds.get_mut(name).unwrap().state = to;
                Ok(vec![field("already", false), field("state", to.name())])
            }
            _ if verb == "retry" => Err("wrong-state"),
            State::Created | State::Reclaimed => Ok(vec![
                field("already", true),
                field("state", td.state.name()),
            ]),
            state => {
                self.model.tds.get_mut(name).unwrap().state = to;
                // A request that waits for the end has done something, whoever began it.
                let already = state == State::Teardown && to == State::Teardown;
                Ok(vec![field("already", already), field("state", to.name())])
            }
        };
        (line, expected)
    }

    pub(super) fn reset(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let line = format!("td reset {word}");
        let Some(td) = td else {
            return (line, Err("no-such-td"));
        };
        let next = match td.state {
            State::Runnable => State::Runnable,
            _ => State::Paused,
        };
        if self.model.is_image(&td.defined.image, &self.server.image) {
            self.model.begin_life(name, next);
            return (line, Ok(vec![field("state", next.name())]));
        }
        // The old life is over, and the new one does not begin.
        let td = self.model.tds.get_mut(name).unwrap();
        if td.state.lives() {
            td.state = State::Reclaimed;
        }
        (line, Err("unsupported"))
    }

    pub(super) fn shut_down(&mut self) -> (String, Expected) {
        let (name, word, td) = self.td();
        let (now, force, listens) = (self.chance(60), self.chance(50), self.chance(50));
        self.guests.listen.store(listens, SeqCst);
        let seconds = if now { "0" } else { "3600" };
        let line = format!(
            "td shutdown {word} {seconds}{}",
            if force { " --force" } else { "" }
        );
        let Some(td) = td else {
            return (line, Err("no-such-td"));
        };
        if td.state != State::Runnable {
            return (line, Err("wrong-state"));
        }
        let td = self.model.tds.get_mut(name).unwrap();
        td.asked = Some((now, force));
        td.is_overdue = false;
        (
            line,
            Ok(vec![field("listens", listens), field("state", "runnable")]),
        )
    }
}
