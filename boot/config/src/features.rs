//! Lists of features by name: `xfam` and `paravirt` of `[[td]]`.

use alloc::{format, string::String, vec::Vec};

use toml::de::DeValue;

use super::keys::{Mistakes, number};

/// Declares the names that a key's list may have.
macro_rules! names {
    ($($(#[$doc:meta])* $list:ident in $key:literal {
        $($(#[$feature_doc:meta])* $feature:ident = $name:literal,)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $list {
            $($(#[$feature_doc])* $feature,)*
        }

        impl $list {
            /// Every feature.
            pub const ALL: &[Self] = &[$(Self::$feature,)*];

            /// Returns the operator's name for the feature.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$feature => $name,)*
                }
            }
        }

        impl Named for $list {
            const KEY: &'static str = $key;

            fn all() -> &'static [Self] {
                Self::ALL
            }

            fn its_name(self) -> &'static str {
                self.name()
            }
        }
    )*};
}

names! {
    /// An extended feature that a TD may use. AVX-512, CET and AMX stand for all their state components.
    XfamFeature in "xfam" {
        /// x87, which every TD must have.
        X87 = "x87",
        /// SSE, which every TD must have.
        Sse = "sse",
        /// AVX.
        Avx = "avx",
        /// AVX-512, which needs AVX.
        Avx512 = "avx512",
        /// Processor trace.
        Pt = "pt",
        /// User-page protection keys.
        Pkru = "pkru",
        /// Control-flow enforcement.
        Cet = "cet",
        /// User interrupts.
        Uintr = "uintr",
        /// Last branch records.
        Lbr = "lbr",
        /// Advanced matrix extensions.
        Amx = "amx",
        /// Advanced performance extensions.
        Apx = "apx",
    }

    /// A feature that a guest which reduces #VE may keep, by FEATURE_PARAVIRT_CTLS.
    Paravirt in "paravirt" {
        /// IA32_CORE_CAPABILITIES.
        CoreCapabilities = "core_capabilities",
        /// Direct cache access.
        Dca = "dca",
        /// Enhanced SpeedStep.
        Est = "est",
        /// Machine-check exceptions and banks.
        Mca = "mca",
        /// Memory-type range registers.
        Mtrr = "mtrr",
        /// PCONFIG.
        Pconfig = "pconfig",
        /// Allocation of shared resources.
        RdtA = "rdt_a",
        /// Monitoring of shared resources.
        RdtM = "rdt_m",
        /// Thermal monitoring and clock modulation.
        Acpi = "acpi",
        /// Thermal monitor 2.
        Tm2 = "tm2",
        /// Total memory encryption.
        Tme = "tme",
        /// The APIC timer's TSC-deadline mode.
        TscDeadline = "tsc_deadline",
    }
}

/// The value of `xfam`: a list of features, or the number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Xfam {
    /// The features.
    Features(Vec<XfamFeature>),
    /// All bits.
    Bits(u64),
}

impl Xfam {
    pub(crate) fn read(value: &DeValue<'_>) -> Option<Self> {
        let bits = || number(value, 0..=i64::MAX as u64).map(Self::Bits);
        list(value).map(Self::Features).or_else(bits)
    }

    pub(crate) fn show(&self) -> String {
        match self {
            Self::Features(features) => show_list(features),
            Self::Bits(bits) => format!("{bits:#x}"),
        }
    }
}

/// Features that have names.
pub(crate) trait Named: Copy + 'static {
    /// The key whose list has them.
    const KEY: &'static str;

    fn all() -> &'static [Self];

    fn its_name(self) -> &'static str;
}

fn find<T: Named>(name: &str) -> Option<T> {
    let all = T::all().iter();
    all.copied().find(|feature| feature.its_name() == name)
}

/// Reads a list of names.
pub(crate) fn list<T: Named>(value: &DeValue<'_>) -> Option<Vec<T>> {
    let names = value.as_array()?.iter();
    names.map(|name| find(name.get_ref().as_str()?)).collect()
}

/// Returns a list of names as TOML.
pub(crate) fn show_list<T: Named>(features: &[T]) -> String {
    let names = features
        .iter()
        .map(|feature| format!("\"{}\"", feature.its_name()));
    format!("[{}]", names.collect::<Vec<_>>().join(", "))
}

/// Reports the names in a list that are none.
pub(crate) fn wrong_names<T: Named>(value: &DeValue<'_>, mistakes: &mut Mistakes<'_>) {
    for item in value.as_array().into_iter().flat_map(|array| array.iter()) {
        if let Some(name) = item.get_ref().as_str()
            && find::<T>(name).is_none()
        {
            let all: Vec<_> = T::all().iter().map(|feature| feature.its_name()).collect();
            let short: String = name.chars().take(40).collect();
            let what = format!("{} has {short:?}; the names are {}", T::KEY, all.join(", "));
            mistakes.add(item.span().start, what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    /// Returns the configuration of a TD with `key`, which is in line 5.
    fn td(key: &str) -> Result<crate::Td, String> {
        let file = "[[file]]\nname = \"f\"\npath = \"f\"\n";
        let text = format!("{file}[[td]]\n{key}\nname = \"a\"\nimage = \"f\"\nmemory = \"2M\"\n");
        parse(text.as_bytes()).map(|mut config| config.td.remove(0))
    }

    #[test]
    fn every_name_is_read() {
        for feature in XfamFeature::ALL {
            let one = td(&format!("xfam = [\"{}\"]", feature.name())).unwrap();
            assert_eq!(one.xfam, Some(Xfam::Features(vec![*feature])));
        }
        for feature in Paravirt::ALL {
            let one = td(&format!("paravirt = [\"{}\"]", feature.name())).unwrap();
            assert_eq!(one.paravirt, Some(vec![*feature]));
        }
        assert_eq!(td("paravirt = []").unwrap().paravirt, Some(vec![]));
    }

    #[test]
    fn a_number_remains_possible() {
        assert_eq!(td("xfam = 0xE7").unwrap().xfam, Some(Xfam::Bits(0xE7)));
    }

    #[test]
    fn a_wrong_name_is_refused_with_those_that_exist() {
        assert_eq!(
            td("xfam = [\"x87\", \"avx2\"]").unwrap_err(),
            "seamark.toml:5: xfam has \"avx2\"; the names are x87, sse, avx, avx512, pt, pkru, cet, uintr, lbr, amx, apx"
        );
        let refused = td("paravirt = [\"mce\"]").unwrap_err();
        let start = "seamark.toml:5: paravirt has \"mce\"; the names are core_capabilities, dca, ";
        assert!(refused.starts_with(start), "{refused}");
        for wrong in ["xfam = -1", "xfam = \"avx\"", "xfam = [7]"] {
            let refused = td(wrong).unwrap_err();
            assert!(refused.starts_with("seamark.toml:5: "), "{refused}");
        }
        let refused = td("xfam = \"avx\"").unwrap_err();
        assert!(refused.contains("a list such as"), "{refused}");
    }
}
