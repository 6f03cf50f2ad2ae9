//! Nested page faults: fills the guest's TLB, and handles accesses to memory that it must not access.

use seam::abi::x86::vector;
use stub_module::ept::{self, EXECUTE, Leaf, Miss, READ, WRITE};
use stub_module::vcpu::{Field, Vcpu};
use stub_rom::shadow::Mapping;

use super::{Next, Td, VmExit, reason, state};
use crate::monitor::machine::{Physical, SeamCpu};

/// Exit qualification of an EPT violation: the linear address is valid; the access was to it, not to page tables.
const GLA_VALID: u64 = 1 << 7;
const TO_GLA: u64 = 1 << 8;

/// An access of the guest that its TLB does not allow.
#[derive(Clone, Copy)]
struct Access {
    gpa: u64,
    /// The needed permission.
    wanted: u64,
    /// True if a walk of the guest's page tables makes the access, not an operand.
    is_walk: bool,
}

impl Td {
    /// Handles the nested page fault exit.
    #[inline(never)]
    pub(super) fn nested_page_fault(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>) -> Next {
        const ERROR_WRITE: u64 = 1 << 1;
        const ERROR_FETCH: u64 = 1 << 4;
        const ERROR_WALK: u64 = 1 << 33;
        let (error, gpa) = (self.vmcb.exit_info1, self.vmcb.exit_info2);
        machine
            .world()
            .check_for_lost_guest(self.number, &self.vmcb.save, gpa);
        let is_walk = error & ERROR_WALK != 0;
        // TCG requests write access whenever it walks the guest's page tables.
        let wanted = if error & ERROR_FETCH != 0 {
            EXECUTE
        } else if error & ERROR_WRITE != 0 {
            WRITE
        } else {
            READ
        };
        let access = Access {
            gpa,
            wanted,
            is_walk,
        };
        self.reach(machine, vcpu, access)
    }

    /// Handles a read of the guest at `gpa`, which is not in its TLB.
    #[inline(never)]
    pub(super) fn missing(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>, gpa: u64) -> Next {
        let access = Access {
            gpa,
            wanted: READ,
            is_walk: false,
        };
        self.reach(machine, vcpu, access)
    }

    /// Fills the TLB for an access, or returns the exit that the access causes.
    fn reach(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>, access: Access) -> Next {
        let Access {
            gpa,
            wanted,
            is_walk,
        } = access;
        match ept::walk(machine, vcpu, gpa, wanted) {
            Ok(leaf) if self.fill(machine, vcpu, gpa, leaf) => {
                self.redeliver();
                Next::Resume
            }
            Ok(_) | Err(Miss::Misconfiguration) => Next::Exit(VmExit {
                gpa,
                vectoring: self.vectoring(),
                ..VmExit::of(reason::EPT_MISCONFIGURATION)
            }),
            Err(Miss::Violation {
                permissions,
                convertible,
            }) => {
                let reported = if is_walk { READ } else { wanted };
                let gla = match wanted {
                    _ if is_walk => 0,
                    EXECUTE => self.vmcb.save.rip,
                    _ => self.linear_address(machine, vcpu, gpa),
                };
                let kind = if is_walk { 0 } else { TO_GLA };
                let qualification = reported | permissions << 3 | GLA_VALID | kind;
                let vectoring = self.vectoring();
                let quiet = vectoring.0 & state::EVENT_VALID == 0;
                // The CPU uses the current CR0.
                vcpu.set_vmcs(Field::CR0, self.vmcb.save.cr0);
                if convertible && quiet && ept::convert_to_ve(vcpu, qualification, gpa, gla) {
                    return self.raise(vector::VE, None);
                }
                Next::Exit(VmExit {
                    gpa,
                    gla,
                    vectoring,
                    ..VmExit::of(reason::EPT_VIOLATION).qualified(qualification)
                })
            }
        }
    }

    /// Caches the result of a walk. Returns false if the host's own EPT maps memory that does not belong to the host.
    fn fill(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>, gpa: u64, leaf: Leaf) -> bool {
        const LARGE: u64 = 1 << 21;
        let shared = ept::is_shared(vcpu, gpa);
        let offset = gpa & (seam::abi::level_bytes(leaf.level) - 1);
        let pa = leaf.page + offset;
        if shared && !Physical::new(machine.world(), self.number).is_accessible(pa) {
            return false;
        }
        // Only the needed part of a large shared page is mapped, because another part may be private.
        let large = leaf.level > 0 && !shared;
        let size = if large { LARGE } else { 1 << 12 };
        self.shadow.map(
            gpa,
            Mapping {
                page: pa & !(size - 1),
                large,
                writable: leaf.permissions & WRITE != 0,
                executable: leaf.permissions & EXECUTE != 0,
            },
        );
        true
    }
}
