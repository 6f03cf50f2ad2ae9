//! Accesses that the nested page tables stop, and accesses with a KeyID.

use stub_module::hooks::Access;
use stub_rom::vmx::Memory;
use stub_rom::walk::Paging;
use stub_rom::{apic, walk};

use super::{apic as apic_page, iommu, step};
use crate::memory::PAGE;
use crate::monitor::lp::Lp;
use crate::monitor::npt::Stopped;
use crate::monitor::{panic, reach};
use crate::report;

/// Handles the nested page fault exit.
#[inline(never)]
pub fn exit(lp: &mut Lp) {
    let pa = lp.vmcb.exit_info2;
    let world = lp.world;
    world.check_for_lost_guest(lp.number, &lp.vmcb.save, pa);
    lp.vmcb.redeliver();
    if (apic::BASE..apic::BASE + PAGE as u64).contains(&pa) {
        apic_page::access(lp, pa);
        return;
    }
    if reach::is_register(lp, pa) {
        iommu::access(lp, pa);
        return;
    }
    if !world.is_in_seamrr(pa) {
        let (processors, physical) = (world.processors(lp.number), lp.physical());
        match (world.npt).stopped(processors, pa, |pa| physical.is_private(pa)) {
            Stopped::Mapped => return step::follow(lp),
            Stopped::Private => {}
            Stopped::Foreign => panic::stop(format_args!(
                "a nested page fault outside the hidden ranges"
            )),
        }
    }
    if !step::is_over_memory(lp) {
        const WRITE: u64 = 1 << 1;
        let access = match lp.vmcb.exit_info1 & WRITE {
            0 => Access::Read,
            _ => Access::Write,
        };
        lp.data().report_refused(pa, access);
    }
    step::over_page(lp, pa);
}

/// Handles the page fault exit. Returns whether it was an access with a KeyID in its address, which has been handled.
/// Each instruction is reported once.
#[inline(never)]
pub fn keyid_alias(lp: &mut Lp) -> bool {
    const RESERVED: u64 = 1 << 3;
    let va = lp.vmcb.exit_info2;
    if lp.vmcb.exit_info1 & RESERVED == 0 {
        return false;
    }
    let paging = Paging {
        cr3: step::software_cr3(lp),
        ..lp.paging()
    };
    let physical = lp.physical();
    let Some(pa) = walk::keyid_alias(&paging, va, |pa| physical.read(pa)) else {
        return false;
    };
    if !step::is_over_memory(lp) {
        report::violation("keyid_alias", lp.number, lp.vmcb.save.rip, pa);
    }
    if !step::over_alias(lp, va) {
        return false;
    }
    lp.vmcb.redeliver();
    true
}
