//! A sandbox in which a guest executes anything: page tables, descriptor tables, stacks and code of its own, which are
//! restored before each step. The event that ends a step returns to the caller, as long as the processor finds the
//! way.
#![expect(unsafe_code, reason = "executes arbitrary code")]

use core::arch::{asm, naked_asm};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_kit::layout::PROGRAM;
use guest_kit::memory;
use guest_kit::numbers::Numbers;
use seam::abi::x86::{cr4, rflags};
use seam::abi::{PAGE_2M, PAGE_4K};

use crate::opcodes::Bytes;

/// Pages of the sandbox, by number. The first ones are read by the processor itself.
mod page {
    pub const ROOT: u64 = 0;
    pub const POINTERS: u64 = 1;
    pub const LOW: u64 = 2;
    pub const HIGH: u64 = 3;
    pub const MIDDLE: u64 = 4;
    pub const TABLE: u64 = 5;
    pub const SEGMENTS: u64 = 6;
    pub const INTERRUPTS: u64 = 7;
    pub const VITAL: u64 = 8;
    pub const EVENTS: u64 = 8;
    pub const CODE: u64 = 9;
    pub const SCRATCH: u64 = 11;
    pub const SCRATCHES: u64 = 4;
    /// The originals of the vital pages.
    pub const PRISTINE: u64 = 16;
    pub const ALL: u64 = PRISTINE + VITAL;
}

/// Page-table entries: present, writable, user, accessed, dirty; and large.
const ENTRY: u64 = 0x67;
const LARGE: u64 = 0xE7;
/// The addresses of code and scratch pages: below 2 GiB, so that 32-bit code reaches them. Nothing is mapped behind
/// the code.
const MIDDLE: u64 = 1 << 30;
const CODE_AT: u64 = MIDDLE;
const CODE_PAGES: u64 = 2;
const SCRATCH_AT: u64 = MIDDLE + 4 * PAGE_4K;

/// Segments: the kit's first four, then those of user mode, then the task.
const SEGMENTS: [u64; 7] = [
    0,
    0x00AF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x00CF_9B00_0000_FFFF,
    0x00CF_FB00_0000_FFFF,
    0x00CF_F300_0000_FFFF,
    0x00AF_FB00_0000_FFFF,
];
const TASK: u64 = 8 * SEGMENTS.len() as u64;
/// Offset of the task state in its page.
const TASK_STATE: u64 = 0x200;
const TASK_BYTES: u64 = 104;
/// Code and stack segments of the modes: 64-bit and 32-bit, of the kernel and of users.
const MODES: [(u64, u64); 4] = [(0x08, 0x10), (0x18, 0x10), (0x33, 0x2B), (0x23, 0x2B)];

/// The state that is loaded for a step.
#[repr(C)]
struct Entry {
    gprs: [u64; 16],
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
    root: u64,
    segments: Pointer,
    interrupts: Pointer,
}

#[repr(C)]
struct Pointer {
    _padding: [u16; 3],
    limit: u16,
    base: u64,
}

impl Pointer {
    const fn new(base: u64, bytes: u64) -> Self {
        Self {
            _padding: [0; 3],
            limit: (bytes - 1) as u16,
            base,
        }
    }
}

const LIMIT: usize = offset_of!(Pointer, limit);

/// The stack to return to, and the registers that a step can change.
static STACK: AtomicU64 = AtomicU64::new(0);
static CR0: AtomicU64 = AtomicU64::new(0);
static CR4: AtomicU64 = AtomicU64::new(0);
static GS: AtomicU64 = AtomicU64::new(0);
static MXCSR: AtomicU64 = AtomicU64::new(0x1F80);
static ROOT: AtomicU64 = AtomicU64::new(0);

/// The sandbox.
pub struct Sandbox {
    base: u64,
}

