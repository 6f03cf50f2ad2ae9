//! Guests with a network card each.

use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use super::super::{Driver, Ram, Ring, std};
use crate::Net;
use crate::access::{read, write};
use crate::net::{Count, Mac, Rate, Settings, Switch};

pub const EVENTS: u64 = 1 << 29;
pub const CSUM: u64 = 1 << 0;
pub const GUEST_CSUM: u64 = 1 << 1;
/// The places of a guest's frames to send, and of its buffers, a page for each.
pub const SENT: u64 = 0x1_0000;
pub const BUFFERS: u64 = 0x2_0000;

pub const ALL: u64 = 0xFFFF_FFFF_FFFF;
pub const A: u64 = 0x52_5400_0001;
pub const B: u64 = 0x52_5400_0002;
pub const C: u64 = 0x52_5400_0003;

pub struct Guest<'r> {
    pub driver: Driver<'r, Net>,
    pub receive: Ring,
    pub transmit: Ring,
}

pub fn settings(mac: u64) -> Settings {
    Settings {
        mac: Mac(mac),
        is_trunk: false,
        is_isolated: false,
    }
}

pub fn card(switch: &Arc<Switch>, settings: Settings, ram: &Arc<Ram>, rate: Option<Rate>) -> Net {
    Net::new(switch.attach(settings).unwrap(), ram.clone(), rate)
}

impl<'r> Guest<'r> {
    pub fn new(switch: &Arc<Switch>, settings: Settings, ram: &'r Arc<Ram>) -> Self {
        Self::of(card(switch, settings, ram, None), ram, u64::MAX)
    }

    pub fn of(card: Net, ram: &'r Arc<Ram>, features: u64) -> Self {
        let mut driver = Driver::new(card, ram);
        driver.negotiate(features);
        let receive = driver.set_up(0, 8, 0);
        let transmit = driver.set_up(1, 8, 0x4000);
        driver.ready();
        Self {
            driver,
            receive,
            transmit,
        }
    }

    /// Offers `count` buffers.
    pub fn listen(&mut self, count: u64) {
        for number in 0..count {
            let gpa = BUFFERS + 0x1000 * number;
            self.receive
                .offer(self.driver.ram, &[(gpa, 2048, true)])
                .unwrap();
        }
    }

    /// Sends a frame with this header, in three buffers.
    pub fn send_with(&mut self, header: &[u8; 12], frame: &[u8]) {
        let ram = self.driver.ram;
        write(ram, SENT, &[header, frame].concat()).unwrap();
        let bytes = frame.len() as u32;
        let half = bytes / 2;
        let rest = (SENT + 12 + u64::from(half), bytes - half, false);
        let buffers = [(SENT, 12, false), (SENT + 12, half, false), rest];
        self.transmit.offer(ram, &buffers).unwrap();
        self.driver.kick(1);
        if self.driver.function.fault().is_none() {
            assert!(self.transmit.take(ram).is_some(), "the sender waits");
        }
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.send_with(&[0; 12], frame);
    }

    /// Takes the frames that came, with their headers.
    pub fn take(&mut self) -> Vec<([u8; 12], Vec<u8>)> {
        let ram = self.driver.ram;
        let mut frames = Vec::new();
        while let Some((head, bytes)) = self.receive.take(ram) {
            let mut all = vec![0; bytes as usize];
            // The driver offers its buffers in order.
            let gpa = BUFFERS + 0x1000 * u64::from(head);
            read(ram, gpa, &mut all).unwrap();
            frames.push((all[..12].try_into().unwrap(), all[12..].to_vec()));
        }
        frames
    }

    pub fn count(&self, count: Count) -> u64 {
        self.driver.function.device().port().count(count)
    }
}

pub fn frame(to: u64, from: u64, payload: &[u8]) -> Vec<u8> {
    let address = |mac: u64| mac.to_be_bytes()[2..].to_vec();
    [&*address(to), &*address(from), &[8, 0], payload].concat()
}

pub fn rams(count: usize) -> Vec<Arc<Ram>> {
    (0..count).map(|_| Arc::new(Ram::new(64))).collect()
}
