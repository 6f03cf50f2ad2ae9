//! Which CPU and which memory is in which package.

use std::ops::Range;

/// CPUs of a full package: a Xeon Platinum 8480+ has 56 cores.
pub const CPUS_PER_PACKAGE: u32 = 56;

/// The packages of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// CPUs that take part.
    pub cpus: u32,
    /// Packages that they are in; as few as can hold them, and evenly filled.
    pub packages: u32,
    /// Physical memory for TDs, of which each package has an equal share, one behind the other.
    pub memory: Range<u64>,
}

impl Topology {
    /// Of a machine with so many CPUs.
    pub fn new(cpus: u32, memory: Range<u64>) -> Self {
        Self {
            cpus,
            packages: Self::packages_of(cpus),
            memory,
        }
    }

    /// Packages that so many CPUs are in.
    pub const fn packages_of(cpus: u32) -> u32 {
        cpus.div_ceil(CPUS_PER_PACKAGE)
    }

    /// The package of a CPU.
    pub const fn package(&self, cpu: u32) -> u32 {
        cpu * self.packages / self.cpus
    }

    /// The number by which the module knows a CPU: in a full machine, of which these are a part.
    pub const fn lp(&self, cpu: u32) -> u32 {
        let package = self.package(cpu);
        let first = (package * self.cpus).div_ceil(self.packages);
        package * CPUS_PER_PACKAGE + cpu - first
    }

    /// The package whose memory an address is in.
    pub fn package_of_memory(&self, hpa: u64) -> u32 {
        let share = (self.memory.end - self.memory.start).div_ceil(self.packages.into());
        let number = hpa.saturating_sub(self.memory.start) / share;
        (number as u32).min(self.packages - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_and_memory_are_spread_evenly() {
        let machine = Topology::new(64, 4..104);
        assert_eq!(machine.packages, 2);
        assert_eq!(
            [0, 31, 32, 63].map(|cpu| machine.package(cpu)),
            [0, 0, 1, 1]
        );
        assert_eq!(
            [4, 53, 54, 103].map(|at| machine.package_of_memory(at)),
            [0, 0, 1, 1]
        );
        assert_eq!([0, 31, 32, 63].map(|cpu| machine.lp(cpu)), [0, 31, 56, 87]);
        let full = Topology::new(168, 0..1);
        assert!((0..168).all(|cpu| full.lp(cpu) == cpu));
        assert_eq!([1, 56, 57, 224].map(Topology::packages_of), [1, 1, 2, 4]);
    }
}
