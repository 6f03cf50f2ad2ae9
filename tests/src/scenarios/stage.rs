//! Common parts of scenarios with TDs: configurations that name the project's own guests, the output of their
//! consoles, and the checks when all of them are gone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Bench;
use crate::console::Console;
use crate::media::Media;
use crate::qemu::Machine;

/// The configuration of a host with its defaults.
const HOST: &str = "[host]\n";
/// Time limit of a command that builds a TD, or takes one down.
pub const LIFE: Duration = Duration::from_secs(180);
/// Time limit of a report.
pub const ANSWER: Duration = Duration::from_secs(30);
/// Time limit of a guest's checks on a busy computer.
pub const CHECKS: Duration = Duration::from_secs(180);
/// Debian's OVMF, as the name of a guest.
pub use crate::programs::OVMF;
/// Interval at which a guest's console is polled.
const LOOK: Duration = Duration::from_millis(300);

/// A TD in a configuration.
#[derive(Clone, Debug)]
pub struct Named<'a> {
    /// The TD's name.
    pub name: &'a str,
    /// The guest that the TD starts.
    pub guest: &'a str,
    /// The key that names the guest: `image`, or `firmware`.
    pub key: &'static str,
    /// The TD's memory, in the configuration's format.
    pub memory: &'a str,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Further lines of the TD's table.
    pub more: String,
}

impl<'a> Named<'a> {
    /// Creates a TD with the guest's name, this memory and this number of vCPUs.
    pub fn new(guest: &'a str, memory: &'a str, vcpus: u32) -> Self {
        Self {
            name: guest,
            guest,
            key: "image",
            memory,
            vcpus,
            more: String::new(),
        }
    }

    /// Sets the name.
    #[must_use]
    pub fn called(self, name: &'a str) -> Self {
        Self { name, ..self }
    }

    /// Starts the guest as UEFI firmware, which the host tells its machine.
    #[must_use]
    pub fn uefi(self) -> Self {
        let key = "firmware";
        Self { key, ..self }
    }

    /// Adds a line to the table.
    #[must_use]
    pub fn with(mut self, line: impl AsRef<str>) -> Self {
        self.more += line.as_ref();
        self.more.push('\n');
        self
    }

    /// Sets the guest's parameters, which it finds in MRCONFIGID.
    #[must_use]
    pub fn wishing(self, wishes: &[u64]) -> Self {
        let mut digits = String::new();
        for at in 0..6 {
            let word = wishes.get(at).copied().unwrap_or(0);
            _ = write!(digits, "{word:016x}");
        }
        self.with(format!("mrconfigid = \"{digits}\""))
    }
}

