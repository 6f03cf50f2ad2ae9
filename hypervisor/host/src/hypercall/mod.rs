//! Hypercalls beyond the GHCI: list TDs, terminate one, and query the progress of its reclaim.
//!
//! TDG.VP.VMCALL with Seamark's own number in R10 is served here; `docs/hypercall.md` is the documentation for guests.
//! A call is first decoded without side effects ([`decode`]) and then invoked. Only a TD with `control = true` may name
//! another TD.
//!
//! Nothing here waits or allocates: the caller is a vCPU on a CPU with interrupts off, and the TD to terminate may be
//! the caller itself. The termination is carried out later, on a CPU that has time ([`Tds::end_asked`]).

mod decode;

use seam::abi::Gprs;
use seam::abi::hypercall::{CONTROL, Status, caps};

pub use decode::{Call, decode};

use crate::platform::Platform;
use crate::td::{Td, host::Time, registry::Tds};

/// Functions that this host supports.
pub const CAPS: u64 = caps::TERMINATE | caps::LIST | caps::RECLAIM_STATUS;

/// Serves a call of `caller`. `regs` holds the registers of the call and receives those of the answer.
pub fn serve<P: Platform>(tds: &Tds<'_, P>, caller: &Td, regs: &mut Gprs) {
    let answer = decode(regs).and_then(|call| invoke(tds, caller, call));
    answer.unwrap_or_else(Answer::from).put(regs);
}

/// The answer to a call.
#[derive(Clone, Copy, Debug)]
struct Answer {
    status: Status,
    /// R11 to R15.
    values: [u64; 5],
    /// RBX, RDI, RSI, R8.
    name: [u64; 4],
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self {
            status,
            values: [0; 5],
            name: [0; 4],
        }
    }
}

impl Answer {
    fn of(values: [u64; 5]) -> Self {
        Self {
            values,
            ..Self::from(Status::Success)
        }
    }

    /// Sets every register that a call may use.
    const fn put(self, regs: &mut Gprs) {
        regs.r10 = self.status as u64;
        [regs.r11, regs.r12, regs.r13, regs.r14, regs.r15] = self.values;
        [regs.rbx, regs.rdi, regs.rsi, regs.r8] = self.name;
    }
}

/// Invokes a decoded call.
fn invoke<P: Platform>(tds: &Tds<'_, P>, caller: &Td, call: Call) -> Result<Answer, Status> {
    match call {
        Call::Caps => {
            let control = if caller.config().control { CONTROL } else { 0 };
            Ok(Answer::of([CAPS, caller.id().into(), control, 0, 0]))
        }
        Call::TdList { from } => Ok(list(tds, caller, from)),
        Call::TdTerminate { id } => terminate(tds, caller, named(tds, caller, id)?),
        Call::ReclaimStatus { id } => Ok(status(tds, named(tds, caller, id)?)),
    }
}

/// Resolves the TD that a caller names; 0 is the caller itself. Only a caller that may name other TDs learns whether
/// another TD exists.
fn named<P: Platform>(tds: &Tds<'_, P>, caller: &Td, id: u32) -> Result<u32, Status> {
    if id == 0 || id == caller.id() {
        return Ok(caller.id());
    }
    if !caller.config().control {
        return Err(Status::NotPermitted);
    }
    tds.config(id).map(|_| id).ok_or(Status::NoSuchTd)
}

/// Returns the first TD with number `from` or higher that the caller may know of.
fn list<P: Platform>(tds: &Tds<'_, P>, caller: &Td, from: u32) -> Answer {
    let may_know = |id: &u32| *id >= from && (caller.config().control || *id == caller.id());
    let Some(id) = tds.ids().find(may_know) else {
        return Answer::of([0; 5]);
    };
    let td = tds.get(id);
    let config = tds.config(id);
    let memory = match &td {
        Some(td) => td.layout().bytes(),
        None => config.as_ref().map_or(0, |config| config.memory),
    };
    let owned = td.map_or(0, |td| td.holding().bytes());
    let vcpus = config.as_ref().map_or(0, |config| config.vcpus.into());
    let state = tds.state(id) as u64 | u64::from(id == caller.id()) << 32;
    Answer {
        name: config.map_or([0; 4], |config| in_words(&config.name)),
        ..Answer::of([id.into(), state, memory, owned, vcpus])
    }
}

