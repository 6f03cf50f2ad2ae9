//! Prepares the parts of a TD that are outside the module: shared memory, the TD-wide state, an entry in the run queue.

use alloc::{
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::sync::atomic::Ordering::SeqCst;

use devices::pci::{self, passthrough::Passthrough};
use mm::{private::Levels, shared::SharedMap};
use seam::abi::metadata::td;
use seam::address::SHARED;
use sync::Mutex;
use vcpu::{Console, Vm, Waker, Wiring, clock::Clock};

use super::{
    Scheduler,
    equipment::{Equipment, OnBus},
    functions::Functions,
    guest::Guest,
    lock::Scheduled,
    queue::Portion,
};
use crate::{
    platform::Running,
    td::{
        Td, firmware_facts,
        host::{GuestEnd, Listens, Runner},
    },
};

fn portion(config: &config::Td) -> Portion {
    Portion {
        shares: config.shares,
        cap: config.cap,
    }
}

impl<P: Running> Scheduler<'_, P> {
    /// Makes the machine's console show new output of a TD, if it is being watched.
    pub(super) fn note_output(&self, guest: &Guest) {
        if guest.vm().console().is_watched() {
            self.platform.wake_console();
        }
    }

    /// Lets the devices of a TD do what they had to leave. If they can't do all of it now, a vCPU goes on with their work.
    pub(super) fn serve_devices(&self, guest: &Guest) {
        /// Every function has its turn; more than one turn each is the guest's own matter.
        const PARTS: usize = pci::MOST;
        if guest.vm().devices().pci().has_work() {
            let mut parts = 0..PARTS;
            let goes_on = || parts.next().is_some();
            let waker = Waker::new(guest.vm(), self);
            vcpu::serve_devices(waker, self.platform, goes_on);
            // The rest is for a vCPU.
            if guest.vm().devices().pci().has_work() {
                waker.summon();
            }
        }
    }

    /// Lets the socket devices of all TDs find that the other sides of their connections are gone.
    fn note_closed_sockets(&self) {
        self.sockets.look();
        let after = |id: u32| {
            self.with_queue(|scheduled| {
                let mut guests = scheduled.guests.range(id + 1..);
                guests.next().map(|(id, guest)| (*id, guest.clone()))
            })
        };
        let mut last = 0;
        while let Some((id, guest)) = after(last) {
            last = id;
            let td = guest.td();
            if td.is_some_and(|td| td.config().vsock.is_some()) {
                guest.vm().devices().pci().rouse();
                self.serve_devices(&guest);
            }
        }
    }

    fn clock(&self, td: &Td) -> Result<Clock, String> {
        let map = td.map().ok_or("the TD has no root page yet")?;
        let tdh = self.platform.tdh();
        let read = |field: seam::abi::metadata::Field| {
            let value = map.keyed(|tdr| Ok(tdh.mng_rd(tdr, field.element(0))?));
            value.map_err(|error| error.to_string())
        };
        Ok(Clock::new(
            read(td::TSC_MULTIPLIER)?,
            read(td::TSC_OFFSET)?,
            read(td::TSC_FREQUENCY)?,
        ))
    }
}

impl<P: Running> Scheduler<'_, P> {
    /// Creates the guest of a TD with these physical functions.
    fn new_guest(&self, td: &Td, functions: Option<&Functions>) -> Result<Guest, String> {
        let clock = self.clock(td)?;
        let models = functions.map_or_else(Vec::new, Functions::models);
        let counts = models.iter().map(Passthrough::counts).collect();
        let console = match self.guest(td.id()) {
            Some(before) => Arc::clone(before.vm().console()),
            None => Arc::new(Console::new()),
        };
        // The physical functions come first: they are known by their places.
        let mut all: Vec<_> = models.into_iter().map(on_bus).collect();
        let first = all.len() as u8 + 1;
        let equipment = Equipment::new(td, &console, &self.networks, first)?;
        let mut equipment = equipment.with_socket(td, &self.sockets, first)?;
        all.append(&mut equipment.functions);
        let shared = self.new_shared(td, functions)?;
        let vcpus = u32::from(td.vcpus().count());
        let memory = td.layout().parts().collect();
        let vm = Vm::new(0..vcpus, memory, shared, clock, console);
        let vm = vm.with_quotes(self.sockets.quotes());
        let vm = match all.is_empty() {
            true => vm,
            false => vm.with_functions(all),
        };
        let vm = match &td.config().firmware {
            Some(_) => vm.with_fw_cfg(&firmware_facts(td.config())),
            None => vm,
        };
        let guest = Guest::new(td.id(), vm).with_counts(counts);
        Ok(guest.with_equipment(equipment))
    }

    /// Creates the shared memory of a TD, which its physical functions reach as well.
    fn new_shared(&self, td: &Td, functions: Option<&Functions>) -> Result<SharedMap, String> {
        let frames = self.platform.shared_frames();
        let shared = SharedMap::new(frames, Levels::Four, SHARED);
        let shared = shared.map_err(|error| error.to_string())?;
        let shared = match functions {
            Some(functions) => shared.with_mirror(functions.mirror()),
            None => shared,
        };
        for (gpa, file) in td.lent() {
            if let Err(error) = shared.lend(frames, *gpa, file.hpa, file.bytes) {
                shared.dissolve(frames);
                return Err(error.to_string());
            }
        }
        Ok(shared)
    }
}