/// Returns a configuration that names the TDs, after the table of the host.
pub fn config(host: &str, tds: &[Named<'_>]) -> String {
    let files: BTreeMap<_, _> = tds.iter().map(|td| (td.guest, ())).collect();
    let mut text = String::from(host);
    for guest in files.keys() {
        _ = write!(
            text,
            "\n[[file]]\nname = \"{guest}\"\npath = \"{guest}.fd\"\n"
        );
    }
    for td in tds {
        _ = write!(
            text,
            "\n[[td]]\nname = \"{}\"\n{} = \"{}\"\nmemory = \"{}\"\nvcpus = {}\n{}",
            td.name, td.key, td.guest, td.memory, td.vcpus, td.more
        );
    }
    text
}

/// Creates a machine with the stub whose configuration names TDs.
pub fn machine(bench: &Bench, tds: &[Named<'_>]) -> Result<Machine> {
    machine_of(bench, HOST, tds)
}

/// Creates a machine with another table of the host.
pub fn machine_of(bench: &Bench, host: &str, tds: &[Named<'_>]) -> Result<Machine> {
    let directory = bench.directory()?.join("media");
    fs::create_dir_all(&directory)?;
    for td in tds {
        let image = bench.programs().guest(td.guest);
        fs::copy(&image, directory.join(format!("{}.fd", td.guest)))
            .with_context(|| format!("can't copy {}", image.display()))?;
    }
    let file = directory.join("seamark.toml");
    fs::write(&file, config(host, tds))?;
    let media = Media::of_program(&bench.programs().seamark())?.with_config(&file)?;
    bench.machine_with(&media)
}

/// The output of a guest in its present life, from its first byte on.
#[derive(Debug)]
pub struct Words {
    name: String,
    /// The number of the byte at which that life began, once the first read has determined it.
    began: Option<u64>,
    next: u64,
    /// The guest may write more than is kept between two reads.
    has_gaps: bool,
    /// The output so far.
    pub text: String,
}

impl Words {
    /// Creates the output of the TD of this name; nothing is read yet.
    pub fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            began: None,
            next: NOTHING,
            has_gaps: false,
            text: String::new(),
        }
    }

    /// As [`Self::of`], of a guest that may write any amount at once: what is lost is left out.
    pub fn with_gaps(name: &str) -> Self {
        Self {
            has_gaps: true,
            ..Self::of(name)
        }
    }

    /// Reads new output. If the TD is in another life than at the last read, earlier output is dropped.
    ///
    /// # Errors
    /// The hypervisor does not answer, or output was lost without leave.
    pub fn read(&mut self, console: &mut Console) -> Result<()> {
        loop {
            let answer = output(console, &self.name, self.next, ANSWER)?;
            if self.began != Some(answer.began) {
                self.began = Some(answer.began);
                self.next = answer.began;
                self.text.clear();
                continue;
            }
            ensure!(
                self.has_gaps || answer.from == self.next,
                "{} bytes that TD {} said were lost",
                answer.from.saturating_sub(self.next),
                self.name
            );
            self.next = answer.next;
            self.text += &answer.text;
            return Ok(());
        }
    }

    /// Waits until the guest has printed `pattern`.
    ///
    /// # Errors
    /// The pattern does not come within `limit`, or the TD ends before.
    pub fn wait(&mut self, console: &mut Console, pattern: &str, limit: Duration) -> Result<()> {
        self.wait_for(console, limit, |text| text.contains(pattern))
            .with_context(|| format!("it did not say `{pattern}`"))
    }

    /// Waits until what the guest has printed in its present life `is_enough`.
    ///
    /// # Errors
    /// It is not enough within `limit`, or the TD ends before.
    pub fn wait_for(
        &mut self,
        console: &mut Console,
        limit: Duration,
        is_enough: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let td = show(console, &self.name)?;
            self.read(console)?;
            if is_enough(&self.text) {
                return Ok(());
            }
            if let Some(problem) = td["problem"].as_str() {
                bail!("TD {}: {problem}\n{}", self.name, self.last_lines());
            }
            ensure!(
                Instant::now() < deadline,
                "TD {} did not go on within {} s\n{}\n{td}",
                self.name,
                limit.as_secs(),
                self.last_lines()
            );
            sleep(LOOK);
        }
    }

    /// Waits for the tally of a guest's checks, all of which must have passed. Returns their number.
    ///
    /// # Errors
    /// As [`Self::wait`]; the checks that failed.
    pub fn pass(&mut self, console: &mut Console, guest: &str, limit: Duration) -> Result<usize> {
        let waited = self.wait(console, " failed\r\n", limit);
        self.no_check_failed()?;
        waited?;
        let passed = self.text.lines().filter(|l| l.starts_with("ok ")).count();
        ensure!(
            self.text
                .contains(&format!("{guest}: {passed} passed, 0 failed")),
            "TD {} said\n{}",
            self.name,
            self.text
        );
        Ok(passed)
    }

    /// Checks that none of the guest's checks has failed so far.
    ///
    /// # Errors
    /// The checks that failed.
    pub fn no_check_failed(&self) -> Result<()> {
        let lines = self.text.lines();
        let failed: Vec<_> = lines.filter(|l| l.starts_with("FAIL ")).collect();
        ensure!(failed.is_empty(), "TD {}: {}", self.name, failed.join("\n"));
        Ok(())
    }

    fn last_lines(&self) -> String {
        let lines: Vec<_> = self.text.lines().collect();
        let last = &lines[lines.len().saturating_sub(20)..];
        format!("--- its console's last lines ---\n{}\n---", last.join("\n"))
    }
}