impl Sandbox {
    /// Builds the sandbox.
    pub fn new() -> Self {
        const { assert!(page::ALL * PAGE_4K <= PAGE_2M) };
        // It is mapped as one large page, all of which must be present.
        let base = memory::take(PAGE_2M, PAGE_2M);
        let sandbox = Self { base };
        sandbox.draw();
        enable_extended_state();
        // SAFETY: reads registers.
        unsafe {
            let (cr0, cr3, cr4): (u64, u64, u64);
            asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4,
                options(nomem, nostack));
            CR0.store(cr0, Ordering::Relaxed);
            ROOT.store(cr3, Ordering::Relaxed);
            CR4.store(cr4, Ordering::Relaxed);
        }
        GS.store(guest_kit::cpu::rdmsr(0xC000_0101), Ordering::Relaxed);
        sandbox
    }

    fn at(&self, page: u64) -> u64 {
        self.base + page * PAGE_4K
    }

    /// Fills the originals of the vital pages.
    fn draw(&self) {
        let set = |page: u64, word: u64, value: u64| {
            memory::set_word(self.at(page::PRISTINE + page) + word * 8, value);
        };
        set(page::ROOT, 0, self.at(page::POINTERS) | ENTRY);
        for (word, directory) in [(0, page::LOW), (1, page::MIDDLE), (3, page::HIGH)] {
            set(page::POINTERS, word, self.at(directory) | ENTRY);
        }
        set(page::LOW, self.base / PAGE_2M, self.base | LARGE);
        for gpa in [PROGRAM, PROGRAM + PAGE_2M] {
            set(page::HIGH, gpa / PAGE_2M % 512, gpa | LARGE);
        }
        set(page::MIDDLE, 0, self.at(page::TABLE) | ENTRY);
        for (at, first, pages) in [
            (CODE_AT, page::CODE, CODE_PAGES),
            (SCRATCH_AT, page::SCRATCH, page::SCRATCHES),
        ] {
            for page in 0..pages {
                let word = (at - MIDDLE) / PAGE_4K + page;
                set(page::TABLE, word, self.at(first + page) | ENTRY);
            }
        }
        let task = self.at(page::SEGMENTS) + TASK_STATE;
        let low = (TASK_BYTES - 1) | (task & 0xFF_FFFF) << 16 | 0x89 << 40 | (task >> 24) << 56;
        let segments = SEGMENTS.into_iter().chain([low, task >> 32]);
        for (word, segment) in (0..).zip(segments) {
            set(page::SEGMENTS, word, segment);
        }
        // RSP0 and the first event stack lie across words; the upper halves of both are zero.
        let stack = self.at(page::EVENTS + 1);
        set(page::SEGMENTS, TASK_STATE / 8, stack << 32);
        set(page::SEGMENTS, TASK_STATE / 8 + 4, stack << 32);
        let handler = back as *const () as u64;
        for vector in 0..256 {
            let gate = handler & 0xFFFF | 0x08 << 16 | 1 << 32 | 0xEE00 << 32;
            let upper = handler >> 16 & 0xFFFF;
            set(page::INTERRUPTS, vector * 2, gate | upper << 48);
            set(page::INTERRUPTS, vector * 2 + 1, handler >> 32);
        }
    }

    /// Restores the vital pages.
    fn restore(&self) {
        let (from, to) = (self.at(page::PRISTINE), self.base);
        for at in (0..page::VITAL * PAGE_4K).step_by(8) {
            memory::set_word(to + at, memory::word(from + at));
        }
    }

    /// Returns an address of something that the processor needs.
    fn vital(&self, numbers: &mut Numbers) -> u64 {
        let words = match numbers.below(page::VITAL) {
            page::LOW | page::TABLE => 12,
            page::SEGMENTS => 9,
            page::INTERRUPTS => 64,
            _ => 4,
        };
        self.at(numbers.below(page::VITAL)) + numbers.below(words) * 8
    }

    /// Returns a value for a register.
    fn value(&self, numbers: &mut Numbers) -> u64 {
        let scratch = SCRATCH_AT + numbers.below(page::SCRATCHES * PAGE_4K);
        match numbers.below(24) {
            0 => numbers.next(),
            1 | 2 => numbers.below(1 << 16),
            3 | 4 => numbers.below(16),
            5 => !numbers.below(16),
            6 => 1 << numbers.below(64),
            7 => CODE_AT + numbers.below(CODE_PAGES * PAGE_4K),
            8 => self.vital(numbers),
            9 => SCRATCH_AT + page::SCRATCHES * PAGE_4K - numbers.below(16),
            10..=15 => scratch,
            _ => scratch & !0x3F,
        }
    }

    /// Overwrites something vital.
    fn ruin(&self, numbers: &mut Numbers) {
        let at = self.vital(numbers);
        let value = match numbers.below(4) {
            0 => 0,
            1 => numbers.next(),
            _ => memory::word(at) ^ 1 << numbers.below(64),
        };
        memory::set_word(at, value);
    }

    /// Changes the page-table entry of a page of code or data. The new entry leads to memory that exists, if anywhere,
    /// because any other address usually ends the guest.
    fn disturb(&self, numbers: &mut Numbers) {
        const FLAGS: u64 = 12;
        let at = self.at(page::TABLE) + numbers.below(8) * 8;
        let value = match numbers.below(8) {
            0 => 0,
            1 => self.at(numbers.below(page::ALL)) | ENTRY,
            2 => memory::word(at) ^ 1 << 63,
            _ => memory::word(at) ^ 1 << numbers.below(FLAGS),
        };
        memory::set_word(at, value);
    }

    /// Executes an instruction in some mode, and what follows it, until an event ends it. `ruin` is the number of
    /// vital things that are overwritten before.
    pub fn step(&self, instruction: &Bytes, numbers: &mut Numbers, ruin: u64) {
        self.restore();
        if numbers.once_in(8) {
            self.disturb(numbers);
        }
        for _ in 0..ruin {
            self.ruin(numbers);
        }
        let rip = self.write_code(instruction, numbers);
        let (cs, ss) = MODES[match numbers.below(8) {
            0..=4 => 0,
            other => other as usize - 4,
        }];
        // A trap after one instruction ends endless execution.
        let trap = if numbers.once_in(16) { 0 } else { rflags::TF };
        const FLAGS: u64 = 0x24_4ED5;
        let mut gprs = core::array::from_fn(|_| self.value(numbers));
        if !numbers.once_in(8) {
            // The count of repeated instructions, and the number of an MSR.
            gprs[1] = match numbers.below(4) {
                0 => {
                    numbers.of(&[0xC000_0080, 0x800, 0x170, 0x10, 0x1D0, 0x480]) + numbers.below(32)
                }
                _ => numbers.below(256),
            };
        }
        let entry = Entry {
            gprs,
            rip,
            cs,
            rflags: 2 | trap | numbers.next() & FLAGS,
            rsp: self.value(numbers),
            ss,
            root: self.at(page::ROOT),
            segments: Pointer::new(self.at(page::SEGMENTS), TASK + 16),
            interrupts: Pointer::new(self.at(page::INTERRUPTS), PAGE_4K),
        };
        // SAFETY: the step may do anything to the guest. It returns here with the stack and the callee-saved registers
        // as they were, or not at all.
        unsafe { enter(&entry) }
    }

    /// Writes an instruction where it may cross a page, or end before a page that is not present. UD2 follows.
    fn write_code(&self, instruction: &Bytes, numbers: &mut Numbers) -> u64 {
        let length = instruction.len() as u64;
        let end = CODE_PAGES * PAGE_4K;
        let start = match numbers.below(8) {
            0 => end - 1 - numbers.below(length),
            1 => PAGE_4K - numbers.below(length),
            _ => numbers.below(end - 64),
        };
        let rest = core::iter::repeat([0x0F, 0x0B]).flatten();
        for (at, byte) in (start..end).zip(instruction.iter().copied().chain(rest).take(48)) {
            let word = self.at(page::CODE) + (at & !7);
            let shift = at % 8 * 8;
            let now = memory::word(word) & !(0xFF << shift);
            memory::set_word(word, now | u64::from(byte) << shift);
        }
        CODE_AT + start
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

/// Enables XSAVE and the registers that need it, as far as the TD has them.
fn enable_extended_state() {
    let [supported, ..] = guest_kit::cpu::cpuid(0xD, 0);
    // SAFETY: components that the TD has, including x87 and SSE, which are in use already.
    unsafe {
        asm!("mov {t}, cr4", "or {t}, {bit}", "mov cr4, {t}", "xsetbv", t = out(reg) _, bit = const cr4::OSXSAVE,
            in("ecx") 0, in("eax") supported & 7, in("edx") 0, options(nostack));
    }
}

/// Loads the state of the entry, and executes it. Returns after an event.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(entry: &Entry) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rip + {stack}], rsp",
        "lgdt [rdi + {segments} + {limit}]",
        "lidt [rdi + {interrupts} + {limit}]",
        "mov eax, {task}",
        "ltr ax",
        "mov rax, [rdi + {root}]",
        "mov cr3, rax",
        "push qword ptr [rdi + {ss}]",
        "push qword ptr [rdi + {rsp}]",
        "push qword ptr [rdi + {rflags}]",
        "push qword ptr [rdi + {cs}]",
        "push qword ptr [rdi + {rip}]",
        "mov rax, [rdi]",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "iretq",
        stack = sym STACK,
        segments = const offset_of!(Entry, segments),
        interrupts = const offset_of!(Entry, interrupts),
        limit = const LIMIT,
        task = const TASK,
        root = const offset_of!(Entry, root),
        ss = const offset_of!(Entry, ss),
        rsp = const offset_of!(Entry, rsp),
        rflags = const offset_of!(Entry, rflags),
        cs = const offset_of!(Entry, cs),
        rip = const offset_of!(Entry, rip),
    )
}

