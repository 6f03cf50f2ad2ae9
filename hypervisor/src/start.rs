//! The machine's bring-up, in order, from the firmware's call to the console's loop.
#![expect(
    unsafe_code,
    reason = "the boot information arrives as a pointer, and the power-management timer is a port"
)]

use alloc::{format, string::String, vec::Vec};
use core::{convert::Infallible, fmt::Write};

use boot::{
    BootInfo,
    efi::{self, Found},
};
use config::{OnCrash, OnNmi};
use console::{
    Console,
    host::{PowerAction, event::EventKind},
};
use host::td::registry::Tds;
use seam::{address::KeyIdPosition, platform::Registers};
use x86_64::instructions::port::Port;

use crate::{
    button,
    cpu::{self, apic, check, fatal, ghes, model, nmi, start, timer, vector, vmx},
    crash,
    events::{self, Channel},
    firmware::{self, Firmware, fadt::Fadt, madt::Madt},
    heap::Heap,
    io_apic, iommu, logging,
    machine::{self, Machine},
    memory,
    metal::{
        ending::{Ending, Next},
        errors,
        platform::METAL,
        power, tds, tdx,
    },
    msr::ThisCpu,
    passthrough, password, pci, rtc, serial, time, watchdog,
};

/// Size of the heap in bytes.
const HEAP_BYTES: usize = 16 << 20;

static HEAP: spin::Once<&'static Heap> = spin::Once::new();

/// Starts the hypervisor while the firmware runs.
///
/// # Errors
/// The firmware lacks something that the hypervisor needs. The problem was reported, and the firmware still runs.
pub fn from_firmware(heap: &'static Heap) -> Result<Infallible, efi::Error> {
    let tsc = time::tsc();
    time::start_at(tsc);
    sync::irq::set_switch(cpu::INTERRUPT_SWITCH);
    logging::init();
    if let Some(hz) = time::hz_from_cpuid(ThisCpu.cpuid(0x15, 0), ThisCpu.cpuid(0x16, 0)) {
        time::set_hz(hz);
    }
    HEAP.call_once(|| heap);
    let started = efi::heap(HEAP_BYTES)
        .ok_or(efi::Error::NoMemory("the heap"))
        .and_then(|memory| {
            heap.init(memory);
            efi::boot(heap.extent(), announce_console, with_own_tables)
        });
    started.inspect_err(|e| {
        log::error!("{e}; back to the firmware");
        let _ = writeln!(efi::Screen, "Seamark: {e}; back to the firmware");
    })
}

/// Chooses the console, and says on the firmware's console which it will be.
fn announce_console(found: &Found<'_>) {
    let spcr = found
        .rsdp
        .and_then(|rsdp| firmware::console(rsdp, found.ram));
    let version = env!("CARGO_PKG_VERSION");
    let _ = match serial::choose(spcr, found.config.host.console) {
        Some(port) => writeln!(efi::Screen, "\nSeamark {version}: the console is {port}"),
        None => writeln!(
            efi::Screen,
            "\nSeamark {version} has no console: no serial port answers; name one with host.console in {}",
            config::FILE_NAME
        ),
    };
}

