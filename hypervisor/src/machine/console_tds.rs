//! The console's view of TDs: reports, commands, and every error as a sentence that names the TD and says what to do.
//!
//! It is generic over [`Platform`], so the host's tests run the console's commands against the emulated module.

use alloc::{
    format,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::{fmt::Write, iter};

use console::host::{
    Hex, absent,
    device::TdDevice,
    failure::{Code, Failure},
    network::Network,
    pci::{PciCounts, TdPci},
    seam::ExitStats,
    td::{
        self, Excerpt, LeafCalls, Pages, Register, Registers, TdBuilt, TdEnded, TdLine, TdNow,
        TdPort, TdReclaim, TdReport, TdShrunk, TdState, TdVcpu, Unanswered, Work,
    },
};
use host::{
    platform::{Platform, shutdown::SHUT_DOWN},
    td::{
        Td, debug,
        end::{self, Ended, Termination, Way},
        error::{Error, after_guest},
        host::Time,
        life::State,
        meter::Summary,
        registry::{Asked, Tds},
    },
};
use mm::private::{Holding, Outcome, PrivateMap};

use super::{
    devices::PciView,
    failure::{Wish, advice, code},
};
use seam::abi::{Measurement, PAGE_1G, PAGE_2M, PAGE_4K};

/// Per-TD facts that the scheduler supplies.
pub trait SchedulerView {
    /// Returns the scheduling facts of a vCPU. The caller fills in the rest.
    fn vcpu(&self, id: u32, index: u16) -> TdVcpu;

    /// Returns the reason why the TD ended, if it has. A reset is not an end.
    fn end(&self, id: u32) -> Option<String>;

    /// Passes a port of the TD to `work`. Returns `false` if the TD does not have it.
    fn port(&self, id: u32, port: TdPort, work: &mut dyn FnMut(&vcpu::Console)) -> bool;

    /// Types a byte at a port of the TD. Returns `false` if the byte is lost.
    fn type_byte(&self, id: u32, port: TdPort, byte: u8) -> bool;

    /// Reports the number of exits of the TD's vCPUs, by reason.
    fn exits(&self, id: u32, count: &mut dyn FnMut(&'static str, u64));

    /// Returns the accesses of the TD's guest that nothing answered.
    fn unanswered(&self, id: u32) -> Unanswered;

    /// Returns the networks, with the cards of these TDs, which have a number and a name each.
    fn networks(&self, tds: &[(u32, &str)]) -> Vec<Network>;

    /// Returns the TD's virtual devices, with their use in this life.
    fn devices(&self, id: u32) -> Vec<TdDevice>;

    /// Returns the microseconds for which idle CPUs have worked for the TD's virtual devices in this life.
    fn devices_helped_us(&self, id: u32) -> u64;

    /// Returns what the TD has done with its PCI functions in this life, in the order of its configuration.
    fn functions(&self, id: u32) -> Vec<PciCounts>;
}

/// The scheduler of a host without a scheduler.
#[derive(Clone, Copy, Debug)]
pub struct NoScheduler;

impl SchedulerView for NoScheduler {
    fn vcpu(&self, _: u32, _: u16) -> TdVcpu {
        TdVcpu::default()
    }

    fn end(&self, _: u32) -> Option<String> {
        None
    }

    fn port(&self, _: u32, _: TdPort, _: &mut dyn FnMut(&vcpu::Console)) -> bool {
        false
    }

    fn type_byte(&self, _: u32, _: TdPort, _: u8) -> bool {
        false
    }

    fn exits(&self, _: u32, _: &mut dyn FnMut(&'static str, u64)) {}

    fn unanswered(&self, _: u32) -> Unanswered {
        Unanswered::default()
    }

    fn networks(&self, _: &[(u32, &str)]) -> Vec<Network> {
        Vec::new()
    }

    fn devices(&self, _: u32) -> Vec<TdDevice> {
        Vec::new()
    }

    fn devices_helped_us(&self, _: u32) -> u64 {
        0
    }

    fn functions(&self, _: u32) -> Vec<PciCounts> {
        Vec::new()
    }
}

/// The TDs of a host, as its operator handles them.
pub struct ConsoleTds<'a, 'h, P: Platform> {
    /// The TDs.
    pub tds: &'a Tds<'h, P>,
    /// The scheduler's facts about them.
    pub scheduler: &'a dyn SchedulerView,
    /// The machine's PCI functions.
    pub pci: &'a dyn PciView,
}

impl<P: Platform> ConsoleTds<'_, '_, P> {
    pub(super) fn name(&self, id: u32) -> String {
        let config = self.tds.config(id);
        config.map_or_else(|| id.to_string(), |config| config.name.clone())
    }

    pub(super) fn now(&self, id: u32) -> TdNow {
        TdNow {
            id,
            name: self.name(id),
            state: state(self.tds.state(id)),
        }
    }

    fn line(&self, id: u32) -> Option<TdLine> {
        let config = self.tds.config(id)?;
        let td = self.tds.get(id);
        let problem = self.tds.notes(id).and_then(|notes| notes.problem);
        let problem = problem.or_else(|| self.scheduler.end(id));
        let problem = match self.tds.host().platform.shutdown().problem() {
            // The TD's other problems are older than the shutdown, except for pages that are out of use.
            Some(down) if self.tds.get(id).is_none() => {
                let lost = problem.filter(|_| self.tds.state(id) == State::Reclaimed);
                Some(lost.map_or(down.clone(), |lost| format!("{down}; {lost}")))
            }
            Some(down) => Some(down),
            None => problem,
        };
        Some(TdLine {
            id,
            name: config.name.clone(),
            state: state(self.tds.state(id)),
            hkid: td.as_ref().and_then(|td| td.hkid()),
            vcpus: td.as_ref().map_or(config.vcpus, |td| td.config().vcpus),
            private_bytes: td.as_ref().map_or(0, |td| td.holding().bytes()),
            memory_bytes: td.map_or(config.memory, |td| td.layout().bytes()),
            problem,
        })
    }

    /// Returns the PCI functions of a TD with this configuration.
    fn functions(&self, id: u32, config: &config::Td) -> Vec<TdPci> {
        let counts = self.scheduler.functions(id);
        let counts = counts.into_iter().map(Some).chain(iter::repeat(None));
        let all = config.pci.iter().zip(counts);
        all.map(|(pci, counts)| TdPci {
            counts,
            ..self.pci.look(*pci)
        })
        .collect()
    }

    fn vcpu(&self, id: u32, td: Option<&Td>, index: u16) -> TdVcpu {
        let user = td.and_then(|td| td.vcpus().user(index));
        let association = || td.and_then(|td| td.vcpus().association(index));
        TdVcpu {
            index,
            cpu: user.or_else(association),
            running: user.is_some(),
            ..self.scheduler.vcpu(id, index)
        }
    }

    fn reclaim(&self, id: u32, td: &Td) -> Option<TdReclaim> {
        let reclaim = td.reclaim()?;
        let progress = reclaim.progress(&Time(self.tds.host().platform));
        let refusal = || reclaim.last_refusal().map(|refusal| refusal.to_string());
        let stuck = progress.is_stuck.then(|| refusal().unwrap_or_default());
        Some(TdReclaim {
            id,
            name: td.config().name.clone(),
            total_bytes: progress.total,
            done_bytes: progress.reclaimed.bytes(),
            bytes_per_second: progress.rate(),
            us: progress.elapsed_ns / 1000,
            left_us: progress.left_ns().map(|ns| ns / 1000),
            calls: progress.reclaimed.calls(),
            quarantined: progress.quarantined,
            stuck,
        })
    }

    /// Reports the outcome of a termination.
    fn ended(
        &self,
        id: u32,
        wish: Wish,
        outcome: Result<Ended, Error>,
    ) -> Result<TdEnded, Failure> {
        let ended = outcome.map_err(|error| self.failure(id, wish, &error))?;
        let (already, termination) = match ended {
            Ended::Now(termination) => (false, termination),
            Ended::Already(_) => (true, Termination::default()),
        };
        let pages = pages(&termination.had);
        Ok(TdEnded {
            now: self.now(id),
            already,
            pages,
            bytes: bytes(&pages),
            work: work(&termination.work),
        })
    }

    fn act(
        &self,
        id: u32,
        wish: Wish,
        act: impl FnOnce() -> Result<(), Error>,
    ) -> Result<TdNow, Failure> {
        act().map_err(|error| self.failure(id, wish, &error))?;
        Ok(self.now(id))
    }

    fn living(&self, id: u32, wish: Wish) -> Result<Arc<Td>, Failure> {
        let none = || self.failure(id, wish, &Error::State(self.tds.state(id)));
        self.tds.get(id).ok_or_else(none)
    }

    /// Says why the TD can't be inspected.
    fn unseen(&self, id: u32, refused: debug::Uninspectable) -> Failure {
        match refused {
            _ if self.tds.is_down() => Code::Unavailable.because(SHUT_DOWN),
            debug::Uninspectable::State(state) => {
                self.failure(id, Wish::Look, &Error::State(state))
            }
            other => {
                let code = match other {
                    debug::Uninspectable::Production => Code::Unsupported,
                    debug::Uninspectable::Runs { .. } | debug::Uninspectable::InMotion(_) => {
                        Code::Busy
                    }
                    debug::Uninspectable::NoVcpu { .. }
                    | debug::Uninspectable::BadRange
                    | debug::Uninspectable::NoMemory(_)
                    | debug::Uninspectable::Unaccepted(_) => Code::InvalidArgument,
                    _ => Code::Failed,
                };
                code.because(format!("TD {}: {other}", self.name(id)))
            }
        }
    }

    /// Says why an operation failed.
    pub(super) fn failure(&self, id: u32, wish: Wish, error: &Error) -> Failure {
        if let Some(down) = self.tds.host().platform.shutdown().problem() {
            // The sentence is about no particular TD, and nothing else can be done.
            return Code::Unavailable.because(down);
        }
        let name = self.name(id);
        let why = match error {
            Error::State(now) => {
                let td = self.tds.get(id);
                let is_stuck = td.is_some_and(|td| end::stuck(&td).is_some());
                let advice = advice(wish, *now, is_stuck, &name);
                format!("TD {name} is {}{advice}", now.in_words())
            }
            Error::GuestEnded(_) => format!("TD {name}: {error}; {}", after_guest(&name)),
            error => format!("TD {name}: {error}"),
        };
        code(error).because(why)
    }
}

impl<P: Platform> td::Tds for ConsoleTds<'_, '_, P> {
    fn names(&self) -> Vec<String> {
        self.tds.ids().map(|id| self.name(id)).collect()
    }

    fn ids(&self) -> Vec<u32> {
        self.tds.ids().collect()
    }

    fn list(&self) -> Vec<TdLine> {
        self.tds.ids().filter_map(|id| self.line(id)).collect()
    }

    fn show(&self, id: u32) -> Result<TdReport, Failure> {
        let none = || absent::no_such_td(id);
        let line = self.line(id).ok_or_else(none)?;
        let defined = self.tds.config(id).ok_or_else(none)?;
        let td = self.tds.get(id);
        // Settings that have changed meanwhile apply to the next life, except for these.
        let config = td.as_ref().map_or(&*defined, |td| td.config());
        let (shares, cap) = (defined.shares, defined.cap);
        let notes = self.tds.notes(id).unwrap_or_default();
        Ok(TdReport {
            line,
            image: absent::started_from(config),
            autostart: config.autostart,
            control: config.control,
            debug: config.debug,
            no_rbp_mod: config.no_rbp_mod(),
            shares,
            cap,
            pages: td
                .as_ref()
                .map(|td| pages(&td.holding()))
                .unwrap_or_default(),
            made_whole: td
                .as_ref()
                .and_then(|td| td.map())
                .map_or(0, PrivateMap::made_whole),
            mrtd: td.as_ref().and_then(|td| td.mrtd().map(hex)),
            pci: self.functions(id, config),
            devices: self.scheduler.devices(id),
            devices_helped_us: self.scheduler.devices_helped_us(id),
            cpus: (0..config.vcpus)
                .map(|index| self.vcpu(id, td.as_deref(), index))
                .collect(),
            built: notes.built.as_ref().map(work),
            ended: notes.ended.as_ref().map(|ended| work(&ended.work)),
            pending: self.tds.pending(id),
            shutdown: self.tds.asked_to_shut_down(id).map(shutdown),
            unanswered: self.scheduler.unanswered(id),
            reclaim: td
                .filter(|td| td.state() == State::Teardown)
                .and_then(|td| self.reclaim(id, &td)),
        })
    }

    fn create(&self, id: u32) -> Result<TdBuilt, Failure> {
        let built = self.tds.create(id);
        let td = built.map_err(|error| self.failure(id, Wish::Create, &error))?;
        let notes = td.notes();
        Ok(TdBuilt {
            now: self.now(id),
            hkid: td.hkid(),
            mrtd: td.mrtd().map(hex),
            pages: pages(&td.holding()),
            work: notes.built.as_ref().map(work).unwrap_or_default(),
        })
    }

    fn start(&self, id: u32) -> Result<TdNow, Failure> {
        self.act(id, Wish::Start, || self.tds.start(id))
    }

    fn pause(&self, id: u32) -> Result<TdNow, Failure> {
        self.act(id, Wish::Pause, || self.tds.pause(id))
    }

    fn resume(&self, id: u32) -> Result<TdNow, Failure> {
        self.act(id, Wish::Resume, || self.tds.resume(id))
    }

    fn terminate(&self, id: u32) -> Result<TdEnded, Failure> {
        self.ended(id, Wish::End, self.tds.terminate(id))
    }

    fn destroy(&self, id: u32, dynamic: bool) -> Result<TdEnded, Failure> {
        let way = if dynamic {
            Way::Dynamic
        } else {
            Way::Terminate
        };
        self.ended(id, Wish::End, self.tds.destroy(id, way))
    }

    fn retry(&self, id: u32) -> Result<TdEnded, Failure> {
        self.ended(id, Wish::Retry, self.tds.retry(id).map(Ended::Now))
    }

    fn reset(&self, id: u32) -> Result<TdNow, Failure> {
        self.act(id, Wish::End, || self.tds.reset(id))
    }

    fn shrink(&self, id: u32, bytes: u64) -> Result<TdShrunk, Failure> {
        let platform = self.tds.host().platform;
        let start = platform.now_us();
        let outcome = self.tds.shrink(id, bytes);
        let outcome = outcome.map_err(|error| self.failure(id, Wish::Shrink, &error))?;
        let (taken, left_to) = match outcome {
            Outcome::Removed(taken) => (taken, None),
            Outcome::Queued => (
                <_>::default(),
                Some("its termination, or when that has failed"),
            ),
            Outcome::LeftToReclaim => (<_>::default(), Some("the reclaim of all its memory")),
        };
        Ok(TdShrunk {
            now: self.now(id),
            memory_bytes: self.tds.get(id).map_or(bytes, |td| td.layout().bytes()),
            taken: Pages {
                private_4k: taken.pages[0],
                private_2m: taken.pages[1],
                private_1g: taken.pages[2],
                sept: taken.sept,
            },
            batches: taken.batches,
            left_to,
            us: platform.now_us() - start,
        })
    }

    fn output(
        &self,
        id: u32,
        port: TdPort,
        from: u64,
        into: &mut [u8],
    ) -> Result<Excerpt, Failure> {
        let none = || {
            if self.tds.is_down() {
                return Code::Unavailable.because(SHUT_DOWN);
            }
            let name = self.name(id);
            Code::WrongState.because(match port {
                TdPort::Console => {
                    format!("TD {name} has no console yet; \"td start {name}\" starts it")
                }
                TdPort::Script => format!(
                    "TD {name} has no port for scripts; a TD with console = \"virtio\" has one once it was started"
                ),
            })
        };
        let mut read = None;
        self.scheduler
            .port(id, port, &mut |port| read = Some(port.read(from, into)));
        let read = read.ok_or_else(none)?;
        Ok(Excerpt {
            began: read.began,
            from: read.from,
            count: read.count,
        })
    }

    fn type_byte(&self, id: u32, port: TdPort, byte: u8) -> bool {
        self.scheduler.type_byte(id, port, byte)
    }

    fn exits(&self, id: u32) -> Result<Vec<ExitStats>, Failure> {
        self.tds.config(id).ok_or_else(|| absent::no_such_td(id))?;
        let mut exits = Vec::new();
        self.scheduler.exits(id, &mut |what, count| {
            if count > 0 {
                exits.push(ExitStats { what, count });
            }
        });
        Ok(exits)
    }

    fn registers(&self, id: u32, vcpu: u16) -> Result<Registers, Failure> {
        let td = self.living(id, Wish::Look)?;
        let found = debug::registers(self.tds.host().platform, &td, vcpu)
            .map_err(|refused| self.unseen(id, refused))?;
        let registers = found.into_iter().map(|(name, value)| Register {
            name,
            value: Hex(value),
        });
        Ok(Registers {
            name: self.name(id),
            vcpu,
            registers: registers.collect(),
        })
    }

    fn memory(&self, id: u32, gpa: u64, into: &mut [u8]) -> Result<(), Failure> {
        let td = self.living(id, Wish::Look)?;
        debug::memory(self.tds.host().platform, &td, gpa, into)
            .map_err(|refused| self.unseen(id, refused))
    }

    fn reclaims(&self) -> Vec<TdReclaim> {
        let all = self
            .tds
            .ids()
            .filter_map(|id| Some((id, self.tds.get(id)?)));
        all.filter(|(_, td)| td.state() == State::Teardown)
            .filter_map(|(id, td)| self.reclaim(id, &td))
            .collect()
    }
}

fn shutdown(asked: Asked) -> String {
    match asked {
        Asked::Waiting { left_s, force } => {
            let then = if force { ", then it is terminated" } else { "" };
            format!("asked for; the guest has {left_s} s left{then}")
        }
        Asked::Overdue { limit_s } => {
            format!("asked for; the guest did not follow within {limit_s} s")
        }
    }
}

const fn state(state: State) -> TdState {
    match state {
        State::Created => TdState::Created,
        State::Building => TdState::Building,
        State::Runnable => TdState::Runnable,
        State::Paused => TdState::Paused,
        State::Terminating => TdState::Terminating,
        State::Teardown => TdState::Teardown,
        State::Reclaimed => TdState::Reclaimed,
    }
}

fn pages(holding: &Holding) -> Pages {
    Pages {
        private_4k: holding.pages[0],
        private_2m: holding.pages[1],
        private_1g: holding.pages[2],
        sept: holding.sept,
    }
}

fn bytes(pages: &Pages) -> u64 {
    pages.private_4k * PAGE_4K + pages.private_2m * PAGE_2M + pages.private_1g * PAGE_1G
}

fn work(summary: &Summary) -> Work {
    let calls = |calls: &[(seam::abi::Leaf, u64)]| calls.iter().map(|(_, count)| count).sum();
    let leafs = summary.calls();
    Work {
        us: summary.us,
        cpu_us: summary.cpu_us(),
        calls: calls(&leafs),
        phases: summary
            .phases
            .iter()
            .map(|phase| td::Phase {
                name: phase.name.clone(),
                us: phase.us,
                cpu_us: phase.cpu_us,
                calls: calls(&phase.calls),
            })
            .collect(),
        leafs: leafs
            .iter()
            .map(|(leaf, calls)| LeafCalls {
                leaf: leaf.name(),
                calls: *calls,
            })
            .collect(),
    }
}

fn hex(measurement: &Measurement) -> String {
    let mut digits = String::with_capacity(2 * measurement.len());
    for byte in measurement {
        // Writing to a string can't fail.
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}
