//! TLB tracking: determines the translations that no processor can hold any more.

use seam::abi::{Operand, Status};

use super::Tdcs;
use super::tdcs::field;
use crate::Machine;
use crate::field::Structure;
use crate::lock::Mode;

/// Marks a BEPOCH used by migration.
const MIGRATION: u64 = 1 << 63;

/// Returns whether every vCPU that was inside the TD when a page was blocked at `bepoch` has since left it.
pub fn is_tracked<M: Machine>(tdcs: &Tdcs<'_, M>, bepoch: u64) -> bool {
    if bepoch & MIGRATION != 0 {
        return false;
    }
    // The epoch and its counts must be consistent.
    let (epoch, inside) = loop {
        let epoch = tdcs.get(field::TD_EPOCH);
        let inside = tdcs.get(field::REFCOUNT.at(bepoch as u32 & 1));
        if tdcs.get(field::TD_EPOCH) == epoch {
            break (epoch, inside);
        }
    };
    let previous = epoch.wrapping_sub(1);
    bepoch < previous || bepoch == previous && inside == 0
}

/// Starts the next epoch.
///
/// # Errors
/// OPERAND_BUSY with TD_EPOCH; PREVIOUS_TLB_EPOCH_BUSY while a vCPU is inside that entered before the current epoch.
pub fn advance<M: Machine>(tdcs: &Tdcs<'_, M>) -> Result<(), Status> {
    let _lock = tdcs
        .epoch_lock()
        .acquire(Mode::Exclusive)
        .map_err(|_| Status::OPERAND_BUSY.with(Operand::TD_EPOCH))?;
    let epoch = tdcs.get(field::TD_EPOCH);
    if tdcs.get(field::REFCOUNT.at(1 - (epoch as u32 & 1))) != 0 {
        return Err(Status::PREVIOUS_TLB_EPOCH_BUSY);
    }
    tdcs.set(field::TD_EPOCH, epoch + 1);
    Ok(())
}
