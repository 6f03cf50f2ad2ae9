//! The PCI transport: the function that the guest drives a virtio device through.
//!
//! Source: VIRTIO 1.2, sections 2.1 (status), 3.1 (initialisation) and 4.1 (PCI).

mod common;
mod place;

use alloc::string::ToString;
use core::ops::Range;

use devices::pci::{Config, Doorbells, Function, Msix, Served, Usage};
use devices::{Effect, Memory, Message, Now, Place, open_bus};
use virtio_spec::{DeviceStatus, F};

use crate::device::{Device, Kind, News, Traffic, Work};
use crate::queue::{Fault, Queue};
use common::{Common, Request};
use place::Structure;

/// Features of the transport, which every device offers. A driver must accept the first two.
const REQUIRED: u64 = F::VERSION_1.bits().to_ne() as u64 | F::ACCESS_PLATFORM.bits().to_ne() as u64;
const EVENTS: u64 = F::EVENT_IDX.bits().to_ne() as u64;

/// ISR status: a queue has news; the device's configuration or its status has changed.
const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// The function.
#[derive(Debug)]
pub struct Transport<D> {
    device: D,
    kind: Kind,
    config: Config,
    msix: Msix,
    common: Common,
    isr: u8,
    doorbells: Doorbells,
    /// Queues of which work was left, by a bit for each, beside those whose doorbells were written.
    notified: u64,
    /// The driver has become ready, and the device has not looked at its queues yet.
    is_new: bool,
    /// The rule that the driver broke, until it resets the device.
    fault: Option<Fault>,
    /// Number of interrupts to the driver.
    interrupts: u64,
}

impl<D: Device> Transport<D> {
    /// Creates the function of a device.
    pub fn new(device: D) -> Self {
        let kind = device.kind();
        let vectors = kind.queues.len() as u16 + 1;
        let (config, msix) = place::configuration(&kind, device.config().len(), vectors);
        Self {
            common: Common::new(kind.queues, kind.features | REQUIRED | EVENTS, vectors),
            device,
            kind,
            config,
            msix,
            isr: 0,
            doorbells: place::doorbells(),
            notified: 0,
            is_new: false,
            fault: None,
            interrupts: 0,
        }
    }

    /// Returns the rule that the driver broke, if the device waits for a reset.
    pub const fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Returns the device.
    pub const fn device(&self) -> &D {
        &self.device
    }

