//! The properties of the TDX module, readable after SYS.INIT and LP.INIT ([`crate::tdh`]).

use arrayvec::ArrayVec;

use crate::{
    abi::{
        CmrInfo, Features0, MAX_CMRS,
        metadata::{Field, FieldId, sys},
    },
    call::SeamCall,
    error::Error,
    retry::Wait,
    tdh::Tdh,
};

/// The properties of the TDX module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are the metadata fields of the same names"
)]
pub struct Info {
    pub vendor_id: u32,
    pub build_date: u32,
    pub build_num: u16,
    pub minor_version: u16,
    pub major_version: u16,
    pub update_version: u16,
    pub tdx_features0: Features0,
    pub max_tdmrs: u16,
    pub max_reserved_per_tdmr: u16,
    pub pamt_4k_entry_size: u16,
    pub pamt_2m_entry_size: u16,
    pub pamt_1g_entry_size: u16,
    /// MAX_VCPUS_PER_TD; older modules do not have this field.
    pub max_vcpus_per_td: Option<u16>,
    /// The convertible memory regions in ascending order, without empty ones.
    pub cmrs: ArrayVec<CmrInfo, MAX_CMRS>,
}

impl Info {
    /// Reads the properties, on a CPU that has done LP.INIT.
    ///
    /// # Errors
    /// [`Error`] if a field that every module 1.5 has can't be read.
    pub fn read<C: SeamCall, W: Wait>(module: &Tdh<'_, C, W>) -> Result<Self, Error> {
        let read = |field: Field| module.sys_rd(field.element(0));
        let mut info = Self {
            vendor_id: read(sys::VENDOR_ID)? as u32,
            build_date: read(sys::BUILD_DATE)? as u32,
            build_num: read(sys::BUILD_NUM)? as u16,
            minor_version: read(sys::MINOR_VERSION)? as u16,
            major_version: read(sys::MAJOR_VERSION)? as u16,
            update_version: read(sys::UPDATE_VERSION)? as u16,
            tdx_features0: Features0::from_bits_retain(read(sys::TDX_FEATURES0)?),
            max_tdmrs: read(sys::MAX_TDMRS)? as u16,
            max_reserved_per_tdmr: read(sys::MAX_RESERVED_PER_TDMR)? as u16,
            pamt_4k_entry_size: read(sys::PAMT_4K_ENTRY_SIZE)? as u16,
            pamt_2m_entry_size: read(sys::PAMT_2M_ENTRY_SIZE)? as u16,
            pamt_1g_entry_size: read(sys::PAMT_1G_ENTRY_SIZE)? as u16,
            max_vcpus_per_td: max_vcpus_per_td(module)?,
            cmrs: ArrayVec::new(),
        };
        for i in 0..(read(sys::NUM_CMRS)? as u32).min(MAX_CMRS as u32) {
            let size = module.sys_rd(sys::CMR_SIZE.element(i))?;
            if size != 0 {
                let base = module.sys_rd(sys::CMR_BASE.element(i))?;
                info.cmrs.push(CmrInfo { base, size });
            }
        }
        Ok(info)
    }
}

/// Reads MAX_VCPUS_PER_TD, which only modules after 1.5.01 have. Reading a missing field would be an illegal call, so a
/// walk over the fields finds out whether the module has it.
fn max_vcpus_per_td<C: SeamCall, W: Wait>(module: &Tdh<'_, C, W>) -> Result<Option<u16>, Error> {
    const MAX_VCPUS_PER_TD: FieldId = FieldId(0x9900_0001_0000_0008);
    // The field can only follow NUM_CPUID_CONFIG and the fields between them.
    let mut at = sys::NUM_CPUID_CONFIG.element(0);
    while let Some(next) = module.sys_rd_next(at)?.next {
        let (class, code) = (next.class(), next.code());
        if class != MAX_VCPUS_PER_TD.class() || code > MAX_VCPUS_PER_TD.code() {
            break;
        }
        if code == MAX_VCPUS_PER_TD.code() {
            return Ok(Some(module.sys_rd(MAX_VCPUS_PER_TD)? as u16));
        }
        if next == at {
            break;
        }
        at = next;
    }
    Ok(None)
}
