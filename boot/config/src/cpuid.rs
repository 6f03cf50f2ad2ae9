//! `[[td.cpuid]]`: the CPUID values that a TD is to have.

use alloc::format;

use toml::de::DeValue;

use super::keys::{Key, Keyed, number};

/// The form of a register.
const REGISTER: &str = "a number of 32 bits";

/// The values of one CPUID leaf for a TD. Registers that are not named keep the module's value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of CPUID")]
pub struct Cpuid {
    pub leaf: u32,
    /// `None` for a leaf without sub-leaves.
    pub subleaf: Option<u32>,
    pub eax: Option<u32>,
    pub ebx: Option<u32>,
    pub ecx: Option<u32>,
    pub edx: Option<u32>,
}

impl Keyed for Cpuid {
    const TABLE: &'static str = "[[td.cpuid]]";
    const KEYS: &'static [Key<Self>] = &[
        Key::<Self>::new(
            "leaf",
            REGISTER,
            |cpuid, value| register(value).map(|n| cpuid.leaf = n),
            |cpuid| Some(format!("{:#x}", cpuid.leaf)),
        )
        .required(),
        Key::<Self>::new(
            "subleaf",
            REGISTER,
            |cpuid, value| register(value).map(|n| cpuid.subleaf = Some(n)),
            |cpuid| cpuid.subleaf.map(|n| format!("{n:#x}")),
        ),
        Key::<Self>::new(
            "eax",
            REGISTER,
            |cpuid, value| register(value).map(|n| cpuid.eax = Some(n)),
            |cpuid| cpuid.eax.map(|n| format!("{n:#x}")),
        ),
        Key::<Self>::new(
            "ebx",
            REGISTER,
            |cpuid, value| register(value).map(|n| cpuid.ebx = Some(n)),
            |cpuid| cpuid.ebx.map(|n| format!("{n:#x}")),
        ),
        Key::<Self>::new(
            "ecx",
            REGISTER,
            |cpuid, value| register(value).map(|n| cpuid.ecx = Some(n)),
            |cpuid| cpuid.ecx.map(|n| format!("{n:#x}")),
        ),
        Key::<Self>::new(
            "edx",
            REGISTER,
            |cpuid, value| register(value).map(|n| cpuid.edx = Some(n)),
            |cpuid| cpuid.edx.map(|n| format!("{n:#x}")),
        ),
    ];

    fn blank() -> Self {
        Self::default()
    }
}

fn register(value: &DeValue<'_>) -> Option<u32> {
    number(value, 0..=u32::MAX.into()).map(|number| number as u32)
}
