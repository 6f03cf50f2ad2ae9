//! Incidents of other hosts with TDX, re-enacted: what went wrong there ends well here.

use host::platform::Platform;
use host::td::capabilities::Capabilities;
use host::td::end::Way;
use host::td::error::Error;
use host::td::life::State;
use host::td::params::Unsupported;
use seam::abi::{Leaf, Operand, Status};

use super::kit::{FULL, Server};
use super::rig::Setup;
use stub_module::Release;

const MIB: u64 = 1 << 20;

/// canonical/tdx #213: TDH.MEM.RANGE.BLOCK was busy, its caller went on, and TDH.MEM.PAGE.DEMOTE failed.
#[test]
fn incident_3_a_busy_block_is_repeated_before_a_large_page_is_split() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    tds.start(1).unwrap();
    let busy = Status::OPERAND_BUSY.with(Operand::SEPT_TREE);
    server.rig.refuse(Leaf::MemRangeBlock, 1..=3, busy);
    tds.shrink(1, 14 * MIB).unwrap();
    assert!(server.rig.calls(Leaf::MemRangeBlock) > 3);
    server.rig.refuse_no_more();
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}

/// canonical/tdx #153: TDH.PHYMEM.PAGE.RECLAIM was called on pages in another state than the host believed, many times
/// over, and pages were lost.
#[test]
fn incident_4_a_page_that_the_module_keeps_is_asked_for_again_and_none_is_lost() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    let calls_of_an_end = || {
        tds.start(1).unwrap();
        let before = server.rig.calls(Leaf::PhymemPageReclaim);
        tds.destroy(1, Way::Terminate).unwrap();
        server.rig.calls(Leaf::PhymemPageReclaim) - before
    };
    let usual = calls_of_an_end();
    let kept = Status::PAGE_METADATA_INCORRECT.with(Operand::RCX);
    server.rig.refuse(Leaf::PhymemPageReclaim, 2..=3, kept);
    let calls = calls_of_an_end();
    assert!(
        usual.abs_diff(calls) < 9,
        "{calls} calls instead of {usual}"
    );
    server.rig.refuse_no_more();
    assert_eq!((server.hkids(), server.rig.out()), ((0, 0), (0, 0)));
}

/// intel/tdx-module #24: TDH.MNG.INIT refused CPUID_CONFIG, and the log named no leaf.
#[test]
fn incident_6_a_wrong_cpuid_bit_is_told_with_its_leaf_whichever_it_is() {
    let server = Server::new("");
    let module = Capabilities::read(&server.rig.tdh()).unwrap();
    for entry in &module.cpuid {
        let Some(register) = (0..4).find(|i| entry.mask[*i] != u32::MAX) else {
            continue;
        };
        let bit = !entry.mask[register] & entry.mask[register].wrapping_add(1);
        let bit = if bit == 0 { 1 << 31 } else { bit };
        let sub_leaf = entry
            .sub_leaf
            .map_or(String::new(), |sub_leaf| format!("subleaf = {sub_leaf}\n"));
        let name = ["eax", "ebx", "ecx", "edx"][register];
        let text = format!(
            "{FULL}[[td.cpuid]]\nleaf = {}\n{sub_leaf}{name} = {bit}\n",
            entry.leaf
        );
        let error = server.tds(&text).create(1).unwrap_err();
        let expected = Unsupported::CpuidBits {
            leaf: entry.leaf,
            sub_leaf: entry.sub_leaf,
            register: name,
            bits: bit,
        };
        assert_eq!(error, Error::Unsupported(expected));
        let place = format!("of {name} in leaf {:#x}", entry.leaf);
        assert!(error.to_string().contains(&place), "{error}");
    }
    server.assert_nothing_lost();
}

/// tianocore/edk2 #5828: MAX_VCPUS exceeded the vCPUs created, and firmware waited for those that did not exist.
#[test]
fn incident_9_a_td_s_maximum_of_vcpus_is_the_number_created() {
    let server = Server::new("");
    for vcpus in 1..=4 {
        let tds = server.tds(&FULL.replace("vcpus = 2", &format!("vcpus = {vcpus}")));
        let before = server.rig.calls(Leaf::VpInit);
        tds.create(1).unwrap();
        assert_eq!(server.rig.calls(Leaf::VpInit) - before, vcpus);
        tds.destroy(1, Way::Terminate).unwrap();
    }
    server.assert_spotless();
}

/// intel/tdx-module #12: a host asked an older module for a field that it does not have, and did without TDX.
#[test]
fn incident_12_an_older_module_lacks_fields_and_builds_tds() {
    for (release, most) in [
        (Release::V1_5_01, u16::MAX),
        (Release::V1_5_16, 576),
        (Release::V1_5_25, 576),
    ] {
        let server = Server::of(&Setup {
            release,
            ..Setup::default()
        });
        let module = Capabilities::read(&server.rig.tdh()).unwrap();
        assert_eq!(module.max_vcpus, most, "{release}");
        assert_eq!(module.topology_enum, release != Release::V1_5_01);
        let tds = server.tds(FULL);
        tds.start(1).unwrap();
        tds.destroy(1, Way::Terminate).unwrap();
        server.assert_spotless();
    }
}

/// Linux 6.19: a vCPU whose creation failed stayed on its CPU's list.
#[test]
fn incident_13_a_vcpu_that_could_not_be_made_is_on_no_cpu() {
    let server = Server::new("");
    let tds = server.tds(FULL);
    for (leaf, status) in [
        (Leaf::VpInit, Status::X2APIC_ID_NOT_UNIQUE.with_detail(1)),
        (Leaf::VpWr, Status::METADATA_FIELD_VALUE_NOT_VALID),
    ] {
        server.rig.refuse(leaf, 2..=2, status);
        let error = tds.create(1).unwrap_err();
        assert!(error.to_string().contains(leaf.name()), "{error}");
        server.rig.refuse_no_more();
        assert_eq!(tds.state(1), State::Reclaimed);
        server.assert_nothing_lost();
    }
    tds.create(1).unwrap();
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_nothing_lost();
}

/// Linux 1156d54f7f79: a machine with more CPUs than a TD may have vCPUs.
#[test]
fn incident_14_too_many_vcpus_are_refused_with_both_numbers() {
    let server = Server::new("");
    let many = FULL.replace("vcpus = 2", "vcpus = 577");
    let error = server.tds(&many).create(1).unwrap_err().to_string();
    assert_eq!(
        error,
        "vcpus: 577 are configured, and this TDX module supports at most 576"
    );
    let tds = server.tds(FULL);
    tds.create(1).unwrap();
    tds.destroy(1, Way::Terminate).unwrap();
    server.assert_spotless();
}
