//! The release of the TDX module beneath the TD, as the test's runner says. What the module answers differs by it.

use guest_kit::check::Failure;
use guest_kit::{fail, wishes};

/// A release of module 1.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Release {
    /// 1.5.01.
    V1_5_01,
    /// 1.5.16.
    V1_5_16,
    /// 1.5.25.
    V1_5_25,
}

/// Returns the release, whose update number is the first word of MRCONFIGID. The guest does not ask the module, whose
/// answers it checks.
///
/// # Errors
/// The runner has not said which release it is, or one that the tables of the guests do not know.
pub fn module() -> Result<Release, Failure> {
    match wishes::word(0) {
        1 => Ok(Release::V1_5_01),
        16 => Ok(Release::V1_5_16),
        25 => Ok(Release::V1_5_25),
        0 => fail!("the runner did not say which release the module is"),
        other => fail!("nobody has looked at what module 1.5.{other:02} answers"),
    }
}
