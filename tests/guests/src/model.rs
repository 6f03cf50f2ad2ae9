//! The features that family and model promise. Programs choose their code by them as well as by feature bits.
//!
//! Models: GCC 12, common/config/i386/cpuinfo.h; their features: its `-march` options.

use guest_kit::check::{Check, expect};
use guest_kit::ensure;

/// Westmere: the desktop's, the server's, and the large server's.
const WESTMERE: [u32; 3] = [0x25, 0x2C, 0x2F];

/// Checks that CPUID leafs 1 and 0x80000001 have the features that compilers assume on the model of leaf 1.
pub fn fits(leaf_1: [u32; 4], extended: [u32; 4]) -> Check {
    /// SSE3, PCLMULQDQ, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT, AES.
    const PROMISED: [u32; 8] = [0, 1, 9, 13, 19, 20, 23, 25];
    const LAHF: u32 = 1;
    let [eax, _, ecx, _] = leaf_1;
    let model = eax >> 12 & 0xF0 | eax >> 4 & 0xF;
    expect("the family", (eax >> 8 & 0xF).into(), 6)?;
    ensure!(
        WESTMERE.contains(&model),
        "nobody has looked at what model {model:#x} promises"
    );
    let missing = PROMISED.iter().filter(|bit| ecx >> *bit & 1 == 0);
    let missing: u64 = missing.map(|bit| 1 << bit).sum();
    expect("missing of leaf 1, ECX", missing, 0)?;
    expect("LAHF", (extended[2] & LAHF).into(), LAHF.into())
}
