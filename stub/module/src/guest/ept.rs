//! EPT violations of a TD, and the walk to a page in an operand of a TDCALL.

use seam::abi::{ConfigFlags, PAGE_MASK, Status, TdCtls, level_bytes};

use super::exit::{Check, Stop, TdExit};
use super::{Category, Inside, VeInfo, reason};
use crate::ept::{self, Miss, RWX};
use crate::field::Structure;
use crate::sept;
use crate::td::tdcs;
use crate::vcpu::{Field, Vcpu};
use crate::{Change, Machine};

/// Bits of an EPT violation's exit qualification.
mod qualification {
    pub const WRITE: u64 = 1 << 1;
    pub const FETCH: u64 = 1 << 2;
    pub const GLA_VALID: u64 = 1 << 7;
    pub const NMI_UNBLOCKED_BY_IRET: u64 = 1 << 12;
    pub const SHADOW_STACK: u64 = 1 << 13;
    /// Bits hidden from the host: those about linear addresses, and NMI unblocking.
    pub const HIDDEN: u64 = 0x1F80;
}

/// Extended exit qualification types.
pub mod extended {
    /// TDG.MEM.PAGE.ACCEPT could not continue.
    pub const ACCEPT: u64 = 1;
    /// TDG.MEM.PAGE.ATTR.WR could not continue.
    pub const ATTR_WR: u64 = 5;
    /// The page is pending acceptance.
    pub const PENDING: u64 = 6;
}

/// The reason why a TDCALL can't use a page.
#[derive(Clone, Copy, Debug)]
pub enum NoAccess {
    /// The address is invalid.
    Invalid,
    /// The guest gets #VE and will retry.
    Injected,
    /// The host must act first.
    Exit(Stop),
}

impl From<TdExit> for NoAccess {
    fn from(exit: TdExit) -> Self {
        Self::Exit(exit.into())
    }
}

