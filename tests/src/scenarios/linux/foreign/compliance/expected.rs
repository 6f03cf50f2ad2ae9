//! Cases of tdx-compliance that fail here, and have to: each with its reason. All others have to pass.

use anyhow::{Context, Result};

/// Cases that fail for one reason.
struct Expected {
    /// The releases of the module on which they fail; all of them if it names none.
    modules: &'static [&'static str],
    reason: &'static str,
    part: &'static str,
    cases: &'static [&'static str],
}

const EXPECTED: &[Expected] = &[
    Expected {
        modules: &["1.5.01"],
        reason: "module 1.5.01 raises #VE, newer ones #GP",
        part: "msr",
        cases: &["IA32_X2APIC_APICID_write"],
    },
    Expected {
        modules: &["1.5.25"],
        reason: "the case is of module 1.5.01, which passes the read or raises #VE; newer ones raise #GP",
        part: "msr",
        cases: &["IA32_X2APIC_VERSION_write", "IA32_DEBUG_INTERFACE_read"],
    },
    Expected {
        modules: &["1.5.25"],
        reason: "newer modules leave the feature to the host, which does not offer it, so its MSR raises #GP",
        part: "msr",
        cases: &["MSR_IA32_TSC_DEADLINE_read", "MSR_IA32_TSC_DEADLINE_write"],
    },
    Expected {
        modules: &["1.5.25"],
        reason: "newer modules leave the feature to the host, which does not offer it",
        part: "cpuid",
        cases: &[
            "CPUID(0x1,0).ecx[24]", // the TSC deadline
            "CPUID(0x7,0).edx[18]", // PCONFIG
            "CPUID(0x7,0).ecx[13]", // TME
        ],
    },
    Expected {
        modules: &[],
        reason: "TCG lacks the feature, which the module takes from the CPU",
        part: "cpuid",
        cases: &[
            "CPUID(0x1,0).ecx[2]",          // DTES64
            "CPUID(0x1,0).ecx[4]",          // DS-CPL
            "CPUID(0x1,0).ecx[17]",         // PCID
            "CPUID(0x1,0).edx[1]",          // VME
            "CPUID(0x1,0).edx[21]",         // DS
            "CPUID(0x7,0x0).ebx[6]",        // FDP_EXCPTN_ONLY
            "CPUID(0x7,0x0).ebx[10]",       // INVPCID
            "CPUID(0x7,0x0).ebx[13]",       // FCS and FDS are 0
            "CPUID(0x7,0x0).ebx[18]",       // RDSEED
            "CPUID(0x7,0x0).ebx[29]",       // SHA
            "CPUID(0x7,0x0).ecx[24]",       // bus-lock detection
            "CPUID(0x7,0x0).ecx[27]",       // MOVDIRI
            "CPUID(0x7,0x0).edx[10]",       // MD_CLEAR
            "CPUID(0x7,0x0).edx[26]",       // IBRS
            "CPUID(0x7,0x0).edx[27]",       // STIBP
            "CPUID(0x7,0x0).edx[31]",       // SSBD
            "CPUID(0x7,0x2).edx[0]",        // PSFD
            "CPUID(0x7,0x2).edx[1]",        // IPRED_CTRL
            "CPUID(0x7,0x2).edx[2]",        // RRSBA_CTRL
            "CPUID(0x7,0x2).edx[4]",        // BHI_CTRL
            "CPUID(0xd,0x1).eax[1]",        // XSAVEC
            "CPUID(0xd,0x1).eax[3]",        // XSAVES
            "CPUID(0x80000001,0x0).ecx[8]", // PREFETCHW
        ],
    },
    Expected {
        modules: &[],
        reason: "leaf 7.1 EDX is 0 in module 1.5.01 and on the machine's CPU; newer CPUs have AVX-VNNI-INT8 and AVX-NE-CONVERT",
        part: "cpuid",
        cases: &["CPUID(0x7,0x1).edx[4]", "CPUID(0x7,0x1).edx[5]"],
    },
    Expected {
        modules: &[],
        reason: "a TD is without MCE, MTRR, MCA and IA32_CORE_CAPABILITIES only if it reduces #VE, which Debian's Linux 6.12 does not",
        part: "cpuid",
        cases: &[
            "CPUID(0x1,0).edx[7]",
            "CPUID(0x1,0).edx[12]",
            "CPUID(0x1,0).edx[14]",
            "CPUID(0x7,0).edx[30]",
        ],
    },
    Expected {
        modules: &[],
        reason: "the module raises #VE for the leaf unless the TD reduces #VE, and Linux answers it with 0",
        part: "cpuid",
        cases: &["CPUID(0x2,0).eax", "CPUID(0x6,0).eax[2]"],
    },
];

