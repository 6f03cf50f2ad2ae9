//! The words of GRUB's configuration: quotes, variables, comments, and what ends a command.
//!
//! Source: GRUB manual 2.12, section 6.2 (writing full configuration files directly).

use anyhow::{Result, bail, ensure};

/// A word: parts that are joined.
pub type Word = Vec<Part>;

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Text(String),
    /// A variable. Its value is split at spaces unless it is within quotes.
    Variable {
        name: String,
        is_quoted: bool,
    },
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Word(Word),
    /// A new line or a semicolon.
    End,
    Open,
    Close,
}

/// Splits a text into tokens, each with its line.
pub fn tokens(text: &str) -> Result<Vec<(usize, Token)>> {
    let mut lexer = Lexer {
        rest: text.chars().peekable(),
        line: 1,
        tokens: Vec::new(),
    };
    lexer.run()?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    tokens: Vec<(usize, Token)>,
}

impl Lexer<'_> {
    fn run(&mut self) -> Result<()> {
        while let Some(&letter) = self.rest.peek() {
            let token = match letter {
                '\n' | ';' => Token::End,
                '{' => Token::Open,
                '}' => Token::Close,
                ' ' | '\t' | '\r' => {
                    self.rest.next();
                    continue;
                }
                '#' => {
                    while self.rest.peek().is_some_and(|letter| *letter != '\n') {
                        self.rest.next();
                    }
                    continue;
                }
                '&' | '|' | '<' | '>' => {
                    bail!("line {}: `{letter}` can't be evaluated", self.line)
                }
                _ => {
                    let line = self.line;
                    let word = self.word()?;
                    self.tokens.push((line, Token::Word(word)));
                    continue;
                }
            };
            self.tokens.push((self.line, token));
            self.line += usize::from(letter == '\n');
            self.rest.next();
        }
        Ok(())
    }

    fn word(&mut self) -> Result<Word> {
        let mut word = Word::new();
        let mut text = String::new();
        // A word of an empty text in quotes is a word.
        let mut is_quoted = false;
        while let Some(&letter) = self.rest.peek() {
            match letter {
                ' ' | '\t' | '\r' | '\n' | ';' | '{' | '}' => break,
                '\'' => {
                    self.rest.next();
                    is_quoted = true;
                    text.push_str(&self.until_quote()?);
                }
                '"' => {
                    self.rest.next();
                    is_quoted = true;
                    self.double_quoted(&mut word, &mut text)?;
                }
                '$' => {
                    self.rest.next();
                    flush(&mut word, &mut text);
                    let name = self.variable()?;
                    word.push(Part::Variable {
                        name,
                        is_quoted: false,
                    });
                }
                '\\' => {
                    self.rest.next();
                    text.extend(self.rest.next().filter(|letter| *letter != '\n'));
                }
                _ => {
                    text.push(letter);
                    self.rest.next();
                }
            }
        }
        if is_quoted && word.is_empty() && text.is_empty() {
            word.push(Part::Text(String::new()));
        }
        flush(&mut word, &mut text);
        Ok(word)
    }

    fn until_quote(&mut self) -> Result<String> {
        let line = self.line;
        let mut text = String::new();
        for letter in self.rest.by_ref() {
            match letter {
                '\'' => return Ok(text),
                letter => {
                    self.line += usize::from(letter == '\n');
                    text.push(letter);
                }
            }
        }
        bail!("line {line}: a quote without its end")
    }

    fn double_quoted(&mut self, word: &mut Word, text: &mut String) -> Result<()> {
        let line = self.line;
        while let Some(letter) = self.rest.next() {
            match letter {
                '"' => return Ok(()),
                '$' => {
                    flush(word, text);
                    let name = self.variable()?;
                    word.push(Part::Variable {
                        name,
                        is_quoted: true,
                    });
                }
                '\\' => match self.rest.next() {
                    Some(letter @ ('"' | '\\' | '$')) => text.push(letter),
                    Some(letter) => text.extend(['\\', letter]),
                    None => break,
                },
                letter => {
                    self.line += usize::from(letter == '\n');
                    text.push(letter);
                }
            }
        }
        bail!("line {line}: a quote without its end")
    }

    /// Reads a variable's name behind `$`.
    fn variable(&mut self) -> Result<String> {
        let line = self.line;
        let mut name = String::new();
        match self.rest.peek() {
            Some('{') => {
                self.rest.next();
                for letter in self.rest.by_ref() {
                    if letter == '}' {
                        return Ok(name);
                    }
                    name.push(letter);
                }
                bail!("line {line}: `${{` without `}}`")
            }
            Some('?' | '#' | '@' | '*') => name.extend(self.rest.next()),
            _ => {
                while let Some(letter) = self
                    .rest
                    .peek()
                    .filter(|c| c.is_alphanumeric() || **c == '_')
                {
                    name.push(*letter);
                    self.rest.next();
                }
            }
        }
        ensure!(!name.is_empty(), "line {line}: `$` without a name");
        Ok(name)
    }
}

fn flush(word: &mut Word, text: &mut String) {
    if !text.is_empty() {
        word.push(Part::Text(std::mem::take(text)));
    }
}
