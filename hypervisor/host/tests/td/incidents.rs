//! Incidents of other hosts with TDX, re-enacted: what went wrong there ends well here. docs/coverage.md lists them.

use host::platform::Platform;
use host::td::capabilities::Capabilities;
use host::td::end::{Ended, Way};
use host::td::error::Error;
use host::td::life::State;
use host::td::params::Unsupported;
use host::td::vcpu::Refused;
use seam::abi::{GuestLeaf, Leaf, Operand, PAGE_4K, PageSize, PageType, Status};
use seam::address::SHARED;
use stub_module::Release;

use super::kit::{FULL, ONE, Server, td};
use super::rig::{BASE, Setup};
use super::site::{Act, call, on_site};

const MAP_GPA: u64 = 0x1_0001;

/// Creates the default server with this release of the module.
fn server(release: Release) -> Server {
    Server::of(&Setup {
        release,
        ..Setup::default()
    })
}

/// TDH.MEM.RANGE.BLOCK was busy, its caller went on, and TDH.MEM.PAGE.DEMOTE failed.
#[test]
fn a_page_is_not_split_before_its_block_has_succeeded() {
    const AT: u64 = 14 << 20;
    let server = Server::new("");
    let calls = |leaf| server.rig.calls(leaf);
    let busy = Status::OPERAND_BUSY.with(Operand::SEPT_TREE);
    on_site(&server, &FULL.replace("vcpus = 2", "vcpus = 1"), |site| {
        site.tds.start(1).unwrap();
        let map_gpa = call(MAP_GPA, [SHARED | AT, PAGE_4K, 0, 0]);
        server.rig.refuse(Leaf::MemRangeBlock, 1..=u64::MAX, busy);
        let script = site.play(&[Act::Call(map_gpa)]);
        assert!(script.answers().is_empty(), "the call is not over");
        assert!(calls(Leaf::MemRangeBlock) > 1, "it is tried several times");
        assert_eq!([Leaf::MemTrack, Leaf::MemPageDemote].map(calls), [0, 0]);
        server.rig.refuse_no_more();
        server.rig.refuse(Leaf::MemRangeBlock, 1..=3, busy);
        // The vCPU waits for a moment before it goes on.
        // The vCPU is put off for a millisecond.
        server.rig.pass(3_000_000_000);
        assert!(site.scheduler.schedule());
        assert_eq!(script.answers()[0].regs().r10, 0);
        assert_eq!(calls(Leaf::MemPageDemote), 1);
        assert!(calls(Leaf::MemTrack) > 0);
        let guest = site.scheduler.guest(1).unwrap();
        assert!(guest.vm().end().is_none());
    });
    server.assert_spotless();
}

/// TDH.PHYMEM.PAGE.RECLAIM was called many times for pages that the module had in another state, and they were lost.
#[test]
fn pages_that_the_module_released_before_are_asked_for_once_and_not_lost() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    let reclaims = || server.rig.calls(Leaf::PhymemPageReclaim);
    let mut usual = reclaims();
    tds.start(1).unwrap();
    tds.destroy(1, Way::Terminate).unwrap();
    usual = reclaims() - usual;
    tds.start(1).unwrap();
    tds.terminate(1).unwrap();
    let frames = server.rig.server().audit(BASE..BASE + (1 << 30)).unwrap();
    let of = |page_type: PageType| {
        frames.iter().filter(move |(_, frame)| {
            frame.page_type == page_type && frame.size == PageSize::Size4K.bytes()
        })
    };
    let cpu = server.rig.server().processor(3).unwrap();
    let some = of(PageType::Reg)
        .take(5)
        .chain(of(PageType::Ept).take(1))
        .chain(of(PageType::Tdcx).take(1));
    for (page, _) in some {
        cpu.leaf(Leaf::PhymemPageReclaim, [(Operand::RCX, *page)])
            .unwrap();
    }
    let before = reclaims();
    let ended = tds.destroy(1, Way::Terminate);
    assert!(matches!(ended, Ok(Ended::Now(_))), "{ended:?}");
    assert_eq!(reclaims() - before, usual, "one call for each page");
    assert_eq!(server.rig.calls(Leaf::PhymemPageRdmd), 7);
    assert_eq!(tds.notes(1).unwrap().problem, None);
    server.assert_nothing_lost();
}

/// The same, for a page that the module does not release.
#[test]
fn a_page_that_the_module_keeps_is_quarantined_and_counted() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    tds.start(1).unwrap();
    let kept = Status::PAGE_METADATA_INCORRECT.with(Operand::RCX);
    // The last page before the TDR.
    tds.terminate(1).unwrap();
    server.rig.refuse(Leaf::PhymemPageReclaim, 20..=20, kept);
    tds.destroy(1, Way::Terminate).unwrap();
    let notes = tds.notes(1).unwrap();
    // The TDR stays the module's as long as a page of the TD does.
    assert_eq!(notes.quarantine.len(), 2, "{:?}", notes.quarantine);
    let pages: u64 = notes.quarantine.iter().map(|page| page.size.pages()).sum();
    assert_eq!(server.rig.out(), (0, pages * PAGE_4K));
    let problem = notes.problem.unwrap();
    assert!(
        problem.starts_with(&format!("{pages} of its pages are in quarantine")),
        "{problem}"
    );
    assert_eq!(server.rig.calls(Leaf::PhymemPageRdmd), 1);
    server.rig.audit();
}

