//! The ACPI tables, starting from the RSDP.
//!
//! Firmware wrote them, so no address, length or checksum is trusted. A wrong table is left out, with a sentence that
//! says what is wrong with it.
//!
//! Source: ACPI Specification 6.5, sections 5.2.5 to 5.2.8.

use alloc::{format, string::String, vec::Vec};
use core::fmt;

/// Physical memory, as far as it can be read.
pub trait Physical {
    /// Copies `bytes` bytes from `pa` on. Returns `None` if they can't be read.
    fn copy(&self, pa: u64, bytes: usize) -> Option<Vec<u8>>;
}

/// The four letters that name a table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 4]);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// The list in the RSDT or XSDT.
pub struct Tables<'a, M> {
    memory: &'a M,
    /// Physical addresses.
    addresses: Vec<u64>,
}

const RSDP_SIGNATURE: &[u8; 8] = b"RSD PTR ";
/// Size in bytes of an RSDP of ACPI 1.0, and of a later one.
const RSDP_BYTES: [usize; 2] = [20, 36];
/// Size in bytes of the header of every table.
const HEADER: usize = 36;
/// Maximum size of a table in bytes.
const MAX_TABLE: usize = 4 << 20;
/// Maximum number of tables that are read.
const MAX_TABLES: usize = 512;

impl<'a, M: Physical> Tables<'a, M> {
    /// Reads the list of tables.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the RSDP, RSDT or XSDT.
    pub fn find(memory: &'a M, rsdp: u64) -> Result<Self, String> {
        let (signature, list) = root(memory, rsdp)?;
        let table = table(memory, list, signature)?;
        let size = if signature == XSDT { 8 } else { 4 };
        let entries = table[HEADER..].chunks_exact(size).take(MAX_TABLES);
        Ok(Self {
            memory,
            addresses: entries.map(|entry| number(entry, 0, size)).collect(),
        })
    }

    /// Copies the first good table with this name, or returns `None`. Each bad table that was skipped adds a sentence
    /// to `problems`.
    pub fn table(&self, signature: Signature, problems: &mut Vec<String>) -> Option<Vec<u8>> {
        let mut named = self.addresses.iter().filter(|pa| {
            let name = self.memory.copy(**pa, signature.0.len());
            name.is_some_and(|name| name == signature.0)
        });
        named.find_map(|pa| {
            table(self.memory, *pa, signature)
                .map_err(|problem| problems.push(problem))
                .ok()
        })
    }

    /// Copies the DSDT, which the FADT points to.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn dsdt(&self, fadt: &[u8]) -> Result<Vec<u8>, String> {
        let pa = match number(fadt, 140, 8) {
            0 => number(fadt, 40, 4),
            extended => extended,
        };
        table(self.memory, pa, Signature(*b"DSDT"))
    }
}

const XSDT: Signature = Signature(*b"XSDT");
const RSDT: Signature = Signature(*b"RSDT");

/// Returns the name and the address of the list of tables.
fn root(memory: &impl Physical, rsdp: u64) -> Result<(Signature, u64), String> {
    let wrong = |what| format!("the RSDP at {rsdp:#x} {what}");
    let read = |bytes| {
        memory
            .copy(rsdp, bytes)
            .ok_or_else(|| wrong("can't be read"))
    };
    let old = read(RSDP_BYTES[0])?;
    if !old.starts_with(RSDP_SIGNATURE) {
        return Err(wrong("has another signature"));
    }
    if sum(&old) != 0 {
        return Err(wrong("has a wrong checksum"));
    }
    // Revision 0 is ACPI 1.0, which has no XSDT.
    if old[15] == 0 {
        return Ok((RSDT, number(&old, 16, 4)));
    }
    let new = read(RSDP_BYTES[1])?;
    if sum(&new) != 0 {
        return Err(wrong("has a wrong extended checksum"));
    }
    Ok(match number(&new, 24, 8) {
        0 => (RSDT, number(&new, 16, 4)),
        xsdt => (XSDT, xsdt),
    })
}

