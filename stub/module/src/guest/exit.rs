//! TD exits: the values returned in the host's registers.

use seam::abi::Status;

/// A TD exit of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct TdExit {
    /// RAX: a status with the VM-exit reason as its detail.
    pub status: Status,
    /// RCX.
    pub qualification: u64,
    /// RDX: extended exit qualification.
    pub extended: u64,
    /// R8.
    pub gpa: u64,
    /// R9: VM-exit interruption information.
    pub interruption: u64,
    /// For a TDVMCALL, the guest's RCX: the registers that it shares with the host.
    pub vmcall: Option<u64>,
}

/// The VM of an exit qualification, always the TD itself.
const VM: u64 = 3 << 32;

impl TdExit {
    /// Returns an exit with this status and VM-exit reason.
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

    /// Returns an exit with status SUCCESS, for the host to handle.
    pub const fn success(reason: u32) -> Self {
        Self::new(Status::SUCCESS, reason)
    }

    /// Returns the same exit with a qualification.
    pub const fn qualified(mut self, qualification: u64) -> Self {
        self.qualification = qualification & !VM;
        self
    }

    /// Returns the same exit with an extended qualification.
    pub const fn extended(mut self, extended: u64) -> Self {
        self.extended = extended;
        self
    }

    /// Returns the same exit with a guest-physical address.
    pub const fn at(mut self, gpa: u64) -> Self {
        self.gpa = gpa;
        self
    }

    /// Returns the same exit with an event.
    pub const fn event(mut self, interruption: u64) -> Self {
        self.interruption = interruption;
        self
    }
}

/// The reason to stop running the guest.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// A TD exit.
    Exit(TdExit),
    /// Impossible CPU behaviour: the module shuts down.
    Shutdown(Check),
}

/// A behaviour that no CPU shows, whatever a guest executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// A VM-exit reason with undefined bits.
    ExitReason,
    /// An exit during an event's delivery that can't occur there.
    IdtVectoring,
    /// A VM entry that failed for an impossible reason.
    EntryFailure,
    /// RDPMC exit of a TD that owns the counters.
    Rdpmc,
    /// A full page-modification log, although there is none.
    PmlFull,
    /// An exit for an exception that does not exit.
    Exception,
    /// A misconfiguration of an S-EPT entry.
    PrivateMisconfiguration,
    /// An instruction without length.
    InstructionLength,
    /// An exit for an MSR that the TD accesses directly.
    NativeMsr,
    /// A missing S-EPT entry of an L2 VM, although the TD's entry refers to it.
    L2Sept,
    /// An undefined result of SEAMVERIFYREPORT.
    VerifyReport,
    /// No such behaviour: a test requested the shutdown.
    Wanted,
}

impl Check {
    /// Returns a readable name.
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

/// A VM exit that no CPU produces, as the CPU described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Impossible {
    /// The check that failed.
    pub check: Check,
    /// The full exit reason.
    pub reason: u32,
    /// The exit qualification.
    pub qualification: u64,
    /// The guest's instruction pointer.
    pub rip: u64,
    /// The length of the instruction.
    pub length: u64,
    /// True if the module shuts down, false if only the TD ends.
    pub shuts_down: bool,
}

impl Impossible {
    /// A shutdown that a test requested, without a VM exit.
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
