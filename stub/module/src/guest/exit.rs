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
    Shutdown,
}

impl From<TdExit> for Stop {
    fn from(exit: TdExit) -> Self {
        Self::Exit(exit)
    }
}
