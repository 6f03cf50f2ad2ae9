//! Giving back the HKID, and with [`Way::Dynamic`] the memory before it.

use alloc::{format, sync::Arc, vec::Vec};

use mm::private::{Holding, NoneRuns, Reclaim, ReclaimOptions};
use seam::abi::Leaf;

use super::{Termination, Way};
use crate::{
    platform::Platform,
    td::{
        Body, Td,
        error::Error,
        host::{Host, Time},
        life::State,
        meter::{Meter, Part, Summary},
        vcpu::Stopped,
    },
    tdx::release::{Ending, NotReleased, Released, Vcpus},
};

/// Releases the HKID, and prepares the reclaim. The vCPUs are gone afterwards. Returns the record of the termination so
/// far.
pub fn give_back<P: Platform>(
    host: &Host<'_, P>,
    td: &Td,
    vcpus: Vec<Stopped<'_>>,
    way: Way,
    meter: &mut Meter<'_, P>,
) -> Result<Termination, Error> {
    let had = td.holding();
    let released = match td.body.get() {
        Some(body) => release(host, body, vcpus, way, meter),
        // Nothing was taken for the TD.
        None => Ok(()),
    };
    // The record is complete before the state is: from teardown on, other CPUs continue the termination.
    let so_far = record(td, had, meter.take());
    released?;
    td.notes.lock().problem = None;
    host.runner.end(td);
    td.advance(host.platform, State::Terminating, State::Teardown)
        .map_err(Error::State)?;
    if let Some(body) = td.body.get() {
        begin_reclaim(host, body)?;
    }
    Ok(so_far)
}

/// Adds work to the record of a TD's termination, and returns the record.
fn record(td: &Td, had: Holding, work: Summary) -> Termination {
    let mut notes = td.notes.lock();
    let new = || Termination {
        had,
        ..Termination::default()
    };
    let ended = notes.ended.get_or_insert_with(new);
    ended.work.append(work);
    ended.clone()
}

/// Releases the HKID of a TD, with [`Way::Dynamic`] after its memory, and takes over the vCPUs' pages.
fn release<P: Platform>(
    host: &Host<'_, P>,
    body: &Body,
    vcpus: Vec<Stopped<'_>>,
    way: Way,
    meter: &mut Meter<'_, P>,
) -> Result<(), Error> {
    if way == Way::Dynamic {
        meter.phase("remove", || remove(host, body))?;
    }
    let ending = Ending {
        map: &body.map,
        vcpus: &Flush {
            platform: host.platform,
            vcpus: &vcpus,
        },
        release: &body.release,
    };
    let released = meter.phase("release", || {
        let mut results = host.coordinator.release(host.platform, &[ending]);
        results.pop().unwrap_or(Err(NotReleased::UnderWay))
    });
    let released = released.map_err(Error::NotReleased)?;
    meter.divide(parts(&released));
    let mut control = body.control.lock();
    control.extend(vcpus.into_iter().filter_map(Stopped::into_page));
    Ok(())
}

/// Removes all private memory of a TD that has its key and does not run. Nothing else uses its memory: every vCPU's
/// holder has released it, and each holder of the TD's `Quiet` checks its state before and between its steps.
fn remove<P: Platform>(host: &Host<'_, P>, body: &Body) -> Result<(), Error> {
    host.with_cpu(|cpu| body.map.remove(cpu, 0..body.limit, &NoneRuns))?;
    Ok(())
}

/// Returns the parts of an HKID's release.
fn parts(released: &Released) -> Vec<Part> {
    const FLUSH: &[Leaf] = &[Leaf::VpFlush, Leaf::MngVpflushdone];
    const WRITE_BACK: &[Leaf] = &[Leaf::PhymemCacheWb];
    const FREE: &[Leaf] = &[Leaf::MngKeyFreeid];
    let part = |name: &str, us, leafs| Part {
        name: name.into(),
        us,
        leafs,
    };
    let mut parts = Vec::from([part("flush", released.flush_us, FLUSH)]);
    parts.extend(released.write_back.iter().map(|package| {
        let name = format!("write-back of package {}", package.package);
        part(&name, package.us, WRITE_BACK)
    }));
    parts.push(part("free", released.free_us, FREE));
    parts
}

/// Prepares the reclaim of a TD without key, unless that has been done.
pub fn begin_reclaim<P: Platform>(host: &Host<'_, P>, body: &Body) -> Result<(), Error> {
    let begun = body.reclaim.try_call_once(|| {
        let plan = ReclaimOptions {
            cpus: host.platform.cpus().len() as u32,
            clearing: host.clearing,
            global_hkid: host.global_hkid,
        };
        let control = core::mem::take(&mut *body.control.lock());
        let time = Time(host.platform);
        Reclaim::new(Arc::clone(&body.map), control, plan, &time).map_err(|(error, _, control)| {
            *body.control.lock() = control;
            Error::from(error)
        })
    });
    begun?;
    host.runner.work_waits();
    Ok(())
}

/// A TD's stopped vCPUs, for the flushes of its HKID's release.
struct Flush<'a, P> {
    platform: &'a P,
    vcpus: &'a [Stopped<'a>],
}

impl<P: Platform> Vcpus for Flush<'_, P> {
    fn cpus(&self) -> Vec<u32> {
        let mut cpus: Vec<_> = self.vcpus.iter().filter_map(Stopped::associated).collect();
        cpus.sort_unstable();
        cpus.dedup();
        cpus
    }

    fn flush_here(&self) -> Result<(), seam::error::Error> {
        let me = Some(self.platform.this_cpu());
        let here = self.vcpus.iter().filter(|vcpu| vcpu.associated() == me);
        here.into_iter()
            .try_for_each(|vcpu| vcpu.flush(self.platform))
    }
}
