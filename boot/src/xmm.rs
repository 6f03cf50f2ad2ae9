//! The extended state that compiled code may change, XMM registers and MXCSR, preserved while an event is handled.

/// A part of `naked_asm!`, in Intel syntax: executes `call` with an aligned stack and with the MXCSR that compiled code
/// expects, and restores XMM registers and MXCSR afterwards. That is all of the extended state that our programs use,
/// and cheaper than FXSAVE with FXRSTOR. RSP is changed: the user must have saved it in a register that `call`
/// preserves.
#[macro_export]
macro_rules! with_xmm_kept {
    ($call:literal) => {
        concat!(
            "sub rsp, 272
            and rsp, -16
            .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
            movaps [rsp + 16 * \\n], xmm\\n
            .endr
            stmxcsr [rsp + 256]
            mov dword ptr [rsp + 260], 0x1F80
            ldmxcsr [rsp + 260]
            ",
            $call,
            "
            ldmxcsr [rsp + 256]
            .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
            movaps xmm\\n, [rsp + 16 * \\n]
            .endr"
        )
    };
}
