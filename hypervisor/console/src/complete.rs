//! Tab completion: the words that can stand at the cursor.

use alloc::{borrow::ToOwned, string::String, vec::Vec};

use super::{
    argument::Kind,
    command::{Command, Commands},
};

/// The result of Tab for the text before the cursor.
#[derive(Debug, PartialEq, Eq)]
pub enum Completion {
    /// Insert this text at the cursor.
    Insert(String),
    /// Several words are possible.
    Choose(Vec<String>),
}

/// The names that the machine gives. They are asked for if they can stand at the cursor.
pub struct Names<'a> {
    /// Returns the names of the TDs.
    pub tds: &'a dyn Fn() -> Vec<String>,
    /// Returns the addresses of the PCI functions.
    pub pci_functions: &'a dyn Fn() -> Vec<String>,
    /// Returns the names of the networks.
    pub networks: &'a dyn Fn() -> Vec<String>,
}

/// Completes the last word of `text`, the text before the cursor.
pub fn complete(commands: Commands, text: &str, names: &Names<'_>) -> Completion {
    let start = text.rfind(' ').map_or(0, |space| space + 1);
    let (before, partial) = text.split_at(start);
    let before: Vec<&str> = before.split_ascii_whitespace().collect();

    let mut words = next_words(commands, &before, names);
    words.retain(|word| word.starts_with(partial));
    match words.as_slice() {
        [] => Completion::Choose(Vec::new()),
        [only] => Completion::Insert(only[partial.len()..].to_owned() + " "),
        [first, others @ ..] => {
            let common = |other: &String| {
                first
                    .bytes()
                    .zip(other.bytes())
                    .take_while(|(a, b)| a == b)
                    .count()
            };
            let shared = others.iter().map(common).min().unwrap_or(0);
            if shared > partial.len() {
                Completion::Insert(first[partial.len()..shared].to_owned())
            } else {
                Completion::Choose(words)
            }
        }
    }
}

/// Returns every word that can follow `before`, sorted.
fn next_words(commands: Commands, before: &[&str], names: &Names<'_>) -> Vec<String> {
    let mut words = name_words(commands, before);
    if let Some(command) = commands.longest_match(before) {
        let given: Vec<&str> = before[command.words()..]
            .iter()
            .copied()
            .filter(|word| command.flag(word).is_none())
            .collect();
        let args: Vec<_> = command.positional().collect();
        match args.get(given.len()).map(|arg| &arg.kind) {
            Some(Kind::Choice(choices)) => words.extend(choices.iter().copied().map(String::from)),
            Some(Kind::Command) => words.extend(name_words(commands, &given)),
            Some(Kind::Td) => words.extend((names.tds)()),
            Some(Kind::PciFunction) => words.extend((names.pci_functions)()),
            Some(Kind::Network) => words.extend((names.networks)()),
            Some(
                Kind::Address
                | Kind::Number
                | Kind::Range(..)
                | Kind::Size
                | Kind::Flag
                | Kind::Text
                | Kind::Value
                | Kind::Word,
            ) => {}
            // A name of several words continues after its first.
            None => {
                if let Some(Kind::Command) = args.last().map(|arg| &arg.kind) {
                    words.extend(name_words(commands, &given[args.len() - 1..]));
                }
            }
        }
        let flags = command
            .args
            .iter()
            .filter(|arg| matches!(arg.kind, Kind::Flag) && !before.contains(&arg.name));
        words.extend(flags.map(|arg| arg.name.to_owned()));
    }
    words.sort_unstable();
    words.dedup();
    words
}

/// Returns the words that continue a command's name after `before`.
fn name_words(commands: Commands, before: &[&str]) -> Vec<String> {
    let next = |command: &'static Command| {
        let mut words = command.name.split(' ');
        before
            .iter()
            .all(|word| words.next() == Some(word))
            .then(|| words.next())
            .flatten()
    };
    let words = commands.all().filter_map(next);
    words.map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use alloc::{string::String, vec::Vec};

    use super::{Completion, Names, complete};
    use crate::commands::ALL;

    fn said(text: &str) -> Completion {
        let tds = || ["hello", "help-desk", "smp"].map(String::from).into();
        let pci_functions = || ["0000:00:1f.2", "0000:01:00.0"].map(String::from).into();
        let names = Names {
            tds: &tds,
            pci_functions: &pci_functions,
            networks: &|| ["lan", "wan"].map(String::from).into(),
        };
        complete(ALL, text, &names)
    }

    #[test]
    fn tab_completes_names_choices_and_names_as_arguments() {
        assert_eq!(said("vers"), Completion::Insert("ion ".into()));
        assert_eq!(said("mem "), Completion::Insert("peek ".into()));
        assert_eq!(said("log in"), Completion::Insert("fo ".into()));
        assert_eq!(said("help mem p"), Completion::Insert("eek ".into()));
        assert_eq!(
            said("json o"),
            Completion::Choose(["off", "on"].map(String::from).into())
        );
        assert_eq!(said("nothing like it"), Completion::Choose([].into()));
        assert_eq!(said("mem peek "), Completion::Choose([].into()));
    }

    #[test]
    fn tab_completes_names_of_tds_and_flags() {
        assert_eq!(said("td show s"), Completion::Insert("mp ".into()));
        assert_eq!(said("td show h"), Completion::Insert("el".into()));
        assert_eq!(said("td shrink smp "), Completion::Choose([].into()));
        assert_eq!(said("td destroy --"), Completion::Insert("dynamic ".into()));
        assert_eq!(
            said("td destroy --dynamic sm"),
            Completion::Insert("p ".into())
        );
    }

    #[test]
    fn tab_completes_names_of_networks() {
        assert_eq!(said("net show l"), Completion::Insert("an ".into()));
    }

    #[test]
    fn tab_completes_addresses_of_pci_functions() {
        assert_eq!(
            said("pci release 0000:0"),
            Completion::Choose(["0000:00:1f.2", "0000:01:00.0"].map(String::from).into())
        );
        assert_eq!(
            said("td attach smp 0000:01"),
            Completion::Insert(":00.0 ".into())
        );
    }

    #[test]
    fn names_are_asked_for_if_they_can_stand_there() {
        let tds = || -> Vec<String> { panic!("TDs") };
        let pci_functions = || -> Vec<String> { panic!("PCI functions") };
        let names = Names {
            tds: &tds,
            pci_functions: &pci_functions,
            networks: &|| panic!("networks"),
        };
        assert_eq!(
            complete(ALL, "vers", &names),
            Completion::Insert("ion ".into())
        );
        assert_eq!(
            complete(ALL, "log in", &names),
            Completion::Insert("fo ".into())
        );
    }
}
