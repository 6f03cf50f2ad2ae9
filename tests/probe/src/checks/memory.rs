//! Direct stores, and memory that is not the software's.
use seam::abi::x86::cr0::WP;
use uefi::boot::{self, AllocateType, MemoryType};
use uefi::mem::memory_map::MemoryMap;

use super::personality::Vector;
use crate::attempt::{
    GP, clear, copy_word, fetch_add, movdir64b as execute, rdmsr, read, set_cr0, write,
};
use crate::cpu::{cr0, cr3};
use crate::{Check, Failure, expect};

const LINE: u64 = 64;
const TWO_MIB: u64 = 2 << 20;

#[repr(align(64))]
struct Line([u64; 8]);

static ZEROES: Line = Line([0; 8]);
static PATTERN: Line = Line([0x1122_3344_5566_7788; 8]);

/// `count` pages of memory of this program's own.
fn pages(count: usize) -> u64 {
    boot::allocate_pages(AllocateType::AnyPages, MemoryType::LOADER_DATA, count)
        .map_or(0, |at| at.as_ptr() as u64)
}

fn fill(at: u64, size: u64, value: u64) {
    for word in (at..at + size).step_by(8) {
        write(word, value);
    }
}

fn sum(at: u64, size: u64) -> u64 {
    (at..at + size)
        .step_by(8)
        .fold(0, |sum, word| sum | read(word))
}

pub fn movdir64b() -> Check {
    let at = pages(1);
    fill(at, 2 * LINE, 1);
    expect("the store", execute(at, &PATTERN.0).unwrap_err_or_zero(), 0)?;
    expect("its first word", read(at), PATTERN.0[0])?;
    expect("its last word", read(at + LINE - 8), PATTERN.0[0])?;
    expect("the word behind it", read(at + LINE), 1)
}

pub fn movdir64b_alignment() -> Check {
    let at = pages(1);
    expect(
        "a misaligned store",
        execute(at + 8, &PATTERN.0).unwrap_err_or_zero(),
        GP,
    )
}

pub fn movdir64b_loop() -> Check {
    let room = pages(1024);
    let at = room.next_multiple_of(TWO_MIB);
    fill(at, TWO_MIB + 4096 - TWO_MIB, 7);
    fill(at + TWO_MIB - 4096, 4096, 7);
    expect(
        "the loop",
        clear(at, &ZEROES.0, TWO_MIB / LINE, true).unwrap_err_or_zero(),
        0,
    )?;
    expect("the first page", sum(at, 4096), 0)?;
    expect("the last page", sum(at + TWO_MIB - 4096, 4096), 0)
}

pub fn movdir64b_memory_counter() -> Check {
    let at = pages(1);
    fill(at, 4096, 7);
    expect(
        "the loop",
        clear(at, &ZEROES.0, 4096 / LINE, false).unwrap_err_or_zero(),
        0,
    )?;
    expect("the page", sum(at, 4096), 0)
}

fn seamrr() -> (u64, u64) {
    let base = rdmsr(0x1400).unwrap_or(0) & 0x000F_FFFF_FE00_0000;
    let mask = rdmsr(0x1401).unwrap_or(0) & 0x000F_FFFF_FE00_0000;
    (base, (1 << 52) - mask)
}

pub fn seamrr_access() -> Check {
    expect("a read", read(seamrr().0 + 0x1000), u64::MAX)
}

pub fn seamrr_write() -> Check {
    let at = seamrr().0 + 0x2000;
    expect("what it added to", fetch_add(at, 1), u64::MAX)
}

pub fn map_reserves_seamrr() -> Check {
    let (base, size) = seamrr();
    let Ok(map) = boot::memory_map(MemoryType::LOADER_DATA) else {
        return expect("the memory map", 0, 1);
    };
    let reserved = map
        .entries()
        .filter(|region| region.ty == MemoryType::RESERVED)
        .any(|region| {
            let end = region.phys_start + region.page_count * 4096;
            region.phys_start <= base && base + size <= end
        });
    expect("SEAMRR in reserved memory", reserved.into(), 1)
}

/// Maps the gigabyte around `target` once more, with KeyID 1 in its physical address: where `target` is there.
fn alias_of(target: u64) -> Result<u64, Failure> {
    const SLOT: u64 = 300;
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const KEYID_1: u64 = 1 << 48;
    let directory = pages(1);
    fill(directory, 4096, 0);
    let gigabyte = target & !0x3FFF_FFFF;
    write(directory, gigabyte | KEYID_1 | PRESENT_WRITABLE | LARGE);
    let entry = (cr3() & !0xFFF) + SLOT * 8;
    let protected = cr0();
    expect(
        "clearing CR0.WP",
        set_cr0(protected & !WP).unwrap_err_or_zero(),
        0,
    )?;
    write(entry, directory | PRESENT_WRITABLE);
    expect("setting CR0.WP", set_cr0(protected).unwrap_err_or_zero(), 0)?;
    Ok(0xFFFF_0000_0000_0000 | SLOT << 39 | target & 0x3FFF_FFFF)
}

pub fn keyid_alias() -> Check {
    let target = pages(1);
    write(target, 42);
    let alias = alias_of(target)?;
    expect("a read", read(alias), u64::MAX)?;
    expect("the memory itself", read(target), 42)
}

/// One instruction that reads from a boundary of two aliased pages, and writes to a third.
pub fn keyid_alias_twice() -> Check {
    let target = pages(4);
    fill(target, 4 * 4096, 42);
    let alias = alias_of(target)?;
    copy_word(alias + 4096 - 4, alias + 2 * 4096);
    expect("the memory read from", read(target + 4096 - 8), 42)?;
    expect("the memory written to", read(target + 2 * 4096), 42)
}
