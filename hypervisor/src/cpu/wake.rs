//! The protocol that wakes CPUs, INIT-SIPI-SIPI, for all of them at once, and what is said about those that stay silent.
//!
//! Source: Intel MultiProcessor Specification 1.4, appendix B.4; Intel SDM volume 3A, section 9.4.4.

use alloc::{format, string::String, vec::Vec};

use console::cpus;

use super::topology::Place;

/// Delay from INIT to SIPI in microseconds.
const INIT_US: u64 = 10_000;
/// Delay from the first SIPI to the second in microseconds.
const SIPI_US: u64 = 200;
/// Number of CPUs that are described one by one.
const MAX_SINGLE: usize = 4;

/// The CPUs to wake, by their position among them.
pub(super) trait Sleepers {
    /// Returns the number of CPUs.
    fn count(&self) -> usize;
    /// Sends INIT.
    fn init(&self, at: usize);
    /// Sends SIPI.
    fn startup(&self, at: usize);
    /// Returns true if the CPU has not reported yet.
    fn is_asleep(&self, at: usize) -> bool;
    /// Waits for `us` microseconds, or until `done`. Returns the last answer of `done`.
    fn wait_us(&self, us: u64, done: impl FnMut() -> bool) -> bool;
}

/// Wakes all CPUs, and waits for them as long as one reports every `timeout_us`. The second SIPI goes to those alone that
/// the first has not woken.
pub(super) fn wake(cpus: &impl Sleepers, timeout_us: u64) {
    for at in 0..cpus.count() {
        cpus.init(at);
    }
    cpus.wait_us(INIT_US, || false);
    let mut asleep: Vec<usize> = (0..cpus.count()).collect();
    for pause_us in [SIPI_US, timeout_us] {
        for at in &asleep {
            cpus.startup(*at);
        }
        while !asleep.is_empty() {
            let has_news = cpus.wait_us(pause_us, || asleep.iter().any(|at| !cpus.is_asleep(*at)));
            if !has_news {
                break;
            }
            asleep.retain(|at| cpus.is_asleep(*at));
        }
    }
}

/// A CPU that did not report.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silent {
    /// The hypervisor's number for it.
    pub number: u32,
    /// Its place, with the APIC id.
    pub place: Place,
}

/// The advice about a CPU that does not start.
pub const ADVICE: &str = "switch the machine off and on; if the CPU still does not start, disable its core in the \
                          firmware's setup, or give it more time with host.cpu_timeout_ms";

