//! The files that a TD is built from and boots: those that its configuration names and that were loaded.

pub mod store;

use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt;

use seam::abi::PAGE_4K;
use seam::address::{Gpa, Hpa};
use td_base::kernel::{self, HEAD_BYTES, Kernel};
use td_base::payload::{File, Payload, WINDOW};
use virtio::Image as _;

use self::store::PutFile;
use super::memory::HOLE;

/// A read-only file in the host's memory, in whole pages that hold nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Physical address, a multiple of 4 KiB.
    pub hpa: Hpa,
    /// Length in bytes.
    pub bytes: u64,
}

/// The files of a TD. A file that the configuration names and that was not loaded is absent.
#[derive(Clone, Debug, Default)]
pub struct Files<'h> {
    /// The firmware that the TD is built from (TDVF format): the image that the configuration names, or the host's own,
    /// which boots a kernel.
    pub image: Option<Image<'h>>,
    /// The kernel that the firmware boots.
    pub kernel: Option<Loaded>,
    /// The kernel's initial file system.
    pub initrd: Option<Loaded>,
    /// The contents of its disks, in the order of the configuration; `None` for one that was not loaded.
    pub disks: Vec<Option<Content>>,
    /// Those of the files that were put. They stay as long as this does.
    pub held: Vec<Arc<PutFile>>,
}

/// The content of a disk.
#[derive(Clone, Debug)]
pub enum Content {
    /// It was loaded at boot, and stays.
    Boot(&'static [u8]),
    /// The operator has put it.
    Put(Arc<PutFile>),
}

impl virtio::Image for Content {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Boot(bytes) => bytes,
            Self::Put(file) => file.bytes(),
        }
    }
}

/// The firmware that a TD is built from.
#[derive(Clone, Debug)]
pub enum Image<'h> {
    /// It is always there.
    Given(&'h [u8]),
    /// The operator has put it.
    Put(Arc<PutFile>),
}

impl Image<'_> {
    /// Returns the content.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Given(bytes) => bytes,
            Self::Put(file) => file.bytes(),
        }
    }
}

impl<'h> From<Option<&'h [u8]>> for Files<'h> {
    /// Creates the files of a TD that has only an image.
    fn from(image: Option<&'h [u8]>) -> Self {
        Self {
            image: image.map(Image::Given),
            ..Self::default()
        }
    }
}

impl Files<'_> {
    /// Returns the name of a file that the configuration names and that was not loaded.
    pub fn missing<'c>(&self, config: &'c config::Td) -> Option<&'c str> {
        let is_here = |key, name| match key {
            "kernel" => self.kernel.is_some(),
            "initrd" => self.initrd.is_some(),
            "disk" => self.disk(config, name).is_some(),
            _ => self.image.is_some(),
        };
        let mut missing = config
            .named_files()
            .filter(|(key, name)| !is_here(*key, *name));
        missing.next().map(|(_, name)| name)
    }

    /// Returns the length of a file that the configuration names; `None` if it was not loaded.
    #[must_use]
    pub fn length(&self, config: &config::Td, name: &str) -> Option<u64> {
        let is = |own: Option<&str>| own == Some(name);
        let image = self.image.as_ref().filter(|_| is(config.image_file()));
        let kernel = self.kernel.filter(|_| is(config.kernel.as_deref()));
        let initrd = self.initrd.filter(|_| is(config.initrd.as_deref()));
        let image = image.map(|image| image.bytes().len() as u64);
        let disk = self.disk(config, name);
        image
            .or_else(|| kernel.or(initrd).map(|file| file.bytes))
            .or_else(|| disk.map(|content| content.bytes().len() as u64))
    }

    /// Returns the content of a disk that has the file of this name.
    fn disk(&self, config: &config::Td, name: &str) -> Option<&Content> {
        let mut disks = config.disk.iter().zip(&self.disks);
        let (_, content) = disks.find(|(disk, _)| disk.file == name)?;
        content.as_ref()
    }

    /// Checks that kernel and initial file system fit into the memory of a TD that the host's own firmware boots.
    /// `head` reads the beginning of the kernel's file. A file that is not a kernel passes: the firmware reports it.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn check_room(
        &self,
        config: &config::Td,
        head: impl FnOnce(Loaded) -> [u8; HEAD_BYTES],
    ) -> Result<(), NoRoom> {
        let (None, Some(file)) = (config.image_file(), self.kernel) else {
            return Ok(());
        };
        let Ok(kernel) = Kernel::read(&head(file), file.bytes) else {
            return Ok(());
        };
        let initrd = self.initrd.map_or(0, |initrd| initrd.bytes);
        let needed = kernel::memory_needed(&kernel, initrd, config.vcpus.into())
            .filter(|needed| *needed <= HOLE);
        match needed {
            Some(needed) if needed <= config.memory => Ok(()),
            needed => Err(NoRoom {
                memory: config.memory,
                kernel: config.kernel.clone().unwrap_or_default(),
                kernel_end: kernel.address.saturating_add(kernel.bytes),
                initrd: config.initrd.clone().map(|name| (name, initrd)),
                needed,
            }),
        }
    }

    /// Returns the guest addresses of the files to boot, which follow each other in the window. `None` without a
    /// kernel.
    pub fn payload<'c>(&self, config: &'c config::Td) -> Option<Payload<'c>> {
        let kernel = self.kernel?;
        let initrd = self.initrd.unwrap_or(Loaded {
            hpa: Hpa(0),
            bytes: 0,
        });
        Some(Payload {
            kernel: File {
                gpa: WINDOW,
                bytes: kernel.bytes,
            },
            initrd: File {
                gpa: WINDOW + kernel.bytes.next_multiple_of(PAGE_4K),
                bytes: initrd.bytes,
            },
            command_line: config.cmdline.as_bytes(),
        })
    }

    /// Returns the files to map into the guest, and their addresses.
    pub fn lent(&self, config: &config::Td) -> Vec<(Gpa, Loaded)> {
        let Some(payload) = self.payload(config) else {
            return Vec::new();
        };
        let pairs = [(payload.kernel, self.kernel), (payload.initrd, self.initrd)];
        let pairs = pairs.into_iter();
        pairs
            .filter_map(|(place, file)| Some((Gpa(place.gpa), file?)))
            .filter(|(_, file)| file.bytes != 0)
            .collect()
    }
}

