//! Decodes the registers after TDH.VP.ENTER into a typed exit.
//!
//! Source: TDX Module ABI 1.5, TDH.VP.ENTER, output operands; Intel SDM volume 3D, appendix C (exit reasons).

use seam::abi::x86::{exit_reason as reason, vector};
use seam::abi::{Gprs, Operand, PAGE_4K, Status};
use seam::address::{Gpa, Level};

/// The reason why TDH.VP.ENTER returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest made a TDVMCALL; its operands are in the registers.
    Call,
    /// An interrupt for the host, already acknowledged. The host runs its handler.
    Interrupt {
        /// Interrupt vector.
        vector: u8,
    },
    /// An NMI for the host, already consumed. The host runs its handler.
    Nmi,
    /// The guest accessed a private address that is not mapped or not usable.
    Private(Fault),
    /// The guest accessed an unmapped shared address and could not receive #VE for it.
    Shared {
        /// Address without the SHARED bit, rounded down to 4 KiB.
        gpa: Gpa,
    },
    /// The shared EPT has an entry that the CPU does not accept. This is an error of the host.
    Misconfigured {
        /// Address without the SHARED bit.
        gpa: Gpa,
    },
    /// The guest locked the bus. The exit slows it down.
    BusLock,
    /// The guest blocked interrupts for longer than the notification window.
    Notify,
    /// An SMI or INIT, already handled below the host.
    Passed,
    /// A TDCALL of the guest waited too long for a lock that the host had requested first.
    HostHadPriority,
    /// The vCPU was not entered.
    NotEntered(Obstacle),
    /// A machine check in the guest. The host runs its handler. The TD is lost.
    MachineCheck(Status),
    /// A triple fault. The vCPU can't be entered again.
    TripleFault,
    /// The TD can't be entered again.
    Lost(Status),
    /// An exit that a production TD never makes, or that this host does not know.
    Unknown(Status),
}

/// A fault on a private address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Address, rounded down to 4 KiB.
    pub gpa: Gpa,
    /// The cause of the fault.
    pub wants: Wants,
}

/// The cause of a fault on a private address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// An ordinary access to an unmapped or blocked page. If a guest keeps faulting at one instruction, the module also
    /// reports this fault without running the guest, until the page is mapped.
    Access,
    /// TDG.MEM.PAGE.ACCEPT or TDG.MEM.PAGE.ATTR.WR for a page of this level.
    Accept {
        /// Level that the guest requested.
        requested: Level,
        /// Level of the entry where the walk ended; `None` if the number is not a valid level.
        found: Option<Level>,
    },
    /// An access to a page that the guest has not accepted, in a TD that receives no #VE for it.
    Unaccepted,
}

/// The reason why a vCPU was not entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Another CPU holds the named resource. The same call may succeed later.
    Busy(Operand),
    /// The vCPU is associated with another CPU, which must execute TDH.VP.FLUSH first.
    OtherCpu,
    /// The module refuses the entry. A retry will fail too.
    Refused(Status),
}

/// Types of the extended exit qualification, RDX bits 3:0.
mod extended {
    pub const NONE: u64 = 0;
    pub const ACCEPT: u64 = 1;
    pub const ATTR_WR: u64 = 5;
    pub const PENDING: u64 = 6;
}

impl Exit {
    /// Returns whether TDH.VP.ENTER returned `status` because of a TDVMCALL, the most frequent exit by far.
    #[inline]
    #[must_use]
    pub const fn is_call(status: Status) -> bool {
        status.0 & !(reason::AFTER_BUS_LOCK as u64) == reason::TDCALL as u64
    }