/// Returns `[[td.cpuid]]` for an entry, with these registers.
fn cpuid_text(leaf: u32, sub_leaf: Option<u32>, registers: &[(&str, u32)]) -> String {
    let sub_leaf = sub_leaf.map_or(String::new(), |number| format!("subleaf = {number}\n"));
    let registers = registers
        .iter()
        .map(|(name, value)| format!("{name} = {value}\n"));
    let registers: String = registers.collect();
    format!("{ONE}[[td.cpuid]]\nleaf = {leaf}\n{sub_leaf}{registers}")
}

const REGISTERS: [&str; 4] = ["eax", "ebx", "ecx", "edx"];

/// TDH.MNG.INIT refused CPUID_CONFIG at every start of a TD, and the log named no leaf.
#[test]
fn a_wrong_cpuid_bit_is_named_with_its_leaf_whichever_it_is() {
    for release in Release::ALL {
        let server = server(release);
        let module = Capabilities::read(&server.rig.tdh()).unwrap();
        for entry in &module.cpuid {
            let place = match entry.sub_leaf {
                Some(sub_leaf) => format!("leaf {:#x}, subleaf {sub_leaf:#x}", entry.leaf),
                None => format!("leaf {:#x}", entry.leaf),
            };
            for (register, mask) in REGISTERS.into_iter().zip(entry.mask) {
                let bits = !mask & mask.wrapping_add(1);
                if bits == 0 {
                    continue;
                }
                let text = cpuid_text(entry.leaf, entry.sub_leaf, &[(register, bits)]);
                let error = server.tds(&text).create(1).unwrap_err();
                let refused = Unsupported::CpuidBits {
                    leaf: entry.leaf,
                    sub_leaf: entry.sub_leaf,
                    register,
                    bits,
                };
                assert_eq!(error, Error::Unsupported(refused));
                let told = format!("the bits {bits:#x} of {register} in {place}");
                assert!(error.to_string().ends_with(&told), "{error}");
            }
        }
        assert_eq!(server.rig.calls(Leaf::MngCreate), 0, "the host knows it");
        server.assert_nothing_lost();
    }
}

/// The same, for values that only the module can judge.
#[test]
fn a_cpuid_value_that_the_module_refuses_is_named_with_its_leaf() {
    for release in Release::ALL {
        let server = server(release);
        let module = Capabilities::read(&server.rig.tdh()).unwrap();
        let mut refused = 0;
        for entry in &module.cpuid {
            for values in [[0; 4], entry.mask] {
                let registers: Vec<_> = REGISTERS.into_iter().zip(values).collect();
                let tds = server.tds(&cpuid_text(entry.leaf, entry.sub_leaf, &registers));
                match tds.create(1) {
                    Ok(_) => drop(tds.destroy(1, Way::Terminate).unwrap()),
                    Err(error) => {
                        assert!(matches!(error, Error::Init(..)), "{error}");
                        let place = match entry.leaf {
                            0x1F => "CPUID_LEAF_1F_FORMAT_UNRECOGNIZED".into(),
                            leaf => format!("(cpuid: leaf {leaf:#x}"),
                        };
                        assert!(error.to_string().contains(&place), "{error}");
                        refused += 1;
                    }
                }
            }
        }
        assert!(refused > 0, "{release} refuses no model");
        server.assert_nothing_lost();
    }
}

/// MAX_VCPUS exceeded the vCPUs created, and firmware that took one for the other waited for vCPUs that did not exist.
#[test]
fn a_guest_finds_as_many_vcpus_as_it_may_have() {
    for release in Release::ALL {
        let server = server(release);
        for vcpus in [1, 4] {
            let text = ONE.replace("vcpus = 2", &format!("vcpus = {vcpus}"));
            on_site(&server, &text, |site| {
                site.tds.start(1).unwrap();
                let script = site.play(&[Act::Tdcall(GuestLeaf::VpInfo.rax(), 0)]);
                let counts = script.answers()[0].regs().r8;
                assert_eq!((counts as u32, counts >> 32), (vcpus, vcpus.into()));
            });
        }
        server.assert_spotless();
    }
}

