//! Private memory: pages that become the module's or a TD's, and that the host can't reach any more.
//!
//! The checks build on each other: TDX comes up, one page becomes a TDR, and is the host's again in the end.

use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::{Gprs, Leaf, PageType};

use super::personality::Vector;
use super::vmx;
use crate::attempt::{movdir64b as execute_movdir64b, read, write};
use crate::tdx::{bring_up, first_hkid, free_hkid, pages, succeed};
use crate::team::{Team, gather};
use crate::{Check, Failure, expect};

/// The state that the checks hand on: processors, PAMT, the TDR's page.
static TEAM_SIZE: AtomicU64 = AtomicU64::new(u64::MAX);
static PAMT: AtomicU64 = AtomicU64::new(0);
static TDR: AtomicU64 = AtomicU64::new(0);

const MARK: u64 = 0x1234_5678_9ABC_DEF0;

pub fn team() -> Result<Team, Failure> {
    Team::gathered(TEAM_SIZE.load(Ordering::Relaxed) as usize).ok_or(Failure {
        what: "the team",
        found: 0,
        expected: 1,
    })
}

pub fn comes_up() -> Check {
    vmx::enter(vmx::region())?;
    let team = gather()?;
    TEAM_SIZE.store(team.size() as u64, Ordering::Relaxed);
    let configuration = bring_up(team)?;
    PAMT.store(configuration.pamt_4k, Ordering::Relaxed);
    Ok(())
}

pub fn pamt() -> Check {
    team()?;
    let at = PAMT.load(Ordering::Relaxed);
    expect("a read of the PAMT", read(at + 0x2_0008), u64::MAX)
}

/// The page is used before, so that its translation is in the TLB of this processor.
pub fn page() -> Check {
    team()?;
    let tdr = pages(2);
    write(tdr, MARK);
    write(tdr + 4096, MARK);
    TDR.store(tdr, Ordering::Relaxed);
    become_tdr(tdr)?;
    expect("a read", read(tdr), u64::MAX)?;
    write(tdr, MARK);
    expect("the page behind it", read(tdr + 4096), MARK)
}

fn become_tdr(page: u64) -> Check {
    let operands = Gprs {
        rcx: page,
        rdx: first_hkid() + 1,
        ..Gprs::default()
    };
    succeed("TDH.MNG.CREATE", Leaf::MngCreate, operands).map(drop)
}

/// Another processor has used the page just before, and executes nothing since that would make it forget that.
pub fn page_in_a_tlb() -> Check {
    let team = team()?;
    give_up(team)?;
    let tdr = TDR.load(Ordering::Relaxed);
    write(tdr, MARK);
    expect("a read by the other", team.ask(0, read, tdr)?, MARK)?;
    become_tdr(tdr)?;
    expect(
        "a later read by the other",
        team.ask(0, read, tdr)?,
        u64::MAX,
    )
}

pub fn movdir64b() -> Check {
    team()?;
    let tdr = TDR.load(Ordering::Relaxed);
    let ones = Line([u64::MAX; 8]);
    let stored = execute_movdir64b(tdr, &ones.0);
    expect("the store", stored.unwrap_err_or_zero(), 0)
}

#[repr(align(64))]
struct Line([u64; 8]);

/// Takes the TD apart, down to its TDR.
fn give_up(team: Team) -> Check {
    let tdr = TDR.load(Ordering::Relaxed);
    free_hkid(tdr, team)?;
    let operands = Gprs {
        rcx: tdr,
        ..Gprs::default()
    };
    let page = succeed("TDH.PHYMEM.PAGE.RECLAIM", Leaf::PhymemPageReclaim, operands)?;
    expect("what it was", page.rcx, PageType::Tdr as u64)
}

pub fn reclaimed() -> Check {
    let team = team()?;
    give_up(team)?;
    let tdr = TDR.load(Ordering::Relaxed);
    write(tdr, MARK);
    expect("a read", read(tdr), MARK)?;
    expect("a read by another", team.ask(0, read, tdr)?, MARK)?;
    team.dismiss();
    Ok(())
}
