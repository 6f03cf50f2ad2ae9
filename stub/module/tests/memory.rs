//! A TD's private memory: the rules of removal.

mod kit;

use kit::{BASE, Builder, PAGE, Td};
use seam::abi::{GpaLevel, Gprs, Leaf, Operand, PAGE_2M, PageType, SeptState, Status};
use seam::call::SeamCall;
use stub_module::hooks::Hooks;
use stub_module::host::Conditions;

/// Source of pages for the TD: free 2 MiB frames.
const FRAMES: u64 = BASE + (128 << 20);
/// Source of page tables.
const TABLES: u64 = BASE + (64 << 20);

/// Creates an initialised TD with page tables for the first GiB of its memory.
fn with_tables() -> (Builder, Td) {
    let built = Builder::new(Hooks::default());
    let td = built.td(33);
    built.initialize(&td);
    for level in [3, 2, 1] {
        let table = TABLES + u64::from(level) * PAGE;
        call(
            &built,
            Leaf::MemSeptAdd,
            GpaLevel::new(0, level),
            &td,
            table,
        )
        .unwrap();
    }
    (built, td)
}

/// Calls a leaf that takes an address with a level, a TDR, and a page.
fn call(built: &Builder, leaf: Leaf, at: GpaLevel, td: &Td, page: u64) -> Result<Gprs, Status> {
    built.cpu(0).leaf(
        leaf,
        [
            (Operand::RCX, at.0),
            (Operand::RDX, td.tdr),
            (Operand::R8, page),
        ],
    )
}

fn page(index: u64) -> GpaLevel {
    GpaLevel::new(index * PAGE, 0)
}

/// Returns the state of the entry at an address and level.
fn state(built: &Builder, td: &Td, at: GpaLevel) -> u8 {
    let regs = call(built, Leaf::MemSeptRd, at, td, 0).unwrap();
    (regs.rdx >> 8) as u8
}

/// Gives the TD a vCPU and makes it runnable.
fn finalize(built: &Builder, td: &Td) {
    let cpu = built.cpu(0);
    let tdvpr = TABLES + (1 << 20);
    let create = [(Operand::RCX, tdvpr), (Operand::RDX, td.tdr)];
    cpu.leaf(Leaf::VpCreate, create).unwrap();
    for i in 1..6 {
        let add = [(Operand::RCX, tdvpr + i * PAGE), (Operand::RDX, tdvpr)];
        cpu.leaf(Leaf::VpAddcx, add).unwrap();
    }
    cpu.leaf(Leaf::VpInit, [(Operand::RCX, tdvpr)]).unwrap();
    cpu.leaf(Leaf::MrFinalize, [(Operand::RCX, td.tdr)])
        .unwrap();
}

fn track(built: &Builder, td: &Td) -> Result<Gprs, Status> {
    built.cpu(0).leaf(Leaf::MemTrack, [(Operand::RCX, td.tdr)])
}

fn page_type(built: &Builder, pa: u64) -> Gprs {
    built
        .cpu(0)
        .leaf(Leaf::PhymemPageRdmd, [(Operand::RCX, pa)])
        .unwrap()
}

#[test]
fn before_finalize_a_page_is_removed_without_being_blocked() {
    let (built, td) = with_tables();
    call(&built, Leaf::MemPageAug, page(1), &td, FRAMES).unwrap();
    let removed = call(&built, Leaf::MemPageRemove, page(1), &td, 0).unwrap();
    assert_eq!(removed.rcx, FRAMES);
    assert_eq!(state(&built, &td, page(1)), SeptState::Free as u8);
}

#[test]
fn after_finalize_it_must_be_blocked_and_tracked_first() {
    let (built, td) = with_tables();
    call(&built, Leaf::MemPageAug, page(1), &td, FRAMES).unwrap();
    finalize(&built, &td);
    let remove = || call(&built, Leaf::MemPageRemove, page(1), &td, 0).map(|regs| regs.rcx);
    assert_eq!(
        remove(),
        Err(Status::GPA_RANGE_NOT_BLOCKED.with(Operand::RCX))
    );
    call(&built, Leaf::MemRangeBlock, page(1), &td, 0).unwrap();
    assert_eq!(
        remove(),
        Err(Status::TLB_TRACKING_NOT_DONE.with(Operand::RCX))
    );
    track(&built, &td).unwrap();
    assert_eq!(remove(), Ok(FRAMES));
}

#[test]
fn unblocking_without_tracking_is_about_the_page() {
    let (built, td) = with_tables();
    call(&built, Leaf::MemPageAug, page(1), &td, FRAMES).unwrap();
    finalize(&built, &td);
    call(&built, Leaf::MemRangeBlock, page(1), &td, 0).unwrap();
    assert_eq!(
        call(&built, Leaf::MemRangeUnblock, page(1), &td, 0).err(),
        Some(Status::TLB_TRACKING_NOT_DONE.with(Operand::RCX))
    );
    assert_eq!(
        call(&built, Leaf::MemRangeBlock, page(1), &td, 0).err(),
        Some(Status::GPA_RANGE_ALREADY_BLOCKED.with(Operand::RCX))
    );
}

#[test]
fn a_blocked_table_stops_every_walk_below_it() {
    let (built, td) = with_tables();
    call(&built, Leaf::MemPageAug, page(1), &td, FRAMES).unwrap();
    let table = GpaLevel::new(0, 1);
    call(&built, Leaf::MemRangeBlock, table, &td, 0).unwrap();
    let mut regs = Gprs {
        rax: Leaf::MemPageRemove.rax(),
        rcx: page(1).0,
        rdx: td.tdr,
        ..Gprs::default()
    };
    built.cpu(0).seamcall(&mut regs).unwrap();
    assert_eq!(Status(regs.rax), Status::EPT_WALK_FAILED.with(Operand::RCX));
    assert_eq!(
        regs.rdx,
        1 | (SeptState::NonLeafBlocked as u64) << 8,
        "level and state of where the walk stopped"
    );
}

