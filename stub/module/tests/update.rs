//! Hand-off from one module to another by TDH.SYS.SHUTDOWN and TDH.SYS.UPDATE, between and within the releases.
//!
//! The recordings cover updates to the same release and from 1.5.16 to 1.5.25. These tests state the rules of both
//! directions as a host sees them.

mod kit;

use kit::{BASE, Builder, GLOBAL_HKID, PAGE, SIZE, TDVPS_PAGES, Td};
use seam::abi::{Features0, Gprs, Leaf, Operand, Status};
use stub_module::hooks::Hooks;
use stub_module::host::Config;
use stub_module::{Machine, Module, Release, SysState};

const VERSION_1: u64 = 1 << 16;
const COMPATIBILITY: u64 = Features0::UPDATE_COMPATIBILITY.bits();

/// A machine whose module is replaced.
struct Host {
    built: Builder,
    installed: Option<Module>,
}

impl Host {
    fn new(release: Release) -> Self {
        let config = Config {
            release,
            ..Config::default()
        };
        Self {
            built: Builder::sized(config, SIZE, Hooks::default()),
            installed: None,
        }
    }

    fn module(&self) -> &Module {
        let first = self.built.server.module();
        self.installed.as_ref().unwrap_or(first)
    }

    /// Calls a leaf with operands in RCX, RDX, R8, R9, R10.
    fn call(&self, lp: u32, rax: u64, operands: [u64; 5]) -> Result<Gprs, Status> {
        let [rcx, rdx, r8, r9, r10] = operands;
        let mut regs = Gprs {
            rax,
            rcx,
            rdx,
            r8,
            r9,
            r10,
            ..Gprs::default()
        };
        let machine = self.built.server.machine();
        self.module().seamcall(machine, lp, &mut regs);
        match Status(regs.rax) {
            Status::SUCCESS => Ok(regs),
            status => Err(status),
        }
    }

    fn leaf(&self, leaf: Leaf, rcx: u64, rdx: u64) -> Result<Gprs, Status> {
        self.call(0, leaf.rax(), [rcx, rdx, 0, 0, 0])
    }

    fn update(&self, version: u64, features: u64, more: u64) -> Result<Gprs, Status> {
        self.call(
            0,
            Leaf::SysUpdate.rax() | version,
            [0, 0, 0, features, more],
        )
    }

    /// Shuts the module down with its own version of the hand-off data.
    fn shut_down(&self) {
        let version = self.module().release().handoff_version();
        self.leaf(Leaf::SysShutdown, version, 0).unwrap();
    }

    /// Installs another module, as the P-SEAMLDR does.
    fn install(&mut self, release: Release) {
        let platform = self.built.server.machine().platform();
        self.installed = Some(Module::installed(&platform, release, self.module()));
    }

    fn init_all(&self) {
        self.leaf(Leaf::SysInit, 0, 0).unwrap();
        for lp in 0..4 {
            self.call(lp, Leaf::SysLpInit.rax(), [0; 5]).unwrap();
        }
    }

    /// Adds what a TD needs to be finalised: one vCPU.
    fn add_vcpu(&self, td: &Td) -> u64 {
        let tdvpr = td.tdr + 32 * PAGE;
        self.leaf(Leaf::VpCreate, tdvpr, td.tdr).unwrap();
        for page in 1..TDVPS_PAGES {
            self.leaf(Leaf::VpAddcx, tdvpr + page * PAGE, tdvpr)
                .unwrap();
        }
        self.leaf(Leaf::VpInit, tdvpr, 0).unwrap();
        tdvpr
    }

    /// Creates a TD with a vCPU that is still in build.
    fn td_in_build(&self, hkid: u32) -> (Td, u64) {
        let td = self.built.td(hkid);
        self.built.initialize(&td);
        let vcpu = self.add_vcpu(&td);
        (td, vcpu)
    }

