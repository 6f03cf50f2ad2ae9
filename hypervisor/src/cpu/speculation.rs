//! Mitigations of speculative execution attacks on the hypervisor: chosen by enumeration, switched on once on each CPU.
//!
//! The hypervisor executes no code at CPL 3, and the attackers are TDs. Hardware that runs a TDX module is free of most
//! of these defects: TDH.SYS.INIT refuses a CPU without RDCL_NO, IBRS_ALL, MDS_NO, TAA_NO and the like. SEAMCALL costs
//! nothing here: the module saves the host's IA32_SPEC_CTRL when it is called, and restores it when it returns (TDX
//! module 1.5.01's source; Linux writes the register nowhere around TDH.VP.ENTER either). The timer's look at the CPU
//! checks that this is true.
//!
//! Sources: Intel SDM volume 4, IA32_SPEC_CTRL and IA32_ARCH_CAPABILITIES; volume 2A, CPUID leaf 7.
#![expect(unsafe_code, reason = "IA32_SPEC_CTRL is an MSR")]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use seam::{
    abi::x86::msr::{ARCH_CAPABILITIES, SPEC_CTRL},
    platform::Registers,
};

use crate::msr::{self, ThisCpu};

/// An attack, and what stands against it on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mitigation {
    /// The attack.
    pub attack: &'static str,
    /// The mitigation.
    pub state: State,
}

/// The protection against an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The CPU reports that it is not affected, by this bit.
    NotAffected(&'static str),
    /// This mitigation is on.
    On(&'static str),
    /// Nothing, for this reason.
    Off(&'static str),
}

/// The mitigations of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The bits to set in IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// Each attack.
    pub mitigations: [Mitigation; 9],
}

const IBRS: u64 = 1 << 0;
const RRSBA_DIS_S: u64 = 1 << 6;
const BHI_DIS_S: u64 = 1 << 10;

/// Bits of IA32_ARCH_CAPABILITIES.
mod capability {
    pub const RDCL_NO: u64 = 1 << 0;
    pub const IBRS_ALL: u64 = 1 << 1;
    pub const MDS_NO: u64 = 1 << 5;
    pub const TAA_NO: u64 = 1 << 8;
    /// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO.
    pub const MMIO_NO: u64 = 7 << 13;
    pub const RRSBA: u64 = 1 << 19;
    pub const BHI_NO: u64 = 1 << 20;
    pub const GDS_CTRL: u64 = 1 << 25;
    pub const GDS_NO: u64 = 1 << 26;
    pub const RFDS_NO: u64 = 1 << 27;
    pub const ITS_NO: u64 = 1 << 62;
}

/// Chooses the mitigations by what the CPU enumerates.
pub fn plan(registers: &impl Registers) -> Plan {
    let edx = |sub_leaf| registers.cpuid(7, sub_leaf)[3];
    let has = |register: u32, bit: u32| register >> bit & 1 != 0;
    let (basic, further) = (edx(0), edx(2));
    let capabilities = match has(basic, 29) {
        true => registers.rdmsr(ARCH_CAPABILITIES).unwrap_or(0),
        false => 0,
    };
    let is = |bits: u64| capabilities & bits == bits;
    let (has_ibrs, has_rrsba_ctrl, has_bhi_ctrl) =
        (has(basic, 26), has(further, 2), has(further, 4));

    let mut spec_ctrl = 0;
    let mut set = |there: bool, bit: u64| {
        spec_ctrl |= if there { bit } else { 0 };
    };
    set(has_ibrs, IBRS);
    set(
        has_ibrs && has_rrsba_ctrl && is(capability::RRSBA),
        RRSBA_DIS_S,
    );
    set(
        has_ibrs && has_bhi_ctrl && !is(capability::BHI_NO),
        BHI_DIS_S,
    );

    let unaffected = |bits: u64, name: &'static str, otherwise: State| match is(bits) {
        true => State::NotAffected(name),
        false => otherwise,
    };
    let no_bit = State::Off("the CPU does not report that it is free of it");
    let branch_targets = match (has_ibrs, is(capability::IBRS_ALL)) {
        (true, true) => State::On("enhanced IBRS"),
        (true, false) => State::On("IBRS"),
        (false, _) => State::Off("the CPU has no IBRS"),
    };
    let history = match spec_ctrl & BHI_DIS_S {
        0 => State::Off("the CPU has no BHI_DIS_S"),
        _ => State::On("BHI_DIS_S"),
    };
    let returns = match (is(capability::RRSBA), spec_ctrl & RRSBA_DIS_S) {
        (false, _) => State::NotAffected("RRSBA is clear"),
        (true, 0) => State::Off("the CPU has no RRSBA_DIS_S"),
        (true, _) => State::On("RRSBA_DIS_S"),
    };
    let gather = match is(capability::GDS_CTRL) {
        true => State::On("microcode"),
        false => no_bit,
    };
    let mitigation = |attack, state| Mitigation { attack, state };
    Plan {
        spec_ctrl,
        mitigations: [
            mitigation("branch target injection", branch_targets),
            mitigation(
                "branch history injection",
                unaffected(capability::BHI_NO, "BHI_NO", history),
            ),
            mitigation("alternate return prediction", returns),
            mitigation(
                "indirect target selection",
                unaffected(capability::ITS_NO, "ITS_NO", no_bit),
            ),
            mitigation(
                "L1 terminal fault",
                unaffected(capability::RDCL_NO, "RDCL_NO", no_bit),
            ),
            mitigation(
                "microarchitectural data sampling",
                unaffected(capability::MDS_NO, "MDS_NO", no_bit),
            ),
            mitigation(
                "TSX asynchronous abort",
                unaffected(capability::TAA_NO, "TAA_NO", no_bit),
            ),
            mitigation(
                "MMIO stale data",
                unaffected(capability::MMIO_NO, "FBSDP_NO", no_bit),
            ),
            mitigation(
                "gather and register file data sampling",
                unaffected(
                    capability::GDS_NO | capability::RFDS_NO,
                    "GDS_NO, RFDS_NO",
                    gather,
                ),
            ),
        ],
    }
}

