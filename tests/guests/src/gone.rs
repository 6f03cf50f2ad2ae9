//! Checks of instructions whose page the guest takes away just before it executes them: its page tables no longer lead
//! to the page that the CPU still has in its TLB.
#![expect(
    unsafe_code,
    reason = "executes generated code through its own page tables"
)]

use core::arch::asm;

use guest_kit::attempt::Caught;
use guest_kit::check::Check;
use guest_kit::{attempt, ensure, memory};
use seam::abi::PAGE_4K;

/// The address of the code: an entry of the root that nothing else uses.
const ROOT_ENTRY: u64 = 100;
const CODE: u64 = ROOT_ENTRY << 39;
/// Present and writable.
const ENTRY: u64 = 3;
/// `mov [rdi], r9`, with RDI the page-table entry of the code.
const TAKE_AWAY: [u8; 3] = [0x4C, 0x89, 0x0F];
/// `mov rbx, r15`, because CPUID changes it, and `jmp rsi`.
const LEAVE: [u8; 5] = [0x4C, 0x89, 0xFB, 0xFF, 0xE6];
const NOP: u8 = 0x90;

/// The value of RAX at the instruction.
#[derive(Clone, Copy)]
enum Rax {
    Is(u64),
    Cr0,
    Cr4,
}

/// An instruction, and RAX and RCX before it.
type Row = (&'static str, &'static [u8], Rax, u64);

const ROWS: &[Row] = &[
    ("cpuid", &[0x0F, 0xA2], Rax::Is(0x15), 0),
    ("hlt", &[0xF4], Rax::Is(0), 0),
    ("invd", &[0x0F, 0x08], Rax::Is(0), 0),
    ("wbinvd", &[0x0F, 0x09], Rax::Is(0), 0),
    ("rdpmc", &[0x0F, 0x33], Rax::Is(0), 0),
    ("rdmsr that exits", &[0x0F, 0x32], Rax::Is(0), 0x1B),
    ("rdmsr", &[0x0F, 0x32], Rax::Is(0), 0x10),
    ("wrmsr that exits", &[0x0F, 0x30], Rax::Is(0), 0x1B),
    ("wrmsr", &[0x0F, 0x30], Rax::Is(0), 0x49),
    ("in al, 0x60", &[0xE4, 0x60], Rax::Is(0), 0),
    ("out dx, eax", &[0xEF], Rax::Is(0), 0),
    ("mov cr0, rax", &[0x0F, 0x22, 0xC0], Rax::Cr0, 0),
    ("lmsw ax", &[0x0F, 0x01, 0xF0], Rax::Cr0, 0),
    ("clts", &[0x0F, 0x06], Rax::Is(0), 0),
    ("mov cr4, rax", &[0x0F, 0x22, 0xE0], Rax::Cr4, 0),
    ("mov cr8, rax", &[0x44, 0x0F, 0x22, 0xC0], Rax::Is(0), 0),
    ("monitor", &[0x0F, 0x01, 0xC8], Rax::Is(0), 0),
    ("mwait", &[0x0F, 0x01, 0xC9], Rax::Is(0), 0),
    ("tdcall", &[0x66, 0x0F, 0x01, 0xCC], Rax::Is(1), 0),
    ("vmcall", &[0x0F, 0x01, 0xC1], Rax::Is(0), 0),
    ("vmmcall", &[0x0F, 0x01, 0xD9], Rax::Is(0), 0),
    ("ud2", &[0x0F, 0x0B], Rax::Is(0), 0),
];

/// Page tables that map one page of code, in addition to everything that is mapped elsewhere.
struct Ground {
    root: u64,
    /// The entry that maps the code.
    entry: u64,
    /// The page of the code, and one of NOP instructions.
    code: u64,
    nothing: u64,
}

impl Ground {
    fn new(old_root: u64) -> Self {
        let page = || memory::take(PAGE_4K, PAGE_4K);
        let [root, pointers, directory, table, code, nothing] = core::array::from_fn(|_| page());
        for at in (0..PAGE_4K).step_by(8) {
            memory::set_word(root + at, memory::word(old_root + at));
        }
        memory::set_word(root + ROOT_ENTRY * 8, pointers | ENTRY);
        memory::set_word(pointers, directory | ENTRY);
        memory::set_word(directory, table | ENTRY);
        let ground = Self {
            root,
            entry: table,
            code,
            nothing,
        };
        ground.write(nothing, &[NOP; 16]);
        ground
    }

    /// Writes the code around an instruction to a page.
    fn write(&self, page: u64, instruction: &[u8]) {
        let bytes = TAKE_AWAY.iter().chain(instruction).chain(&LEAVE);
        let mut words = [0u64; 4];
        for (at, byte) in bytes.enumerate() {
            words[at / 8] |= u64::from(*byte) << (at % 8 * 8);
        }
        for (at, word) in (page..).step_by(8).zip(words) {
            memory::set_word(at, word);
        }
    }

    /// Executes an instruction while its page-table entry changes to `becomes`.
    fn execute(&self, row: &Row, becomes: u64) -> Check {
        let (what, instruction, rax, rcx) = *row;
        self.write(self.code, instruction);
        memory::set_word(self.entry, self.code | ENTRY);
        let rax = match rax {
            Rax::Is(value) => value,
            Rax::Cr0 => cr0(),
            Rax::Cr4 => cr4(),
        };
        set_root(self.root);
        // SAFETY: the code takes its own page away, executes an instruction after which the vCPU can continue, and
        // returns by RSI with RBX as it was; what it raises on the way is caught.
        let outcome = unsafe {
            attempt!(
                "mov r15, rbx; lea rsi, [rip + 3f]; jmp r8",
                inout("rax") rax => _, inout("rcx") rcx => _, inout("rdx") 0u64 => _,
                in("r9") becomes, inout("r8") CODE => _, out("rsi") _, inout("rdi") self.entry => _,
                out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            )
        };
        let at = CODE + TAKE_AWAY.len() as u64;
        let is_there = match outcome {
            None => true,
            Some(Caught::Elsewhere { rip }) => rip == at,
            Some(_) => false,
        };
        ensure!(
            is_there,
            "{what} at {at:#x}, whose page is gone: {outcome:?}"
        );
        Ok(())
    }
}

/// Checks that each instruction completes, as from the TLB, or faults at its address, or that the instructions now
/// mapped there are executed.
pub fn code_that_is_gone() -> Check {
    let root = root();
    let ground = Ground::new(root);
    let result = ROWS.iter().try_for_each(|row| {
        ground.execute(row, 0)?;
        ground.execute(row, ground.nothing | ENTRY)
    });
    set_root(root);
    result
}

fn root() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack)) };
    value
}

fn set_root(root: u64) {
    // SAFETY: the tables map the program and its memory as the previous ones did.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack)) };
}

fn cr0() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack)) };
    value
}

fn cr4() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack)) };
    value
}