impl<M: Machine> Inside<'_, M> {
    /// Returns the TD exit for an EPT violation, as the host sees it.
    pub fn violation_exit(&self, full: u32, gpa: u64, qualification: u64, extended: u64) -> TdExit {
        TdExit::success(full)
            .qualified(qualification & !qualification::HIDDEN)
            .extended(extended)
            .at(gpa & !0xFFF)
    }

    fn pending_goes_to_host(&self) -> bool {
        self.has_control(TdCtls::PENDING_VE_DISABLE)
    }

    /// Returns whether an access to a page with this S-EPT entry raises #VE.
    pub fn raises_ve_for(&self, entry: sept::Entry) -> bool {
        is_acceptable(entry) && !self.pending_goes_to_host()
    }

    /// Handles an EPT violation of the guest.
    ///
    /// # Errors
    /// A TD exit or a triple fault.
    #[inline(never)]
    pub fn ept_violation(&self, full: u32, qualification: u64) -> Result<(), Stop> {
        let vcpu: &Vcpu<'_> = &self.vcpu;
        if qualification & qualification::NMI_UNBLOCKED_BY_IRET != 0 {
            self.reblock_nmi();
        }
        let gpa = vcpu.vmcs(Field::GUEST_PHYSICAL_ADDRESS);
        let gla = vcpu.vmcs(Field::GUEST_LINEAR_ADDRESS);
        if qualification & qualification::GLA_VALID != 0 && self.tdcs.has_reserved_bits(gpa) {
            let flags = self.tdcs.get(tdcs::field::CONFIG_FLAGS);
            if flags & ConfigFlags::MAXGPA_VIRT.bits() == 0 {
                return self.raise_pf(gla, page_fault_code(qualification, self.privilege() == 3));
            }
            self.raise_ve_for(
                Category::Reserved,
                VeInfo {
                    reason: full,
                    qualification,
                    gpa,
                    gla,
                },
            );
            return Ok(());
        }
        let mut extended = 0;
        if !self.is_shared(gpa) {
            let end = sept::walk(self.cx.machine, &self.tdcs, gpa, 0);
            if is_acceptable(end.entry) {
                if !self.pending_goes_to_host() {
                    self.raise_ve_for(
                        Category::Pending,
                        VeInfo {
                            reason: full,
                            qualification,
                            gpa,
                            gla,
                        },
                    );
                    return Ok(());
                }
                extended = extended::PENDING;
            }
            self.log_fault(gpa);
        }
        Err(self
            .violation_exit(full, gpa, qualification, extended)
            .into())
    }

    /// Handles an EPT misconfiguration, which can only come from the host's own EPT.
    #[inline(never)]
    pub fn ept_misconfiguration(&self, full: u32) -> Stop {
        let gpa = self.vcpu.vmcs(Field::GUEST_PHYSICAL_ADDRESS);
        if self.is_shared(gpa) {
            TdExit::success(full).at(gpa & !0xFFF).into()
        } else {
            Stop::Shutdown(Check::PrivateMisconfiguration)
        }
    }

    /// Translates a guest-physical address that a TDCALL reads, or also writes.
    ///
    /// # Errors
    /// [`NoAccess`].
    pub fn translate(&self, gpa: u64, writes: bool, private_only: bool) -> Result<u64, NoAccess> {
        let shared = self.is_shared(gpa);
        if !self.tdcs.is_valid_gpa(gpa) || shared && private_only {
            return Err(NoAccess::Invalid);
        }
        let wanted = if writes { 3 } else { 1 };
        if shared {
            self.translate_shared(gpa, wanted)
        } else {
            self.translate_private(gpa, wanted)
        }
    }

    /// Returns the exit qualification of an EPT violation by a TDCALL.
    fn violation(&self, wanted: u64, granted: u64) -> u64 {
        const READ_AND_WRITE: u64 = 3;
        let missing = wanted & !granted;
        let write_alone = self.cx.module.release.does(Change::REPORTS_WRITE_ALONE);
        if write_alone && missing == READ_AND_WRITE {
            return qualification::WRITE | granted << 3;
        }
        missing | granted << 3
    }

    fn translate_private(&self, gpa: u64, wanted: u64) -> Result<u64, NoAccess> {
        let end = sept::walk(self.cx.machine, &self.tdcs, gpa, 0);
        let granted = end.entry.0 & RWX;
        if end.entry.is_leaf() && granted & wanted == wanted {
            let offset = gpa & (level_bytes(end.level) - 1);
            return Ok(end.entry.page_pa(end.level) + offset);
        }
        let qualification = self.violation(wanted, granted);
        if is_acceptable(end.entry) {
            if !self.pending_goes_to_host() {
                self.raise_ve_for(
                    Category::Pending,
                    VeInfo {
                        reason: reason::EPT_VIOLATION,
                        qualification,
                        gpa,
                        gla: 0,
                    },
                );
                return Err(NoAccess::Injected);
            }
            let exit =
                self.violation_exit(reason::EPT_VIOLATION, gpa, qualification, extended::PENDING);
            return Err(exit.into());
        }
        Err(self
            .violation_exit(reason::EPT_VIOLATION, gpa, qualification, 0)
            .into())
    }

    fn translate_shared(&self, gpa: u64, wanted: u64) -> Result<u64, NoAccess> {
        let root = self.vcpu.vmcs(Field::SHARED_EPTP) & PAGE_MASK;
        let top = self.tdcs.top_level();
        match ept::walk_shared(self.cx.machine, root, top, gpa, wanted) {
            Ok(leaf) => Ok(leaf.page + (gpa & (level_bytes(leaf.level) - 1))),
            Err(Miss::Misconfiguration) => Err(TdExit::success(reason::EPT_MISCONFIGURATION)
                .at(gpa & !0xFFF)
                .into()),
            Err(Miss::Violation {
                permissions,
                convertible,
            }) => {
                let qualification = self.violation(wanted, permissions);
                if convertible {
                    self.raise_ve_for(
                        Category::Pending,
                        VeInfo {
                            reason: reason::EPT_VIOLATION,
                            qualification,
                            gpa,
                            gla: 0,
                        },
                    );
                    return Err(NoAccess::Injected);
                }
                Err(self
                    .violation_exit(reason::EPT_VIOLATION, gpa, qualification, 0)
                    .into())
            }
        }
    }
}

/// Returns whether an S-EPT entry maps a page that the guest can accept.
fn is_acceptable(entry: sept::Entry) -> bool {
    use seam::abi::SeptState::{Pending, PendingExportedDirty};
    matches!(entry.state(), Pending | PendingExportedDirty)
}

/// Returns the error code of a #PF for an address with reserved bits.
const fn page_fault_code(qualification: u64, user: bool) -> u64 {
    const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const USER: u64 = 1 << 2;
    const RESERVED: u64 = 1 << 3;
    const FETCH: u64 = 1 << 4;
    const SHADOW_STACK: u64 = 1 << 6;
    let mut code = PRESENT | RESERVED;
    if qualification & qualification::WRITE != 0 {
        code |= WRITE;
    }
    if user {
        code |= USER;
    }
    if qualification & qualification::FETCH != 0 {
        code |= FETCH;
    }
    if qualification & qualification::SHADOW_STACK != 0 {
        code |= SHADOW_STACK;
    }
    code
}

impl NoAccess {
    /// Returns the end of a TDCALL with such a page in `operand`.
    pub fn into_end(self, operand: seam::abi::Operand) -> super::tdcall::End {
        use super::tdcall::End;
        match self {
            Self::Invalid => End::Status(Status::OPERAND_INVALID.with(operand)),
            Self::Injected => End::Injected,
            Self::Exit(stop) => End::Stop(stop),
        }
    }
}
