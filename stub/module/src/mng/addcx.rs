//! TDH.MNG.ADDCX: adds the pages of a TDCS.

use seam::abi::{Gprs, Leaf, Operand, PageType, Status, TDCS_PAGES};

use super::keys::random_256;
use crate::call::Call;
use crate::field::Structure;
use crate::lock::Mode;
use crate::ownership::Taken;
use crate::sept::{Entry, L2Entry};
use crate::td::{Lifecycle, Tdcs, op_state_incorrect, tdcs, tdr};
use crate::{Machine, Point, operand};

/// TDH.MNG.ADDCX: adds RCX as the next page of the TDCS of the TD in RDX.
pub fn addcx<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (_held, root) = operand::tdr(cx, regs.rdx, Operand::RDX, Mode::Exclusive)?;
    if root.is_fatal() {
        return Err(Status::TD_FATAL);
    }
    if root.lifecycle() != Lifecycle::KeysConfigured {
        return Err(Status::TD_KEYS_NOT_CONFIGURED);
    }
    let index = root.num_tdcx();
    if index >= TDCS_PAGES.1 {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    let page = operand::private_page(cx, regs.rcx, Operand::RCX, Mode::Exclusive, PageType::Nda)?;
    let taken = Taken::take(cx, &page, PageType::Tdcx, root.pa());
    let complete = index + 1;
    if complete == TDCS_PAGES.0 {
        // The TDCS is usable from here on: it gets the key of a future migration session.
        random_256(cx)?;
    } else if complete > TDCS_PAGES.0
        && !Tdcs::of(cx.machine, root).op_state().allows(Leaf::MngAddcx)
    {
        return Err(op_state_incorrect(
            cx,
            Tdcs::of(cx.machine, root).op_state(),
        ));
    }
    cx.reached(Point::Movdir64b);
    cx.machine.fill_page(
        regs.rcx,
        match index {
            // Every MSR access exits until TDH.MNG.INIT fills the bitmaps.
            tdcs::page::MSR_BITMAPS => u64::MAX,
            tdcs::page::SEPT_ROOT => Entry::FREE.0,
            _ => L2Entry::FREE.0,
        },
    );
    let keyed = cx.machine.platform().with_keyid(regs.rcx, root.hkid());
    root.set(tdr::field::TDCX_PA.at(index), keyed);
    root.set(tdr::field::NUM_TDCX, u64::from(complete));
    root.add_children(1);
    taken.keep();
    Ok(())
}
