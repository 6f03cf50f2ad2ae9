//! A guest that makes each request to the host, well-formed and malformed, and executes each instruction that the host
//! serves, once or a few times, and checks the results.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "executes instructions that raise #VE")]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use guest_kit::attempt::{Caught, Outcome, ve_reason};
use guest_kit::check::{Check, Checks, Failure, expect};
use guest_kit::{apic, attempt, cpu, ensure, fail, guest, memory, say, tdcall, vcpu, ve, vmcall};
use seam::abi::ghci::{self, Request};
use seam::abi::metadata::{Field, td};
use seam::abi::x86::msr::APIC_BASE;
use seam::abi::{FeatureParavirtCtls, Gprs, GuestLeaf, PAGE_2M, PAGE_4K, Status, TdCtls};

guest!("calls", main);

/// Ports: the clock's index and data, the ACPI timer, one without a device.
const CMOS: u16 = 0x70;
const TIMER_PORT: u16 = 0x608;
const NO_DEVICE: u16 = 0x80;
/// The I/O APIC, and an address without a device.
const IO_APIC: u64 = 0xFEC0_0000;
const NO_REGISTERS: u64 = 0xFED0_0000;
const MISC_ENABLE: u32 = 0x1A0;
const MTRR_PHYSBASE0: u32 = 0x200;
/// An MSR that no TD has.
const NO_MSR: u32 = 0x3A00;
/// Vectors of the timer, and of events.
const TIMER: u8 = 0x40;
const EVENT: u8 = 0x51;
/// GetQuote: the only version.
const QUOTE_VERSION: u64 = 1;

fn main(checks: &mut Checks) {
    checks.once("vp-info", vp_info);
    checks.once("cpuid", cpuid);
    checks.once("call-info", call_info);
    checks.once("port-io", port_io);
    checks.once("port-io-refused", port_io_refused);
    checks.once("io-reads", io_reads);
    checks.once("io-writes", io_writes);
    checks.once("msr-reads", msr_reads);
    checks.once("msr-writes", msr_writes);
    checks.once("mmio-reads", mmio_reads);
    checks.once("mmio-writes", mmio_writes);
    checks.once("mmio-refused", mmio_refused);
    checks.once("veinfo", veinfo);
    checks.once("hlt", hlt);
    checks.once("hlt-with-an-interrupt-pending", hlt_pending);
    checks.once("hlt-wakes-for-an-nmi", hlt_wakes_for_an_nmi);
    checks.once("map-gpa-refused", map_gpa_refused);
    checks.once("event-notify", event_notify);
    checks.once("quote", quote);
    checks.once("service", service);
    checks.once("unknown-requests", unknown_requests);
    checks.once("hlt-with-interrupts-off-sleeps", hlt_with_interrupts_off);
    checks.once("fewer-ve-by-choice", fewer_ve);
}

fn refused(error: vmcall::Refused) -> Failure {
    Failure::new(format_args!("the host refuses: {error:x?}"))
}

/// Checks that the host refuses these operands with that status.
fn must_refuse(request: Request, operands: [u64; 4], status: u64) -> Check {
    match vmcall::request(request, operands) {
        Ok(_) => fail!("{request:?} {operands:x?} succeeds"),
        Err(refused) => expect("the status", refused.0, status),
    }
}

fn vp_info() -> Check {
    let info = tdcall::vp_info();
    ensure!(
        matches!(info.gpa_width, 48 | 52),
        "addresses of {} bits",
        info.gpa_width
    );
    expect("the number of this vCPU", info.index.into(), 0)?;
    ensure!(info.vcpus >= 1, "{} vCPUs", info.vcpus);
    say!("attributes {}, {} vCPUs", info.attributes, info.vcpus);
    Ok(())
}

