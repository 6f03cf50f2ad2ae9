//! TD exits: what the host finds in its registers.

use seam::abi::Status;

/// Why and how a vCPU went back to the host.
#[derive(Clone, Copy, Debug)]
pub struct TdExit {
    /// RAX: a status, and the VM exit's reason as its detail.
    pub status: Status,
    /// RCX.
    pub qualification: u64,
    /// RDX: extended exit qualification.
    pub extended: u64,
    /// R8.
    pub gpa: u64,
    /// R9: VM-exit interruption information.
    pub interruption: u64,
    /// For a TDVMCALL, the guest's RCX: which registers it lets the host see.
    pub vmcall: Option<u64>,
}

/// The VM that an exit qualification is about, which is always the TD itself.
const VM: u64 = 3 << 32;

impl TdExit {
    /// An exit with this status and VM-exit reason.
    pub const fn new(status: Status, reason: u32) -> Self {
        Self {
            status: Status(status.code().0 | reason as u64),
            qualification: 0,
            extended: 0,
            gpa: 0,
            interruption: 0,
            vmcall: None,
        }
    }

    /// An exit that the host just deals with.
    pub const fn success(reason: u32) -> Self {
        Self::new(Status::SUCCESS, reason)
    }

    /// The same exit with a qualification.
    pub const fn qualified(mut self, qualification: u64) -> Self {
        self.qualification = qualification & !VM;
        self
    }

    /// The same exit with an extended qualification.
    pub const fn extended(mut self, extended: u64) -> Self {
        self.extended = extended;
        self
    }

    /// The same exit about a guest-physical address.
    pub const fn at(mut self, gpa: u64) -> Self {
        self.gpa = gpa;
        self
    }

    /// The same exit with an event.
    pub const fn event(mut self, interruption: u64) -> Self {
        self.interruption = interruption;
        self
    }
}

/// What ends a stay in the guest.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// A TD exit.
    Exit(TdExit),
    /// Something that no CPU does: the module shuts down.
    Shutdown(Check),
}

/// What no CPU does, whatever a guest executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// A VM-exit reason with bits that mean nothing.
    ExitReason,
    /// An exit in the middle of an event's delivery that can't come there.
    IdtVectoring,
    /// A VM entry that failed for a reason that it can't have.
    EntryFailure,
    /// RDPMC of a TD that has the counters.
    Rdpmc,
    /// A page-modification log that is full, where there is none.
    PmlFull,
    /// An exception that does not exit.
    Exception,
    /// An S-EPT entry that the CPU refuses.
    PrivateMisconfiguration,
    /// An instruction without length.
    InstructionLength,
    /// An MSR that the TD accesses itself.
    NativeMsr,
    /// An S-EPT entry of an L2 VM that is not where the TD's says.
    L2Sept,
    /// A result of SEAMVERIFYREPORT that it does not have.
    VerifyReport,
    /// None: a test wants the module to shut down.
    Wanted,
}

impl Check {
    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ExitReason => "exit reason",
            Self::IdtVectoring => "IDT vectoring",
            Self::EntryFailure => "entry failure",
            Self::Rdpmc => "RDPMC",
            Self::PmlFull => "PML full",
            Self::Exception => "exception",
            Self::PrivateMisconfiguration => "private EPT misconfiguration",
            Self::InstructionLength => "instruction length",
            Self::NativeMsr => "native MSR",
            Self::L2Sept => "L2 S-EPT",
            Self::VerifyReport => "SEAMVERIFYREPORT",
            Self::Wanted => "wanted by a hook",
        }
    }
}

/// A VM exit that no CPU gives, as the CPU described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Impossible {
    /// What is wrong with it.
    pub check: Check,
    /// The full exit reason.
    pub reason: u32,
    /// The exit qualification.
    pub qualification: u64,
    /// The guest's instruction pointer.
    pub rip: u64,
    /// The length of the instruction.
    pub length: u64,
    /// Whether it is the end of the module, not of the TD alone.
    pub shuts_down: bool,
}

impl Impossible {
    /// A shutdown that a test wants, about no VM exit.
    pub const WANTED: Self = Self {
        check: Check::Wanted,
        reason: 0,
        qualification: 0,
        rip: 0,
        length: 0,
        shuts_down: true,
    };
}

impl From<TdExit> for Stop {
    fn from(exit: TdExit) -> Self {
        Self::Exit(exit)
    }
}
