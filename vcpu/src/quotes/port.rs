//! The port at which the quoting service is connected.

use alloc::{boxed::Box, sync::Arc};

use arrayvec::ArrayVec;
use devices::{Memory, Now};
use sync::Mutex;
use virtio::vsock::{Caller, End, Service};

use super::qgs;
use super::requests::{ANSWER, Outcome, Requests, filled};

/// Largest number of TDs with requests that wait.
const WAITING: usize = 64;
/// Time in which the service has to answer a request.
const ANSWER_US: u64 = 30_000_000;

/// The quote port.
#[derive(Debug, Default)]
pub struct QuotePort(Mutex<Port>);

#[derive(Debug, Default)]
struct Port {
    agent: Option<Agent>,
    /// TDs whose first request waits, in turn.
    waiting: ArrayVec<Arc<Requests>, WAITING>,
}

/// The service that is connected.
struct Agent {
    caller: Caller,
    end: End,
    current: Option<Current>,
    /// The answer to the current request, as far as it has come.
    answer: Box<[u8]>,
    got: usize,
}

impl core::fmt::Debug for Agent {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Agent")
            .field("caller", &self.caller)
            .field("got", &self.got)
            .finish_non_exhaustive()
    }
}

/// The request that the service works on.
struct Current {
    of: Arc<Requests>,
    since_us: u64,
}

/// The progress of the service's answer.
enum Progress {
    /// It is not complete.
    Waits,
    /// It is complete.
    Done(Outcome),
    /// The service does not keep to the protocol, or is late.
    Broken,
}

impl QuotePort {
    /// Creates the port, without a service.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Returns whether a service is connected. One that is late is disconnected.
    pub(super) fn has_service(&self, now: Now) -> bool {
        let mut port = self.0.lock();
        port.check(now);
        port.agent.is_some()
    }

    /// Lets a TD's first request wait for the service, or hands it over. Returns `false` if there is no service: the
    /// request has failed. Does nothing if it waits already.
    pub(super) fn submit(&self, of: &Arc<Requests>, memory: &dyn Memory, now: Now) -> bool {
        let mut port = self.0.lock();
        port.check(now);
        let Some(agent) = &port.agent else {
            of.finish(Outcome::NoService, None);
            return false;
        };
        let is_current = agent.current.as_ref();
        let is_known = is_current.is_some_and(|current| Arc::ptr_eq(&current.of, of))
            || port.waiting.iter().any(|other| Arc::ptr_eq(other, of));
        if !is_known && port.waiting.try_push(of.clone()).is_err() {
            of.finish(Outcome::Failed, None);
            return false;
        }
        port.work(memory, now);
        true
    }

    /// Finds that the service's TD has ended, if it has.
    pub fn look(&self) {
        self.0.lock().check_gone();
    }
}

impl Service for QuotePort {
    fn connect(&self, caller: Caller, end: End) {
        let mut port = self.0.lock();
        port.check_gone();
        // One service is enough. Another one is refused.
        if port.agent.is_none()
            && let Some(answer) = filled(ANSWER, 0)
        {
            end.open();
            port.agent = Some(Agent {
                caller,
                end,
                current: None,
                answer,
                got: 0,
            });
        }
    }

    fn attend(&self, memory: &dyn Memory, now: Now) {
        let mut port = self.0.lock();
        port.check(now);
        port.work(memory, now);
    }
}

impl Port {
    /// Disconnects the service if it is gone or late.
    fn check(&mut self, now: Now) {
        self.check_gone();
        let current = self.agent.as_ref().and_then(|agent| agent.current.as_ref());
        if current
            .is_some_and(|current| now.monotonic_us.saturating_sub(current.since_us) > ANSWER_US)
        {
            self.disconnect();
        }
    }

    fn check_gone(&mut self) {
        if self.agent.as_ref().is_some_and(Agent::is_gone) {
            self.disconnect();
        }
    }

    /// Ends the connection, and all requests that wait.
    fn disconnect(&mut self) {
        let agent = self.agent.take();
        let current = agent.and_then(|agent| agent.current);
        let current = current.into_iter().map(|current| current.of);
        for of in current.chain(self.waiting.drain(..)) {
            of.finish(Outcome::NoService, None);
        }
    }

    /// Takes what the service has answered, and gives it what waits.
    fn work(&mut self, memory: &dyn Memory, now: Now) {
        while let Some(agent) = &mut self.agent {
            match agent.progress() {
                Progress::Waits => {}
                Progress::Done(outcome) => {
                    let Some(Current { of, .. }) = agent.current.take() else {
                        return;
                    };
                    of.finish(outcome, Some(&mut agent.answer));
                    agent.got = 0;
                }
                Progress::Broken => {
                    let guest = agent.caller.guest.clone();
                    self.disconnect();
                    memory.ring(&guest);
                    return;
                }
            }
            if agent.current.is_some() || agent.end.see().room < qgs::REQUEST {
                return;
            }
            let Some(of) = self.waiting.pop_at(0) else {
                return;
            };
            // A TD that has ended has none.
            if let Some(report) = of.first_report() {
                agent.end.put(&qgs::request(&report));
                let since_us = now.monotonic_us;
                agent.current = Some(Current { of, since_us });
                memory.ring(&agent.caller.guest);
            }
        }
    }
}

impl Agent {
    fn is_gone(&self) -> bool {
        let seen = self.end.see();
        seen.is_gone || seen.shut.send
    }

    /// Reads the answer to the current request, as far as it has come.
    fn progress(&mut self) -> Progress {
        if self.current.is_none() {
            return match self.end.see().readable {
                0 => Progress::Waits,
                _ => Progress::Broken,
            };
        }
        loop {
            let length = match self.answer.first_chunk() {
                Some(length) if self.got >= qgs::LENGTH => qgs::whole(*length),
                _ => qgs::LENGTH,
            };
            if length > self.answer.len() {
                return Progress::Broken;
            }
            if self.got >= qgs::LENGTH && self.got == length {
                break;
            }
            let count = self.end.take(&mut self.answer[self.got..length]);
            if count == 0 {
                return Progress::Waits;
            }
            self.got += count;
        }
        Progress::Done(match qgs::quote(&self.answer[..self.got]) {
            Ok(place) => Outcome::Quote {
                start: place.start,
                end: place.end,
            },
            Err(_) => Outcome::Failed,
        })
    }
}