/// The handler of every event: returns to the caller of [`enter`], with the registers that matter restored, and
/// without #VE information that would make the next #VE a #DF.
#[unsafe(naked)]
unsafe extern "sysv64" fn back() {
    naked_asm!(
        "cld",
        "mov rax, [rip + {root}]",
        "mov cr3, rax",
        "mov rsp, [rip + {stack}]",
        "mov rax, cr0",
        "cmp rax, [rip + {cr0}]",
        "je 2f",
        "mov rax, [rip + {cr0}]",
        "mov cr0, rax",
        "2: mov rax, cr4",
        "cmp rax, [rip + {cr4}]",
        "je 3f",
        "mov rax, [rip + {cr4}]",
        "mov cr4, rax",
        "3: mov eax, 0x400",
        "mov dr7, rax",
        "mov eax, 0x10",
        "mov ds, eax",
        "mov es, eax",
        "mov ss, eax",
        "xor eax, eax",
        "mov fs, eax",
        "mov gs, eax",
        "mov ecx, 0xC0000101",
        "mov eax, [rip + {gs}]",
        "mov edx, [rip + {gs} + 4]",
        "wrmsr",
        "fninit",
        "ldmxcsr [rip + {mxcsr}]",
        "push 2",
        "popfq",
        // TDG.VP.VEINFO.GET
        "mov eax, 3",
        ".byte 0x66, 0x0F, 0x01, 0xCC",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        root = sym ROOT,
        stack = sym STACK,
        cr0 = sym CR0,
        cr4 = sym CR4,
        gs = sym GS,
        mxcsr = sym MXCSR,
    )
}
