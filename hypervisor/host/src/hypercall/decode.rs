//! Decodes a guest's registers into a hypercall.

use seam::abi::Gprs;
use seam::abi::hypercall::{Function, SIGNATURE, Status};

/// A decoded hypercall. TDs are named by number; 0 is the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the function of that name")]
pub enum Call {
    Caps,
    TdList {
        /// The lowest number to list.
        from: u32,
    },
    TdTerminate {
        id: u32,
    },
    ReclaimStatus {
        id: u32,
    },
}

/// Decodes a call. Every register that the host sees and the function does not use must be zero. RAX and RCX belong to
/// the module. A register that the guest does not pass is zero.
///
/// # Errors
/// [`Status::Unsupported`], [`Status::InvalidOperand`].
pub fn decode(regs: &Gprs) -> Result<Call, Status> {
    if regs.r10 != SIGNATURE {
        return Err(Status::Unsupported);
    }
    let function = Function::from_number(regs.r11).ok_or(Status::Unsupported)?;
    let Gprs {
        rdx,
        rbx,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r12,
        r13,
        r14,
        r15,
        ..
    } = *regs;
    let number = if function == Function::Caps { 0 } else { r12 };
    let reserved = [rdx, rbx, rbp, rsi, rdi, r8, r9, r12 ^ number, r13, r14, r15];
    if reserved.into_iter().any(|register| register != 0) {
        return Err(Status::InvalidOperand);
    }
    let id = u32::try_from(number).map_err(|_| Status::InvalidOperand)?;
    Ok(match function {
        Function::Caps => Call::Caps,
        Function::TdList => Call::TdList { from: id },
        Function::TdTerminate => Call::TdTerminate { id },
        Function::ReclaimStatus => Call::ReclaimStatus { id },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(function: u64, r12: u64) -> Gprs {
        Gprs {
            // The module's values in RAX and RCX are not the guest's.
            rax: 77,
            rcx: 0xFFCC,
            r10: SIGNATURE,
            r11: function,
            r12,
            ..Gprs::default()
        }
    }

    #[test]
    fn calls_are_read() {
        for (number, expected) in [
            (0, Call::Caps),
            (1, Call::TdList { from: 0 }),
            (2, Call::TdTerminate { id: 0 }),
            (3, Call::ReclaimStatus { id: 0 }),
        ] {
            assert_eq!(decode(&call(number, 0)), Ok(expected));
        }
        assert_eq!(decode(&call(2, 7)), Ok(Call::TdTerminate { id: 7 }));
        assert_eq!(decode(&call(4, 0)), Err(Status::Unsupported));
        assert_eq!(decode(&call(1 << 32, 0)), Err(Status::Unsupported));
    }

    #[test]
    fn another_signature_or_version_is_not_supported() {
        for r10 in [1, SIGNATURE + 1, SIGNATURE & !0xFF, SIGNATURE ^ 1 << 63] {
            let regs = Gprs { r10, ..call(0, 0) };
            assert_eq!(decode(&regs), Err(Status::Unsupported));
        }
    }

    #[test]
    fn reserved_bits_must_be_zero() {
        let registers: [fn(&mut Gprs) -> &mut u64; 10] = [
            |regs| &mut regs.rdx,
            |regs| &mut regs.rbx,
            |regs| &mut regs.rbp,
            |regs| &mut regs.rsi,
            |regs| &mut regs.rdi,
            |regs| &mut regs.r8,
            |regs| &mut regs.r9,
            |regs| &mut regs.r13,
            |regs| &mut regs.r14,
            |regs| &mut regs.r15,
        ];
        for function in 0..4 {
            for register in registers {
                for bit in [0, 31, 63] {
                    let mut regs = call(function, 0);
                    *register(&mut regs) = 1 << bit;
                    assert_eq!(decode(&regs), Err(Status::InvalidOperand));
                }
            }
            let regs = call(function, 1 << 32);
            assert_eq!(decode(&regs), Err(Status::InvalidOperand));
        }
        assert_eq!(decode(&call(0, 1)), Err(Status::InvalidOperand));
    }

    proptest::proptest! {
        #[test]
        fn any_registers_give_a_call_or_a_status(values: [u64; 12], function in 0u64..8, signed: bool) {
            let [rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r12, r13, r14, r15] = values;
            let r10 = if signed { SIGNATURE } else { r10 };
            let regs = Gprs {
                rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11: function, r12, r13, r14, r15,
                ..Gprs::default()
            };
            if let Ok(call) = decode(&regs) {
                assert_eq!(regs.r10, SIGNATURE);
                assert_eq!([rdx, rbx, rbp, rsi, rdi, r8, r9, r13, r14, r15], [0; 10]);
                assert!(call != Call::Caps || r12 == 0);
            }
        }
    }
}
