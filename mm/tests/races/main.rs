//! Races for a TD's memory: the production types with their locks and atomics under a scheduler that lets the threads take
//! turns in many orders, the same ones each time.

#[path = "../private/kit.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod kit;

mod explore;
mod map;
mod reclaim;
