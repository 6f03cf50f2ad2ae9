//! Stopping a TD's vCPUs.

use alloc::vec::Vec;

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
    let mut vcpus = td.slots.try_stop();
    loop {
        if vcpus.iter().all(Option::is_some) {
            return Ok(vcpus.into_iter().flatten().collect());
        }
        // A vCPU that was just about to enter the guest is interrupted there in the next iteration.
        let users = td.slots.users();
        let answered = host.platform.on_each(&users, &|_| {});
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
            return Err(Error::Stuck(td.slots.users()));
        }
    }
}