fn cpuid() -> Check {
    let [_, ebx, ecx, edx] = cpu::cpuid(0x4000_0000, 0);
    let name = [ebx, ecx, edx].map(u32::to_le_bytes);
    ensure!(
        name.as_flattened() == b"Seamark TDX ",
        "the host calls itself {name:?}"
    );
    // The module answers this leaf: the guest is a TD.
    let [_, ebx, ecx, edx] = cpu::cpuid(0x21, 0);
    let name = [ebx, edx, ecx].map(u32::to_le_bytes);
    ensure!(
        name.as_flattened() == b"IntelTDX    ",
        "the module calls itself {name:?}"
    );
    guests::model::fits(cpu::cpuid(1, 0), cpu::cpuid(0x8000_0001, 0))?;
    let [_, count, _, id] = cpu::cpuid(0xB, 1);
    expect(
        "CPUID B, vCPUs",
        count.into(),
        tdcall::vp_info().vcpus.into(),
    )?;
    expect(
        "CPUID B, the id",
        id.into(),
        apic::id().map_err(refused)?.into(),
    )?;
    // Requested directly, as OVMF does.
    let direct = vmcall::cpuid(0xB, 1).map_err(refused)?;
    ensure!(
        direct[1] == count && direct[3] == id,
        "asked directly: {direct:x?}"
    );
    must_refuse(Request::Cpuid, [1 << 32, 0, 0, 0], ghci::INVALID_OPERAND)
}

fn call_info() -> Check {
    let base = vmcall::request(Request::GetTdVmCallInfo, [0, 9, 9, 9]).map_err(refused)?;
    let answers = [base.r11, base.r12, base.r13, base.r14];
    ensure!(answers == [0; 4], "leaf 0 says {answers:x?}");
    let optional = vmcall::request(Request::GetTdVmCallInfo, [1, 9, 9, 9]).map_err(refused)?;
    let answers = [optional.r11, optional.r12, optional.r13, optional.r14];
    ensure!(answers == [0; 4], "leaf 1 says {answers:x?}");
    must_refuse(
        Request::GetTdVmCallInfo,
        [2, 0, 0, 0],
        ghci::INVALID_OPERAND,
    )
}

/// Checks IN and OUT as instructions, which raise #VE.
fn port_io() -> Check {
    let (byte, word, long): (u8, u16, u32);
    // SAFETY: the port has no device.
    unsafe {
        asm!("in al, dx", in("dx") NO_DEVICE, out("al") byte, options(nomem, nostack));
        asm!("in ax, dx", in("dx") NO_DEVICE, out("ax") word, options(nomem, nostack));
        asm!("in eax, dx", in("dx") NO_DEVICE, out("eax") long, options(nomem, nostack));
        asm!("out dx, al", in("dx") NO_DEVICE, in("al") 1u8, options(nomem, nostack));
        asm!("out dx, eax", in("dx") NO_DEVICE, in("eax") 1u32, options(nomem, nostack));
    }
    expect("a byte of nothing", byte.into(), 0xFF)?;
    expect("a word of nothing", word.into(), 0xFFFF)?;
    expect("a double word of nothing", long.into(), 0xFFFF_FFFF)
}

fn port_io_refused() -> Check {
    for operands in [
        [3, 0, NO_DEVICE.into(), 0],
        [8, 0, NO_DEVICE.into(), 0],
        [0, 1, NO_DEVICE.into(), 0],
        [1, 2, NO_DEVICE.into(), 0],
        [1, 0, 0x1_0000, 0],
        [4, 0, 0xFFFE, 0],
        [u64::MAX; 4],
    ] {
        must_refuse(Request::Io, operands, ghci::INVALID_OPERAND)?;
    }
    Ok(())
}

/// Checks that the timer runs, and that reads have the requested width.
fn io_reads() -> Check {
    let first = vmcall::io_in(TIMER_PORT, 4).map_err(refused)?;
    ensure!(first < 1 << 24, "the timer has {first:#x}");
    let until = cpu::tsc() + 2 * cpu::ticks_per_ms();
    cpu::wait_until(|| cpu::tsc() >= until);
    let second = vmcall::io_in(TIMER_PORT, 4).map_err(refused)?;
    ensure!(first != second, "the timer stands at {first:#x}");
    let low = vmcall::io_in(TIMER_PORT, 1).map_err(refused)?;
    ensure!(low <= 0xFF, "a byte is {low:#x}");
    let low = vmcall::io_in(TIMER_PORT, 2).map_err(refused)?;
    ensure!(low <= 0xFFFF, "a word is {low:#x}");
    Ok(())
}

