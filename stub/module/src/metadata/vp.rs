//! A vCPU's fields: TDH.VP.RD and TDH.VP.WR.

use seam::abi::metadata::{Context, FieldId, vp};
use seam::abi::{Gprs, Leaf, Operand, PAGE_4K, Status, TdCtls};

use super::access::{Change, Fields, first_id, next_id, read, write};
use super::table::{Holds, Row, Tables, VMCS_CLASS, Who, l2_vmcs_vm};
use crate::call::Call;
use crate::cpuid::Msrs;
use crate::field::{Field, Structure};
use crate::lock::Mode;
use crate::td::{TdVcpu, Tdcs, Tdvps, lock_op_state, tdcs};
use crate::vcpu::{Field as VmcsField, fields};
use crate::vp::{Disabled, associate, check_pages};
use crate::{Machine, operand};

/// A vCPU's fields.
pub struct VpFields<'m, M> {
    cx: Call<'m, M>,
    tdcs: Tdcs<'m, M>,
    tdvps: Tdvps<'m, M>,
}

/// Class of the extended-state area.
const XBUFF_CLASS: u8 = 18;
/// Words of the XSAVE header in the extended-state area. They determine how XRSTORS reads it.
const XSAVE_HEADER: core::ops::Range<u32> = 64..72;
/// The XFAM bit of Processor Trace, whose state starts with IA32_RTIT_CTL.
const XFAM_PT: u32 = 8;
/// This bit set means "no address".
const NO_ADDRESS: u64 = 1 << 63;
/// Pin-based control: process posted interrupts.
const POSTED_INTERRUPTS: u64 = 1 << 7;
/// Secondary control: page-modification logging.
const PAGE_MODIFICATION_LOG: u64 = 1 << 17;
/// DEBUGCTL.TR, DEBUGCTL.BTS, DEBUGCTL.ENABLE_UNCORE_PMI.
const TR: u64 = 1 << 6;
const BTS: u64 = 1 << 7;
const UNCORE_PMI: u64 = 1 << 13;

impl<'m, M: Machine> VpFields<'m, M> {
    /// Returns the fields of a vCPU of the TD with this TDCS.
    pub fn new(cx: Call<'m, M>, tdcs: Tdcs<'m, M>, tdvps: Tdvps<'m, M>) -> Self {
        Self { cx, tdcs, tdvps }
    }

    /// Returns the position of an element in the TDVPS.
    ///
    /// # Errors
    /// METADATA_FIELD_ID_INCORRECT for the high half of a VMCS field.
    fn place(&self, row: &Row, id: FieldId) -> Result<Field, Status> {
        let vmcs = match id.class() {
            VMCS_CLASS => fields::TD_VMCS,
            class => match l2_vmcs_vm(class) {
                Some(vm) if u64::from(vm) > self.tdcs.get(tdcs::field::NUM_L2_VMS) => {
                    return Err(Status::METADATA_FIELD_ID_INCORRECT);
                }
                Some(vm) => fields::l2_vmcs(vm),
                None => {
                    let size = row.field.id.element_size() as u8;
                    return Ok(Field::new(row.offset.into(), size).at(row.index(id)));
                }
            },
        };
        let word = VmcsField(id.code())
            .word()
            .ok_or(Status::METADATA_FIELD_ID_INCORRECT)?;
        Ok(vmcs.at(word as u32))
    }

    fn vmcs(&self, field: VmcsField) -> u64 {
        field
            .word()
            .map_or(0, |word| self.tdvps.get(fields::TD_VMCS.at(word as u32)))
    }

    /// Returns IA32_SPEC_CTRL as the TD sees it, given the real value.
    fn virtual_spec_ctrl(&self, real: u64) -> u64 {
        real & !self.tdcs.get(tdcs::field::IA32_SPEC_CTRL_MASK)
    }

    /// Returns whether a virtual interrupt is pending that the virtual APIC would deliver.
    fn has_deliverable_interrupt(&self) -> bool {
        let requested = self.vmcs(VmcsField::INTERRUPT_STATUS) & 0xF0;
        requested > self.tdvps.get(fields::VAPIC_PPR) & 0xF0
    }

