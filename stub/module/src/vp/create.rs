//! TDH.VP.CREATE and TDH.VP.ADDCX: the pages of a vCPU.

use seam::abi::{Gprs, Leaf, Operand, PageType, Status, TDVPS_PAGES};

use super::associate::state_incorrect;
use crate::call::Call;
use crate::field::Structure;
use crate::lock::Mode;
use crate::td::tdvps::{NO_LP, field};
use crate::td::{Td, TdVcpu, Tdvps, VcpuState, lock_op_state};
use crate::{Machine, Point, operand, ownership};

/// Pages of a TDVPS that hold the MSR bitmaps of an L2 VM. Until they are set, every MSR access exits.
const L2_MSR_BITMAPS: [u32; 3] = [7, 10, 13];

/// TDH.VP.CREATE: RCX = TDVPR, RDX = TDR.
pub fn create<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let td = Td::shared(cx, regs.rdx, Operand::RDX, Leaf::VpCreate)?;
    let page = operand::private_page(cx, regs.rcx, Operand::RCX, Mode::Exclusive, PageType::Nda)?;
    ownership::take(cx, &page, PageType::Tdvpr, td.tdr.pa());
    cx.reached(Point::Movdir64b);
    cx.machine.fill_page(regs.rcx, 0);
    let tdvps = Tdvps::at(cx.machine, regs.rcx);
    let guarded = cx.machine.platform().with_keyid(regs.rcx, td.tdr.hkid());
    tdvps.set(field::NUM_TDVPS_PAGES, 1);
    tdvps.set(field::ASSOC_LPID, NO_LP);
    tdvps.set(field::TDVPS_PAGE_PA, guarded);
    td.tdr.add_children(1);
    Ok(())
}

/// TDH.VP.ADDCX: RCX = page, RDX = TDVPR.
pub fn addcx<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let vcpu = TdVcpu::take(cx, regs.rdx, Operand::RDX, Mode::Exclusive)?;
    let _op_state = lock_op_state(cx, vcpu.tdr, Leaf::VpAddcx)?;
    if vcpu.tdvps.state() != VcpuState::Uninitialized {
        return Err(state_incorrect(cx, &vcpu.tdvps));
    }
    let number = vcpu.tdvps.num_pages();
    if number >= TDVPS_PAGES.1 {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    let page = operand::private_page(cx, regs.rcx, Operand::RCX, Mode::Exclusive, PageType::Nda)?;
    ownership::take(cx, &page, PageType::Tdcx, vcpu.tdr.pa());
    cx.reached(Point::Movdir64b);
    let content = if L2_MSR_BITMAPS.contains(&number) {
        u64::MAX
    } else {
        0
    };
    cx.machine.fill_page(regs.rcx, content);
    let guarded = cx.machine.platform().with_keyid(regs.rcx, vcpu.tdr.hkid());
    vcpu.tdvps.set(field::TDVPS_PAGE_PA.at(number), guarded);
    vcpu.tdvps
        .set(field::NUM_TDVPS_PAGES, u64::from(number) + 1);
    vcpu.tdr.add_children(1);
    Ok(())
}