    /// Decodes the registers after TDH.VP.ENTER returned `status`, in a TD whose SHARED bit is `shared`.
    #[must_use]
    pub fn decode(status: Status, regs: &Gprs, shared: u64) -> Self {
        if Self::is_call(status) {
            return Self::Call;
        }
        match status.code() {
            Status::SUCCESS => Self::of_reason(status, regs, shared),
            Status::OPERAND_BUSY => Self::NotEntered(Obstacle::Busy(Operand(status.detail()))),
            Status::VCPU_ASSOCIATED => Self::NotEntered(Obstacle::OtherCpu),
            Status::HOST_PRIORITY_BUSY_TIMEOUT => Self::HostHadPriority,
            Status::NON_RECOVERABLE_VCPU if basic(status) == reason::TRIPLE_FAULT => {
                Self::TripleFault
            }
            Status::NON_RECOVERABLE_TD_NON_ACCESSIBLE if is_machine_check(status, regs) => {
                Self::MachineCheck(status)
            }
            _ if status.is_fatal() || !status.is_error() => Self::Lost(status),
            _ => Self::NotEntered(Obstacle::Refused(status)),
        }
    }

    fn of_reason(status: Status, regs: &Gprs, shared: u64) -> Self {
        let interruption = Interruption(regs.r9);
        let gpa = Gpa(regs.r8 & !shared & !(PAGE_4K - 1));
        match basic(status) {
            reason::EXTERNAL_INTERRUPT if interruption.is_valid() => Self::Interrupt {
                vector: interruption.vector(),
            },
            reason::EXCEPTION_OR_NMI if interruption.is_nmi() => Self::Nmi,
            reason::EPT_VIOLATION if regs.r8 & shared != 0 => Self::Shared { gpa },
            reason::EPT_VIOLATION => match Wants::decode(regs) {
                Some(wants) => Self::Private(Fault { gpa, wants }),
                None => Self::Unknown(status),
            },
            reason::EPT_MISCONFIGURATION => Self::Misconfigured { gpa },
            reason::INIT | reason::SMI | reason::C_STATE_SMI => Self::Passed,
            reason::BUS_LOCK => Self::BusLock,
            reason::NOTIFICATION => Self::Notify,
            _ => Self::Unknown(status),
        }
    }
}

impl Wants {
    /// Decodes RDX, the extended exit qualification.
    fn decode(regs: &Gprs) -> Option<Self> {
        let info = regs.rdx >> 32;
        match regs.rdx & 0xF {
            extended::NONE => Some(Self::Access),
            extended::ACCEPT | extended::ATTR_WR => Some(Self::Accept {
                requested: Level::from_number((info & 7) as u8)?,
                found: Level::from_number((info >> 3 & 7) as u8),
            }),
            extended::PENDING => Some(Self::Unaccepted),
            _ => None,
        }
    }
}

fn basic(status: Status) -> u32 {
    status.detail() & 0xFFFF
}

fn is_machine_check(status: Status, regs: &Gprs) -> bool {
    let interruption = Interruption(regs.r9);
    match basic(status) {
        reason::EXCEPTION_OR_NMI => interruption.is_valid() && interruption.vector() == vector::MC,
        reason::ENTRY_MACHINE_CHECK | reason::SMI => true,
        _ => false,
    }
}

/// VM-exit interruption information.
#[derive(Clone, Copy)]
struct Interruption(u64);

impl Interruption {
    /// Bit 31: the other fields are valid.
    const VALID: u64 = 1 << 31;
    /// Bits 10:8: the type; 2 is an NMI.
    const TYPE: u64 = 7 << 8;
    const TYPE_NMI: u64 = 2 << 8;

    const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    const fn vector(self) -> u8 {
        self.0 as u8
    }

