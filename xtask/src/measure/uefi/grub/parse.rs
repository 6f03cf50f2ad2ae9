//! The language of GRUB's configuration: words, simple commands, conditions, functions, and entries of the menu.
//!
//! Source: GRUB manual 2.12, section 6.2 (writing full configuration files directly).

use anyhow::{Result, bail, ensure};

use super::lex::{Part, Token, Word, tokens};

/// A command and the line that it begins on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub line: usize,
    pub kind: Kind,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A name and arguments, and the block that a menu entry has.
    Simple(Vec<Word>, Option<Vec<Command>>),
    /// Conditions with their branches; the branch of `else`.
    If(Vec<(Vec<Command>, Vec<Command>)>, Vec<Command>),
    /// A function's name and body.
    Function(String, Vec<Command>),
}

/// Parses a configuration.
///
/// # Errors
/// The line, and what is wrong in it or not understood.
pub fn parse(text: &str) -> Result<Vec<Command>> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens, at: 0 };
    let commands = parser.commands(&[])?;
    ensure!(
        parser.at == parser.tokens.len(),
        "line {}: a `}}` too much",
        parser.line()
    );
    Ok(commands)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
}

impl Parser {
    fn line(&self) -> usize {
        let token = self.tokens.get(self.at).or(self.tokens.last());
        token.map_or(1, |(line, _)| *line)
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.at += 1;
        token
    }

    /// Returns the reserved word that is next.
    fn keyword(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => match &word[..] {
                [Part::Text(text)] => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    fn skip_ends(&mut self) {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
    }

    /// Parses commands up to one of these reserved words, a `}`, or the end.
    fn commands(&mut self, until: &[&str]) -> Result<Vec<Command>> {
        let mut commands = Vec::new();
        loop {
            self.skip_ends();
            if matches!(self.peek(), None | Some(Token::Close)) {
                return Ok(commands);
            }
            let keyword = self.keyword().map(ToOwned::to_owned);
            if keyword.as_deref().is_some_and(|word| until.contains(&word)) {
                return Ok(commands);
            }
            let line = self.line();
            let kind = match keyword.as_deref() {
                Some("if") => self.condition()?,
                Some("function") => self.function()?,
                Some(word @ ("while" | "until" | "for" | "!")) => {
                    bail!("line {line}: `{word}` can't be evaluated")
                }
                _ => self.simple()?,
            };
            commands.push(Command { line, kind });
        }
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        let line = self.line();
        ensure!(self.keyword() == Some(word), "line {line}: no `{word}`");
        self.at += 1;
        Ok(())
    }

    fn condition(&mut self) -> Result<Kind> {
        self.expect("if")?;
        let mut branches = Vec::new();
        loop {
            let condition = self.commands(&["then"])?;
            self.expect("then")?;
            branches.push((condition, self.commands(&["elif", "else", "fi"])?));
            if self.keyword() != Some("elif") {
                break;
            }
            self.at += 1;
        }
        let mut otherwise = Vec::new();
        if self.keyword() == Some("else") {
            self.at += 1;
            otherwise = self.commands(&["fi"])?;
        }
        self.expect("fi")?;
        Ok(Kind::If(branches, otherwise))
    }

    fn function(&mut self) -> Result<Kind> {
        self.expect("function")?;
        let line = self.line();
        let Some(name) = self.keyword().map(ToOwned::to_owned) else {
            bail!("line {line}: a function without a name")
        };
        self.at += 1;
        self.skip_ends();
        ensure!(
            self.peek() == Some(&Token::Open),
            "line {line}: function {name} without `{{`"
        );
        Ok(Kind::Function(name, self.block()?))
    }

    fn block(&mut self) -> Result<Vec<Command>> {
        let line = self.line();
        self.at += 1;
        let body = self.commands(&[])?;
        ensure!(
            self.next() == Some(Token::Close),
            "line {line}: `{{` without `}}`"
        );
        Ok(body)
    }

    fn simple(&mut self) -> Result<Kind> {
        let mut words = Vec::new();
        loop {
            match self.peek() {
                Some(Token::Word(word)) => {
                    words.push(word.clone());
                    self.at += 1;
                }
                Some(Token::Open) => return Ok(Kind::Simple(words, Some(self.block()?))),
                _ => return Ok(Kind::Simple(words, None)),
            }
        }
    }
}
