//! Test hooks that a test or a simulation passes when it creates the module. No SEAMCALL reaches them.
//!
//! [`Faults`] makes calls fail as they can on hardware. [`Counters`] counts calls by leaf and status. [`Log`] keeps the
//! violations of the host. `custody` watches pages as they change hands.

pub(crate) mod counters;
mod custody;
mod faults;
mod log;

pub use counters::{Counters, Counts};
pub(crate) use custody::{check_stale_key, pattern, uncleared};
pub use faults::{Fault, Faults, ParseError, When};
pub use log::{Access, HostAccess, Log, Violation, ViolationKind};

/// Settings of a module beyond its platform.
#[derive(Debug, Default)]
pub struct Hooks {
    /// The faults to inject.
    pub faults: Faults,
    /// True if pages that leave a TD are filled with a pattern of its HKID. The pattern identifies a page that returns
    /// uncleared.
    pub patterns: bool,
    /// MAX_VCPUS_PER_TD, if it differs from the release's.
    pub max_vcpus: Option<u16>,
}

impl Hooks {
    /// Parses hooks from text: statements on separate lines or separated by semicolons. `#` starts a comment.
    ///
    /// - `patterns`: pages that leave a TD are filled with a pattern.
    /// - `max-vcpus N`: a TD has at most N vCPUs, in a release with MAX_VCPUS_PER_TD.
    /// - `seed N`: seed of the probabilities below.
    /// - `busy LEAF WHEN`, `busy:OPERAND LEAF WHEN`: the call returns OPERAND_BUSY and does nothing. The default
    ///   operand is RCX.
    /// - `interrupted LEAF WHEN`: an interrupt is pending from the call's first check on.
    /// - `no-entropy LEAF WHEN`: RDRAND, RDSEED and PCONFIG find no entropy during the call.
    /// - `shutdown LEAF WHEN`: the module shuts down at the call.
    /// - `machine-check TDH.VP.ENTER WHEN`: a machine check interrupts the guest before its first instruction.
    ///
    /// LEAF is a name such as `TDH.MEM.PAGE.AUG`, or `*` for every leaf. WHEN is `call N` (1 is the first), `calls N-M`, or
    /// `chance N/M`.
    ///
    /// # Errors
    /// [`ParseError`] with the number of the line that could not be parsed.
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
                (Some("max-vcpus"), Some(number)) => {
                    hooks.max_vcpus = Some(number.parse().map_err(|_| error)?);
                }
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
