//! TDH.SYS.INFO: the module's description in one structure, and the CMRs.

use seam::abi::{
    CpuidConfig, Gprs, MAX_CMRS, MAX_CPUID_CONFIGS, MAX_RESERVED_PER_TDMR, MAX_TDMRS, Operand,
    PAGE_4K, PAMT_ENTRY_SIZE, Status, TDCS_PAGES, TDVPS_PAGES, TdSysInfo,
};
use zerocopy::FromZeros;

use super::sys::version;
use crate::call::Call;
use crate::cpuid::Native;
use crate::{Machine, Release, memory, operand, params};

/// Bytes of the CMR list: base and size of each entry.
const CMR_LIST_SIZE: u64 = MAX_CMRS as u64 * 16;

/// TDH.SYS.INFO: RCX, RDX = address and size of the buffer; R8, R9 = address and number of entries of the CMR list; out
/// RDX = bytes written, R9 = CMR entries written.
pub fn sys_info<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (size, entries) = (regs.rdx, regs.r9);
    (regs.rdx, regs.r9) = (0, 0);
    cx.module.check_lp_initialized(cx.lp)?;
    let bytes = size_of::<TdSysInfo>() as u64;
    let info = operand::shared_buffer(cx, regs.rcx, bytes, Operand::RCX)?;
    if size < bytes {
        return Err(Status::OPERAND_INVALID.with(Operand::RDX));
    }
    memory::write_struct(cx.machine, info, &TdSysInfo::new_zeroed());
    let cmrs = operand::shared_buffer(cx, regs.r8, CMR_LIST_SIZE, Operand::R8)?;
    if entries < MAX_CMRS as u64 {
        return Err(Status::OPERAND_INVALID.with(Operand::R9));
    }
    memory::write_struct(cx.machine, info, &describe(cx.module.release, cx.native()));
    let listed = cx.machine.platform().cmrs;
    for index in 0..MAX_CMRS {
        let (base, size) = listed.get(index).copied().unwrap_or_default();
        let at = cmrs + index as u64 * 16;
        memory::write(cx.machine, at, base);
        memory::write(cx.machine, at + 8, size);
    }
    (regs.rdx, regs.r9) = (bytes, MAX_CMRS as u64);
    Ok(())
}

fn describe(release: Release, native: &Native) -> TdSysInfo {
    let mut cpuid_configs = [CpuidConfig::default(); MAX_CPUID_CONFIGS];
    for (config, entry) in cpuid_configs.iter_mut().zip(native.table.configurable) {
        let (row, value) = (&native.table.rows[entry.row], native.values[entry.row]);
        *config = CpuidConfig {
            leaf: row.leaf,
            sub_leaf: row.sub_leaf.unwrap_or(u32::MAX),
            registers: core::array::from_fn(|i| entry.direct[i] | entry.allowed[i] & value[i]),
        };
    }
    let identity = release.identity();
    TdSysInfo {
        vendor_id: version::VENDOR as u32,
        build_date: identity.build_date as u32,
        build_num: identity.build_num as u16,
        minor_version: version::MINOR as u16,
        major_version: version::MAJOR as u16,
        sys_rd: 1,
        max_tdmrs: MAX_TDMRS as u16,
        max_reserved_per_tdmr: MAX_RESERVED_PER_TDMR as u16,
        pamt_entry_size: PAMT_ENTRY_SIZE as u16,
        tdcs_base_size: (u64::from(TDCS_PAGES.0) * PAGE_4K) as u16,
        tdvps_base_size: (u64::from(TDVPS_PAGES.0) * PAGE_4K) as u16,
        attributes_fixed0: params::attributes_allowed(release),
        xfam_fixed0: native.xfam_allowed(),
        xfam_fixed1: Native::XFAM_REQUIRED,
        num_cpuid_config: native.table.configurable.len() as u32,
        cpuid_configs,
        ..TdSysInfo::new_zeroed()
    }
}
