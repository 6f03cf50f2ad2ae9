//! A guest that does nothing on all of its vCPUs and never exits by itself: the baseline for guests that a host must
//! force out.
#![no_std]
#![no_main]

use guest_kit::check::Checks;
use guest_kit::guest;

guest!("spin", main, end);

// The other vCPUs spin while they wait for work.
fn main(_: &mut Checks) {}

fn end() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