/// Checks that the clock's memory keeps what is written.
fn io_writes() -> Check {
    for value in [0x5A, 0xA5] {
        vmcall::io_out(CMOS, 1, 0x40).map_err(refused)?;
        vmcall::io_out(CMOS + 1, 1, value).map_err(refused)?;
        let index = vmcall::io_in(CMOS, 1).map_err(refused)?;
        expect("the index", index.into(), 0x40)?;
        let found = vmcall::io_in(CMOS + 1, 1).map_err(refused)?;
        expect("the byte", found.into(), value.into())?;
    }
    Ok(())
}

fn msr_reads() -> Check {
    // RDMSR raises #VE, and its handler asks the host.
    expect("IA32_APIC_BASE", cpu::rdmsr(APIC_BASE), 0xFEE0_0D00)?;
    let direct = vmcall::rdmsr(APIC_BASE).map_err(refused)?;
    expect("IA32_APIC_BASE asked directly", direct, 0xFEE0_0D00)?;
    for msr in [NO_MSR.into(), 1 << 32 | u64::from(APIC_BASE), u64::MAX] {
        must_refuse(Request::Rdmsr, [msr, 0, 0, 0], ghci::INVALID_OPERAND)?;
    }
    Ok(())
}

fn msr_writes() -> Check {
    for value in [0x1234_5000_0006, 0] {
        // SAFETY: a TD's memory is write-back whatever these registers say.
        unsafe { cpu::wrmsr(MTRR_PHYSBASE0, value) };
        expect("a range's base", cpu::rdmsr(MTRR_PHYSBASE0), value)?;
    }
    // Clearing bits that no software can change is refused: the module shows them set.
    let wrong = (MISC_ENABLE, 0);
    for (msr, value) in [(APIC_BASE, 0), (NO_MSR, 0), wrong, (0x830, 1 << 11)] {
        must_refuse(
            Request::Wrmsr,
            [msr.into(), value, 0, 0],
            ghci::INVALID_OPERAND,
        )?;
    }
    Ok(())
}

fn io_apic() -> u64 {
    IO_APIC | memory::shared_bit()
}

fn mmio_reads() -> Check {
    vmcall::mmio_store(io_apic(), 4, 1).map_err(refused)?;
    let version = vmcall::mmio_load(io_apic() + 0x10, 4).map_err(refused)?;
    expect("the I/O APIC's version", version, 0x17_0011)?;
    for (bytes, value) in [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF), (8, u64::MAX)] {
        let at = NO_REGISTERS | memory::shared_bit();
        let found = vmcall::mmio_load(at, bytes).map_err(refused)?;
        expect("nothing", found, value)?;
    }
    Ok(())
}

fn mmio_writes() -> Check {
    // The redirection entry of pin 2, masked.
    for value in [0x1_0031, 0x1_0000] {
        vmcall::mmio_store(io_apic(), 4, 0x14).map_err(refused)?;
        vmcall::mmio_store(io_apic() + 0x10, 4, value).map_err(refused)?;
        let found = vmcall::mmio_load(io_apic() + 0x10, 4).map_err(refused)?;
        expect("a redirection entry", found, value)?;
    }
    vmcall::mmio_store(NO_REGISTERS | memory::shared_bit(), 8, 7).map_err(refused)
}

fn mmio_refused() -> Check {
    let at = io_apic();
    for operands in [
        [4, 0, IO_APIC, 0],
        [3, 0, at, 0],
        [16, 0, at, 0],
        [4, 2, at, 0],
        [4, 0, at + 0xFFE, 0],
    ] {
        must_refuse(Request::Mmio, operands, ghci::INVALID_OPERAND)?;
    }
    Ok(())
}

