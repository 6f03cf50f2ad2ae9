//! Hardware errors and mitigations, as the console shows them.

use alloc::{string::ToString, vec::Vec};

use console::host::{
    Hex,
    errors::{BankError, CpuErrors, Errors, FirmwareErrors, Mitigation, Nmis},
};

use crate::{
    cpu::{self, Cpu, check, ghes, nmi, speculation},
    firmware::hest::Notice,
    msr::ThisCpu,
    time,
};

/// Looks at every CPU's banks and at the firmware's records.
pub fn look() -> Errors {
    let looked = cpu::on_each(&cpu::up(), &|_| {
        x86_64::instructions::interrupts::without_interrupts(check::look_here);
    });
    x86_64::instructions::interrupts::without_interrupts(check::look_at_firmware);
    let mut last: Vec<_> = cpu::all().iter().flat_map(|cpu| last(cpu)).collect();
    last.sort_by_key(|error| error.us);
    Errors {
        cpus: cpu::all().iter().filter_map(|cpu| counts(cpu)).collect(),
        firmware: ghes::counts()
            .map(|count| FirmwareErrors {
                source: count.id,
                notice: match count.notice {
                    Notice::Nmi => "nmi",
                    Notice::Polled => "polled",
                },
                corrected: count.corrected,
                recoverable: count.recoverable,
                fatal: count.fatal,
            })
            .collect(),
        nmis: nmi::counts()
            .map(|(source, count)| Nmis {
                source: source.name(),
                count,
            })
            .into(),
        last,
        silent: looked.err().map_or_else(Vec::new, |silent| silent.to_vec()),
    }
}

fn counts(cpu: &Cpu) -> Option<CpuErrors> {
    let reporting = cpu.checks.reporting()?;
    let counts = cpu.checks.books.counts();
    Some(CpuErrors {
        cpu: cpu.number,
        local: reporting.is_local,
        signalling: reporting.signalling.0.count_ones(),
        corrected: counts.corrected,
        uncorrected: counts.uncorrected,
        machine_checks: counts.machine_checks,
        signals: counts.signals,
    })
}

fn last(cpu: &Cpu) -> impl Iterator<Item = BankError> {
    let number = cpu.number;
    cpu.checks
        .books
        .since(0)
        .into_iter()
        .map(move |kept| BankError {
            us: time::us_at(kept.tsc),
            cpu: number,
            bank: kept.reading.bank,
            verdict: kept.verdict,
            stale: kept.is_stale,
            error: kept.reading.status.code().to_string(),
            status: Hex(kept.reading.status.0),
            address: kept.reading.address.map(Hex),
            misc: kept.reading.misc.map(Hex),
        })
}

/// Returns the mitigations. A CPU that starts switches the same ones on.
pub fn mitigations() -> Vec<Mitigation> {
    use speculation::State;
    let repairs: u64 = cpu::all().iter().map(|cpu| cpu.speculation.repairs()).sum();
    let plan = speculation::plan(&ThisCpu);
    let shown = plan.mitigations.iter().map(|mitigation| {
        let (state, by) = match mitigation.state {
            State::On("enhanced IBRS") if repairs != 0 => {
                ("off", "IA32_SPEC_CTRL was found changed; it was restored")
            }
            State::On(by) => ("on", by),
            State::NotAffected(by) => ("not-affected", by),
            State::Off(why) => ("off", why),
        };
        Mitigation {
            attack: mitigation.attack,
            state,
            by,
        }
    });
    shown.collect()
}