/// Packs a name of up to 32 bytes into registers, padded with zeros.
fn in_words(name: &str) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(name.as_bytes().chunks(8)) {
        let mut all = [0; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(all);
    }
    words
}

fn terminate<P: Platform>(tds: &Tds<'_, P>, caller: &Td, id: u32) -> Result<Answer, Status> {
    let asked = tds.ask_end_for(id, caller.id());
    if id == caller.id() {
        // The caller sees this status only if it was not terminated after all.
        return Err(Status::NotEnded);
    }
    let (again, state) = match asked {
        Ok(()) => (0, tds.state(id)),
        Err(state) => (1, state),
    };
    Ok(Answer::of([again, state as u64, 0, 0, 0]))
}

/// Returns the progress of a TD's end.
fn status<P: Platform>(tds: &Tds<'_, P>, id: u32) -> Answer {
    let state = tds.state(id) as u64;
    let td = tds.get(id);
    let Some(reclaim) = td.as_ref().and_then(|td| td.reclaim()) else {
        let owned = td.map_or(0, |td| td.holding().bytes());
        return Answer::of([state, owned, 0, 0, 0]);
    };
    let progress = reclaim.progress(&Time(tds.host().platform));
    Answer::of([
        state,
        progress.total,
        progress.reclaimed.bytes(),
        progress.quarantined,
        progress.elapsed_ns / 1000,
    ])
}

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::{format, string::String};
    use core::fmt::Write;
    use std::{env, fs};

    use seam::abi::hypercall::{Function, SIGNATURE, TdState};

    use super::*;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/hypercall.md");

    #[test]
    fn names_fill_registers_from_the_lowest_byte_on() {
        assert_eq!(in_words("a"), [0x61, 0, 0, 0]);
        let longest = "abcdefghijklmnopqrstuvwxyz012345";
        let bytes: alloc::vec::Vec<u8> = in_words(longest)
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        assert_eq!(bytes, longest.as_bytes());
    }

    #[test]
    fn the_page_about_hypercalls_has_the_numbers() {
        let page = fs::read_to_string(PAGE).expect("docs/hypercall.md");
        let (head, rest) = page
            .split_once("<!-- begin: numbers -->\n")
            .expect("the comment before the numbers");
        let (_, tail) = rest
            .split_once("<!-- end: numbers -->")
            .expect("the comment behind them");
        let expected = format!(
            "{head}<!-- begin: numbers -->\n{}<!-- end: numbers -->{tail}",
            numbers()
        );
        if page == expected {
            return;
        }
        assert!(
            env::var_os("UPDATE_DOCS").is_some(),
            "docs/hypercall.md is out of date; run\n\n    UPDATE_DOCS=1 cargo test -p host --lib hypercall::tests\n"
        );
        fs::write(PAGE, expected).expect("docs/hypercall.md can be written");
    }

    fn numbers() -> String {
        let mut text =
            format!("R10 of a call: `{SIGNATURE:#018x}`.\n\n| Function | R11 |\n|---|---|\n");
        for function in Function::ALL {
            writeln!(text, "| {} | {} |", function.name(), function as u64).expect("a string");
        }
        text += "\n| Status | R10 of the answer |\n|---|---|\n";
        for status in Status::ALL {
            writeln!(text, "| {} | `{:#018x}` |", status.name(), status as u64).expect("a string");
        }
        text += "\n| State of a TD | Number |\n|---|---|\n";
        for state in TdState::ALL {
            writeln!(text, "| {} | {} |", state.name(), state as u64).expect("a string");
        }
        text
    }
}