/// Runs the hypervisor on its own stack and page tables, without the firmware.
extern "sysv64" fn with_own_tables(info: *mut BootInfo) -> ! {
    // SAFETY: the boot path leaked it for the hypervisor alone.
    let info: &'static BootInfo = unsafe { &*info };
    crash::record::know_image(info.image, info.text);
    crash::stores::prepare_memory(info);
    fatal::on_fatal(crash::crash);
    if info.config.host.on_crash == OnCrash::Reboot {
        crash::then(power::reset_now);
    }
    serial::open();
    let (version, tsc) = (env!("CARGO_PKG_VERSION"), time::start());
    serial::line(format_args!("\nseamark {version} at TSC {tsc}"));
    let mut problems = memory::init(info);
    serial::open();
    let bootstrap = start::adopt_bootstrap().expect("memory for the first CPU's stacks");

    log::set_max_level(info.config.host.log_level.into());
    log::info!("loaded from {}, at {:#x}", info.source, info.image.0);
    log::info!("CPU 0: {}", model::here());
    if let Some(port) = serial::chosen() {
        log::info!("the console is {port}");
    }
    for problem in &info.config_problems {
        log::error!("{problem}");
    }
    let mut firmware = firmware::read(info.rsdp);
    problems.append(&mut firmware.problems);
    problems.extend(power::init(&firmware).map(String::from));
    problems.extend(ghes::init(&firmware.hest.sources));
    check::prepare(firmware.hest.firmware_first, key_id_bits());
    nmi::set_policy(info.config.host.nmi == OnNmi::Halt);
    problems.extend(calibrate(&firmware.fadt));
    problems.extend(start::know(bootstrap, &firmware.madt.processors));
    problems.extend(stop_devices(&firmware));
    problems.extend(iommu::start(firmware.dmar.as_ref()));
    problems.extend(start_cpus(info, &firmware, bootstrap));
    problems.extend(rtc::init().map(String::from));
    problems.extend(crash::stores::prepare(info, firmware.erst.take()));
    problems.extend(password::init(info.config.host.console_lock.as_ref()).map(String::from));
    for problem in &problems {
        log::warn!("{problem}");
    }

    let before = time::us();
    let bring_up = tdx::start(&firmware.memory_nodes);
    let tdx = machine::tdx::tdx(&bring_up);
    let tdx_us = time::us() - before;
    log::info!("{}; {tdx_us} us for its bring-up", tdx.state.in_words());
    events::note(
        EventKind::State,
        None,
        None,
        format_args!("{}", tdx.state.in_words()),
    );
    for reason in &tdx.reasons {
        log::warn!("TDX: {reason}");
    }
    if let Some(dmar) = &firmware.dmar {
        for problem in iommu::keep(dmar, bring_up.memory.as_ref()) {
            log::warn!("{problem}");
            problems.push(problem);
        }
    }
    for problem in tds::init(info) {
        log::warn!("{problem}");
        problems.push(problem);
    }
    if let Some(seconds) = info.config.host.watchdog {
        match watchdog::start(seconds, firmware.watchdog.take()) {
            Ok(started) => log::info!("{started}"),
            Err(problem) => {
                log::warn!("{problem}");
                problems.push(problem);
            }
        }
    }
    let to_prompt = time::us() - tdx_us;
    log::info!("from the first line to the prompt: {to_prompt} us, excluding TDX bring-up");
    #[cfg(feature = "bench")]
    crate::bench::run_all();
    run(Machine {
        info,
        heap: HEAP
            .get()
            .copied()
            .expect("the heap is known since the first line"),
        problems,
        system: firmware::system(info.smbios),
        tdx,
        to_prompt_us: Some(to_prompt),
        power: None,
    })
}

/// Returns the bits of a physical address that hold a KeyID.
fn key_id_bits() -> u64 {
    let key_ids = seam::platform::detect(&ThisCpu).key_ids;
    let position = key_ids.and_then(|ids| KeyIdPosition::new(ids.max_pa, ids.bits));
    position.map_or(0, KeyIdPosition::mask)
}

/// Measures the time-stamp counter against the power-management timer. The measurement overrides CPUID if the two
/// differ. Returns the problem, if any.
fn calibrate(fadt: &Fadt) -> Option<String> {
    const MEASURED_PM_TICKS: u64 = time::PM_TIMER_HZ / 100;
    let stated = time::hz_from_cpuid(ThisCpu.cpuid(0x15, 0), ThisCpu.cpuid(0x16, 0));
    let measured = fadt
        .pm_timer
        .and_then(|port| measure(port, fadt.pm_timer_32, MEASURED_PM_TICKS));
    let hz = match (stated, measured) {
        (Some(stated), Some(measured)) if stated.abs_diff(measured) <= measured / 20 => stated,
        (_, Some(measured)) => measured,
        (Some(stated), None) => stated,
        (None, None) => {
            return Some(
                "the clock is a guess: neither CPUID nor a timer reports the TSC's frequency"
                    .into(),
            );
        }
    };
    time::set_hz(hz);
    log::info!("the TSC runs at {} MHz", hz / 1_000_000);
    match stated {
        Some(stated) if stated != hz => Some(format!(
            "CPUID states a TSC of {stated} Hz, and it was measured at {hz} Hz"
        )),
        _ => None,
    }
}

