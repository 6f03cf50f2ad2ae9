//! Dispatches RAX to a leaf, after the checks common to every leaf, in the module's order.

use core::sync::atomic::Ordering;

use seam::abi::{Features0, Gprs, Leaf, Operand, Status};

use crate::call::Call;
use crate::guest::Impossible;
use crate::hooks::{self, Fault};
use crate::module::{Module, SysState};
use crate::{Machine, mem, metadata, migration, mng, mr, phymem, servtd, sys, vp};

/// The number of the most frequent leaf.
const VP_ENTER: u16 = Leaf::VpEnter.number();

impl Module {
    /// Executes one SEAMCALL for logical processor `lp`: RAX holds the leaf on entry and the status on return. Registers
    /// that the leaf does not document as outputs are unchanged.
    ///
    /// # Panics
    /// If `lp` is not a processor of the platform that the module was made for.
    #[inline(always)]
    pub fn seamcall<M: Machine>(&self, machine: &M, lp: u32, regs: &mut Gprs) {
        let own = self.lp(lp);
        own.inside.store(true, Ordering::SeqCst);
        let status = match self.admit(regs.rax) {
            Ok((leaf, version)) => {
                let cx = Call {
                    module: self,
                    machine,
                    lp,
                    fault: self.hooks.faults.strike(leaf),
                };
                let status = watched(cx, leaf, version, regs);
                own.counts.count(leaf, status);
                status
            }
            Err(status) => status,
        };
        regs.rax = status.0;
        own.inside.store(false, Ordering::Release);
    }

    /// Returns the leaf and version in RAX, if they exist and the module's state admits them.
    #[inline(always)]
    fn admit(&self, rax: u64) -> Result<(Leaf, u8), Status> {
        let invalid = Status::OPERAND_INVALID.with(Operand::RAX);
        if rax >> 24 != 0 {
            return Err(invalid);
        }
        let leaf = match rax as u16 {
            VP_ENTER => Some(Leaf::VpEnter),
            number => Leaf::from_number(number),
        };
        let version = (rax >> 16) as u8;
        if version > 0 && leaf.is_none_or(|leaf| self.max_version(leaf) == 0) {
            return Err(invalid);
        }
        match self.state() {
            SysState::Ready => {}
            SysState::Shutdown => {
                if leaf != Some(Leaf::SysLpShutdown) {
                    return Err(Status::SYS_SHUTDOWN);
                }
            }
            _ => {
                if !leaf.is_some_and(is_bring_up) {
                    return Err(Status::SYS_NOT_READY);
                }
            }
        }
        Ok((leaf.ok_or(invalid)?, version))
    }

    /// Returns the highest version of a leaf.
    fn max_version(&self, leaf: Leaf) -> u8 {
        let needed = match leaf {
            Leaf::VpInit => Features0::TOPOLOGY_ENUM,
            Leaf::SysInit => Features0::FATAL_DIAGNOSTICS,
            Leaf::SysUpdate => Features0::UPDATE_COMPATIBILITY,
            _ => Features0::empty(),
        };
        if self.release.has(needed) {
            leaf.max_version()
        } else {
            0
        }
    }
}

/// Returns whether a leaf may be called before the module is ready.
fn is_bring_up(leaf: Leaf) -> bool {
    matches!(
        leaf,
        Leaf::SysKeyConfig
            | Leaf::SysInfo
            | Leaf::SysInit
            | Leaf::SysRd
            | Leaf::SysLpInit
            | Leaf::SysRdall
            | Leaf::SysLpShutdown
            | Leaf::SysConfig
            | Leaf::SysUpdate
    )
}

/// Runs a leaf and applies the hooks to it.
#[inline(always)]
fn watched<M: Machine>(cx: Call<'_, M>, leaf: Leaf, version: u8, regs: &mut Gprs) -> Status {
    if let Some(fault) = cx.fault
        && let Some(status) = refused(cx, fault)
    {
        return status;
    }
    // The most frequent leaf bypasses the checks of donated pages: it donates none.
    if leaf == Leaf::VpEnter {
        let tdvpr = regs.rcx;
        let status = vp::enter(cx, regs).err().unwrap_or(Status::SUCCESS);
        hooks::check_stale_key(cx, tdvpr, status);
        return status;
    }
    watched_for_reuse(cx, leaf, version, regs)
}

/// Returns the status of a call if a fault prevents it from running.
#[cold]
fn refused<M: Machine>(cx: Call<'_, M>, fault: Fault) -> Option<Status> {
    match fault {
        Fault::Busy(operand) => Some(Status::OPERAND_BUSY.with(operand)),
        Fault::Shutdown => {
            cx.machine.impossible(cx.lp, &Impossible::WANTED);
            cx.die(Impossible::WANTED.check);
            Some(Status::SYS_SHUTDOWN)
        }
        Fault::Interrupted | Fault::NoEntropy | Fault::MachineCheck => None,
    }
}

#[inline(never)]
fn watched_for_reuse<M: Machine>(
    cx: Call<'_, M>,
    leaf: Leaf,
    version: u8,
    regs: &mut Gprs,
) -> Status {
    let patterns = cx.module.hooks.patterns;
    let uncleared = patterns.then(|| hooks::uncleared(cx, leaf, version, regs));
    let result = run(cx, leaf, version, regs);
    let status = result.err().unwrap_or(Status::SUCCESS);
    if let Some(Some((pa, hkid))) = uncleared
        && status == Status::SUCCESS
    {
        cx.module.record_reuse(cx.lp, pa, hkid);
    }
    status
}

