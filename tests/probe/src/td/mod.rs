//! A small TD, built and entered call by call, whose guest is a page of assembly.

pub mod guest;

use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::metadata::{FieldId, vmcs};
use seam::abi::x86::exit_reason;
use seam::abi::{Gprs, Leaf, Status, TDCS_PAGES, TDVPS_PAGES, TdParams, Xfam};
use zerocopy::FromZeros;

use crate::attempt::{enter_often, seamcall_all, write};
use crate::tdx::{FAULT, call, first_hkid, free_hkid, pages, put, succeed};
use crate::team::Team;
use crate::{Check, Failure, expect};

/// vCPUs of a TD at most.
pub const VCPUS: usize = 4;
/// The bit of a shared guest-physical address.
pub const SHARED: u64 = 1 << 47;

/// A TD with its key.
pub struct Td {
    pub tdr: u64,
    pub hkid: u64,
    pub vcpus: [u64; VCPUS],
    pub size: usize,
    /// The root of its shared EPT.
    pub shared_eptp: u64,
}

/// The exit of a vCPU: RAX, and the other registers.
#[derive(Clone, Copy)]
pub struct Exit(pub Gprs);

impl Exit {
    /// The VM exit's reason; none if the call failed.
    pub fn reason(&self) -> u64 {
        self.0.rax
    }

    /// Returns the value that the guest passes in R12 by a TDVMCALL.
    pub fn said(&self) -> u64 {
        self.0.r12
    }
}

fn key_config(tdr: u64) -> u64 {
    let operands = Gprs {
        rcx: tdr,
        ..Gprs::default()
    };
    match call(Leaf::MngKeyConfig, operands) {
        Err(status) => match Status(status).code() {
            // Another processor of the package was first, or of all packages.
            Status::KEY_CONFIGURED | Status::LIFECYCLE_STATE_INCORRECT => 0,
            _ => status,
        },
        Ok(_) => 0,
    }
}

/// Operands in RCX and RDX.
pub fn page_at(rcx: u64, rdx: u64) -> Gprs {
    Gprs {
        rcx,
        rdx,
        ..Gprs::default()
    }
}

/// HKIDs that were handed out.
static TAKEN: AtomicU64 = AtomicU64::new(2);

impl Td {
    /// Builds a TD with vCPUs `0..size`, whose guest runs `program`. All of them belong to this processor until another
    /// has them.
    pub fn build(team: Team, size: usize, program: u64) -> Result<Self, Failure> {
        let mut td = Self::create(team, size, 0)?;
        for gpa in [0, 0xFFFF_F000] {
            for level in (1..=3).rev() {
                td.add_table(gpa, level);
            }
        }
        guest::lay_out(&td)?;
        td.add_vcpus(program)?;
        td.finalize()?;
        Ok(td)
    }

    /// Creates a TD that has nothing yet but its key and its control structures. `word` is the first of MRCONFIGID, which
    /// the guest reads.
    pub fn create(team: Team, size: usize, word: u64) -> Result<Self, Failure> {
        let tdr = pages(1);
        let hkid = first_hkid() + TAKEN.fetch_add(1, Ordering::Relaxed);
        succeed("TDH.MNG.CREATE", Leaf::MngCreate, page_at(tdr, hkid))?;
        expect("TDH.MNG.KEY.CONFIG", key_config(tdr), 0)?;
        for number in 0..team.size() {
            expect("TDH.MNG.KEY.CONFIG", team.ask(number, key_config, tdr)?, 0)?;
        }
        for _ in 0..TDCS_PAGES.0 {
            succeed("TDH.MNG.ADDCX", Leaf::MngAddcx, page_at(pages(1), tdr))?;
        }
        let params_at = pages(1);
        let mut params = TdParams {
            xfam: Xfam::X87 | Xfam::SSE | Xfam::AVX,
            max_vcpus: VCPUS as u16,
            eptp_controls: 0x1E,
            tsc_frequency: 40,
            ..TdParams::new_zeroed()
        };
        params.mrconfigid[..8].copy_from_slice(&word.to_be_bytes());
        put(params_at, &params);
        succeed("TDH.MNG.INIT", Leaf::MngInit, page_at(tdr, params_at))?;
        let td = Self {
            tdr,
            hkid,
            vcpus: [0; VCPUS],
            size,
            shared_eptp: pages(1),
        };
        clear(td.shared_eptp);
        Ok(td)
    }

    /// Adds the vCPUs, each of which begins with `operand` in RCX and R8.
    pub fn add_vcpus(&mut self, operand: u64) -> Check {
        for number in 0..self.size {
            self.vcpus[number] = self.add_vcpu(operand)?;
        }
        Ok(())
    }