#[test]
fn a_table_is_removed_only_empty() {
    let (built, td) = with_tables();
    let table = GpaLevel::new(0, 1);
    call(&built, Leaf::MemPageAug, page(1), &td, FRAMES).unwrap();
    assert_eq!(
        call(&built, Leaf::MemSeptRemove, table, &td, 0).err(),
        Some(Status::EPT_PAGE_NOT_FREE.with(Operand::RCX))
    );
    call(&built, Leaf::MemPageRemove, page(1), &td, 0).unwrap();
    let removed = call(&built, Leaf::MemSeptRemove, table, &td, 0).unwrap();
    assert_eq!(removed.rcx, TABLES + PAGE);
    assert_eq!(page_type(&built, TABLES + PAGE).rcx, PageType::Nda as u64);
}

#[test]
fn a_large_page_needs_a_frame_that_is_free_throughout() {
    let (built, td) = with_tables();
    let large = GpaLevel::new(PAGE_2M, 1);
    call(&built, Leaf::MemPageAug, page(1), &td, FRAMES + 5 * PAGE).unwrap();
    assert_eq!(
        call(&built, Leaf::MemPageAug, large, &td, FRAMES).err(),
        Some(Status::PAGE_METADATA_INCORRECT.with(Operand::R8))
    );
    let frame_of_the_tdr = td.tdr & !(PAGE_2M - 1);
    assert_eq!(
        call(&built, Leaf::MemPageAug, large, &td, frame_of_the_tdr).err(),
        Some(Status::OPERAND_BUSY.with(Operand::R8)),
        "the TDR is held, and with it the frame that it is in"
    );
    call(&built, Leaf::MemPageAug, large, &td, FRAMES + PAGE_2M).unwrap();
    let inside = page_type(&built, FRAMES + PAGE_2M + PAGE);
    assert_eq!((inside.rcx, inside.r8), (PageType::Reg as u64, 1));
}

#[test]
fn a_split_page_can_be_put_together_again() {
    let (built, td) = with_tables();
    let large = GpaLevel::new(PAGE_2M, 1);
    let table = TABLES + 9 * PAGE;
    call(&built, Leaf::MemPageAug, large, &td, FRAMES).unwrap();
    call(&built, Leaf::MemPageDemote, large, &td, table).unwrap();
    assert_eq!(state(&built, &td, large), SeptState::NonLeafMapped as u8);
    assert_eq!(page_type(&built, FRAMES + 511 * PAGE).r8, 0);

    let last = GpaLevel::new(PAGE_2M + 511 * PAGE, 0);
    call(&built, Leaf::MemRangeBlock, last, &td, 0).unwrap();
    assert_eq!(
        call(&built, Leaf::MemPagePromote, large, &td, 0).err(),
        Some(Status::EPT_INVALID_PROMOTE_CONDITIONS.with(Operand::RCX)),
        "one part is blocked"
    );
    call(&built, Leaf::MemRangeUnblock, last, &td, 0).unwrap();
    let promoted = call(&built, Leaf::MemPagePromote, large, &td, 0).unwrap();
    assert_eq!(promoted.rcx, table);
    assert_eq!(state(&built, &td, large), SeptState::Pending as u8);
    assert_eq!(page_type(&built, FRAMES).r8, 1);
}

#[test]
fn an_interrupted_demote_changes_nothing_and_is_made_again() {
    let (built, td) = with_tables();
    let large = GpaLevel::new(PAGE_2M, 1);
    call(&built, Leaf::MemPageAug, large, &td, FRAMES).unwrap();
    let mut regs = Gprs {
        rax: Leaf::MemPageDemote.rax(),
        rcx: large.0,
        rdx: td.tdr,
        r8: TABLES + 9 * PAGE,
        ..Gprs::default()
    };
    let inputs = regs;
    built.server.machine().set_conditions(
        0,
        Conditions {
            interrupt_at_check: Some(1),
            ..Conditions::default()
        },
    );
    built.cpu(0).seamcall(&mut regs).unwrap();
    built
        .server
        .machine()
        .set_conditions(0, Conditions::default());
    assert_eq!(Status(regs.rax), Status::INTERRUPTED_RESTARTABLE);
    assert_eq!((regs.rcx, regs.rdx), (inputs.rcx, inputs.rdx));
    assert_eq!(state(&built, &td, large), SeptState::Pending as u8);
    regs.rax = inputs.rax;
    built.cpu(0).seamcall(&mut regs).unwrap();
    assert_eq!(Status(regs.rax), Status::SUCCESS);
}

#[test]
fn a_relocated_page_leaves_its_frame() {
    let (built, td) = with_tables();
    call(&built, Leaf::MemPageAug, page(1), &td, FRAMES).unwrap();
    assert_eq!(
        call(&built, Leaf::MemPageRelocate, page(1), &td, FRAMES).err(),
        Some(Status::OPERAND_INVALID.with(Operand::R8))
    );
    let moved = call(&built, Leaf::MemPageRelocate, page(1), &td, FRAMES + PAGE).unwrap();
    assert_eq!(moved.rcx, FRAMES);
    let old = page_type(&built, FRAMES);
    assert_eq!(
        (old.rcx, old.rdx),
        (PageType::Nda as u64, td.tdr),
        "free, and still with the name of its last owner"
    );
}
