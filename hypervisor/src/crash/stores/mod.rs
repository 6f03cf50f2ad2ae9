//! The places that keep the report of the last crash over a reset, and the report that they had at the start.

mod area;
mod erst;
mod variables;

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use boot::BootInfo;
use crashlog::{
    erst::Erst,
    piece::Identity,
    report::{Report, Store},
    text::Text,
};
use sync::IrqLock;

use crate::runtime;

static LAST: IrqLock<Option<Report>> = IrqLock::new(None);
/// Number of crashes since the last drop.
static CRASHES: AtomicU32 = AtomicU32::new(0);

/// Lets a crash from now on be kept in memory.
pub fn prepare_memory(info: &BootInfo) {
    area::prepare(info.keep.area);
}

/// Reads the report that the places keep, and lets a crash from now on be kept in all of them. Returns the problems.
pub fn prepare(info: &BootInfo, erst: Option<Erst>) -> Vec<String> {
    let mut problems = Vec::new();
    problems.extend(runtime::init(info));
    if let Some(table) = erst {
        problems.extend(erst::prepare(table).err());
    }
    let records = erst::read();
    variables::note_used(info.keep.variables.len());
    let keep = &info.keep;
    let found = [
        (Store::Variables, &keep.variables),
        (Store::Erst, &records),
        (Store::Memory, &keep.memory),
    ];
    let found = found.into_iter().flat_map(|(store, pieces)| {
        let pieces = pieces.iter().map(Vec::as_slice);
        pieces.map(move |piece| (store, piece))
    });
    let report = Report::newest(found);
    CRASHES.store(report.as_ref().map_or(0, |r| r.of.crashes), Relaxed);
    *LAST.lock() = report;
    let places = places();
    if places.is_empty() {
        problems
            .push("a crash will not be kept over a reset: the machine has no place for it".into());
    } else {
        log::info!("a crash is kept in: {}", places.join(", "));
    }
    problems
}

/// Returns the names of the places that will keep a crash.
fn places() -> Vec<&'static str> {
    let all = [
        (Store::Variables, runtime::is_available()),
        (Store::Erst, erst::is_open()),
        (Store::Memory, area::is_there()),
    ];
    let there = all.into_iter().filter(|(_, is_there)| *is_there);
    there.map(|(store, _)| store.name()).collect()
}

/// Returns the report of the last crash, if one is kept.
#[must_use]
pub fn last() -> Option<Report> {
    LAST.lock().clone()
}

/// Number of crashes since the last drop.
#[must_use]
pub fn crashes() -> u32 {
    CRASHES.load(Relaxed)
}

/// Removes the report of the last crash from every place. Returns false if there was none.
///
/// # Errors
/// A sentence that names the places that still have it. The report is kept then.
pub fn drop_last() -> Result<bool, String> {
    if LAST.lock().is_none() {
        return Ok(false);
    }
    area::wipe();
    let failed = [
        erst::clear().map_err(|e| format!("the ACPI tables' store of records: {e}")),
        variables::clear().map_err(|e| format!("the firmware's variables: {e}")),
    ];
    let failed: Vec<String> = failed.into_iter().filter_map(Result::err).collect();
    if !failed.is_empty() {
        return Err(format!(
            "the last crash is still in {}; clear it in the firmware's setup, or leave it: the next crash replaces it",
            failed.join("; and in ")
        ));
    }
    *LAST.lock() = None;
    CRASHES.store(0, Relaxed);
    Ok(true)
}

/// Returns the identity of a new report.
pub(super) fn identity(text: &Text, tsc: u64, unix: u64) -> Identity {
    Identity {
        crashes: CRASHES.load(Relaxed).saturating_add(1),
        unix,
        id: tsc,
        total: text.as_bytes().len() as u32,
    }
}

/// Keeps a report wherever this needs none of the firmware's code. All other CPUs have stopped.
pub(super) fn keep(of: Identity, text: &[u8]) {
    area::keep(of, text);
    erst::keep(of, text);
}

/// Keeps a report in the firmware's variables. It may not return. All other CPUs have stopped.
pub(super) fn keep_in_variables(of: Identity, text: &[u8]) {
    variables::keep(of, text);
}