/// Checks that #VE's information is available once, and describes the event.
fn veinfo() -> Check {
    let Err(status) = tdcall::veinfo_get() else {
        return fail!("there is information without a #VE");
    };
    ensure!(
        status.code() == Status::NO_VALID_VE_INFO,
        "without a #VE: {status:?}"
    );
    let outcome: Outcome;
    // SAFETY: CPUID changes the registers that are named.
    unsafe {
        outcome =
            attempt!("cpuid", inout("eax") 0x4000_0000 => _, inout("ecx") 0 => _, out("edx") _);
    }
    match outcome {
        Some(Caught::Ve(info)) => {
            expect("the reason", info.reason.into(), ve::reason::CPUID.into())?;
            expect("the length", info.length.into(), 2)?;
        }
        other => return fail!("CPUID: {other:?}"),
    }
    let outcome: Outcome;
    // SAFETY: the port has no device.
    unsafe {
        outcome = attempt!("in al, dx", in("dx") NO_DEVICE, out("al") _, options(nomem, nostack));
    }
    match outcome {
        Some(Caught::Ve(info)) => {
            expect("the reason", info.reason.into(), ve::reason::IO.into())?;
            // A byte, in, the port from DX.
            let expected = u64::from(NO_DEVICE) << 16 | 1 << 3;
            expect("the qualification", info.qualification, expected)?;
        }
        other => return fail!("IN: {other:?}"),
    }
    // SAFETY: the exception is caught before anything happens.
    let outcome = unsafe { attempt!("wbinvd", options(nostack)) };
    expect(
        "the reason of WBINVD",
        ve_reason(outcome).unwrap_or(0).into(),
        ve::reason::WBINVD.into(),
    )
}

/// Checks that the timer ends the halt.
fn hlt() -> Check {
    apic::enable().map_err(refused)?;
    for _ in 0..3 {
        let before = vcpu::current().interrupts(TIMER);
        let deadline = cpu::tsc() + 5 * cpu::ticks_per_ms();
        apic::timer(TIMER, deadline).map_err(refused)?;
        let slept = vcpu::sleep_until(|| vcpu::current().interrupts(TIMER) != before);
        cpu::disable_interrupts();
        slept.map_err(refused)?;
        ensure!(cpu::tsc() >= deadline, "woken early");
    }
    must_refuse(Request::Hlt, [2, 0, 0, 0], ghci::INVALID_OPERAND)
}

/// Checks that the vCPU does not halt while the APIC has a pending interrupt, even if interrupts are disabled: nothing
/// would wake it.
fn hlt_pending() -> Check {
    for _ in 0..100 {
        let before = vcpu::current().interrupts(TIMER);
        apic::self_ipi(TIMER);
        vmcall::hlt(false).map_err(refused)?;
        cpu::enable_interrupts();
        cpu::wait_until(|| vcpu::current().interrupts(TIMER) == before + 1);
        cpu::disable_interrupts();
    }
    Ok(())
}

/// Checks that a vCPU with interrupts off sleeps until an NMI, which it sent itself.
fn hlt_wakes_for_an_nmi() -> Check {
    let before = vcpu::current().nmis();
    let me = apic::id().map_err(refused)?;
    apic::nmi(me).map_err(refused)?;
    // The NMI may have come already.
    if vcpu::current().nmis() == before {
        vmcall::hlt(true).map_err(refused)?;
    }
    cpu::wait_until(|| vcpu::current().nmis() != before);
    expect("NMIs", vcpu::current().nmis().into(), (before + 1).into())
}

