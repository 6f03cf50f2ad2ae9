//! vCPUs that are woken through the firmware's mailbox and return through its reset vector, in the worst state in
//! which a kernel can leave a CPU.
#![expect(
    unsafe_code,
    reason = "changes registers and page tables, and shares memory between vCPUs"
)]

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use seam::abi::GuestLeaf;
use seam::abi::x86::{cr0, cr4};
use td_base::vmcall;

use crate::tables::Wakeup;

/// A number that no vCPU has.
const NOBODY: u32 = u32::MAX;
/// Maximum number of vCPUs.
const VCPUS: usize = 8;
/// Size in bytes of a stack.
pub const STACK_BYTES: usize = 0x4000;

/// A stack for each vCPU.
#[repr(C, align(4096))]
pub struct Stacks([[AtomicU64; STACK_BYTES / 8]; VCPUS]);
/// The stacks.
pub static STACKS: Stacks =
    Stacks([const { [const { AtomicU64::new(0) }; STACK_BYTES / 8] }; VCPUS]);

/// Counts for each vCPU: arrivals, arrivals that were awaited, and returns.
static ARRIVED: [AtomicU32; VCPUS] = [const { AtomicU32::new(0) }; VCPUS];
static AWAITED: [AtomicU32; VCPUS] = [const { AtomicU32::new(0) }; VCPUS];
static SENT_BACK: [AtomicU32; VCPUS] = [const { AtomicU32::new(0) }; VCPUS];
/// The round, which determines the state in which a vCPU leaves.
static ROUND: AtomicU32 = AtomicU32::new(0);
static RESET: AtomicU64 = AtomicU64::new(0);
static MAILBOX: AtomicU64 = AtomicU64::new(0);
/// The vCPU that takes over, and the result: 0 while pending, 1 on success.
static TAKES_OVER: AtomicU32 = AtomicU32::new(NOBODY);
static TOOK_OVER: AtomicU32 = AtomicU32::new(0);

/// A command to a waiting vCPU.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// Go to the wakeup vector.
    Wakeup = 1,
    /// Answer, to show that the vCPU waits.
    Test = 2,
}

/// The firmware's mailbox.
#[derive(Clone, Copy, Debug)]
pub struct Mailbox(u64);

impl Mailbox {
    /// Returns the mailbox that ACPI describes.
    pub fn new(wakeup: &Wakeup) -> Self {
        Self(wakeup.mailbox)
    }

    fn part(self, offset: u64) -> &'static AtomicU32 {
        // SAFETY: the mailbox is a page that the firmware keeps for this, and all access to it is atomic.
        unsafe { AtomicU32::from_ptr((self.0 + offset) as *mut u32) }
    }

    fn send(self, id: u32, command: Command) {
        self.part(4).store(id, Ordering::Relaxed);
        self.part(0).store(command as u32, Ordering::Release);
    }

    fn is_answered(self) -> bool {
        self.part(0).load(Ordering::Acquire) == 0
    }

    /// Gives a command, and waits until it is answered.
    pub fn command(self, id: u32, command: Command) -> Result<(), &'static str> {
        self.send(id, command);
        wait(
            LONG_SECONDS,
            || self.is_answered(),
            "a command has no answer",
        )
    }

    /// Gives a command that no vCPU should answer, and withdraws it. Returns true if it was answered.
    pub fn command_for_a_moment(self, id: u32, command: Command) -> bool {
        self.send(id, command);
        let answered = wait(1, || self.is_answered(), "").is_ok();
        self.part(0).store(0, Ordering::Relaxed);
        answered
    }

    /// Wakes a vCPU.
    pub fn wake(self, id: u32) -> Result<(), &'static str> {
        let vector = arrive as *const () as u64;
        self.part(8).store(vector as u32, Ordering::Relaxed);
        self.part(12)
            .store((vector >> 32) as u32, Ordering::Relaxed);
        self.command(id, Command::Wakeup)
    }
}

/// A limit far above any real duration, for a busy computer.
const LONG_SECONDS: u64 = 120;

