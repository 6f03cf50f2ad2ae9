//! Tests of the planner and its checker against TDH.SYS.CONFIG of the emulated module.

use alloc::vec::Vec;
use proptest::prelude::*;
use seam::abi::{Gprs, Leaf, Status, TDMR_INFO_ALIGNMENT};
use stub_module::Module;
use stub_module::host::{Config, HostMachine};
use zerocopy::IntoBytes;

use super::machines::{GIB, LIMITS_1_5, Machine, SMRR, maps_of_64_tib, server, shreds};
use super::*;

/// Address of the input of SYS.CONFIG. Any shared memory will do.
const LIST: u64 = 0x8_0000;
const FIRST_PRIVATE_HKID: u64 = 32;

/// A module on one processor that knows the machine's CMRs.
struct Platform {
    machine: HostMachine,
    module: Module,
}

impl Platform {
    fn new(cmrs: &[Span]) -> Self {
        use stub_module::Machine;
        let mut cmrs: Vec<(u64, u64)> = cmrs.iter().map(|cmr| (cmr.start, cmr.bytes())).collect();
        cmrs.sort_unstable();
        // SMRR_PHYSBASE (write-back) and SMRR_PHYSMASK (locked, valid).
        let smrr = [
            (0x1f2, SMRR.start | 6),
            (0x1f3, (0x1_0000_0000 - SMRR.bytes()) | 0xc00),
        ];
        let machine = HostMachine::new(Config {
            lp_to_package: [0].into(),
            cmrs,
            msrs: smrr.into(),
            ..Config::default()
        });
        let module = Module::new(&machine.platform(), machine.config().release);
        let platform = Self { machine, module };
        for leaf in [Leaf::SysInit, Leaf::SysLpInit] {
            assert_eq!(platform.call(leaf, [0; 3]).0, Status::SUCCESS);
        }
        platform
    }

    /// Calls a leaf with RCX, RDX and R8. Returns the status and RDX.
    fn call(&self, leaf: Leaf, [rcx, rdx, r8]: [u64; 3]) -> (Status, u64) {
        let mut regs = Gprs {
            rax: leaf as u64,
            rcx,
            rdx,
            r8,
            ..Gprs::default()
        };
        self.module.seamcall(&self.machine, 0, &mut regs);
        (Status(regs.rax), regs.rdx)
    }

    fn config(&self, tdmrs: &[Tdmr]) -> Status {
        let memory = self.machine.memory();
        for (i, tdmr) in (0..).zip(tdmrs) {
            let info = LIST + 2 * TDMR_INFO_ALIGNMENT * (i + 1);
            memory.write(LIST + 8 * i, &info.to_le_bytes());
            memory.write(info, tdmr.info().as_bytes());
        }
        self.call(
            Leaf::SysConfig,
            [LIST, tdmrs.len() as u64, FIRST_PRIVATE_HKID],
        )
        .0
    }
}

/// A change that may invalidate a plan.
#[derive(Clone, Debug)]
enum Change {
    MoveTdmr(i64),
    GrowTdmr(i64),
    MovePamt(usize, i64),
    GrowPamt(usize, i64),
    MoveReserved(i64),
    GrowReserved(i64),
    DropReserved,
    RepeatTdmr,
}

fn change() -> impl Strategy<Value = Change> {
    let pages = prop_oneof![-3i64..3, -300_000i64..300_000];
    prop_oneof![
        (-2i64..3).prop_map(Change::MoveTdmr),
        (-2i64..3).prop_map(Change::GrowTdmr),
        (0usize..3, pages.clone()).prop_map(|(level, by)| Change::MovePamt(level, by)),
        (0usize..3, pages.clone()).prop_map(|(level, by)| Change::GrowPamt(level, by)),
        pages.clone().prop_map(Change::MoveReserved),
        pages.prop_map(Change::GrowReserved),
        Just(Change::DropReserved),
        Just(Change::RepeatTdmr),
    ]
}

