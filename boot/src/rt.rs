//! The symbols that the prebuilt `core` and `alloc` require from the platform they are linked into.
//!
//! The freestanding programs are built for a hosted triple, whose `core` calls the C library's memory functions and
//! refers to the unwinder's entry points. Only this module provides them, and only with the feature `rt`, which the
//! freestanding programs enable. The functions use string instructions, because the compiler may turn a loop in Rust
//! into a call of the very function that it implements.
#![expect(
    unsafe_code,
    reason = "these are the C library's memory functions, which take raw pointers"
)]

use core::arch::asm;

/// Copies `n` bytes from `src` to `dst`, which do not overlap.
///
/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(dst: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; the two instructions together move exactly `n` bytes upwards.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {tail}",
            "rep movsb",
            tail = in(reg) n % 8,
            inout("rcx") n / 8 => _,
            inout("rdi") dst => _,
            inout("rsi") src => _,
            options(nostack, preserves_flags),
        );
    }
    dst
}

/// Copies `n` bytes from `src` to `dst`, which may overlap.
///
/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(dst: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    if (dst as usize).wrapping_sub(src as usize) >= n {
        // SAFETY: the destination does not start inside the source, so that an upward copy reads each byte before
        // it is overwritten.
        return unsafe { memcpy(dst, src, n) };
    }
    // SAFETY: the caller vouches for both ranges; the copy goes downwards from their last bytes and touches exactly
    // `n` of them; the direction flag is clear again at the end.
    unsafe {
        asm!(
            "std",
            "rep movsq",
            "mov rcx, {tail}",
            "add rsi, 7",
            "add rdi, 7",
            "rep movsb",
            "cld",
            tail = in(reg) n % 8,
            inout("rcx") n / 8 => _,
            inout("rdi") dst.wrapping_add(n).wrapping_sub(8) => _,
            inout("rsi") src.wrapping_add(n).wrapping_sub(8) => _,
            options(nostack),
        );
    }
    dst
}

/// Sets `n` bytes from `dst` to the low byte of `value`.
///
/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(dst: *mut u8, value: i32, n: usize) -> *mut u8 {
    let pattern = u64::from(value as u8) * 0x0101_0101_0101_0101;
    // SAFETY: the caller vouches for the range; the two instructions together store exactly `n` bytes.
    unsafe {
        asm!(
            "rep stosq",
            "mov rcx, {tail}",
            "rep stosb",
            tail = in(reg) n % 8,
            in("rax") pattern,
            inout("rcx") n / 8 => _,
            inout("rdi") dst => _,
            options(nostack, preserves_flags),
        );
    }
    dst
}

/// Compares `n` bytes. The result is negative, zero or positive, like the first difference.
///
/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut i = 0;
    // SAFETY: all reads are below `n`, for which the caller vouches.
    unsafe {
        while i + 8 <= n
            && a.add(i).cast::<u64>().read_unaligned() == b.add(i).cast::<u64>().read_unaligned()
        {
            i += 8;
        }
        while i < n {
            let (x, y) = (*a.add(i), *b.add(i));
            if x != y {
                return i32::from(x) - i32::from(y);
            }
            i += 1;
        }
    }
    0
}

/// Compares `n` bytes. The result is zero if they are equal.
///
/// # Safety
/// As BSD's `bcmp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, n) }
}

/// Returns the length of a zero-terminated string.
///
/// # Safety
/// As C's `strlen`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn strlen(s: *const u8) -> usize {
    let mut end = s;
    // SAFETY: the caller vouches for every byte up to the terminator; a volatile read keeps this loop a loop.
    unsafe {
        while end.read_volatile() != 0 {
            end = end.add(1);
        }
        end.offset_from_unsigned(s)
    }
}

/// Referenced by the unwind tables of the prebuilt `core`. Both programs abort on a panic, so it is never called.
#[unsafe(no_mangle)]
pub extern "C" fn rust_eh_personality() {}

/// Referenced by landing pads in the prebuilt `core`. Both programs abort on a panic, so it is never reached.
#[unsafe(no_mangle)]
pub extern "C" fn _Unwind_Resume() -> ! {
    // SAFETY: an instruction that is undefined on purpose: the fault handler reports the place.
    unsafe { asm!("ud2", options(noreturn)) }
}