/// The answer of `td console`.
#[derive(Debug)]
pub struct Output {
    /// The number of the byte at which the TD's present life began.
    pub began: u64,
    /// The number of the text's first byte.
    pub from: u64,
    /// The number of the byte behind the text.
    pub next: u64,
    /// The text.
    pub text: String,
}

/// A number behind all bytes that a TD has written.
pub const NOTHING: u64 = u64::MAX;

/// Returns a TD's output from byte number `from` on, as far as it is kept, also from earlier lives.
///
/// # Errors
/// The hypervisor does not answer within `limit`, or the TD was never started.
pub fn output(console: &mut Console, name: &str, from: u64, limit: Duration) -> Result<Output> {
    let answer = console.succeed(&format!("td console {name} {from}"), limit)?;
    let number = |key: &str| {
        let number = answer[key].as_u64();
        number.with_context(|| format!("no {key}: {answer}"))
    };
    let text = answer["output"].as_str().context("no output")?;
    Ok(Output {
        began: number("began")?,
        from: number("from")?,
        next: number("next")?,
        text: text.to_owned(),
    })
}

/// Returns a TD's output in its present life, as far as it is kept.
///
/// # Errors
/// As [`output`].
pub fn said(console: &mut Console, name: &str, limit: Duration) -> Result<String> {
    let began = output(console, name, NOTHING, limit)?.began;
    Ok(output(console, name, began, limit)?.text)
}

/// Returns the hypervisor's report of a TD.
pub fn show(console: &mut Console, name: &str) -> Result<Value> {
    console.succeed(&format!("td show {name}"), ANSWER)
}

/// Records the accesses of a TD that nothing answered, and checks that all of them were for parts of a PC that no TD has.
pub fn only_known_parts_are_missing(
    bench: &mut Bench,
    console: &mut Console,
    name: &str,
) -> Result<()> {
    let shown = show(console, name)?;
    let unanswered = &shown["unanswered"];
    ensure!(unanswered["others"] == 0, "{unanswered}");
    let places = unanswered["places"].as_array().context("a list")?;
    let word = |place: &Value, key| place[key].as_str().unwrap_or_default().to_owned();
    let mut text = String::new();
    for place in places {
        let (kind, at) = (word(place, "kind"), word(place, "at"));
        let part = word(place, "part");
        ensure!(!part.is_empty(), "nothing answers {place}");
        let (reads, writes) = (&place["reads"], &place["writes"]);
        _ = write!(text, "; {kind} {at} ({reads}, {writes}) {part}");
    }
    bench.note(format!(
        "{name}: unanswered (reads, writes){}",
        text.replacen(';', ":", 1)
    ));
    Ok(())
}

/// Waits until a TD has a problem, which is the reason of its end. Returns the problem.
pub fn wait_for_problem(console: &mut Console, name: &str, limit: Duration) -> Result<String> {
    let deadline = Instant::now() + limit;
    loop {
        let report = show(console, name)?;
        if let (Some(problem), "paused") = (
            report["problem"].as_str(),
            report["state"].as_str().unwrap_or_default(),
        ) {
            return Ok(problem.to_owned());
        }
        ensure!(
            Instant::now() < deadline,
            "TD {name} has not ended within {} s: {report}",
            limit.as_secs()
        );
        sleep(LOOK);
    }
}

/// Waits until a TD is in that state.
pub fn wait_for_state(
    console: &mut Console,
    name: &str,
    state: &str,
    limit: Duration,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let report = show(console, name)?;
        if report["state"] == state {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "TD {name} is not {state} within {} s: {report}",
            limit.as_secs()
        );
        sleep(LOOK);
    }
}

