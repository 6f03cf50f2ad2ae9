//! Access to a TD: locks its TDR, checks its state, and finds its TDCS.

use seam::abi::{Leaf, Operand, PageSize, PageType, Status};

use super::{LaneGuard, OpState, Tdcs, Tdr, Tdvps};
use crate::call::Call;
use crate::lock::{Guard, Mode};
use crate::pamt::{Held, Pamt};
use crate::{Change, Machine, operand};

/// A TD whose TDR is locked until this is dropped. Unless the TDR is held exclusively, its op-state is locked too.
pub struct Td<'m, M> {
    /// The TD's root.
    pub tdr: Tdr<'m>,
    /// The TD's TDCS.
    pub tdcs: Tdcs<'m, M>,
    // Locks are released in the order of these fields.
    _op_state: Option<Guard<'m>>,
    _tdr: Held<'m>,
}

impl<'m, M: Machine> Td<'m, M> {
    /// Returns the TD in an operand, with TDR and op-state held shared, in a state that allows `leaf`.
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

    /// Returns the TD in an operand, with its TDR held exclusively, in a state that allows `leaf`. The exclusive TDR
    /// lock makes the op-state lock unnecessary.
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
            return Err(op_state_incorrect(cx, tdcs.op_state()));
        }
        Ok(Self {
            tdr,
            tdcs,
            _op_state: None,
            _tdr: held,
        })
    }
}

/// Returns the status for a TD in the wrong op-state.
#[cold]
pub fn op_state_incorrect<M>(cx: Call<'_, M>, state: OpState) -> Status {
    if cx.module.release.does(Change::TELLS_OP_STATE) {
        Status::OP_STATE_INCORRECT.with_detail(state as u32)
    } else {
        Status::OP_STATE_INCORRECT
    }
}

/// Checks the build state, then locks the op-state shared and checks that it allows `leaf`.
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
        return Err(op_state_incorrect(cx, tdcs.op_state()));
    }
    Ok((tdcs, guard))
}

/// Locks the TDR that owns a page whose PAMT entry is held.
///
/// # Errors
/// OPERAND_BUSY with TDR.
#[inline(always)]
pub fn implicit_tdr<'m, M: Machine>(
    cx: Call<'m, M>,
    owner: u64,
    mode: Mode,
) -> Result<(Guard<'m>, Tdr<'m>), Status> {
    let busy = Status::OPERAND_BUSY.with(Operand::TDR);
    let entry = Pamt::of(cx.module, owner)
        .and_then(|pamt| pamt.entry_4k(cx.machine, owner))
        .ok_or(busy)?;
    let guard = entry.lock().acquire(mode).map_err(|_| busy)?;
    Ok((guard, Tdr::at(cx.machine, owner)))
}

/// Locks, shared, the TDR that owns a page under reclamation. Like [`implicit_tdr`], it excludes exclusive holders of
/// the TDR. Unlike it, no two processors write to the same cache line.
///
/// # Errors
/// OPERAND_BUSY with TDR.
pub fn reclaim_lane<'m, M: Machine>(
    cx: Call<'m, M>,
    owner: u64,
) -> Result<(LaneGuard<'m>, Tdr<'m>), Status> {
    let busy = Status::OPERAND_BUSY.with(Operand::TDR);
    let entry = Pamt::of(cx.module, owner)
        .and_then(|pamt| pamt.entry_4k(cx.machine, owner))
        .ok_or(busy)?;
    let tdr = Tdr::at(cx.machine, owner);
    let lane = tdr.lane(cx.lp);
    if entry.lock().is_exclusive() {
        return Err(busy);
    }
    Ok((lane, tdr))
}

/// A vCPU and its TD, with the TDVPR locked and the TDR held shared.
pub struct TdVcpu<'m, M> {
    /// The vCPU.
    pub tdvps: Tdvps<'m, M>,
    /// The root of the vCPU's TD.
    pub tdr: Tdr<'m>,
    // Locks are released in the order of these fields.
    _tdr: Guard<'m>,
    _tdvpr: Held<'m>,
}

impl<'m, M: Machine> TdVcpu<'m, M> {
    /// Returns the vCPU in an operand. It does not check the TD's state; see [`lock_op_state`].
    ///
    /// # Errors
    /// Those of an explicit page operand; OPERAND_BUSY with TDR.
    #[inline(always)]
    pub fn take(cx: Call<'m, M>, pa: u64, operand: Operand, mode: Mode) -> Result<Self, Status> {
        Self::take_with(cx, pa, operand, mode, Mode::Shared)
    }

    /// Returns the vCPU in an operand, with the TDR held in this mode.
    ///
    /// # Errors
    /// As [`Self::take`].
    #[inline(always)]
    pub fn take_with(
        cx: Call<'m, M>,
        pa: u64,
        operand: Operand,
        mode: Mode,
        tdr_mode: Mode,
    ) -> Result<Self, Status> {
        let expected = operand::Expected {
            size: PageSize::Size4K,
            page_type: PageType::Tdvpr,
        };
        let held = operand::page_here(cx, pa, operand, mode, expected)?;
        let (guard, tdr) = implicit_tdr(cx, held.entry().owner(), tdr_mode)?;
        Ok(Self {
            tdvps: Tdvps::at(cx.machine, pa),
            tdr,
            _tdr: guard,
            _tdvpr: held,
        })
    }
    /// Releases the locks as dropping does, inlined into the caller.
    #[inline(always)]
    pub fn release(self) {
        self._tdr.release();
        self._tdvpr.release();
    }
}
