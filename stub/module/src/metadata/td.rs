//! A TD's fields: TDH.MNG.RD and TDH.MNG.WR.

use seam::abi::metadata::{Context, FieldId, td};
use seam::abi::{ConfigFlags, Gprs, Leaf, Operand, PAGE_MASK, SeptState, Status, TdCtls};

use super::access::{Change as FieldChange, Fields, first_id, next_id, read, write};
use super::table::{CPUID_CLASS, Row, Tables, Who, cpuid_leaf};
use crate::call::Call;
use crate::cpuid;
use crate::ept::RWX;
use crate::field::{Field, Structure};
use crate::sept::Entry;
use crate::td::{Td, Tdcs, tdcs};
use crate::{Change, Machine};

/// The first class of the TDCS; lower classes are the TDR's.
const FIRST_TDCS_CLASS: u8 = 16;
/// HP_LOCK_TIMEOUT in microseconds.
const LOCK_TIMEOUTS: core::ops::RangeInclusive<u64> = 10_000..=100_000_000;

/// A TD's fields.
pub struct TdFields<'m, M> {
    cx: Call<'m, M>,
    tdcs: Tdcs<'m, M>,
    tsc_hz: u64,
}

impl<'m, M: Machine> TdFields<'m, M> {
    /// Returns the fields of the TD with this TDCS.
    pub fn new(cx: Call<'m, M>, tdcs: Tdcs<'m, M>) -> Self {
        Self {
            cx,
            tdcs,
            tsc_hz: cx.native().tsc_hz,
        }
    }

    /// Returns an entry of an S-EPT's root as the CPU sees it: with the TD's HKID in the address of a page table, which
    /// may be executed in user mode too.
    fn with_hkid(&self, entry: u64) -> u64 {
        const USER_EXECUTE: u64 = 1 << 10;
        let state = Entry(entry).state();
        if !matches!(state, SeptState::NonLeafMapped | SeptState::NonLeafBlocked) {
            return entry;
        }
        let hkid = self.tdcs.tdr().hkid();
        let platform = self.cx.machine.platform();
        let address = platform.with_keyid(entry & PAGE_MASK, hkid);
        let user = if entry & RWX != 0 { USER_EXECUTE } else { 0 };
        entry & !PAGE_MASK | address | user
    }
}

/// Returns the row of the CPUID table that a CPUID value belongs to, regardless of its configuration.
///
/// # Errors
/// METADATA_FIELD_ID_INCORRECT if there is none, METADATA_FIELD_NOT_READABLE if it has no value for a TD.
fn cpuid_row(table: &cpuid::Table, id: FieldId) -> Result<u32, Status> {
    if id.code() >> 17 != 0 {
        return Err(Status::METADATA_FIELD_ID_INCORRECT);
    }
    let (leaf, sub_leaf) = cpuid_leaf(id);
    let row = table
        .find(leaf, sub_leaf)
        .ok_or(Status::METADATA_FIELD_ID_INCORRECT)?;
    if table.rows[row].faulting {
        return Err(Status::METADATA_FIELD_NOT_READABLE);
    }
    Ok(row as u32)
}

impl<M: Machine> Fields for TdFields<'_, M> {
    fn tables(&self) -> Tables {
        let release = self.cx.module.release;
        Tables::new(
            release,
            Context::Td,
            self.tdcs.get(tdcs::field::NUM_L2_VMS) as u8,
        )
    }

    fn get(&self, row: &Row, id: FieldId, _who: Who) -> Result<u64, Status> {
        let size = row.field.id.element_size() as u8;
        let first = Field::new(row.offset.into(), size);
        match row.field {
            _ if row.field.id.class() < FIRST_TDCS_CLASS => {
                Ok(self.tdcs.tdr().get(first.at(row.index(id))))
            }
            _ if row.field.id.class() == CPUID_CLASS => {
                Ok(self
                    .tdcs
                    .get(first.at(cpuid_row(self.cx.native().table, id)? * 2 + (id.code() & 1))))
            }
            td::NUM_CPUID_VALUES => Ok(self.cx.native().table.rows.len() as u64),
            td::CPUID_VALID => {
                let row = self.cx.native().table.rows.get(row.index(id) as usize);
                Ok(row.is_some_and(|row| !row.faulting).into())
            }
            td::SEPT_ROOT | td::L2_SEPT_ROOT_1 | td::L2_SEPT_ROOT_2 | td::L2_SEPT_ROOT_3
                if self.cx.module.release.does(Change::EPTP_WITH_HKID) =>
            {
                let entry = self.tdcs.get(first.at(row.index(id)));
                Ok(self.with_hkid(entry))
            }
            td::HP_LOCK_TIMEOUT => {
                Ok(self.tdcs.get(first).min(u64::MAX / 1_000_000) * 1_000_000 / self.tsc_hz.max(1))
            }
            _ => Ok(self.tdcs.get(first.at(row.index(id)))),
        }
    }

    fn set(&self, row: &Row, id: FieldId, who: Who, change: FieldChange) -> Result<(), Status> {
        let mut value = change.apply(change.old)?;
        let field =
            Field::new(row.offset.into(), row.field.id.element_size() as u8).at(row.index(id));
        match row.field {
            td::HP_LOCK_TIMEOUT => {
                if change.mask() != u64::MAX {
                    return Err(Status::METADATA_WR_MASK_NOT_VALID);
                }
                if !LOCK_TIMEOUTS.contains(&value) {
                    return Err(Status::METADATA_FIELD_VALUE_NOT_VALID);
                }
                let ticks = value * self.tsc_hz / 1_000_000;
                self.tdcs.set(field, u64::from(ticks as u32));
                return Ok(());
            }
            _ if row.field.name == td::TD_CTLS.name && who == Who::Guest => {
                value = self.td_ctls(change.old, value)?;
            }
            td::FEATURE_PARAVIRT_CTLS if self.is_locked() && value != change.old => {
                return Err(Status::METADATA_FIELD_VALUE_NOT_VALID);
            }
            _ => {}
        }
        // Writes only if the field has not changed meanwhile.
        let written = self
            .tdcs
            .update(field, |now| (now == change.old).then_some(value));
        written
            .map(drop)
            .ok_or(Status::OPERAND_BUSY.with(Operand::METADATA_FIELD))
    }
}

