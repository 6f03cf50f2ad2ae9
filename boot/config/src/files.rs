//! Checks of the files that a TD is built from. They run where an image is put together, and where the TD is built.

use alloc::{format, string::String};

use super::{Config, Td};

impl Td {
    /// Returns the error for this TD's first empty file, if any. `length` returns the size in bytes of a file by its
    /// name, or `None` if there is no such file.
    #[must_use]
    pub fn empty_file(&self, length: impl Fn(&str) -> Option<u64>) -> Option<String> {
        self.named_files().find_map(|(key, name)| {
            (length(name)? == 0).then(|| format!("its {key} {name:?} is an empty file"))
        })
    }
}

impl Config {
    /// Checks the files of all TDs like [`Td::empty_file`].
    #[must_use]
    pub fn empty_file(&self, length: impl Fn(&str) -> Option<u64>) -> Option<String> {
        let all = self.td.iter();
        let mut empty = all.filter_map(|td| {
            let empty = td.empty_file(&length)?;
            Some(format!("TD {}: {empty}", td.name))
        });
        empty.next()
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    #[test]
    fn an_empty_file_is_named_with_its_td_and_what_it_is_for() {
        let text = b"[[file]]\nname = \"k\"\npath = \"k\"\n[[file]]\nname = \"i\"\npath = \"i\"\n[[td]]\nname = \"a\"\n\
                     memory = \"64M\"\nkernel = \"k\"\ninitrd = \"i\"\n";
        let config = parse(text).unwrap();
        let with =
            |kernel, initrd| config.empty_file(|name| if name == "k" { kernel } else { initrd });
        assert_eq!(with(Some(5), Some(1)), None);
        assert_eq!(
            with(None, None),
            None,
            "what is not there is another matter"
        );
        assert_eq!(
            with(Some(5), Some(0)).unwrap(),
            "TD a: its initrd \"i\" is an empty file"
        );
        assert_eq!(
            with(Some(0), None).unwrap(),
            "TD a: its kernel \"k\" is an empty file"
        );
    }
}