    fn act(&mut self, request: Request) -> Effect {
        match request {
            Request::None => Effect::None,
            Request::Reset => {
                self.reset();
                // Others may have to be told.
                Effect::Work
            }
            Request::Start => self.start(),
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.common.reset();
        (self.isr, self.notified) = (0, 0);
        (self.is_new, self.fault) = (false, None);
    }

    /// Hands the queues to the device.
    fn start(&mut self) -> Effect {
        let has_events = self.common.accepted() & EVENTS != 0;
        let limits = self.kind.limits();
        let places = self.common.enabled();
        let queues = places.map(|place| {
            place
                .map(|place| Queue::new(place, has_events, limits))
                .transpose()
        });
        match queues.collect() {
            Ok(queues) => {
                self.device.start(self.common.accepted(), queues);
                self.device.set_master(self.config.is_master());
                (self.is_new, self.notified) = (true, u64::MAX);
                Effect::Work
            }
            Err(fault) => self.fail(fault),
        }
    }

    /// Stops the device until the driver resets it.
    fn fail(&mut self, fault: Fault) -> Effect {
        self.device.reset();
        self.common.need_reset();
        self.fault = Some(fault);
        self.isr |= ISR_CONFIG;
        self.raise(self.common.config_vector())
    }

    fn raise(&mut self, vector: Option<u16>) -> Effect {
        vector.map_or(Effect::None, |vector| self.msix.raise(vector))
    }

    /// Raises the interrupts of queues.
    fn raise_queues(&mut self, raised: u64) {
        for queue in (0..self.kind.queues.len()).filter(|queue| raised >> queue & 1 != 0) {
            self.isr |= ISR_QUEUE;
            self.interrupts += 1;
            self.raise(self.common.queue_vector(queue));
        }
    }

    fn is_running(&self) -> bool {
        let status = self.common.status();
        status.contains(DeviceStatus::DRIVER_OK)
            && !status.contains(DeviceStatus::DEVICE_NEEDS_RESET)
    }

    fn read_device(&self, place: Place) -> u64 {
        let bytes = self.device.config().iter();
        let bytes = bytes.skip(place.offset as usize).take(place.size.into());
        bytes
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

impl<D: Device> Function for Transport<D> {
    fn config(&mut self) -> &mut Config {
        &mut self.config
    }

    fn configured(&mut self, _: Range<usize>) -> Effect {
        let effect = self.msix.configured(&self.config);
        self.device.set_master(self.config.is_master());
        // Work and interrupts may have waited until the guest let the function access memory.
        if self.config.is_master() && self.is_running() {
            self.notified = u64::MAX;
            Effect::Work
        } else {
            effect
        }
    }

    fn load(&mut self, bar: usize, place: Place, _: Now) -> u64 {
        if bar == place::TABLE {
            return self.msix.load(place);
        }
        match Structure::at(place) {
            Some((Structure::Common, place)) => self.common.read(place),
            Some((Structure::Isr, _)) => core::mem::take(&mut self.isr).into(),
            Some((Structure::Device, place)) => self.read_device(place),
            Some((Structure::Notify, _)) | None => open_bus(place.size),
        }
    }

    fn store(&mut self, bar: usize, place: Place, value: u64, _: Now) -> Effect {
        if bar == place::TABLE {
            return self.msix.store(place, value);
        }
        match Structure::at(place) {
            Some((Structure::Common, place)) => {
                let request = self.common.write(place, value);
                self.act(request)
            }
            _ if self.doorbells.ring(bar, place) => Effect::Work,
            _ => Effect::None,
        }
    }

    fn doorbells(&self) -> Option<Doorbells> {
        Some(self.doorbells.clone())
    }

    fn take_message(&mut self) -> Option<Message> {
        // An interrupt is a write to memory.
        self.config.is_master().then(|| self.msix.take()).flatten()
    }

    fn serve(&mut self, memory: &dyn Memory, now: Now) -> Served {
        let rung = self.doorbells.take();
        if !self.is_running() || !self.config.is_master() {
            self.device.rest(memory, now);
            return Served::default();
        }
        let notified = core::mem::take(&mut self.notified) | rung;
        let mut work = Work::new(memory, now, notified);
        let result = match core::mem::take(&mut self.is_new) {
            true => self.probe(memory),
            false => Ok(()),
        };
        let result = result.and_then(|()| self.device.serve(&mut work));
        let (raised, has_output) = (work.raised, work.has_output);
        self.raise_queues(raised);
        if result == Ok(true) {
            self.notified = notified;
        }
        let has_more = result.unwrap_or_else(|fault| {
            self.fail(fault);
            false
        });
        Served {
            has_messages: self.msix.configured(&self.config) == Effect::Signal,
            has_more,
            has_output,
        }
    }

    fn news(&mut self) -> Served {
        // Otherwise they wait until the guest lets the function access memory.
        if !self.is_running() || !self.config.is_master() {
            return Served::default();
        }
        let news = self.device.news().unwrap_or_else(|fault| {
            self.fail(fault);
            News::default()
        });
        self.raise_queues(news.raised);
        Served {
            has_messages: self.msix.configured(&self.config) == Effect::Signal,
            has_more: news.has_more,
            has_output: false,
        }
    }

    fn usage(&self) -> Option<Usage> {
        let Traffic {
            to_guest,
            from_guest,
            dropped,
        } = self.device.traffic();
        Some(Usage {
            is_running: self.is_running(),
            queues: self.common.enabled().flatten().count(),
            notifications: self.doorbells.count(),
            interrupts: self.interrupts,
            to_guest,
            from_guest,
            dropped,
            fault: self.fault.map(|fault| fault.to_string()),
        })
    }

    fn retire(&mut self) {
        self.device.retire();
        self.common.need_reset();
    }
}

impl<D: Device> Transport<D> {
    /// Checks that the queues that the driver enabled are in shared memory.
    fn probe(&self, memory: &dyn Memory) -> Result<(), Fault> {
        for place in self.common.enabled().flatten() {
            place.probe(memory)?;
        }
        Ok(())
    }
}
