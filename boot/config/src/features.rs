//! Lists of features by name: `xfam` and `paravirt` of `[[td]]`.

use alloc::{format, string::String, vec::Vec};
use core::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};

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

        impl<'de> Deserialize<'de> for $list {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = String::deserialize(deserializer)?;
                let known = Self::ALL.iter().find(|feature| feature.name() == name);
                known.copied().ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|feature| feature.name()).collect();
                    let all = all.join(", ");
                    Error::custom(format!("{} has {name:?}; the names are {all}", $key))
                })
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

impl<'de> Deserialize<'de> for Xfam {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListOrNumber)
    }
}

struct ListOrNumber;

impl<'de> Visitor<'de> for ListOrNumber {
    type Value = Xfam;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list such as [\"x87\", \"sse\", \"avx\"], or a number such as 0x7")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Xfam, E> {
        u64::try_from(number)
            .map(Xfam::Bits)
            .map_err(|_| E::custom(format!("xfam is {number}; it must not be negative")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Xfam, A::Error> {
        let mut features = Vec::new();
        while let Some(feature) = list.next_element()? {
            features.push(feature);
        }
        Ok(Xfam::Features(features))
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
