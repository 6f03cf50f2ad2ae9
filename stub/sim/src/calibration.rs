//! What Linux's way was measured to take, and whether the model of it agrees.

use crate::way::{Run, Setup, Way};

/// A measurement of a whole TD's shutdown under Linux (the review of KVM_TDX_TERMINATE_VM on the kernel's mailing list).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// How.
    pub way: Way,
    /// Size of the TD, in GiB.
    pub gib: u64,
    /// vCPUs.
    pub cpus: u32,
    /// How long it took.
    pub seconds: f64,
}

impl Measured {
    const fn new(way: Way, gib: u64, cpus: u32, seconds: f64) -> Self {
        Self {
            way,
            gib,
            cpus,
            seconds,
        }
    }

    /// How far `seconds` is from it, as a share of it.
    pub fn error(&self, seconds: f64) -> f64 {
        seconds / self.seconds - 1.0
    }
}

/// All of them.
pub const MEASURED: [Measured; 6] = [
    Measured::new(Way::LinuxBefore, 18, 4, 72.0),
    Measured::new(Way::LinuxBefore, 107, 32, 517.0),
    Measured::new(Way::LinuxBefore, 400, 64, 5539.0),
    Measured::new(Way::LinuxAfter, 18, 4, 24.0),
    Measured::new(Way::LinuxAfter, 107, 32, 134.0),
    Measured::new(Way::LinuxAfter, 400, 64, 467.0),
];

/// How far the model may be from a measurement.
pub const TOLERANCE: f64 = 0.2;

/// The measurement of what a run simulates, if there is one.
pub fn measured(run: &Run) -> Option<Measured> {
    let Setup { way, gib, cpus, .. } = run.setup;
    MEASURED
        .into_iter()
        .find(|m| (m.way, m.gib, m.cpus) == (way, gib, cpus))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::Site;
    use crate::way::simulate;

    #[test]
    fn the_model_of_linux_comes_within_a_fifth_of_every_measurement() {
        for point in MEASURED {
            let setup = Setup::new(point.way, point.gib, point.cpus).at_most(16);
            let site = Site::new(setup.packages(), setup.room_gib()).unwrap();
            let run = simulate(&site, setup).unwrap();
            assert_eq!(measured(&run), Some(point));
            let error = point.error(run.ended.seconds);
            assert!(
                error.abs() <= TOLERANCE,
                "{} {}: {error}",
                point.way,
                point.gib
            );
        }
    }
}