fn on_bus(model: Passthrough) -> OnBus {
    Arc::new(Mutex::new(model))
}

impl<P: Running> Runner for Scheduler<'_, P> {
    fn prepare(&self, td: &Td) -> Result<(), String> {
        let functions = Functions::take(self.platform, td)?;
        if functions.is_some() {
            self.has_functions.store(true, SeqCst);
        }
        let guest = match self.new_guest(td, functions.as_ref()) {
            Ok(guest) => Arc::new(guest.with_functions(functions)),
            Err(error) => {
                // No guest has used them: they have reached nothing.
                if let Some(Err(problem)) = functions.map(|functions| functions.give_back()) {
                    log::error!("TD {}: {problem}", td.config().name);
                }
                return Err(error);
            }
        };
        guest.connect_functions();
        let before = self.with_queue(|scheduled| {
            let watched = self.watched.load(SeqCst);
            guest.vm().console().set_watched(td.id() == watched);
            scheduled.guests.insert(td.id(), guest)
        });
        // Not dropped with the lock held.
        drop(before);
        Ok(())
    }

    fn wiring(&self, td: &Td, index: u16) -> Option<Wiring> {
        let guest = self.guest(td.id())?;
        let vm = guest.vm();
        let state = vm.vcpus().get(usize::from(index))?;
        Some(Wiring {
            descriptor: self.platform.descriptor_at(state.descriptor()),
            notification: self.platform.notification_vector(),
            shared: vm.shared().root(),
        })
    }

    fn start(&self, td: &Arc<Td>) {
        let Some(guest) = self.guest(td.id()) else {
            return;
        };
        let now = self.platform.tsc();
        let is_new = guest.td().is_none();
        guest.set_td(Some(Arc::clone(td)));
        if is_new {
            guest.vm().console().note_start();
            self.note_output(&guest);
        }
        let idle = self.with_queue(|Scheduled { queue, .. }| {
            if is_new {
                queue.add(td.id(), portion(td.config()), &td.vcpus().homes(), now);
            }
            queue.start(td.id(), now)
        });
        self.poke(&idle);
    }

    fn end(&self, td: &Td) {
        self.with_queue(|scheduled| scheduled.queue.remove(td.id()));
        let Some(guest) = self.guest(td.id()) else {
            return;
        };
        let life = guest.td();
        guest.set_td(None);
        guest.vm().devices().pci().retire();
        if let Some(quotes) = guest.vm().quotes() {
            quotes.close();
        }
        if td.config().vsock.is_some() {
            self.note_closed_sockets();
        }
        let (shared, frames) = (guest.vm().shared(), self.platform.shared_frames());
        // Devices must not reach memory that is freed.
        let kept = match guest.give_functions_back(life) {
            Ok(()) => shared.dissolve(frames),
            Err(why) => {
                log::error!("TD {}: {why}", td.config().name);
                td.note_problem(format_args!("{why}; its shared memory is in quarantine"));
                shared.quarantine(frames)
            }
        };
        if kept > 0 {
            log::error!(
                "TD {}: {} KiB of shared memory are in quarantine",
                td.config().name,
                kept >> 10
            );
        }
    }

    fn shrunk(&self, td: &Td) -> bool {
        let end = td.layout().parts().map(|part| part.end).max().unwrap_or(0);
        let Some(guest) = self.guest(td.id()) else {
            return true;
        };
        let is_taken = guest.vm().end_memory_at(end);
        // A device may have found the memory in use by this call.
        self.serve_devices(&guest);
        is_taken
    }

    fn guest_end(&self, td: &Td) -> Option<GuestEnd> {
        let guest = self.guest(td.id())?;
        let end = guest.vm().end()?;
        Some(if end.is_orderly() {
            GuestEnd::Orderly
        } else {
            GuestEnd::Failed(end.to_string())
        })
    }

    fn has_network(&self, name: &str) -> bool {
        self.networks.all().any(|network| network.name == name)
    }

    fn work_waits(&self) {
        self.wake_idle();
    }

    fn press_power_button(&self, td: &Td) -> Listens {
        let guest = self.guest(td.id());
        let pressed = guest.map(|guest| vcpu::press_power_button(Waker::new(guest.vm(), self)));
        match pressed {
            Some(Ok(())) => Listens::Yes,
            Some(Err(_)) | None => Listens::No,
        }
    }

    fn set_portion(&self, id: u32, config: &config::Td) {
        let now = self.platform.tsc();
        let idle = self.with_queue(|Scheduled { queue, .. }| {
            queue.set_portion(id, portion(config), now);
            queue.idle()
        });
        // A TD may have waited for the end of its cap's period.
        self.poke(&idle);
    }

    fn forget(&self, id: u32) {
        let gone = self.with_queue(|scheduled| {
            scheduled.queue.remove(id);
            scheduled.guests.remove(&id)
        });
        // Not dropped with the lock held.
        drop(gone);
    }
}
