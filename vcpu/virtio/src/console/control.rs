//! The control queues of a console with several ports: messages by which driver and device agree on the ports.
//!
//! Source: VIRTIO 1.2, section 5.3.6.2.

use arrayvec::ArrayVec;
use virtio_spec::console::Device as Event;

use super::PORTS;

/// Bytes of a message, without the name that follows some.
pub const MESSAGE: usize = 8;
/// The name of the port for scripts, as Linux shows it in `/dev/virtio-ports`.
const NAME: &[u8] = b"org.seamark.script";
/// Bytes of the longest message.
pub const LONGEST: usize = MESSAGE + NAME.len();

/// A message to be sent about a port, by its bit.
mod owed {
    pub const ADD: u8 = 1 << 0;
    pub const CONSOLE: u8 = 1 << 1;
    pub const NAME: u8 = 1 << 2;
    pub const OPEN: u8 = 1 << 3;
}

/// The state of the conversation with the driver.
#[derive(Debug, Default)]
pub struct Control {
    /// The messages that are due, for each port.
    owed: [u8; PORTS],
}

/// A message of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing that the device needs.
    Nothing,
    /// The guest has opened a port, or closed it.
    Open(usize, bool),
}

impl Control {
    /// Takes a message of the driver.
    pub fn hear(&mut self, message: [u8; MESSAGE]) -> Said {
        let [i0, i1, i2, i3, e0, e1, v0, v1] = message;
        let port = u32::from_le_bytes([i0, i1, i2, i3]) as usize;
        let event = u16::from_le_bytes([e0, e1]);
        let is_good = u16::from_le_bytes([v0, v1]) == 1;
        let Ok(event) = Event::try_from(event) else {
            return Said::Nothing;
        };
        match event {
            Event::DeviceReady if is_good => self.owed = [owed::ADD; PORTS],
            Event::PortReady if is_good && port < PORTS => {
                self.owed[port] |= match port {
                    0 => owed::CONSOLE | owed::OPEN,
                    _ => owed::NAME | owed::OPEN,
                };
            }
            Event::PortOpen if port < PORTS => return Said::Open(port, is_good),
            _ => {}
        }
        Said::Nothing
    }

    /// Returns the next message for the driver, if one is due.
    pub fn next(&self) -> Option<ArrayVec<u8, LONGEST>> {
        let mut ports = self.owed.iter().enumerate();
        let (port, owed) = ports.find(|(_, owed)| **owed != 0)?;
        let (event, name) = match owed & owed.wrapping_neg() {
            owed::ADD => (Event::DeviceAdd, &[][..]),
            owed::CONSOLE => (Event::ConsolePort, &[][..]),
            owed::NAME => (Event::PortName, NAME),
            _ => (Event::PortOpen, &[][..]),
        };
        let mut message = ArrayVec::new();
        message.extend((port as u32).to_le_bytes());
        message.extend((event as u16).to_le_bytes());
        message.extend(1u16.to_le_bytes());
        message.extend(name.iter().copied());
        Some(message)
    }

    /// Notes that the message that [`Self::next`] returns was sent.
    pub fn sent(&mut self) {
        if let Some(owed) = self.owed.iter_mut().find(|owed| **owed != 0) {
            *owed &= *owed - 1;
        }
    }
}
