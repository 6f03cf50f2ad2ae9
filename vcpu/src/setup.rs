//! The host's settings in a vCPU's VMCS, written before the first run.

use seam::abi::metadata::vmcs;
use seam::address::Hpa;
use seam::call::SeamCall;
use seam::error::Error;
use seam::retry::Wait;
use seam::tdh::{Tdh, Tdvpr};

/// Pin-based control: process posted interrupts.
const POSTED_INTERRUPTS: u64 = 1 << 7;

/// The host resources that a vCPU is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// Physical address of its [`Descriptor`](crate::posted::Descriptor).
    pub descriptor: Hpa,
    /// Vector of the notification interrupt, the same on every CPU.
    pub notification: u8,
    /// Root page of the TD's shared EPT.
    pub shared: Hpa,
}

/// Writes the wiring to a vCPU's VMCS, on the CPU that the vCPU is associated with or will be.
///
/// The vector and the descriptor are written before the control that makes the CPU use them.
///
/// # Errors
/// [`Error`] if the module rejects one of the writes.
pub fn wire<C: SeamCall, W: Wait>(
    tdh: &Tdh<'_, C, W>,
    tdvpr: &Tdvpr,
    wiring: Wiring,
) -> Result<(), Error> {
    for (field, value, mask) in [
        (vmcs::SHARED_EPTP, wiring.shared.0, u64::MAX),
        (vmcs::POSTED_INT_VECTOR, wiring.notification.into(), 0xFFFF),
        (vmcs::POSTED_INT_DESCRIPTOR, wiring.descriptor.0, u64::MAX),
        (vmcs::PIN_BASED, POSTED_INTERRUPTS, POSTED_INTERRUPTS),
    ] {
        tdh.vp_wr(tdvpr, field, value, mask)?;
    }
    Ok(())
}
