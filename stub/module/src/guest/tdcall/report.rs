//! TDG.MR.*: run-time measurements, and reports of a TD.

use hmac::{Hmac, Mac};
use seam::abi::{Attributes, MEASUREMENT_SIZE, Operand, ReportMac, Status, TdInfo, TdReport, Xfam};
use sha2::{Digest, Sha256, Sha384};
use zerocopy::{FromZeros, IntoBytes};

use super::End;
use crate::field::Structure;
use crate::guest::{Check, Inside, Stop, TdExit};
use crate::lock::{Busy, Guard, Mode};
use crate::td::tdcs;
use crate::vcpu::Gpr;
use crate::{Change, Machine, Point, memory};

/// Run-time measurement registers of a TD.
const NUM_RTMRS: u64 = 4;
/// Size and alignment of a report in bytes. The size of its report data follows.
const REPORT_SIZE: u64 = size_of::<TdReport>() as u64;
const REPORT_DATA_SIZE: u64 = 64;
/// REPORTTYPE.TYPE of a TD.
const TYPE_TDX: u8 = 0x81;

impl<M: Machine> Inside<'_, M> {
    fn lock_rtmrs(&self, mode: Mode) -> Result<Guard<'_>, End> {
        self.tdcs
            .rtmr_lock()
            .acquire_for_guest(mode)
            .map_err(|busy| {
                let code = match busy {
                    Busy::Held => Status::OPERAND_BUSY,
                    Busy::HostPriority => Status::OPERAND_BUSY_HOST_PRIORITY,
                };
                End::Status(code.with(Operand::RTMR))
            })
    }

    /// TDG.MR.RTMR.EXTEND: RCX = 48 bytes, 64-byte aligned; RDX = register number.
    pub fn rtmr_extend(&self) -> Result<(), End> {
        let (gpa, index) = (self.vcpu.gpr(Gpr::Rcx), self.vcpu.gpr(Gpr::Rdx));
        if !gpa.is_multiple_of(64) {
            return Err(Status::OPERAND_INVALID.with(Operand::RCX).into());
        }
        let pa = self
            .translate(gpa, false, true)
            .map_err(|no| no.into_end(Operand::RCX))?;
        let mut extension = [0; MEASUREMENT_SIZE];
        memory::read_bytes(self.cx.machine, pa, &mut extension);
        if index >= NUM_RTMRS {
            return Err(Status::OPERAND_INVALID.with(Operand::RDX).into());
        }
        let _rtmrs = self.lock_rtmrs(Mode::Exclusive)?;
        let offset = tdcs::field::RTMR.offset() + index as u32 * MEASUREMENT_SIZE as u32;
        let mut register = [0; MEASUREMENT_SIZE];
        self.tdcs.read_bytes(offset, &mut register);
        self.cx.reached(Point::Sha384);
        let extended = Sha384::new()
            .chain_update(register)
            .chain_update(extension)
            .finalize();
        self.tdcs.write_bytes(offset, &extended);
        self.tdcs.set(tdcs::field::INFO_HASH_VALID, 0);
        Ok(())
    }

    /// TDG.MR.REPORT: RCX = destination, RDX = 64 bytes of report data, R8 = subtype, 0.
    pub fn report(&self) -> Result<(), End> {
        let (gpa, data) = (self.vcpu.gpr(Gpr::Rcx), self.vcpu.gpr(Gpr::Rdx));
        if !gpa.is_multiple_of(REPORT_SIZE) {
            return Err(Status::OPERAND_INVALID.with(Operand::RCX).into());
        }
        if !data.is_multiple_of(REPORT_DATA_SIZE) {
            return Err(Status::OPERAND_INVALID.with(Operand::RDX).into());
        }
        let pa = self
            .translate(data, false, false)
            .map_err(|no| no.into_end(Operand::RDX))?;
        let mut report_data = [0; REPORT_DATA_SIZE as usize];
        memory::read_bytes(self.cx.machine, pa, &mut report_data);
        if self.vcpu.gpr(Gpr::R8) != 0 {
            return Err(Status::OPERAND_INVALID.with(Operand::R8).into());
        }
        let td_info = {
            let _rtmrs = self.lock_rtmrs(Mode::Shared)?;
            self.td_info()
        };
        let is_slow = !self.keeps_info_hash();
        if is_slow && self.cx.interrupt_pending() {
            return Err(End::Interrupted);
        }
        let Ok(key) = self.cx.machine.report_key(self.cx.lp) else {
            let exit = TdExit::new(Status::NON_RECOVERABLE_TD_CORRUPTED_MD, 0);
            return Err(End::Stop(exit.into()));
        };
        let report = make_report(td_info, report_data, &key);
        let pa = self
            .translate(gpa, true, false)
            .map_err(|no| no.into_end(Operand::RCX))?;
        memory::write_struct(self.cx.machine, pa, &report);
        Ok(())
    }

    /// TDG.MR.VERIFYREPORT: RCX = the first part of a TDREPORT of this machine, 256-byte aligned.
    pub fn verify_report(&self) -> Result<(), End> {
        const INVALID_CPUSVN: u64 = 4;
        const INVALID_REPORT: u64 = 5;
        let gpa = self.vcpu.gpr(Gpr::Rcx);
        if !gpa.is_multiple_of(size_of::<ReportMac>() as u64) {
            return Err(Status::OPERAND_INVALID.with(Operand::RCX).into());
        }
        let pa = self
            .translate(gpa, false, true)
            .map_err(|no| no.into_end(Operand::RCX))?;
        let report: ReportMac = memory::read_struct(self.cx.machine, pa);
        match self.cx.machine.verify_report(self.cx.lp, &report) {
            Ok(()) => Ok(()),
            Err(INVALID_CPUSVN) => Err(Status::INVALID_CPUSVN.into()),
            Err(INVALID_REPORT) => Err(Status::INVALID_REPORTMACSTRUCT.into()),
            Err(_) => Err(Stop::Shutdown(Check::VerifyReport).into()),
        }
    }

    /// Returns whether the module still has the hash of the TD's information from an earlier report. It has it from now
    /// on.
    fn keeps_info_hash(&self) -> bool {
        let kept = self.tdcs.get(tdcs::field::INFO_HASH_VALID) != 0;
        self.tdcs.set(tdcs::field::INFO_HASH_VALID, 1);
        kept && self.cx.module.release.does(Change::KEEPS_INFO_HASH)
    }

    fn td_info(&self) -> TdInfo {
        use tdcs::field;
        let mut info = TdInfo::new_zeroed();
        info.attributes = Attributes::from_bits_retain(self.tdcs.get(field::ATTRIBUTES));
        info.xfam = Xfam::from_bits_retain(self.tdcs.get(field::XFAM));
        self.tdcs.read_bytes(field::MRTD.offset(), &mut info.mrtd);
        self.tdcs
            .read_bytes(field::MRCONFIGID.offset(), &mut info.mrconfigid);
        self.tdcs
            .read_bytes(field::MROWNER.offset(), &mut info.mrowner);
        self.tdcs
            .read_bytes(field::MROWNERCONFIG.offset(), &mut info.mrownerconfig);
        self.tdcs
            .read_bytes(field::RTMR.offset(), info.rtmr.as_mut_bytes());
        info
    }
}

