//! The console's interface to the machine: the [`Management`] trait and the reports that it returns.
//!
//! Reports are plain data, and the only source of a reply: both the tables for the operator and the JSON for scripts
//! are made from them. Nothing here touches hardware, so the console runs in host tests.

pub mod absent;
pub mod crash;
pub mod define;
pub mod device;
pub mod errors;
pub mod event;
pub mod failure;
pub mod iommu;
pub mod load;
pub mod network;
pub mod pci;
pub mod platform;
pub mod seam;
pub mod td;
pub mod tdx;

use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::fmt;

use serde::{Serialize, Serializer};

use self::{failure::Failure, tdx::Tdx};

/// A physical address or a bit mask. It is hexadecimal in tables, and a string such as `"0x8000"` in JSON, whose
/// numbers are not safe above 2^53.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:#x}", self.0))
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The program's version and build.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Build {
    /// The version of the program, as in its manifest.
    pub version: String,
    /// The commit that the program was built from, if the build knew it.
    pub commit: Option<String>,
    /// The compiler that built it, if the build knew it.
    pub compiler: Option<String>,
}

/// The state of this boot.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Boot {
    /// The boot CPU's name, family, model, stepping and microcode.
    pub cpu: String,
    /// The origin of the image, for people: "disk (EFI\BOOT\BOOTX64.EFI)", "PXE from 10.0.2.2",
    /// "HTTP from http://10.0.2.2/seamark.efi".
    pub loaded_from: String,
    /// True if Secure Boot is on, so that only signed files are used.
    pub secure_boot: bool,
    /// The configuration file that was read; `None` if there was none.
    pub config: Option<String>,
    /// The problems with the configuration, each with file, line and reason.
    pub config_problems: Vec<String>,
    /// Other problems of the boot, one sentence each: a CPU that never started, a missing x2APIC.
    pub problems: Vec<String>,
    /// Number of crashes since the operator dropped the last one.
    pub crashes: u32,
    /// Physical address of the image, which a debugger needs.
    pub image: Hex,
    /// Microseconds from the first line of the hypervisor to the first prompt, excluding TDX bring-up; `None` before
    /// the first prompt.
    pub to_prompt_us: Option<u64>,
    /// Microseconds since the first line of the hypervisor.
    pub uptime_us: u64,
}

/// One logical processor that the firmware lists as enabled.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cpu {
    /// The hypervisor's number for the CPU; numbers start at 0 and have no gaps.
    pub index: u32,
    /// The (x2)APIC id.
    pub apic_id: u32,
    /// The package, as CPUID 0x1F/0xB reports it.
    pub package: u32,
    /// The core within its package.
    pub core: u32,
    /// The thread within its core.
    pub thread: u32,
    /// The proximity domain from the SRAT, if there is one.
    pub numa_node: Option<u32>,
    /// True for the CPU that the firmware booted on.
    pub bootstrap: bool,
    /// The CPU's activity.
    pub state: CpuState,
    /// Details of the state: why the CPU did not start, or which vector stopped it.
    pub detail: Option<String>,
}

/// The activity of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CpuState {
    /// The CPU executes something.
    Online,
    /// The CPU is halted until an interrupt arrives.
    Idle,
    /// INIT-SIPI-SIPI was sent, and the CPU has not reported in time.
    NeverStarted,
    /// The CPU was not asked to start because the machine can't start it (no x2APIC).
    NotUsed,
    /// The CPU stopped after a fatal exception, an NMI or a machine check.
    Stopped,
}

impl fmt::Display for CpuState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Online => "online",
            Self::Idle => "idle",
            Self::NeverStarted => "never started",
            Self::NotUsed => "not used",
            Self::Stopped => "stopped",
        })
    }
}

/// The machine's memory and its use.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Memory {
    /// One entry for each frame size that the allocator serves, ascending.
    pub frames: Vec<FrameCount>,
    /// The frame ledger in bytes.
    pub ledger: Ledger,
    /// The hypervisor's heap.
    pub heap: Heap,
    /// The firmware's memory map, ascending.
    pub regions: Vec<Region>,
}

