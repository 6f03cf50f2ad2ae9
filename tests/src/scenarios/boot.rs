//! Scenarios that boot in every way, with everything in order and with something wrong.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stage::{self, Named, Words};
use super::{Bench, Scenario};
use crate::console::{Console, PROMPT};
use crate::media;
use crate::qemu::{Boot, Machine, Trouble};

pub const ALL: &[Scenario] = &[
    Scenario::new("boot-from-disk", from_disk),
    Scenario::new("boot-over-pxe", over_pxe),
    Scenario::new("sixteen-cpus", sixteen_cpus),
    Scenario::new("sixty-four-cpus", sixty_four_cpus),
    Scenario::new("without-seam", without_seam),
    Scenario::new("tdx-off", tdx_off),
    Scenario::new("broken-config", broken_config),
    Scenario::new("stuck-cpu", stuck_cpu),
    Scenario::new("other-tsc-adjust", other_tsc_adjust),
    Scenario::new("refused-option", refused_option),
    Scenario::new("no-room-for-cpus", no_room_for_cpus),
    Scenario::new("time-to-prompt", time_to_prompt),
    Scenario::new("reboot-and-poweroff", reboot_and_poweroff),
    Scenario::new("power-button", power_button),
];

/// Time limit of a report.
const ANSWER: Duration = Duration::from_secs(20);

/// Number of boots if one was too slow. The best of the three counts, since a busy computer makes them slower but
/// never faster.
const ATTEMPTS: u32 = 3;

fn from_disk(bench: &mut Bench) -> Result<()> {
    let machine = bench.machine()?;
    let mut console = bench.console(&machine)?;
    let boot = console.succeed("boot", ANSWER)?;
    ensure!(text(&boot, "loaded_from").starts_with("disk"), "{boot}");
    // A debugger needs the image's address: its header is there.
    let header = console.succeed(&format!("mem peek {}", text(&boot, "image")), ANSWER)?;
    ensure!(
        text(&header, "bytes").starts_with("4d5a"),
        "{boot}: {header}"
    );
    nothing_is_wrong(&boot)?;
    every_cpu_runs(&mut console, &machine)?;
    the_module_is_ready(&mut console)
}

fn over_pxe(bench: &mut Bench) -> Result<()> {
    let machine = bench.network_machine()?;
    let mut console = bench.console(&machine)?;
    let boot = console.succeed("boot", ANSWER)?;
    ensure!(text(&boot, "loaded_from").starts_with("PXE"), "{boot}");
    nothing_is_wrong(&boot)?;
    every_cpu_runs(&mut console, &machine)?;
    the_module_is_ready(&mut console)?;
    the_same_program_is_on_disk(bench, &machine)
}

/// Checks that both ways boot the same binary.
fn the_same_program_is_on_disk(bench: &Bench, network: &Machine) -> Result<()> {
    let (Boot::Network { directory, program }, Boot::Disk(image)) =
        (&network.boot, bench.machine()?.boot)
    else {
        unreachable!("the machines boot as they were asked to");
    };
    let served = fs::read(directory.join(program)).context("the TFTP server's program")?;
    let on_disk = media::read_from_disk(&image, media::REMOVABLE_BOOT_FILE)?;
    ensure!(served == on_disk, "the programs differ");
    Ok(())
}

fn sixteen_cpus(bench: &mut Bench) -> Result<()> {
    let machine = bench.machine()?.with_cpus(16, 4);
    let mut console = bench.console(&machine)?;
    nothing_is_wrong(&console.succeed("boot", ANSWER)?)?;
    every_cpu_runs(&mut console, &machine)?;
    the_module_is_ready(&mut console)
}

/// A large machine runs a TD, whose memory may lie above 4 GiB.
fn sixty_four_cpus(bench: &mut Bench) -> Result<()> {
    // Emulated CPUs share the computer's cores; one that gets none for a while is not stuck.
    let patient = "[host]\ncpu_timeout_ms = 60000\n";
    let hello = Named::new("hello", "64M", 2);
    let mut machine = stage::machine_of(bench, patient, &[hello])?.with_cpus(64, 4);
    "8G".clone_into(&mut machine.memory);
    let mut console = bench.console(&machine)?;
    let boot = console.succeed("boot", stage::LIFE)?;
    nothing_is_wrong(&boot)?;
    let prompt_us = boot["to_prompt_us"].as_u64().context("no time")?;
    bench.note(format!(
        "{} ms to the prompt with 64 CPUs",
        prompt_us / 1000
    ));
    every_cpu_runs(&mut console, &machine)?;
    the_module_is_ready(&mut console)?;
    console.succeed("td start hello", stage::LIFE)?;
    Words::of("hello").pass(&mut console, "hello", stage::LIFE)?;
    ensure!(
        console.expect_of_td("hello", "MRTD", stage::LIFE)?,
        "no TD is called hello"
    );
    ensure!(
        !console.expect_of_td("nobody", "MRTD", stage::LIFE)?,
        "a TD is called nobody"
    );
    stage::nothing_illegal(&mut console)
}

