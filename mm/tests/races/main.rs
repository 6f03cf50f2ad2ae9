//! Races for a TD's memory. The production types, with their locks and atomics, run under a scheduler that interleaves
//! the threads in many orders, the same ones each time.

#[path = "../private/kit.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod kit;

mod explore;
mod map;
mod reclaim;
mod shared;
