//! The known security advisories about TDX modules.

/// A version of the module: major, minor, update.
type Version = (u16, u16, u16);

/// An advisory, with the first release of each line of modules that has the fix.
struct Advisory {
    id: &'static str,
    what: &'static str,
    fixed: &'static [Version],
}

/// Sources: Intel's security centre for INTEL-SA-01397 (February 2026) and INTEL-SA-01436 (August 2026, which advises
/// the latest releases without naming versions); github.com/intel/tdx-module/security for the others.
const ADVISORIES: &[Advisory] = &[
    Advisory {
        id: "GHSA-6hm6-qx8h-fp2w",
        what: "improper input validation",
        fixed: &[(1, 5, 5)],
    },
    Advisory {
        id: "GHSA-gr79-64x9-5p2m",
        what: "escalation of privilege",
        fixed: &[(1, 5, 5)],
    },
    Advisory {
        id: "INTEL-SA-01397",
        what: "a TD can be made debuggable during migration, and memory of the module read",
        fixed: &[(1, 5, 24), (2, 0, 14)],
    },
    Advisory {
        id: "INTEL-SA-01436",
        what: "a TD can end the module, or bypass its authentication",
        fixed: &[(1, 5, 34), (2, 0, 18)],
    },
];

impl Advisory {
    /// Returns the release that fixes it for a module of this version, unless the module has the fix.
    fn fix_for(&self, version: Version) -> Option<Version> {
        let line = (version.0, version.1);
        let same_line = self.fixed.iter().find(|fix| (fix.0, fix.1) == line);
        same_line.copied().filter(|fix| version < *fix)
    }
}

/// Returns the advisories that apply to a module, in words.
pub fn of(version: Version) -> impl Iterator<Item = alloc::string::String> {
    ADVISORIES.iter().filter_map(move |advisory| {
        let (major, minor, update) = advisory.fix_for(version)?;
        let Advisory { id, what, .. } = advisory;
        Some(alloc::format!(
            "{id}: {what}; fixed in {major}.{minor}.{update:02}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advisory_applies_until_the_release_of_its_line_that_fixes_it() {
        let ids = |version| -> alloc::vec::Vec<_> {
            of(version)
                .map(|advisory| advisory.split(':').next().unwrap_or_default().len())
                .collect()
        };
        assert_eq!(ids((1, 5, 1)).len(), 4);
        assert_eq!(ids((1, 5, 16)).len(), 2);
        assert_eq!(ids((1, 5, 25)).len(), 1);
        assert_eq!(ids((1, 5, 34)).len(), 0);
        assert_eq!(ids((2, 0, 8)).len(), 2);
        assert_eq!(ids((2, 0, 14)).len(), 1);
    }
}