/// Counts TSC ticks during at least `pm_ticks` of the timer.
///
/// A read of the timer may take long (a hypervisor below, an SMI), so the counter is read before and after. Only reads
/// that took a small part of the measured time count. The measurement restarts if the timer may have wrapped in
/// between.
fn measure(port: u16, wide: bool, pm_ticks: u64) -> Option<u64> {
    // A stopped timer must not stop the boot.
    const MAX_READS: u32 = 1_000_000;
    const MAX_UNCERTAINTY: u64 = 100;
    let mask = if wide { u32::MAX } else { 0xFF_FFFF };
    let read = || {
        let before = time::tsc();
        // SAFETY: the FADT says that this is the power-management timer, which may be read.
        let pm = unsafe { Port::<u32>::new(port).read() } & mask;
        let width = time::tsc() - before;
        (before + width / 2, width, pm)
    };
    let (mut start, mut start_width, mut start_pm) = (0..8).map(|_| read()).min_by_key(|r| r.1)?;
    for _ in 0..MAX_READS {
        let (now, width, pm) = read();
        if time::pm_timer_may_wrap(now - start) {
            (start, start_width, start_pm) = (now, width, pm);
            continue;
        }
        let passed = u64::from(pm.wrapping_sub(start_pm) & mask);
        let ticks = now - start;
        if passed >= pm_ticks
            && passed < u64::from(mask / 2)
            && (width + start_width) * MAX_UNCERTAINTY <= ticks
        {
            return Some(time::hz_from_pm_timer(ticks, passed));
        }
    }
    None
}

/// Stops all devices from writing to memory on their own, and from interrupting. Returns the problems.
fn stop_devices(firmware: &Firmware) -> Vec<String> {
    io_apic::mask_legacy();
    io_apic::mask_all(&firmware.madt);
    let console = serial::chosen().map(|port| port.place.into());
    let found = pci::take(&firmware.pci, console);
    log::info!(
        "PCI: {} functions, bus mastering switched off on {}, {} USB controllers taken from the firmware",
        found.functions,
        found.stopped,
        found.usb
    );
    found.problems
}

/// Enters VMX operation, enables interrupts, and starts every other CPU. Returns the problems.
fn start_cpus(info: &BootInfo, firmware: &Firmware, bootstrap: &'static cpu::Cpu) -> Vec<String> {
    vmx::enter_here(bootstrap);
    let has_button = button::enable(&firmware.fadt);
    if !apic::present() {
        check::start_here(bootstrap);
        return Vec::from([format!(
            "no x2APIC: the hypervisor uses one of {} CPUs and polls the console",
            cpu::all().len()
        )]);
    }
    start::enable_interrupts();
    iommu::signal_faults(bootstrap.apic_id, vector::FAULT_VECTOR);
    x86_64::instructions::interrupts::without_interrupts(|| check::start_here(bootstrap));
    let timeout_us = u64::from(info.config.host.cpu_timeout_ms) * 1000;
    cpu::set_call_timeout(timeout_us as u32);
    let before = time::us();
    let mut problems = start::start_others(tds::work, info, timeout_us);
    log::info!(
        "{} of {} CPUs run, after {} us",
        cpu::up().len(),
        cpu::all().len(),
        time::us() - before
    );
    problems.extend(connect_console(&firmware.madt, bootstrap));
    if has_button {
        let interrupt = firmware.fadt.event_interrupt;
        let to = bootstrap.apic_id;
        let routed = io_apic::route_acpi(&firmware.madt, interrupt, vector::ACPI_VECTOR, to);
        if let Err(e) = routed {
            problems.push(format!("the power button has no effect: {e}"));
        }
    }
    if iommu::get().is_ok_and(|iommu| iommu.remaps_interrupts()) {
        problems.extend(io_apic::mask_unremapped(&firmware.madt));
    }
    problems
}

