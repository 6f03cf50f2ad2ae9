//! Tests of a TD's private memory against the emulated module.

mod books;
mod build;
mod join;
mod kit;
mod model;
mod reclaim;
mod remove;
mod resize;
mod rules;
