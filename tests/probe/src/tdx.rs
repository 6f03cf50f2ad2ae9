//! The host's side of TDX, call by call.

use core::sync::atomic::{AtomicU64, Ordering};

use seam::abi::{
    Gprs, Leaf, PAGE_1G, PAGE_2M, PAGE_4K, PAMT_ENTRY_SIZE, PamtArea, ReservedArea, Status,
    TdmrInfo,
};
use spin::LazyLock;
use uefi::boot::{AllocateType, MemoryType, allocate_pages};

use crate::attempt::{rdmsr, seamcall_all, write};
use crate::checks::enter_vmx;
use crate::team::{Team, pages_below};
use crate::{Check, Failure, expect};

/// Bytes at the start of the first GiB that no TD may use.
const LOW_MEMORY: u64 = 1 << 20;

/// A SEAMCALL that raised an exception: no status has these bits.
pub const FAULT: u64 = u64::MAX;

/// Executes a SEAMCALL: its registers afterwards.
///
/// # Errors
/// Every status but SUCCESS, or [`FAULT`].
pub fn call(leaf: Leaf, operands: Gprs) -> Result<Gprs, u64> {
    let mut registers = Gprs {
        rax: leaf.rax(),
        ..operands
    };
    match seamcall_all(&mut registers) {
        Ok(()) if registers.rax == 0 => Ok(registers),
        Ok(()) => Err(registers.rax),
        Err(_) => Err(FAULT),
    }
}

/// As [`call`], in a check: the status has to be SUCCESS.
pub fn succeed(what: &'static str, leaf: Leaf, operands: Gprs) -> Result<Gprs, Failure> {
    call(leaf, operands).map_err(|status| Failure {
        what,
        found: status,
        expected: 0,
    })
}

/// The first private HKID.
pub fn first_hkid() -> u64 {
    (rdmsr(0x87).unwrap_or(0) & 0xFFFF_FFFF) + 1
}

/// The one TDMR: the GiB at 4 GiB, if the machine has it, so that a TD's pages have addresses of more than 32 bits; else the first.
static TDMR: LazyLock<Tdmr> = LazyLock::new(|| {
    const HIGH: u64 = 4 * PAGE_1G;
    let count = (PAGE_1G / PAGE_4K) as usize;
    match allocate_pages(AllocateType::Address(HIGH), MemoryType::LOADER_DATA, count) {
        Ok(_) => Tdmr {
            base: HIGH,
            next: Some(AtomicU64::new(HIGH)),
        },
        Err(_) => Tdmr {
            base: 0,
            next: None,
        },
    }
});

struct Tdmr {
    base: u64,
    /// The first of its pages that nobody has, where all of them are this program's. Otherwise firmware hands them out.
    next: Option<AtomicU64>,
}

/// `count` pages in the TDMR. Zero if there are none.
pub fn pages(count: usize) -> u64 {
    let Some(next) = &TDMR.next else {
        return pages_below(PAGE_1G - 1, count);
    };
    let at = next.fetch_add(count as u64 * PAGE_4K, Ordering::Relaxed);
    let fits = at + count as u64 * PAGE_4K <= TDMR.base + PAGE_1G;
    if fits { at } else { 0 }
}

fn in_vmx_operation(region: u64) -> u64 {
    enter_vmx(region).map_or(FAULT, |()| 0)
}

fn lp_init(_: u64) -> u64 {
    call(Leaf::SysLpInit, Gprs::default()).err().unwrap_or(0)
}

/// The first processor of a package programs its key; the others find that it was, or that all were.
fn key_config(_: u64) -> u64 {
    match call(Leaf::SysKeyConfig, Gprs::default()) {
        Err(status)
            if matches!(
                Status(status).code(),
                Status::KEY_CONFIGURED | Status::SYS_KEY_CONFIG_NOT_PENDING
            ) =>
        {
            0
        }
        answer => answer.err().unwrap_or(0),
    }
}

