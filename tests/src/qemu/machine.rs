//! The description of a machine.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use stub_options::MAX_APIC_ID;

use super::trouble::Kind;

/// The range of `memory` in MiB. With less there is no room for the firmware, the SEAM range and the hypervisor. The
/// stub's nested page tables reach 512 GiB, of which up to 2 are a hole below 4 GiB.
const MEMORY_MIB: std::ops::RangeInclusive<u64> = 256..=510 << 10;

/// A machine to be emulated.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Number of logical processors; a multiple of `sockets`.
    pub cpus: u32,
    /// Number of packages.
    pub sockets: u32,
    /// Memory: a whole number of `M` or `G` (`2G`, `512M`).
    pub memory: String,
    /// True if time is the number of instructions executed, on one CPU at a time: the time-stamp counter advances by
    /// [`Self::TICKS_PER_INSTRUCTION`] with each.
    pub counts_instructions: bool,
    /// True if QEMU allocates all memory from its host before it starts. Otherwise QEMU allocates each page at its
    /// first access, which takes longer than clearing it.
    pub preallocated: bool,
    /// The SEAM stub. Without it, the machine has no VMX, SEAM or TDX.
    pub stub: Option<Stub>,
    /// The boot source.
    pub boot: Boot,
    /// The hardware around the CPUs and the memory.
    pub shape: Shape,
    /// The presence of QEMU's model of a VT-d unit. Only a q35 chipset can have it.
    pub vtd: Vtd,
    /// Physical devices, each behind a root port of its own.
    pub devices: Vec<Device>,
    /// True if a reset restarts the machine; otherwise a reset ends it.
    pub reboots: bool,
    /// The ELF of the booted program, to resolve the addresses of a crash record.
    pub symbols: Option<PathBuf>,
    /// True if the machine waits for a debugger on TCP port 1234 before its first instruction.
    pub gdb: bool,
    /// True if the machine has QEMU's monitor, for [`Guest::monitor`](super::Guest::monitor).
    pub monitor: bool,
    /// True if the machine's bus can be reached from outside, for [`Guest::bus`](super::Guest::bus).
    pub bus: bool,
    /// The socket at which QEMU waits for a debugger while the machine runs.
    pub debugger: Option<PathBuf>,
    /// Reports of the stub that a test provokes. They do not end the machine.
    pub provoked: Vec<Kind>,
}

/// The presence of a VT-d unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vtd {
    /// The run decides: all machines of a run have one, or none has.
    AsRun,
    /// There is one.
    Present,
    /// There is none.
    Absent,
}

/// The hardware around the CPUs and the memory, in QEMU's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The value of `-machine`.
    pub chipset: &'static str,
    /// The value of `-cpu`. A stub adds the features that it needs.
    pub cpu: &'static str,
    /// The device at the end of the serial line, which is the character device `serial`; none if it is empty.
    pub serial: &'static str,
    /// Further arguments.
    pub further: &'static [&'static str],
    /// The firmware.
    pub firmware: Firmware,
}

/// The two parts of a machine's firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// The code.
    pub code: &'static str,
    /// The template of its variables, which is copied for each machine.
    pub vars: &'static str,
    /// True if only its own code may change its variables, in system-management mode.
    pub guards_variables: bool,
}

impl Firmware {
    /// Debian's OVMF without Secure Boot. Its 4 MiB build does not start on a CPU with 44 or more physical address bits
    /// under TCG (ovmf 2022.11, QEMU 7.2).
    pub const USUAL: Self = Self {
        code: "/usr/share/OVMF/OVMF_CODE.fd",
        vars: "/usr/share/OVMF/OVMF_VARS.fd",
        guards_variables: false,
    };
    /// Debian's OVMF with Secure Boot on, and Debian's test key in its variables. The CPU may have at most 43 physical
    /// address bits.
    pub const SECURE_BOOT: Self = Self {
        code: "/usr/share/OVMF/OVMF_CODE_4M.snakeoil.fd",
        vars: "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd",
        guards_variables: true,
    };
    /// Debian's OVMF with Secure Boot on, and Microsoft's keys in its variables, as in a computer that is sold. The CPU
    /// may have at most 43 physical address bits.
    pub const MICROSOFT: Self = Self {
        code: "/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
        vars: "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
        guards_variables: true,
    };
}

impl Shape {
    /// The machine that most tests use. A shared GPA has bit 47 set, and KeyIDs are bits 48 to 51 of an address: a
    /// width of 48 bits allows both.
    pub const USUAL: Self = Self {
        chipset: "q35",
        cpu: "max,phys-bits=48",
        serial: "isa-serial,index=0,chardev=serial",
        further: &[],
        firmware: Firmware::USUAL,
    };
}

