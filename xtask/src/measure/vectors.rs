//! Tests that recompute MRTDs of Intel's module.
//!
//! The recordings are replayed only as far as measurement needs it: the pages added and extended, their content, and
//! the results of TDH.MNG.RD and the guest's TDREPORT.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seam::abi::{Gprs, Leaf, Status};

use super::mrtd::{CHUNK, Mrtd};
use crate::conform::scenario::{Scenario, Step};

/// MRTD's first 64-bit element; the others follow.
const MRTD_FIELD: u64 = 0x1310_0003_0000_0000;
/// The size of a TDREPORT, and the position of MRTD in it.
const REPORT_BYTES: usize = 1024;
const REPORT_MRTD: std::ops::Range<usize> = 0x210..0x240;
/// The first byte of a TDREPORT.
const REPORT_TYPE: u8 = 0x81;

#[test]
fn every_recorded_mrtd_is_computed_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| path.to_string_lossy().ends_with(".jsonl.zst"));
    let (mut elements, mut reports) = (0, 0);
    for file in &files {
        let mut replay = Replay::default();
        for step in Scenario::load(file).unwrap().steps {
            replay.step(&step);
        }
        elements += replay.elements;
        reports += replay.reports;
    }
    // Two finalized TDs, six elements each, read by two versions of the leaf; and the reports of g_mr_*.
    assert!(elements >= 24, "{elements} elements of MRTDs");
    assert!(reports >= 8, "{reports} TDREPORTs");
}

/// The state that measurement depends on.
#[derive(Default)]
struct Replay {
    /// Memory that the host wrote, by page.
    memory: BTreeMap<u64, [u8; 4096]>,
    /// TDs by TDR.
    tds: BTreeMap<u64, Td>,
    /// The MRTD of the TD that was finalized last.
    last: Option<[u8; 48]>,
    /// MRTD elements from TDH.MNG.RD, and TDREPORTs; all equal the computed values.
    elements: usize,
    reports: usize,
}

struct Td {
    mrtd: Mrtd,
    pages: BTreeMap<u64, [u8; 4096]>,
    finalized: Option<[u8; 48]>,
}

impl Replay {
    fn step(&mut self, step: &Step) {
        for patch in &step.memory_in {
            for (at, byte) in (patch.pa..).zip(&patch.bytes) {
                self.memory.entry(at & !0xfff).or_insert([0; 4096])[(at & 0xfff) as usize] = *byte;
            }
        }
        for nested in step.during.iter().flat_map(|during| &during.steps) {
            self.step(nested);
        }
        for dump in &step.memory_out {
            if dump.gpa.is_some()
                && dump.bytes.len() == REPORT_BYTES
                && dump.bytes[0] == REPORT_TYPE
            {
                assert_eq!(
                    dump.bytes[REPORT_MRTD],
                    self.last.expect("a finalized TD"),
                    "line {}",
                    step.line
                );
                self.reports += 1;
            }
        }
        if Status(step.output.gprs().rax) == Status::SUCCESS {
            self.succeeded(step);
        }
    }

    /// Follows a call that succeeded.
    fn succeeded(&mut self, step: &Step) {
        let Gprs {
            rax,
            rcx,
            rdx,
            r9: source,
            ..
        } = step.input.gprs();
        let value = step.output.gprs().r8;
        let gpa = rcx & !0xfff;
        match Leaf::from_number(rax as u16) {
            Some(Leaf::MngCreate) => {
                self.tds.insert(
                    rcx,
                    Td {
                        mrtd: Mrtd::new(),
                        pages: BTreeMap::new(),
                        finalized: None,
                    },
                );
            }
            Some(Leaf::MemPageAdd) => {
                // The source may be named with a shared KeyID.
                let content = self
                    .memory
                    .get(&(source & ((1 << 46) - 1)))
                    .copied()
                    .unwrap_or([0; 4096]);
                let td = self.tds.get_mut(&rdx).expect("a known TD");
                td.mrtd.page_add(gpa);
                td.pages.insert(gpa, content);
            }
            Some(Leaf::MrExtend) => {
                let td = self.tds.get_mut(&rdx).expect("a known TD");
                let chunk = td.pages[&gpa][(rcx & 0xfff) as usize..].first_chunk::<CHUNK>();
                td.mrtd.extend(rcx, chunk.expect("a chunk in the page"));
            }
            Some(Leaf::MrFinalize) => {
                let td = self.tds.get_mut(&rcx).expect("a known TD");
                td.finalized = Some(td.mrtd.clone().finalize());
                self.last = td.finalized;
            }
            Some(Leaf::MngRd) if (MRTD_FIELD..MRTD_FIELD + 6).contains(&rdx) => {
                let td = &self.tds[&rcx];
                let at = 8 * (rdx - MRTD_FIELD) as usize;
                let mrtd = td.finalized.unwrap_or([0; 48]);
                assert_eq!(value.to_le_bytes(), mrtd[at..at + 8], "line {}", step.line);
                self.elements += usize::from(td.finalized.is_some());
            }
            _ => {}
        }
    }
}
