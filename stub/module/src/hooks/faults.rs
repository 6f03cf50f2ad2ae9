//! Fault injection: calls fail by a script or by chance, in the ways in which they can fail on hardware.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::{Leaf, Operand};

use crate::splitmix::mix;

/// A fault of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call returns OPERAND_BUSY with this operand, and does nothing.
    Busy(Operand),
    /// An interrupt is pending from the call's first check on. An interruptible leaf returns INTERRUPTED_RESUMABLE or
    /// INTERRUPTED_RESTARTABLE, with all side effects of that. Other leafs are unaffected.
    Interrupted,
    /// RDRAND, RDSEED and PCONFIG find no entropy.
    NoEntropy,
    /// The module shuts down, as Intel's does if its own state or the CPU's is inconsistent.
    Shutdown,
    /// A machine check interrupts the guest before its first instruction. TDH.VP.ENTER only; other leafs are
    /// unaffected. The CPU's banks hold nothing.
    MachineCheck,
}

/// The calls of a leaf that a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// A range of calls, both ends included. The first call is 1.
    Calls(u64, u64),
    /// A probability: the first number out of the second.
    Chance(u64, u64),
}

#[derive(Debug)]
struct Rule {
    fault: Fault,
    /// The leaf; `None` means every leaf.
    leaf: Option<Leaf>,
    when: When,
    calls: AtomicU64,
}

/// A line of hooks that could not be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The line number, from 1.
    pub line: usize,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} of the hooks can't be understood", self.line)
    }
}

impl core::error::Error for ParseError {}

/// The faults of a module. The first matching rule decides.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Vec<Rule>,
    seed: u64,
}

impl Faults {
    /// Adds a rule for calls of `leaf`, or of every leaf.
    pub fn add(&mut self, fault: Fault, leaf: Option<Leaf>, when: When) {
        self.rules.push(Rule {
            fault,
            leaf,
            when,
            calls: AtomicU64::new(0),
        });
    }

    /// Sets the seed of the probabilities. The same seed strikes the same calls, counted by leaf.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// Returns the fault of the call of `leaf` that starts now.
    #[inline(always)]
    pub(crate) fn strike(&self, leaf: Leaf) -> Option<Fault> {
        if self.rules.is_empty() {
            return None;
        }
        self.strike_by_rules(leaf)
    }

    #[inline(never)]
    fn strike_by_rules(&self, leaf: Leaf) -> Option<Fault> {
        let mut struck = None;
        for (number, rule) in (0..).zip(&self.rules) {
            if rule.leaf.is_some_and(|only| only != leaf) {
                continue;
            }
            let call = rule.calls.fetch_add(1, Ordering::Relaxed) + 1;
            let strikes = match rule.when {
                When::Calls(first, last) => (first..=last).contains(&call),
                When::Chance(parts, whole) => {
                    let drawn = mix(mix(self.seed) ^ mix(number << 48 | call));
                    drawn % whole.max(1) < parts
                }
            };
            if strikes && struck.is_none() {
                struck = Some(rule.fault);
            }
        }
        struck
    }

    /// Adds the rule given by four words: fault, leaf, unit and number.
    pub(super) fn parse_rule(&mut self, [fault, leaf, unit, number]: [&str; 4]) -> Option<()> {
        let fault = match fault.split_once(':') {
            Some(("busy", operand)) => Fault::Busy(operand_named(operand)?),
            Some(_) => return None,
            None => match fault {
                "busy" => Fault::Busy(Operand::RCX),
                "interrupted" => Fault::Interrupted,
                "no-entropy" => Fault::NoEntropy,
                "shutdown" => Fault::Shutdown,
                "machine-check" => Fault::MachineCheck,
                _ => return None,
            },
        };
        let leaf = match leaf {
            "*" => None,
            name => Some(*Leaf::ALL.iter().find(|leaf| leaf.name() == name)?),
        };
        let when = match unit {
            "call" => {
                let call = number.parse().ok()?;
                When::Calls(call, call)
            }
            "calls" => {
                let (first, last) = number.split_once('-')?;
                When::Calls(first.parse().ok()?, last.parse().ok()?)
            }
            "chance" => {
                let (parts, whole) = number.split_once('/')?;
                When::Chance(parts.parse().ok()?, whole.parse().ok()?)
            }
            _ => return None,
        };
        self.add(fault, leaf, when);
        Some(())
    }
}

fn operand_named(name: &str) -> Option<Operand> {
    (0..=u8::MAX)
        .map(|number| Operand(number.into()))
        .find(|operand| operand.name() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::Hooks;

    fn struck(faults: &Faults, leaf: Leaf, calls: usize) -> Vec<usize> {
        (1..=calls)
            .filter(|_| faults.strike(leaf).is_some())
            .collect()
    }

    #[test]
    fn a_script_strikes_the_calls_that_it_names() {
        let hooks = Hooks::parse(
            "busy:TDR TDH.MEM.PAGE.AUG call 3; patterns\n\n# a comment\nno-entropy TDH.MNG.CREATE calls 1-2",
        )
        .unwrap();
        assert!(hooks.patterns);
        assert_eq!(struck(&hooks.faults, Leaf::MngCreate, 5), [1, 2]);
        assert_eq!(hooks.faults.strike(Leaf::MemPageAug), None);
        assert_eq!(hooks.faults.strike(Leaf::MemPageAug), None);
        let busy = Some(Fault::Busy(Operand::TDR));
        assert_eq!(hooks.faults.strike(Leaf::MemPageAug), busy);
        assert_eq!(hooks.faults.strike(Leaf::MemPageAug), None);
    }

    #[test]
    fn chance_follows_the_seed() {
        let calls = |seed: u64| {
            let text = alloc::format!("seed {seed}\ninterrupted * chance 1/4");
            struck(&Hooks::parse(&text).unwrap().faults, Leaf::MemTrack, 4000)
        };
        assert_eq!(calls(1), calls(1));
        assert_ne!(calls(1), calls(2));
        assert!((900..1100).contains(&calls(3).len()));
    }

    #[test]
    fn what_is_not_understood_is_told_with_its_line() {
        for text in [
            "\nbuzy TDH.MEM.TRACK call 1",
            "\nbusy TDH.MEM.TRICK call 1",
            "\nbusy TDH.MEM.TRACK call",
            "\nbusy TDH.MEM.TRACK call 1 2",
            "\nbusy:MOON TDH.MEM.TRACK call 1",
            "\nbusy TDH.MEM.TRACK chance 1",
            "\nseed x",
            "\npatterns please",
        ] {
            assert_eq!(
                Hooks::parse(text).err(),
                Some(ParseError { line: 2 }),
                "{text}"
            );
        }
    }
}
