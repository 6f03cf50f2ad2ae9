//! The dive of the first processor beneath the firmware that it was executing.
#![expect(unsafe_code, reason = "captures and replaces the CPU's state")]

use alloc::vec::Vec;
use core::arch::{asm, naked_asm};

use seam::abi::x86::rflags;
use spin::Once;
use stub_module::Module;
use stub_module::hooks::Hooks;
use stub_rom::apic::Apic;
use stub_rom::lost::Limits;
use stub_rom::options::Options;
use stub_rom::personality::clock::Clock;
use stub_rom::personality::topology::Shifts;
use stub_rom::personality::{Facts, is_native};

use super::hardware::Hardware;
use super::iommu::{self, Iommu};
use super::lp::{self, Lp};
use super::npt::Npt;
use super::shared::{Phase, Shared};
use super::vmcb::{self, Segment};
use super::world::World;
use super::{anchor, panic, run, smp};
use crate::cpu::TableRegister;
use crate::{cpu, memory, report};

/// The information that the program collected from firmware.
pub struct Inventory {
    pub options: Options,
    /// Base and size of the SEAM range in bytes.
    pub seamrr: (u64, u64),
    /// A reserved page below 640 KiB.
    pub trampoline: u64,
    /// The APIC ids of all processors. The first is the executing processor's.
    pub apic_ids: Vec<u32>,
    /// Base and size of each range of RAM in bytes.
    pub ram: Vec<(u64, u64)>,
    /// The measured frequency of the time-stamp counter.
    pub tsc_hz: u64,
    /// The clocks as CPUID reports them.
    pub clock: Clock,
}

/// The entry point of the relocated program.
pub type Begin = extern "C" fn(&mut Surface) -> !;

/// The state in which the executing software resumes, as a guest, after the dive.
#[repr(C)]
pub struct Surface {
    rsp: u64,
    rip: u64,
    inventory: *mut Inventory,
}

/// Calls the monitor at `begin`, and returns as its guest.
///
/// # Safety
/// `begin` is [`begin`] in the relocated copy of this program.
pub unsafe fn dive(begin: Begin, inventory: Inventory) {
    let mut inventory = core::mem::ManuallyDrop::new(inventory);
    let mut surface = Surface {
        rsp: 0,
        rip: 0,
        inventory: &raw mut *inventory,
    };
    // SAFETY: by the contract. The copy moves the inventory out; it is never used or dropped here again.
    unsafe { plunge(begin, &mut surface) };
}

#[unsafe(naked)]
unsafe extern "C" fn plunge(begin: Begin, surface: &mut Surface) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "pushfq",
        "cli",
        "mov [rsi], rsp",
        "lea rax, [rip + 2f]",
        "mov [rsi + 8], rax",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "2:",
        "popfq",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// The machine. Each processor holds a reference to it, and nothing else looks it up.
static WORLD: Once<World> = Once::new();

/// Builds the world, makes the caller the guest of this processor, and enters it.
pub extern "C" fn begin(surface: &mut Surface) -> ! {
    // SAFETY: `dive` made it, and leaves it to this function.
    let inventory = unsafe { surface.inventory.read() };
    anchor::declare(inventory.seamrr);
    panic::install(lp::describe);
    let world = WORLD.call_once(|| build(inventory));
    // The first one's memory is allocated last, next to what this processor uses now.
    let mut others: Vec<_> = (world.lps.iter().skip(1).rev())
        .map(|shared| new_lp(shared, world))
        .collect();
    others.reverse();
    let shared = &world.lps[0];
    let lp = new_lp(shared, world);
    smp::prepare(world, others, run::arrive);
    report::line(
        "start",
        format_args!(
            r#""seamrr":"{:#x}","size":{},"heap_free":{},"cpus":{},"tdx":{},"hkids":{},"tsc_hz":{}"#,
            world.seamrr.0,
            world.seamrr.1,
            crate::HEAP.lock().free(),
            world.lps.len(),
            world.options.tdx,
            world.options.hkids,
            world.clock.tsc_hz
        ),
    );
    // SAFETY: this processor still has firmware's state, with interrupts off. It is captured, then replaced by the
    // monitor's. The monitor's page tables map everything that firmware's do: both identity-map memory.
    unsafe {
        capture(lp, surface);
        load_paging(world.cr3);
        lp.take_over();
        lp.apic.adopt(&mut Hardware);
        *shared.station.lock() = lp.apic.station();
        shared.set_phase(Phase::Running);
        run::forever(lp)
    }
}

