//! `[[td.disk]]`: the disks of a TD.

use alloc::{string::String, vec::Vec};

use toml::de::DeValue;

use super::{
    keys::{self, Key, Keyed, Mistakes, quoted, text},
    td, value,
};

/// Maximum number of disks of a TD.
pub const MOST_DISKS: usize = 8;
/// Maximum length of a serial number.
const SERIAL: usize = 20;

/// A disk of a TD, with the content of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Name of the `[[file]]` with the content.
    pub file: String,
    /// Number of bytes that the TD may write, in memory of the host that is taken when the TD starts and given back at its
    /// end, with all that was written. By default the disk is read-only.
    pub overlay: Option<u64>,
    /// The serial number: up to 20 characters of printable ASCII. By default the name of the file, as far as it fits.
    pub serial: Option<String>,
}

impl Disk {
    /// Returns the serial number.
    #[must_use]
    pub fn serial(&self) -> &str {
        let file = self.file.get(..SERIAL).unwrap_or(&self.file);
        self.serial.as_deref().unwrap_or(file)
    }
}

impl Keyed for Disk {
    const TABLE: &'static str = "[[td.disk]]";
    const KEYS: &'static [Key<Self>] = &[
        Key::<Self>::new(
            "file",
            td::FILE,
            |disk, value| text(value).map(|name| disk.file = name),
            |disk| Some(quoted(&disk.file)),
        )
        .required(),
        Key::<Self>::new(
            "overlay",
            td::SIZE,
            |disk, value| value::whole_frames(value).map(|bytes| disk.overlay = Some(bytes)),
            |disk| disk.overlay.map(|bytes| quoted(&value::size(bytes))),
        ),
        Key::<Self>::new(
            "serial",
            "up to 20 characters of printable ASCII, in quotes",
            |disk, value| {
                disk.serial = Some(text(value).filter(|serial| is_serial(serial))?);
                Some(())
            },
            |disk| disk.serial.as_deref().map(quoted),
        ),
    ];

    fn blank() -> Self {
        Self::default()
    }
}

fn is_serial(serial: &str) -> bool {
    serial.len() <= SERIAL && serial.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Reads the tables of `[[td.disk]]`. Returns `None` if the value is not a list of tables, or of too many.
pub(crate) fn disks(value: &DeValue<'_>, mistakes: &mut Mistakes<'_>) -> Option<Vec<Disk>> {
    value.as_array().filter(|all| all.len() <= MOST_DISKS)?;
    keys::read_list(value, mistakes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;
    use alloc::{format, string::ToString};

    fn parsed(disks: &str) -> Result<Vec<Disk>, String> {
        let text = format!(
            "[[file]]\nname = \"k\"\npath = \"k\"\n[[td]]\nname = \"a\"\nkernel = \"k\"\nmemory = \"64M\"\n{disks}"
        );
        parse(text.as_bytes()).map(|mut config| config.td.remove(0).disk)
    }

    #[test]
    fn a_disk_has_a_file_and_may_be_written_as_far_as_its_overlay_goes() {
        let disks = parsed(
            "[[td.disk]]\nfile = \"k\"\n[[td.disk]]\nfile = \"k\"\noverlay = \"64M\"\nserial = \"root\"\n",
        )
        .unwrap();
        assert_eq!((disks[0].overlay, disks[0].serial()), (None, "k"));
        assert_eq!(
            (disks[1].overlay, disks[1].serial()),
            (Some(64 << 20), "root")
        );
        let shown = keys::show_list(&disks).unwrap();
        assert_eq!(
            shown,
            "[{ file = \"k\" }, { file = \"k\", overlay = \"64M\", serial = \"root\" }]"
        );
        assert_eq!(parsed(&format!("disk = {shown}\n")).unwrap(), disks);
    }

    #[test]
    fn what_is_no_disk_is_refused_with_its_line() {
        for (line, wrong) in [
            (8, "[[td.disk]]\noverlay = \"2M\"\n".to_string()),
            (9, "[[td.disk]]\nfile = 3\n".to_string()),
            (
                10,
                "[[td.disk]]\nfile = \"k\"\noverlay = \"3M\"\n".to_string(),
            ),
            (
                10,
                format!(
                    "[[td.disk]]\nfile = \"k\"\nserial = \"{}\"\n",
                    "x".repeat(21)
                ),
            ),
            (8, "disk = \"k\"\n".to_string()),
            (8, format!("disk = [{}]\n", "{ file = \"k\" },".repeat(9))),
        ] {
            let error = parsed(&wrong).unwrap_err();
            let lines = [line, line + 1].map(|line| format!("seamark.toml:{line}: "));
            assert!(
                lines.iter().any(|line| error.starts_with(&**line)),
                "{wrong} {error}"
            );
        }
        let missing = parsed("[[td.disk]]\nfile = \"none\"\n").unwrap_err();
        assert!(missing.contains("disk is \"none\""), "{missing}");
    }
}