    /// Applies the rules for a write to a field of the TD VMCS, and updates the shadows of the value.
    fn set_vmcs(&self, field: VmcsField, value: u64, writable: u64) -> Result<u64, Status> {
        let invalid = Status::METADATA_FIELD_VALUE_NOT_VALID;
        let msrs = &self.cx.native().msrs;
        match field {
            VmcsField::CR0 => {
                self.masked_cr(value, field, VmcsField::CR0_MASK, VmcsField::CR0_SHADOW)
            }
            VmcsField::CR4 => {
                self.masked_cr(value, field, VmcsField::CR4_MASK, VmcsField::CR4_SHADOW)
            }
            VmcsField::DEBUGCTL => {
                if value & (TR | BTS) == TR && !self.tdcs.is_debug() {
                    return Err(invalid);
                }
                Ok(value & !UNCORE_PMI)
            }
            VmcsField::PIN_BASED => {
                if value & POSTED_INTERRUPTS != 0 {
                    for (needed, unset) in [
                        (VmcsField::POSTED_INT_VECTOR, fields::NO_VECTOR),
                        (VmcsField::POSTED_INT_DESCRIPTOR, u64::MAX),
                    ] {
                        if self.vmcs(needed) == unset {
                            return Err(Status::TD_VMCS_FIELD_NOT_INITIALIZED.with_detail(needed.0));
                        }
                    }
                }
                self.tdvps.set(fields::SHADOW_PIN_BASED, value);
                Ok(value)
            }
            VmcsField::POSTED_INT_DESCRIPTOR => {
                self.tdvps.set(fields::SHADOW_PID, value);
                Ok(value)
            }
            VmcsField::POSTED_INT_VECTOR => {
                if value > 0xFF {
                    return Err(invalid);
                }
                self.tdvps.set(fields::SHADOW_VECTOR, value);
                Ok(value)
            }
            VmcsField::PROC_BASED2 => {
                let logs_without_page = value & PAGE_MODIFICATION_LOG != 0
                    && (!self.tdcs.is_debug()
                        || self.vmcs(VmcsField::PML_ADDRESS) & NO_ADDRESS != 0);
                if !Msrs::allows(msrs.proc_based2, value, writable) || logs_without_page {
                    return Err(invalid);
                }
                Ok(value)
            }
            VmcsField::SHARED_EPTP => {
                self.tdvps.set(fields::SHADOW_SHARED_EPTP, value);
                Ok(value)
            }
            _ => Ok(value),
        }
    }

    /// Returns a control register after a write as by the guest: bits that it does not own must equal what it reads.
    fn masked_cr(
        &self,
        value: u64,
        cr: VmcsField,
        mask: VmcsField,
        shadow: VmcsField,
    ) -> Result<u64, Status> {
        let mask = self.vmcs(mask);
        if (value ^ self.vmcs(shadow)) & mask != 0 {
            return Err(Status::METADATA_FIELD_VALUE_NOT_VALID);
        }
        Ok(self.vmcs(cr) & mask | value & !mask)
    }

    /// Applies the rules for a write to another field.
    fn set_other(&self, row: &Row, id: FieldId, old: u64, value: u64) -> Result<u64, Status> {
        match row.field {
            _ if id.class() == XBUFF_CLASS => {
                let offset = |component| self.tdcs.get(fields::XBUFF_OFFSETS.at(component)) / 8;
                let traced = self.tdcs.get(tdcs::field::XFAM) >> XFAM_PT & 1 != 0;
                if XSAVE_HEADER.contains(&id.code())
                    || traced && u64::from(id.code()) == offset(XFAM_PT)
                {
                    return Err(Status::METADATA_FIELD_NOT_WRITABLE);
                }
                Ok(value)
            }
            vp::CPUID_SUPERVISOR_VE | vp::CPUID_USER_VE | vp::CPUID_CONTROL => {
                let locked = self.tdcs.get(tdcs::field::TD_CTLS) & TdCtls::LOCK.bits() != 0;
                if locked && value != old {
                    return Err(Status::METADATA_FIELD_VALUE_NOT_VALID);
                }
                Ok(value)
            }
            vp::XFAM => Err(Status::METADATA_FIELD_NOT_WRITABLE),
            vp::IA32_SPEC_CTRL => {
                let ddpd = self.cx.native().has_ddpd();
                let hidden = self.tdcs.get(tdcs::field::IA32_SPEC_CTRL_MASK);
                Ok(if ddpd {
                    value | hidden
                } else {
                    value & !fields::SPEC_CTRL_DDPD_U
                })
            }
            _ => Ok(value),
        }
    }
}

