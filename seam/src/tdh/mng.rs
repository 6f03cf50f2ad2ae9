//! TDH.MNG.*: creating a TD, configuring its key, and freeing the key.

use super::td::{Keyed, Keyless, Releasing, Tdr, is_control_page};
use super::{Tdh, rcx, rcx_rdx};
use crate::abi::{Leaf, Operand, Status};
use crate::address::Hpa;
use crate::call::SeamCall;
use crate::error::{Cause, Error, Handover, Rejected};
use crate::hkid::Hkid;
use crate::page::{Clean, Donated, Page};
use crate::retry::Wait;

/// The result of TDH.MNG.KEY.CONFIG or TDH.SYS.KEY.CONFIG on this package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyConfig {
    /// The key is now configured.
    Configured,
    /// The key was already configured.
    Already,
}

impl KeyConfig {
    pub(super) fn of(status: Status) -> Self {
        if status.code() == Status::KEY_CONFIGURED {
            Self::Already
        } else {
            Self::Configured
        }
    }
}

/// Refuses a page larger than 4 KiB as a control page, before the module would.
pub(super) fn check_control_page(
    leaf: Leaf,
    operand: Operand,
    page: &Page<Clean>,
) -> Result<(), Error> {
    if is_control_page(page) {
        return Ok(());
    }
    let status = Status::OPERAND_INVALID.with(operand);
    Err(Error::new(leaf, Cause::Status(status), [0; 5]))
}

impl<C: SeamCall, W: Wait> Tdh<'_, C, W> {
    /// TDH.MNG.CREATE: creates a TD with the root page `page` and the key `hkid`. Only one call at a time in the
    /// machine, and not while TDH.PHYMEM.CACHE.WB runs: the key table is locked.
    ///
    /// # Errors
    /// HKID_NOT_FREE if the HKID was not returned to the module yet; OPERAND_BUSY on KOT if another TD is created or
    /// released meanwhile.
    pub fn mng_create(
        &self,
        page: Page<Clean>,
        hkid: Hkid,
    ) -> Handover<Tdr<Keyed>, (Page<Clean>, Hkid)> {
        let result = check_control_page(Leaf::MngCreate, Operand::RCX, &page).and_then(|()| {
            let operands = rcx_rdx(page.hpa().0, hkid.number().into());
            self.run(Leaf::MngCreate, operands)
        });
        match result {
            Ok(_) => Ok(Tdr {
                page: page.turn(Donated),
                phase: Keyed { hkid },
            }),
            Err(error) => Err(Rejected::new(error, (page, hkid))),
        }
    }

    /// TDH.MNG.KEY.CONFIG: configures a fresh key for the TD on the package of the calling CPU. It is called once on
    /// every package, one after the other. After the last call the TD's functions work.
    ///
    /// # Errors
    /// KEY_GENERATION_FAILED or OPERAND_BUSY on KET if the CPU could not generate or set the key for too long.
    pub fn mng_key_config(&self, tdr: &Tdr<Keyed>) -> Result<KeyConfig, Error> {
        let done = self.run(Leaf::MngKeyConfig, rcx(tdr.hpa().0))?;
        Ok(KeyConfig::of(done.status))
    }

    /// TDH.MNG.ADDCX: adds one page to the TDCS. The metadata field TDCS_BASE_SIZE / 4096 is the number of pages
    /// needed.
    ///
    /// # Errors
    /// TDCX_NUM_INCORRECT if the TDCS is complete; RND_NO_ENTROPY.
    pub fn mng_addcx(
        &self,
        tdr: &Tdr<Keyed>,
        page: Page<Clean>,
    ) -> Handover<Page<Donated>, Page<Clean>> {
        let result = check_control_page(Leaf::MngAddcx, Operand::RCX, &page)
            .and_then(|()| self.run(Leaf::MngAddcx, rcx_rdx(page.hpa().0, tdr.hpa().0)));
        match result {
            Ok(_) => Ok(page.turn(Donated)),
            Err(error) => Err(Rejected::new(error, page)),
        }
    }

    /// TDH.MNG.INIT: initialises the TD from the TD_PARAMS at `params` (1,024 bytes, aligned to 1,024) in host memory.
    /// After a failure it may be called again with other parameters.
    ///
    /// # Errors
    /// OPERAND_INVALID with the field's name; for CPUID_CONFIG, [`Error::outputs`] starts with leaf and sub-leaf.
    pub fn mng_init(&self, tdr: &Tdr<Keyed>, params: Hpa) -> Result<(), Error> {
        self.run(Leaf::MngInit, rcx_rdx(tdr.hpa().0, params.0))?;
        Ok(())
    }

    /// TDH.MNG.VPFLUSHDONE: blocks the TD permanently. No vCPU may be associated with a CPU. This is the point of no
    /// return in a TD's termination.
    ///
    /// # Errors
    /// FLUSHVP_NOT_DONE if a vCPU is still associated; OPERAND_BUSY on KOT if another TD is created or released
    /// meanwhile. The TD is then unchanged.
    pub fn mng_vpflushdone(&self, tdr: Tdr<Keyed>) -> Handover<Tdr<Releasing>, Tdr<Keyed>> {
        match self.run(Leaf::MngVpflushdone, rcx(tdr.hpa().0)) {
            Ok(_) => Ok(Tdr {
                page: tdr.page,
                phase: Releasing {
                    hkid: tdr.phase.hkid,
                },
            }),
            Err(error) => Err(Rejected::new(error, tdr)),
        }
    }

    /// TDH.MNG.KEY.FREEID: frees the TD's HKID, after TDH.PHYMEM.CACHE.WB was done on every package since VPFLUSHDONE.
    ///
    /// # Errors
    /// WBCACHE_NOT_COMPLETE if it was not. The TD then keeps the HKID and its pages.
    pub fn mng_key_freeid(
        &self,
        tdr: Tdr<Releasing>,
    ) -> Handover<(Tdr<Keyless>, Hkid), Tdr<Releasing>> {
        match self.run(Leaf::MngKeyFreeid, rcx(tdr.hpa().0)) {
            Ok(_) => {
                let keyless = Tdr {
                    page: tdr.page,
                    phase: Keyless::NEW,
                };
                Ok((keyless, tdr.phase.hkid))
            }
            Err(error) => Err(Rejected::new(error, tdr)),
        }
    }
}