impl Change {
    /// Changes the TDMR that `which` selects, or the reserved area of it that `part` selects.
    fn spoil(&self, tdmrs: &mut Vec<Tdmr>, which: prop::sample::Index, part: prop::sample::Index) {
        let moved = |span: Span, by: i64| {
            Span::new(
                span.start.saturating_add_signed(by),
                span.end.saturating_add_signed(by),
            )
        };
        let grown = |span: Span, by: i64| Span::new(span.start, span.end.saturating_add_signed(by));
        let (page, unit) = (PAGE as i64, TDMR_UNIT as i64);
        let index = which.index(tdmrs.len());
        let tdmr = &mut tdmrs[index];
        let reserved = (!tdmr.reserved.is_empty()).then(|| part.index(tdmr.reserved.len()));
        match *self {
            Self::MoveTdmr(by) => {
                // Reserved areas are passed as offsets, so they move along.
                tdmr.span = moved(tdmr.span, by * unit);
                tdmr.reserved
                    .iter_mut()
                    .for_each(|area| *area = moved(*area, by * unit));
            }
            Self::GrowTdmr(by) => tdmr.span = grown(tdmr.span, by * unit),
            Self::MovePamt(level, by) => tdmr.pamt[level] = moved(tdmr.pamt[level], by * page),
            Self::GrowPamt(level, by) => tdmr.pamt[level] = grown(tdmr.pamt[level], by * page),
            Self::RepeatTdmr => {
                let again = tdmr.clone();
                tdmrs.insert(index, again);
            }
            Self::MoveReserved(by) | Self::GrowReserved(by) => {
                let Some(area) = reserved.map(|part| &mut tdmr.reserved[part]) else {
                    return;
                };
                let spoilt = match self {
                    Self::MoveReserved(_) => moved(*area, by * page),
                    _ => grown(*area, by * page),
                };
                // Offsets cannot be negative, and size 0 ends the list.
                if spoilt.start >= tdmr.span.start && !spoilt.is_empty() {
                    *area = spoilt;
                }
            }
            Self::DropReserved => {
                reserved.map(|part| tdmr.reserved.remove(part));
            }
        }
    }
}

#[test]
fn a_bring_up_reserves_the_planned_memory() {
    let machine = Machine::default()
        .ram(0x10_0000, GIB, 0)
        .ram(4 * GIB, 6 * GIB, 0);
    let plan = machine.plan(&LIMITS_1_5);
    let platform = Platform::new(&machine.cmrs);
    assert_eq!(platform.config(&plan.tdmrs), Status::SUCCESS);
    assert_eq!(platform.call(Leaf::SysKeyConfig, [0; 3]).0, Status::SUCCESS);
    for tdmr in &plan.tdmrs {
        // Each call initialises 4 MiB.
        for _ in 0..tdmr.span.bytes() >> 22 {
            assert_eq!(
                platform.call(Leaf::SysTdmrInit, [tdmr.span.start, 0, 0]).0,
                Status::SUCCESS
            );
        }
        assert_eq!(
            platform
                .call(Leaf::SysTdmrInit, [tdmr.span.start, 0, 0])
                .0
                .code(),
            Status::TDMR_ALREADY_INITIALIZED
        );
    }
    let page_type = |pa| {
        let mut regs = Gprs {
            rax: Leaf::PhymemPageRdmd as u64,
            rcx: pa,
            ..Gprs::default()
        };
        platform.module.seamcall(&platform.machine, 0, &mut regs);
        assert_eq!(Status(regs.rax), Status::SUCCESS, "{pa:#x}");
        regs.rcx
    };
    let (free, reserved) = (0, 1);
    for span in plan.private.spans() {
        assert_eq!(
            (page_type(span.start), page_type(span.end - PAGE)),
            (free, free),
            "{span}"
        );
    }
    for span in plan.tdmrs.iter().flat_map(|tdmr| &tdmr.reserved) {
        assert_eq!(
            (page_type(span.start), page_type(span.end - PAGE)),
            (reserved, reserved),
            "{span}"
        );
    }
}

#[test]
fn the_module_takes_the_plans_of_64_tib() {
    for (name, machine) in maps_of_64_tib() {
        let plan = machine.plan(&LIMITS_1_5);
        let status = Platform::new(&machine.cmrs).config(&plan.tdmrs);
        assert_eq!(status, Status::SUCCESS, "{name}");
    }
}

proptest! {
    #[test]
    fn the_module_takes_the_plan_of_every_server(machine in server()) {
        if let Ok(plan) = plan(&machine.map(), &LIMITS_1_5) {
            prop_assert_eq!(Platform::new(&machine.cmrs).config(&plan.tdmrs), Status::SUCCESS);
        }
    }

    #[test]
    fn the_module_takes_the_plan_of_every_map((machine, limits) in shreds()) {
        if let Ok(plan) = plan(&machine.map(), &limits) {
            prop_assert_eq!(Platform::new(&machine.cmrs).config(&plan.tdmrs), Status::SUCCESS);
        }
    }

    /// The checker and the module agree, on good plans and on changed ones.
    #[test]
    fn the_checker_says_what_the_module_says(
        (machine, limits) in shreds(),
        changes in prop::collection::vec((change(), any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..3),
    ) {
        if let Ok(plan) = plan(&machine.map(), &limits) {
            let mut tdmrs = plan.tdmrs;
            for (change, which, part) in &changes {
                change.spoil(&mut tdmrs, *which, *part);
            }
            let status = Platform::new(&machine.cmrs).config(&tdmrs);
            let found = violations(&tdmrs, &machine.cmrs, &LIMITS_1_5);
            prop_assert_eq!(status == Status::SUCCESS, found.is_empty(), "{:?}, {:?}", status, found);
        }
    }
}
