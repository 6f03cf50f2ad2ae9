//! The TDs of this machine: those that the configuration names, on the TDX module, run by all CPUs.

use alloc::{format, string::String, vec::Vec};
use core::{
    slice,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use boot::BootInfo;
use config::Clear;
use host::{
    platform::Platform,
    sched::{Scheduler, ends},
    td::{
        Td,
        capabilities::Capabilities,
        files::{Files, store::FileStore},
        host::Host,
        params::Native,
        registry::Tds,
    },
};
use mm::private::ClearPolicy;
use seam::{abi::Gprs, address::Hpa, erratum::has_partial_write};
use spin::Once;

use crate::{
    cpu,
    events::{Channel, on_behalf_of},
    memory::{direct, files::HostFiles},
    metal::{
        platform::{METAL, Metal},
        tdx,
    },
    msr::ThisCpu,
    passthrough, password, time,
};

/// The host's own firmware for TDs, which boots a kernel. It is empty without the feature `bare`.
#[cfg(feature = "bare")]
const FIRMWARE: &[u8] = include_bytes!(env!("SEAMARK_TD_FIRMWARE"));
/// The host's own firmware for TDs, which boots a kernel. It is empty without the feature `bare`.
#[cfg(not(feature = "bare"))]
const FIRMWARE: &[u8] = &[];

static TDS: Once<Tds<'static, Metal>> = Once::new();
/// The share of a busy CPU's time for reclaiming memory, in percent.
static RECLAIM_SHARE: AtomicU64 = AtomicU64::new(0);
static SCHEDULER: Once<Scheduler<'static, Metal>> = Once::new();

/// Returns the TDs, or `None` if no TDX module builds any.
#[must_use]
pub fn get() -> Option<&'static Tds<'static, Metal>> {
    TDS.get()
}

/// Returns the scheduler of the TDs' vCPUs.
#[must_use]
pub fn scheduler() -> Option<&'static Scheduler<'static, Metal>> {
    SCHEDULER.get()
}

fn hypercall(td: &Td, regs: &mut Gprs) {
    match get() {
        Some(tds) => host::hypercall::serve(tds, td, regs),
        // Unreachable: a TD made the call, so there are TDs.
        None => regs.r10 = seam::abi::ghci::SUBFUNC_UNSUPPORTED,
    }
}

/// Sets up the TDs of the configuration, if the module is ready. Returns the problems.
pub fn init(info: &'static BootInfo) -> Vec<String> {
    let Some(ready) = tdx::ready() else {
        return Vec::new();
    };
    let capabilities = match Capabilities::read(&METAL.tdh()) {
        Ok(capabilities) => capabilities,
        Err(error) => return Vec::from([format!("no TD can be built: {error}")]),
    };
    RECLAIM_SHARE.store(info.config.host.reclaim_share.into(), Relaxed);
    let scheduler = SCHEDULER.call_once(|| {
        let scheduler = Scheduler::new(&METAL, &info.config.host, hypercall);
        scheduler.with_networks(&info.config.network)
    });
    passthrough::run_by(scheduler);
    let host = Host {
        platform: &METAL,
        coordinator: &ready.coordinator,
        capabilities,
        native: &ThisMachine,
        keyid: ready.keyid,
        global_hkid: ready.global_hkid,
        clearing: policy(info.config.host.clear).on(has_partial_write(&ThisCpu)),
        stop_us: u64::from(info.config.host.cpu_timeout_ms) * 1000,
        runner: scheduler,
    };
    let boot = info.files.iter();
    let boot = boot.map(|file| (file.name.clone(), Hpa(file.pa), contents(file)));
    let files = FileStore::new(&HostFiles, boot);
    let tds = TDS.call_once(|| {
        let none: Vec<(config::Td, Files<'_>)> = Vec::new();
        Tds::new(host, none).with_files(files, FIRMWARE)
    });
    let cpus = METAL.cpus().len();
    let mut problems = Vec::new();
    for td in &info.config.td {
        problems.extend(td.warning(cpus));
        if let Err(error) = tds.add(td.clone()) {
            problems.push(format!("TD {}: {error}", td.name));
        }
    }
    problems
}

/// Starts the TDs that the configuration starts with the host.
pub fn autostart() {
    let Some(tds) = get() else { return };
    for (id, started) in tds.autostart() {
        let config = tds.config(id);
        let name = config.as_ref().map_or("", |config| &config.name);
        match started {
            Ok(()) => log::info!("TD {id} {name} runs"),
            Err(error) => log::error!("TD {id} {name}: {error}"),
        }
    }
}

/// Does a piece of work on the calling CPU: runs a vCPU, ends a TD, reclaims memory, or works for a TD's devices. Returns
/// `false` if there is none. Interrupts must be on.
pub fn work() -> bool {
    on_behalf_of(Channel::Host, find_work)
}

fn find_work() -> bool {
    let (Some(tds), Some(scheduler)) = (get(), scheduler()) else {
        return password::work();
    };
    let start = time::tsc();
    let ran = scheduler.schedule();
    // Terminations come first, even when vCPUs leave no time for anything else.
    let ended = ends::serve(scheduler, tds) | tds.end_asked() | tds.end_overdue();
    if ran {
        reclaim_between_turns(tds, time::tsc() - start);
        return true;
    }
    ended || tds.work() || password::work() || scheduler.help()
}

/// Reclaims memory for this CPU's share of the time after a vCPU ran for `turn` ticks.
fn reclaim_between_turns(tds: &Tds<'_, Metal>, turn: u64) {
    let Some(cpu) = cpu::this() else { return };
    let share = RECLAIM_SHARE.load(Relaxed);
    let ticks = |from: u64| i64::try_from(from).unwrap_or(i64::MAX);
    // Unused credit is not saved up beyond a turn; a step that took too long is paid back.
    let saved = cpu.reclaim_credit.load(Relaxed).min(ticks(turn));
    let mut credit = saved.saturating_add(ticks(turn * share / (100 - share)));
    while credit > 0 {
        let start = time::tsc();
        if !tds.work() {
            break;
        }
        credit = credit.saturating_sub(ticks(time::tsc() - start));
    }
    cpu.reclaim_credit.store(credit, Relaxed);
}

const fn policy(clear: Clear) -> ClearPolicy {
    match clear {
        Clear::Always => ClearPolicy::Always,
        Clear::Erratum => ClearPolicy::Erratum,
        Clear::Reuse => ClearPolicy::Reuse,
    }
}

fn contents(file: &boot::File) -> &'static [u8] {
    #[expect(unsafe_code, reason = "the boot path hands files over as addresses")]
    // SAFETY: the boot path keeps these pages for the file, which nobody writes to, and the direct map has them.
    unsafe {
        slice::from_raw_parts(direct(file.pa) as *const u8, file.len as usize)
    }
}

/// The host's values for what the operator leaves open.
struct ThisMachine;

impl Native for ThisMachine {
    fn cpuid(&self, leaf: u32, sub_leaf: u32) -> [u32; 4] {
        seam::platform::Registers::cpuid(&ThisCpu, leaf, sub_leaf)
    }

    fn tsc_mhz(&self) -> u32 {
        (time::hz() / 1_000_000) as u32
    }
}