/// A TD's memory has no room for its kernel and its initial file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    memory: u64,
    /// The kernel's name.
    kernel: String,
    /// End of the memory that the kernel takes, from address 0 on.
    kernel_end: u64,
    /// Name and length of the initial file system.
    initrd: Option<(String, u64)>,
    /// The amount of memory that is enough; `None` if none is.
    needed: Option<u64>,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let Self { kernel, .. } = self;
        let takes = mib(self.kernel_end);
        if self.needed.is_some() {
            write!(f, "memory = \"{}M\" is too small: ", self.memory >> 20)?;
        } else {
            f.write_str("no amount of memory is enough: ")?;
        }
        write!(f, "the kernel {kernel:?} takes {takes} MiB")?;
        if let Some((name, bytes)) = &self.initrd {
            write!(f, ", the initrd {name:?} {} MiB", mib(*bytes))?;
        }
        match self.needed {
            Some(needed) => {
                let needed = needed.next_multiple_of(config::MEMORY_STEP) >> 20;
                write!(f, "; set memory = \"{needed}M\" or more")
            }
            None => f.write_str(" and the kernel takes no initrd that ends above its limit; make the initrd smaller"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> config::Td {
        let text = "[[file]]\nname = \"k\"\npath = \"k\"\n[[td]]\nname = \"a\"\nmemory = \"64M\"\n\
                    kernel = \"k\"\ninitrd = \"k\"\ncmdline = \"quiet\"\n";
        config::parse(text.as_bytes()).unwrap().td.remove(0)
    }

    #[test]
    fn files_are_one_behind_the_other() {
        let loaded = |hpa, bytes| {
            Some(Loaded {
                hpa: Hpa(hpa),
                bytes,
            })
        };
        let mut files = Files {
            kernel: loaded(0x10_0000, 0x1001),
            ..Files::default()
        };
        assert_eq!(files.missing(&config()), Some("k"));
        assert_eq!(files.lent(&config()).len(), 1);
        files.initrd = loaded(0x20_0000, 5);
        assert_eq!(files.missing(&config()), None);
        let config = config();
        let payload = files.payload(&config).unwrap();
        assert_eq!(payload.initrd.gpa, WINDOW + 0x2000);
        assert_eq!(payload.command_line, b"quiet");
        let lent = files.lent(&config);
        assert_eq!(lent[0].0, Gpa(WINDOW));
        assert_eq!(lent[1], (Gpa(WINDOW + 0x2000), files.initrd.unwrap()));
        assert_eq!(Files::default().payload(&config), None);
    }
}