    const fn is_nmi(self) -> bool {
        self.is_valid() && self.0 & Self::TYPE == Self::TYPE_NMI
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: u64 = 1 << 47;

    fn decode(rax: u64, regs: Gprs) -> Exit {
        Exit::decode(Status(rax), &regs, SHARED)
    }

    fn fault(rcx: u64, rdx: u64, r8: u64) -> Exit {
        let regs = Gprs {
            rcx,
            rdx,
            r8,
            ..Gprs::default()
        };
        decode(48, regs)
    }

    #[test]
    fn an_interrupt_brings_its_vector() {
        let regs = Gprs {
            r9: 1 << 31 | 0xEC,
            ..Gprs::default()
        };
        assert_eq!(decode(1, regs), Exit::Interrupt { vector: 0xEC });
        // Not acknowledged: the module's exit controls never allow this.
        assert_eq!(decode(1, Gprs::default()), Exit::Unknown(Status(1)));
        let nmi = Gprs {
            r9: 1 << 31 | 2 << 8 | 2,
            ..Gprs::default()
        };
        assert_eq!(decode(0, nmi), Exit::Nmi);
    }

    #[test]
    fn a_tdvmcall_is_one_with_and_without_a_bus_lock() {
        assert_eq!(decode(77, Gprs::default()), Exit::Call);
        assert_eq!(decode(77 | 1 << 26, Gprs::default()), Exit::Call);
        assert_eq!(decode(74, Gprs::default()), Exit::BusLock);
        assert_eq!(decode(75, Gprs::default()), Exit::Notify);
    }

    #[test]
    fn a_violation_tells_what_the_guest_wanted() {
        let gpa = Gpa(0x20_3000);
        let at = |wants| Exit::Private(Fault { gpa, wants });
        assert_eq!(fault(1, 0, gpa.0), at(Wants::Access));
        assert_eq!(fault(2, 0, gpa.0), at(Wants::Access));
        assert_eq!(fault(1, 6, gpa.0), at(Wants::Unaccepted));
        // Level 0 was requested, and the walk ended at level 1 (bits 5:3).
        let info = 1 << 3;
        let wants = Wants::Accept {
            requested: Level::Pt,
            found: Some(Level::Pd),
        };
        assert_eq!(fault(2, info << 32 | 1, gpa.0), at(wants));
        assert_eq!(fault(1, 0, gpa.0 | SHARED), Exit::Shared { gpa });
        assert_eq!(fault(1, 9, gpa.0), Exit::Unknown(Status(48)));
    }

    #[test]
    fn what_was_not_entered_tells_why() {
        let busy = Status::OPERAND_BUSY.with(Operand::SEPT_TREE);
        let exit = |status: Status| decode(status.0, Gprs::default());
        assert_eq!(
            exit(busy),
            Exit::NotEntered(Obstacle::Busy(Operand::SEPT_TREE))
        );
        assert_eq!(
            exit(Status::VCPU_ASSOCIATED),
            Exit::NotEntered(Obstacle::OtherCpu)
        );
        let refused = Status::TSC_ROLLBACK;
        assert_eq!(exit(refused), Exit::NotEntered(Obstacle::Refused(refused)));
        assert_eq!(
            exit(Status::HOST_PRIORITY_BUSY_TIMEOUT),
            Exit::HostHadPriority
        );
    }

    #[test]
    fn what_is_lost_is_told_from_what_is_not() {
        let vcpu = Status::NON_RECOVERABLE_VCPU.with_detail(2);
        assert_eq!(decode(vcpu.0, Gprs::default()), Exit::TripleFault);
        let td = Status::NON_RECOVERABLE_TD.with_detail(33 | 1 << 31);
        assert_eq!(decode(td.0, Gprs::default()), Exit::Lost(td));
        let gone = Status::NON_RECOVERABLE_TD_NON_ACCESSIBLE;
        let check = Gprs {
            r9: 1 << 31 | 3 << 8 | 18,
            ..Gprs::default()
        };
        assert_eq!(decode(gone.0, check), Exit::MachineCheck(gone));
        assert_eq!(
            decode(gone.with_detail(48).0, check),
            Exit::Lost(gone.with_detail(48))
        );
        let apic = Status::NON_RECOVERABLE_TD_WRONG_APIC_MODE.with_detail(77);
        assert_eq!(decode(apic.0, Gprs::default()), Exit::Lost(apic));
    }

    proptest::proptest! {
        #[test]
        fn any_registers_are_some_exit(rax: u64, rcx: u64, rdx: u64, r8: u64, r9: u64) {
            let regs = Gprs { rcx, rdx, r8, r9, ..Gprs::default() };
            for rax in [rax, rax & 0x7F, rax & 0xFFFF_0000_0000_007F] {
                if let Exit::Private(fault) = decode(rax, regs) {
                    assert_eq!(fault.gpa.0 & (SHARED | 0xFFF), 0);
                }
            }
        }
    }
}
