//! The payload that the host hands a TD to boot: a kernel, an initial file system, a command line.
//!
//! It is a block of the hand-off list, named [`GUID`], which contains the command line. The files are in memory that
//! the host shares with the TD read-only, from [`WINDOW`] on. None of it is trusted, and the firmware measures only
//! what it has copied.

use core::ops::Range;

/// The block's name: 8c9a2a67-6e1f-4b8e-9d43-55b1f0c7a2e6.
pub const GUID: [u8; 16] = [
    0x67, 0x2A, 0x9A, 0x8C, 0x1F, 0x6E, 0x8E, 0x4B, 0x9D, 0x43, 0x55, 0xB1, 0xF0, 0xC7, 0xA2, 0xE6,
];

/// The address of shared files, without the SHARED bit: the last 512 GiB of a TD with 48-bit addresses, far above its
/// memory.
pub const WINDOW: u64 = (1 << 47) - WINDOW_BYTES;
/// Size of the window in bytes.
pub const WINDOW_BYTES: u64 = 1 << 39;

/// Maximum length of a command line in bytes: Linux's limit for x86.
pub const COMMAND_LINE_MAX: usize = 2047;

/// A file in the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// The file's address without the SHARED bit, a multiple of 4 KiB.
    pub gpa: u64,
    /// The file's length.
    pub bytes: u64,
}

impl File {
    /// Returns the file's range of addresses.
    pub const fn range(self) -> Range<u64> {
        self.gpa..self.gpa + self.bytes
    }

    fn is_in_window(self) -> bool {
        let offset = self.gpa.checked_sub(WINDOW);
        offset
            .and_then(|offset| offset.checked_add(self.bytes))
            .is_some_and(|end| end <= WINDOW_BYTES)
    }
}

/// The files and the command line to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    /// The kernel.
    pub kernel: File,
    /// The initial file system; its length is 0 if there is none.
    pub initrd: File,
    /// The command line, without the terminating zero.
    pub command_line: &'a [u8],
}

/// Number of bytes before the command line: two files and its length.
const FIXED: usize = 40;

impl<'a> Payload<'a> {
    /// Parses a block's content, without its name.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn read(block: &'a [u8]) -> Result<Self, &'static str> {
        let (fixed, rest) = block
            .split_first_chunk::<FIXED>()
            .ok_or("it is too short")?;
        let [kernel, kernel_bytes, initrd, initrd_bytes, length] =
            core::array::from_fn(|i| fixed.as_chunks::<8>().0[i]).map(u64::from_le_bytes);
        let file = |gpa, bytes| {
            Some(File { gpa, bytes })
                .filter(|file| file.is_in_window())
                .ok_or("a file is not in the window")
        };
        let command_line = usize::try_from(length)
            .ok()
            .filter(|length| *length <= COMMAND_LINE_MAX)
            .and_then(|length| rest.get(..length))
            .ok_or("the command line is too long")?;
        Ok(Self {
            kernel: file(kernel, kernel_bytes)?,
            initrd: match initrd_bytes {
                0 => File::default(),
                bytes => file(initrd, bytes)?,
            },
            command_line,
        })
    }

    /// Returns the block's bytes before the command line. The command line follows, padded with zeros to a multiple of
    /// 8.
    pub fn head(&self) -> [u8; FIXED] {
        let mut bytes = [0; FIXED];
        let words = [
            self.kernel.gpa,
            self.kernel.bytes,
            self.initrd.gpa,
            self.initrd.bytes,
            self.command_line.len() as u64,
        ];
        for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *chunk = word.to_le_bytes();
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload() -> Payload<'static> {
        Payload {
            kernel: File {
                gpa: WINDOW,
                bytes: 0x1234,
            },
            initrd: File {
                gpa: WINDOW + 0x2000,
                bytes: WINDOW_BYTES - 0x2000,
            },
            command_line: b"console=ttyS0",
        }
    }

    fn block(payload: &Payload<'_>) -> Vec<u8> {
        [&payload.head()[..], payload.command_line, &[0; 3]].concat()
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Payload::read(&block(&payload())), Ok(payload()));
        let bare = Payload {
            initrd: File::default(),
            command_line: b"",
            ..payload()
        };
        assert_eq!(Payload::read(&block(&bare)), Ok(bare));
    }

    #[test]
    fn a_file_outside_the_window_and_a_line_that_is_too_long_are_refused() {
        let with = |gpa, bytes| Payload {
            kernel: File { gpa, bytes },
            ..payload()
        };
        for wrong in [
            with(WINDOW - 1, 2),
            with(WINDOW, WINDOW_BYTES + 1),
            with(WINDOW + 1, u64::MAX),
        ] {
            let read = block(&wrong);
            assert_eq!(Payload::read(&read), Err("a file is not in the window"));
        }
        let whole = block(&payload());
        assert!(Payload::read(&whole[..FIXED + 12]).is_err());
        assert!(Payload::read(&whole[..FIXED - 1]).is_err());
    }
}
