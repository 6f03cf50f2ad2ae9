//! Getting at a TD: its TDR locked, its state checked, its TDCS at hand.

use seam::abi::{Leaf, Operand, PageSize, PageType, Status};

use super::{LaneGuard, Tdcs, Tdr, Tdvps};
use crate::call::Call;
use crate::lock::{Guard, Mode};
use crate::pamt::{Held, Pamt};
use crate::{Machine, operand};

/// A TD whose TDR, and mostly also its op-state, are locked until this is dropped.
pub struct Td<'m, M> {
    /// Its root.
    pub tdr: Tdr<'m>,
    /// What it is.
    pub tdcs: Tdcs<'m, M>,
    // Locks are released in the order of these fields.
    _op_state: Option<Guard<'m>>,
    _tdr: Held<'m>,
}

impl<'m, M: Machine> Td<'m, M> {
    /// The TD named by an operand, its TDR and its op-state held shared, in a state that allows `leaf`.
    ///
    /// # Errors
    /// Those of an explicit TDR operand, of the build state, and of the op-state, in this order.
    pub fn shared(cx: Call<'m, M>, pa: u64, operand: Operand, leaf: Leaf) -> Result<Self, Status> {
        let (held, tdr) = operand::tdr(cx, pa, operand, Mode::Shared)?;
        let (tdcs, op_state) = lock_op_state(cx, tdr, leaf)?;
        Ok(Self {
            tdr,
            tdcs,
            _op_state: Some(op_state),
            _tdr: held,
        })
    }

    /// The TD named by an operand, its TDR held exclusively (which makes the op-state lock superfluous), in a state
    /// that allows `leaf`.
    ///
    /// # Errors
    /// Those of an explicit TDR operand, of the build state, and of the op-state, in this order.
    pub fn exclusive(
        cx: Call<'m, M>,
        pa: u64,
        operand: Operand,
        leaf: Leaf,
    ) -> Result<Self, Status> {
        let (held, tdr) = operand::tdr(cx, pa, operand, Mode::Exclusive)?;
        tdr.check_build_state()?;
        let tdcs = Tdcs::of(cx.machine, tdr);
        if !tdcs.op_state().allows(leaf) {
            return Err(Status::OP_STATE_INCORRECT);
        }
        Ok(Self {
            tdr,
            tdcs,
            _op_state: None,
            _tdr: held,
        })
    }
}

/// Checks the build state, then takes the op-state shared and checks that it allows `leaf`.
///
/// # Errors
/// Those of the build state; OPERAND_BUSY with OP_STATE; OP_STATE_INCORRECT.
#[inline(always)]
pub fn lock_op_state<'m, M: Machine>(
    cx: Call<'m, M>,
    tdr: Tdr<'m>,
    leaf: Leaf,
) -> Result<(Tdcs<'m, M>, Guard<'m>), Status> {
    tdr.check_build_state()?;
    let tdcs = Tdcs::of(cx.machine, tdr);
    let guard = tdcs
        .op_state_lock()
        .acquire(Mode::Shared)
        .map_err(|_| Status::OPERAND_BUSY.with(Operand::OP_STATE))?;
    if !tdcs.op_state().allows(leaf) {
        return Err(Status::OP_STATE_INCORRECT);
    }
    Ok((tdcs, guard))
}

/// The TDR that owns a page whose PAMT entry is held, taken shared.
///
/// # Errors
/// OPERAND_BUSY with TDR.
#[inline(always)]
pub fn implicit_tdr<'m, M: Machine>(
    cx: Call<'m, M>,
    owner: u64,
) -> Result<(Guard<'m>, Tdr<'m>), Status> {
    let busy = Status::OPERAND_BUSY.with(Operand::TDR);
    let entry = Pamt::of(cx.module, owner)
        .ok_or(busy)?
        .entry_4k(cx.machine, owner);
    let guard = entry.lock().acquire(Mode::Shared).map_err(|_| busy)?;
    Ok((guard, Tdr::at(cx.machine, owner)))
}

/// The TDR that owns a page which is being reclaimed, taken shared. It excludes those that hold the TDR exclusively, as
/// [`implicit_tdr`] does, but no two processors write to the same cache line for it.
///
/// # Errors
/// OPERAND_BUSY with TDR.
pub fn reclaim_lane<'m, M: Machine>(
    cx: Call<'m, M>,
    owner: u64,
) -> Result<(LaneGuard<'m>, Tdr<'m>), Status> {
    let busy = Status::OPERAND_BUSY.with(Operand::TDR);
    let pamt = Pamt::of(cx.module, owner).ok_or(busy)?;
    let tdr = Tdr::at(cx.machine, owner);
    let lane = tdr.lane(cx.lp);
    if pamt.entry_4k(cx.machine, owner).lock().is_exclusive() {
        return Err(busy);
    }
    Ok((lane, tdr))
}

/// A vCPU named by its TDVPR, with its TD: the TDVPR locked, the TDR shared.
pub struct TdVcpu<'m, M> {
    /// The vCPU.
    pub tdvps: Tdvps<'m, M>,
    /// The root of its TD.
    pub tdr: Tdr<'m>,
    // Locks are released in the order of these fields.
    _tdr: Guard<'m>,
    _tdvpr: Held<'m>,
}

impl<'m, M: Machine> TdVcpu<'m, M> {
    /// The vCPU named by an operand. The TD's state is not checked: see [`lock_op_state`].
    ///
    /// # Errors
    /// Those of an explicit page operand; OPERAND_BUSY with TDR.
    #[inline(always)]
    pub fn take(cx: Call<'m, M>, pa: u64, operand: Operand, mode: Mode) -> Result<Self, Status> {
        let size = PageSize::Size4K;
        let held = operand::page_here(cx, pa, size, operand, mode, PageType::Tdvpr)?;
        let (guard, tdr) = implicit_tdr(cx, held.entry().owner())?;
        Ok(Self {
            tdvps: Tdvps::at(cx.machine, pa),
            tdr,
            _tdr: guard,
            _tdvpr: held,
        })
    }
    /// Lets go, as dropping it does, in the caller's own code.
    #[inline(always)]
    pub fn release(self) {
        self._tdr.release();
        self._tdvpr.release();
    }
}
