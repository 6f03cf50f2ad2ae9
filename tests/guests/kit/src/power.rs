//! Ways for a guest to end itself: ports of QEMU's q35, which the hypervisor emulates.

use crate::vcpu;
use crate::vmcall;

/// PM1 control: sleep now, of type S5.
const PM1_CONTROL: u16 = 0x604;
const SLEEP: u32 = 1 << 13;
/// The chipset's reset control: reset the CPU.
const RESET_CONTROL: u16 = 0xCF9;
const RESET: u32 = 6;

/// Switches the TD off.
pub fn off() -> ! {
    // A host without that port leaves the guest halted.
    let _ = vmcall::io_out(PM1_CONTROL, 2, SLEEP);
    vcpu::halt()
}

/// Requests a restart of the TD.
pub fn reset() -> ! {
    let _ = vmcall::io_out(RESET_CONTROL, 1, RESET);
    vcpu::halt()
}