fn wait(seconds: u64, is_so: impl Fn() -> bool, why: &'static str) -> Result<(), &'static str> {
    const CRYSTAL_HZ: u64 = 25_000_000;
    let frequency = core::arch::x86_64::__cpuid(0x15);
    let hz = CRYSTAL_HZ * u64::from(frequency.ebx) / u64::from(frequency.eax).max(1);
    // SAFETY: it reads a counter.
    let now = || unsafe { core::arch::x86_64::_rdtsc() };
    let end = now() + seconds * hz;
    while !is_so() {
        if now() >= end {
            return Err(why);
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// Waits until a woken vCPU has arrived.
pub fn wait_for_arrival(id: u32) -> Result<(), &'static str> {
    let id = id as usize;
    let wanted = AWAITED[id].fetch_add(1, Ordering::Relaxed) + 1;
    let is_here = || ARRIVED[id].load(Ordering::Acquire) == wanted;
    wait(LONG_SECONDS, is_here, "a vCPU that was woken does not come")
}

/// Sends an arrived vCPU back.
pub fn send_back(id: u32, round: u32) {
    ROUND.store(round, Ordering::Relaxed);
    SENT_BACK[id as usize].fetch_add(1, Ordering::Release);
}

/// Sends a vCPU an NMI.
pub fn nmi(id: u32) -> Result<(), vmcall::Refused> {
    const ICR: u32 = 0x830;
    const NMI: u64 = 4 << 8;
    vmcall::wrmsr(ICR, u64::from(id) << 32 | NMI)
}

/// Lets vCPU `id`, which has arrived, take over and wake this vCPU, which returns to the firmware meanwhile. This vCPU
/// then continues on its stack as it left it.
pub fn swap(id: u32) -> Result<(), &'static str> {
    TAKES_OVER.store(id, Ordering::Release);
    leave_and_return();
    match TOOK_OVER.load(Ordering::Acquire) {
        1 => Ok(()),
        _ => Err("the first vCPU was woken without having been tested"),
    }
}

/// The work of a woken vCPU `index`.
extern "sysv64" fn work(index: u32) -> ! {
    let index = index as usize;
    let arrived = ARRIVED[index].fetch_add(1, Ordering::Release) + 1;
    while SENT_BACK[index].load(Ordering::Acquire) < arrived {
        if TAKES_OVER.load(Ordering::Acquire) == index as u32 {
            TAKES_OVER.store(NOBODY, Ordering::Relaxed);
            let mailbox = Mailbox(MAILBOX.load(Ordering::Relaxed));
            if mailbox.command(0, Command::Test).is_ok() {
                TOOK_OVER.store(1, Ordering::Release);
            }
            // If vCPU 0 does not come, no one prints the result of the checks.
            let _ = mailbox.wake(0);
        }
        core::hint::spin_loop();
    }
    make_a_mess(ROUND.load(Ordering::Relaxed));
    // SAFETY: nothing of this vCPU is needed any more.
    unsafe { leave() }
}

/// The stack pointer with which vCPU 0 left; 0 at all other times.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// The wakeup vector, entered with the firmware's tables and stack. vCPU 0 continues where it left.
#[unsafe(naked)]
unsafe extern "C" fn arrive() -> ! {
    naked_asm!(
        "mov eax, {vp_info}",
        ".byte 0x66, 0x0F, 0x01, 0xCC",
        "mov edi, r9d",
        "test edi, edi",
        "jz 2f",
        "mov rsp, rdi",
        "inc rsp",
        "shl rsp, {shift}",
        "lea rax, [rip + {stacks}]",
        "add rsp, rax",
        "call {work}",
        "ud2",
        "2: mov rsp, [rip + {left}]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        vp_info = const GuestLeaf::VpInfo.rax(),
        shift = const STACK_BYTES.ilog2(),
        stacks = sym STACKS,
        work = sym work,
        left = sym LEFT,
    )
}

/// Returns vCPU 0 to the firmware. The call returns when the vCPU is woken.
#[unsafe(naked)]
extern "C" fn leave_and_return() {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rip + {left}], rsp",
        "jmp {leave}",
        left = sym LEFT,
        leave = sym leave,
    )
}

/// Goes to the reset vector, with tables that map only this kernel and the vector's page, and with arbitrary
/// registers.
#[unsafe(naked)]
unsafe extern "C" fn leave() -> ! {
    naked_asm!(
        "cli",
        "mov rax, [rip + {reset}]",
        "lea rcx, [rip + {root}]",
        "mov cr3, rcx",
        // Alignment check, nested task, direction.
        "push 0x44402",
        "popfq",
        "mov rcx, -1",
        "mov rdx, rcx",
        "mov rbx, rcx",
        "mov rsp, rcx",
        "mov rbp, rcx",
        "mov r14, rcx",
        "jmp rax",
        reset = sym RESET,
        root = sym NARROW,
    )
}