/// Repeats a command until its answer is as expected.
///
/// # Errors
/// The last answer, after [`LIFE`].
pub fn until(
    console: &mut Console,
    command: &str,
    mut is_there: impl FnMut(&Value) -> bool,
) -> Result<Value> {
    let start = Instant::now();
    loop {
        let answer = console.succeed(command, ANSWER)?;
        if is_there(&answer) {
            return Ok(answer);
        }
        ensure!(start.elapsed() < LIFE, "`{command}` still answers {answer}");
        // Each command costs the machine time.
        sleep(LOOK);
    }
}

/// Types on a TD's console.
pub fn type_to(console: &mut Console, name: &str, text: &str) -> Result<()> {
    console.enter("json off", ANSWER)?;
    let guest = console.guest();
    guest.send(format!("td console {name}\r").as_bytes())?;
    guest.expect("detaches.", ANSWER)?;
    guest.send(text.as_bytes())?;
    guest.send(b"\x1d")?;
    guest.expect("seamark> ", ANSWER)?;
    console.enter("json on", ANSWER)?;
    Ok(())
}

/// Returns the bytes of the machine's memory that the hypervisor uses besides its heap, and those in quarantine. The
/// heap takes frames for the consoles' output and the like, which it keeps after a TD has gone.
pub fn used(console: &mut Console) -> Result<(u64, u64)> {
    let memory = console.succeed("mem", ANSWER)?;
    ensure!(memory["ledger"]["balanced"] == true, "{memory}");
    let bytes = |part: &str, key: &str| {
        let bytes = memory[part][key].as_u64();
        bytes.with_context(|| format!("no {key} in {memory}"))
    };
    // The heap's first region is the firmware's, so that the difference can be negative. Only changes of it matter.
    let used = bytes("ledger", "used_bytes")?.wrapping_sub(bytes("heap", "total_bytes")?);
    Ok((used, bytes("ledger", "quarantined_bytes")?))
}

/// Takes TDs down, and checks that the machine has as much memory as before, and that no illegal SEAMCALL was made.
pub fn nothing_is_left(console: &mut Console, tds: &[&str], before: (u64, u64)) -> Result<()> {
    for name in tds {
        console.succeed(&format!("td destroy {name}"), LIFE)?;
    }
    let after = used(console)?;
    ensure!(
        before == after,
        "{} bytes more are in use, and {} in quarantine",
        after.0.wrapping_sub(before.0).cast_signed(),
        after.1.wrapping_sub(before.1).cast_signed()
    );
    nothing_illegal(console)
}

/// Checks that the module refused no call as illegal, and that no page or HKID was lost.
pub fn nothing_illegal(console: &mut Console) -> Result<()> {
    let stats = console.succeed("stats", ANSWER)?;
    let zero = |value: &Value| value.as_u64() == Some(0);
    ensure!(
        zero(&stats["total"]["illegal"])
            && zero(&stats["lost_pages"])
            && zero(&stats["lost_hkids"])
            && zero(&stats["faults"]),
        "not as it should be: {stats}"
    );
    let hkids = console.succeed("hkids", ANSWER)?;
    ensure!(
        zero(&hkids["quarantined"]),
        "HKIDs are in quarantine: {hkids}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hypervisor_accepts_the_configuration() {
        let text = config(
            HOST,
            &[
                Named::new("hello", "64M", 1).with("autostart = true"),
                Named::new("hostile", "64M", 2)
                    .called("other")
                    .wishing(&[7, 9]),
            ],
        );
        let config = config::parse(text.as_bytes()).unwrap();
        assert_eq!(config.file.len(), 2);
        assert_eq!(config.td[1].name, "other");
        assert_eq!(config.td[1].mrconfigid[7], 7);
        assert_eq!(config.td[1].mrconfigid[15], 9);
    }
}
