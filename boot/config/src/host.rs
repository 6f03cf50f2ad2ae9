//! `[host]`: the configuration of the hypervisor itself.

use alloc::format;

use toml::de::DeValue;

use super::{
    console::{self, ConsolePort},
    keys::{Key, Keyed, choice, chosen, number, plain},
    lock::{self, PasswordHash},
};

/// Configuration of the hypervisor itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Log level: `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: LogLevel,
    /// Action after a crash report.
    pub on_crash: OnCrash,
    /// Action after an NMI that neither this program nor a record of the firmware explains.
    pub nmi: OnNmi,
    /// Use of a core's threads by several TDs. A value that is not understood means [`Smt::SameTd`].
    pub smt: Smt,
    /// Milliseconds within which a CPU must report after its SIPI, or answer another CPU's call; 100 to 60,000.
    pub cpu_timeout_ms: u32,
    /// Treatment of memory that was a TD's: `always` clears it, `erratum` clears it only where the CPU requires that,
    /// `reuse` keeps it for another TD.
    pub clear: Clear,
    /// Maximum share of a busy CPU's time, in percent, for reclaiming the memory of ended TDs; 0 to 90.
    pub reclaim_share: u32,
    /// Maximum time in milliseconds that a vCPU runs while others wait for its CPU; 1 to 100.
    pub slice_ms: u32,
    /// Period in milliseconds over which a TD's `cap` is enforced; 10 to 1,000.
    pub cap_period_ms: u32,
    /// The serial port of the console: `COM1` to `COM4` or an I/O port (`0x3e8`), and the speed if it is not 115,200
    /// baud (`COM2,9600`). The port that ACPI's SPCR names comes first. By default COM1, or COM2 if there is no COM1.
    pub console: Option<ConsolePort>,
    /// The hash of the console's password. By default the console has none, and is never locked. A value that is not
    /// understood locks it for good: the operator wanted a lock.
    pub console_lock: Option<PasswordHash>,
    /// Seconds without a sign of life after which the machine's watchdog resets it, written as `"60s"`; 10 to 600. By
    /// default there is no watchdog.
    pub watchdog: Option<u32>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            log_level: LogLevel::Info,
            on_crash: OnCrash::Halt,
            nmi: OnNmi::Halt,
            smt: Smt::Share,
            cpu_timeout_ms: 2000,
            clear: Clear::Always,
            reclaim_share: 10,
            slice_ms: 10,
            cap_period_ms: 100,
            console: None,
            console_lock: None,
            watchdog: None,
        }
    }
}

