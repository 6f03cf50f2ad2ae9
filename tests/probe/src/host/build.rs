//! From an image to a TD that can be entered.

use seam::abi::{Leaf, PAGE_2M, PAGE_4K};
use tdvf::{TdImage, chunks};

use super::Host;
use super::memory::Memory;
use super::{posted, seat};
use crate::attempt::write;
use crate::td::{Td, clear, page_at};
use crate::tdx::{pages, succeed};
use crate::team::Team;
use crate::{Check, Failure, expect};

/// Memory that the guest has to accept, from address zero on.
const RAM: u64 = 256 << 20;
/// The highest S-EPT level below the root, whose tables have to be there.
const TABLES: core::ops::RangeInclusive<u64> = 1..=3;

/// Builds the TD; the vCPUs know the hand-off block. `release` is the module's update number, which the guest is told.
pub fn build(
    team: Team,
    vcpus: usize,
    release: u64,
    file: &[u8],
) -> Result<(Td, Memory, u64), Failure> {
    let Ok(image) = TdImage::parse(file) else {
        return Err(Failure {
            what: "the image",
            found: file.len() as u64,
            expected: 0,
        });
    };
    let list = hand_off();
    let hob_at = image.hob().map_or(0, |section| section.gpa);
    let image = image.with_hob(&list).unwrap_or_else(|_| {
        TdImage::parse(file).unwrap_or_else(|_| unreachable!("it was parsed before"))
    });
    let mut td = Td::create(team, vcpus, release)?;
    let source = pages(1);
    let mut last_region = None;
    for page in image.pages() {
        let region = page.gpa.0 / PAGE_2M;
        if last_region.replace(region) != Some(region) {
            TABLES
                .rev()
                .for_each(|level| td.add_table(page.gpa.0, level));
        }
        clear(source);
        for (offset, word) in (0..).step_by(8).zip(page.data.chunks(8)) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            write(source + offset, u64::from_le_bytes(bytes));
        }
        td.add_page(page.gpa.0, source)?;
        if page.measured {
            for chunk in chunks(page.gpa) {
                succeed("TDH.MR.EXTEND", Leaf::MrExtend, page_at(chunk.0, td.tdr))?;
            }
        }
    }
    td.add_vcpus(hob_at)?;
    td.finalize()?;
    expect("the hand-off block's place", hob_at % PAGE_4K, 0)?;
    Ok((td, Memory::new(), RAM))
}

/// The hand-off blocks: PHIT, one range of memory to be accepted, the end.
fn hand_off() -> [u8; 0x38 + 0x30 + 8] {
    const VERSION: u32 = 9;
    const UNACCEPTED: u32 = 7;
    const PRESENT_INITIALIZED_TESTED: u32 = 7;
    let mut list = [0; 0x38 + 0x30 + 8];
    let mut put = |at: usize, bytes: &[u8]| list[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &1u16.to_le_bytes());
    put(2, &0x38u16.to_le_bytes());
    put(8, &VERSION.to_le_bytes());
    put(0x38, &3u16.to_le_bytes());
    put(0x3A, &0x30u16.to_le_bytes());
    put(0x38 + 24, &UNACCEPTED.to_le_bytes());
    put(0x38 + 28, &PRESENT_INITIALIZED_TESTED.to_le_bytes());
    put(0x38 + 40, &RAM.to_le_bytes());
    put(0x68, &0xFFFFu16.to_le_bytes());
    put(0x6A, &8u16.to_le_bytes());
    list
}

impl Host {
    /// Gives each vCPU what it needs to be interrupted, and up for whatever processor is to run it.
    pub fn prepare_vcpus(&self) -> Check {
        for number in 0..self.td.size {
            let descriptor = pages(1);
            clear(descriptor);
            posted::enable(&self.td, number, descriptor)?;
            self.seats[number].set_descriptor(descriptor);
            expect("TDH.VP.FLUSH", seat::flush(number as u64), 0)?;
        }
        Ok(())
    }
}
