//! Reading a whole file. A mistake costs the table that it is in, or in `[host]` the key, and nothing else.

use alloc::{format, string::String, vec::Vec};
use core::{fmt, ops::Range};

use toml::de::DeTable;

use super::{
    Config, File, Host, Smt, Td,
    keys::{self, Keyed, Mistakes},
    lock::PasswordHash,
    mend::{Mended, State, mend},
    network::{self, Network},
};

/// A mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line that it is in; lines are numbered from 1.
    pub line: usize,
    /// The mistake, and the remedy.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.what)
    }
}

/// Everything that a text says, as far as it is understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The part that is in order: without each `[[td]]`, `[[network]]` and `[[file]]` that has a mistake, and with the defaults for the keys of
    /// `[host]` that have one.
    pub config: Config,
    /// All mistakes, by line.
    pub problems: Vec<Problem>,
    /// Number of `[[td]]` that are left out because of mistakes.
    pub lost_tds: usize,
}

/// Reads a configuration.
#[must_use]
pub fn read(bytes: &[u8]) -> Read {
    let text = String::from_utf8_lossy(bytes);
    let mended = mend(&text);
    let mut mistakes = Mistakes::of(&mended.text);
    match core::str::from_utf8(bytes) {
        Ok(_) => mistakes.found.extend(mended.mistakes.iter().cloned()),
        // The parser complains about it, too.
        Err(e) => mistakes.add(e.valid_up_to(), "the file is not UTF-8 text".into()),
    }
    let mut reader = Reader {
        mended: &mended,
        mistakes,
    };
    let (table, _) = DeTable::parse_recoverable(&mended.text);
    let (mut config, mut lost_tds) = reader.config(table.get_ref());
    let gone = |name: &str| {
        let sections = mended.sections.iter();
        sections
            .filter(|section| section.name == name && section.state == State::Gone)
            .count()
    };
    lost_tds += gone("td");
    let mut broken = mended.sections.iter();
    let broken = broken.find(|section| section.name == "host" && section.state != State::Whole);
    if let Some(host) = broken.map(|section| &text[section.range.clone()]) {
        // The operator wanted something, and only these values protect TDs from each other, and the console.
        if host.contains("smt") {
            config.host.smt = Smt::SameTd;
        }
        if host.contains("console_lock") && config.host.console_lock.is_none() {
            config.host.console_lock = Some(PasswordHash::of_nothing());
        }
    }
    Read {
        config,
        problems: problems(&text, reader.mistakes.found, 0),
        lost_tds,
    }
}

/// Returns the mistakes by line, in a text that has `above` lines before those of the operator.
pub(crate) fn problems(text: &str, mut found: Vec<(usize, String)>, above: usize) -> Vec<Problem> {
    found.sort();
    found.dedup();
    let problems = found.into_iter().map(|(at, what)| Problem {
        line: line_of(text, at).saturating_sub(above).max(1),
        what,
    });
    problems.collect()
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

pub(crate) struct Reader<'t> {
    pub mended: &'t Mended,
    pub mistakes: Mistakes<'t>,
}

/// A table of `[[file]]`, `[[network]]` or `[[td]]`.
pub(crate) struct Entry<'t, T> {
    pub read: T,
    pub table: &'t DeTable<'t>,
    /// The offset of its first key, or of its header.
    at: usize,
    /// True if it has a mistake.
    is_wrong: bool,
}

