//! Evaluates GRUB's configuration as far as `update-grub` writes it, up to the kernel that boots without a user.
//!
//! A command that could change what boots and is not known here is an error that names it.
//!
//! Source: GRUB manual 2.12, chapter 16 (commands) and 15 (variables); GRUB 2.12, grub-core/normal/menu.c.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::parse::{self, Command, Kind, Part, Word};

/// Largest depth of functions and files in each other.
const DEPTH: usize = 32;
/// Commands that change nothing that boots: modules, terminals, output, environment.
const WITHOUT_EFFECT: [&str; 17] = [
    "background_color",
    "background_image",
    "clear",
    "echo",
    "export",
    "gettext",
    "insmod",
    "loadfont",
    "play",
    "save_env",
    "serial",
    "sleep",
    "terminal_input",
    "terminal_output",
    "true",
    "rmmod",
    "terminal",
];
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

/// What boots.
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
struct Entry {
    title: String,
    id: String,
    arguments: Vec<String>,
    body: Vec<Command>,
    /// The file that it is written in.
    file: String,
    is_submenu: bool,
}

/// An evaluation in progress.
pub struct Evaluation<'a> {
    files: &'a dyn Files,
    variables: BTreeMap<String, String>,
    functions: BTreeMap<String, Vec<Command>>,
    menu: Vec<Entry>,
    kernel: Option<(String, String)>,
    initrd: Option<String>,
    /// The file being read, for messages.
    file: String,
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
    fn source(&mut self, path: &str) -> Result<()> {
        let content = self.read(path)?;
        let content = content.with_context(|| format!("there is no {path}"))?;
        let text = String::from_utf8(content).with_context(|| format!("{path} is no text"))?;
        let commands = parse::parse(&text).with_context(|| path.to_owned())?;
        let before = std::mem::replace(&mut self.file, path.to_owned());
        self.nested(|this| this.run(&commands))?;
        self.file = before;
        Ok(())
    }

    fn nested<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        ensure!(self.depth < DEPTH, "{}: it calls itself", self.file);
        self.depth += 1;
        let result = work(self);
        self.depth -= 1;
        result
    }

    /// Reads a file by GRUB's name for it: a device in parentheses, or that in `root`, and a path.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let (device, path) = match name.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (device, path),
            None => (self.value("root"), name),
        };
        self.files.read(device, path)
    }

    fn value(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    fn run(&mut self, commands: &[Command]) -> Result<bool> {
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

    /// Executes a command. Returns whether it succeeds.
    fn execute(&mut self, words: &[String], block: Option<&[Command]>) -> Result<bool> {
        let Some((name, arguments)) = words.split_first() else {
            return Ok(true);
        };
        if let Some((variable, value)) = name.split_once('=').filter(|_| arguments.is_empty()) {
            self.set(variable, value);
            return Ok(true);
        }
        if let Some(body) = self.functions.get(name).cloned() {
            return self.call(&body, arguments);
        }
        match name.as_str() {
            "set" => self.assign(arguments),
            "unset" => {
                for argument in arguments {
                    self.variables.remove(argument);
                }
                Ok(true)
            }
            "[" | "test" => self.test(arguments),
            "false" => Ok(false),
            "menuentry" | "submenu" => self.add_entry(name == "submenu", arguments, block),
            "search" | "search.fs_uuid" => self.search(name, arguments),
            "load_env" => self.load_environment(arguments),
            "source" | "." | "configfile" => match arguments {
                [file] => self.source(file).map(|()| true),
                _ => bail!("`{}` can't be evaluated", words.join(" ")),
            },
            "linux" => self.linux(arguments),
            "initrd" => self.load_initrd(arguments),
            // Only whether there is the entry for it depends on the answer. OVMF can.
            "fwsetup" if *arguments == ["--is-supported"] => Ok(true),
            known if WITHOUT_EFFECT.contains(&known) => Ok(true),
            _ => bail!("`{}` can't be evaluated", words.join(" ")),
        }
    }

    fn call(&mut self, body: &[Command], arguments: &[String]) -> Result<bool> {
        let before = self.variables.clone();
        for (number, argument) in (1..=9).zip(arguments) {
            self.set(&number.to_string(), argument);
        }
        let result = self.nested(|this| this.run(body));
        for number in 1..=9 {
            let name = number.to_string();
            match before.get(&name) {
                Some(value) => self.set(&name, value),
                None => drop(self.variables.remove(&name)),
            }
        }
        result
    }

    fn assign(&mut self, arguments: &[String]) -> Result<bool> {
        for argument in arguments {
            let Some((name, value)) = argument.split_once('=') else {
                bail!("`set {argument}` can't be evaluated")
            };
            self.set(name, value);
        }
        Ok(true)
    }

    /// Evaluates a condition: tests joined by `-a` and `-o`.
    fn test(&self, arguments: &[String]) -> Result<bool> {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let arguments = arguments.strip_suffix(&["]"]).unwrap_or(&arguments);
        let mut any = false;
        for alternative in arguments.split(|word| *word == "-o") {
            let mut all = true;
            for test in alternative.split(|word| *word == "-a") {
                all &= self.test_one(test)?;
            }
            any |= all;
        }
        Ok(any)
    }

    fn test_one(&self, test: &[&str]) -> Result<bool> {
        Ok(match *test {
            [] => false,
            ["!", ref rest @ ..] => !self.test_one(rest)?,
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            ["-z", text] => text.is_empty(),
            ["-n", text] => !text.is_empty(),
            ["-e" | "-f", file] => self.read(file)?.is_some(),
            ["-s", file] => self.read(file)?.is_some_and(|content| !content.is_empty()),
            [text] => !text.is_empty(),
            _ => bail!("`[ {} ]` can't be evaluated", test.join(" ")),
        })
    }

    fn add_entry(
        &mut self,
        is_submenu: bool,
        arguments: &[String],
        block: Option<&[Command]>,
    ) -> Result<bool> {
        let (title, options) = arguments
            .split_first()
            .context("an entry without a title")?;
        let body = block.context("an entry without a block")?;
        let (mut id, mut rest) = (String::new(), Vec::new());
        let mut options = options.iter();
        while let Some(option) = options.next() {
            match option.as_str() {
                "--id" => id = options.next().cloned().unwrap_or_default(),
                "--class" | "--users" | "--hotkey" => drop(options.next()),
                "--unrestricted" => {}
                other => rest.push(other.to_owned()),
            }
        }
        self.menu.push(Entry {
            title: title.clone(),
            id,
            arguments: rest,
            body: body.to_vec(),
            file: self.file.clone(),
            is_submenu,
        });
        Ok(true)
    }

    /// Finds a file system by its UUID, and sets a variable to its device.
    fn search(&mut self, name: &str, arguments: &[String]) -> Result<bool> {
        let words: Vec<_> = arguments.iter().map(String::as_str).collect();
        let (uuid, variable) = match (name, &words[..]) {
            ("search.fs_uuid", [uuid]) => (*uuid, "root"),
            ("search.fs_uuid", [uuid, variable, ..]) => (*uuid, *variable),
            _ => by_uuid(&words)?,
        };
        let Some(device) = self.files.device_of(uuid) else {
            return Ok(false);
        };
        self.set(variable, &device);
        Ok(true)
    }

    /// Sets the variables of the environment block.
    fn load_environment(&mut self, arguments: &[String]) -> Result<bool> {
        ensure!(
            arguments.is_empty(),
            "`load_env` with arguments can't be evaluated"
        );
        let path = format!("{}/grubenv", self.value("prefix"));
        let Some(content) = self.read(&path)? else {
            return Ok(false);
        };
        let text = String::from_utf8_lossy(&content).into_owned();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, value)) = line.split_once('=') {
                self.set(name, value);
            }
        }
        Ok(true)
    }

    fn linux(&mut self, arguments: &[String]) -> Result<bool> {
        let (kernel, words) = arguments
            .split_first()
            .context("`linux` without a kernel")?;
        let mut line = format!("BOOT_IMAGE={kernel}");
        for word in words {
            line.push(' ');
            line.push_str(&quoted(word));
        }
        self.kernel = Some((self.on_root(kernel)?, line));
        Ok(true)
    }

    fn load_initrd(&mut self, arguments: &[String]) -> Result<bool> {
        let [file] = arguments else {
            bail!("`initrd` with {} files can't be evaluated", arguments.len())
        };
        self.initrd = Some(self.on_root(file)?);
        Ok(true)
    }

    /// Returns the path of a file on the root file system.
    fn on_root(&self, name: &str) -> Result<String> {
        let device = self.value("root");
        let is_there = self.files.read(device, name)?.is_some();
        ensure!(
            is_there && device == super::ROOT,
            "there is no ({device}){name} on the root file system"
        );
        Ok(name.to_owned())
    }
}

/// Returns the UUID and the variable of `search`.
fn by_uuid<'w>(words: &[&'w str]) -> Result<(&'w str, &'w str)> {
    let (mut uuid, mut variable) = (None, None);
    let mut is_uuid = false;
    for word in words {
        match *word {
            "--no-floppy" => {}
            "--fs-uuid" | "-u" => is_uuid = true,
            "--set" => variable = Some("root"),
            word if word.starts_with("--hint") => {}
            word => match word.strip_prefix("--set=") {
                Some(name) => variable = Some(name),
                None if !word.starts_with('-') => uuid = Some(word),
                None => bail!("`search {word}` can't be evaluated"),
            },
        }
    }
    let found = uuid.filter(|_| is_uuid).zip(variable);
    found.with_context(|| format!("`search {}` can't be evaluated", words.join(" ")))
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

/// Returns a word of the kernel's command line: in quotes if it has a space.
fn quoted(word: &str) -> String {
    let mut text = String::new();
    for letter in word.chars() {
        if matches!(letter, '\\' | '\'' | '"') {
            text.push('\\');
        }
        text.push(letter);
    }
    if word.contains(' ') {
        return format!("\"{text}\"");
    }
    text
}
