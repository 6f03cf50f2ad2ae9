//! A TD's HKID and keys, from assignment to release: TDH.MNG.CREATE, KEY.CONFIG, VPFLUSHDONE, KEY.FREEID.

use core::sync::atomic::Ordering;

use seam::abi::{Gprs, Operand, PageType, Status};

use crate::call::Call;
use crate::field::Structure;
use crate::keys::HkidState;
use crate::lock::Mode;
use crate::ownership::Taken;
use crate::sys::program_key;
use crate::td::{Lifecycle, OpState, Tdcs, Tdr, tdcs, tdr};
use crate::{Change, Machine, Point, operand};

/// Number of tries of RDSEED for the four words of a UUID or key, and in releases that retry more often.
const RDSEED_TRIES: u32 = 6;
const MORE_RDSEED_TRIES: u32 = 4 * 6;

/// TDH.MNG.CREATE: makes RCX the TDR of a TD with the HKID in RDX.
pub fn create<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    if !cx.machine.platform().is_private_hkid(regs.rdx) {
        return Err(Status::OPERAND_INVALID.with(Operand::RDX));
    }
    let (pa, hkid) = (regs.rcx, regs.rdx as u32);
    let page = operand::private_page(cx, pa, Operand::RCX, Mode::Exclusive, PageType::Nda)?;
    let _kot = cx.module.keys.lock(Mode::Exclusive)?;
    if cx.module.keys.state(hkid) != HkidState::Free {
        return Err(Status::HKID_NOT_FREE);
    }
    let taken = Taken::take(cx, &page, PageType::Tdr, 0);
    cx.reached(Point::Movdir64b);
    cx.machine.fill_page(pa, 0);
    let uuid = random_256(cx)?;

    let root = Tdr::at(cx.machine, pa);
    for (i, word) in (0..).zip(uuid) {
        root.set(tdr::field::TD_UUID.at(i), word);
    }
    cx.module.keys.set_state(hkid, HkidState::Assigned);
    root.set(tdr::field::HKID, u64::from(hkid));
    let handoff_version = cx.module.release.handoff_version();
    root.set(tdr::field::HANDOFF_VERSION, handoff_version);
    root.set_lifecycle(Lifecycle::HkidAssigned);
    taken.keep();
    Ok(())
}

/// Draws 256 random bits.
///
/// # Errors
/// RND_NO_ENTROPY.
pub fn random_256<M: Machine>(cx: Call<'_, M>) -> Result<[u64; 4], Status> {
    let mut words = [0; 4];
    let mut found = 0;
    let tries = if cx.module.release.does(Change::RETRIES_ENTROPY) {
        MORE_RDSEED_TRIES
    } else {
        RDSEED_TRIES
    };
    for _ in 0..tries {
        if let Some(word) = cx.rdseed() {
            words[found] = word;
            found += 1;
            if found == words.len() {
                return Ok(words);
            }
        }
    }
    Err(Status::RND_NO_ENTROPY)
}

/// TDH.MNG.KEY.CONFIG: programs the TD's key on the caller's package. The last package makes the TD buildable.
pub fn key_config<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (_held, root) = operand::tdr(cx, regs.rcx, Operand::RCX, Mode::Exclusive)?;
    if root.is_fatal() {
        return Err(Status::TD_FATAL);
    }
    if root.lifecycle() != Lifecycle::HkidAssigned {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    let package = 1 << cx.package();
    let configured = root.get(tdr::field::PKG_CONFIG_BITMAP);
    if configured & package != 0 {
        return Err(Status::KEY_CONFIGURED);
    }
    program_key(cx, root.hkid())?;
    root.set(tdr::field::PKG_CONFIG_BITMAP, configured | package);
    if configured | package == keyed_packages(cx) {
        root.set_lifecycle(Lifecycle::KeysConfigured);
    }
    Ok(())
}

fn keyed_packages<M: Machine>(cx: Call<'_, M>) -> u64 {
    cx.module.keyed_packages.load(Ordering::Acquire)
}

/// TDH.MNG.VPFLUSHDONE: checks that no vCPU of the TD is associated any more, and allows its cache write-back.
pub fn vpflushdone<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (_held, root) = operand::tdr(cx, regs.rcx, Operand::RCX, Mode::Exclusive)?;
    let _kot = cx.module.keys.lock(Mode::Exclusive)?;
    if !matches!(
        root.lifecycle(),
        Lifecycle::HkidAssigned | Lifecycle::KeysConfigured
    ) {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    if root.num_tdcx() >= seam::abi::TDCS_PAGES.0 {
        let tdcs = Tdcs::of(cx.machine, root);
        if tdcs.op_state() != OpState::Uninitialized && tdcs.get(tdcs::field::NUM_ASSOC_VCPUS) != 0
        {
            return Err(Status::FLUSHVP_NOT_DONE);
        }
        cx.module.end_build(&tdcs);
    }
    root.set_lifecycle(Lifecycle::Blocked);
    cx.module
        .keys
        .set_flushed(root.hkid(), keyed_packages(cx) as u32);
    Ok(())
}

/// TDH.MNG.KEY.FREEID: frees the HKID after every package has written back its caches. The TD can then be torn down.
pub fn key_freeid<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (_held, root) = operand::tdr(cx, regs.rcx, Operand::RCX, Mode::Exclusive)?;
    if root.lifecycle() != Lifecycle::Blocked {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    let _kot = cx.module.keys.lock(Mode::Exclusive)?;
    if !cx.module.keys.is_written_back(root.hkid()) {
        return Err(Status::WBCACHE_NOT_COMPLETE);
    }
    cx.module.keys.set_state(root.hkid(), HkidState::Free);
    root.set_lifecycle(Lifecycle::Teardown);
    Ok(())
}