    /// Ends a TD as far as its HKID is concerned.
    fn free_hkid(&self, td: &Td, vcpu: u64) {
        self.leaf(Leaf::VpFlush, vcpu, 0).unwrap();
        self.leaf(Leaf::MngVpflushdone, td.tdr, 0).unwrap();
        for lp in [0, 2] {
            self.call(lp, Leaf::PhymemCacheWb.rax(), [0; 5]).unwrap();
        }
        self.leaf(Leaf::MngKeyFreeid, td.tdr, 0).unwrap();
    }
}

#[test]
fn a_finalised_td_survives_each_update_that_is_allowed() {
    for (from, to) in [
        (Release::V1_5_01, Release::V1_5_01),
        (Release::V1_5_16, Release::V1_5_16),
        (Release::V1_5_25, Release::V1_5_25),
        (Release::V1_5_01, Release::V1_5_16),
        (Release::V1_5_16, Release::V1_5_25),
    ] {
        let mut host = Host::new(from);
        let (td, vcpu) = host.td_in_build(33);
        host.leaf(Leaf::MrFinalize, td.tdr, 0).unwrap();
        host.shut_down();
        assert_eq!(
            host.leaf(Leaf::VpEnter, vcpu, 0).unwrap_err(),
            Status::SYS_SHUTDOWN
        );
        host.install(to);
        let early = host.leaf(Leaf::SysRd, 0, 0).unwrap_err();
        assert_eq!(early, Status::SYS_LP_INIT_NOT_DONE);
        host.init_all();
        let early = host.leaf(Leaf::VpEnter, vcpu, 0).unwrap_err();
        assert_eq!(early, Status::SYS_NOT_READY);
        host.update(0, 0, 0).unwrap();
        assert_eq!(host.module().state(), SysState::Ready);
        // TDMRs, HKIDs and the association of vCPUs are as before.
        let tdmr = host.leaf(Leaf::SysTdmrInit, BASE, 0).unwrap_err();
        assert_eq!(tdmr, Status::TDMR_ALREADY_INITIALIZED, "{from} to {to}");
        let taken = host.leaf(Leaf::MngCreate, BASE + (512 << 20), 33);
        assert_eq!(taken.unwrap_err(), Status::HKID_NOT_FREE, "{from} to {to}");
        let entered = host.leaf(Leaf::VpEnter, vcpu, 0);
        let status = entered.map_or_else(|status| status, |regs| Status(regs.rax));
        assert!(!status.is_error(), "{from} to {to}: {status:?}");
        host.free_hkid(&td, vcpu);
    }
}

#[test]
fn an_older_release_does_not_take_over_and_starts_anew() {
    let mut host = Host::new(Release::V1_5_25);
    let (td, vcpu) = host.td_in_build(33);
    host.leaf(Leaf::MrFinalize, td.tdr, 0).unwrap();
    // No downgrade: the old version of the data is refused.
    let old = host.leaf(Leaf::SysShutdown, 0, 0).unwrap_err();
    assert_eq!(old, Status::OPERAND_INVALID.with(Operand::RCX));
    host.shut_down();
    host.install(Release::V1_5_16);
    host.init_all();
    for _ in 0..2 {
        let refused = host.update(0, 0, 0).unwrap_err();
        assert_eq!(refused, Status::SYS_INVALID_HANDOFF);
    }
    let gone = host.leaf(Leaf::VpEnter, vcpu, 0).unwrap_err();
    assert_eq!(gone, Status::SYS_NOT_READY);
    // The list of TDMRs is still where the first start put it.
    let list = BASE + SIZE + PAGE + (SIZE >> 21 << 4).next_multiple_of(PAGE) + (SIZE >> 12 << 4);
    let operands = [list, 1, GLOBAL_HKID.into(), 0, 0];
    host.call(0, Leaf::SysConfig.rax(), operands).unwrap();
    assert_eq!(host.module().state(), SysState::ConfigDone);
}

