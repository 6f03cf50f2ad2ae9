//! TDH.EXPORT.*, TDH.IMPORT.*, TDH.MIG.*: migration of a TD to another platform.
//!
//! Migration is not implemented, so no TD is ever in a migration op-state. These leafs only have their error paths, and
//! the migration streams, which are pages of the TD.

use seam::abi::{Attributes, Gprs, Leaf, Operand, PageType, Status};

use crate::call::Call;
use crate::field::Structure;
use crate::lock::Mode;
use crate::sept::Target;
use crate::td::{Td, TdVcpu, Tdcs, lock_op_state, op_state_incorrect, tdcs};
use crate::{Machine, Point, operand, ownership};

/// Maximum number of migration streams of a TD.
const MAX_STREAMS: u64 = 512;

/// Runs a migration leaf.
pub fn run<M: Machine>(cx: Call<'_, M>, leaf: Leaf, regs: &mut Gprs) -> Result<(), Status> {
    match leaf {
        Leaf::MigStreamCreate => stream_create(cx, regs),
        Leaf::ExportUnblockw => export_unblockw(cx, regs),
        Leaf::ExportStateVp | Leaf::ImportStateVp => state_vp(cx, leaf, regs),
        _ => refuse(cx, leaf, regs),
    }
}

/// Makes the checks that come first, and returns the reason for the refusal.
fn refuse<M: Machine>(cx: Call<'_, M>, leaf: Leaf, regs: &mut Gprs) -> Result<(), Status> {
    let (pa, operand) = match leaf {
        Leaf::ExportBlockw | Leaf::ExportRestore | Leaf::ExportMem | Leaf::ImportMem => {
            (regs.rdx, Operand::RDX)
        }
        _ => (regs.rcx, Operand::RCX),
    };
    if matches!(
        leaf,
        Leaf::ExportStateImmutable
            | Leaf::ExportStateTd
            | Leaf::ImportStateImmutable
            | Leaf::ImportStateTd
    ) {
        regs.rdx = 0;
    }
    let td = Td::shared(cx, pa, operand, leaf)?;
    // Only leafs that start an operation get here.
    match leaf {
        Leaf::ExportStateImmutable if !is_migratable(&td.tdcs) => Err(Status::TD_NOT_MIGRATABLE),
        Leaf::ExportStateImmutable | Leaf::ImportStateImmutable => {
            Err(Status::MIN_MIGS_NOT_CREATED)
        }
        _ => Err(Status::OPERAND_INVALID.with(Operand::RCX)),
    }
}

fn is_migratable<M: Machine>(tdcs: &Tdcs<'_, M>) -> bool {
    tdcs.get(tdcs::field::ATTRIBUTES) & Attributes::MIGRATABLE.bits() != 0
}

/// TDH.EXPORT.STATE.VP and TDH.IMPORT.STATE.VP. The TD is never in the required state.
fn state_vp<M: Machine>(cx: Call<'_, M>, leaf: Leaf, regs: &mut Gprs) -> Result<(), Status> {
    regs.rdx = 0;
    let vcpu = TdVcpu::take(cx, regs.rcx, Operand::RCX, Mode::Exclusive)?;
    let (tdcs, _op_state) = lock_op_state(cx, vcpu.tdr, leaf)?;
    Err(op_state_incorrect(cx, tdcs.op_state()))
}

/// TDH.EXPORT.UNBLOCKW: undoes a write block, which no page ever has.
fn export_unblockw<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (rcx, rdx) = (regs.rcx, regs.rdx);
    (regs.rcx, regs.rdx) = (0, 0);
    let td = Td::shared(cx, rdx, Operand::RDX, Leaf::ExportUnblockw)?;
    let at = operand::gpa_level(rcx, 0..=0)?;
    let target = Target::take(cx, &td, at, Mode::Shared, regs)?;
    Err(target.refuse(Status::EPT_ENTRY_STATE_INCORRECT, regs))
}

/// TDH.MIG.STREAM.CREATE: RCX becomes a migration stream of the TD in RDX.
fn stream_create<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (_held, root) = operand::tdr(cx, regs.rdx, Operand::RDX, Mode::Shared)?;
    root.check_build_state()?;
    let tdcs = Tdcs::of(cx.machine, root);
    let _op_state = tdcs
        .op_state_lock()
        .acquire(Mode::Exclusive)
        .map_err(|_| Status::OPERAND_BUSY.with(Operand::OP_STATE))?;
    if !tdcs.op_state().allows(Leaf::MigStreamCreate) {
        return Err(op_state_incorrect(cx, tdcs.op_state()));
    }
    let streams = tdcs.get(tdcs::field::NUM_MIGS);
    if streams >= MAX_STREAMS {
        return Err(Status::MAX_MIGS_NUM_EXCEEDED);
    }
    let page = operand::private_page(cx, regs.rcx, Operand::RCX, Mode::Exclusive, PageType::Nda)?;
    ownership::take(cx, &page, PageType::Tdcx, root.pa());
    cx.reached(Point::Movdir64b);
    cx.machine.fill_page(regs.rcx, 0);
    tdcs.set(tdcs::field::NUM_MIGS, streams + 1);
    root.add_children(1);
    Ok(())
}