impl<M: Machine> Fields for VpFields<'_, M> {
    fn tables(&self) -> Tables {
        let release = self.cx.module.release;
        Tables::new(
            release,
            Context::Vp,
            self.tdcs.get(tdcs::field::NUM_L2_VMS) as u8,
        )
    }

    fn get(&self, row: &Row, id: FieldId, _who: Who) -> Result<u64, Status> {
        let value = self.tdvps.get(self.place(row, id)?);
        Ok(match row.field {
            vp::VCPU_STATE_DETAILS => self.has_deliverable_interrupt().into(),
            vp::IA32_SPEC_CTRL => self.virtual_spec_ctrl(value),
            _ => value,
        })
    }

    fn set(&self, row: &Row, id: FieldId, _who: Who, change: Change) -> Result<(), Status> {
        let place = self.place(row, id)?;
        // A write of the whole field does not depend on the old value.
        let mut old = if change.mask() == row.element_mask() {
            0
        } else {
            change.old
        };
        let is_address = row.holds != Holds::Value;
        if is_address && old & NO_ADDRESS != 0 {
            old &= change.writable;
        }
        let value = change.apply(old)?;
        match row.holds {
            Holds::SharedHpa => {
                let descriptor = id.code() == VmcsField::POSTED_INT_DESCRIPTOR.0;
                let size = if descriptor { 64 } else { PAGE_4K };
                if !self.cx.machine.platform().is_shared_buffer(value, 1, size) {
                    return Err(Status::METADATA_FIELD_VALUE_NOT_VALID);
                }
            }
            Holds::PrivateGpa => {
                if !operand::is_private_gpa(&self.tdcs, value) {
                    return Err(Status::METADATA_FIELD_VALUE_NOT_VALID);
                }
            }
            Holds::Value | Holds::Hpa | Holds::PrivateHpa => {}
        }
        let value = if id.class() == VMCS_CLASS {
            self.set_vmcs(VmcsField(id.code()), value, change.writable)?
        } else {
            self.set_other(row, id, change.old, value)?
        };
        self.tdvps.set(place, value);
        Ok(())
    }
}

/// TDH.VP.RD: RCX = TDVPR, RDX = field id; out R8 = value, and in version 1 RDX = next id.
pub fn vp_rd<M: Machine>(cx: Call<'_, M>, version: u8, regs: &mut Gprs) -> Result<(), Status> {
    let id = FieldId(regs.rdx);
    regs.r8 = 0;
    if version > 0 {
        regs.rdx = FieldId::NULL.0;
    }
    if version > 1 {
        return Err(Status::OPERAND_INVALID.with(Operand::RAX));
    }
    let vcpu = TdVcpu::take(cx, regs.rcx, Operand::RCX, Mode::Shared)?;
    let (tdcs, _op_state) = lock_op_state(cx, vcpu.tdr, Leaf::VpRd)?;
    check_pages(&tdcs, &vcpu.tdvps)?;
    associate(cx, &tdcs, &vcpu.tdvps, Disabled::Allowed)?;
    let (fields, who) = (
        VpFields::new(cx, tdcs, vcpu.tdvps),
        Who::Host {
            debug: tdcs.is_debug(),
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

/// TDH.VP.WR: RCX = TDVPR, RDX = field id, R8 = value, R9 = mask; out R8 = the previous value.
pub fn vp_wr<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let wanted = regs.r8;
    regs.r8 = 0;
    let vcpu = TdVcpu::take(cx, regs.rcx, Operand::RCX, Mode::Shared)?;
    let (tdcs, _op_state) = lock_op_state(cx, vcpu.tdr, Leaf::VpWr)?;
    check_pages(&tdcs, &vcpu.tdvps)?;
    associate(cx, &tdcs, &vcpu.tdvps, Disabled::Refused)?;
    let (fields, who) = (
        VpFields::new(cx, tdcs, vcpu.tdvps),
        Who::Host {
            debug: tdcs.is_debug(),
        },
    );
    regs.r8 = write(&fields, FieldId(regs.rdx), who, wanted, regs.r9)?;
    Ok(())
}
