//! Quotes of TDs, which a service makes that is connected to the host's quote port.
//!
//! A TD asks by GetQuote. The service is a TD that connects to port [`PORT`] of the host by its socket device. It gets one
//! request after the other, and answers each, in the framing of Intel's Quote Generation Service (`qgs`). Each TD has one
//! request at the service at most, and TDs take turns. Without a service GetQuote is refused.
//!
//! Locks: that of the port is taken before that of a TD's requests.

mod port;
mod qgs;
mod requests;

#[cfg(test)]
mod tests;

use alloc::sync::Arc;

use devices::{Memory, Now, pci::Bus};

pub use port::QuotePort;
use requests::Requests;
pub use requests::{Buffer, NotTaken};

/// The port of context id 2 for the service: the one of Intel's.
pub const PORT: u32 = 4050;

/// The quotes that a TD asks for in one life.
#[derive(Debug)]
pub struct Quotes {
    port: Arc<QuotePort>,
    requests: Arc<Requests>,
}

impl Quotes {
    /// Creates the quotes of a TD, from the service at this port.
    #[must_use]
    pub fn new(port: Arc<QuotePort>) -> Self {
        Self {
            port,
            requests: Arc::default(),
        }
    }

    /// Takes a request with this buffer. The TD's vCPUs find work at its `bus` then.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn take(
        &self,
        memory: &dyn Memory,
        buffer: Buffer,
        bus: &Arc<Bus>,
        now: Now,
    ) -> Result<(), NotTaken> {
        if !self.port.has_service(now) {
            return Err(NotTaken::NoService);
        }
        self.requests.take(memory, buffer, bus)
    }

    /// Writes what was answered to the guest's buffers, and hands the next request over. Called by a CPU between two
    /// entries of the TD.
    #[inline]
    pub fn serve(&self, memory: &dyn Memory, now: Now) {
        if self.requests.take_work() {
            self.go_on(memory, now);
        }
    }

    #[cold]
    fn go_on(&self, memory: &dyn Memory, now: Now) {
        // Without a service, each request fails at once.
        for _ in 0..=requests::MOST {
            let has_next = self.requests.deliver(memory);
            if !has_next || self.port.submit(&self.requests, memory, now) {
                return;
            }
        }
    }

    /// Ends all requests with the TD. Its memory is not touched any more.
    pub fn close(&self) {
        self.requests.close();
    }
}
