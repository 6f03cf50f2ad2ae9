//! Prepares the parts of a TD that are outside the module: shared memory, the TD-wide state, an entry in the run queue.

use alloc::{
    string::{String, ToString},
    sync::Arc,
};
use core::sync::atomic::Ordering::SeqCst;

use mm::{private::Levels, shared::SharedMap};
use seam::abi::metadata::td;
use seam::address::SHARED;
use vcpu::{Console, Facts, Vm, Waker, Wiring, clock::Clock};

use super::{Scheduler, guest::Guest, lock::Scheduled, queue::Portion};
use crate::{
    platform::Running,
    td::{
        Td,
        host::{GuestEnd, Listens, Runner},
    },
};

fn portion(config: &config::Td) -> Portion {
    Portion {
        shares: config.shares,
        cap: config.cap,
    }
}

/// Returns the facts that UEFI firmware is told.
fn facts(config: &config::Td) -> Facts {
    Facts {
        vcpus: config.vcpus,
        uuid: config.uuid,
        boot_order: config.boot_order.clone(),
    }
}

impl<P: Running> Scheduler<'_, P> {
    /// Makes the machine's console show new output of a TD, if it is being watched.
    pub(super) fn note_output(&self, guest: &Guest) {
        if guest.vm().console().is_watched() {
            self.platform.wake_console();
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

impl<P: Running> Runner for Scheduler<'_, P> {
    fn prepare(&self, td: &Td) -> Result<(), String> {
        let clock = self.clock(td)?;
        let frames = self.platform.shared_frames();
        let shared = SharedMap::new(frames, Levels::Four, SHARED);
        let shared = shared.map_err(|error| error.to_string())?;
        for (gpa, file) in td.lent() {
            if let Err(error) = shared.lend(frames, *gpa, file.hpa, file.bytes) {
                shared.dissolve(frames);
                return Err(error.to_string());
            }
        }
        let vcpus = u32::from(td.vcpus().count());
        let memory = td.layout().parts().collect();
        let console = match self.guest(td.id()) {
            Some(before) => Arc::clone(before.vm().console()),
            None => Arc::new(Console::new()),
        };
        let vm = Vm::new(0..vcpus, memory, shared, clock, console);
        let vm = match &td.config().firmware {
            Some(_) => vm.with_fw_cfg(&facts(td.config())),
            None => vm,
        };
        let guest = Guest::new(td.id(), vm);
        let before = self.with_queue(|scheduled| {
            let watched = self.watched.load(SeqCst);
            guest.vm().console().set_watched(td.id() == watched);
            scheduled.guests.insert(td.id(), Arc::new(guest))
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
        if let Some(guest) = self.guest(td.id()) {
            guest.set_td(None);
            guest.vm().shared().dissolve(self.platform.shared_frames());
        }
    }

    fn shrunk(&self, td: &Td) -> bool {
        let end = td.layout().parts().map(|part| part.end).max().unwrap_or(0);
        self.guest(td.id())
            .is_none_or(|guest| guest.vm().end_memory_at(end))
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