/// A host asked an older module for a field that it does not have, and did without TDX.
#[test]
fn a_field_that_an_older_module_lacks_has_a_default() {
    for (release, most) in [
        (Release::V1_5_01, u16::MAX),
        (Release::V1_5_16, 576),
        (Release::V1_5_25, 576),
    ] {
        let server = server(release);
        let module = Capabilities::read(&server.rig.tdh()).unwrap();
        assert_eq!(module.max_vcpus, most, "{release}");
        assert_eq!(module.topology_enum, release != Release::V1_5_01);
        let tds = server.tds(ONE);
        tds.start(1).unwrap();
        tds.destroy(1, Way::Terminate).unwrap();
        server.assert_spotless();
    }
}

/// The creation of a vCPU failed after it was tied to a CPU, and it stayed on that CPU's list.
#[test]
fn a_vcpu_that_could_not_be_made_is_flushed_where_it_was_associated() {
    for release in Release::ALL {
        let server = server(release);
        let tds = server.tds(ONE);
        let duplicate = Status::X2APIC_ID_NOT_UNIQUE.with_detail(1);
        // The module associates vCPU 1 with CPU 1 in the second case only.
        for (leaf, status, flushes) in [
            (Leaf::VpInit, duplicate, 1),
            (Leaf::VpWr, Status::METADATA_FIELD_VALUE_NOT_VALID, 2),
        ] {
            let calls = if leaf == Leaf::VpWr {
                wirings(&server) / 2 + 1
            } else {
                2
            };
            let before = server.rig.calls(Leaf::VpFlush);
            server.rig.refuse(leaf, calls..=calls, status);
            let error = tds.create(1).unwrap_err().to_string();
            assert!(error.contains(leaf.name()), "{error}");
            server.rig.refuse_no_more();
            let made = server.rig.calls(Leaf::VpFlush) - before;
            assert_eq!(made, flushes, "{release}: {}", leaf.name());
            assert_eq!(tds.state(1), State::Reclaimed);
            server.assert_nothing_lost();
        }
        tds.create(1).unwrap();
        tds.destroy(1, Way::Terminate).unwrap();
        server.assert_nothing_lost();
    }
}

/// Returns the number of TDH.VP.WR that two vCPUs take.
fn wirings(server: &Server) -> u64 {
    let tds = server.tds(ONE);
    let before = server.rig.calls(Leaf::VpWr);
    tds.create(1).unwrap();
    tds.destroy(1, Way::Terminate).unwrap();
    server.rig.calls(Leaf::VpWr) - before
}

/// The same on the way to another CPU: the call that associates the vCPU fails, before the association or after it.
#[test]
fn a_vcpu_that_did_not_get_to_another_cpu_is_flushed_there() {
    let failed = Status::OPERAND_INVALID.with(Operand::RDX);
    for is_associated in [false, true] {
        let server = Server::new("");
        let tds = server.tds(ONE);
        tds.start(1).unwrap();
        if is_associated {
            server.rig.spoil(Leaf::VpRd, 1..=1, failed);
        } else {
            server.rig.refuse(Leaf::VpRd, 1..=1, failed);
        }
        let (rig, one) = (server.rig.clone(), td(&tds, 1));
        let held = server.rig.start(2, move || one.hold(&rig, 0).map(drop));
        assert!(matches!(held.wait(&server.rig), Err(Refused::Seam(_))));
        // It can be used elsewhere, and the TD ends.
        drop(td(&tds, 1).hold(&server.rig, 0).unwrap());
        let ended = tds.destroy(1, Way::Terminate);
        assert!(matches!(ended, Ok(Ended::Now(_))), "{ended:?}");
        server.assert_nothing_lost();
    }
}

/// A machine had more CPUs than a TD may have vCPUs, and bring-up failed or went on with garbage.
#[test]
fn fewer_vcpus_than_cpus_and_no_free_hkid_are_told_with_numbers() {
    for release in [Release::V1_5_16, Release::V1_5_25] {
        let server = Server::of(&Setup {
            packages: [0, 0, 0, 0, 1, 1, 1, 1].into(),
            hkids: 2,
            hooks: "patterns\nmax-vcpus 4".into(),
            release,
            ..Setup::default()
        });
        let with = |name: &str, vcpus| {
            ONE.replace("one", name)
                .replace("vcpus = 2", &format!("vcpus = {vcpus}"))
        };
        let tds = server.tds(&[with("eight", 8), with("four", 4), with("two", 2)].concat());
        assert_eq!(
            tds.create(1).unwrap_err().to_string(),
            "vcpus: 8 are configured, and this TDX module supports at most 4"
        );
        tds.start(2).unwrap();
        let error = tds.create(3).unwrap_err();
        assert!(matches!(error, Error::NoHkid(_)), "{error}");
        assert!(error.to_string().contains('2'), "{error}");
        assert_eq!(server.rig.calls(Leaf::MngCreate), 1);
        tds.destroy(2, Way::Terminate).unwrap();
        tds.start(3).unwrap();
        tds.destroy(3, Way::Terminate).unwrap();
        server.assert_spotless();
    }
}