/// Copies a table, including its header.
fn table(memory: &impl Physical, pa: u64, signature: Signature) -> Result<Vec<u8>, String> {
    let wrong = |what: &str| format!("the {signature} at {pa:#x} {what}");
    let read = |bytes| memory.copy(pa, bytes).ok_or_else(|| wrong("can't be read"));
    let header = read(HEADER)?;
    if header[..4] != signature.0 {
        return Err(wrong("has another signature"));
    }
    let bytes = number(&header, 4, 4) as usize;
    if !(HEADER..=MAX_TABLE).contains(&bytes) {
        return Err(wrong(&format!("can't have {bytes} bytes")));
    }
    let table = read(bytes)?;
    if sum(&table) != 0 {
        return Err(wrong("has a wrong checksum"));
    }
    Ok(table)
}

/// Sums all bytes; the result is 0 if the checksum is right.
fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Reads the number of `size` bytes at `at`; 0 behind the end.
fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let field = bytes.get(at..at + size).unwrap_or_default();
    field
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec};

    use proptest::prelude::*;

    use super::*;

    const BASE: u64 = 0x7F00_0000;
    const MADT: u64 = BASE + 0x200;
    const FADT: u64 = BASE + 0x300;

    /// Memory from [`BASE`] on.
    struct Ram(Vec<u8>);

    impl Physical for Ram {
        fn copy(&self, pa: u64, bytes: usize) -> Option<Vec<u8>> {
            let at = usize::try_from(pa.checked_sub(BASE)?).ok()?;
            Some(self.0.get(at..at.checked_add(bytes)?)?.to_vec())
        }
    }

    impl Ram {
        fn put(&mut self, pa: u64, bytes: &[u8]) {
            let at = (pa - BASE) as usize;
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
        }

        /// Writes a table with the right length and checksum.
        fn put_table(&mut self, pa: u64, signature: &[u8; 4], body: &[u8]) {
            let mut table = vec![0; HEADER];
            table[..4].copy_from_slice(signature);
            table[4..8].copy_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
            table.extend(body);
            table[9] = sum(&table).wrapping_neg();
            self.put(pa, &table);
        }

        /// Finds a table, starting from the RSDP.
        fn read(&self, signature: &[u8; 4]) -> (Option<Vec<u8>>, Vec<String>) {
            let mut problems = Vec::new();
            let table = match Tables::find(self, BASE) {
                Ok(tables) => tables.table(Signature(*signature), &mut problems),
                Err(problem) => {
                    problems.push(problem);
                    None
                }
            };
            (table, problems)
        }
    }

    /// Memory with an RSDP, an XSDT, a MADT, a FADT and a DSDT.
    fn good() -> Ram {
        let mut ram = Ram(vec![0; 0x1000]);
        let mut rsdp = *b"RSD PTR \0SEAMRK\x02\0\0\0\0\x24\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        rsdp[24..32].copy_from_slice(&(BASE + 0x100).to_le_bytes());
        rsdp[8] = sum(&rsdp[..20]).wrapping_neg();
        rsdp[32] = sum(&rsdp).wrapping_neg();
        ram.put(BASE, &rsdp);
        let entries = [MADT, FADT].map(u64::to_le_bytes).concat();
        ram.put_table(BASE + 0x100, b"XSDT", &entries);
        ram.put_table(MADT, b"APIC", &[7; 20]);
        let mut fadt = vec![0; 244 - HEADER];
        fadt[140 - HEADER..148 - HEADER].copy_from_slice(&(BASE + 0x500).to_le_bytes());
        ram.put_table(FADT, b"FACP", &fadt);
        ram.put_table(BASE + 0x500, b"DSDT", b"aml");
        ram
    }

    #[test]
    fn good_tables_are_found() {
        let ram = good();
        let (madt, problems) = ram.read(b"APIC");
        assert_eq!(madt.map(|madt| madt[HEADER..].to_vec()), Some(vec![7; 20]));
        let (fadt, _) = ram.read(b"FACP");
        let tables = Tables::find(&ram, BASE).ok();
        let dsdt = tables.and_then(|tables| tables.dsdt(&fadt?).ok());
        assert!(dsdt.is_some_and(|dsdt| dsdt.ends_with(b"aml")));
        assert_eq!((ram.read(b"MCFG"), problems), ((None, vec![]), vec![]));
    }

    #[test]
    fn a_broken_table_is_left_out_with_a_sentence() {
        let cases: [(u64, &[u8], &str); 9] = [
            (BASE, b"X", "the RSDP at 0x7f000000 has another signature"),
            (
                BASE + 9,
                b"X",
                "the RSDP at 0x7f000000 has a wrong checksum",
            ),
            (
                BASE + 32,
                b"X",
                "the RSDP at 0x7f000000 has a wrong extended checksum",
            ),
            (
                BASE + 0x100,
                b"R",
                "the XSDT at 0x7f000100 has another signature",
            ),
            (
                BASE + 0x104,
                &[35, 0, 0, 0],
                "the XSDT at 0x7f000100 can't have 35 bytes",
            ),
            (
                MADT + 4,
                &[0, 0, 0, 0],
                "the APIC at 0x7f000200 can't have 0 bytes",
            ),
            (
                MADT + 4,
                &[0xFF; 4],
                "the APIC at 0x7f000200 can't have 4294967295 bytes",
            ),
            (
                MADT + 4,
                &[0, 0, 1, 0],
                "the APIC at 0x7f000200 can't be read",
            ),
            (
                MADT + 40,
                &[8],
                "the APIC at 0x7f000200 has a wrong checksum",
            ),
        ];
        for (pa, bytes, problem) in cases {
            let mut ram = good();
            ram.put(pa, bytes);
            assert_eq!(ram.read(b"APIC"), (None, vec![problem.to_string()]));
        }
        let nowhere = Tables::find(&good(), u64::MAX).err();
        let problem = "the RSDP at 0xffffffffffffffff can't be read";
        assert_eq!(nowhere.as_deref(), Some(problem));
    }

    #[test]
    fn a_good_table_is_found_behind_a_bad_one_of_its_name() {
        let mut ram = good();
        let entries = [MADT, u64::MAX, BASE + 0x600]
            .map(u64::to_le_bytes)
            .concat();
        ram.put_table(BASE + 0x100, b"XSDT", &entries);
        ram.put_table(BASE + 0x600, b"APIC", &[9]);
        ram.put(MADT + 40, &[8]);
        let (madt, problems) = ram.read(b"APIC");
        assert_eq!(madt.map(|madt| madt[HEADER..].to_vec()), Some(vec![9]));
        assert_eq!(problems, ["the APIC at 0x7f000200 has a wrong checksum"]);
    }

    proptest! {
        /// The test corrects the checksums so that the code behind them is reached.
        #[test]
        fn any_bytes_are_survived(
            changes in prop::collection::vec((0usize..0x560, any::<u8>()), 0..40),
            fadt: Vec<u8>,
        ) {
            let mut ram = good();
            for (at, byte) in changes {
                ram.0[at] = byte;
            }
            for (begin, bytes, checksum) in
                [(0, 20, 8), (0, 36, 32), (0x100, 52, 0x109), (0x200, 56, 0x209)]
            {
                let all = sum(&ram.0[begin..begin + bytes]);
                ram.0[checksum] = ram.0[checksum].wrapping_sub(all);
            }
            for signature in [b"APIC", b"FACP", b"MCFG", b"SRAT"] {
                ram.read(signature);
            }
            if let Ok(tables) = Tables::find(&ram, BASE) {
                let dsdt = tables.dsdt(&fadt);
                prop_assert!(dsdt.map_or(true, |dsdt| dsdt.len() >= HEADER));
            }
        }
    }
}