impl Reader<'_> {
    /// Returns the configuration, and the number of TDs that are not in it.
    fn config(&mut self, root: &DeTable<'_>) -> (Config, usize) {
        for (name, _) in root.iter() {
            if !matches!(&**name.get_ref(), "host" | "file" | "network" | "td") {
                let short: String = name.get_ref().chars().take(40).collect();
                let what = format!(
                    "{short} is not known here; write [host], [[file]], [[network]] or [[td]] above its keys"
                );
                self.mistakes.add(name.span().start, what);
            }
        }
        let host = self.host(root);
        let mut files: Vec<Entry<'_, File>> = self.entries(root, "file");
        let mut networks: Vec<Entry<'_, Network>> = self.entries(root, "network");
        let mut tds: Vec<Entry<'_, Td>> = self.entries(root, "td");
        self.all_differ(&mut files);
        self.all_differ(&mut networks);
        self.all_differ(&mut tds);
        self.all_cids_differ(&mut tds);
        // A file or a network with a mistake is left out; the TD that names it makes none.
        let names = Names {
            is_file: &|name| files.iter().any(|file| file.read.name == name),
            is_network: &|name| networks.iter().any(|network| network.read.name == name),
        };
        for index in 0..tds.len() {
            let (others, rest) = tds.split_at_mut(index);
            self.check_references(&mut rest[0], &names, others);
        }
        let all = tds.len();
        let sound = |is_wrong: bool| !is_wrong;
        let tds: Vec<_> = tds.into_iter().filter(|td| sound(td.is_wrong)).collect();
        let lost = all - tds.len();
        let config = Config {
            host,
            file: files
                .into_iter()
                .filter(|file| sound(file.is_wrong))
                .map(|file| file.read)
                .collect(),
            network: networks
                .into_iter()
                .filter(|network| sound(network.is_wrong))
                .map(|network| network.read)
                .collect(),
            td: tds.into_iter().map(|td| td.read).collect(),
        };
        (config, lost)
    }

    /// Reports what is wrong with the names that a TD uses, and with its addresses beside those of the TDs before it.
    fn check_references(
        &mut self,
        td: &mut Entry<'_, Td>,
        names: &Names<'_>,
        others: &[Entry<'_, Td>],
    ) {
        let before = self.mistakes.found.len();
        let is_whole = self.mended.state_at(td.at) == State::Whole;
        for wrong in td.wrong_references(names) {
            if !is_whole && !wrong.lacks.is_empty() {
                continue;
            }
            let at = place_of(td.table, wrong.key).unwrap_or(td.at);
            self.mistakes.add(at, wrong.what);
        }
        let others = others.iter().filter(|other| !other.is_wrong);
        if let Some(what) = network::taken(&td.read, others.map(|other| &other.read)) {
            let at = place_of(td.table, "net").unwrap_or(td.at);
            self.mistakes.add(at, what);
        }
        td.is_wrong |= self.mistakes.found.len() > before;
    }

    fn host(&mut self, root: &DeTable<'_>) -> Host {
        let Some((_, value)) = root.iter().find(|(name, _)| name.get_ref() == "host") else {
            return Host::blank();
        };
        match value.get_ref().as_table() {
            Some(table) => keys::read(table, value.span().start, &mut self.mistakes),
            None => {
                let what = "host must be a table: write [host] above its keys";
                self.mistakes.add(value.span().start, what.into());
                Host::blank()
            }
        }
    }

    pub fn entries<'t, T: Keyed>(
        &mut self,
        root: &'t DeTable<'_>,
        kind: &str,
    ) -> Vec<Entry<'t, T>> {
        let Some((_, value)) = root.iter().find(|(name, _)| name.get_ref() == kind) else {
            return Vec::new();
        };
        let list = value.get_ref().as_array().map(|array| array.iter());
        let tables: Option<Vec<_>> = list.and_then(|list| {
            list.map(|entry| Some((entry.get_ref().as_table()?, entry.span())))
                .collect()
        });
        let Some(tables) = tables else {
            let what = format!(
                "{kind} must be a list of tables: write [[{kind}]], with two brackets, above each"
            );
            self.mistakes.add(value.span().start, what);
            return Vec::new();
        };
        let tables = tables.into_iter();
        tables
            .map(|(table, span)| self.entry(table, span))
            .collect()
    }

    fn entry<'t, T: Keyed>(&mut self, table: &'t DeTable<'_>, span: Range<usize>) -> Entry<'t, T> {
        let at = keys::start_of(table).unwrap_or(span.start);
        if self.mended.state_at(at) != State::Whole {
            // Nothing is said about keys that it lacks: they may be in the line that is gone.
            return Entry {
                read: keys::read_present(table, &mut self.mistakes),
                table,
                at,
                is_wrong: true,
            };
        }
        let before = self.mistakes.found.len();
        let read = keys::read(table, at, &mut self.mistakes);
        Entry {
            read,
            table,
            at,
            is_wrong: self.mistakes.found.len() > before,
        }
    }

    /// Reports names that occur twice. The first one counts.
    fn all_differ<T: Named>(&mut self, entries: &mut [Entry<'_, T>]) {
        let names: Vec<_> = entries
            .iter()
            .map(|e| String::from(e.read.name()))
            .collect();
        for (i, entry) in entries.iter_mut().enumerate() {
            let name = &names[i];
            if !name.is_empty() && names[..i].contains(name) {
                let at = place_of(entry.table, "name").unwrap_or(0);
                let what = format!("name is {name:?}, which another {} has", T::TABLE);
                self.mistakes.add(at, what);
                entry.is_wrong = true;
            }
        }
    }
}

impl Reader<'_> {
    /// Reports context ids of socket devices that occur twice. The first one counts.
    fn all_cids_differ(&mut self, tds: &mut [Entry<'_, Td>]) {
        let named = |td: &Entry<'_, Td>| {
            let cid = td.read.vsock.as_ref().map(|vsock| vsock.cid);
            (cid, td.read.name.clone())
        };
        let all: Vec<_> = tds.iter().map(named).collect();
        for (index, td) in tds.iter_mut().enumerate() {
            let Some(cid) = all[index].0 else {
                continue;
            };
            let mut before = all[..index].iter();
            if let Some((_, other)) = before.find(|(before, _)| *before == Some(cid)) {
                let at = place_of(td.table, "vsock").unwrap_or(td.at);
                let what =
                    format!("vsock has the cid {cid}, which TD {other} has; give each TD its own");
                self.mistakes.add(at, what);
                td.is_wrong = true;
            }
        }
    }
}

