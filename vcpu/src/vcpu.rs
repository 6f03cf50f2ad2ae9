//! The state of a vCPU that the CPU which runs it owns.

use seam::abi::Gprs;

use crate::msr::Msrs;
use crate::state::Halt;
use crate::vm::Vm;

/// The host's state of one virtual CPU between two runs. The module holds the vCPU's own registers.
#[derive(Clone, Debug)]
pub struct Vcpu {
    pub(crate) index: u32,
    pub(crate) regs: Gprs,
    pub(crate) msrs: Msrs,
    /// True until the devices' memory is mapped where the guest last said.
    pub(crate) owes_windows: bool,
    /// The guest's MapGPA that is not answered yet: the address without the SHARED bit from which on it continues. The
    /// registers hold the call.
    pub(crate) mapping: Option<u64>,
}

impl Vcpu {
    /// Creates vCPU number `index` of a TD, with x2APIC id `apic_id`, before its first run.
    #[must_use]
    pub fn new(index: u32, apic_id: u32) -> Self {
        Self {
            index,
            regs: Gprs::default(),
            msrs: Msrs::new(apic_id, index == 0),
            owes_windows: false,
            mapping: None,
        }
    }

    /// Creates all vCPUs of a TD, before their first run. If the TD starts from UEFI firmware, their timers count as fast
    /// as such firmware assumes, until the guest selects another mode than the periodic one.
    pub fn all_of(vm: &Vm) -> impl Iterator<Item = Self> {
        let has_firmware = vm.devices().has_fw_cfg();
        (0..).zip(vm.vcpus()).map(move |(index, state)| {
            let mut vcpu = Self::new(index, state.apic_id());
            if has_firmware {
                vcpu.msrs.apic.count_for_firmware();
            }
            vcpu
        })
    }

    /// Returns the vCPU's number in its TD.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Returns the host TSC value at which the vCPU's timer expires. The vCPU must run then, halted or not. `None`
    /// while the vCPU is halted with interrupts disabled, because its timer does not wake it.
    #[must_use]
    pub fn due(&self, vm: &Vm) -> Option<u64> {
        let state = vm.vcpus().get(self.index as usize)?;
        match state.halt() {
            Halt::Blocked => None,
            Halt::No | Halt::Interruptible => self.timer_due(vm),
        }
    }

    pub(crate) fn timer_due(&self, vm: &Vm) -> Option<u64> {
        self.msrs.apic.due().map(|due| vm.clock().host(due))
    }
}
