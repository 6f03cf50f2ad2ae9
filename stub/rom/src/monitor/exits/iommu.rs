//! The registers of the VT-d unit.

use stub_rom::insn::{Transfer, finish_load};

use super::{finish, step};
use crate::monitor::lp::Lp;
use crate::monitor::{iommu, reach};

/// Handles an access to the page of the unit's registers at `pa`.
pub fn access(lp: &mut Lp, pa: u64) {
    let offset = pa - iommu::BASE;
    let instruction = lp.instruction();
    let transfer = instruction.and_then(|i| Some((Transfer::of(&i, &lp.gprs)?, i.len())));
    let Some((transfer, length)) = transfer else {
        // Any other instruction is executed by the processor itself, on the registers.
        step::over_registers(lp, pa);
        return;
    };
    match transfer {
        Transfer::Load {
            register,
            size,
            signed,
        } => {
            let value = iommu::load(offset, size);
            finish_load(&mut lp.gprs, register, size, signed, value);
        }
        Transfer::Store { value, size } => {
            iommu::store(offset, value, size);
            reach::check(lp);
        }
    }
    finish(lp, length, Ok(()));
}