impl Keyed for Host {
    const TABLE: &'static str = "[host]";
    const KEYS: &'static [Key<Self>] = &[
        Key::new(
            "log_level",
            "\"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
            |host, value| choice(value, LEVELS).map(|level| host.log_level = level),
            |host| chosen(host.log_level, LogLevel::Info, LEVELS),
        ),
        Key::new(
            "on_crash",
            "\"halt\" or \"reboot\"",
            |host, value| choice(value, ON_CRASH).map(|action| host.on_crash = action),
            |host| chosen(host.on_crash, OnCrash::Halt, ON_CRASH),
        ),
        Key::new(
            "nmi",
            "\"halt\" or \"log\"",
            |host, value| choice(value, ON_NMI).map(|action| host.nmi = action),
            |host| chosen(host.nmi, OnNmi::Halt, ON_NMI),
        ),
        Key::new(
            "smt",
            "\"share\" or \"same-td\"",
            |host, value| {
                let smt = choice(value, SMT);
                // The operator wanted something, and only this value protects TDs from each other.
                host.smt = smt.unwrap_or(Smt::SameTd);
                smt.map(drop)
            },
            |host| chosen(host.smt, Smt::Share, SMT),
        ),
        Key::new(
            "cpu_timeout_ms",
            "a number from 100 to 60000",
            |host, value| small(value, 100, 60_000).map(|ms| host.cpu_timeout_ms = ms),
            |host| plain(host.cpu_timeout_ms, 2000),
        ),
        Key::new(
            "clear",
            "\"always\", \"erratum\" or \"reuse\"",
            |host, value| choice(value, CLEAR).map(|clear| host.clear = clear),
            |host| chosen(host.clear, Clear::Always, CLEAR),
        ),
        Key::new(
            "reclaim_share",
            "a number from 0 to 90",
            |host, value| small(value, 0, 90).map(|share| host.reclaim_share = share),
            |host| plain(host.reclaim_share, 10),
        ),
        Key::new(
            "slice_ms",
            "a number from 1 to 100",
            |host, value| small(value, 1, 100).map(|ms| host.slice_ms = ms),
            |host| plain(host.slice_ms, 10),
        ),
        Key::new(
            "cap_period_ms",
            "a number from 10 to 1000",
            |host, value| small(value, 10, 1000).map(|ms| host.cap_period_ms = ms),
            |host| plain(host.cap_period_ms, 100),
        ),
        Key::new(
            "console",
            console::FORM,
            |host, value| {
                let port = ConsolePort::parse(value.as_str()?)?;
                host.console = Some(port);
                Some(())
            },
            |host| host.console.map(|port| format!("\"{port}\"")),
        ),
        Key::new(
            "console_lock",
            lock::FORM,
            |host: &mut Self, value| {
                let hash = value
                    .as_str()
                    .and_then(|text| PasswordHash::parse(text).ok());
                let is_good = hash.is_some();
                host.console_lock = Some(hash.unwrap_or_else(PasswordHash::of_nothing));
                is_good.then_some(())
            },
            // A reader of the console could try passwords at leisure.
            |_| None,
        )
        .secret(),
        Key::new(
            "watchdog",
            "from \"10s\" to \"600s\"",
            |host, value| {
                let seconds = seconds(value.as_str()?)?;
                host.watchdog = Some(seconds);
                Some(())
            },
            |host| host.watchdog.map(|seconds| format!("\"{seconds}s\"")),
        ),
    ];

    fn blank() -> Self {
        Self::default()
    }
}

fn small(value: &DeValue<'_>, least: u64, most: u64) -> Option<u32> {
    number(value, least..=most).map(|number| number as u32)
}

fn seconds(text: &str) -> Option<u32> {
    let digits = text.strip_suffix('s')?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    let seconds: u32 = plain.then(|| digits.parse().ok())??;
    (10..=600).contains(&seconds).then_some(seconds)
}

/// The log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the log levels")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

const LEVELS: &[(&str, LogLevel)] = &[
    ("off", LogLevel::Off),
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

impl From<log::LevelFilter> for LogLevel {
    fn from(level: log::LevelFilter) -> Self {
        let mut levels = LEVELS.iter().map(|(_, own)| *own);
        levels
            .find(|own| log::LevelFilter::from(*own) == level)
            .unwrap_or(Self::Info)
    }
}

/// The action after a crash report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCrash {
    /// Every CPU stays halted, for analysis.
    Halt,
    /// The machine is reset.
    Reboot,
}

const ON_CRASH: &[(&str, OnCrash)] = &[("halt", OnCrash::Halt), ("reboot", OnCrash::Reboot)];

/// The action after an NMI that neither this program nor a record of the firmware explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnNmi {
    /// A crash report, and the action after one.
    Halt,
    /// An entry in the log.
    Log,
}

const ON_NMI: &[(&str, OnNmi)] = &[("halt", OnNmi::Halt), ("log", OnNmi::Log)];

/// Use of a core's threads by several TDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Smt {
    /// The threads of a core run vCPUs of any TDs.
    Share,
    /// The threads of a core never run vCPUs of different TDs at once.
    SameTd,
}

const SMT: &[(&str, Smt)] = &[("share", Smt::Share), ("same-td", Smt::SameTd)];

/// The treatment of memory that was a TD's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// Clear it.
    Always,
    /// Clear it if the CPU has the partial-write erratum.
    Erratum,
    /// Keep it as it is, for use by another TD alone.
    Reuse,
}

const CLEAR: &[(&str, Clear)] = &[
    ("always", Clear::Always),
    ("erratum", Clear::Erratum),
    ("reuse", Clear::Reuse),
];
