//! `[[td.pci]]`: the PCI functions of the machine that a TD has.

use alloc::{format, vec::Vec};

use io::{Address, Selector};
use toml::de::DeValue;

use super::{
    keys::{self, Key, Keyed, Mistakes, quoted, text},
    read::place_of,
};

/// Maximum number of PCI functions that a TD can have.
pub const MOST_FUNCTIONS: usize = 16;

/// A PCI function that a TD has while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pci {
    /// The function: `"0000:01:00.0"`, or `"8086:0a54"` if the machine has one with this vendor and device.
    pub device: Selector,
}

impl Keyed for Pci {
    const TABLE: &'static str = "[[td.pci]]";
    const KEYS: &'static [Key<Self>] = &[Key::<Self>::new(
        "device",
        "an address such as \"0000:01:00.0\", or vendor and device such as \"8086:0a54\"",
        |pci, value| {
            pci.device = text(value)?.parse().ok()?;
            Some(())
        },
        |pci| Some(quoted(&format!("{}", pci.device))),
    )
    .required()];

    fn blank() -> Self {
        Self {
            device: Selector::Address(Address {
                segment: 0,
                bus: 0,
                device: 0,
                function: 0,
            }),
        }
    }
}

/// Reads the tables of `[[td.pci]]`. Returns `None` if the value is not a list of tables.
pub(crate) fn functions(value: &DeValue<'_>, mistakes: &mut Mistakes<'_>) -> Option<Vec<Pci>> {
    let before = mistakes.found.len();
    let all: Vec<Pci> = keys::read_list(value, mistakes)?;
    if mistakes.found.len() > before {
        return Some(all);
    }
    let entries = value.as_array()?;
    if let Some(beyond) = entries.get(MOST_FUNCTIONS) {
        let what = format!("a TD can have {MOST_FUNCTIONS} PCI functions, and this is one more");
        mistakes.add(beyond.span().start, what);
    }
    for (index, (pci, entry)) in all.iter().zip(entries.iter()).enumerate() {
        if all[..index].contains(pci) {
            let place = entry
                .get_ref()
                .as_table()
                .and_then(|table| place_of(table, "device"));
            let what = format!("device is \"{}\", which the TD has already", pci.device);
            mistakes.add(place.unwrap_or(entry.span().start), what);
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;
    use crate::parse;

    fn devices(tables: &str) -> Result<Vec<String>, String> {
        let text = format!(
            "[[file]]\nname = \"k\"\npath = \"k\"\n[[td]]\nname = \"a\"\nkernel = \"k\"\nmemory = \"64M\"\n{tables}"
        );
        let td = parse(text.as_bytes())?.td.remove(0);
        Ok(td.pci.iter().map(|pci| format!("{}", pci.device)).collect())
    }

    #[test]
    fn a_td_names_functions_by_address_or_by_vendor_and_device() {
        assert_eq!(devices(""), Ok(vec![]));
        let all = devices(
            "[[td.pci]]\ndevice = \"0000:01:00.0\"\n[[td.pci]]\ndevice = \"2:1f.7\"\n\
             [[td.pci]]\ndevice = \"8086:0A54\"\n",
        );
        let canonical = ["0000:01:00.0", "0000:02:1f.7", "8086:0a54"];
        assert_eq!(all, Ok(canonical.map(Into::into).into()));
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for (tables, said) in [
            (
                "[[td.pci]]\ndevice = \"nvme0\"\n",
                "9: device is \"nvme0\"; it must be an address such as \"0000:01:00.0\", or vendor and device such as \
                 \"8086:0a54\"",
            ),
            (
                "[[td.pci]]\ndevice = \"1:0.0\"\n[[td.pci]]\ndevice = \"0000:01:00.0\"\n",
                "11: device is \"0000:01:00.0\", which the TD has already",
            ),
            (
                "[[td.pci]]\ndevice = \"1:0.0\"\nindex = 1\n",
                "10: index is not a key of [[td.pci]]; its keys are device",
            ),
            (
                "[[td.pci]]\n",
                "8: [[td.pci]] needs device: an address such as \"0000:01:00.0\", or vendor and device such as \
                 \"8086:0a54\"",
            ),
            (
                &(0..17).fold(String::new(), |text, bus| {
                    format!("{text}[[td.pci]]\ndevice = \"{bus:x}:0.0\"\n")
                }),
                "40: a TD can have 16 PCI functions, and this is one more",
            ),
            (
                "pci = \"1:0.0\"\n",
                "8: pci is \"1:0.0\"; it must be [[td.pci]], a table for each device",
            ),
        ] {
            assert_eq!(devices(tables).unwrap_err(), format!("seamark.toml:{said}"));
        }
    }
}
