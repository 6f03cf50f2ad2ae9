//! The refusals of TDH.SYS.INIT, one for each requirement, on each release; and those of TDH.SYS.LP.INIT that are due to
//! another processor.
//!
//! The recordings cover the operands, the order of the calls, and differing MSRs. What a machine lacks they do not cover:
//! there the specification and the module's public tables decide.

use seam::abi::{Gprs, Leaf, Operand, Status};
use stub_module::host::{Conditions, Config, Server};
use stub_module::{Change, Point, Release, SysState, sapphire_rapids};

const VERSION_1: u64 = 1 << 16;
/// A page of the host for the record, and a notification by an interrupt.
const RECORD: u64 = 0x4040_0001_6003_0000;

/// A machine that lacks something.
type Spoil = fn(&mut Config);

fn msr(config: &mut Config, msr: u32, value: impl Fn(u64) -> u64) {
    config.msrs.insert(msr, value(sapphire_rapids::msr(msr)));
}

fn cpuid(config: &mut Config, leaf: u32, sub_leaf: u32, change: impl Fn(&mut [u32; 4])) {
    let mut registers = sapphire_rapids::cpuid(leaf, sub_leaf);
    change(&mut registers);
    config.cpuids.insert((leaf, sub_leaf), registers);
}

fn server(release: Release, spoil: Spoil) -> Server {
    let mut config = Config {
        release,
        ..Config::default()
    };
    spoil(&mut config);
    Server::new(config)
}

/// Calls TDH.SYS.INIT with RAX bits beyond the leaf's number, and returns the registers.
fn init(server: &Server, rax: u64, rcx: u64, r8: u64) -> Gprs {
    let mut regs = Gprs {
        rax: Leaf::SysInit.rax() | rax,
        rcx,
        rdx: 0xDD,
        r8,
        ..Gprs::default()
    };
    server.module().seamcall(server.machine(), 0, &mut regs);
    regs
}

fn has_record(release: Release) -> bool {
    release != Release::V1_5_01
}