impl<M: Machine> TdFields<'_, M> {
    fn is_locked(&self) -> bool {
        self.tdcs.get(tdcs::field::TD_CTLS) & TdCtls::LOCK.bits() != 0
    }

    /// Returns TD_CTLS after the TD's write of `value`.
    ///
    /// # Errors
    /// METADATA_FIELD_VALUE_NOT_VALID.
    fn td_ctls(&self, old: u64, value: u64) -> Result<u64, Status> {
        let invalid = Err(Status::METADATA_FIELD_VALUE_NOT_VALID);
        let changed = TdCtls::from_bits_retain(value ^ old);
        if self.is_locked() {
            return if changed.is_empty() {
                Ok(value)
            } else {
                invalid
            };
        }
        let flexible = ConfigFlags::from_bits_retain(self.tdcs.get(tdcs::field::CONFIG_FLAGS))
            .contains(ConfigFlags::FLEXIBLE_PENDING_VE);
        if !flexible && changed.contains(TdCtls::PENDING_VE_DISABLE) {
            return invalid;
        }
        let mut controls = TdCtls::from_bits_retain(value);
        if controls.contains(TdCtls::REDUCE_VE) {
            controls |= TdCtls::ENUM_TOPOLOGY | TdCtls::VIRT_CPUID2;
        }
        let has_topology = self.tdcs.get(tdcs::field::TOPOLOGY_ENUM_CONFIGURED) != 0;
        if controls.contains(TdCtls::ENUM_TOPOLOGY) && !has_topology {
            return invalid;
        }
        Ok(controls.bits())
    }
}

/// TDH.MNG.RD: RCX = TDR, RDX = field id; out R8 = value, and in version 1 RDX = next id.
pub fn mng_rd<M: Machine>(cx: Call<'_, M>, version: u8, regs: &mut Gprs) -> Result<(), Status> {
    let id = FieldId(regs.rdx);
    regs.r8 = 0;
    if version > 0 {
        regs.rdx = FieldId::NULL.0;
    }
    if version > 1 {
        return Err(Status::OPERAND_INVALID.with(Operand::RAX));
    }
    let td = Td::shared(cx, regs.rcx, Operand::RCX, Leaf::MngRd)?;
    let (fields, who) = (
        TdFields::new(cx, td.tdcs),
        Who::Host {
            debug: td.tdcs.is_debug(),
        },
    );
    if version > 0 && id.is_null() {
        regs.rdx = first_id(&fields, who).0;
        return Err(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT);
    }
    regs.r8 = read(&fields, id, who)?;
    if version > 0 {
        regs.rdx = next_id(&fields, id, who).0;
    }
    Ok(())
}

/// TDH.MNG.WR: RCX = TDR, RDX = field id, R8 = value, R9 = mask; out R8 = the previous value.
pub fn mng_wr<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let wanted = regs.r8;
    regs.r8 = 0;
    let td = Td::shared(cx, regs.rcx, Operand::RCX, Leaf::MngWr)?;
    let (fields, who) = (
        TdFields::new(cx, td.tdcs),
        Who::Host {
            debug: td.tdcs.is_debug(),
        },
    );
    regs.r8 = write(&fields, FieldId(regs.rdx), who, wanted, regs.r9)?;
    Ok(())
}