/// The memory that the module was given.
#[derive(Clone, Copy)]
pub struct Configuration {
    /// The PAMT of 4 KiB pages.
    pub pamt_4k: u64,
}

/// Brings TDX up: TDH.SYS.INIT was executed on this processor, which is in VMX operation.
pub fn bring_up(team: Team) -> Result<Configuration, Failure> {
    for number in 0..team.size() {
        let region = pages_below(1 << 32, 1);
        let entered = team.ask(number, in_vmx_operation, region)?;
        expect("VMXON of another processor", entered, 0)?;
    }
    team.all("TDH.SYS.LP.INIT", lp_init)?;

    let array = pages_below(1 << 32, 1);
    let info_at = array + 2048;
    let mut free = pamt_memory();
    let mut pamt = |page: u64| {
        let size = (PAGE_1G / page * PAMT_ENTRY_SIZE).next_multiple_of(4096);
        let base = free;
        free += size;
        PamtArea { base, size }
    };
    let mut info = TdmrInfo {
        base: TDMR.base,
        size: PAGE_1G,
        pamt_1g: pamt(PAGE_1G),
        pamt_2m: pamt(2 << 20),
        pamt_4k: pamt(4096),
        ..TdmrInfo::default()
    };
    if TDMR.base == 0 {
        info.reserved[0] = ReservedArea {
            offset: 0,
            size: LOW_MEMORY,
        };
    }
    write(array, info_at);
    put(info_at, &info);
    let config = Gprs {
        rcx: array,
        rdx: 1,
        r8: first_hkid(),
        ..Gprs::default()
    };
    succeed("TDH.SYS.CONFIG", Leaf::SysConfig, config)?;
    expect("TDH.SYS.KEY.CONFIG", key_config(0), 0)?;
    team.all("TDH.SYS.KEY.CONFIG", key_config)?;
    let tdmr = Gprs {
        rcx: TDMR.base,
        ..Gprs::default()
    };
    while succeed("TDH.SYS.TDMR.INIT", Leaf::SysTdmrInit, tdmr)?.rdx < TDMR.base + PAGE_1G {}
    Ok(Configuration {
        pamt_4k: info.pamt_4k.base,
    })
}

/// Writes a structure of words.
pub fn put<T: zerocopy::IntoBytes + zerocopy::Immutable>(at: u64, value: &T) {
    for (i, chunk) in (0..).zip(value.as_bytes().chunks(8)) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        write(at + 8 * i, u64::from_le_bytes(word));
    }
}

/// Memory for the PAMT of the TDMR: outside of it, where firmware takes memory first, and in regions of 2 MiB of its own.
fn pamt_memory() -> u64 {
    const REGIONS: u64 = 3;
    const { assert!(PAGE_1G / 4096 * PAMT_ENTRY_SIZE <= (REGIONS - 1) * PAGE_2M) };
    pages_below(1 << 32, ((REGIONS + 1) * PAGE_2M / 4096) as usize).next_multiple_of(PAGE_2M)
}

/// Gives back the HKID of the TD at `tdr`, whose keys no processor uses.
pub fn free_hkid(tdr: u64, team: Team) -> Check {
    let operands = Gprs {
        rcx: tdr,
        ..Gprs::default()
    };
    succeed("TDH.MNG.VPFLUSHDONE", Leaf::MngVpflushdone, operands)?;
    expect("TDH.PHYMEM.CACHE.WB", write_back(0), 0)?;
    team.all("TDH.PHYMEM.CACHE.WB", write_back)?;
    succeed("TDH.MNG.KEY.FREEID", Leaf::MngKeyFreeid, operands)?;
    Ok(())
}

/// One processor of a package does it for all.
fn write_back(_: u64) -> u64 {
    loop {
        match call(Leaf::PhymemCacheWb, Gprs::default()) {
            Err(status) if Status(status).code() == Status::INTERRUPTED_RESUMABLE => {}
            Err(status) if Status(status).code() == Status::NO_HKID_READY_TO_WBCACHE => return 0,
            answer => return answer.err().unwrap_or(0),
        }
    }
}
