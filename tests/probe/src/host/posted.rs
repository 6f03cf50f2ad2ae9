//! Posted interrupts: the descriptor by which a vCPU is interrupted.

use seam::abi::metadata::vmcs;

use super::seat::Seat;
use crate::Check;
use crate::attempt::{read, set_bits};
use crate::td::Td;

/// The vector that says that a descriptor has something new.
pub const NOTIFICATION: u8 = 0xE3;
/// Outstanding notification, in the word after the requests.
const OUTSTANDING: u64 = 1;
const CONTROL: u64 = 32;

/// Has vCPU `number` take its interrupts from the descriptor at `page`.
pub fn enable(td: &Td, number: usize, page: u64) -> Check {
    const PROCESS_POSTED_INTERRUPTS: u64 = 1 << 7;
    let tdvpr = td.vcpus[number];
    td.write_field(tdvpr, vmcs::POSTED_INT_VECTOR, NOTIFICATION.into())?;
    td.write_field(tdvpr, vmcs::POSTED_INT_DESCRIPTOR, page)?;
    td.write_bits(
        tdvpr,
        vmcs::PIN_BASED,
        PROCESS_POSTED_INTERRUPTS,
        PROCESS_POSTED_INTERRUPTS,
    )
}

impl Seat {
    /// Returns true if the vCPU has not looked at its descriptor since something was posted.
    pub fn is_outstanding(&self) -> bool {
        read(self.descriptor() + CONTROL) & OUTSTANDING != 0
    }

    /// Requests a vector. Whether the vCPU has to be notified.
    pub fn post(&self, vector: u8) -> bool {
        let at = self.descriptor();
        set_bits(at + u64::from(vector / 64) * 8, 1 << (vector % 64));
        set_bits(at + CONTROL, OUTSTANDING) & OUTSTANDING == 0
    }
}
