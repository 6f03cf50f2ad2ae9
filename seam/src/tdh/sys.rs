//! TDH.SYS.*: bringing up the module. Its fields are read in `metadata`.

use super::mng::KeyConfig;
use super::{Tdh, rcx};
use crate::abi::{FatalDiagnostics, Gprs, Leaf, Status};
use crate::address::Hpa;
use crate::call::SeamCall;
use crate::error::Error;
use crate::hkid::Hkid;
use crate::retry::Wait;

/// The sizes that TDH.SYS.INFO wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysInfo {
    /// Size of the TDSYSINFO_STRUCT in bytes.
    pub bytes: u64,
    /// Number of entries in the CMR_INFO array, including empty ones.
    pub cmrs: u64,
}

/// The initialisation progress of a TDMR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TdmrProgress {
    /// Everything below this address is initialised. The module rounds it down to 1 GiB.
    UpTo(Hpa),
    /// The whole TDMR is initialised.
    Done,
}

impl<C: SeamCall, W: Wait> Tdh<'_, C, W> {
    /// TDH.SYS.INIT, version 0: initialises the module. This is the first call, on one CPU.
    ///
    /// # Errors
    /// Any property of the platform that the module does not accept.
    pub fn sys_init(&self) -> Result<(), Error> {
        self.run(Leaf::SysInit, Gprs::default())?;
        Ok(())
    }

    /// TDH.SYS.INIT, version 1: initialises the module, which records its fatal errors from then on.
    ///
    /// FATAL_DIAGNOSTICS announces the version, but no field of the module can be read before this call. A module
    /// without it refuses the call, and [`Self::sys_init`] may follow.
    ///
    /// # Errors
    /// [`Error::is_unknown_version`] if the module has version 0 alone; the errors of [`Self::sys_init`].
    pub fn sys_init_recording(&self, asked: FatalDiagnostics) -> Result<(), Error> {
        let operands = Gprs {
            r8: asked.operand(),
            ..Gprs::default()
        };
        self.run_version(Leaf::SysInit, 1, operands)?;
        Ok(())
    }

    /// TDH.SYS.LP.INIT: initialises the calling CPU. It is called once on every CPU after [`Self::sys_init`]; CPUs may
    /// do so at the same time.
    ///
    /// # Errors
    /// INCONSISTENT_* if this CPU differs from the first one.
    pub fn sys_lp_init(&self) -> Result<(), Error> {
        self.run(Leaf::SysLpInit, Gprs::default())?;
        Ok(())
    }

    /// TDH.SYS.INFO: writes a TDSYSINFO_STRUCT (1,024 bytes, aligned to 1,024) to `info` and an array of `entries`
    /// CMR_INFO (aligned to 512 bytes) to `cmrs`, both in host memory.
    ///
    /// # Errors
    /// OPERAND_INVALID if a buffer is too small or not aligned; SYS_LP_INIT_NOT_DONE on this CPU.
    pub fn sys_info(
        &self,
        info: Hpa,
        info_bytes: u64,
        cmrs: Hpa,
        entries: u64,
    ) -> Result<SysInfo, Error> {
        let operands = Gprs {
            rdx: info_bytes,
            r8: cmrs.0,
            r9: entries,
            ..rcx(info.0)
        };
        let regs = self.run(Leaf::SysInfo, operands)?.regs;
        Ok(SysInfo {
            bytes: regs.rdx,
            cmrs: regs.r9,
        })
    }

    /// TDH.SYS.CONFIG: gives the module its TDMRs and its own HKID. `list` holds the addresses of `count` TDMR_INFOs.
    /// The list and each TDMR_INFO are aligned to 512 bytes, in host memory.
    ///
    /// From this call on the HKID can't be used for TDs, even after a failure: module 1.5.01 keeps it reserved when it
    /// refuses the TDMRs. The caller keeps the token.
    ///
    /// # Errors
    /// The TDMR, PAMT or reserved area at fault; SYS_CONFIG_NOT_PENDING if a CPU has not done TDH.SYS.LP.INIT.
    pub fn sys_config(&self, list: Hpa, count: u64, global: &Hkid) -> Result<(), Error> {
        self.configure(list, count, global.number().into())
    }

    /// Calls TDH.SYS.CONFIG with an HKID and flags.
    pub(super) fn configure(&self, list: Hpa, count: u64, flags: u64) -> Result<(), Error> {
        let operands = Gprs {
            rdx: count,
            r8: flags,
            ..rcx(list.0)
        };
        self.run(Leaf::SysConfig, operands)?;
        Ok(())
    }

    /// TDH.SYS.KEY.CONFIG: configures the module's own key on the package of the calling CPU. It is called once on
    /// every package.
    ///
    /// # Errors
    /// KEY_GENERATION_FAILED or OPERAND_BUSY on KET if the CPU could not generate or set the key for too long.
    pub fn sys_key_config(&self) -> Result<KeyConfig, Error> {
        let done = self.run(Leaf::SysKeyConfig, Gprs::default())?;
        Ok(KeyConfig::of(done.status))
    }

    /// TDH.SYS.TDMR.INIT: initialises the next part of the TDMR from `base` to `base + size`.
    /// [`super::resume::TdmrInit`] calls it until it is done. CPUs may work on different TDMRs at the same time.
    ///
    /// # Errors
    /// OPERAND_BUSY on RCX if another CPU works on the same TDMR.
    pub fn sys_tdmr_init(&self, base: Hpa, size: u64) -> Result<TdmrProgress, Error> {
        let done = self.run(Leaf::SysTdmrInit, rcx(base.0))?;
        let next = done.regs.rdx;
        let end = base.0.saturating_add(size);
        if next >= end || done.status.code() == Status::TDMR_ALREADY_INITIALIZED {
            Ok(TdmrProgress::Done)
        } else {
            Ok(TdmrProgress::UpTo(Hpa(next)))
        }
    }
}
