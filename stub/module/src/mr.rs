//! TDH.MR.*: MRTD, the measurement of a TD's initial contents.

use seam::abi::{Gprs, Leaf, Measurement, Operand, Status, level_bytes};
use sha2::compress512;
use sha2::digest::generic_array::GenericArray;

use crate::call::Call;
use crate::field::Structure;
use crate::sept::walk;
use crate::td::tdcs::field;
use crate::td::{OpState, Td, Tdcs};
use crate::{Machine, Point, memory, operand};

/// Bytes of a page that one TDH.MR.EXTEND covers.
const CHUNK: u64 = 256;
/// Bytes of a SHA-384 block.
const BLOCK: usize = 128;

/// TDH.MR.EXTEND: extends MRTD with the 256 bytes at guest-physical address RCX.
pub fn extend<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let (gpa, tdr) = (regs.rcx, regs.rdx);
    (regs.rcx, regs.rdx) = (0, 0);
    // The exclusive TDR lock keeps other calls off the S-EPT.
    let td = Td::exclusive(cx, tdr, Operand::RDX, Leaf::MrExtend)?;
    if !gpa.is_multiple_of(CHUNK) || !operand::is_private_gpa(&td.tdcs, gpa) {
        return Err(Status::OPERAND_INVALID.with(Operand::RCX));
    }
    let end = walk(cx.machine, &td.tdcs, gpa, 0);
    if !end.entry.is_leaf() || !end.entry.is_present() {
        (regs.rcx, regs.rdx) = end.entry.describe(cx.module.release, end.level);
        return Err(Status::EPT_ENTRY_NOT_PRESENT.with(Operand::RCX));
    }
    if !end.entry.allows(Leaf::MrExtend) {
        return Err(Status::EPT_ENTRY_NOT_PRESENT);
    }
    cx.module.check_measurement(&td.tdcs)?;
    let pa = end.entry.page_pa(end.level) + gpa % level_bytes(end.level);
    let mut chunk = [0; CHUNK as usize];
    memory::read_bytes(cx.machine, pa, &mut chunk);
    Mrtd::resume(cx, &td.tdcs).extend_contents(gpa, &chunk);
    Ok(())
}

/// TDH.MR.FINALIZE: completes MRTD and makes the TD runnable.
pub fn finalize<M: Machine>(cx: Call<'_, M>, regs: &mut Gprs) -> Result<(), Status> {
    let td = Td::exclusive(cx, regs.rcx, Operand::RCX, Leaf::MrFinalize)?;
    if td.tdcs.get(field::NUM_VCPUS) == 0 {
        return Err(Status::NO_VCPUS);
    }
    cx.module.check_measurement(&td.tdcs)?;
    Mrtd::resume(cx, &td.tdcs).finish();
    cx.module.end_build(&td.tdcs);
    td.tdcs.set_op_state(OpState::Runnable);
    Ok(())
}

/// MRTD under construction: a SHA-384 whose chaining value is stored in the TDCS between calls. All input is a whole
/// number of blocks.
pub struct Mrtd<'a, 'm, M> {
    cx: Call<'m, M>,
    tdcs: &'a Tdcs<'m, M>,
    state: [u64; 8],
    length: u64,
}

impl<'a, 'm, M: Machine> Mrtd<'a, 'm, M> {
    /// Starts the measurement of a TD.
    pub fn begin(cx: Call<'m, M>, tdcs: &'a Tdcs<'m, M>) {
        Self {
            cx,
            tdcs,
            state: INITIAL,
            length: 0,
        }
        .save();
    }

    /// Resumes the measurement of a TD.
    pub fn resume(cx: Call<'m, M>, tdcs: &'a Tdcs<'m, M>) -> Self {
        Self {
            cx,
            tdcs,
            state: core::array::from_fn(|i| tdcs.get(field::MRTD_STATE.at(i as u32))),
            length: tdcs.get(field::MRTD_LENGTH),
        }
    }

    /// Extends MRTD with the addition of a page at `gpa`.
    pub fn extend_page_add(mut self, gpa: u64) {
        self.update(&record("MEM.PAGE.ADD", gpa));
        self.save();
    }

    /// Extends MRTD with the contents at `gpa`.
    fn extend_contents(mut self, gpa: u64, contents: &[u8; CHUNK as usize]) {
        self.update(&record("MR.EXTEND", gpa));
        self.update(contents);
        self.save();
    }

    fn update(&mut self, data: &[u8]) {
        self.cx.reached(Point::Sha384);
        self.state = blocks(self.state, data);
        self.length += data.len() as u64;
    }

    fn save(&self) {
        for (i, word) in (0..).zip(self.state) {
            self.tdcs.set(field::MRTD_STATE.at(i), word);
        }
        self.tdcs.set(field::MRTD_LENGTH, self.length);
    }

    /// Ends the measurement and writes MRTD.
    fn finish(self) {
        self.cx.reached(Point::Sha384);
        self.tdcs
            .write_bytes(field::MRTD.offset(), &digest(self.state, self.length));
    }
}

/// The initial chaining value of SHA-384. Source: FIPS 180-4, 5.3.4.
const INITIAL: [u64; 8] = [
    0xcbbb_9d5d_c105_9ed8,
    0x629a_292a_367c_d507,
    0x9159_015a_3070_dd17,
    0x152f_ecd8_f70e_5939,
    0x6733_2667_ffc0_0b31,
    0x8eb4_4a87_6858_1511,
    0xdb0c_2e0d_64f9_8fa7,
    0x47b5_481d_befa_4fa4,
];

/// Returns the chaining value after `data`, a whole number of blocks.
fn blocks(mut state: [u64; 8], data: &[u8]) -> [u64; 8] {
    for block in data.chunks_exact(BLOCK) {
        compress512(&mut state, &[*GenericArray::from_slice(block)]);
    }
    state
}

/// Returns the digest of `length` bytes, a whole number of blocks, from their chaining value.
fn digest(state: [u64; 8], length: u64) -> Measurement {
    let mut padding = [0; BLOCK];
    padding[0] = 0x80;
    padding[BLOCK - 8..].copy_from_slice(&(8 * length).to_be_bytes());
    let mut digest = [0; 48];
    for (bytes, word) in digest.chunks_exact_mut(8).zip(blocks(state, &padding)) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

/// Returns the record of an operation on the page or chunk at `gpa`: its name padded to 16 bytes, the address, zeros.
fn record(name: &str, gpa: u64) -> [u8; BLOCK] {
    let mut record = [0; BLOCK];
    record[..name.len()].copy_from_slice(name.as_bytes());
    record[16..24].copy_from_slice(&gpa.to_le_bytes());
    record
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha384};

    use super::*;

    #[test]
    fn a_record_is_the_name_the_address_and_zeros() {
        let record = record("MEM.PAGE.ADD", 0x1234_5000);
        assert_eq!(&record[..16], b"MEM.PAGE.ADD\0\0\0\0");
        assert_eq!(record[16..24], [0, 0x50, 0x34, 0x12, 0, 0, 0, 0]);
        assert!(record[24..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn whole_blocks_and_one_of_padding_are_sha_384() {
        let data = [record("MEM.PAGE.ADD", 0), record("MR.EXTEND", 0x100)].concat();
        assert_eq!(
            digest(blocks(INITIAL, &data), data.len() as u64)[..],
            Sha384::digest(&data)[..]
        );
    }
}
