//! CPUID requirements of the module: the checks of TDH.SYS.INIT, and the comparison of TDH.SYS.LP.INIT.

use seam::abi::{Gprs, Status};

use super::msr::{self, MISC_ENABLE};
use crate::cpuid::{EAX, EBX, ECX, EDX, NUM_ROWS, Registers, Row, Table};
use crate::{Change, Release};

/// IA32_MISC_ENABLE bit that limits CPUID to leafs up to 2.
const LIMIT_CPUID_MAXVAL: u64 = 1 << 22;
/// The lowest acceptable maximum leaf of a CPU.
const LEAST_LAST_LEAF: u32 = 0x1f;
const LAST_EXTENDED_LEAF: u32 = 0x8000_0008;
/// Fixed-function counters that the module can virtualise.
const MAX_FIXED_COUNTERS: u32 = 7;

/// A processor's CPUID and MSRs.
pub(super) struct Processor<C, R> {
    /// The CPUID tables of the module's release.
    pub table: &'static Table,
    /// CPUID by leaf and sub-leaf.
    pub cpuid: C,
    /// RDMSR.
    pub rdmsr: R,
}

impl<C: Fn(u32, u32) -> Registers, R: Fn(u32) -> u64> Processor<C, R> {
    fn row(&self, row: &Row) -> Registers {
        (self.cpuid)(row.leaf, row.sub_leaf.unwrap_or(0))
    }

    fn check_limit(&self) -> Result<(), Status> {
        if (self.rdmsr)(MISC_ENABLE) & LIMIT_CPUID_MAXVAL != 0 {
            return Err(Status::LIMIT_CPUID_MAXVAL_SET);
        }
        Ok(())
    }

    /// Returns whether the processor supports the leaf of a row.
    fn has(&self, row: &Row) -> bool {
        let base = if row.leaf >= 1 << 31 { 1 << 31 } else { 0 };
        row.leaf <= (self.cpuid)(base, 0)[EAX]
    }