/// Says which CPUs did not start within `timeout_us`, and what to do: a sentence for each of a few, else for each
/// package.
pub(super) fn sentences(silent: &[Silent], timeout_us: u64) -> Vec<String> {
    let ms = timeout_us / 1000;
    if silent.len() <= MAX_SINGLE {
        let one = |Silent { number, place }: &Silent| {
            format!(
                "CPU {number} (APIC id {:#x}: package {}, core {}, thread {}) did not start within {ms} ms: {ADVICE}",
                place.x2apic_id, place.package, place.core, place.thread
            )
        };
        return silent.iter().map(one).collect();
    }
    let mut packages: Vec<(u32, Vec<u32>)> = Vec::new();
    for Silent { number, place } in silent {
        match packages
            .iter_mut()
            .find(|(known, _)| *known == place.package)
        {
            Some((_, numbers)) => numbers.push(*number),
            None => packages.push((place.package, Vec::from([*number]))),
        }
    }
    let sentence = |(package, numbers): &(u32, Vec<u32>)| {
        format!(
            "{} of package {package} did not start within {ms} ms: {ADVICE}",
            cpus::name(numbers)
        )
    };
    packages.iter().map(sentence).collect()
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::cell::{Cell, RefCell};
    use std::vec;

    use super::{super::topology::Shifts, *};

    /// The number of CPUs to wake on a machine of 1,024.
    const MANY: usize = 1023;
    const TIMEOUT_US: u64 = 2_000_000;

    /// Machine whose CPUs report some time after the SIPI that wakes them.
    struct Machine {
        now: Cell<u64>,
        /// The SIPI that wakes a CPU (0: none), and microseconds from it to the report.
        behaviour: fn(usize) -> (u32, u64),
        inits: RefCell<Vec<u32>>,
        sipis: RefCell<Vec<u32>>,
        /// The time at which a CPU has reported.
        reports: RefCell<Vec<Option<u64>>>,
    }

    impl Machine {
        fn woken(behaviour: fn(usize) -> (u32, u64)) -> Self {
            let machine = Self {
                now: Cell::new(0),
                behaviour,
                inits: RefCell::new(vec![0; MANY]),
                sipis: RefCell::new(vec![0; MANY]),
                reports: RefCell::new(vec![None; MANY]),
            };
            wake(&machine, TIMEOUT_US);
            assert!(machine.inits.borrow().iter().all(|count| *count == 1));
            machine
        }

        fn asleep(&self) -> Vec<usize> {
            (0..MANY).filter(|at| self.is_asleep(*at)).collect()
        }
    }

    impl Sleepers for Machine {
        fn count(&self) -> usize {
            MANY
        }
        fn init(&self, at: usize) {
            self.inits.borrow_mut()[at] += 1;
        }
        fn startup(&self, at: usize) {
            assert!(self.now.get() >= INIT_US, "a SIPI too early");
            let mut sipis = self.sipis.borrow_mut();
            sipis[at] += 1;
            let (waking, delay) = (self.behaviour)(at);
            if sipis[at] == waking {
                self.reports.borrow_mut()[at] = Some(self.now.get() + delay);
            }
        }
        fn is_asleep(&self, at: usize) -> bool {
            self.reports.borrow()[at].is_none_or(|time| time > self.now.get())
        }
        fn wait_us(&self, us: u64, mut done: impl FnMut() -> bool) -> bool {
            let deadline = self.now.get() + us;
            while !done() {
                let now = self.now.get();
                let reports = self.reports.borrow();
                let later = reports.iter().flatten().filter(|time| **time > now);
                let next = later.copied().fold(deadline, u64::min);
                if now == deadline {
                    return false;
                }
                self.now.set(next);
            }
            true
        }
    }

    #[test]
    fn a_thousand_cpus_start_at_once() {
        let machine = Machine::woken(|_| (1, 50));
        assert!(machine.asleep().is_empty());
        assert_eq!(machine.now.get(), INIT_US + 50, "one pause for all");
        assert!(machine.sipis.borrow().iter().all(|count| *count == 1));
    }

    #[test]
    fn cpus_that_wait_for_each_other_take_their_time() {
        // Each holds the others up for 10 ms: all in all that is five times the limit for one.
        let machine = Machine::woken(|at| (1, at as u64 * 10_000));
        assert!(machine.asleep().is_empty());
        assert!(machine.now.get() > 5 * TIMEOUT_US);
    }

    #[test]
    fn the_second_sipi_goes_to_those_that_missed_the_first() {
        let machine = Machine::woken(|at| (if at % 7 == 0 { 2 } else { 1 }, 20));
        assert!(machine.asleep().is_empty());
        for (at, count) in machine.sipis.borrow().iter().enumerate() {
            assert_eq!(*count, if at % 7 == 0 { 2 } else { 1 });
        }
        assert!(machine.now.get() < INIT_US + 2 * SIPI_US);
    }

    #[test]
    fn a_bad_cpu_costs_its_time_limit_once_and_is_named() {
        let machine = Machine::woken(|at| (u32::from(at != 600 && at != 601), 30));
        assert_eq!(machine.asleep(), [600, 601]);
        assert!(machine.now.get() < INIT_US + 2 * SIPI_US + TIMEOUT_US);
        let shifts = Shifts {
            core: 1,
            package: 8,
        };
        let silent = machine.asleep().into_iter().map(|at| Silent {
            number: at as u32 + 1,
            place: shifts.place(at as u32 + 1),
        });
        let told = sentences(&silent.collect::<Vec<_>>(), TIMEOUT_US);
        let start = "CPU 601 (APIC id 0x259: package 2, core 44, thread 1) did not start within 2000 ms: switch the \
                     machine off and on";
        assert!(told.len() == 2 && told[0].starts_with(start), "{told:?}");
    }

    #[test]
    fn a_silent_package_is_one_sentence() {
        let silent = |number| Silent {
            number,
            place: Place {
                x2apic_id: number,
                package: number / 256,
                ..Place::default()
            },
        };
        let numbers = [3].into_iter().chain(256..512);
        let told = sentences(&numbers.map(silent).collect::<Vec<_>>(), TIMEOUT_US);
        assert_eq!(told.len(), 2);
        assert!(told[0].starts_with("CPU 3 of package 0 did not start within 2000 ms: "));
        assert!(told[1].starts_with("CPUs 256 to 511 of package 1 did not start within "));
    }
}