/// A physical device. It is behind a root port of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// An NVMe drive with the content of this file, which is written to.
    Nvme(PathBuf),
    /// An NVMe drive with the content of this file, which is not written to: QEMU forgets changes when it ends.
    Snapshot(PathBuf),
    /// An NVMe drive of the size of this file. Every read of it fails.
    Unreadable(PathBuf),
    /// A virtio network card on QEMU's user network.
    Net,
    /// A virtio network card on QEMU's user network, and the way to the ssh server behind it.
    NetWithSsh(Forward),
    /// A virtio network card on QEMU's user network, which leads to several guests: one of them bridges. These ports of
    /// this computer's loopback interface lead to their ssh servers. The guests are numbered in the order in which they
    /// ask for an address. They reach everything that this computer reaches.
    NetWithGuests(Vec<u16>),
    /// A virtio network card on a link between two machines.
    Link(Link),
    /// QEMU's `edu`, a device that copies to and from any address of memory.
    Edu,
}

/// One end of a link between two machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The socket between the two QEMUs.
    pub socket: PathBuf,
    /// True at the end whose machine is started first, which creates the socket.
    pub is_first: bool,
    /// The MAC address of the network card.
    pub mac: &'static str,
}

/// The way to the ssh server of a guest on QEMU's user network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The port of this computer's loopback interface that leads to the guest's port 22.
    pub port: u16,
    /// True if the guest reaches nothing but QEMU's own DHCP server.
    pub isolated: bool,
}

impl Forward {
    /// Creates a forward to a guest that reaches nothing but QEMU's own DHCP server, from a port that no other program
    /// uses at the moment.
    ///
    /// # Errors
    /// No port is free.
    pub fn to_isolated() -> Result<Self> {
        let port = free_port(0)?;
        Ok(Self {
            port,
            isolated: true,
        })
    }

    /// Creates a forward to a guest that reaches everything that this computer reaches, from `port` if it is free, else
    /// from another one.
    ///
    /// # Errors
    /// No port is free.
    pub fn from_port(port: u16) -> Result<Self> {
        let port = free_port(port).or_else(|_| free_port(0))?;
        Ok(Self {
            port,
            isolated: false,
        })
    }
}

/// Returns `port` of the loopback interface if it is free; any that is free for 0.
fn free_port(port: u16) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

/// The SEAM stub in its option ROM.
#[derive(Clone, Debug)]
pub struct Stub {
    /// The ROM file.
    pub rom: PathBuf,
    /// Options `opt/seamstub/KEY`, as key and value.
    pub options: Vec<(String, String)>,
}

/// The boot source of a machine.
#[derive(Clone, Debug)]
pub enum Boot {
    /// A disk image; it is not written to.
    Disk(PathBuf),
    /// Nothing but the machine's devices, among which the firmware finds a disk.
    Devices,
    /// An EFI program over PXE: the TFTP directory, and the program's name in it.
    Network {
        /// The TFTP server's root.
        directory: PathBuf,
        /// The program's name.
        program: String,
    },
    /// An EFI program from the server on a link of a test's own network.
    Link(Wire),
    /// A Linux kernel, which the firmware starts through its EFI entry.
    Linux {
        /// The kernel image.
        kernel: PathBuf,
        /// The kernel's command line.
        command_line: String,
    },
}

/// The machine's side of a link.
#[derive(Clone, Debug)]
pub struct Wire {
    /// The tap interface at the other end.
    pub interface: String,
    /// The MAC address of the machine's network card.
    pub mac: String,
    /// True for HTTP boot; otherwise the firmware uses PXE first.
    pub http: bool,
    /// The file for the traffic, in pcap format.
    pub capture: PathBuf,
}

impl Machine {
    /// Ticks of the time-stamp counter for an instruction where instructions are counted. With fewer, software that
    /// waits for a time, as the firmware does, executes more instructions.
    pub const TICKS_PER_INSTRUCTION: u64 = 1 << Self::ICOUNT_SHIFT;
    /// The binary logarithm of it. The counter has a tick each nanosecond then.
    pub(super) const ICOUNT_SHIFT: u32 = 5;

    /// Creates a machine of four CPUs in two packages and 2 GiB of memory, with a VT-d unit
    /// unless the run is one without.
    pub fn new(boot: Boot, stub: Option<Stub>) -> Self {
        Self {
            cpus: 4,
            sockets: 2,
            memory: "2G".to_owned(),
            counts_instructions: false,
            preallocated: false,
            stub,
            boot,
            shape: Shape::USUAL,
            vtd: Vtd::AsRun,
            devices: Vec::new(),
            reboots: false,
            symbols: None,
            gdb: false,
            monitor: false,
            bus: false,
            debugger: None,
            provoked: Vec::new(),
        }
    }

    /// Sets the CPUs.
    #[must_use]
    pub fn with_cpus(mut self, cpus: u32, sockets: u32) -> Self {
        self.cpus = cpus;
        self.sockets = sockets;
        self
    }

    /// Sets the memory.
    #[must_use]
    pub fn with_memory(mut self, memory: &str) -> Self {
        memory.clone_into(&mut self.memory);
        self
    }

