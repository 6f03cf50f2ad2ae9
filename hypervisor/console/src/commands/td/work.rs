//! Reports of work on TDs: phases, SEAMCALLs, reclaims.

use core::fmt::{self, Write};

use crate::{
    host::td::{TdReclaim, Work},
    table::{Bytes, Count, Maybe, Micros, Table},
};

/// Prints the phases: elapsed time, CPU time, SEAMCALLs, and the sum.
pub fn phases(what: &str, work: &Work, out: &mut dyn Write) -> fmt::Result {
    let mut table = Table::new(&[what, "TIME", "CPU TIME", "SEAMCALLS"]);
    for phase in &work.phases {
        table.row(&[
            &phase.name,
            &Maybe(phase.us.map(Micros)),
            &Micros(phase.cpu_us),
            &phase.calls,
        ]);
    }
    table.row(&[&"all", &Micros(work.us), &Micros(work.cpu_us), &work.calls]);
    write!(out, "{table}")
}

/// Prints the SEAMCALLs by leaf.
pub fn leafs(work: &Work, out: &mut dyn Write) -> fmt::Result {
    let mut table = Table::new(&["SEAMCALL", "CALLS"]);
    for leaf in &work.leafs {
        table.row(&[&leaf.leaf, &leaf.calls]);
    }
    write!(out, "{table}")
}

impl fmt::Display for TdReclaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (done, total) = (self.done_bytes, self.total_bytes);
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        write!(
            f,
            "TD {} {}: {} of {} back ({percent} %), {}/s, {}, {} so far",
            self.id,
            self.name,
            Bytes(done),
            Bytes(total),
            Bytes(self.bytes_per_second),
            Count(self.calls as usize, "SEAMCALL"),
            Micros(self.us)
        )?;
        match self.left_us {
            Some(us) if self.stuck.is_none() => write!(f, ", {} left", Micros(us))?,
            _ => {}
        }
        if self.quarantined > 0 {
            let pages = Count(self.quarantined as usize, "page");
            write!(f, ", {pages} in quarantine")?;
        }
        match &self.stuck {
            Some(why) => writeln!(f, "; it is stuck: {why}"),
            None => writeln!(f),
        }
    }
}