    /// Ends the building.
    pub fn finalize(&self) -> Check {
        succeed("TDH.MR.FINALIZE", Leaf::MrFinalize, page_at(self.tdr, 0)).map(drop)
    }

    /// An S-EPT page under the entry of `level`, where there is none yet.
    pub fn add_table(&self, gpa: u64, level: u64) {
        let operands = Gprs {
            r8: pages(1),
            ..page_at(gpa & !((1 << (12 + 9 * level)) - 1) | level, self.tdr)
        };
        // One that is there already serves both.
        let _ = call(Leaf::MemSeptAdd, operands);
    }

    /// Adds a page with the content of the page at `source`.
    pub fn add_page(&self, gpa: u64, source: u64) -> Check {
        let operands = Gprs {
            r8: pages(1),
            r9: source,
            ..page_at(gpa, self.tdr)
        };
        succeed("TDH.MEM.PAGE.ADD", Leaf::MemPageAdd, operands).map(drop)
    }

    fn add_vcpu(&self, program: u64) -> Result<u64, Failure> {
        let tdvpr = pages(1);
        succeed("TDH.VP.CREATE", Leaf::VpCreate, page_at(tdvpr, self.tdr))?;
        for _ in 1..TDVPS_PAGES.0 {
            succeed("TDH.VP.ADDCX", Leaf::VpAddcx, page_at(pages(1), tdvpr))?;
        }
        succeed("TDH.VP.INIT", Leaf::VpInit, page_at(tdvpr, program))?;
        self.write_field(tdvpr, vmcs::SHARED_EPTP, self.shared_eptp)?;
        Ok(tdvpr)
    }

    /// Writes a field of a vCPU.
    pub fn write_field(&self, tdvpr: u64, field: FieldId, value: u64) -> Check {
        self.write_bits(tdvpr, field, value, u64::MAX)
    }

    /// Writes bits of a field of a vCPU.
    pub fn write_bits(&self, tdvpr: u64, field: FieldId, value: u64, mask: u64) -> Check {
        let operands = Gprs {
            r8: value,
            r9: mask,
            ..page_at(tdvpr, field.0)
        };
        succeed("TDH.VP.WR", Leaf::VpWr, operands).map(drop)
    }

    /// Enters vCPU `number` on this processor with what the last TDVMCALL returns.
    pub fn enter(&self, number: usize) -> Exit {
        enter(self.vcpus[number], 0)
    }

    /// Enters vCPU `number`, whose guest counts by TDVMCALLs and has come to `first - 1`, so many times.
    pub fn hear_count(&self, number: usize, first: u64, times: u64) -> Check {
        let all = enter_often(self.vcpus[number], times, first);
        expect("exits that were the TDVMCALL", u64::from(all), 1)
    }

    /// Enters vCPU `number` and expects it to say `expected` by a TDVMCALL.
    pub fn hear(&self, number: usize, what: &'static str, expected: u64) -> Check {
        let exit = self.enter(number);
        expect("the exit's reason", exit.reason(), TDCALL)?;
        expect(what, exit.said(), expected)
    }

    /// Gives the TD's HKID back. Its vCPUs belong to this processor, or to none.
    pub fn end(&self, team: Team) -> Check {
        for number in 0..self.size {
            match call(Leaf::VpFlush, page_at(self.vcpus[number], 0)) {
                Err(status) if Status(status).code() != Status::VCPU_NOT_ASSOCIATED => {
                    return expect("TDH.VP.FLUSH", status, 0);
                }
                _ => {}
            }
        }
        free_hkid(self.tdr, team)
    }
}

/// The exit reason of a TDCALL.
pub const TDCALL: u64 = exit_reason::TDCALL as u64;

/// Enters the vCPU at `tdvpr`; its TDVMCALL, if it is in one, gives R10 = 0 and R12 = `answer`.
pub fn enter(tdvpr: u64, answer: u64) -> Exit {
    let mut registers = Gprs {
        rax: Leaf::VpEnter.rax(),
        rcx: tdvpr,
        r12: answer,
        ..Gprs::default()
    };
    match seamcall_all(&mut registers) {
        Ok(()) => Exit(registers),
        Err(_) => Exit(Gprs {
            rax: FAULT,
            ..registers
        }),
    }
}

/// Clears a page of the host's.
pub fn clear(page: u64) {
    for offset in (0..4096).step_by(8) {
        write(page + offset, 0);
    }
}
