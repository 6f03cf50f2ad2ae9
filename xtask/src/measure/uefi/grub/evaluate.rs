//! Evaluates GRUB's configuration as far as `update-grub` writes it, up to the kernel that boots without a user.
//!
//! A command that could change what boots and is not known here is an error that names it.
//!
//! Source: GRUB manual 2.12, chapter 16 (commands) and 15 (variables); GRUB 2.12, grub-core/normal/menu.c.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::lex::{Part, Word};
use super::parse::{self, Command, Kind};

/// Largest depth of functions and files in each other.
const DEPTH: usize = 32;
/// Variables that GRUB itself sets on a PC with UEFI.
const GIVEN: [(&str, &str); 9] = [
    ("grub_platform", "efi"),
    ("grub_cpu", "x86_64"),
    ("feature_all_video_module", "y"),
    ("feature_chainloader_bpb", "y"),
    ("feature_default_font_path", "y"),
    ("feature_menuentry_id", "y"),
    ("feature_menuentry_options", "y"),
    ("feature_platform_search_hint", "y"),
    ("feature_timeout_style", "y"),
];

/// The files that GRUB sees.
pub trait Files {
    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    /// There is no such device, or it can't be read.
    fn read(&self, device: &str, path: &str) -> Result<Option<Vec<u8>>>;

    /// Returns the device of the file system with this UUID.
    fn device_of(&self, uuid: &str) -> Option<String>;
}

/// The kernel that boots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// The kernel's path on the root file system.
    pub kernel: String,
    /// The command line that the kernel gets.
    pub command_line: String,
    /// The path of its initial file system.
    pub initrd: Option<String>,
}

/// An entry of the menu.
#[derive(Clone, Debug)]
pub struct Entry {
    pub title: String,
    pub id: String,
    pub arguments: Vec<String>,
    pub body: Vec<Command>,
    /// The file that it is written in.
    pub file: String,
    pub is_submenu: bool,
}

/// An evaluation in progress.
pub struct Evaluation<'a> {
    pub(super) files: &'a dyn Files,
    pub(super) variables: BTreeMap<String, String>,
    pub(super) functions: BTreeMap<String, Vec<Command>>,
    pub(super) menu: Vec<Entry>,
    pub(super) kernel: Option<(String, String)>,
    pub(super) initrd: Option<String>,
    /// The file being read, for messages.
    pub(super) file: String,
    depth: usize,
}

impl<'a> Evaluation<'a> {
    /// Starts with the variables that GRUB sets.
    pub fn new(files: &'a dyn Files) -> Self {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            files,
            variables: GIVEN.into_iter().map(own).collect(),
            functions: BTreeMap::new(),
            menu: Vec::new(),
            kernel: None,
            initrd: None,
            file: String::new(),
            depth: 0,
        }
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    /// Evaluates the configuration in a file, and the entry of its menu that boots by itself.
    ///
    /// # Errors
    /// The file, the line and the first command that can't be evaluated; or there is nothing to boot.
    pub fn boot(&mut self, file: &str) -> Result<Boot> {
        self.source(file)?;
        let default = self.variables.get("default").cloned().unwrap_or_default();
        let mut wanted = default.split('>');
        while self.kernel.is_none() {
            ensure!(!self.menu.is_empty(), "{file}: it has no entry to boot");
            let menu = std::mem::take(&mut self.menu);
            let entry = choose(&menu, wanted.next().unwrap_or_default()).clone();
            self.file.clone_from(&entry.file);
            self.set("chosen", &entry.title);
            for (number, argument) in (1..).zip(&entry.arguments) {
                self.set(&number.to_string(), argument);
            }
            self.run(&entry.body)?;
            ensure!(
                self.kernel.is_some() || entry.is_submenu,
                "{}: the entry `{}` starts no kernel",
                self.file,
                entry.title
            );
        }
        let (kernel, command_line) = self.kernel.take().context("a kernel")?;
        Ok(Boot {
            kernel,
            command_line,
            initrd: self.initrd.take(),
        })
    }

    /// Evaluates a file.
    pub(super) fn source(&mut self, path: &str) -> Result<()> {
        let content = self.read(path)?;
        let content = content.with_context(|| format!("there is no {path}"))?;
        let text = String::from_utf8(content).with_context(|| format!("{path} is no text"))?;
        let commands = parse::parse(&text).with_context(|| path.to_owned())?;
        let before = std::mem::replace(&mut self.file, path.to_owned());
        self.nested(|this| this.run(&commands))?;
        self.file = before;
        Ok(())
    }

    pub(super) fn nested<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        ensure!(self.depth < DEPTH, "{}: it calls itself", self.file);
        self.depth += 1;
        let result = work(self);
        self.depth -= 1;
        result
    }

    /// Reads a file by GRUB's name for it: a device in parentheses, or that in `root`, and a path.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let (device, path) = match name.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (device, path),
            None => (self.value("root"), name),
        };
        self.files.read(device, path)
    }

    pub(super) fn value(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    pub(super) fn run(&mut self, commands: &[Command]) -> Result<bool> {
        let mut succeeded = true;
        for command in commands {
            succeeded = match &command.kind {
                Kind::Simple(words, block) => {
                    let words: Vec<_> = words.iter().flat_map(|word| self.expand(word)).collect();
                    let done = self.execute(&words, block.as_deref());
                    let at = || format!("{}:{}", self.file, command.line);
                    done.with_context(at)?
                }
                Kind::If(branches, otherwise) => self.choose_branch(branches, otherwise)?,
                Kind::Function(name, body) => {
                    self.functions.insert(name.clone(), body.clone());
                    true
                }
            };
            self.set("?", if succeeded { "0" } else { "1" });
        }
        Ok(succeeded)
    }

    fn choose_branch(
        &mut self,
        branches: &[(Vec<Command>, Vec<Command>)],
        otherwise: &[Command],
    ) -> Result<bool> {
        for (condition, branch) in branches {
            if self.run(condition)? {
                return self.run(branch);
            }
        }
        self.run(otherwise)
    }

    /// Returns the words that a word becomes.
    fn expand(&self, word: &Word) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        // An empty variable without quotes is no word.
        let mut current: Option<String> = None;
        for part in word {
            match part {
                Part::Text(text) => current.get_or_insert_default().push_str(text),
                Part::Variable {
                    name,
                    is_quoted: true,
                } => {
                    let value = self.value(name).to_owned();
                    current.get_or_insert_default().push_str(&value);
                }
                Part::Variable { name, .. } => {
                    let value = self.value(name);
                    let mut pieces = value.split_whitespace();
                    if let Some(first) = pieces.next() {
                        current.get_or_insert_default().push_str(first);
                    }
                    for piece in pieces {
                        words.extend(current.replace(piece.to_owned()));
                    }
                }
            }
        }
        words.extend(current);
        words
    }
}

/// Returns the entry that `default` names by number, title or id; the first one if there is none.
fn choose<'m>(menu: &'m [Entry], default: &str) -> &'m Entry {
    let by_name = |entry: &&Entry| entry.title == default || entry.id == default;
    let number = default.parse::<usize>().ok();
    let found = match number {
        Some(number) => menu.get(number),
        None => menu.iter().find(by_name),
    };
    found.unwrap_or(&menu[0])
}
