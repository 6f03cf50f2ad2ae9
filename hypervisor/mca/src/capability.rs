//! The global registers: IA32_MCG_CAP and IA32_MCG_STATUS.
//!
//! Source: Intel SDM volume 3B, sections 16.3.1.1, 16.3.1.2 and 16.3.1.5.

use seam::abi::x86::msr::{FEATURE_CONTROL, mc};

use crate::Msrs;

/// Maximum number of banks that are looked at. No CPU with TDX has more.
pub const MAX_BANKS: usize = 32;

/// IA32_MCG_CAP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capability(pub u64);

impl Capability {
    /// Reads the register. Returns `None` if the CPU has no machine-check architecture.
    pub fn read(msrs: &impl Msrs) -> Option<Self> {
        msrs.read(mc::MCG_CAP).map(Self)
    }

    /// Returns the numbers of the banks.
    pub fn banks(self) -> impl Iterator<Item = u8> {
        0..(self.0 as u8).min(MAX_BANKS as u8)
    }

    /// Returns true if IA32_MCG_CTL exists.
    #[must_use]
    pub const fn has_control(self) -> bool {
        self.0 >> 8 & 1 != 0
    }

    /// Returns true if banks can signal corrected errors by an interrupt (CMCI).
    #[must_use]
    pub const fn has_cmci(self) -> bool {
        self.0 >> 10 & 1 != 0
    }

    /// Returns true if software can recover from some uncorrected errors (MCG_SER_P).
    #[must_use]
    pub const fn recovers(self) -> bool {
        self.0 >> 24 & 1 != 0
    }

    /// Returns true if a machine check can be delivered to the affected CPU alone (MCG_LMCE_P).
    #[must_use]
    pub const fn has_local(self) -> bool {
        self.0 >> 27 & 1 != 0
    }

    /// Returns true if local machine checks can be switched on: the CPU has them and the firmware opted in.
    pub fn may_be_local(self, msrs: &impl Msrs) -> bool {
        const LOCKED: u64 = 1;
        let needed = LOCKED | LMCE_OPT_IN;
        self.has_local() && msrs.read(FEATURE_CONTROL).unwrap_or(0) & needed == needed
    }
}

/// IA32_FEATURE_CONTROL: the firmware allows software to switch local machine checks on.
pub const LMCE_OPT_IN: u64 = 1 << 20;

/// IA32_MCG_STATUS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GlobalStatus(pub u64);

impl GlobalStatus {
    /// Returns true if the interrupted program can continue (RIPV).
    #[must_use]
    pub const fn can_restart(self) -> bool {
        self.0 & 1 != 0
    }

    /// Returns true if the interrupted instruction caused the error (EIPV).
    #[must_use]
    pub const fn is_at_error(self) -> bool {
        self.0 >> 1 & 1 != 0
    }

    /// Returns true while a machine check is in progress (MCIP). Another one shuts the CPU down.
    #[must_use]
    pub const fn is_in_progress(self) -> bool {
        self.0 >> 2 & 1 != 0
    }

    /// Returns true if only this CPU received the machine check (LMCE_S).
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.0 >> 3 & 1 != 0
    }
}
