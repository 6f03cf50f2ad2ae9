//! The P-SEAMLDR. It has loaded the module, and installs no other.
//!
//! Source: Intel P-SEAMLDR specification. Leaf numbers have RAX bit 63 set.

use seam::abi::{SeamldrInfo, SeamldrLeaf};
use zerocopy::{FromZeros, IntoBytes};

/// An invalid leaf or operand (EBADPARAM).
pub const BAD_PARAMETER: u64 = 1 << 63;
/// An operation that the platform does not support (EUNSPECERR): the stub's module is not replaced at run time.
pub const UNSPECIFIED: u64 = 1 << 63 | 0x1_0003;

/// Executes the leaf in `rax` with the operand `rcx`, and returns the status. `write` stores bytes at a physical
/// address, or returns false if software may not store there.
pub fn call(rax: u64, rcx: u64, write: impl FnOnce(u64, &[u8]) -> bool) -> u64 {
    if rax != SeamldrLeaf::Info as u64 {
        let known = [
            SeamldrLeaf::Install,
            SeamldrLeaf::Shutdown,
            SeamldrLeaf::SeamInfo,
        ];
        let is_known = known.into_iter().any(|leaf| leaf as u64 == rax);
        return if is_known { UNSPECIFIED } else { BAD_PARAMETER };
    }
    const ALIGNMENT: u64 = size_of::<SeamldrInfo>() as u64;
    if rcx.is_multiple_of(ALIGNMENT) && write(rcx, info().as_bytes()) {
        0
    } else {
        BAD_PARAMETER
    }
}

/// Returns the loader's information. Its version is the module line's, 1.5. The stub measures nothing, so SEAMEXTEND is
/// valid and zero.
fn info() -> SeamldrInfo {
    SeamldrInfo {
        vendor_id: 0x8086,
        build_date: 20_231_112,
        major_version: 1,
        minor_version: 5,
        seam_valid: 1,
        seam_ready: 1,
        p_seamldr_ready: 1,
        ..SeamldrInfo::new_zeroed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn info_tells_that_loader_and_module_are_ready() {
        let mut stored = (0, Vec::new());
        let status = call(1 << 63, 0x1100, |pa, bytes| {
            stored = (pa, bytes.to_vec());
            true
        });
        assert_eq!((status, stored.0, stored.1.len()), (0, 0x1100, 256));
        assert_eq!(stored.1[8..12], 0x8086u32.to_le_bytes());
        assert_eq!([stored.1[0xA0], stored.1[0xA2]], [1, 1]);
    }

    #[test]
    fn bad_operands_and_unknown_leaves_are_refused() {
        let never = |_, _: &[u8]| unreachable!("nothing is stored");
        assert_eq!(call(1 << 63, 0x1180, never), BAD_PARAMETER, "alignment");
        assert_eq!(call(1 << 63, 0x1100, |_, _| false), BAD_PARAMETER);
        assert_eq!(call(1 << 63 | 9, 0, never), BAD_PARAMETER);
        assert_eq!(call(SeamldrLeaf::Install as u64, 0, never), UNSPECIFIED);
    }
}
