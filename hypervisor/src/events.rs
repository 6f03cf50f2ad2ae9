//! The audit trail: what changed on the host, and on whose behalf.
//!
//! Events are numbered from 1. The newest 512 are kept, in a fixed place: recording one neither waits nor allocates.
//! Each event is in the log, too, as a record of [`TARGET`].

use alloc::{format, string::String};
use core::{
    fmt::{self, Write},
    sync::atomic::Ordering::Relaxed,
};

use console::host::event::{self, EventKind, Events};
use sync::IrqLock;

use crate::{cpu, time};

/// The log's name for events.
pub const TARGET: &str = "event";

/// Number of events that are kept.
const KEPT: usize = 512;

static TRAIL: IrqLock<Trail<KEPT>> = IrqLock::new(Trail::new());

/// On whose behalf something happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channel {
    /// The host itself.
    #[default]
    Host,
    /// The operator, on the serial console.
    Console,
    /// The machine's power button.
    Button,
    /// A TD, by a hypercall.
    Td(u32),
}

impl Channel {
    const fn number(self) -> u32 {
        match self {
            Self::Host => 0,
            Self::Console => 1,
            Self::Button => 2,
            Self::Td(id) => id.saturating_add(2),
        }
    }

    const fn of(number: u32) -> Self {
        match number {
            0 => Self::Host,
            1 => Self::Console,
            2 => Self::Button,
            number => Self::Td(number - 2),
        }
    }

    /// Returns the channel on whose behalf the calling CPU works.
    fn present() -> Self {
        cpu::this().map_or(Self::Host, |cpu| Self::of(cpu.channel.load(Relaxed)))
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Console => f.write_str("console"),
            Self::Button => f.write_str("button"),
            Self::Td(id) => write!(f, "td {id}"),
        }
    }
}

/// Runs `work`, during which the calling CPU works on behalf of `channel`.
pub fn on_behalf_of<R>(channel: Channel, work: impl FnOnce() -> R) -> R {
    let Some(cpu) = cpu::this() else {
        return work();
    };
    let before = cpu.channel.swap(channel.number(), Relaxed);
    let result = work();
    cpu.channel.store(before, Relaxed);
    result
}

/// Records an event on behalf of `channel`, or of the one that the calling CPU works for.
pub fn note(
    kind: EventKind,
    channel: Option<Channel>,
    td: Option<(u32, &str)>,
    what: fmt::Arguments<'_>,
) {
    let mut event = Entry {
        us: time::us(),
        kind,
        channel: channel.unwrap_or_else(Channel::present),
        td: td.map_or(0, |(id, _)| id),
        ..Entry::NONE
    };
    // The rest is cut.
    let _ = event.what.write_fmt(what);
    let _ = event.name.write_str(td.map_or("", |(_, name)| name));
    let number = TRAIL.lock().push(event);
    let (channel, name, what) = (event.channel, event.name.as_str(), event.what.as_str());
    match td {
        Some((id, _)) => {
            log::info!(target: TARGET, "{number} by {channel}: TD {id} {name}: {what}");
        }
        None => log::info!(target: TARGET, "{number} by {channel}: {what}"),
    }
}

/// Returns the events after number `since` that are kept. `name_of` returns the name of a TD.
pub fn since(since: u64, name_of: impl Fn(u32) -> Option<String>) -> Events {
    let mut events = alloc::vec::Vec::with_capacity(KEPT);
    let (lost, last) = {
        let trail = TRAIL.lock();
        events.extend(trail.since(since).map(|(number, entry)| (number, *entry)));
        (trail.lost(since), trail.last())
    };
    Events {
        lost,
        last,
        events: events
            .iter()
            .map(|(number, entry)| entry.shown(*number, &name_of))
            .collect(),
    }
}

/// A text of at most `N` bytes.
#[derive(Clone, Copy, Debug)]
struct Short<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Short<N> {
    const EMPTY: Self = Self {
        bytes: [0; N],
        len: 0,
    };

    fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }
}

