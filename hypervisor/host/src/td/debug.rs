//! Inspection of debug TDs: their vCPUs' registers (TDH.VP.RD) and their private memory (TDH.MEM.RD).
//!
//! A production TD is refused here before the module is called, which would refuse it as well.

use alloc::vec::Vec;
use core::fmt;

use mm::private;
use seam::{
    abi::{
        PAGE_4K, SeptState, level_bytes,
        metadata::{FieldId, vp},
    },
    address::{Gpa, Level},
    call::SeamCall,
    retry::Wait,
    tdh::{Keyed, Tdh, Tdr, Tdvpr},
};
use spin::Mutex;
use sync::call::NoAnswer;

use super::{Td, life::State};
use crate::platform::Platform;

/// The reason why a TD can't be inspected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uninspectable {
    /// The TD is not a debug TD.
    Production,
    /// The TD is in a state without anything to inspect.
    State(State),
    /// There is no vCPU of that number.
    NoVcpu {
        /// Number of vCPUs.
        count: u16,
    },
    /// A CPU runs the vCPU, or uses it otherwise.
    Runs {
        /// The CPU, if it is known.
        cpu: Option<u32>,
    },
    /// The CPU that the vCPU is associated with does not answer.
    NoAnswer(u32),
    /// The address is not a multiple of 8, or the range exceeds the address space.
    BadRange,
    /// The TD has no private memory at this address.
    NoMemory(Gpa),
    /// The TD has not accepted the page at this address.
    Unaccepted(Gpa),
    /// The page is blocked, or being removed.
    InMotion(Gpa),
    /// An operation on the TD's map failed.
    Map(private::Error),
    /// A SEAMCALL failed.
    Seam(seam::error::Error),
}

impl From<seam::error::Error> for Uninspectable {
    fn from(error: seam::error::Error) -> Self {
        Self::Seam(error)
    }
}

