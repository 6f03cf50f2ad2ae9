//! The way of a request through the tables, and what is cached of it.

use std::collections::HashMap;

use crate::{memory::Memory, unit::Unit};

const PRESENT: u64 = 1;
const ADDRESS: u64 = ((1 << 52) - 1) & !0xFFF;
/// An address width whose tables the firmware's model does not have: everything passes.
const PASS_THROUGH: u64 = 2 << 2;

/// Cached context entries by requester id. Absent ones are cached under domain 0.
#[derive(Debug, Default)]
pub struct Contexts(HashMap<u16, [u64; 2]>);

impl Contexts {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn forget(&mut self, source: u16) {
        self.0.remove(&source);
    }

    pub fn forget_domain(&mut self, id: u16) {
        self.0.retain(|_, entry| domain(entry) != id);
    }
}

fn domain(entry: &[u64; 2]) -> u16 {
    if entry[0] & PRESENT == 0 {
        0
    } else {
        (entry[1] >> 8) as u16
    }
}

/// Cached translations and tables.
#[derive(Debug, Default)]
pub struct Cached {
    /// Leaves by domain, level and the address bits that they map. An entry of 0 is an absent page.
    leaves: HashMap<(u16, u32, u64), u64>,
    /// Tables by domain, level and the address bits that lead to them.
    tables: HashMap<(u16, u32, u64), u64>,
}

impl Cached {
    pub fn clear(&mut self) {
        self.leaves.clear();
        self.tables.clear();
    }

    pub fn forget_domain(&mut self, id: u16) {
        self.leaves.retain(|(of, ..), _| *of != id);
        self.tables.retain(|(of, ..), _| *of != id);
    }

    pub fn forget_pages(&mut self, id: u16, iova: u64, bytes: u64) {
        let end = iova + bytes;
        // A leaf that maps more than the range may stay.
        self.leaves.retain(|(of, level, prefix), _| {
            let (start, leaf_end) = (prefix << shift(*level), (prefix + 1) << shift(*level));
            *of != id || start < iova || end < leaf_end
        });
        self.tables.retain(|(of, level, prefix), _| {
            let (start, table_end) = (
                prefix << (shift(*level) + 9),
                (prefix + 1) << (shift(*level) + 9),
            );
            *of != id || end <= start || table_end <= iova
        });
    }

    /// Returns the cached leaf for a device address, and its level.
    fn leaf(&self, id: u16, iova: u64) -> Option<(u64, u32)> {
        (1..=3).find_map(|level| {
            let leaf = self.leaves.get(&(id, level, iova >> shift(level)))?;
            Some((*leaf, level))
        })
    }
}

/// Returns the number of address bits below the index of a table at this level.
const fn shift(level: u32) -> u32 {
    12 + 9 * (level - 1)
}

/// Makes tables of the firmware's in which the functions of devices 0 and 16 to 31 reach everything, on every bus.
pub fn open_tables(memory: &mut Memory) -> u64 {
    let (Some(root), Some(context)) = (memory.take(0), memory.take(0)) else {
        return 0;
    };
    for bus in 0..256 {
        memory.store(root + bus * 16, context | PRESENT);
    }
    for function in (0..8).chain(128..256) {
        memory.store(context + function * 16, PASS_THROUGH | PRESENT);
        memory.store(context + function * 16 + 8, 2);
    }
    memory.write_back(root, 4096);
    memory.write_back(context, 4096);
    root
}

impl Unit {
    /// Lets a function (requester id, device address, whether it writes) access memory.
    pub fn dma(
        &mut self,
        memory: &mut Memory,
        violations: &mut Vec<String>,
        (source, iova, writes): (u16, u64, bool),
    ) -> Result<u64, u8> {
        if !self.translates() {
            return if self.protects() { Err(0) } else { Ok(iova) };
        }
        let entry = self.context(memory, violations, source);
        let reached = entry.and_then(|entry| {
            if entry[0] & 3 << 2 == PASS_THROUGH {
                return Ok(iova);
            }
            self.translate(memory, violations, (entry, iova, writes))
        });
        match reached {
            Ok(_) if self.protects() => Err(0),
            Ok(pa) => Ok(pa),
            Err(reason) => {
                let is_muted = self.is_muted(memory, violations, source);
                if !is_muted {
                    self.fault(source, reason, (iova & !0xFFF, !writes));
                }
                Err(reason)
            }
        }
    }

