//! The ports of a TD: `td console` and `td script`.

use alloc::{string::String, vec};
use core::fmt::{self, Write};

use serde::Serialize;

use super::{TD, find};
use crate::{
    argument::{Args, Optional, Required},
    command::{Class, Command, Context},
    error::Error,
    host::td::{Excerpt, TdPort, TdState},
    reply::{Reply, Text},
    session::Front,
    watch::{WAYS_BACK, Watch},
};

/// Maximum bytes of output in one answer.
const ANSWER: usize = 64 << 10;

const FROM: Optional<u64> = Required::number("FROM").optional();

const CONSOLE: Command = Command {
    name: "td console",
    class: Class::OwnTd,
    args: &[TD.arg, FROM.arg],
    summary: "Attach to a TD's console",
    help: "Shows the TD's recent output and then new output as it appears, and sends what you type to the TD. Ctrl-] \
           detaches, and so does `~.` at the start of a line, as in ssh; `~~` there types one `~`. The last 16 KiB \
           of output are kept while nobody watches, even if the TD is terminated and built again. FROM is the number \
           of the first byte to show. In JSON mode the command answers with the available output (\"output\"), the \
           TD's state, the number of the byte that follows the output (\"next\"), and the number of the byte at which the TD's current or \
           last life began (\"began\").",
    run: |context, args| watch(context, args, TdPort::Console),
};

const SCRIPT: Command = Command {
    name: "td script",
    class: Class::OwnTd,
    args: &[TD.arg, FROM.arg],
    summary: "Attach to a TD's port for scripts",
    help: "As \"td console\", with the second port of a virtio console, which a TD with console = \"virtio\" has: in \
           Linux /dev/virtio-ports/org.seamark.script. A program in the TD opens it, and exchanges bytes with the \
           operator's scripts apart from the console. What is typed waits until then.",
    run: |context, args| watch(context, args, TdPort::Script),
};

pub const COMMANDS: &[Command] = &[CONSOLE, SCRIPT];

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Output {
    td: String,
    state: TdState,
    began: u64,
    from: u64,
    next: u64,
    output: String,
    /// True if the output follows the reply.
    #[serde(skip)]
    goes_on: bool,
    #[serde(skip)]
    port: TdPort,
}

fn watch(context: &mut Context<'_>, args: &Args, port: TdPort) -> Result<Reply, Error> {
    // By default, all of the output that is kept.
    let from = args.given(FROM).unwrap_or(0);
    let (tds, id) = find(context, args)?;
    let ids = tds.ids();
    let names = ids.into_iter().zip(tds.names());
    let name = names.filter(|(own, _)| *own == id).map(|(_, name)| name);
    let name = name.collect();
    let mut bytes = vec![0; ANSWER];
    let line = tds.list().into_iter().find(|td| td.id == id);
    let state = line.map_or(TdState::Runnable, |td| td.state);
    let Excerpt { began, from, count } = tds.output(id, port, from, &mut bytes)?;
    drop(tds);
    bytes.truncate(count);
    let goes_on = context.session.is_interactive();
    if goes_on {
        context.session.front = Some(Front::Td(Watch::new(id, port, from)));
    }
    Ok(Reply::new(Output {
        td: name,
        state,
        began,
        from,
        goes_on,
        port,
        next: from + count as u64,
        output: String::from_utf8_lossy(&bytes).into_owned(),
    }))
}

impl Text for Output {
    /// The output itself follows unchanged, as does all later output.
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        if !self.goes_on {
            return writeln!(out, "{}", self.output.replace('\r', ""));
        }
        let port = match self.port {
            TdPort::Console => "Console",
            TdPort::Script => "Script port",
        };
        write!(out, "{port} of TD {}", self.td)?;
        if self.state != TdState::Runnable {
            write!(
                out,
                ", which is {} and takes no input",
                self.state.in_words()
            )?;
        }
        writeln!(out, "; {WAYS_BACK}.")
    }
}