/// Leaves interrupts pending and in service, priorities raised, the APIC off in every other round, and control bits
/// set that a kernel sets.
fn make_a_mess(round: u32) {
    const SPURIOUS: u32 = 0x80F;
    const TASK_PRIORITY: u32 = 0x808;
    const SELF_IPI: u32 = 0x83F;
    /// DR7: any access to the four bytes at DR0.
    const WATCH_ACCESS: u64 = 0xF_0402;
    let features = core::arch::x86_64::__cpuid_count(7, 0);
    let mut bits = cr4::PGE;
    for (offered, bit) in [
        (features.ecx >> 2 & 1, cr4::UMIP),
        (features.ebx >> 7 & 1, cr4::SMEP),
    ] {
        bits |= u64::from(offered) * bit;
    }
    // SAFETY: interrupts have a handler in the table that is loaded.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const IDT_POINTER, options(nostack));
        wrmsr(SELF_IPI, u64::from(HIGH_VECTOR));
        asm!("sti", "nop", "cli");
        wrmsr(SELF_IPI, u64::from(HIGH_VECTOR - 0x20));
        wrmsr(TASK_PRIORITY, 0xF0);
    }
    if round % 2 == 1 {
        // If the host refuses that, the APIC stays on.
        let _ = vmcall::wrmsr(SPURIOUS, 0xFF);
    }
    // SAFETY: the registers are this vCPU's, which goes away.
    unsafe {
        asm!(
            "mov {t}, cr4", "or {t}, {cr4}", "mov cr4, {t}",
            "mov dr0, {mailbox}",
            "mov dr7, {watch}",
            "mov {t}, cr0", "or {t}, {cr0}", "mov cr0, {t}",
            t = out(reg) _,
            cr4 = in(reg) bits,
            cr0 = in(reg) cr0::AM | cr0::TS,
            mailbox = in(reg) MAILBOX.load(Ordering::Relaxed),
            watch = in(reg) WATCH_ACCESS,
        );
    }
}

/// # Safety
/// The register is the TD's own, and the value does no harm.
unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32);
    }
}

/// An interrupt that is never ended.
const HIGH_VECTOR: u8 = 0xD1;

#[unsafe(naked)]
unsafe extern "C" fn never_ended() {
    naked_asm!("iretq")
}

static IDT: [[AtomicU64; 2]; 256] = [const { [const { AtomicU64::new(0) }; 2] }; 256];

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: *const [[AtomicU64; 2]; 256],
}
// SAFETY: only the CPU follows the pointer.
unsafe impl Sync for TablePointer {}
static IDT_POINTER: TablePointer = TablePointer {
    limit: 256 * 16 - 1,
    base: &raw const IDT,
};

/// Page tables that map the first GiB and the page of the reset vector: the top level, then those for 512 GiB, for two
/// ranges of 1 GiB, and for the 2 MiB around that page.
#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);
impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    fn set(&self, index: u64, entry: u64) {
        self.0[index as usize % 512].store(entry, Ordering::Relaxed);
    }
}
static NARROW: Table = Table::new();
static WIDE: Table = Table::new();
static LOW: Table = Table::new();
static HIGH: Table = Table::new();
static AROUND: Table = Table::new();

/// Fills the tables.
pub fn prepare(wakeup: &Wakeup) {
    const TABLE: u64 = 0x23;
    const PAGE: u64 = 0x63;
    const LARGE: u64 = 0xE3;
    const GLOBAL: u64 = 0x100;
    let reset = wakeup.reset;
    RESET.store(reset, Ordering::Relaxed);
    MAILBOX.store(wakeup.mailbox, Ordering::Relaxed);
    let at = |table: &Table| &raw const *table as u64 | TABLE;
    NARROW.set(0, at(&WIDE));
    WIDE.set(0, at(&LOW));
    WIDE.set(reset >> 30, at(&HIGH));
    HIGH.set(reset >> 21, at(&AROUND));
    AROUND.set(reset >> 12, reset & !0xFFF | PAGE | GLOBAL);
    for index in 0..512 {
        LOW.set(index, index << 21 | LARGE | GLOBAL);
    }
    // A present interrupt gate, for the firmware's code segment.
    let handler = never_ended as *const () as u64;
    let gate = handler & 0xFFFF | (handler & 0xFFFF_0000) << 32 | 0x8E00 << 32;
    let selector = u64::from(td_base::long_mode::CODE) << 16;
    IDT[usize::from(HIGH_VECTOR)][0].store(gate | selector, Ordering::Relaxed);
    IDT[usize::from(HIGH_VECTOR)][1].store(handler >> 32, Ordering::Relaxed);
}
