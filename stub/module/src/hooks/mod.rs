//! Test hooks: what a test or a simulation gives the module when it creates it. No SEAMCALL reaches them.
//!
//! [`Faults`] makes calls fail as they can on hardware, [`Counters`] counts what was called and how it ended, [`Log`] keeps
//! what the host did that it must not do. `custody` watches pages as they change hands.

pub(crate) mod counters;
mod custody;
mod faults;
mod log;

pub use counters::{Counters, Counts};
pub(crate) use custody::{check_stale_key, pattern, uncleared};
pub use faults::{Fault, Faults, ParseError, When};
pub use log::{Access, Log, Violation, ViolationKind};

/// What a module is created with, beyond its platform.
#[derive(Debug, Default)]
pub struct Hooks {
    /// Calls that will fail.
    pub faults: Faults,
    /// Whether pages that leave a TD carry a pattern of its HKID, by which a page that comes back uncleared is known.
    pub patterns: bool,
}

impl Hooks {
    /// Hooks as a text writes them: statements on lines of their own or behind semicolons; `#` begins a comment.
    ///
    /// - `patterns`: pages that leave a TD carry a pattern.
    /// - `seed N`: where the chances below begin.
    /// - `busy LEAF WHEN`, `busy:OPERAND LEAF WHEN`: the call answers OPERAND_BUSY and does nothing (RCX if no operand is
    ///   named).
    /// - `interrupted LEAF WHEN`: an interrupt is pending from the call's first look on.
    /// - `no-entropy LEAF WHEN`: RDRAND, RDSEED and PCONFIG find no entropy during the call.
    /// - `shutdown LEAF WHEN`: the module shuts down at the call.
    ///
    /// LEAF is a name such as `TDH.MEM.PAGE.AUG`, or `*` for every leaf. WHEN is `call N` (1 is the first), `calls N-M`, or
    /// `chance N/M`.
    ///
    /// # Errors
    /// [`ParseError`] with the line that can't be understood.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut hooks = Self::default();
        let mut seed = 0;
        let lines = (1..).zip(text.lines());
        let statements = lines.flat_map(|(line, text)| {
            let text = text.split('#').next().unwrap_or_default();
            text.split(';').map(move |statement| (line, statement))
        });
        for (line, statement) in statements {
            let mut words = statement.split_whitespace();
            let error = ParseError { line };
            match (words.next(), words.next()) {
                (None, _) => {}
                (Some("patterns"), None) => hooks.patterns = true,
                (Some("seed"), Some(number)) => seed = number.parse().map_err(|_| error)?,
                (Some(fault), Some(leaf)) => {
                    let mut when = || words.next().ok_or(error);
                    hooks
                        .faults
                        .parse_rule([fault, leaf, when()?, when()?])
                        .ok_or(error)?;
                }
                (Some(_), None) => return Err(error),
            }
            if words.next().is_some() {
                return Err(error);
            }
        }
        hooks.faults.set_seed(seed);
        Ok(hooks)
    }
}