/// Checks that neither the timer nor an interrupt wakes a vCPU with interrupts off: another vCPU sees it asleep long
/// after both, and wakes it by an NMI. Both interrupts have come when it enables interrupts.
/// A TD that reduces #VE has MTRRs and machine checks only if it asks for them. Before that, and with a module that
/// cannot reduce #VE, it has them.
fn fewer_ve() -> Check {
    /// EDX of CPUID leaf 1: MCE, MTRR, MCA.
    const FEATURES: u32 = 1 << 7 | 1 << 12 | 1 << 14;
    const MTRR_CAP: u32 = 0xFE;
    const WITH_REDUCTION: TdCtls = TdCtls::REDUCE_VE
        .union(TdCtls::ENUM_TOPOLOGY)
        .union(TdCtls::VIRT_CPUID2);
    let features = || cpu::cpuid(1, 0)[3] & FEATURES;
    let read = || guests::tries::rdmsr(MTRR_CAP).err();
    let controls = tdcall::vm_rd(td::TD_CTLS.id.0).unwrap_or(0);
    expect("features", features().into(), FEATURES.into())?;
    asks("IA32_MTRRCAP", read())?;
    let reduce = TdCtls::REDUCE_VE.bits();
    if !vm_wr(td::TD_CTLS, reduce, reduce) {
        say!("this module does not reduce #VE");
        return Ok(());
    }
    let reduced = (features(), read());
    let chosen = (FeatureParavirtCtls::MCA | FeatureParavirtCtls::MTRR).bits();
    let accepts_choice = vm_wr(td::FEATURE_PARAVIRT_CTLS, chosen, chosen);
    let with_choice = (features(), read());
    let answer = vmcall::rdmsr(MTRR_CAP);
    // The other checks find the TD as it was.
    let is_restored = vm_wr(td::FEATURE_PARAVIRT_CTLS, 0, chosen)
        && vm_wr(td::TD_CTLS, controls, WITH_REDUCTION.bits());
    expect("features with #VE reduction", reduced.0.into(), 0)?;
    ensure!(
        attempt::is_same(reduced.1, attempt::GP),
        "IA32_MTRRCAP with #VE reduction: {:?}",
        reduced.1
    );
    ensure!(accepts_choice, "FEATURE_PARAVIRT_CTLS is refused");
    expect("chosen features", with_choice.0.into(), FEATURES.into())?;
    asks("IA32_MTRRCAP by choice", with_choice.1)?;
    answer.map_err(refused)?;
    ensure!(is_restored, "TD_CTLS is not restored");
    expect("features again", features().into(), FEATURES.into())
}

/// Checks that an attempt to read an MSR raised #VE, for which a kernel asks the host.
fn asks(what: &str, outcome: Outcome) -> Check {
    ensure!(
        ve_reason(outcome) == Some(ve::reason::RDMSR),
        "{what}: {outcome:?}"
    );
    Ok(())
}

/// Executes TDG.VM.WR. Returns whether the module accepted it.
fn vm_wr(field: Field, value: u64, mask: u64) -> bool {
    let (status, _) = guests::tries::leaf(GuestLeaf::VmWr, [0, field.id.0, value, mask]);
    !status.is_error()
}

fn hlt_with_interrupts_off() -> Check {
    /// Time for which the vCPU must stay asleep.
    const ASLEEP_MS: u64 = 200;
    ensure!(vcpu::count() > SLEEPER, "a TD with one vCPU");
    vcpu::start_all();
    vcpu::give(SLEEPER, sleep_with_interrupts_off);
    let step = || SLEEP.load(Ordering::Acquire);
    cpu::wait_until(|| step() != AWAKE);
    apic::ipi(SLEEPER, EVENT).map_err(refused)?;
    let until = cpu::tsc() + ASLEEP_MS * cpu::ticks_per_ms();
    cpu::wait_until(|| cpu::tsc() >= until || step() == WOKEN);
    let is_asleep = step() == ASLEEP;
    // An NMI that comes before the vCPU halts does not wake it.
    while step() == ASLEEP {
        apic::nmi(SLEEPER).map_err(refused)?;
        let until = cpu::tsc() + cpu::ticks_per_ms();
        cpu::wait_until(|| cpu::tsc() >= until || step() == WOKEN);
    }
    vcpu::finish(SLEEPER);
    ensure!(is_asleep, "it woke up without an NMI");
    expect("the last step", step().into(), SERVED.into())
}

/// The vCPU that sleeps. An APIC id is a vCPU's number.
const SLEEPER: u32 = 1;
/// The sleeper's progress.
static SLEEP: AtomicU32 = AtomicU32::new(AWAKE);
const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const WOKEN: u32 = 2;
const SERVED: u32 = 3;

