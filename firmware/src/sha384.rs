//! A small SHA-384. The library's takes more space than the rest of this program, and its speed matters only once in a
//! TD's life.
//!
//! Source: FIPS 180-4, sections 4.1.3, 4.2.3, 5.3.4 and 6.4.

use seam::abi::Measurement;

const BLOCK: usize = 128;

/// The first 64 bits of the fractional parts of the cube roots of the first 80 primes.
#[rustfmt::skip]
const ROUNDS: [u64; 80] = [
    0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc,
    0x3956c25bf348b538, 0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118,
    0xd807aa98a3030242, 0x12835b0145706fbe, 0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2,
    0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235, 0xc19bf174cf692694,
    0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
    0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5,
    0x983e5152ee66dfab, 0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4,
    0xc6e00bf33da88fc2, 0xd5a79147930aa725, 0x06ca6351e003826f, 0x142929670a0e6e70,
    0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed, 0x53380d139d95b3df,
    0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
    0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30,
    0xd192e819d6ef5218, 0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8,
    0x19a4c116b8d2d0c8, 0x1e376c085141ab53, 0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8,
    0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373, 0x682e6ff3d6b2b8a3,
    0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
    0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b,
    0xca273eceea26619c, 0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178,
    0x06f067aa72176fba, 0x0a637dc5a2c898a6, 0x113f9804bef90dae, 0x1b710b35131c471b,
    0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc, 0x431d67c49c100d4c,
    0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
];

/// The first 64 bits of the fractional parts of the square roots of the 9th to the 16th prime.
const START: [u64; 8] = [
    0xcbbb9d5dc1059ed8,
    0x629a292a367cd507,
    0x9159015a3070dd17,
    0x152fecd8f70e5939,
    0x67332667ffc00b31,
    0x8eb44a8768581511,
    0xdb0c2e0d64f98fa7,
    0x47b5481dbefa4fa4,
];

/// Returns the digest of `content`.
#[must_use]
pub fn digest(content: &[u8]) -> Measurement {
    let mut state = START;
    let (blocks, rest) = content.as_chunks::<BLOCK>();
    for block in blocks {
        compress(&mut state, block);
    }
    // A one bit, zeros, and the length in bits as the last 16 bytes of a block.
    let mut last = [[0; BLOCK]; 2];
    let bytes = last.as_flattened_mut();
    bytes[..rest.len()].copy_from_slice(rest);
    bytes[rest.len()] = 0x80;
    let count = if rest.len() + 17 <= BLOCK { 1 } else { 2 };
    let bits = content.len() as u128 * 8;
    bytes[count * BLOCK - 16..count * BLOCK].copy_from_slice(&bits.to_be_bytes());
    for block in &last[..count] {
        compress(&mut state, block);
    }
    let mut digest = [0; 48];
    for (bytes, word) in digest.as_chunks_mut::<8>().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    digest
}

fn compress(state: &mut [u64; 8], block: &[u8; BLOCK]) {
    // The last 16 words of the message schedule, in a ring.
    let mut words = [0; 16];
    for (word, bytes) in words.iter_mut().zip(block.as_chunks::<8>().0) {
        *word = u64::from_be_bytes(*bytes);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (round, constant) in ROUNDS.iter().enumerate() {
        let word = words[round % 16];
        let sum = (e.rotate_right(14) ^ e.rotate_right(18) ^ e.rotate_right(41))
            .wrapping_add(e & f ^ !e & g)
            .wrapping_add(h)
            .wrapping_add(*constant)
            .wrapping_add(word);
        let other = (a.rotate_right(28) ^ a.rotate_right(34) ^ a.rotate_right(39))
            .wrapping_add(a & b ^ a & c ^ b & c);
        (h, g, f, e, d, c, b) = (g, f, e, d.wrapping_add(sum), c, b, a);
        a = sum.wrapping_add(other);
        // Replaces the word with the one 16 rounds later.
        let (near, far) = (words[(round + 1) % 16], words[(round + 14) % 16]);
        words[round % 16] = word
            .wrapping_add(near.rotate_right(1) ^ near.rotate_right(8) ^ near >> 7)
            .wrapping_add(words[(round + 9) % 16])
            .wrapping_add(far.rotate_right(19) ^ far.rotate_right(61) ^ far >> 6);
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(add);
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha384};

    use super::*;

    #[test]
    fn every_length_around_a_block_is_padded_right() {
        let content: Vec<u8> = (0..400u32).map(|i| (i * 7) as u8).collect();
        for length in 0..content.len() {
            let expected = Measurement::from(Sha384::digest(&content[..length]));
            assert_eq!(digest(&content[..length]), expected, "{length} bytes");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_content_has_the_digest_that_the_library_computes(content: Vec<u8>) {
            let expected = Measurement::from(Sha384::digest(&content));
            assert_eq!(digest(&content), expected);
        }
    }
}
