//! The commands of GRUB's configuration.
//!
//! Source: GRUB manual 2.12, chapter 16; GRUB 2.12, grub-core/lib/cmdline.c (the kernel's command line).

use anyhow::{Context, Result, bail, ensure};

use super::evaluate::{Entry, Evaluation};
use super::parse::Command;

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
impl Evaluation<'_> {
    /// Executes a command. Returns whether it succeeds.
    pub(super) fn execute(&mut self, words: &[String], block: Option<&[Command]>) -> Result<bool> {
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