fn sleep_with_interrupts_off() {
    let me = vcpu::current();
    let came = || (me.interrupts(TIMER), me.interrupts(EVENT));
    let (timers, events) = came();
    cpu::disable_interrupts();
    let deadline = cpu::tsc() + 5 * cpu::ticks_per_ms();
    let is_set = apic::enable().and_then(|()| apic::timer(TIMER, deadline));
    SLEEP.store(ASLEEP, Ordering::Release);
    let halted = is_set.and_then(|()| vmcall::hlt(true));
    SLEEP.store(WOKEN, Ordering::Release);
    cpu::enable_interrupts();
    cpu::wait_until(|| came() == (timers + 1, events + 1));
    cpu::disable_interrupts();
    if halted.is_ok() {
        SLEEP.store(SERVED, Ordering::Release);
    }
}

fn map_gpa_refused() -> Check {
    let shared = memory::shared_bit();
    for (gpa, bytes, status) in [
        (shared, 0, ghci::INVALID_OPERAND),
        (shared | 0x800, PAGE_4K, ghci::ALIGN_ERROR),
        (shared, 0x800, ghci::ALIGN_ERROR),
        (shared << 1, PAGE_4K, ghci::INVALID_OPERAND),
        (PAGE_4K, u64::MAX - PAGE_4K + 1, ghci::INVALID_OPERAND),
        (PAGE_4K, shared, ghci::INVALID_OPERAND),
    ] {
        must_refuse(Request::MapGpa, [gpa, bytes, 0, 0], status)?;
    }
    Ok(())
}

/// Checks that event notification is unsupported: no event of the host's uses this vector, and GetTdVmCallInfo agrees.
fn event_notify() -> Check {
    let request = Request::SetupEventNotifyInterrupt;
    must_refuse(request, [EVENT.into(), 0, 0, 0], ghci::SUBFUNC_UNSUPPORTED)
}

/// Checks that there is no quoting service. The call itself must fail, because after a success a guest reads its
/// buffer as a quote.
fn quote() -> Check {
    let page = memory::take(PAGE_2M, PAGE_2M);
    let (gpa, alias) = (page | memory::shared_bit(), memory::shared_alias(page));
    vmcall::map_gpa(gpa, 2 * PAGE_4K).map_err(refused)?;
    let asked = [QUOTE_VERSION, 0, 7 << 32 | 1024];
    let words = || (0..3).map(|word| alias + 8 * word);
    for (at, value) in words().zip(asked) {
        memory::set_word(at, value);
    }
    for (operands, status) in [
        ([gpa, PAGE_4K, 0, 0], ghci::SUBFUNC_UNSUPPORTED),
        ([gpa | 8, PAGE_4K, 0, 0], ghci::ALIGN_ERROR),
        ([gpa, 0, 0, 0], ghci::INVALID_OPERAND),
        ([page, PAGE_4K, 0, 0], ghci::INVALID_OPERAND),
    ] {
        must_refuse(Request::GetQuote, operands, status)?;
    }
    for (at, value) in words().zip(asked) {
        expect("a word of the buffer", memory::word(at), value)?;
    }
    Ok(())
}

fn service() -> Check {
    let page = memory::take(PAGE_2M, PAGE_2M);
    let command = page | memory::shared_bit();
    let response = command + PAGE_4K;
    must_refuse(
        Request::Service,
        [command, response, 0, 0],
        ghci::INVALID_OPERAND,
    )?;
    vmcall::map_gpa(command, 2 * PAGE_4K).map_err(refused)?;
    must_refuse(
        Request::Service,
        [command, response, 7, 0],
        ghci::INVALID_OPERAND,
    )?;
    must_refuse(
        Request::Service,
        [command, response | 8, 0, 0],
        ghci::ALIGN_ERROR,
    )?;
    vmcall::request(Request::Service, [command, response, 0, 0]).map_err(refused)?;
    // Length 24, and the status of a service that is not offered.
    let answer = memory::word(memory::shared_alias(page + PAGE_4K + 16));
    expect("the service's answer", answer, 0xFFFF_FFFE << 32 | 24)
}

fn unknown_requests() -> Check {
    for function in [0, 1, 0x41, 0x1_0006, 0x1_FFFF, u64::MAX] {
        let mut regs = Gprs {
            rcx: vmcall::REGISTERS,
            r11: function,
            ..Gprs::default()
        };
        vmcall::raw(&mut regs);
        expect("the status", regs.r10, ghci::SUBFUNC_UNSUPPORTED)?;
    }
    Ok(())
}
