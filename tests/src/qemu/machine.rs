//! What a machine is made of.

use std::path::PathBuf;

use anyhow::{Result, ensure};

/// A machine to be emulated.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Logical processors; a multiple of `sockets`.
    pub cpus: u32,
    /// Packages.
    pub sockets: u32,
    /// Memory, as QEMU reads it (`2G`, `512M`).
    pub memory: String,
    /// Whether QEMU has all of the memory from its host before it starts. Where not, it asks for each page at the first
    /// access to it, which takes longer than to clear it.
    pub preallocated: bool,
    /// The SEAM stub, or none: a machine without VMX, SEAM and TDX then.
    pub stub: Option<Stub>,
    /// What it boots.
    pub boot: Boot,
    /// Whether a reset starts it again. Where not, a reset ends it.
    pub reboots: bool,
    /// The ELF of what it boots, to put names to the addresses of a crash record.
    pub symbols: Option<PathBuf>,
    /// Whether it waits for a debugger on TCP port 1234 before its first instruction.
    pub gdb: bool,
}

/// The SEAM stub in its option ROM.
#[derive(Clone, Debug)]
pub struct Stub {
    /// The ROM file.
    pub rom: PathBuf,
    /// Options `opt/seamstub/KEY`, as key and value.
    pub options: Vec<(String, String)>,
}

/// What a machine boots.
#[derive(Clone, Debug)]
pub enum Boot {
    /// A disk image; it is not written to.
    Disk(PathBuf),
    /// An EFI program over PXE: the TFTP directory, and the program's name in it.
    Network {
        /// The TFTP server's root.
        directory: PathBuf,
        /// The program's name.
        program: String,
    },
    /// A Linux kernel, which the firmware starts through its EFI entry.
    Linux {
        /// The kernel image.
        kernel: PathBuf,
        /// Its command line.
        command_line: String,
    },
}

impl Machine {
    /// Four CPUs in two packages and 2 GiB of memory.
    pub fn new(boot: Boot, stub: Option<Stub>) -> Self {
        Self {
            cpus: 4,
            sockets: 2,
            memory: "2G".to_owned(),
            preallocated: false,
            stub,
            boot,
            reboots: false,
            symbols: None,
            gdb: false,
        }
    }

    /// The same with other CPUs.
    #[must_use]
    pub fn with_cpus(mut self, cpus: u32, sockets: u32) -> Self {
        self.cpus = cpus;
        self.sockets = sockets;
        self
    }

    /// The same with more or less memory.
    #[must_use]
    pub fn with_memory(mut self, memory: &str) -> Self {
        memory.clone_into(&mut self.memory);
        self
    }

    /// The same with another value of an option of the stub.
    #[must_use]
    pub fn with_stub_option(mut self, key: &str, value: &str) -> Self {
        if let Some(stub) = &mut self.stub {
            stub.options.retain(|(known, _)| known != key);
            stub.options.push((key.to_owned(), value.to_owned()));
        }
        self
    }

    /// Checks what QEMU would refuse less clearly.
    ///
    /// # Errors
    /// When the CPUs can't be spread over the sockets, or there are none.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.sockets > 0 && self.cpus > 0 && self.cpus.is_multiple_of(self.sockets),
            "{} CPUs can't be spread evenly over {} sockets",
            self.cpus,
            self.sockets
        );
        Ok(())
    }
}
