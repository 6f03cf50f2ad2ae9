//! Vectors of exceptions.
//!
//! Source: Intel SDM, volume 3, section 6.3.1.

/// #DB.
pub const DB: u8 = 1;
/// NMI.
pub const NMI: u8 = 2;
/// #UD.
pub const UD: u8 = 6;
/// #GP.
pub const GP: u8 = 13;
/// #PF.
pub const PF: u8 = 14;
/// #MC.
pub const MC: u8 = 18;
/// #VE.
pub const VE: u8 = 20;

/// Returns whether the exception pushes an error code.
#[must_use]
pub const fn has_error_code(vector: u8) -> bool {
    const WITH: u32 = 1 << 8 | 0x1F << 10 | 1 << 17 | 1 << 21;
    vector < 32 && WITH >> vector & 1 != 0
}