trait Named: Keyed {
    fn name(&self) -> &str;
}

impl Named for File {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for Network {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for Td {
    fn name(&self) -> &str {
        &self.name
    }
}

/// Returns the offset of a key's value.
pub(crate) fn place_of(table: &DeTable<'_>, key: &str) -> Option<usize> {
    let (_, value) = table.iter().find(|(name, _)| name.get_ref() == key)?;
    Some(value.span().start)
}

/// The names that a definition can use.
#[derive(Clone, Copy)]
pub struct Names<'n> {
    /// Tells whether there is a file of a name.
    pub is_file: &'n dyn Fn(&str) -> bool,
    /// Tells whether there is a network of a name.
    pub is_network: &'n dyn Fn(&str) -> bool,
}

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

/// A key that names a file or a network, or needs one, and what is wrong with it.
pub(crate) struct Wrong {
    pub key: &'static str,
    pub what: String,
    /// The keys that would have prevented it.
    pub lacks: &'static [&'static str],
}

impl Entry<'_, Td> {
    /// Returns what is wrong with the files and the networks that the TD names.
    pub(crate) fn wrong_references(&self, names: &Names<'_>) -> Vec<Wrong> {
        let mut wrong = self.read.wrong_references(names);
        // A key whose value is wrong is not missing.
        wrong.retain(|wrong| {
            let mut lacks = wrong.lacks.iter();
            lacks.all(|key| place_of(self.table, key).is_none())
        });
        wrong
    }
}

impl Td {
    pub(crate) fn wrong_references(&self, names: &Names<'_>) -> Vec<Wrong> {
        let unknown = |key: &'static str, name: &str, why: &str| Wrong {
            key,
            what: format!("{key} is {name:?}, and {why}"),
            lacks: &[],
        };
        let files = self.named_files();
        let files = files.filter(|(_, name)| !(names.is_file)(name));
        let mut wrong: Vec<_> = files
            .map(|(key, name)| unknown(key, name, NO_FILE))
            .collect();
        // A card without a network is a mistake of its own.
        let networks = self.net.iter().map(|net| &*net.network);
        let networks = networks.filter(|name| !name.is_empty() && !(names.is_network)(name));
        wrong.extend(networks.map(|name| unknown("net", name, NO_NETWORK)));
        let needs_kernel = |key| Wrong {
            key,
            what: format!("{key} requires a kernel, and there is none"),
            lacks: &["kernel"],
        };
        if self.kernel.is_none() {
            let initrd = self.initrd.as_ref().map(|_| "initrd");
            let cmdline = (!self.cmdline.is_empty()).then_some("cmdline");
            wrong.extend(initrd.into_iter().chain(cmdline).map(needs_kernel));
        }
        if self.firmware.is_some() {
            let image = self.image.as_ref().map(|_| "image");
            let kernel = self.kernel.as_ref().map(|_| "kernel");
            wrong.extend(image.into_iter().chain(kernel).map(|key| Wrong {
                key,
                what: format!("{key} excludes firmware, which boots from the TD's devices"),
                lacks: &[],
            }));
        } else {
            let order = (!self.boot_order.is_empty()).then_some("boot_order");
            let uuid = (!self.uuid.is_nil()).then_some("uuid");
            wrong.extend(order.into_iter().chain(uuid).map(|key| Wrong {
                key,
                what: format!("{key} requires firmware, and there is none"),
                lacks: &["firmware"],
            }));
        }
        if self.image_file().is_none() && self.kernel.is_none() {
            wrong.push(Wrong {
                key: "name",
                what: match &*self.name {
                    "" => "[[td]] needs an image, firmware, or a kernel".into(),
                    name => format!("{name} needs an image, firmware, or a kernel"),
                },
                lacks: &["image", "firmware", "kernel"],
            });
        }
        wrong
    }
}

/// The end of the sentence about a file that is not there.
pub(crate) const NO_FILE: &str = "no [[file]] has that name";

/// The end of the sentence about a network that is not there.
const NO_NETWORK: &str = "no [[network]] has that name";

impl Config {
    /// Returns the configuration as the text of a file: the keys that do not have their defaults.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::from("[host]\n");
        self.host.write_keys(&mut text);
        for file in &self.file {
            text.push_str("\n[[file]]\n");
            file.write_keys(&mut text);
        }
        for network in &self.network {
            text.push_str("\n[[network]]\n");
            network.write_keys(&mut text);
        }
        for td in &self.td {
            text.push_str("\n[[td]]\n");
            td.write_keys(&mut text);
        }
        text
    }
}

#[cfg(test)]
mod tests;