/// A feature that a machine may lack, and the status. The first three are in the order of the checks.
const MACHINES: &[(&str, Spoil, Status)] = &[
    (
        "ARCH_CAPABILITIES without a bit that must be 1",
        |config| msr(config, 0x10A, |value| value & !1),
        Status::INCORRECT_MSR_VALUE.with_detail(0x10A),
    ),
    (
        "an APIC that can leave x2APIC mode",
        |config| msr(config, 0xBD, |_| 0),
        Status::INCORRECT_MSR_VALUE.with_detail(0xBD),
    ),
    (
        "no energy filter",
        |config| msr(config, 0xBC, |_| 0),
        Status::INCORRECT_MSR_VALUE.with_detail(0xBC),
    ),
    (
        "PERF_CAPABILITIES without full-width writes",
        |config| msr(config, 0x345, |value| value & !(1 << 13)),
        Status::INCORRECT_MSR_VALUE.with_detail(0x345),
    ),
    (
        "CPUID limited to leaf 2",
        |config| msr(config, 0x1A0, |value| value | 1 << 22),
        Status::LIMIT_CPUID_MAXVAL_SET,
    ),
    (
        "CPUID without leaf 0x1F",
        |config| cpuid(config, 0, 0, |registers| registers[0] = 0x1E),
        Status::CPUID_LEAF_NOT_SUPPORTED.with_detail(0x1F),
    ),
    (
        "CPUID without leaf 0x80000008",
        |config| cpuid(config, 1 << 31, 0, |registers| registers[0] = 0x8000_0007),
        Status::CPUID_LEAF_NOT_SUPPORTED.with_detail(0x8000_0008),
    ),
    (
        "no frequency of the TSC",
        |config| cpuid(config, 0x15, 0, |registers| registers[1] = 0),
        Status::CPUID_LEAF_NOT_SUPPORTED.with_detail(0x15),
    ),
    (
        "levels of topology in the wrong order",
        |config| cpuid(config, 0x1F, 1, |registers| registers[2] = 0x101),
        Status::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED,
    ),
    (
        "an L3 cache of a part of the package",
        |config| cpuid(config, 4, 3, |registers| registers[0] &= !(0xFFF << 14)),
        Status::INVALID_WBINVD_SCOPE,
    ),
    (
        "VMX without true controls",
        |config| msr(config, 0x480, |value| value & !(3 << 54)),
        Status::INCORRECT_MSR_VALUE.with_detail(0x480),
    ),
    (
        "a pin-based control that must be 1",
        |config| msr(config, 0x48D, |value| value | 1 << 6),
        Status::INCORRECT_MSR_VALUE.with_detail(0x48D),
    ),
    (
        "a processor-based control that is missing",
        |config| msr(config, 0x48E, |value| value & !(1 << (32 + 31))),
        Status::INCORRECT_MSR_VALUE.with_detail(0x48E),
    ),
    (
        "no EPT",
        |config| msr(config, 0x48B, |value| value & !(1 << (32 + 1))),
        Status::INCORRECT_MSR_VALUE.with_detail(0x48B),
    ),
    (
        "no loading of EFER at an exit",
        |config| msr(config, 0x48F, |value| value & !(1 << (32 + 21))),
        Status::INCORRECT_MSR_VALUE.with_detail(0x48F),
    ),
    (
        "no loading of EFER at an entry",
        |config| msr(config, 0x490, |value| value & !(1 << (32 + 15))),
        Status::INCORRECT_MSR_VALUE.with_detail(0x490),
    ),
    (
        "too few CR3 targets",
        |config| msr(config, 0x485, |value| value & !(0x1FF << 16)),
        Status::INCORRECT_MSR_VALUE.with_detail(0x485),
    ),
    (
        "an EPT of 4 levels only",
        |config| msr(config, 0x48C, |value| value & !(1 << 6)),
        Status::INCORRECT_MSR_VALUE.with_detail(0x48C),
    ),
    (
        "a bit of CR0 that must be 1",
        |config| msr(config, 0x486, |value| value | 1 << 1),
        Status::INCORRECT_MSR_VALUE.with_detail(0x486),
    ),
    (
        "a bit of CR0 that must be 0",
        |config| msr(config, 0x487, |value| value & !(1 << 5)),
        Status::INCORRECT_MSR_VALUE.with_detail(0x487),
    ),
    (
        "a bit of CR4 that must be 1",
        |config| msr(config, 0x488, |value| value | 1),
        Status::INCORRECT_MSR_VALUE.with_detail(0x488),
    ),
    (
        "a bit of CR4 that must be 0",
        |config| msr(config, 0x489, |value| value & !(1 << 6)),
        Status::INCORRECT_MSR_VALUE.with_detail(0x489),
    ),
    (
        "memory encryption that is not locked",
        |config| {
            config.msrs.insert(0x982, 0x3_0056_0000_0002);
        },
        Status::INCORRECT_MSR_VALUE.with_detail(0x982),
    ),
    (
        "no algorithm that the CPU has",
        |config| {
            config.msrs.insert(0x981, 0x3F6_8000_0000);
        },
        Status::INCORRECT_MSR_VALUE.with_detail(0x981),
    ),
    (
        "no algorithm that the firmware allows",
        |config| {
            config.msrs.insert(0x982, 0x56_0000_0003);
        },
        Status::INCORRECT_MSR_VALUE.with_detail(0x982),
    ),
    (
        "more HKIDs than the module can track",
        |config| config.num_tdx_keyids = 2048 - 31,
        Status::NUM_ACTIVATED_HKIDS_NOT_SUPPORTED.with_detail(2048),
    ),
    (
        "two numbers of cache parts",
        |config| {
            config.msrs.insert(0x99, 5);
        },
        Status::INCORRECT_MSR_VALUE.with_detail(0x99),
    ),
    (
        "a CMR that does not consist of pages",
        |config| config.cmrs = [(4 << 30, 0x1800)].into(),
        Status::CMR_LIST_INVALID,
    ),
    (
        "CMRs that overlap",
        |config| config.cmrs = [(4 << 30, 2 << 30), (5 << 30, 2 << 30)].into(),
        Status::CMR_LIST_INVALID,
    ),
    (
        "no SMRRs",
        |config| msr(config, 0xFE, |value| value & !(1 << 11)),
        Status::SMRR_NOT_SUPPORTED,
    ),
    (
        "SMRRs that can't be locked",
        |config| msr(config, 0xFE, |value| value & !(1 << 14)),
        Status::SMRR_LOCK_NOT_SUPPORTED,
    ),
    (
        "SMRRs that are not locked",
        |config| msr(config, 0x1F3, |value| value & !(1 << 10)),
        Status::SMRR_NOT_LOCKED,
    ),
    (
        "an SMRR that is not aligned to its size",
        |config| {
            config.msrs.insert(0x1F2, 0x6010_0006);
            config.msrs.insert(0x1F3, 0xFF80_0C00);
        },
        Status::INVALID_SMRR_CONFIGURATION,
    ),
    (
        "an SMRR in a CMR",
        |config| {
            config.cmrs = [(0x7000_0000, 0x100_0000), (4 << 30, 2 << 30)].into();
            config.msrs.insert(0x1F2, 0x7080_0006);
            config.msrs.insert(0x1F3, 0xFF80_0C00);
        },
        Status::SMRR_OVERLAPS_CMR,
    ),
];