    fn context(
        &mut self,
        memory: &Memory,
        violations: &mut Vec<String>,
        source: u16,
    ) -> Result<[u64; 2], u8> {
        let entry = match self.contexts.0.get(&source) {
            Some(entry) => *entry,
            None => {
                let entry = self.read_context(memory, violations, source);
                if entry[0] & PRESENT != 0 || self.shape.caches_absent {
                    self.contexts.0.insert(source, entry);
                }
                entry
            }
        };
        if entry[0] & PRESENT == 0 {
            return Err(2);
        }
        let levels = (entry[1] & 7) as u32 + 2;
        if entry[1] >> 24 != 0 || entry[0] & ADDRESS & 0xFF0 != 0 {
            return Err(0xB);
        }
        let is_known = entry[0] & 3 << 2 == PASS_THROUGH || self.shape.levels.contains(&levels);
        if is_known { Ok(entry) } else { Err(3) }
    }

    /// Returns a function's context entry as it is in memory; zeros if there is no table for it.
    fn read_context(&self, memory: &Memory, violations: &mut Vec<String>, source: u16) -> [u64; 2] {
        let root = (self.root & ADDRESS) + u64::from(source >> 8) * 16;
        let root = self.table(memory, violations, root);
        if root & PRESENT == 0 {
            return [0; 2];
        }
        let at = (root & ADDRESS) + u64::from(source & 0xFF) * 16;
        [
            self.table(memory, violations, at),
            self.table(memory, violations, at + 8),
        ]
    }

    fn is_muted(&self, memory: &Memory, violations: &mut Vec<String>, source: u16) -> bool {
        let cached = self.contexts.0.get(&source).copied();
        let entry = cached.unwrap_or_else(|| self.read_context(memory, violations, source));
        entry[0] & 2 != 0
    }

    fn translate(
        &mut self,
        memory: &Memory,
        violations: &mut Vec<String>,
        (entry, iova, writes): ([u64; 2], u64, bool),
    ) -> Result<u64, u8> {
        let (id, levels) = (domain(&entry), (entry[1] & 7) as u32 + 2);
        if iova >> self.shape.address_bits.min(12 + 9 * levels) != 0 {
            return Err(4);
        }
        let (leaf, level) = match self.translations.leaf(id, iova) {
            Some(leaf) => leaf,
            None => {
                let found =
                    self.walk(memory, violations, (id, levels, iova, entry[0] & ADDRESS))?;
                if found.0 & 3 != 0 || self.shape.caches_absent {
                    let level = if found.0 & 3 == 0 { 1 } else { found.1 };
                    let key = (id, level, iova >> shift(level));
                    self.translations.leaves.insert(key, found.0);
                }
                found
            }
        };
        let needed = if writes { 2 } else { 1 };
        if leaf & needed == 0 {
            return Err(if writes { 5 } else { 6 });
        }
        let size = 1u64 << shift(level);
        Ok((leaf & ADDRESS & !(size - 1)) | iova & (size - 1))
    }

    fn walk(
        &mut self,
        memory: &Memory,
        violations: &mut Vec<String>,
        (id, levels, iova, root): (u16, u32, u64, u64),
    ) -> Result<(u64, u32), u8> {
        let mut table = root;
        let mut level = levels;
        // The cached table nearest to the leaf is where the walk begins.
        for below in 1..levels {
            let prefix = iova >> (12 + 9 * below);
            if let Some(pa) = self.translations.tables.get(&(id, below, prefix)) {
                (table, level) = (*pa, below);
                break;
            }
        }
        loop {
            let at = table + (iova >> shift(level) & 511) * 8;
            let entry = self.table(memory, violations, at);
            if entry & 3 == 0 {
                return Ok((0, level));
            }
            let is_large = entry >> 7 & 1 != 0;
            let bad_size = is_large && level > 1 && level > self.shape.highest_leaf;
            let reserved = entry & ADDRESS & ((1 << shift(level)) - 1);
            if bad_size || entry >> 52 != 0 || is_large && level > 1 && reserved != 0 {
                return Err(0xC);
            }
            if level == 1 || is_large {
                return Ok((entry, level));
            }
            table = entry & ADDRESS;
            level -= 1;
            let prefix = iova >> (12 + 9 * level);
            self.translations.tables.insert((id, level, prefix), table);
        }
    }
}