/// Plain QEMU has no x2APIC: the hypervisor uses one CPU and a polled console, and gives the reason.
fn without_seam(bench: &mut Bench) -> Result<()> {
    let mut machine = bench.machine()?;
    machine.stub = None;
    let mut console = bench.console(&machine)?;
    let boot = console.succeed("boot", ANSWER)?;
    ensure!(mentions(&boot["problems"], "x2APIC"), "{boot}");
    let cpus = console.succeed("cpus", ANSWER)?;
    ensure!(cpus["running"] == 1, "{cpus}");
    tdx_is_unavailable(&mut console, "not an Intel CPU")
}

/// A complete machine with VMX, whose firmware did not set up SEAM.
fn tdx_off(bench: &mut Bench) -> Result<()> {
    let machine = bench.machine()?.with_stub_option("tdx", "off");
    let mut console = bench.console(&machine)?;
    every_cpu_runs(&mut console, &machine)?;
    tdx_is_unavailable(&mut console, "")
}

fn broken_config(bench: &mut Bench) -> Result<()> {
    let machine = bench.machine_with_config("# wrong:\n[host]\nlog_level = \"loud\"\n")?;
    let mut console = bench.console(&machine)?;
    let boot = console.succeed("boot", ANSWER)?;
    let problem = boot["config_problems"][0].as_str().unwrap_or_default();
    ensure!(
        problem.starts_with("seamark.toml:3:") && problem.contains("loud"),
        "{boot}"
    );
    every_cpu_runs(&mut console, &machine)
}

/// The boot continues without the CPU, and TDX is unavailable, because LP.INIT is needed on every CPU.
fn stuck_cpu(bench: &mut Bench) -> Result<()> {
    let machine = bench.machine()?.with_stub_option("stuck", "2");
    let mut console = bench.console(&machine)?;
    let cpus = console.succeed("cpus", ANSWER)?;
    let states: Vec<_> = list(&cpus, "cpus")
        .iter()
        .map(|cpu| text(cpu, "state"))
        .collect();
    let never = states
        .iter()
        .filter(|&&state| state == "never-started")
        .count();
    ensure!(cpus["running"] == 3 && never == 1, "{cpus}");
    let boot = console.succeed("boot", ANSWER)?;
    let problems = list(&boot, "problems");
    ensure!(problems.len() == 1, "{boot}");
    for part in [
        "CPU 2 (APIC id 0x2: package 1, core 0, thread 0) did not start",
        "switch the machine off and on",
        "host.cpu_timeout_ms",
    ] {
        ensure!(mentions(&boot["problems"], part), "{part}: {boot}");
    }
    tdx_is_unavailable(
        &mut console,
        "CPU 2 is not running, and TDH.SYS.LP.INIT is needed on every CPU: switch",
    )
}

/// The firmware has left another IA32_TSC_ADJUST on each of two CPUs. The module would refuse the CPUs that differ from
/// the first.
fn other_tsc_adjust(bench: &mut Bench) -> Result<()> {
    let machine = bench.machine()?.with_stub_option("tsc_adjust", "0,2");
    let mut console = bench.console(&machine)?;
    let told = "another IA32_TSC_ADJUST on 3 CPUs";
    ensure!(console.boot_log().contains(told), "{}", console.boot_log());
    nothing_is_wrong(&console.succeed("boot", ANSWER)?)?;
    the_module_is_ready(&mut console)
}

/// The ROM does not understand an option. The wait for the prompt ends before the hypervisor starts, so that the
/// mistake is noticed.
fn refused_option(bench: &mut Bench) -> Result<()> {
    let machine = bench.machine()?.with_stub_option("tdx", "maybe");
    bench.provoke_trouble(Trouble::BadOption);
    ends_at_once(
        bench,
        &machine,
        "its option tdx: tdx is on or off, not maybe",
    )
}