/// Requirements of the newer releases alone.
const STRICT: &[(&str, Spoil, Status)] = &[
    (
        "ARCH_CAPABILITIES with FB_CLEAR_CTRL",
        |config| msr(config, 0x10A, |value| value | 1 << 18),
        Status::INCORRECT_MSR_VALUE.with_detail(0x10A),
    ),
    (
        "PERF_CAPABILITIES without a freeze in SMM",
        |config| msr(config, 0x345, |value| value & !(1 << 12)),
        Status::INCORRECT_MSR_VALUE.with_detail(0x345),
    ),
    (
        "no performance monitoring",
        |config| msr(config, 0x1A0, |value| value & !(1 << 7)),
        Status::INCORRECT_MSR_VALUE.with_detail(0x1A0),
    ),
    (
        "no branch trace store",
        |config| msr(config, 0x1A0, |value| value | 1 << 11),
        Status::INCORRECT_MSR_VALUE.with_detail(0x1A0),
    ),
];

/// Checks that TDH.SYS.INIT is refused, in each version, and starts nothing.
fn refuses(release: Release, (what, spoil, status): (&str, Spoil, Status)) {
    let versions = if has_record(release) { 0..=1 } else { 0..=0 };
    for version in versions {
        let server = server(release, spoil);
        for _ in 0..2 {
            let regs = init(&server, version << 16, 0, RECORD * version);
            assert_eq!(Status(regs.rax), status, "{release}: {what}");
            assert_eq!(server.module().state(), SysState::InitPending);
        }
        let early = server.processor(0).unwrap().leaf(Leaf::SysLpInit, []);
        assert_eq!(early.unwrap_err(), Status::SYS_LP_INIT_NOT_PENDING);
    }
}

#[test]
fn each_requirement_of_the_machine_is_checked_on_each_release() {
    for release in Release::ALL {
        MACHINES.iter().for_each(|case| refuses(release, *case));
    }
}

#[test]
fn the_newer_releases_require_more() {
    for release in Release::ALL {
        for case in STRICT {
            if release.does(Change::STRICT_INIT) {
                refuses(release, *case);
            } else {
                let regs = init(&server(release, case.1), 0, 0, 0);
                assert_eq!(Status(regs.rax), Status::SUCCESS, "{release}: {}", case.0);
            }
        }
    }
}

#[test]
fn an_unfit_feature_of_the_cpu_is_named_with_its_leaf_mask_and_value() {
    for release in Release::ALL {
        let without_smep = |config: &mut Config| {
            cpuid(config, 7, 0, |registers| registers[1] &= !(1 << 7));
        };
        let regs = init(&server(release, without_smep), 0, 0, 0);
        assert_eq!(Status(regs.rax), Status::INCORRECT_CPUID_VALUE);
        // The leaf with its sub-leaf; the mask of EBX; the value that the module wants.
        assert_eq!(regs.rcx, 7, "{release}");
        assert_eq!(regs.rdx >> (32 + 7) & 1, 1, "{release}: {:#x}", regs.rdx);
        assert_eq!(regs.r9 >> (32 + 7) & 1, 1, "{release}: {:#x}", regs.r9);
    }
}