/// The outcome of a part.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The line with its figures.
    pub total: String,
    /// Cases that did not end as they should.
    pub wrong: Vec<String>,
}

impl Expected {
    /// Returns whether the cases belong to a part, and fail on a release of the module.
    fn concerns(&self, module: &str, part: &str) -> bool {
        self.part == part && (self.modules.is_empty() || self.modules.contains(&module))
    }
}

/// Compares what tdx-compliance says of a part, on a release of the module, with what has to fail.
///
/// # Errors
/// When it says no figures.
pub fn judge(module: &str, part: &str, said: &str) -> Result<Verdict> {
    let total = said.lines().find(|line| line.starts_with("Total:"));
    let total = total.with_context(|| format!("{part} gave no figures:\n{said}"))?;
    let failed: Vec<_> = said.lines().filter_map(failed).collect();
    let expected = || {
        let all = EXPECTED.iter();
        all.filter(|expected| expected.concerns(module, part))
    };
    let is_expected = |case: &str| expected().any(|expected| expected.cases.contains(&case));
    let mut wrong: Vec<_> = failed
        .iter()
        .filter(|case| !is_expected(case))
        .map(|case| format!("{part}: {case} fails"))
        .collect();
    for Expected { reason, cases, .. } in expected() {
        let passed = cases.iter().filter(|case| !failed.contains(case));
        wrong.extend(passed.map(|case| format!("{part}: {case} does not fail, though {reason}")));
    }
    Ok(Verdict {
        total: total.trim().to_owned(),
        wrong,
    })
}

/// The name of the case that a line says has failed: `NUMBER: NAME_VERSION:\t FAIL`.
fn failed(line: &str) -> Option<&str> {
    let case = line.trim_end().strip_suffix("FAIL")?.trim_end();
    let (_, case) = case.strip_suffix(':')?.split_once(": ")?;
    case.rsplit_once('_').map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part's output in which these cases fail.
    fn said(failed: &[&str]) -> String {
        let mut said =
            "1: FINE_1.5:\t PASS\r\nError: MSR compliance test failed, FAIL\r\n".to_owned();
        for (number, case) in (2..).zip(failed) {
            said += &format!("{number}: {case}_1.5:\t FAIL\r\n");
        }
        said + "Total:9, PASS:8, FAIL:1, SKIP:0\r\n"
    }

    #[test]
    fn expected_failures_pass() {
        let verdict = judge("1.5.01", "msr", &said(&["IA32_X2APIC_APICID_write"])).unwrap();
        let total = "Total:9, PASS:8, FAIL:1, SKIP:0".to_owned();
        let wrong = Vec::new();
        assert_eq!(verdict, Verdict { total, wrong });
    }

    #[test]
    fn an_unexpected_failure_is_reported() {
        let failed = ["CR0_SET_X86_CR0_PE | X86_CR0_PG"];
        assert_eq!(
            judge("1.5.01", "cr", &said(&failed)).unwrap().wrong,
            ["cr: CR0_SET_X86_CR0_PE | X86_CR0_PG fails"]
        );
    }

    #[test]
    fn an_unexpected_success_is_reported_with_its_reason() {
        let wrong = judge("1.5.01", "msr", &said(&[])).unwrap().wrong;
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].contains("APICID_write does not fail, though module 1.5.01 raises #VE"));
    }

    #[test]
    fn a_part_without_figures_is_an_error() {
        assert!(judge("1.5.01", "cr", "sh: can't create: nonexistent directory").is_err());
    }

    #[test]
    fn the_releases_have_different_lists() {
        let old = said(&["IA32_X2APIC_APICID_write"]);
        assert!(judge("1.5.01", "msr", &old).unwrap().wrong.is_empty());
        let wrong = judge("1.5.25", "msr", &old).unwrap().wrong;
        assert!(wrong.contains(&"msr: IA32_X2APIC_APICID_write fails".to_owned()));
        assert_eq!(wrong.len(), 5, "{wrong:?}");
    }

    #[test]
    fn no_case_has_two_reasons() {
        let mut cases: Vec<_> = EXPECTED.iter().flat_map(|e| e.cases).collect();
        let count = cases.len();
        cases.sort_unstable();
        cases.dedup();
        assert_eq!(cases.len(), count);
    }
}