/// The ROM needs more memory below 4 GiB for its processors than there is.
fn no_room_for_cpus(bench: &mut Bench) -> Result<()> {
    let mut machine = bench.machine()?.with_cpus(64, 4);
    "256M".clone_into(&mut machine.memory);
    bench.provoke_trouble(Trouble::Error);
    ends_at_once(bench, &machine, "no SEAM: the SEAM range of 64 processors")
}

/// Checks that the wait for the prompt ends with `why`, before the hypervisor has printed anything.
fn ends_at_once(bench: &mut Bench, machine: &Machine, why: &str) -> Result<()> {
    let mut guest = bench.start(machine)?;
    let waited = guest.expect(PROMPT, Duration::from_secs(600));
    let said = guest.transcript();
    let error = waited.err().context("the machine went on to its prompt")?;
    ensure!(format!("{error:#}").contains(why), "{error:#}");
    ensure!(
        !said.contains("\nseamark 0."),
        "the wait went on until the hypervisor was there:\n{said}"
    );
    Ok(())
}

/// The time of a boot in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Took {
    /// From the hypervisor's first line to its prompt, excluding TDX bring-up.
    to_prompt: u64,
    /// The part of it for which the computer gave QEMU a CPU. A processor of the machine never halts before the
    /// prompt, so this is as long on a computer that does nothing else.
    executing: u64,
}

/// Boots the machine once.
fn boot_once(bench: &mut Bench, machine: &Machine) -> Result<Took> {
    const LIMIT: Duration = Duration::from_secs(300);
    let mut guest = bench.start(machine)?;
    guest.expect("\nseamark 0.", LIMIT)?;
    let (begin, before) = (Instant::now(), guest.cpu_time()?);
    let mut console = Console::wait(guest, LIMIT)?;
    let (all, executing) = (begin.elapsed(), console.guest().cpu_time()? - before);
    let boot = console.succeed("boot", ANSWER)?;
    let to_prompt = boot["to_prompt_us"].as_u64();
    let to_prompt = Duration::from_micros(to_prompt.with_context(|| format!("no time in {boot}"))?);
    let bring_up = all.saturating_sub(to_prompt);
    let ms = |time: Duration| time.as_millis() as u64;
    Ok(Took {
        to_prompt: ms(to_prompt),
        executing: ms(executing.saturating_sub(bring_up)),
    })
}

/// Measures the time from the hypervisor's first line to its prompt, excluding TDX bring-up. The budget is 1 s with 4
/// CPUs and 3 s with 16. A slower boot is reported; one that executes for more than twice the budget fails.
fn time_to_prompt(bench: &mut Bench) -> Result<()> {
    for (cpus, sockets, budget) in [(4, 2, 1000), (16, 4, 3000)] {
        let machine = bench.machine()?.with_cpus(cpus, sockets);
        let mut best: Option<Took> = None;
        for _ in 0..ATTEMPTS {
            let took = boot_once(bench, &machine)?;
            best = [best, Some(took)]
                .into_iter()
                .flatten()
                .min_by_key(|took| took.to_prompt.min(took.executing));
            if took.to_prompt <= budget {
                break;
            }
        }
        let best = best.context("no attempt")?;
        let over = if best.to_prompt > budget {
            ", over its"
        } else {
            ", within its"
        };
        let figure = format!(
            "{} ms to the prompt with {cpus} CPUs{over} budget of {budget} ms",
            best.to_prompt
        );
        ensure!(
            best.to_prompt.min(best.executing) <= 2 * budget,
            "{figure}: {best:?}"
        );
        bench.note(figure);
    }
    Ok(())
}

fn reboot_and_poweroff(bench: &mut Bench) -> Result<()> {
    let mut machine = bench.machine()?;
    machine.reboots = true;
    let mut console = bench.console(&machine)?;
    let limit = Duration::from_secs(90);
    console.guest().send(b"reboot\r")?;
    console.guest().expect("\nseamark 0.", limit)?;
    console.again(limit)?;
    every_cpu_runs(&mut console, &machine)?;
    console.guest().send(b"poweroff\r")?;
    let status = console.guest().wait_for_end(ANSWER)?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}

