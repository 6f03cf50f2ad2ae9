//! EPT walks as the processor does them for a TD vCPU: private addresses go through the S-EPT, shared addresses through
//! the host's own EPT. The vCPU's VMCS gives the tables and the width of an address.

use seam::abi::x86::exit_reason;
use seam::abi::{PAGE_MASK, level_bytes};

use crate::Machine;
use crate::field::Structure;
use crate::sept;
use crate::vcpu::{Field, Vcpu, fields};

/// Permission or access: read.
pub const READ: u64 = 1 << 0;
/// Permission or access: write.
pub const WRITE: u64 = 1 << 1;
/// Permission or access: execute.
pub const EXECUTE: u64 = 1 << 2;
/// All permissions.
pub const RWX: u64 = READ | WRITE | EXECUTE;

const LARGE_PAGE: u64 = 1 << 7;
const SUPPRESS_VE: u64 = 1 << 63;
/// Memory type, bits 5:3.
const MEMORY_TYPE: u64 = 7 << 3;
/// Tertiary control: guest-physical addresses have 52 bits.
const WIDE: u64 = 1 << 5;
/// Secondary control: EPT violations may raise #VE.
const VIOLATION_VE: u64 = 1 << 18;
const CR0_PE: u64 = 1 << 0;

/// A page that a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its physical address without KeyID.
    pub page: u64,
    /// Its level: 0 for 4 KiB, 1 for 2 MiB, 2 for 1 GiB.
    pub level: u8,
    /// The permissions that the walk grants.
    pub permissions: u64,
}

/// The reason why a walk found no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// An EPT violation.
    Violation {
        /// The permissions that the entries on the way grant.
        permissions: u64,
        /// The last entry requests #VE instead of a VM exit.
        convertible: bool,
    },
    /// An EPT misconfiguration.
    Misconfiguration,
}

/// Returns whether the vCPU's guest-physical address is shared.
pub fn is_shared(vcpu: &Vcpu<'_>, gpa: u64) -> bool {
    let wide = vcpu.vmcs(Field::PROC_BASED3) & WIDE != 0;
    gpa >> if wide { 51 } else { 47 } & 1 != 0
}

/// Walks to the page that contains `gpa`, for an access that needs the permissions `wanted`.
///
/// # Errors
/// [`Miss`].
pub fn walk<M: Machine>(machine: &M, vcpu: &Vcpu<'_>, gpa: u64, wanted: u64) -> Result<Leaf, Miss> {
    let eptp = vcpu.vmcs(Field::EPTP);
    let top = (eptp >> 3 & 7) as u8;
    if is_shared(vcpu, gpa) {
        let root = vcpu.vmcs(Field::SHARED_EPTP) & PAGE_MASK;
        return walk_shared(machine, root, top, gpa, wanted);
    }
    let root = machine.platform().without_keyid(eptp & PAGE_MASK);
    let end = sept::walk_from(machine, root, top, gpa, 0);
    let permissions = end.entry.0 & RWX;
    if end.entry.is_leaf() && permissions & wanted == wanted {
        Ok(Leaf {
            page: end.entry.page_pa(end.level),
            level: end.level,
            permissions,
        })
    } else {
        Err(Miss::Violation {
            permissions,
            convertible: false,
        })
    }
}

/// Walks the host's EPT from `root`, whose entries are of level `top`. A page with a private KeyID, or in the SEAM
/// range, is a misconfiguration.
///
/// # Errors
/// [`Miss`].
pub fn walk_shared<M: Machine>(
    machine: &M,
    root: u64,
    top: u8,
    gpa: u64,
    wanted: u64,
) -> Result<Leaf, Miss> {
    let platform = machine.platform();
    let mut table = root;
    let mut permissions = RWX;
    for level in (0..=top).rev() {
        let index = gpa / level_bytes(level) % 512;
        let entry = machine.word(platform.without_keyid(table) + index * 8);
        permissions &= entry;
        if is_misconfigured(entry, level, platform.max_pa) {
            return Err(Miss::Misconfiguration);
        }
        let ends = entry & RWX == 0 || level == 0 || entry & LARGE_PAGE != 0;
        if entry & RWX == 0 || entry & wanted != wanted {
            return Err(Miss::Violation {
                permissions,
                convertible: ends && entry & SUPPRESS_VE == 0,
            });
        }
        if ends {
            let page = entry & PAGE_MASK & !(level_bytes(level) - 1);
            if !platform.is_shared_buffer(page, 1, level_bytes(level)) {
                return Err(Miss::Misconfiguration);
            }
            return Ok(Leaf {
                page: platform.without_keyid(page),
                level,
                permissions,
            });
        }
        table = entry & PAGE_MASK;
    }
    Err(Miss::Misconfiguration)
}

/// Turns a convertible EPT violation into #VE, as the processor does. Fills the #VE information if the controls permit
/// it and the guest has fetched the previous information. If this returns true, the caller delivers the exception. The
/// caller also ensures that the violation did not occur during the delivery of another event.
#[must_use]
pub fn convert_to_ve(vcpu: &Vcpu<'_>, qualification: u64, gpa: u64, gla: u64) -> bool {
    let enabled = vcpu.vmcs(Field::PROC_BASED2) & VIOLATION_VE != 0
        && vcpu.vmcs(Field::CR0) & CR0_PE != 0
        && vcpu.get(fields::VE_VALID) == 0;
    if enabled {
        for (field, value) in [
            (fields::VE_EXIT_REASON, exit_reason::EPT_VIOLATION.into()),
            (fields::VE_QUALIFICATION, qualification),
            (fields::VE_GLA, gla),
            (fields::VE_GPA, gpa),
            (fields::VE_EPTP_INDEX, 0),
            (fields::VE_VALID, u64::MAX),
        ] {
            vcpu.set(field, value);
        }
    }
    enabled
}

/// Returns whether the CPU rejects an entry of the host's EPT as misconfigured.
const fn is_misconfigured(entry: u64, level: u8, max_pa: u32) -> bool {
    let permissions = entry & RWX;
    if permissions == 0 {
        return false;
    }
    if permissions == WRITE || permissions == WRITE | EXECUTE {
        return true;
    }
    let is_leaf = level == 0 || entry & LARGE_PAGE != 0;
    if entry & PAGE_MASK & !((1 << max_pa) - 1) != 0 {
        return true;
    }
    if is_leaf {
        let memory_type = (entry & MEMORY_TYPE) >> 3;
        level > 2
            || memory_type == 2
            || memory_type == 3
            || memory_type == 7
            || entry & PAGE_MASK & (level_bytes(level) - 1) != 0
    } else {
        entry & 0xF8 != 0
    }
}