/// The frames of one size, by use.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FrameCount {
    /// Bytes in a frame: 4 KiB, 2 MiB or 1 GiB.
    pub frame_bytes: u64,
    /// Free frames of this size (the largest size that they can be handed out as).
    pub free: u64,
    /// Frames handed out as this size.
    pub used: u64,
    /// Frames of this size that are withheld because the TDX module may still own them.
    pub quarantined: u64,
}

/// The frame ledger: every managed byte is free, used or quarantined.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Ledger {
    /// Bytes that the allocator was given at boot.
    pub total_bytes: u64,
    /// Bytes free now.
    pub free_bytes: u64,
    /// Bytes handed out now.
    pub used_bytes: u64,
    /// Bytes in quarantine.
    pub quarantined_bytes: u64,
    balanced: bool,
}

impl Ledger {
    /// Creates a ledger from four sums, each counted on its own. It balances if the last three add up to the first.
    #[must_use]
    pub fn new(total_bytes: u64, free_bytes: u64, used_bytes: u64, quarantined_bytes: u64) -> Self {
        let accounted = [free_bytes, used_bytes, quarantined_bytes]
            .into_iter()
            .try_fold(0u64, u64::checked_add);
        Self {
            total_bytes,
            free_bytes,
            used_bytes,
            quarantined_bytes,
            balanced: accounted == Some(total_bytes),
        }
    }

    /// Returns true if no byte is lost and none is counted twice.
    #[must_use]
    pub fn balanced(&self) -> bool {
        self.balanced
    }
}

/// The hypervisor's heap, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Heap {
    /// The heap's size.
    pub total_bytes: u64,
    /// Bytes allocated now.
    pub used_bytes: u64,
}

/// One region of the firmware's memory map.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Region {
    /// The first physical address.
    pub start: Hex,
    /// The first physical address behind it.
    pub end: Hex,
    /// The firmware's name for it: "conventional", "ACPI NVS", "reserved".
    pub kind: String,
}

/// One record of the log.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogRecord<'a> {
    /// Microseconds since the hypervisor's first line.
    pub us: u64,
    /// The CPU that logged the record.
    pub cpu: u32,
    /// The severity.
    #[serde(serialize_with = "level_name")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub level: log::Level,
    /// The module that logged the record.
    pub target: &'a str,
    /// The text.
    pub message: &'a str,
}

fn level_name<S: Serializer>(level: &log::Level, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&level.as_str().to_ascii_lowercase())
}

/// A way to end this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PowerAction {
    /// Reset the machine.
    Reboot,
    /// Switch the machine off.
    PowerOff,
}

/// The machine, as the console sees it.
///
/// Unless its documentation says otherwise, no method waits for anything but a bounded cross-CPU call. A
/// [`Failure`] carries one sentence for the operator: what is wrong, where, and what to do.
pub trait Management {
    /// Returns the program's version and build.
    fn build(&self) -> Build;

    /// Returns the state of this boot.
    fn boot(&self) -> Boot;

    /// Returns the microseconds since the hypervisor's first line.
    fn now_us(&self) -> u64;

    /// Returns the facts about the machine.
    fn facts(&self) -> load::Facts;

    /// Returns what the host has done so far.
    fn sample(&self) -> load::Sample;

    /// Returns the events after number `since` that are still kept.
    fn events(&self, since: u64) -> event::Events;

