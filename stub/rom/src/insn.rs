//! Instructions that the monitor executes on behalf of the software above: decoding, operands, registers.

use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};

/// The general-purpose registers in the order of their numbers: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GprFile(pub [u64; 16]);

/// Numbers of the registers in a [`GprFile`].
#[expect(missing_docs, reason = "each is the register of that name")]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

impl GprFile {
    /// Returns the value of a general-purpose register of any width.
    #[must_use]
    pub fn get(&self, register: Register) -> Option<u64> {
        if !register.is_gpr() {
            return None;
        }
        let full = self.0[register.full_register().number()];
        Some(match register.size() {
            1 if is_high_byte(register) => full >> 8 & 0xFF,
            1 => full & 0xFF,
            2 => full & 0xFFFF,
            4 => full & 0xFFFF_FFFF,
            _ => full,
        })
    }

    /// Writes a general-purpose register of any width, as the CPU does: 32-bit writes clear the upper half.
    pub fn set(&mut self, register: Register, value: u64) {
        if !register.is_gpr() {
            return;
        }
        let full = &mut self.0[register.full_register().number()];
        let (mask, shift) = match register.size() {
            1 if is_high_byte(register) => (0xFF, 8),
            1 => (0xFF, 0),
            2 => (0xFFFF, 0),
            4 => {
                *full = value & 0xFFFF_FFFF;
                return;
            }
            _ => (u64::MAX, 0),
        };
        *full = *full & !(mask << shift) | (value & mask) << shift;
    }

    /// Returns EDX:EAX as a 64-bit value, as WRMSR uses it.
    #[must_use]
    pub fn edx_eax(&self) -> u64 {
        self.0[gpr::RDX] << 32 | self.0[gpr::RAX] & 0xFFFF_FFFF
    }

