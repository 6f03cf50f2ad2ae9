//! The runner's parameters for a guest: words in the TD's MRCONFIGID, which its configuration sets.

use crate::tdcall;

/// Returns word `number` of MRCONFIGID, of six: 16 hexadecimal digits each, in the order in which they are written.
/// Returns zero if the configuration does not set it, or the report is unavailable.
pub fn word(number: usize) -> u64 {
    let report = tdcall::mr_report(&[0; 64]);
    let words = report.map_or([0; 6], |report| {
        let bytes = &report.td_info.mrconfigid;
        let mut words = [0; 6];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_be_bytes(*bytes);
        }
        words
    });
    words.get(number).copied().unwrap_or(0)
}
