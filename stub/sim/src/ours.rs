//! Our ways to end a TD: the production code, on a simulated server.

use hypervisor::tdx::release::Released;
use mm::private::Outcome;
use seam::abi::{Leaf, PAGE_1G};

use crate::cost::Costs;
use crate::error::{Error, failed};
use crate::machine::Usage;
use crate::site::{Leaves, Session, Site, Td};

/// How a TD's end went.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Seconds until everything was back.
    pub seconds: f64,
    /// Seconds until another TD could have the HKID.
    pub hkid_free_seconds: f64,
    /// Seconds of those for private memory and its S-EPT, which go with the TD's size.
    pub memory_seconds: f64,
    /// Seconds for which CPUs of a package wrote caches back, at the longest.
    pub write_back_seconds: f64,
    /// SEAMCALLs.
    pub calls: u64,
    /// Where the time went.
    pub usage: Usage,
}

const PS: f64 = 1e12;

/// Terminate: the HKID first, then the memory in bulk, on all CPUs. The TD has so many bytes, a multiple of what its pages are
/// mapped in.
///
/// # Errors
/// What went wrong; what is left of the server is of no use to anyone then.
pub fn terminate(
    site: &Site,
    bytes: u64,
    leaves: Leaves,
    cpus: u32,
    costs: Costs,
) -> Result<Ended, Error> {
    let session = Session::new(site, cpus, costs)?;
    let mut td = Td::new(&session, bytes, leaves)?;
    let built = calls(&session);
    let machine = session.machine();
    machine.begin();
    let released = td.release()?;
    let hkid_free = machine.now();
    reclaim(&session, &mut td)?;
    let times = [hkid_free, hkid_free, machine.now()];
    finish(&session, built, times, &released)
}

/// Dynamic removal, page by page, of a TD that has its key, by one CPU and with all vCPUs in the guest; then terminate for
/// what is left.
///
/// # Errors
/// As [`terminate`].
pub fn dynamic(site: &Site, bytes: u64, cpus: u32, costs: Costs) -> Result<Ended, Error> {
    let session = Session::new(site, cpus, costs)?;
    let mut td = Td::new(&session, bytes, Leaves::Small)?;
    let built = calls(&session);
    let machine = session.machine();
    machine.begin();
    for gpa in (0..bytes).step_by(PAGE_1G as usize) {
        let range = gpa..bytes.min(gpa + PAGE_1G);
        let outcome = session
            .with(|cpu| td.map().remove(cpu, range, &session))
            .map_err(failed("dynamic removal"))?;
        if !matches!(outcome, Outcome::Removed(_)) {
            return Err(Error::new("dynamic removal", "the TD has no key"));
        }
        machine.settle();
    }
    let removed = machine.now();
    let released = td.release()?;
    let hkid_free = machine.now();
    reclaim(&session, &mut td)?;
    let mut ended = finish(&session, built, [0, hkid_free, machine.now()], &released)?;
    ended.memory_seconds = removed as f64 / PS;
    Ok(ended)
}

fn reclaim(session: &Session<'_>, td: &mut Td<'_, '_>) -> Result<(), Error> {
    let reclaim = td.reclaim()?;
    session.reclaim(&reclaim)
}

/// The books, when the reclaim began, the HKID was free, and all was back, in picoseconds.
fn finish(
    session: &Session<'_>,
    built: u64,
    [begun, hkid_free, end]: [u64; 3],
    released: &Released,
) -> Result<Ended, Error> {
    let usage = session.machine().usage();
    session.machine().end();
    session.check_spotless()?;
    let write_back = released.write_back.iter().map(|package| package.us).max();
    Ok(Ended {
        seconds: end as f64 / PS,
        hkid_free_seconds: hkid_free as f64 / PS,
        memory_seconds: (end - begun) as f64 / PS,
        write_back_seconds: write_back.unwrap_or(0) as f64 / 1e6,
        calls: calls(session) - built,
        usage,
    })
}

fn calls(session: &Session<'_>) -> u64 {
    Leaf::ALL.iter().map(|leaf| session.calls(*leaf)).sum()
}
