//! A guest that does nothing, on all of its vCPUs, without ever leaving by itself: what others are compared with that have to
//! make it leave.
#![no_std]
#![no_main]

use guest_kit::check::Checks;
use guest_kit::guest;

guest!("spin", main, end);

// The other vCPUs spin where they wait for work.
fn main(_: &mut Checks) {}

fn end() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
