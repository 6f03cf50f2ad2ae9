//! TDH.MNG.INIT: initialises a TD from its TD_PARAMS.

use seam::abi::{Attributes, ConfigFlags, Features0, Gprs, Leaf, Operand, Status, TdParams};

use super::event_filter;
use crate::call::Call;
use crate::cpuid::FIXED0_BITMAP;
use crate::field::Structure;
use crate::mr::Mrtd;
use crate::params::{Config, Present, TSC_ADJUST_MSR, virtual_tsc};
use crate::td::{
    OpState, Td, Tdcs,
    tdcs::{field, page},
};
use crate::vcpu::fields;
use crate::vp::vmx_caps;
use crate::{Change, Machine, guest, memory, operand};

/// Size and alignment of TD_PARAMS in bytes.
const TD_PARAMS_SIZE: u64 = size_of::<TdParams>() as u64;
/// IA32_MISC_ENABLE, whose bit 22 limits the CPUID leafs.
const MISC_ENABLE: u32 = 0x1A0;
const LIMIT_CPUID_MAXVAL: u64 = 1 << 22;

/// Flag in the TDR operand: R8 has the list of the events that the TD may count.
const EVENT_FILTERING: u64 = 1 << 0;

/// TDH.MNG.INIT: RCX = TDR and a flag, RDX = TD_PARAMS, R8 = event filters; out RCX = leaf and sub-leaf of a refused
/// CPUID configuration, else 0.
pub fn init<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let release = cx.module.release;
    let (tdr, filters) = if release.has(Features0::EVENT_FILTERING) {
        let filtering = regs.rcx & EVENT_FILTERING != 0;
        (regs.rcx & !EVENT_FILTERING, filtering.then_some(regs.r8))
    } else {
        (regs.rcx, None)
    };
    regs.rcx = 0;
    if cx.machine.rdmsr(cx.lp, MISC_ENABLE) & LIMIT_CPUID_MAXVAL != 0 {
        return Err(Status::LIMIT_CPUID_MAXVAL_SET);
    }
    let td = Td::exclusive(cx, tdr, Operand::RCX, Leaf::MngInit)?;
    let pa = operand::shared_buffer(cx, regs.rdx, TD_PARAMS_SIZE, Operand::RDX)?;
    let params: TdParams = memory::read_struct(cx.machine, pa);
    let tsc_adjust = cx.machine.rdmsr(cx.lp, TSC_ADJUST_MSR);
    let present = Present {
        num_tdcx: td.tdr.num_tdcx(),
        tsc_adjust,
        scales_tsc: cx.machine.scales_tsc(),
        max_vcpus: cx.module.max_vcpus(),
    };
    td.tdcs.set(field::EVENT_FILTERS_NUM, 0);
    let mut copy_filters = || match filters {
        Some(info) if params.attributes.contains(Attributes::PERFMON) => {
            event_filter::copy(cx, &td.tdcs, info)
        }
        _ => Ok(()),
    };
    let config = Config::new(release, &params, cx.native(), &present, &mut copy_filters).map_err(
        |refusal| {
            regs.rcx = refusal.rcx;
            refusal.status
        },
    )?;
    fill(cx, &td.tdcs, &params, &config);
    cx.module.begin_build(&td.tdcs);
    td.tdcs.set_op_state(OpState::Initialized);
    Ok(())
}

fn fill<M: Machine>(cx: Call<'_, M>, tdcs: &Tdcs<'_, M>, params: &TdParams, config: &Config) {
    let tsc = cx.machine.rdtsc(cx.lp);
    let pending_ve_disable = params.attributes.contains(Attributes::SEPT_VE_DISABLE);
    let platform = cx.machine.platform();
    let release = cx.module.release;
    let root = platform.without_keyid(tdcs.page_pa(page::SEPT_ROOT));
    let root = if release.does(Change::EPTP_WITH_HKID) {
        platform.with_keyid(root, tdcs.tdr().hkid())
    } else {
        root
    };
    let topology = release.has(Features0::TOPOLOGY_ENUM);
    let reduction = release.has(Features0::VE_REDUCTION);
    let ddpd_hidden = if config.features.ddpd {
        0
    } else {
        fields::SPEC_CTRL_DDPD_U
    };
    for (field, value) in [
        (field::NUM_VCPUS, 0),
        (field::NUM_ASSOC_VCPUS, 0),
        (field::TD_EPOCH, 1),
        (field::REFCOUNT.at(0), 0),
        (field::REFCOUNT.at(1), 0),
        (field::HP_LOCK_TIMEOUT, cx.native().tsc_hz),
        (field::ATTRIBUTES, params.attributes.bits()),
        (field::TD_CTLS, pending_ve_disable.into()),
        (field::XFAM, params.xfam.bits()),
        (field::XBUFF_SIZE, config.xbuff.1.into()),
        (field::MAX_VCPUS, params.max_vcpus.into()),
        (field::NUM_L2_VMS, params.num_l2_vms.into()),
        (field::CONFIG_FLAGS, params.config_flags.bits()),
        (
            field::GPAW,
            params.config_flags.contains(ConfigFlags::GPAW).into(),
        ),
        (field::EPTP, root | config.eptp),
        (field::FEATURE_PARAVIRT_CTLS, 0),
        (field::CPUID_FIXED0_BITMAP, FIXED0_BITMAP),
        (field::VIRT_MAXPA, config.virt_maxpa.into()),
        (field::TOPOLOGY_ENUM_CONFIGURED, topology.into()),
        (field::VE_REDUCTION_VALID, reduction.into()),
        (field::FIELD_SUPPORT_AT_INIT, config.field_support.into()),
        (field::TSC_FREQUENCY, params.tsc_frequency.into()),
        (field::TSC_MULTIPLIER, config.tsc_multiplier),
        (
            field::TSC_OFFSET,
            virtual_tsc(tsc, config.tsc_multiplier, 0).wrapping_neg(),
        ),
        (field::IA32_SPEC_CTRL_MASK, ddpd_hidden),
        (fields::VIRTUAL_ARCH_CAPABILITIES, config.arch_capabilities),
    ] {
        tdcs.set(field, value);
    }
    for (index, offset) in (0..).zip(config.xbuff.0) {
        tdcs.set(fields::XBUFF_OFFSETS.at(index), offset.into());
    }
    for (index, [eax, ebx, ecx, edx]) in (0..).zip(config.cpuid) {
        tdcs.set(
            fields::CPUID_VALUES.at(index * 2),
            u64::from(eax) | u64::from(ebx) << 32,
        );
        tdcs.set(
            fields::CPUID_VALUES.at(index * 2 + 1),
            u64::from(ecx) | u64::from(edx) << 32,
        );
    }
    for (index, register) in (0..).zip(cx.native().caches.as_flattened()) {
        let field = field::CPUID4_NATIVE_VALUES.at(index);
        tdcs.set(field, (*register).into());
    }
    for (field, measurement) in [
        (field::MRCONFIGID, &params.mrconfigid),
        (field::MROWNER, &params.mrowner),
        (field::MROWNERCONFIG, &params.mrownerconfig),
    ] {
        tdcs.write_bytes(field.offset(), measurement);
    }
    tdcs.write_bytes(field::RTMR.offset(), &[0; 4 * 48]);
    Mrtd::begin(cx, tdcs);
    guest::fill_msr_bitmaps(release, cx.native(), tdcs);
    vmx_caps::fill(release, cx.native(), tdcs);
}