/// One CPU's IA32_SPEC_CTRL.
#[derive(Debug, Default)]
pub struct Speculation {
    wanted: AtomicU64,
    repairs: AtomicU64,
}

impl Speculation {
    /// Returns how often the register was found changed, and restored.
    pub fn repairs(&self) -> u64 {
        self.repairs.load(Relaxed)
    }
}

/// Switches the mitigations on, on the running CPU.
pub fn start_here(cpu: &super::Cpu) {
    let wanted = plan(&ThisCpu).spec_ctrl;
    if wanted == 0 {
        return;
    }
    let before = msr::read(SPEC_CTRL).unwrap_or(0);
    // SAFETY: the CPU enumerates the bits, and they affect nothing but prediction.
    if unsafe { msr::try_write(SPEC_CTRL, before | wanted) }.is_ok() {
        cpu.speculation.wanted.store(wanted, Relaxed);
    }
}

/// Checks that the running CPU's register is as it was set, and restores it.
pub(super) fn check_here(cpu: &super::Cpu) {
    let wanted = cpu.speculation.wanted.load(Relaxed);
    if wanted == 0 {
        return;
    }
    let now = msr::read(SPEC_CTRL).unwrap_or(0);
    if now & wanted != wanted {
        cpu.speculation.repairs.fetch_add(1, Relaxed);
        // SAFETY: as in `start_here`.
        _ = unsafe { msr::try_write(SPEC_CTRL, now | wanted) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPUID (7, 0) and (7, 2) EDX, and IA32_ARCH_CAPABILITIES.
    struct Cpu(u32, u32, Option<u64>);

    impl Registers for Cpu {
        fn cpuid(&self, leaf: u32, sub_leaf: u32) -> [u32; 4] {
            match (leaf, sub_leaf) {
                (7, 0) => [2, 0, 0, self.0],
                (7, 2) => [0, 0, 0, self.1],
                _ => [0; 4],
            }
        }
        fn rdmsr(&self, msr: u32) -> Option<u64> {
            assert_eq!(msr, ARCH_CAPABILITIES);
            self.2
        }
    }

    fn state(plan: &Plan, attack: &str) -> State {
        let found = plan.mitigations.iter().find(|m| m.attack == attack);
        found.unwrap().state
    }

    /// Emerald Rapids: enhanced IBRS with RRSBA, and controls for both predictors.
    #[test]
    fn a_server_with_every_control_uses_them() {
        let free = capability::RDCL_NO | capability::MDS_NO | capability::TAA_NO;
        let capabilities = free
            | capability::MMIO_NO
            | capability::IBRS_ALL
            | capability::RRSBA
            | capability::GDS_CTRL;
        let plan = plan(&Cpu(1 << 26 | 1 << 29, 0x1F, Some(capabilities)));
        assert_eq!(plan.spec_ctrl, IBRS | RRSBA_DIS_S | BHI_DIS_S);
        let on = |attack| state(&plan, attack);
        assert_eq!(on("branch target injection"), State::On("enhanced IBRS"));
        assert_eq!(on("branch history injection"), State::On("BHI_DIS_S"));
        assert_eq!(on("alternate return prediction"), State::On("RRSBA_DIS_S"));
        assert_eq!(on("L1 terminal fault"), State::NotAffected("RDCL_NO"));
        assert_eq!(on("MMIO stale data"), State::NotAffected("FBSDP_NO"));
        assert!(matches!(on("indirect target selection"), State::Off(_)));
    }

    #[test]
    fn what_is_not_enumerated_is_neither_written_nor_read() {
        // IA32_ARCH_CAPABILITIES is not enumerated, so its contents do not count.
        let plan = plan(&Cpu(0, 0x1F, Some(u64::MAX)));
        assert_eq!(plan.spec_ctrl, 0);
        assert!(matches!(
            state(&plan, "branch target injection"),
            State::Off(_)
        ));
        assert!(matches!(state(&plan, "L1 terminal fault"), State::Off(_)));
    }

    #[test]
    fn a_cpu_without_the_defect_needs_no_control() {
        let plan = plan(&Cpu(1 << 26 | 1 << 29, 0x1F, Some(!capability::RRSBA)));
        assert_eq!(plan.spec_ctrl, IBRS);
        let states = plan.mitigations.iter();
        let open = states.filter(|m| matches!(m.state, State::Off(_)));
        assert_eq!(open.count(), 0);
    }

    #[test]
    fn one_clear_bit_of_a_group_means_affected() {
        let some = capability::MMIO_NO & !(1 << 14);
        let plan = plan(&Cpu(1 << 29, 0, Some(some)));
        assert!(matches!(state(&plan, "MMIO stale data"), State::Off(_)));
    }
}