fn make_report(td_info: TdInfo, report_data: [u8; 64], key: &[u8; 32]) -> TdReport {
    let mut report = TdReport::new_zeroed();
    let mac = &mut report.report_mac;
    mac.report_type = [TYPE_TDX, 0, 0, 0];
    mac.tee_info_hash = Sha384::digest(td_info.as_bytes()).into();
    mac.report_data = report_data;
    mac.mac = authenticate(mac, key);
    report.td_info = td_info;
    report
}

/// Returns the MAC over the part of a REPORTMACSTRUCT that precedes the MAC.
fn authenticate(mac: &ReportMac, key: &[u8; 32]) -> [u8; 32] {
    let covered = mac.as_bytes().len() - size_of_val(&mac.mac);
    // HMAC accepts a key of any length.
    Hmac::<Sha256>::new_from_slice(key).map_or([0; 32], |hmac| {
        hmac.chain_update(&mac.as_bytes()[..covered])
            .finalize()
            .into_bytes()
            .into()
    })
}

/// Verifies the first part of a TDREPORT with the key that authenticates reports on this machine.
///
/// # Errors
/// 5, the code of SEAMVERIFYREPORT for a report of another machine.
pub fn check_report(report: &ReportMac, key: &[u8; 32]) -> Result<(), u64> {
    const INVALID_REPORT: u64 = 5;
    if authenticate(report, key) == report.mac {
        Ok(())
    } else {
        Err(INVALID_REPORT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_verifies_with_its_own_key_only_and_unchanged() {
        let report = make_report(TdInfo::new_zeroed(), [7; 64], &[1; 32]);
        assert_eq!(check_report(&report.report_mac, &[1; 32]), Ok(()));
        assert_eq!(check_report(&report.report_mac, &[2; 32]), Err(5));
        let mut forged = report.report_mac;
        forged.report_data[0] ^= 1;
        assert_eq!(check_report(&forged, &[1; 32]), Err(5));
    }
}