    /// Records something that the operator asked for on this console.
    fn record(&self, action: &event::Action<'_>);

    /// Returns true if the console has a password.
    fn has_password(&self) -> bool;

    /// Returns true if `password` is the console's. This takes a fraction of a second, in which the machine continues.
    ///
    /// # Errors
    /// The password could not be checked. It counts as none.
    fn check_password(&mut self, password: &str) -> Result<bool, Failure>;

    /// Returns the boot CPU's identification registers.
    fn platform(&self) -> platform::Platform;

    /// Returns every CPU that the firmware lists as enabled, in the order of `index`.
    fn cpus(&self) -> Vec<Cpu>;

    /// Returns the mitigations of speculative execution attacks, which are the same on every CPU.
    fn mitigations(&self) -> Vec<errors::Mitigation>;

    /// Looks at every CPU's machine-check banks and at the firmware's error records, and returns the errors since the
    /// start.
    fn errors(&self) -> errors::Errors;

    /// Returns the report of the last crash, if one is kept.
    fn last_crash(&self) -> Option<crash::Crash>;

    /// Forgets the last crash, if there is one.
    ///
    /// # Errors
    /// A place that kept the report still has it.
    fn drop_crash(&mut self) -> Result<(), Failure>;

    /// Returns the machine's memory and its use.
    fn memory(&self) -> Memory;

    /// Returns the networks of TDs, in the order of the configuration. By default no card is in any.
    fn networks(&self) -> Vec<network::Network> {
        self.config().network.iter().map(Into::into).collect()
    }

    /// Returns the PCI functions, in the order of their addresses.
    ///
    /// # Errors
    /// They are not known.
    fn pci_list(&self) -> Result<Vec<pci::PciLine>, Failure>;

    /// Returns the PCI function at an address such as `0000:01:00.0`. Measures its base address registers if nobody has
    /// it.
    ///
    /// # Errors
    /// The text is no address, or there is no function.
    fn pci_show(&self, address: &str) -> Result<pci::PciReport, Failure>;

    /// Removes the label of the TD that had the PCI function at an address, from all functions of its group, so that any
    /// TD can have them.
    ///
    /// # Errors
    /// The text is no address, there is no function, or no TD has left its label.
    fn pci_release(&mut self, address: &str) -> Result<pci::PciReleased, Failure>;

    /// Returns the state of TDX on this machine.
    fn tdx(&self) -> Tdx;

    /// Returns the VT-d units, and the requests that they blocked.
    fn iommu(&self) -> iommu::Iommu;

    /// Returns the TDs.
    ///
    /// # Errors
    /// This machine can't have any.
    fn tds(&self) -> Result<Box<dyn td::Tds + '_>, Failure>;

    /// Returns the definitions of the TDs, and their files.
    ///
    /// # Errors
    /// This machine can't have any TDs.
    fn definitions(&self) -> Result<Box<dyn define::Definitions + '_>, Failure>;

    /// Returns the configuration that the host has started with.
    fn config(&self) -> config::Config;

    /// Continues a bring-up of TDX that has failed, from the step that failed. On success the TDs of the configuration
    /// can run.
    ///
    /// # Errors
    /// Nothing has failed, or not for a reason that passes, or it has failed again.
    fn retry_tdx(&mut self) -> Result<Tdx, Failure>;

    /// Returns the HKIDs and their owners.
    ///
    /// # Errors
    /// There is no TDX module.
    fn hkids(&self) -> Result<td::HkidReport, Failure>;

    /// Returns the SEAMCALLs, retries and exits since the start.
    fn stats(&self) -> seam::Stats;

    /// Measures SEAMCALLs, partly on a TD of its own. That takes a while; the machine continues meanwhile.
    ///
    /// # Errors
    /// Nothing could be measured.
    fn seam_bench(&self) -> Result<seam::SeamBench, Failure>;

    /// Passes every record that the log's ring still holds to `visit`, oldest first. Returns how many it has lost to
    /// newer ones.
    fn log_records(&self, visit: &mut dyn FnMut(&LogRecord<'_>)) -> u64;

    /// Returns the log level: records at this level and more serious ones are logged.
    fn log_level(&self) -> log::LevelFilter;

    /// Sets the log level.
    fn set_log_level(&mut self, level: log::LevelFilter);

    /// Reads the 64 bytes at `line`, a multiple of 64, lowest address first: RAM in loads of 8 bytes, anything else in
    /// loads of 4 bytes.
    ///
    /// This is the operator's own risk: device registers may change when they are read, and memory that belongs to the
    /// TDX module may answer with a machine check.
    ///
    /// # Errors
    /// The address can't be mapped (it exceeds the CPU's physical address width), or the page is a TD's.
    fn peek(&mut self, line: u64) -> Result<[u8; 64], Failure>;

    /// Checks that the machine can do `action`, and schedules it: the host does it as soon as the console call that
    /// led here has returned, so that the reply is sent first. Returns the method, such as "ACPI reset register".
    ///
    /// # Errors
    /// The machine offers no way to do it. Nothing was scheduled then.
    fn request_power(&mut self, action: PowerAction) -> Result<String, Failure>;
}
