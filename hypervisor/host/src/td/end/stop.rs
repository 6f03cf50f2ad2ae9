//! Stopping a TD's vCPUs.

use alloc::vec::Vec;

use sync::call::NoAnswer;

use crate::{
    platform::Platform,
    td::{Td, error::Error, host::Host, vcpu::Stopped},
};

/// Takes every vCPU's lock. Interrupts the CPUs that hold one, and waits for them.
pub fn stop_vcpus<'a, P: Platform>(
    host: &Host<'_, P>,
    td: &'a Td,
) -> Result<Vec<Stopped<'a>>, Error> {
    let start = host.platform.now_us();
    let mut vcpus = td.slots.try_stop().map_err(|_| Error::NoHeap)?;
    let mut stopped = Vec::new();
    let reserved = stopped.try_reserve_exact(vcpus.len());
    reserved.map_err(|_| Error::NoHeap)?;
    loop {
        if vcpus.iter().all(Option::is_some) {
            stopped.extend(vcpus.into_iter().flatten());
            return Ok(stopped);
        }
        // A vCPU that was just about to enter the guest is interrupted there in the next iteration.
        let answered = host.platform.on_all(td.slots.users(), &|_| {});
        host.platform.relax();
        for (index, vcpu) in (0..).zip(&mut vcpus) {
            if vcpu.is_none() {
                *vcpu = td.slots.stop(index);
            }
        }
        if let Err(silent) = answered {
            return Err(Error::Stuck(silent.to_vec()));
        }
        if host.platform.now_us() - start >= host.stop_us && vcpus.iter().any(Option::is_none) {
            let users: Vec<u32> = td.slots.users().collect();
            return Err(Error::Stuck(NoAnswer::of(&users).to_vec()));
        }
    }
}
