//! Threads, cores and packages, derived from x2APIC ids.

/// The layout of an x2APIC id: thread, core and package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shifts {
    /// Bits of the thread number.
    pub core: u32,
    /// Bits of thread and core number together.
    pub package: u32,
}

impl Shifts {
    /// Reads the first two sub-leaves of CPUID leaf 0xB (EAX 4:0).
    #[must_use]
    pub fn from_leaf_b(threads: [u32; 4], cores: [u32; 4]) -> Self {
        let core = threads[0] & 0x1F;
        Self {
            core,
            package: (cores[0] & 0x1F).max(core),
        }
    }

    /// Returns the package of the processor with this x2APIC id.
    #[must_use]
    pub fn package_of(self, apic_id: u32) -> u32 {
        apic_id >> self.package
    }
}