#[test]
fn a_td_in_build_goes_on_where_its_measurement_does() {
    // Within a release, and without the feature, a build goes on.
    for (from, to, features, goes_on) in [
        (Release::V1_5_25, Release::V1_5_25, COMPATIBILITY, true),
        (Release::V1_5_16, Release::V1_5_25, 0, true),
        (Release::V1_5_16, Release::V1_5_25, COMPATIBILITY, false),
    ] {
        let mut host = Host::new(from);
        let (td, vcpu) = host.td_in_build(33);
        host.shut_down();
        host.install(to);
        host.init_all();
        host.update(VERSION_1, features, 0).unwrap();
        let finalized = host.leaf(Leaf::MrFinalize, td.tdr, 0).map(drop);
        let expected = if goes_on {
            Ok(())
        } else {
            Err(Status::INCOMPATIBLE_MRTD_CONTEXT)
        };
        assert_eq!(
            finalized, expected,
            "{from} to {to}, features {features:#x}"
        );
        // It is not counted as in build, so it does not keep the next update from happening.
        host.leaf(Leaf::SysShutdown, 1 | 1 << 16, 0).unwrap();
        host.install(to);
        host.init_all();
        host.update(0, 0, 0).unwrap();
        host.free_hkid(&td, vcpu);
    }
}

#[test]
fn builds_hold_back_a_shutdown_that_is_to_avoid_them() {
    const AVOID: u64 = 1 << 16;
    let host = Host::new(Release::V1_5_25);
    let sensitive = |builds: u32| {
        let refused = host.leaf(Leaf::SysShutdown, 1 | AVOID, 0).unwrap_err();
        let expected = Status::UPDATE_COMPATIBILITY_SENSITIVE.with_detail(builds << 16);
        assert_eq!(refused, expected);
        assert_eq!(host.module().state(), SysState::Ready, "it goes on");
    };
    let (first, _) = host.td_in_build(33);
    sensitive(1);
    let (second, vcpu) = host.td_in_build(34);
    sensitive(2);
    host.leaf(Leaf::MrFinalize, first.tdr, 0).unwrap();
    sensitive(1);
    host.free_hkid(&second, vcpu);
    for reserved in [17, 40, 63] {
        let refused = host.leaf(Leaf::SysShutdown, 1 | 1 << reserved, 0);
        let expected = Status::OPERAND_INVALID.with(Operand::RCX);
        assert_eq!(refused.unwrap_err(), expected);
    }
    host.leaf(Leaf::SysShutdown, 1 | AVOID, 0).unwrap();
}

#[test]
fn a_refused_update_may_be_repeated() {
    for (release, invalid) in [
        (Release::V1_5_16, Operand::RAX),
        (Release::V1_5_25, Operand::R9),
    ] {
        let mut host = Host::new(release);
        host.shut_down();
        host.install(release);
        let early = host.update(0, 0, 0).unwrap_err();
        assert_eq!(early, Status::SYS_STATE_INCORRECT, "before TDH.SYS.INIT");
        host.leaf(Leaf::SysInit, 0, 0).unwrap();
        host.call(1, Leaf::SysLpInit.rax(), [0; 5]).unwrap();
        let early = host.update(0, 0, 0).unwrap_err();
        assert_eq!(early, Status::SYS_STATE_INCORRECT, "on one processor only");
        for lp in [0, 2, 3] {
            host.call(lp, Leaf::SysLpInit.rax(), [0; 5]).unwrap();
        }
        // A feature that no release has.
        let refused = host.update(VERSION_1, 1 << 62, 0).unwrap_err();
        assert_eq!(refused, Status::OPERAND_INVALID.with(invalid), "{release}");
        if release == Release::V1_5_25 {
            let refused = host.update(VERSION_1, COMPATIBILITY, 1).unwrap_err();
            assert_eq!(refused, Status::OPERAND_INVALID.with(Operand::R10));
        }
        host.update(0, 0, 0).unwrap();
        let twice = host.update(0, 0, 0).unwrap_err();
        assert_eq!(twice, Status::SYS_STATE_INCORRECT);
    }
}