/// Runs a leaf. `Err` carries every status other than SUCCESS, including others of the success class.
#[inline(never)]
fn run<M: Machine>(
    cx: Call<'_, M>,
    leaf: Leaf,
    version: u8,
    regs: &mut Gprs,
) -> Result<(), Status> {
    match leaf {
        Leaf::SysInit => sys::init(cx, version, regs),
        Leaf::SysLpInit => sys::lp_init(cx, regs),
        Leaf::SysConfig => sys::config(cx, regs),
        Leaf::SysKeyConfig => sys::key_config(cx),
        Leaf::SysTdmrInit => sys::tdmr_init(cx, regs),
        Leaf::SysLpShutdown => Ok(()),
        Leaf::SysShutdown => sys::shutdown(cx, regs),
        Leaf::SysUpdate => sys::update(cx, version, regs),
        Leaf::SysInfo => metadata::sys_info(cx, regs),
        Leaf::SysRd => metadata::sys_rd(cx, regs),
        Leaf::SysRdall => metadata::sys_rdall(cx, regs),

        Leaf::MngCreate => mng::create(cx, regs),
        Leaf::MngKeyConfig => mng::key_config(cx, regs),
        Leaf::MngAddcx => mng::addcx(cx, regs),
        Leaf::MngInit => mng::init(cx, regs),
        Leaf::MngVpflushdone => mng::vpflushdone(cx, regs),
        Leaf::MngKeyFreeid => mng::key_freeid(cx, regs),
        // KEY.FREEID frees the HKID, so nothing is left to do here.
        Leaf::MngKeyReclaimid => Ok(()),
        Leaf::MngRd => metadata::mng_rd(cx, version, regs),
        Leaf::MngWr => metadata::mng_wr(cx, regs),
        Leaf::MrExtend => mr::extend(cx, regs),
        Leaf::MrFinalize => mr::finalize(cx, regs),

        Leaf::VpCreate => vp::create(cx, regs),
        Leaf::VpAddcx => vp::addcx(cx, regs),
        Leaf::VpInit => vp::init(cx, version, regs),
        Leaf::VpEnter => unreachable!("it has a way of its own"),
        Leaf::VpFlush => vp::flush(cx, regs),
        Leaf::VpRd => metadata::vp_rd(cx, version, regs),
        Leaf::VpWr => metadata::vp_wr(cx, regs),

        Leaf::MemSeptAdd => mem::sept_add(cx, version, regs),
        Leaf::MemSeptRd => mem::sept_rd(cx, regs),
        Leaf::MemSeptRemove => mem::sept_remove(cx, version, regs),
        Leaf::MemPageAdd => mem::page_add(cx, regs),
        Leaf::MemPageAug => mem::page_aug(cx, regs),
        Leaf::MemPageRemove => mem::page_remove(cx, regs),
        Leaf::MemPageRelocate => mem::page_relocate(cx, regs),
        Leaf::MemPagePromote => mem::page_promote(cx, version, regs),
        Leaf::MemPageDemote => mem::page_demote(cx, regs),
        Leaf::MemRangeBlock => mem::range_block(cx, regs),
        Leaf::MemRangeUnblock => mem::range_unblock(cx, regs),
        Leaf::MemTrack => mem::track(cx, regs),
        Leaf::MemRd => mem::rd(cx, regs),
        Leaf::MemWr => mem::wr(cx, regs),
        // The leaf number is defined, but the function is not implemented.
        Leaf::MemSeptWr => Err(Status::OPERAND_INVALID.with(Operand::RAX)),

        Leaf::PhymemPageRdmd => phymem::page_rdmd(cx, regs),
        Leaf::PhymemPageReclaim => phymem::page_reclaim(cx, regs),
        Leaf::PhymemPageWbinvd => phymem::page_wbinvd(cx, regs),
        Leaf::PhymemCacheWb => phymem::cache_wb(cx, regs),

        Leaf::PhymemPamtAdd => phymem::pamt_add(cx, regs),
        Leaf::PhymemPamtRemove => phymem::pamt_remove(cx, regs),

        Leaf::ServtdBind => servtd::bind(cx, regs),
        Leaf::ServtdPrebind => servtd::prebind(cx, regs),
        Leaf::ExportAbort
        | Leaf::ExportBlockw
        | Leaf::ExportRestore
        | Leaf::ExportMem
        | Leaf::ExportPause
        | Leaf::ExportTrack
        | Leaf::ExportStateImmutable
        | Leaf::ExportStateTd
        | Leaf::ExportStateVp
        | Leaf::ExportUnblockw
        | Leaf::ImportAbort
        | Leaf::ImportEnd
        | Leaf::ImportCommit
        | Leaf::ImportMem
        | Leaf::ImportTrack
        | Leaf::ImportStateImmutable
        | Leaf::ImportStateTd
        | Leaf::ImportStateVp
        | Leaf::MigStreamCreate => migration::run(cx, leaf, regs),
    }
}