    /// Sets EDX:EAX from a 64-bit value, as RDMSR does.
    pub fn set_edx_eax(&mut self, value: u64) {
        self.0[gpr::RAX] = value & 0xFFFF_FFFF;
        self.0[gpr::RDX] = value >> 32;
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

/// The bases of the segments that have a base in 64-bit mode.
#[derive(Clone, Copy, Debug, Default)]
pub struct SegmentBases {
    /// FS.
    pub fs: u64,
    /// GS.
    pub gs: u64,
}

/// Decodes the instruction at `rip` in code of `bitness` bits (16, 32 or 64). Returns `None` if the bytes are not an
/// instruction, or too few.
#[must_use]
pub fn decode(bytes: &[u8], rip: u64, bitness: u32) -> Option<Instruction> {
    let instruction = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// Returns the linear address of memory operand `operand` in 64-bit code.
#[must_use]
pub fn address(
    instruction: &Instruction,
    operand: u32,
    gprs: &GprFile,
    bases: SegmentBases,
) -> Option<u64> {
    instruction.virtual_address(operand, 0, |register, _, _| match register {
        Register::FS => Some(bases.fs),
        Register::GS => Some(bases.gs),
        Register::CS | Register::DS | Register::ES | Register::SS => Some(0),
        _ => gprs.get(register),
    })
}

/// A load or a store of at most 8 bytes between memory and a register or an immediate, as drivers use for device
/// registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// A load from memory to a register, extended as by MOV, MOVZX or MOVSX.
    Load {
        /// The destination.
        register: Register,
        /// Bytes read.
        size: usize,
        /// True if the value is sign-extended.
        signed: bool,
    },
    /// A store of a register or immediate to memory.
    Store {
        /// The value written.
        value: u64,
        /// Bytes written.
        size: usize,
    },
}

impl Transfer {
    /// Decodes MOV, MOVZX and MOVSX with one memory operand.
    #[must_use]
    pub fn of(instruction: &Instruction, gprs: &GprFile) -> Option<Self> {
        use iced_x86::Mnemonic;
        let size = instruction.memory_size().size();
        let signed = match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movzx => false,
            Mnemonic::Movsx | Mnemonic::Movsxd => true,
            _ => return None,
        };
        if size > 8 {
            return None;
        }
        if instruction.op0_kind() == OpKind::Memory {
            let value = match instruction.op1_kind() {
                OpKind::Register => gprs.get(instruction.op1_register())?,
                _ => instruction.try_immediate(1).ok()?,
            };
            return Some(Self::Store { value, size });
        }
        (instruction.op1_kind() == OpKind::Memory && instruction.op0_register().is_gpr()).then_some(
            Self::Load {
                register: instruction.op0_register(),
                size,
                signed,
            },
        )
    }
}

/// Writes `value`, which was loaded from memory, to the register of a [`Transfer::Load`].
pub fn finish_load(gprs: &mut GprFile, register: Register, size: usize, signed: bool, value: u64) {
    let unused = 64 - 8 * size as u32;
    let value = if signed {
        ((value << unused) as i64 >> unused) as u64
    } else {
        value << unused >> unused
    };
    gprs.set(register, value);
}

/// Returns the four bytes starting at `at`, the length of SEAMCALL and TDCALL. `word` reads memory in aligned words of
/// 64 bits, and only the words needed are read.
#[inline(always)]
pub fn opcode(at: u64, word: impl Fn(u64) -> u64) -> u32 {
    let (first, shift) = (at & !7, at % 8 * 8);
    let mut all = word(first) >> shift;
    if shift > 32 {
        all |= word(first.wrapping_add(8)) << (64 - shift);
    }
    all as u32
}

/// Returns the 15 bytes starting at `at`. `word` reads memory in aligned words of 64 bits, and only the words needed
/// are read.
pub fn bytes(at: u64, word: impl Fn(u64) -> u64) -> [u8; 15] {
    let (first, shift) = (at & !7, at % 8 * 8);
    let low = u128::from(word(first)) | u128::from(word(first.wrapping_add(8))) << 64;
    let mut all = low >> shift;
    if shift > 8 {
        all |= u128::from(word(first.wrapping_add(16))) << (128 - shift);
    }
    let [bytes @ .., _] = all.to_le_bytes();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::Code;

    fn gprs() -> GprFile {
        let mut file = GprFile::default();
        for (i, value) in file.0.iter_mut().enumerate() {
            *value = 0x1111_1111_1111_1111 * i as u64;
        }
        file
    }

    #[test]
    fn bytes_are_read_from_the_fewest_words() {
        let memory: [u8; 24] = core::array::from_fn(|i| i as u8);
        for at in 0..8 {
            let last = (at + 14) / 8 * 8;
            let found = bytes(at, |word| {
                assert!(word <= last);
                let at = word as usize;
                u64::from_le_bytes(memory[at..at + 8].try_into().unwrap())
            });
            assert_eq!(found, memory[at as usize..at as usize + 15]);
        }
    }

    #[test]
    fn instructions_that_tcg_lacks_are_decoded() {
        for (bytes, code) in [
            (&[0xF3, 0x0F, 0xC7, 0x33][..], Code::Vmxon_m64),
            (&[0x0F, 0x01, 0xC4], Code::Vmxoff),
            (&[0x66, 0x0F, 0xC7, 0x31], Code::Vmclear_m64),
            (&[0x0F, 0xC7, 0x31], Code::Vmptrld_m64),
            (&[0x66, 0x0F, 0x38, 0x80, 0x01], Code::Invept_r64_m128),
            (&[0x66, 0x0F, 0x38, 0xF8, 0x06], Code::Movdir64b_r64_m512),
            (&[0x66, 0x0F, 0x01, 0xCF], Code::Seamcall),
            (&[0x66, 0x0F, 0x01, 0xCC], Code::Tdcall),
            (&[0x0F, 0x01, 0xC5], Code::Pconfig),
        ] {
            assert_eq!(decode(bytes, 0, 64).map(|i| i.code()), Some(code));
        }
        assert_eq!(decode(&[0x66, 0x0F], 0, 64), None, "cut off");
    }

    #[test]
    fn registers_have_their_width() {
        let mut file = gprs();
        assert_eq!(file.get(Register::BH), Some(0x33));
        file.set(Register::BH, 0xAB);
        assert_eq!(file.get(Register::RBX), Some(0x3333_3333_3333_AB33));
        file.set(Register::ECX, 7);
        assert_eq!(file.get(Register::RCX), Some(7));
        file.set(Register::R8W, 0);
        assert_eq!(file.get(Register::R8), Some(0x8888_8888_8888_0000));
    }

    #[test]
    fn addresses_take_segments_scale_and_rip_into_account() {
        let bases = SegmentBases { fs: 0, gs: 0x5000 };
        let mut file = gprs();
        file.set(Register::RAX, 0x100);
        file.set(Register::RCX, 2);
        // mov edx, gs:[rax + rcx*4 + 8]
        let i = decode(&[0x65, 0x8B, 0x54, 0x88, 0x08], 0, 64).unwrap();
        assert_eq!(address(&i, 1, &file, bases), Some(0x5110));
        // mov [rip + 0x10], eax at 0x1000
        let i = decode(&[0x89, 0x05, 0x10, 0, 0, 0], 0x1000, 64).unwrap();
        assert_eq!(address(&i, 0, &file, bases), Some(0x1016));
    }

    #[test]
    fn an_opcode_is_the_first_four_of_the_bytes() {
        let word = |at: u64| {
            assert_eq!(at % 8, 0);
            u64::from_le_bytes(core::array::from_fn(|i| at as u8 + i as u8))
        };
        for at in 0..16 {
            assert_eq!(opcode(at, word).to_le_bytes(), bytes(at, word)[..4]);
        }
    }

    #[test]
    fn transfers_are_loads_and_stores() {
        let file = gprs();
        // mov [rax], ecx; mov dword [rax], 0x12; mov r9d, [rax]; movzx ecx, byte [rax]; movsx rdx, word [rax]
        let of = |bytes: &[u8]| Transfer::of(&decode(bytes, 0, 64).unwrap(), &file);
        assert_eq!(
            of(&[0x89, 0x08]),
            Some(Transfer::Store {
                value: 0x1111_1111,
                size: 4
            })
        );
        assert_eq!(
            of(&[0xC7, 0x00, 0x12, 0, 0, 0]),
            Some(Transfer::Store {
                value: 0x12,
                size: 4
            })
        );
        let load = |register, size, signed| {
            Some(Transfer::Load {
                register,
                size,
                signed,
            })
        };
        assert_eq!(of(&[0x44, 0x8B, 0x08]), load(Register::R9D, 4, false));
        assert_eq!(of(&[0x0F, 0xB6, 0x08]), load(Register::ECX, 1, false));
        assert_eq!(of(&[0x48, 0x0F, 0xBF, 0x10]), load(Register::RDX, 2, true));
        assert_eq!(of(&[0x01, 0x08]), None, "add");
        let mut file = file;
        finish_load(&mut file, Register::RDX, 2, true, 0xFFFE);
        assert_eq!(file.get(Register::RDX), Some(!1));
    }
}
