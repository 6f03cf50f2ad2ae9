//! The module's fields: TDH.SYS.RD and TDH.SYS.RDALL.

use core::sync::atomic::Ordering;

use seam::abi::metadata::{Context, FieldId, sys};
use seam::abi::{self, Gprs, Operand, PAGE_4K, Status};

use super::access::{Change as FieldChange, Fields, dump, first_id, next_id, read};
use super::table::{Row, Tables, Who};
use crate::call::Call;
use crate::cpuid::{MIN_VIRT_MAXPA, Native, fms};
use crate::mng::event_filter;
use crate::{Change, Machine, operand, params};

/// The module's version, excluding what depends on the release.
pub(super) mod version {
    pub const VENDOR: u64 = 0x8086;
    pub const MAJOR: u64 = 1;
    pub const MINOR: u64 = 5;
    pub const INTERNAL: u64 = 0;
    /// Pages of handoff data.
    pub const HANDOFF_PAGES: u64 = 13;
}

/// IA32_ARCH_CAPABILITIES bits that TD_PARAMS can configure.
pub const ARCH_CAPABILITIES_CONFIGURABLE: u64 = 1 << 4 | 1 << 19 | 1 << 20 | 1 << 24;

/// The module's fields.
pub struct SysFields<'m, M> {
    cx: Call<'m, M>,
    native: &'m Native,
}

impl<'m, M: Machine> SysFields<'m, M> {
    /// Returns the fields of the module that `cx` calls.
    pub fn new(cx: Call<'m, M>) -> Self {
        Self {
            cx,
            native: cx.native(),
        }
    }

    /// Returns family, model and stepping of a package.
    fn package_fms(&self, package: u32) -> u64 {
        let lps = self.cx.machine.platform().lp_to_package;
        let lp = lps.iter().position(|of| *of == package);
        lp.map_or(0, |lp| u64::from(self.cx.machine.cpuid(lp as u32, 1, 0)[0]))
    }
}

impl<M: Machine> Fields for SysFields<'_, M> {
    fn tables(&self) -> Tables {
        Tables::new(self.cx.module.release, Context::Sys, 0)
    }

    fn get(&self, row: &Row, id: FieldId, _who: Who) -> Result<u64, Status> {
        let platform = self.cx.machine.platform();
        let index = row.index(id) as usize;
        let known_fms = fms::Fms(self.native.fms);
        let allowed_fms = || fms::allowed(known_fms, index).map_or(0, |fms| fms.0.into());
        let cmr = || platform.cmrs.get(index).copied().unwrap_or_default();
        let release = self.cx.module.release;
        let identity = release.identity();
        let table = self.native.table;
        let leaf = || {
            let entry = table.configurable.get(index);
            entry.map_or(u64::MAX, |entry| table.rows[entry.row].id())
        };
        let configurable = || {
            table.configurable.get(index / 2).map_or(0, |entry| {
                let bits = |register: usize| {
                    let allowed = entry.allowed[register] & self.native.values[entry.row][register];
                    let allowed = if release.does(Change::MORE_CPUID) {
                        allowed
                    } else {
                        0
                    };
                    u64::from(entry.direct[register] | allowed)
                };
                bits(index % 2 * 2) | bits(index % 2 * 2 + 1) << 32
            })
        };
        Ok(match row.field {
            sys::NUM_PKGS => platform
                .lp_to_package
                .iter()
                .max()
                .map_or(0, |last| u64::from(*last) + 1),
            sys::PKG_FMS => self.package_fms(index as u32),
            sys::VENDOR_ID => version::VENDOR,
            sys::BUILD_DATE => identity.build_date,
            sys::BUILD_NUM => identity.build_num,
            sys::MINOR_VERSION => version::MINOR,
            sys::MAJOR_VERSION => version::MAJOR,
            sys::UPDATE_VERSION => identity.update,
            sys::INTERNAL_VERSION => version::INTERNAL,
            sys::NUM_HANDOFF_PAGES => version::HANDOFF_PAGES,
            sys::NUM_TDX_FEATURES => 1,
            sys::TDX_FEATURES0 => release.features().bits(),
            sys::MODULE_HV => release.handoff_version(),
            sys::NO_DOWNGRADE => u64::from(release.does(Change::HANDOFF_1)),
            sys::HANDOFF_DATA_VALID => u64::from(self.cx.module.handoff.lock().is_some()),
            sys::HANDOFF_DATA_HV => {
                let handoff = self.cx.module.handoff.lock();
                handoff.as_ref().map_or(0, |data| data.version)
            }
            sys::NUM_CMRS => abi::MAX_CMRS as u64,
            sys::CMR_BASE => cmr().0,
            sys::CMR_SIZE => cmr().1,
            sys::MAX_TDMRS => abi::MAX_TDMRS as u64,
            sys::MAX_RESERVED_PER_TDMR => abi::MAX_RESERVED_PER_TDMR as u64,
            sys::PAMT_4K_ENTRY_SIZE | sys::PAMT_2M_ENTRY_SIZE | sys::PAMT_1G_ENTRY_SIZE => {
                abi::PAMT_ENTRY_SIZE
            }
            sys::TDR_BASE_SIZE | sys::TDCS_SIZE_PER_L2_VM => PAGE_4K,
            sys::TDCS_BASE_SIZE | sys::TDVPS_BASE_SIZE => 6 * PAGE_4K,
            sys::TDVPS_SIZE_PER_L2_VM => 3 * PAGE_4K,
            sys::ATTRIBUTES_FIXED0 => params::attributes_allowed(release),
            sys::XFAM_FIXED0 => self.native.xfam_allowed(),
            sys::XFAM_FIXED1 => Native::XFAM_REQUIRED,
            sys::NUM_CPUID_CONFIG => table.configurable.len() as u64,
            sys::CONFIG_FLAGS_FIXED0 => params::config_flags_allowed(release),
            sys::CPUID_CONFIG_LEAVES => leaf(),
            sys::CPUID_CONFIG_VALUES => configurable(),
            sys::NUM_IMMUTABLE_STATE_PAGES if release.does(Change::REVISED_METADATA) => 4,
            sys::NUM_VP_STATE_PAGES if release.does(Change::REVISED_METADATA) => 9,
            sys::IA32_ARCH_CAPABILITIES_CONFIG_MASK => ARCH_CAPABILITIES_CONFIGURABLE,
            sys::NUM_ALLOWED_FMS => fms::num_allowed(known_fms) as u64,
            sys::ALLOWED_FMS => allowed_fms(),
            sys::MAX_VCPUS_PER_TD => self.cx.module.max_vcpus().into(),
            _ => constant(row),
        })
    }

    fn set(&self, _row: &Row, _id: FieldId, _who: Who, _change: FieldChange) -> Result<(), Status> {
        Err(Status::METADATA_FIELD_NOT_WRITABLE)
    }
}