    /// Performs the checks of TDH.SYS.INIT. RCX to R10 return leaf, mask and value of an incorrect value.
    pub fn check(&self, release: Release, regs: &mut Gprs) -> Result<(), Status> {
        self.check_limit()?;
        if release.does(Change::STRICT_INIT) {
            msr::check_perfmon(&self.rdmsr)?;
        }
        if (self.cpuid)(0, 0)[EAX] < LEAST_LAST_LEAF {
            return Err(Status::CPUID_LEAF_NOT_SUPPORTED.with_detail(LEAST_LAST_LEAF));
        }
        if (self.cpuid)(1 << 31, 0)[EAX] < LAST_EXTENDED_LEAF {
            return Err(Status::CPUID_LEAF_NOT_SUPPORTED.with_detail(LAST_EXTENDED_LEAF));
        }
        let mut topology = Topology::default();
        let mut counter_sub_leafs = 0;
        for row in self.table.rows {
            let value = if self.has(row) { self.row(row) } else { [0; 4] };
            let mut demand = |mask: Registers, wanted: Registers| {
                if (0..4).all(|i| value[i] & mask[i] == wanted[i]) {
                    return Ok(());
                }
                regs.rcx = row.id();
                (regs.rdx, regs.r8) = halves(mask);
                (regs.r9, regs.r10) = halves(wanted);
                Err(Status::INCORRECT_CPUID_VALUE)
            };
            demand(row.check_mask, row.check_value)?;
            match (row.leaf, row.sub_leaf) {
                (4, Some(3)) => topology.l3_sharing = value[EAX] >> 14 & 0xfff,
                (0xa, _) => {
                    if value[EAX] & 0xff < 5 {
                        demand([0xf, 0, 0, 0], [5, 0, 0, 0])?;
                    }
                    if value[EDX] & 0x1f > MAX_FIXED_COUNTERS {
                        demand([0, 0, 0, 0x1f], [0, 0, 0, MAX_FIXED_COUNTERS])?;
                    }
                }
                (0x23, Some(0)) => counter_sub_leafs = value[EAX],
                (0x23, Some(sub_leaf)) if release.does(Change::STRICT_INIT) => {
                    let has_leaf = (self.cpuid)(7, 1)[EAX] >> 8 & 1 != 0;
                    if has_leaf && counter_sub_leafs >> sub_leaf & 1 == 0 {
                        demand([u32::MAX; 4], [0; 4])?;
                    }
                }
                (0x15, _) if value[EBX] == 0 => {
                    return Err(Status::CPUID_LEAF_NOT_SUPPORTED.with_detail(0x15));
                }
                (0x1f, Some(_)) => topology.level(value)?,
                (LAST_EXTENDED_LEAF, _) => {
                    let has_la57 = (self.cpuid)(7, 0)[ECX] >> 16 & 1 != 0;
                    let bits = if has_la57 { 57 } else { 48 };
                    demand([0xff00, 0, 0, 0], [bits << 8, 0, 0, 0])?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Samples the values by row of the table. TDH.SYS.LP.INIT compares them.
    pub fn sample(&self) -> [Registers; NUM_ROWS] {
        let mut sample = [[0; 4]; NUM_ROWS];
        for (value, row) in sample.iter_mut().zip(self.table.rows) {
            *value = self.row(row);
        }
        sample
    }

    /// Compares the processor with the sample of TDH.SYS.INIT, for TDH.SYS.LP.INIT. RCX, RDX, R8 return leaf and mask
    /// of a difference.
    pub fn compare(&self, sample: &[Registers; NUM_ROWS], regs: &mut Gprs) -> Result<(), Status> {
        self.check_limit()?;
        for (row, sampled) in self
            .table
            .rows
            .iter()
            .zip(sample)
            .filter(|(row, _)| self.has(row))
        {
            let here = self.row(row);
            if (0..4).any(|i| (here[i] ^ sampled[i]) & row.same[i] != 0) {
                regs.rcx = row.id();
                (regs.rdx, regs.r8) = halves(row.same);
                return Err(Status::INCONSISTENT_CPUID_FIELD);
            }
        }
        Ok(())
    }
}

/// Returns EBX:EAX and EDX:ECX.
fn halves(registers: Registers) -> (u64, u64) {
    let pair =
        |low: usize, high: usize| u64::from(registers[low]) | u64::from(registers[high]) << 32;
    (pair(EAX, EBX), pair(ECX, EDX))
}

/// The topology of leaf 0x1F, level by level.
#[derive(Default)]
struct Topology {
    /// CPUID(4).EAX[25:14] of the L3 cache: the highest APIC id among the processors that share it.
    l3_sharing: u32,
    last_type: u32,
    shift: u32,
    levels: u32,
    has_core: bool,
    ended: bool,
}

impl Topology {
    /// Processes the next sub-leaf. At the first invalid one, the last shift is that of the package. The whole package
    /// must share the L3 cache, because that is the scope of WBINVD.
    fn level(&mut self, [eax, _, ecx, _]: Registers) -> Result<(), Status> {
        const CORE: u32 = 2;
        const LAST: u32 = 5;
        let level_type = ecx >> 8 & 0xff;
        if level_type != 0 {
            if level_type <= self.last_type || level_type > LAST {
                return Err(Status::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED);
            }
            self.last_type = level_type;
            self.shift = eax & 0x1f;
            self.has_core |= level_type == CORE;
            self.levels += 1;
            return Ok(());
        }
        if self.levels == 0 || !self.has_core {
            return Err(Status::CPUID_LEAF_NOT_SUPPORTED);
        }
        if !self.ended {
            self.ended = true;
            if self.l3_sharing >> self.shift.saturating_sub(1) != 1 {
                return Err(Status::INVALID_WBINVD_SCOPE);
            }
        }
        self.last_type = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_l3_cache_must_belong_to_the_whole_package() {
        let levels = [[1, 2, 0x100, 0], [7, 128, 0x201, 0], [0, 0, 2, 0]];
        let scan = |l3_sharing| {
            let mut topology = Topology {
                l3_sharing,
                ..Topology::default()
            };
            levels.iter().try_for_each(|level| topology.level(*level))
        };
        assert_eq!(scan(0x7f), Ok(()));
        assert_eq!(scan(0x3f), Err(Status::INVALID_WBINVD_SCOPE));
    }

    #[test]
    fn topology_levels_ascend() {
        let mut topology = Topology::default();
        assert_eq!(topology.level([7, 0, 0x200, 0]), Ok(()));
        assert_eq!(
            topology.level([1, 0, 0x101, 0]),
            Err(Status::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED)
        );
    }
}
