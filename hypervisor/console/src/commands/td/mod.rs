//! TDs: `td ...`.

mod console;
mod debug;
mod define;
mod end;
mod life;
pub mod show;
mod typing;
mod work;

use alloc::{boxed::Box, string::String};

pub use self::{
    console::COMMANDS as CONSOLE, debug::COMMANDS as DEBUG, define::COMMANDS as DEFINE,
    end::COMMANDS as END, life::COMMANDS as LIFE, show::COMMANDS as SHOW, typing::COMMANDS as TYPE,
};

use crate::{
    argument::{Args, Required},
    command::Context,
    error::{Error, no_such_td},
    host::td::Tds,
};

/// The TD that a command applies to.
const TD: Required<String> = Required::td("TD");

/// Returns the TDs, and the number of the one that [`TD`] names.
fn find<'a>(context: &'a Context<'_>, args: &Args) -> Result<(Box<dyn Tds + 'a>, u32), Error> {
    find_word(context, &args.get(TD)?)
}

/// Returns the TDs, and the number of the one that `word` names.
pub fn find_word<'a>(
    context: &'a Context<'_>,
    word: &str,
) -> Result<(Box<dyn Tds + 'a>, u32), Error> {
    let tds = context.host.tds()?;
    let names = tds.names();
    let ids = tds.ids();
    let id = match word.parse::<u32>() {
        Ok(number) => Some(number).filter(|number| ids.contains(number)),
        Err(_) => {
            let at = names.iter().position(|name| *name == word);
            at.and_then(|at| ids.get(at).copied())
        }
    };
    match id {
        Some(id) => Ok((tds, id)),
        None => Err(no_such_td(word, &names)),
    }
}