impl<const N: usize> Write for Short<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.floor_char_boundary(N - self.len);
        self.bytes[self.len..self.len + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        if fits == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    us: u64,
    kind: EventKind,
    channel: Channel,
    /// The TD's number; 0 if the event concerns none.
    td: u32,
    name: Short<32>,
    what: Short<160>,
}

impl Entry {
    const NONE: Self = Self {
        us: 0,
        kind: EventKind::State,
        channel: Channel::Host,
        td: 0,
        name: Short::EMPTY,
        what: Short::EMPTY,
    };

    fn shown(&self, number: u64, name_of: impl Fn(u32) -> Option<String>) -> event::Event {
        let asker = match self.channel {
            Channel::Td(id) => name_of(id),
            _ => None,
        };
        event::Event {
            number,
            us: self.us,
            kind: self.kind,
            channel: match asker {
                Some(name) => format!("td {name}"),
                None => format!("{}", self.channel),
            },
            td: (self.td != 0).then_some(self.td),
            name: (self.td != 0).then(|| String::from(self.name.as_str())),
            what: String::from(self.what.as_str()),
        }
    }
}

/// The newest `N` events.
struct Trail<const N: usize> {
    entries: [Entry; N],
    /// Number of events that ever happened, which is the number of the last one.
    pushed: u64,
}

impl<const N: usize> Trail<N> {
    const fn new() -> Self {
        Self {
            entries: [Entry::NONE; N],
            pushed: 0,
        }
    }

    /// Adds an event, in place of the oldest. Returns its number.
    fn push(&mut self, entry: Entry) -> u64 {
        self.entries[(self.pushed % N as u64) as usize] = entry;
        self.pushed += 1;
        self.pushed
    }

    const fn last(&self) -> u64 {
        self.pushed
    }

    /// Returns the number of events after `since` that are no longer kept.
    const fn lost(&self, since: u64) -> u64 {
        self.pushed.saturating_sub(N as u64).saturating_sub(since)
    }

    /// Returns the kept events after number `since`, with their numbers, oldest first.
    fn since(&self, since: u64) -> impl Iterator<Item = (u64, &Entry)> {
        let first = since.max(self.pushed.saturating_sub(N as u64));
        (first..self.pushed).map(|at| (at + 1, &self.entries[(at % N as u64) as usize]))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use core::fmt::Write;

    use super::{Channel, Entry, Short, Trail};

    fn at(us: u64) -> Entry {
        Entry { us, ..Entry::NONE }
    }

    #[test]
    fn the_newest_events_are_kept_and_the_others_counted() {
        let mut trail = Trail::<4>::new();
        let numbers = |trail: &Trail<4>, since| -> Vec<(u64, u64)> {
            let events = trail.since(since);
            events.map(|(number, entry)| (number, entry.us)).collect()
        };
        assert_eq!((trail.lost(0), trail.last()), (0, 0));
        assert_eq!(numbers(&trail, 0), []);
        for us in 10..16 {
            trail.push(at(us));
        }
        assert_eq!(numbers(&trail, 0), [(3, 12), (4, 13), (5, 14), (6, 15)]);
        assert_eq!((trail.lost(0), trail.lost(1), trail.lost(2)), (2, 1, 0));
        assert_eq!(numbers(&trail, 5), [(6, 15)]);
        assert_eq!(numbers(&trail, 9), []);
        assert_eq!(trail.lost(u64::MAX), 0);
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let mut text = Short::<4>::EMPTY;
        assert!(write!(text, "ab\u{e9}").is_ok());
        assert!(write!(text, "x").is_err());
        assert_eq!(text.as_str(), "ab\u{e9}");
        let mut text = Short::<3>::EMPTY;
        assert!(write!(text, "ab\u{e9}").is_err());
        assert_eq!(text.as_str(), "ab");
    }

    #[test]
    fn a_channel_is_a_number() {
        for channel in [
            Channel::Host,
            Channel::Console,
            Channel::Button,
            Channel::Td(1),
            Channel::Td(900),
        ] {
            assert_eq!(Channel::of(channel.number()), channel);
        }
    }
}