/// Lets the serial port's interrupt or the timer drain its output. Returns the problem, if any.
fn connect_console(madt: &Madt, bootstrap: &'static cpu::Cpu) -> Option<String> {
    let line = serial::chosen()?
        .interrupt
        .map(|interrupt| madt.line(interrupt));
    let connected = match &line {
        None => Err("its interrupt is not known".into()),
        Some(line) => io_apic::route(madt, line, vector::SERIAL_VECTOR, bootstrap.apic_id)
            .and_then(|routed| {
                if serial::try_interrupts() {
                    return Ok(());
                }
                routed.close();
                Err("its interrupt does not come".into())
            }),
    };
    if timer::present() {
        x86_64::instructions::interrupts::without_interrupts(|| timer::poll_at(time::tsc()));
    } else if connected.is_err() {
        cpu::poll_console();
    }
    serial::drained();
    connected
        .err()
        .map(|e| format!("the console is polled: {e}"))
}

/// Runs the console's loop: serves received bytes, and prints new log records.
fn run(mut machine: Machine) -> ! {
    let mut seen = 0;
    logging::visit_from(&mut seen, &mut |_| {});
    logging::to_serial(false);
    let mut console = Console::new();
    let out = &mut serial::Terminal;
    console.start(&machine, out);
    tds::autostart();
    let mut overruns = 0;
    let mut ending = Ending::default();
    loop {
        watchdog::feed();
        if let Some(cpu) = cpu::this() {
            cpu.attention.clear();
        }
        if cpu::polls_console() {
            serial::serve();
            button::poll();
        }
        let pressed = button::was_pressed().then(|| {
            let what = format_args!("the power button was pressed");
            events::note(EventKind::Action, Some(Channel::Button), None, what);
            ending.press(tds::get())
        });
        if pressed == Some(Next::Off) || ending.step(tds::get()) == Next::Off {
            serial::settle();
            go_down(PowerAction::PowerOff);
        }
        while serial::has_room()
            && let Some(byte) = serial::receive()
        {
            events::on_behalf_of(Channel::Console, || console.feed(byte, &mut machine, out));
            if let Some(action) = machine.power.take() {
                serial::settle();
                go_down(action);
            }
            if let Some(scheduler) = tds::scheduler() {
                scheduler.watch(console.watched());
            }
        }
        errors::serve();
        METAL.serve_module();
        iommu::serve();
        passthrough::serve();
        if serial::has_room() {
            console.refresh(&machine, out);
        }
        if serial::has_room() && logging::is_news(seen) {
            logging::visit_from(&mut seen, &mut |record| {
                // `events` shows them, and he who caused one knows.
                if record.target != events::TARGET {
                    console.notice(&format!("{}", logging::Shown(record)), out);
                }
            });
        }
        rtc::refresh();
        if serial::overruns() != overruns {
            overruns = serial::overruns();
            log::warn!("the serial port overran: typed bytes were lost, {overruns} times so far");
        }
        if !tds::work() {
            cpu::idle(|| {
                let poked = cpu::this().is_some_and(|cpu| cpu.attention.is_any());
                let overdue = tds::get().is_some_and(Tds::is_overdue);
                let poked = poked || overdue || errors::are_waiting();
                let poked = poked || iommu::are_waiting() || passthrough::are_waiting();
                let poked = poked || ending.has_begun();
                let news =
                    || serial::has_input() || logging::is_news(seen) || console.has_news(&machine);
                poked || serial::has_room() && news()
            });
        }
    }
}

fn go_down(action: PowerAction) -> ! {
    match action {
        PowerAction::Reboot => {
            cpu::stop_others();
            power::reset_now()
        }
        PowerAction::PowerOff => power::off_now(),
    }
}