impl fmt::Display for Uninspectable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Production => f.write_str(
                "it is not a debug TD, so the TDX module hides its state from the host; set \"debug = true\" in its \
                 configuration to inspect it, which its attestation reveals",
            ),
            Self::State(state) => write!(f, "it is {}", state.in_words()),
            Self::NoVcpu { count } => {
                write!(f, "it has no such vCPU; its vCPUs are numbered 0 to {}", count - 1)
            }
            Self::Runs { cpu: Some(cpu) } => {
                write!(f, "CPU {cpu} is running the vCPU; pause the TD first")
            }
            Self::Runs { cpu: None } => {
                f.write_str("the vCPU is in use; try again, or pause the TD first")
            }
            Self::NoAnswer(cpu) => write!(f, "CPU {cpu}, which holds the vCPU, does not answer"),
            Self::BadRange => f.write_str("the address is not a multiple of 8, or is too large"),
            Self::NoMemory(gpa) => write!(f, "it has no private memory at {gpa:?}"),
            Self::Unaccepted(gpa) => write!(f, "it has not accepted its memory at {gpa:?} yet"),
            Self::InMotion(gpa) => write!(f, "its memory at {gpa:?} is being changed; try again"),
            Self::Map(error) => error.fmt(f),
            Self::Seam(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Uninspectable {}

/// A register's name and the field that holds it.
type Register = (&'static str, FieldId);

/// Returns a register that is a field of the TD VMCS.
///
/// Source: Intel SDM volume 3D, appendix B (field encodings).
const fn guest(name: &'static str, encoding: u32) -> Register {
    (name, FieldId::vmcs(encoding))
}

/// The registers to show of a vCPU, in this order.
const REGISTERS: &[Register] = &[
    ("RAX", vp::RAX.id),
    ("RBX", vp::RBX.id),
    ("RCX", vp::RCX.id),
    ("RDX", vp::RDX.id),
    ("RSI", vp::RSI.id),
    ("RDI", vp::RDI.id),
    ("RBP", vp::RBP.id),
    guest("RSP", 0x681C),
    ("R8", vp::R8.id),
    ("R9", vp::R9.id),
    ("R10", vp::R10.id),
    ("R11", vp::R11.id),
    ("R12", vp::R12.id),
    ("R13", vp::R13.id),
    ("R14", vp::R14.id),
    ("R15", vp::R15.id),
    guest("RIP", 0x681E),
    guest("RFLAGS", 0x6820),
    guest("CR0", 0x6800),
    ("CR2", vp::CR2.id),
    guest("CR3", 0x6802),
    guest("CR4", 0x6804),
    guest("EFER", 0x2806),
    ("XCR0", vp::XCR0.id),
    guest("CS", 0x0802),
    guest("SS", 0x0804),
    guest("FS base", 0x680E),
    guest("GS base", 0x6810),
    guest("GDTR base", 0x6816),
    guest("IDTR base", 0x6818),
];

/// Reads the registers of vCPU `index`, with their names. The vCPU must not be running; a paused TD has no running one.
///
/// # Errors
/// [`Uninspectable`].
pub fn registers<P: Platform>(
    platform: &P,
    td: &Td,
    index: u16,
) -> Result<Vec<(&'static str, u64)>, Uninspectable> {
    admit(td)?;
    let count = td.vcpus().count();
    if index >= count {
        return Err(Uninspectable::NoVcpu { count });
    }
    let vcpu = td.vcpus().stop(index).ok_or_else(|| Uninspectable::Runs {
        cpu: td.vcpus().user(index),
    })?;
    // Repeat the check with the vCPU's lock held: from here on the TD can't end.
    admit(td)?;
    let tdvpr = vcpu.tdvpr().ok_or(Uninspectable::NoVcpu { count })?;
    // Read on the CPU that the vCPU is associated with, so that it need not move.
    let cpu = vcpu.associated().unwrap_or_else(|| platform.this_cpu());
    let found = Mutex::new(Ok(Vec::new()));
    let read = |_| *found.lock() = read_all(&platform.tdh(), tdvpr);
    let answered = platform.on_each(&[cpu], &read);
    answered.map_err(|_: NoAnswer| Uninspectable::NoAnswer(cpu))?;
    vcpu.associate(cpu);
    found.into_inner().map_err(Uninspectable::Seam)
}

fn read_all<C: SeamCall, W: Wait>(
    tdh: &Tdh<'_, C, W>,
    tdvpr: &Tdvpr,
) -> Result<Vec<(&'static str, u64)>, seam::error::Error> {
    REGISTERS
        .iter()
        .map(|(name, field)| Ok((*name, tdh.vp_rd(tdvpr, *field)?)))
        .collect()
}

/// Reads private memory from `gpa` into `into`. Address and length must be multiples of 8.
///
/// # Errors
/// [`Uninspectable`]. `into` holds the data read up to then.
pub fn memory<P: Platform>(
    platform: &P,
    td: &Td,
    gpa: u64,
    into: &mut [u8],
) -> Result<(), Uninspectable> {
    admit(td)?;
    let bytes = into.len() as u64;
    let end = gpa.checked_add(bytes).ok_or(Uninspectable::BadRange)?;
    if !gpa.is_multiple_of(8) || !bytes.is_multiple_of(8) {
        return Err(Uninspectable::BadRange);
    }
    let map = td.map().ok_or_else(|| Uninspectable::State(td.state()))?;
    if end > td.layout().limit() {
        return Err(Uninspectable::NoMemory(Gpa(gpa)));
    }
    let tdh = platform.tdh();
    let mut refused = None;
    let read = map.keyed(|tdr| {
        refused = read_words(&tdh, tdr, gpa, into).err();
        Ok(())
    });
    read.map_err(Uninspectable::Map)?;
    refused.map_or(Ok(()), Err)
}

fn read_words<C: SeamCall, W: Wait>(
    tdh: &Tdh<'_, C, W>,
    tdr: &Tdr<Keyed>,
    gpa: u64,
    into: &mut [u8],
) -> Result<(), Uninspectable> {
    for (at, word) in (gpa..).step_by(8).zip(into.as_chunks_mut::<8>().0) {
        if at == gpa || at.is_multiple_of(PAGE_4K) {
            look(tdh, tdr, Gpa(at & !(PAGE_4K - 1)))?;
        }
        *word = tdh.mem_rd(tdr, Gpa(at))?.to_le_bytes();
    }
    Ok(())
}

/// Checks that the page at `gpa` can be read. Walks the S-EPT down to it, so that no call is made that the module
/// refuses.
fn look<C: SeamCall, W: Wait>(
    tdh: &Tdh<'_, C, W>,
    tdr: &Tdr<Keyed>,
    gpa: Gpa,
) -> Result<(), Uninspectable> {
    use SeptState as S;
    const TABLE: u8 = S::NonLeafMapped as u8;
    for level in [Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt] {
        let start = Gpa(gpa.0 & !(level_bytes(level as u8) - 1));
        let entry = tdh.mem_sept_rd(tdr, start, level)?;
        let is = |states: &[S]| states.iter().any(|state| *state as u8 == entry.state);
        if is(&[
            S::Mapped,
            S::BlockedW,
            S::ExportedBlockedW,
            S::ExportedDirty,
            S::ExportedDirtyBlockedW,
        ]) {
            return Ok(());
        }
        if is(&[S::Pending, S::PendingBlockedW]) {
            return Err(Uninspectable::Unaccepted(gpa));
        }
        if is(&[S::Free, S::Removed]) {
            return Err(Uninspectable::NoMemory(gpa));
        }
        if entry.state != TABLE {
            return Err(Uninspectable::InMotion(gpa));
        }
    }
    Err(Uninspectable::NoMemory(gpa))
}

/// Accepts only a debug TD that is runnable or paused.
fn admit(td: &Td) -> Result<(), Uninspectable> {
    if !td.config().debug {
        return Err(Uninspectable::Production);
    }
    match td.state() {
        State::Runnable | State::Paused => Ok(()),
        state => Err(Uninspectable::State(state)),
    }
}
