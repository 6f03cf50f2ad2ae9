//! The scheduler's facts about the TDs that it runs, for the operator.

use alloc::{string::String, vec::Vec};

use console::host::{
    Hex,
    device::TdDevice,
    network::Network,
    pci::PciCounts,
    td::{PlaceKind, TdPort, TdVcpu, Unanswered, UnansweredPlace},
};
use host::{platform::Running, sched::Scheduler};
use vcpu::ghci::Branch;
use vcpu::unanswered::{Accesses, Kind};

use crate::machine::{console_tds::SchedulerView, networks};

impl<P: Running> SchedulerView for Scheduler<'_, P> {
    fn vcpu(&self, id: u32, index: u16) -> TdVcpu {
        let times = self.times_us(id, index);
        let guest = self.guest(id);
        let state = guest
            .as_ref()
            .and_then(|guest| guest.vm().vcpus().get(usize::from(index)));
        TdVcpu {
            run_us: times.map(|times| times.run),
            wait_us: times.map(|times| times.wait),
            steal_us: times.map(|times| times.steal),
            entries: state.map(|state| state.tally().entries.get()),
            ..TdVcpu::default()
        }
    }

    fn end(&self, id: u32) -> Option<String> {
        self.problem(id)
    }

    fn port(&self, id: u32, port: TdPort, work: &mut dyn FnMut(&vcpu::Console)) -> bool {
        let guest = self.guest(id);
        let console = guest.as_ref().map(|guest| guest.vm().console());
        let port = match port {
            TdPort::Console => console,
            TdPort::Script => console.and_then(|console| console.script()),
        };
        port.map(|port| work(port)).is_some()
    }

    fn type_byte(&self, id: u32, port: TdPort, byte: u8) -> bool {
        match port {
            TdPort::Console => Self::type_byte(self, id, byte),
            TdPort::Script => self.type_for_script(id, byte),
        }
    }

    fn exits(&self, id: u32, count: &mut dyn FnMut(&'static str, u64)) {
        let Some(guest) = self.guest(id) else {
            return;
        };
        for state in guest.vm().vcpus() {
            for (what, times) in state.tally().all() {
                count(what, times);
            }
            for branch in Branch::ALL {
                count(branch.name(), state.branches().get(*branch));
            }
        }
    }

    fn networks(&self, tds: &[(u32, &str)]) -> Vec<Network> {
        networks::networks(self, tds)
    }

    fn devices(&self, id: u32) -> Vec<TdDevice> {
        networks::devices(self, id)
    }

    fn devices_helped_us(&self, id: u32) -> u64 {
        self.helped_us(id)
    }

    fn functions(&self, id: u32) -> Vec<PciCounts> {
        let all = self.function_counts(id).into_iter();
        all.map(|counts| PciCounts {
            config: counts.config,
            memory: counts.memory,
            interrupts: counts.interrupts,
            refused: counts.refused,
            rests: counts.rests,
        })
        .collect()
    }

    fn unanswered(&self, id: u32) -> Unanswered {
        let Some(guest) = self.guest(id) else {
            return Unanswered::default();
        };
        let all = guest.vm().unanswered();
        Unanswered {
            places: all.places.into_iter().map(place).collect(),
            others: all.others,
        }
    }
}

fn place(accesses: Accesses) -> UnansweredPlace {
    let Accesses {
        kind,
        at,
        reads,
        writes,
    } = accesses;
    UnansweredPlace {
        kind: match kind {
            Kind::Port => PlaceKind::Port,
            Kind::Memory => PlaceKind::Memory,
            Kind::Msr => PlaceKind::Msr,
        },
        at: Hex(at),
        part: vcpu::pc::part(kind, at),
        reads,
        writes,
    }
}
