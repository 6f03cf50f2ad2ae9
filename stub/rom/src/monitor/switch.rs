//! The common part of both world switches: loads a guest's registers before entry and saves them after exit.

/// The body of a naked function that enters a guest. `before` leaves the guest's owner in RDI and at the top of the
/// stack. `enter` finds the VMCB in RAX, and may use no other register. At `after` the owner is in RAX, and every other
/// register is free.
///
/// The owner starts with the general-purpose registers by number, except for RAX and RSP, which are in the VMCB.
/// `entered` is the offset of the VMCB's address, and `xmm` that of the XMM registers (`xmm_by` is "lea") or of their
/// address ("mov"). The monitor's own register contents are lost.
macro_rules! through_guest {
    (
        xmm_by: $xmm_by:literal,
        before: [$($before:literal),* $(,)?],
        enter: [$($enter:literal),* $(,)?],
        after: [$($after:literal),* $(,)?],
        $($operands:tt)*
    ) => {
        core::arch::naked_asm!(
            $($before,)*
            concat!($xmm_by, " rsi, [rdi + {xmm}]"),
            "movups xmm0, [rsi + 0x00]",
            "movups xmm1, [rsi + 0x10]",
            "movups xmm2, [rsi + 0x20]",
            "movups xmm3, [rsi + 0x30]",
            "movups xmm4, [rsi + 0x40]",
            "movups xmm5, [rsi + 0x50]",
            "movups xmm6, [rsi + 0x60]",
            "movups xmm7, [rsi + 0x70]",
            "movups xmm8, [rsi + 0x80]",
            "movups xmm9, [rsi + 0x90]",
            "movups xmm10, [rsi + 0xa0]",
            "movups xmm11, [rsi + 0xb0]",
            "movups xmm12, [rsi + 0xc0]",
            "movups xmm13, [rsi + 0xd0]",
            "movups xmm14, [rsi + 0xe0]",
            "movups xmm15, [rsi + 0xf0]",
            "mov rcx, [rdi + 1*8]",
            "mov rdx, [rdi + 2*8]",
            "mov rbx, [rdi + 3*8]",
            "mov rbp, [rdi + 5*8]",
            "mov rsi, [rdi + 6*8]",
            "mov r8, [rdi + 8*8]",
            "mov r9, [rdi + 9*8]",
            "mov r10, [rdi + 10*8]",
            "mov r11, [rdi + 11*8]",
            "mov r12, [rdi + 12*8]",
            "mov r13, [rdi + 13*8]",
            "mov r14, [rdi + 14*8]",
            "mov r15, [rdi + 15*8]",
            "mov rax, [rdi + {entered}]",
            "mov rdi, [rdi + 7*8]",
            $($enter,)*
            "mov rax, [rsp]",
            "mov [rax + 1*8], rcx",
            "mov [rax + 2*8], rdx",
            "mov [rax + 3*8], rbx",
            "mov [rax + 5*8], rbp",
            "mov [rax + 6*8], rsi",
            "mov [rax + 7*8], rdi",
            "mov [rax + 8*8], r8",
            "mov [rax + 9*8], r9",
            "mov [rax + 10*8], r10",
            "mov [rax + 11*8], r11",
            "mov [rax + 12*8], r12",
            "mov [rax + 13*8], r13",
            "mov [rax + 14*8], r14",
            "mov [rax + 15*8], r15",
            concat!($xmm_by, " rsi, [rax + {xmm}]"),
            "movups [rsi + 0x00], xmm0",
            "movups [rsi + 0x10], xmm1",
            "movups [rsi + 0x20], xmm2",
            "movups [rsi + 0x30], xmm3",
            "movups [rsi + 0x40], xmm4",
            "movups [rsi + 0x50], xmm5",
            "movups [rsi + 0x60], xmm6",
            "movups [rsi + 0x70], xmm7",
            "movups [rsi + 0x80], xmm8",
            "movups [rsi + 0x90], xmm9",
            "movups [rsi + 0xa0], xmm10",
            "movups [rsi + 0xb0], xmm11",
            "movups [rsi + 0xc0], xmm12",
            "movups [rsi + 0xd0], xmm13",
            "movups [rsi + 0xe0], xmm14",
            "movups [rsi + 0xf0], xmm15",
            $($after,)*
            $($operands)*
        )
    };
}
pub(super) use through_guest;