/// Creates a processor. The first one is the processor that executes this.
fn new_lp(shared: &Shared, world: &'static World) -> &'static mut Lp {
    let locked = world.options.tdx;
    let apic = Apic::new(shared.apic_id, shared.number == 0, locked, world.tsc_hz);
    Lp::new(shared.number, apic, world)
}

fn build(inventory: Inventory) -> World {
    let cr3 = memory::identity_map();
    let apic = (stub_rom::apic::BASE, memory::PAGE as u64);
    let ram_ends = inventory.ram.iter().map(|(base, size)| base + size);
    let end_of_ram = ram_ends.max().unwrap_or(0);
    let iommu = Iommu::find();
    let registers = iommu
        .is_some()
        .then_some((iommu::BASE, memory::PAGE as u64));
    let hidden: Vec<_> = [inventory.seamrr, apic]
        .into_iter()
        .chain(registers)
        .collect();
    let npt = Npt::over(cr3, end_of_ram, &hidden, inventory.options.tdx);
    let largest = inventory.ram.iter().max_by_key(|(_, size)| *size);
    let shifts = Shifts::from_leaf_b(cpu::cpuid(0xB, 0), cpu::cpuid(0xB, 1));
    let mut world = World {
        facts: Facts {
            tdx: inventory.options.tdx,
            hkids: inventory.options.hkids,
            seamrr: inventory.seamrr,
            mtrrcap: cpu::rdmsr(0xFE),
        },
        lps: (0..)
            .zip(&inventory.apic_ids)
            .map(|(number, &apic_id)| {
                let station = Apic::new(apic_id, false, inventory.options.tdx, 1).station();
                Shared::new(number, apic_id, shifts.package_of(apic_id), station)
            })
            .collect(),
        lp_to_package: (inventory.apic_ids.iter())
            .map(|&apic_id| shifts.package_of(apic_id))
            .collect(),
        cmrs: cmrs(&inventory.ram, inventory.seamrr),
        largest: largest.copied().unwrap_or_default(),
        options: inventory.options,
        seamrr: inventory.seamrr,
        trampoline: inventory.trampoline,
        ram: inventory.ram,
        tsc_hz: inventory.tsc_hz,
        clock: inventory.clock,
        shifts,
        cr3,
        limits: Limits::draw(random()),
        npt,
        iommu,
        msr_bitmap: vmcb::msr_bitmap(is_native, is_native),
        report_key: draw_report_key(),
        nothing: memory::pages(1).address(),
        module: None,
    };
    if world.options.tdx {
        // The option was checked when it was read.
        let hooks = Hooks::parse(&world.options.hooks).unwrap_or_default();
        world.module = Some(Module::with_hooks(
            &world.platform(),
            world.options.module,
            hooks,
        ));
    }
    world
}

/// Returns the convertible memory: RAM above 1 MiB, without the SEAM range.
fn cmrs(ram: &[(u64, u64)], seamrr: (u64, u64)) -> Vec<(u64, u64)> {
    const FIRST: u64 = 1 << 20;
    let (hole, hole_end) = (seamrr.0, seamrr.0 + seamrr.1);
    ram.iter()
        .map(|&(base, size)| (base.max(FIRST), base + size))
        .flat_map(|(base, end)| [(base, end.min(hole)), (base.max(hole_end), end)])
        .filter(|(base, end)| base < end)
        .map(|(base, end)| (base, end - base))
        .collect()
}

/// Draws a key for TDREPORTs, which is valid until the next boot.
fn draw_report_key() -> [u8; 32] {
    let mut key = [0; 32];
    for chunk in key.chunks_mut(8) {
        chunk.copy_from_slice(&random().to_le_bytes());
    }
    key
}

/// Returns a random number, or the time-stamp counter if RDRAND fails.
fn random() -> u64 {
    (0..100)
        .find_map(|_| cpu::rdrand())
        .unwrap_or_else(cpu::rdtsc)
}

/// Saves the state of the executing processor as the guest's.
///
/// # Safety
/// Interrupts are off, and `surface` holds the state in which the software resumes.
unsafe fn capture(lp: &mut Lp, surface: &Surface) {
    let (mut gdt, mut idt) = (TableRegister::default(), TableRegister::default());
    let (cs, ss, ds, es): (u16, u16, u16, u16);
    let (cr0, cr2, cr3, cr4): (u64, u64, u64, u64);
    let (dr6, dr7): (u64, u64);
    // SAFETY: stores registers; VMSAVE needs SVM, which is switched on first.
    unsafe {
        cpu::wrmsr(cpu::MSR_EFER, cpu::rdmsr(cpu::MSR_EFER) | cpu::EFER_SVME);
        asm!("sgdt [{}]", in(reg) &mut gdt);
        asm!("sidt [{}]", in(reg) &mut idt);
        asm!("mov {:x}, cs", "mov {:x}, ss", "mov {:x}, ds", "mov {:x}, es",
            out(reg) cs, out(reg) ss, out(reg) ds, out(reg) es);
        asm!("mov {}, cr0", "mov {}, cr2", "mov {}, cr3", "mov {}, cr4",
            out(reg) cr0, out(reg) cr2, out(reg) cr3, out(reg) cr4);
        asm!("mov {}, dr6", "mov {}, dr7", out(reg) dr6, out(reg) dr7);
        asm!("vmsave rax", in("rax") &raw mut *lp.vmcb);
    }
    let descriptor = |selector: u16| {
        let at = gdt.base + u64::from(selector & !7);
        // SAFETY: firmware's GDT, which its segment registers were loaded from.
        segment(selector, unsafe { (at as *const u64).read_unaligned() })
    };
    let s = &mut lp.vmcb.save;
    (s.cs, s.ss, s.ds, s.es) = (
        descriptor(cs),
        descriptor(ss),
        descriptor(ds),
        descriptor(es),
    );
    (s.gdtr.base, s.gdtr.limit) = (gdt.base, u32::from(gdt.limit));
    (s.idtr.base, s.idtr.limit) = (idt.base, u32::from(idt.limit));
    (s.cr0, s.cr2, s.cr3, s.cr4) = (cr0, cr2, cr3, cr4);
    (s.dr6, s.dr7) = (dr6, dr7);
    s.efer = cpu::rdmsr(cpu::MSR_EFER);
    s.rflags = rflags::RESERVED;
    (s.rip, s.rsp) = (surface.rip, surface.rsp);
}

fn segment(selector: u16, descriptor: u64) -> Segment {
    const GRANULARITY: u64 = 1 << 55;
    let limit = (descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000) as u32;
    Segment {
        selector,
        attributes: (descriptor >> 40 & 0xFF | descriptor >> 44 & 0xF00) as u16,
        limit: if descriptor & GRANULARITY != 0 {
            limit << 12 | 0xFFF
        } else {
            limit
        },
        base: descriptor >> 16 & 0xFF_FFFF | descriptor >> 32 & 0xFF00_0000,
    }
}

/// Switches to the monitor's page tables.
///
/// # Safety
/// `cr3` is an identity map of all memory in use.
unsafe fn load_paging(cr3: u64) {
    // SAFETY: by the contract; paging and PAE stay on.
    unsafe { asm!("mov cr3, {}", "mov cr4, {}", in(reg) cr3, in(reg) cpu::CR4, options(nostack)) };
}
