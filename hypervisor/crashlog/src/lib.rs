//! Crash reports that outlive a reset.
//!
//! A report is text. The crashing CPU writes it into a [`text::Text`] and cuts it into [`piece::Piece`]s, since no store
//! takes a report as a whole: UEFI variables and ERST records are small. Pieces of the same report may be in several
//! stores; [`report::Report::newest`] puts the newest report together again from all that was found.
//!
//! The writing side allocates nothing and takes no lock. The reading side trusts nothing: firmware, other programs and
//! failing memory may have written any bytes.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod cper;
pub mod erst;
pub mod piece;
pub mod report;
pub mod text;