/// Returns the value of a constant field.
fn constant(row: &Row) -> u64 {
    match row.field {
        sys::MIN_VIRT_MAXPA => MIN_VIRT_MAXPA.into(),
        sys::MAX_EVENT_FILTERS => event_filter::MAX.into(),
        sys::PAMT_PAGE_BITMAP_ENTRY_BITS => 1,
        sys::MIN_DYNAMIC_PAMT_NUM_HKID_BITS => crate::sys::MIN_DYNAMIC_PAMT_HKID_BITS.into(),
        sys::MAX_MIGS => 512,
        sys::NUM_IMMUTABLE_STATE_PAGES => 3,
        sys::NUM_TD_STATE_PAGES => 2,
        sys::NUM_VP_STATE_PAGES => 5,
        sys::MAX_SERV_TDS => 1,
        sys::SERVTD_ATTR_FIXED0 => 0x7FF_0000_0001,
        sys::GUEST_L2_GPA_ATTR_MASK => 0x807F,
        sys::VM_CTLS_FIXED0 => 1,
        sys::VPCU_L2_CTLS_FIXED0 => 3,
        sys::VPCU_L2_DEBUG_CTLS_FIXED0 => 7,
        _ => 0,
    }
}

/// TDH.SYS.RD: RDX = field id, or all ones for the first; out R8 = value, RDX = next id.
pub fn sys_rd<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let id = FieldId(regs.rdx);
    (regs.rdx, regs.r8) = (FieldId::NULL.0, 0);
    cx.module.check_lp_initialized(cx.lp)?;
    let (fields, who) = (SysFields::new(cx), Who::Host { debug: false });
    if id.is_null() {
        regs.rdx = first_id(&fields, who).0;
        return Err(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT);
    }
    regs.r8 = read(&fields, id, who)?;
    regs.rdx = next_id(&fields, id, who).0;
    Ok(())
}

/// TDH.SYS.RDALL: RDX = list page, R8 = first field id, or all ones; out R8 = next id.
pub fn sys_rdall<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let first = FieldId(regs.r8);
    regs.r8 = FieldId::NULL.0;
    cx.module.check_lp_initialized(cx.lp)?;
    let list = operand::shared_buffer(cx, regs.rdx, PAGE_4K, Operand::RDX)?;
    let page = cx.machine.page(list);
    let put = |word: usize, value| page[word].store(value, Ordering::Relaxed);
    let next = dump(&SysFields::new(cx), first, Who::Host { debug: false }, put)?;
    regs.r8 = next.0;
    if next.is_null() {
        Ok(())
    } else {
        Err(Status::METADATA_LIST_OVERFLOW)
    }
}