/// The power button terminates every TD before it switches the machine off.
fn power_button(bench: &mut Bench) -> Result<()> {
    let tds = ["one", "two"].map(|name| Named::new("smp", "64M", 2).called(name));
    let mut machine = stage::machine(bench, &tds)?;
    machine.monitor = true;
    let mut console = bench.console(&machine)?;
    for name in ["one", "two"] {
        console.succeed(&format!("td start {name}"), stage::LIFE)?;
    }
    console.enter("json off", ANSWER)?;
    let guest = console.guest();
    guest.monitor("system_powerdown")?;
    guest.expect(
        "the power button was pressed: the TDs are terminated (2)",
        ANSWER,
    )?;
    let status = guest.wait_for_end(stage::LIFE)?;
    ensure!(status.success(), "QEMU ended with {status}");
    // TDH.VP.FLUSH and TDH.MNG.KEY.FREEID are the module's side of a TD that ended in order.
    let said = guest.transcript();
    ensure!(!said.contains("has terminated within"), "{said}");
    Ok(())
}

fn nothing_is_wrong(boot: &Value) -> Result<()> {
    ensure!(
        list(boot, "problems").is_empty() && list(boot, "config_problems").is_empty(),
        "{boot}"
    );
    ensure!(boot["config"] == "seamark.toml", "{boot}");
    Ok(())
}

/// Checks that every CPU of the machine is up, in the package that QEMU put it in.
fn every_cpu_runs(console: &mut Console, machine: &Machine) -> Result<()> {
    let cpus = console.succeed("cpus", ANSWER)?;
    ensure!(
        cpus["running"] == machine.cpus && cpus["packages"] == machine.sockets,
        "{cpus}"
    );
    let mut packages = BTreeMap::new();
    let mut ids = Vec::new();
    for cpu in list(&cpus, "cpus") {
        let state = text(cpu, "state");
        ensure!(state == "online" || state == "idle", "{cpu}");
        *packages.entry(cpu["package"].as_u64()).or_insert(0) += 1;
        ids.push(cpu["apic_id"].as_u64());
    }
    let each = machine.cpus / machine.sockets;
    ensure!(packages.values().all(|&n| n == each), "{packages:?}");
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == machine.cpus as usize, "APIC ids: {ids:?}");
    Ok(())
}

/// Checks that TDs can be built: the module has memory, its key is on every package, and the ledger balances with the
/// memory that this took.
fn the_module_is_ready(console: &mut Console) -> Result<()> {
    let tdx = console.succeed("tdx", ANSWER)?;
    ensure!(
        tdx["module"]["major"] == 1 && tdx["module"]["minor"] == 5,
        "{tdx}"
    );
    ensure!(
        tdx["state"] == "ready" && tdx["reasons"] == serde_json::json!([]),
        "{tdx}"
    );
    ensure!(tdx["hkids"]["used"] == 1, "{tdx}");
    let memory = &tdx["memory"];
    let bytes = |name: &str| memory[name].as_u64().unwrap_or_default();
    ensure!(!list(memory, "tdmrs").is_empty(), "{tdx}");
    ensure!(bytes("private_bytes") > 256 << 20, "{tdx}");
    let books = console.succeed("mem", ANSWER)?;
    let ledger = &books["ledger"];
    ensure!(ledger["balanced"] == true, "{ledger}");
    ensure!(
        bytes("pamt_bytes") > 0 && ledger["used_bytes"].as_u64() > Some(bytes("pamt_bytes")),
        "{tdx} {ledger}"
    );
    Ok(())
}

/// Checks that TDX is unavailable, with a reason that contains `why`.
fn tdx_is_unavailable(console: &mut Console, why: &str) -> Result<()> {
    let tdx = console.succeed("tdx", ANSWER)?;
    ensure!(tdx["state"] == "unavailable", "{tdx}");
    ensure!(mentions(&tdx["reasons"], why), "{tdx}");
    Ok(())
}

fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_default()
}

fn list<'a>(object: &'a Value, name: &str) -> &'a [Value] {
    object[name].as_array().map_or(&[], Vec::as_slice)
}

/// Returns true if one of the sentences in an array contains `what`.
fn mentions(sentences: &Value, what: &str) -> bool {
    let sentences = sentences.as_array().map_or(&[][..], Vec::as_slice);
    sentences
        .iter()
        .filter_map(Value::as_str)
        .any(|s| s.contains(what))
}