#[test]
fn operands_are_checked_before_the_machine_and_the_record_after_it() {
    let unfit: Spoil = |config| msr(config, 0x10A, |_| 0);
    let machine = Status::INCORRECT_MSR_VALUE.with_detail(0x10A);
    for release in Release::ALL {
        let status = |rax, rcx, r8| Status(init(&server(release, unfit), rax, rcx, r8).rax);
        let invalid = |operand| Status::OPERAND_INVALID.with(operand);
        assert_eq!(status(2 << 16, 1, 0), invalid(Operand::RAX));
        assert_eq!(status(1 << 24, 0, 0), invalid(Operand::RAX));
        assert_eq!(status(0, 1, 0), invalid(Operand::RCX));
        let with_record = if has_record(release) {
            [invalid(Operand::RCX), machine]
        } else {
            [invalid(Operand::RAX); 2]
        };
        assert_eq!(status(VERSION_1, 1, RECORD), with_record[0], "{release}");
        assert_eq!(status(VERSION_1, 0, 1), with_record[1], "{release}");
    }
}

#[test]
fn a_place_that_is_not_the_hosts_is_refused_and_another_may_follow() {
    for release in Release::ALL
        .into_iter()
        .filter(|release| has_record(*release))
    {
        let server = server(release, |_| ());
        let seamrr = server.machine().config().seamrr.0;
        for r8 in [
            // Not a cache line; reserved bits; a private HKID; the SEAM range; the vector of an exception.
            RECORD | 1,
            RECORD | 1 << 52,
            RECORD | 1 << 53,
            RECORD | 33 << 46,
            seamrr,
            RECORD & !(0xFF << 56) | 15 << 56,
        ] {
            let regs = init(&server, VERSION_1, 0, r8);
            let refused = Status::OPERAND_INVALID.with(Operand::R8);
            assert_eq!(Status(regs.rax), refused, "{release}: {r8:#x}");
        }
        assert_eq!(init(&server, VERSION_1, 0, RECORD).rax, 0);
        let again = Status(init(&server, VERSION_1, 0, RECORD).rax);
        assert_eq!(again, Status::SYS_INIT_NOT_PENDING);
    }
}

#[test]
fn the_registers_of_a_refusal_are_zero() {
    for release in Release::ALL {
        let regs = init(&server(release, |_| ()), 2 << 16, 7, 7);
        let rdx = if release == Release::V1_5_01 { 0xDD } else { 0 };
        assert_eq!(regs.rdx, rdx, "{release}");
    }
}

#[test]
fn a_processor_that_differs_is_refused_until_it_does_not() {
    const MSRS: [u32; 8] = [0xCF, 0x10A, 0x3B, 0x981, 0x982, 0x87, 0x480, 0xFE];
    for release in Release::ALL {
        for msr in MSRS {
            let server = server(release, |_| ());
            assert_eq!(init(&server, 0, 0, 0).rax, 0);
            let second = server.processor(1).unwrap();
            let other = server.machine();
            let differs = Conditions {
                msrs: [(msr, 0x5A5A)].into(),
                ..Conditions::default()
            };
            other.set_conditions(1, differs);
            let refused = second.leaf(Leaf::SysLpInit, []).unwrap_err();
            assert_eq!(
                refused,
                Status::INCONSISTENT_MSR.with_detail(msr),
                "{release}"
            );
            let before = server.processor(0).unwrap().leaf(Leaf::SysConfig, []);
            assert_eq!(before.unwrap_err(), Status::SYS_CONFIG_NOT_PENDING);
            other.set_conditions(1, Conditions::default());
            second.leaf(Leaf::SysLpInit, []).unwrap();
            let twice = second.leaf(Leaf::SysLpInit, []).unwrap_err();
            assert_eq!(twice, Status::SYS_LP_INIT_DONE);
        }
    }
}

#[test]
fn another_processor_in_the_module_makes_it_busy() {
    for release in Release::ALL {
        let server = server(release, |_| ());
        assert_eq!(init(&server, 0, 0, 0).rax, 0);
        std::thread::scope(|scope| {
            let held = server.machine().hold_at(1, Point::Invept, 1).unwrap();
            let second = server.processor(1).unwrap();
            let job = scope.spawn(move || second.leaf(Leaf::SysLpInit, []));
            assert!(held.wait());
            // TDH.SYS.LP.INIT may run on several at once, TDH.SYS.INIT alone.
            assert_eq!(Status(init(&server, 0, 0, 0).rax), Status::SYS_BUSY);
            server
                .processor(0)
                .unwrap()
                .leaf(Leaf::SysLpInit, [])
                .unwrap();
            drop(held);
            job.join().unwrap().unwrap();
        });
    }
}