    /// Adds QEMU's model of a VT-d unit, which remaps DMA and interrupts. The chipset must be q35.
    #[must_use]
    pub fn with_iommu(mut self) -> Self {
        self.vtd = Vtd::Present;
        self
    }

    /// Leaves the VT-d unit out.
    #[must_use]
    pub fn without_iommu(mut self) -> Self {
        self.vtd = Vtd::Absent;
        self
    }

    /// Adds a physical device behind a root port of its own.
    #[must_use]
    pub fn with_device(mut self, device: Device) -> Self {
        self.devices.push(device);
        self
    }

    /// Sets an option of the stub.
    #[must_use]
    pub fn with_stub_option(mut self, key: &str, value: &str) -> Self {
        if let Some(stub) = &mut self.stub {
            stub.options.retain(|(known, _)| known != key);
            stub.options.push((key.to_owned(), value.to_owned()));
        }
        self
    }

    /// Checks everything that QEMU, the firmware or the stub would refuse later and less clearly.
    ///
    /// # Errors
    /// The CPUs can't be spread over the sockets, are none or too many, or the memory is malformed, too small or too
    /// large.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.cpus > 0,
            "a machine has at least one CPU: choose 1 to {} for --smp",
            MAX_APIC_ID + 1
        );
        ensure!(
            self.sockets > 0 && self.cpus.is_multiple_of(self.sockets),
            "{} CPUs can't be spread evenly over {} sockets",
            self.cpus,
            self.sockets
        );
        let highest = self.highest_apic_id();
        ensure!(
            self.stub.is_none() || highest <= u64::from(MAX_APIC_ID),
            "{} CPUs in {} sockets have APIC ids up to {highest}, and the stub carries ids up to {MAX_APIC_ID}: use fewer CPUs, or \
             sockets with a power of two of them",
            self.cpus,
            self.sockets
        );
        let mib = mebibytes(&self.memory)?;
        ensure!(
            MEMORY_MIB.contains(&mib),
            "{} of memory: choose {}M to {}G",
            self.memory,
            MEMORY_MIB.start(),
            MEMORY_MIB.end() >> 10
        );
        Ok(())
    }

    /// Returns the highest APIC id: a package's CPUs are numbered in as many bits as they need.
    fn highest_apic_id(&self) -> u64 {
        let each = u64::from(self.cpus / self.sockets);
        u64::from(self.sockets - 1) * each.next_power_of_two() + each - 1
    }
}

/// Parses `text` to MiB.
fn mebibytes(text: &str) -> Result<u64> {
    let parse = || {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let number: u64 = text[..text.len() - unit.len()].parse().ok()?;
        let mib = match unit {
            "M" | "m" => 1,
            "G" | "g" => 1 << 10,
            _ => return None,
        };
        number.checked_mul(mib)
    };
    parse().with_context(|| {
        format!("{text:?} is no size of a memory: write a whole number and M or G, such as 2G")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cpus: u32, sockets: u32, memory: &str) -> Machine {
        let stub = Stub {
            rom: PathBuf::new(),
            options: Vec::new(),
        };
        let mut machine = Machine::new(Boot::Disk(PathBuf::new()), Some(stub));
        memory.clone_into(&mut machine.memory);
        machine.with_cpus(cpus, sockets)
    }

    #[test]
    fn machines_that_work_are_accepted() {
        for (cpus, sockets, memory) in [
            (1, 1, "256M"),
            (4, 2, "2G"),
            (64, 4, "8G"),
            (255, 1, "9216M"),
            (255, 255, "510G"),
            (254, 2, "2g"),
        ] {
            machine(cpus, sockets, memory).check().unwrap();
        }
    }

    #[test]
    fn each_refusal_says_what_is_wrong() {
        for (cpus, sockets, memory, words) in [
            (0, 1, "2G", "at least one CPU"),
            (4, 0, "2G", "4 CPUs can't be spread evenly over 0 sockets"),
            (4, 3, "2G", "4 CPUs can't be spread evenly over 3 sockets"),
            (256, 2, "2G", "APIC ids up to 255"),
            (258, 6, "2G", "APIC ids up to 362"),
            (4, 2, "10X", "write a whole number and M or G"),
            (4, 2, "2.5G", "write a whole number and M or G"),
            (4, 2, "", "write a whole number and M or G"),
            (
                4,
                2,
                "99999999999999999G",
                "write a whole number and M or G",
            ),
            (4, 2, "0", "write a whole number and M or G"),
            (4, 2, "0G", "choose 256M to 510G"),
            (4, 2, "255M", "choose 256M to 510G"),
            (4, 2, "511G", "choose 256M to 510G"),
        ] {
            let why = machine(cpus, sockets, memory).check().unwrap_err();
            assert!(why.to_string().contains(words), "{why}");
        }
    }

    #[test]
    fn without_the_stub_only_qemus_own_limit_applies() {
        let mut machine = machine(256, 2, "2G");
        machine.stub = None;
        machine.check().unwrap();
    }
}
