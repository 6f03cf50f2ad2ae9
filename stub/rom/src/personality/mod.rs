//! The processor that the machine claims to have: a Sapphire Rapids, without what TCG can't execute.

pub mod clock;
mod cpuid;
mod msr;
pub mod topology;

pub use cpuid::{Cpu, Leaf, SUPPORTED_CR4};
pub use msr::{Facts, constant, is_native, seam_only};

/// Physical address bits, including KeyID bits, of the machine with TDX.
pub const MAX_PA: u32 = 52;

pub use stub_options::KEYID_BITS;

/// The physical address bits that carry a KeyID.
pub const KEYID_MASK: u64 = ((1 << KEYID_BITS) - 1) << (MAX_PA - KEYID_BITS);

/// The revision identifier of VMXON and VMCS regions (IA32_VMX_BASIC 30:0).
pub const VMCS_REVISION: u32 = 0x13;

/// Returns the number of KeyID bits that TDX reserves for `hkids` private HKIDs: the fewest bits that hold them.
#[must_use]
pub fn tdx_reserved_keyid_bits(hkids: u32) -> u32 {
    (1..KEYID_BITS)
        .find(|&bits| (1 << KEYID_BITS) - (1 << (KEYID_BITS - bits)) >= hkids)
        .unwrap_or(KEYID_BITS - 1)
}

/// Returns the number of shared (MKTME) KeyIDs that remain beside `hkids` private ones.
#[must_use]
pub fn mktme_keyids(hkids: u32) -> u32 {
    (1 << (KEYID_BITS - tdx_reserved_keyid_bits(hkids))) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keyids_fit_the_bits_and_start_after_the_shared_ones() {
        for hkids in 2..=14 {
            let shared = mktme_keyids(hkids);
            assert!(shared >= 1);
            assert!(shared + hkids < 1 << KEYID_BITS, "{hkids}");
        }
        assert_eq!((mktme_keyids(14), tdx_reserved_keyid_bits(14)), (1, 3));
        assert_eq!((mktme_keyids(12), tdx_reserved_keyid_bits(12)), (3, 2));
        assert_eq!((mktme_keyids(8), tdx_reserved_keyid_bits(8)), (7, 1));
    }
}
