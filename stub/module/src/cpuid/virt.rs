//! CPUID values of a TD: the CPU's values, restricted to the TD's configuration.

use seam::abi::Attributes;

use super::{
    CONFIGURABLE, EAX, EBX, ECX, EDX, NUM_ROWS, Native, ROWS, Registers, find,
    fms::{self, Fms},
    table::XFAM_BITS,
};

/// The reason why a CPUID configuration is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// A bit of this row is not configurable, or its value is not allowed for this TD.
    Value {
        /// Leaf and sub-leaf of the row.
        row: u64,
    },
    /// HLE and RTM differ; they must be set together.
    TsxHalf,
    /// TSX without IA32_TSX_CTRL.
    NoTsxCtrl,
}

/// Features of a TD that the module itself depends on: the CPUID bits of these names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    pub monitor: bool,
    pub dca: bool,
    pub tsc_deadline: bool,
    pub tsx: bool,
    pub waitpkg: bool,
    pub tme: bool,
    pub la57: bool,
    pub mktme: bool,
    pub ddpd: bool,
    pub xfd: bool,
}

impl Features {
    /// Derives the features from a TD's CPUID values.
    pub fn of(value: impl Fn(usize) -> Registers) -> Self {
        let of = |leaf, sub_leaf| find(leaf, sub_leaf).map_or([0; 4], &value);
        let (version, extended) = (of(1, 0), of(7, 0));
        Self {
            monitor: version[ECX] >> 3 & 1 != 0,
            dca: version[ECX] >> 18 & 1 != 0,
            tsc_deadline: version[ECX] >> 24 & 1 != 0,
            tsx: extended[EBX] >> 4 & 1 != 0,
            waitpkg: extended[ECX] >> 5 & 1 != 0,
            tme: extended[ECX] >> 13 & 1 != 0,
            la57: extended[ECX] >> 16 & 1 != 0,
            mktme: extended[EDX] >> 18 & 1 != 0,
            ddpd: of(7, 2)[EDX] >> 3 & 1 != 0,
            xfd: of(0xD, 1)[EAX] >> 4 & 1 != 0,
        }
    }
}

/// The parts of a TD's configuration that its CPUID depends on.
#[derive(Clone, Copy, Debug)]
pub struct TdConfig<'a> {
    /// ATTRIBUTES.
    pub attributes: u64,
    /// XFAM.
    pub xfam: u64,
    /// TSC frequency in units of 25 MHz.
    pub tsc_frequency: u16,
    /// TD_PARAMS.CPUID_CONFIG.
    pub cpuid: &'a [Registers],
    /// True if the CPU has IA32_TSX_CTRL.
    pub has_tsx_ctrl: bool,
}

/// Returns a TD's CPUID values, by row of the table.
///
/// # Errors
/// The first [`ConfigError`] in the order of the rows.
pub fn virtualize(
    native: &Native,
    td: &TdConfig<'_>,
) -> Result<[Registers; NUM_ROWS], ConfigError> {
    let mut values = native.values;
    let mut features = Features::default();
    for (index, row) in ROWS.iter().enumerate() {
        if let Some(position) = CONFIGURABLE.iter().position(|entry| entry.row == index) {
            let (entry, config) = (&CONFIGURABLE[position], td.cpuid[position]);
            if (0..4).any(|i| config[i] & !(entry.direct[i] | entry.allowed[i]) != 0) {
                return Err(ConfigError::Value { row: row.id() });
            }
            for (i, value) in values[index].iter_mut().enumerate() {
                *value = *value & !entry.direct[i] | config[i] & entry.direct[i];
                *value &= config[i] | !entry.allowed[i];
            }
        }
        let value = &mut values[index];
        for needed in XFAM_BITS
            .iter()
            .filter(|needed| (needed.leaf, needed.sub_leaf) == (row.leaf, row.sub_leaf))
        {
            if td.xfam & needed.xfam != needed.xfam {
                *value = core::array::from_fn(|i| value[i] & !needed.bits[i]);
            }
        }
        match (row.leaf, row.sub_leaf.unwrap_or(0)) {
            (1, _) => {
                if value[EAX] == 0 {
                    value[EAX] = native.fms;
                }
                let accepted = if td.attributes & Attributes::MIGRATABLE.bits() != 0 {
                    fms::accepts(Fms(native.fms), Fms(value[EAX]))
                } else {
                    value[EAX] == native.fms
                };
                if !accepted {
                    return Err(ConfigError::Value { row: row.id() });
                }
                if value[EAX] == native.fms {
                    value[EAX] = native.told_fms;
                }
                features.monitor = value[ECX] >> 3 & 1 != 0;
            }
            (5, _) if !features.monitor => *value = [0; 4],
            (7, 0) => {
                let (hle, rtm) = (value[EBX] >> 4 & 1 != 0, value[EBX] >> 11 & 1 != 0);
                if hle != rtm {
                    return Err(ConfigError::TsxHalf);
                }
                if hle && !td.has_tsx_ctrl {
                    return Err(ConfigError::NoTsxCtrl);
                }
                let pks = td.attributes & Attributes::PKS.bits() != 0;
                value[ECX] = value[ECX] & !(1 << 31 | 1 << 23) | u32::from(pks) << 31;
                features.la57 = value[ECX] >> 16 & 1 != 0;
            }
            (0xA, _) if td.attributes & Attributes::PERFMON.bits() == 0 => *value = [0; 4],
            (0xD, 0) => value[ECX] = native.standard_size(td.xfam),
            (0xD, 1) if native.xfd & td.xfam == 0 => value[EAX] &= !(1 << 4),
            (0xD, component @ 2..) if td.xfam >> component & 1 == 0 => *value = [0; 4],
            (0x15, _) => value[EBX] = u32::from(td.tsc_frequency),
            (0x19, _) => *value = [0; 4],
            (0x8000_0008, _) => {
                value[EAX] = value[EAX] & !0xFF00 | if features.la57 { 57 } else { 48 } << 8
            }
            _ => {}
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::NUM_CONFIGURABLE;

    /// Returns a CPU with every configurable feature and the components of XFAM 0x6DBE7.
    fn native() -> Native {
        let cpuid = |leaf, sub_leaf| match (leaf, sub_leaf) {
            (0xD, 0) => [0x6_02E7, 0x340, 0x2B00, 0],
            (0xD, 1) => [0x1F, 0x2B00, 0x1_DD00, 0],
            (0xD, 2) => [0x100, 0x240, 0, 0],
            (0xD, 17) => [0x40, 0xAC0, 2, 0],
            (0xD, 18) => [0x2000, 0xB00, 6, 0],
            (0x15, _) => [1, 80, 25_000_000, 0],
            (0x8000_0008, _) => [0x3934, 0, 0, 0],
            (1, _) => [0x806F8, u32::MAX, u32::MAX, u32::MAX],
            _ => [u32::MAX; 4],
        };
        Native::sample(cpuid, |_| 0, 0x806F8)
    }

    fn config(cpuid: &[Registers; NUM_CONFIGURABLE]) -> TdConfig<'_> {
        TdConfig {
            attributes: 0,
            xfam: 3,
            tsc_frequency: 100,
            cpuid,
            has_tsx_ctrl: true,
        }
    }

    fn row(leaf: u32, sub_leaf: u32) -> usize {
        find(leaf, sub_leaf).unwrap()
    }

    #[test]
    fn a_bit_that_is_not_configurable_is_refused_with_its_leaf() {
        let mut cpuid = [[0; 4]; NUM_CONFIGURABLE];
        cpuid[1] = [1 << 10, 0, 0, 0];
        assert_eq!(
            virtualize(&native(), &config(&cpuid)),
            Err(ConfigError::Value { row: 4 })
        );
    }

    #[test]
    fn an_allowed_bit_is_there_only_if_it_is_asked_for() {
        let mut cpuid = [[0; 4]; NUM_CONFIGURABLE];
        let monitor =
            |cpuid: &_| virtualize(&native(), &config(cpuid)).unwrap()[row(1, 0)][ECX] >> 3 & 1;
        assert_eq!(monitor(&cpuid), 0);
        cpuid[0][ECX] = 1 << 3;
        assert_eq!(monitor(&cpuid), 1);
    }

    #[test]
    fn a_feature_needs_its_component_of_xfam() {
        let mut cpuid = [[0; 4]; NUM_CONFIGURABLE];
        cpuid[0][ECX] = 1 << 28;
        let without = virtualize(&native(), &config(&cpuid)).unwrap();
        let with = virtualize(
            &native(),
            &TdConfig {
                xfam: 7,
                ..config(&cpuid)
            },
        )
        .unwrap();
        assert_eq!(without[row(1, 0)][ECX] >> 28 & 1, 0);
        assert_eq!(with[row(1, 0)][ECX] >> 28 & 1, 1);
        assert_eq!(without[row(0xD, 0)][ECX], 576);
        assert_eq!(with[row(0xD, 0)][ECX], 0x340);
    }

    #[test]
    fn the_tsc_leaf_gives_the_configured_frequency() {
        let cpuid = [[0; 4]; NUM_CONFIGURABLE];
        let values = virtualize(&native(), &config(&cpuid)).unwrap();
        assert_eq!(values[row(0x15, 0)], [1, 100, 25_000_000, 0]);
    }

    #[test]
    fn a_td_is_told_the_model_that_it_can_execute_on_and_configured_by_that_of_the_platform() {
        const PLATFORM: u32 = 0x806F8;
        const TOLD: u32 = 0x206C2;
        let here = |leaf, _| [if leaf == 1 { TOLD } else { 0 }, 0, 0, 0];
        let native = Native::sample(here, |_| 0, PLATFORM);
        let eax = |configured: u32, attributes| {
            let mut cpuid = [[0; 4]; NUM_CONFIGURABLE];
            cpuid[0][EAX] = configured;
            let config = TdConfig {
                attributes,
                ..config(&cpuid)
            };
            virtualize(&native, &config).map(|values| values[row(1, 0)][EAX])
        };
        assert_eq!(native.values[row(1, 0)][EAX], TOLD);
        for asked in [0, PLATFORM] {
            assert_eq!(eax(asked, 0), Ok(TOLD));
            assert_eq!(eax(asked, Attributes::MIGRATABLE.bits()), Ok(TOLD));
        }
        assert_eq!(eax(0x806F7, Attributes::MIGRATABLE.bits()), Ok(0x806F7));
        assert!(eax(TOLD, 0).is_err());
        assert!(eax(TOLD, Attributes::MIGRATABLE.bits()).is_err());
    }

    #[test]
    fn a_family_that_the_cpu_is_not_is_refused() {
        let mut cpuid = [[0; 4]; NUM_CONFIGURABLE];
        cpuid[0][EAX] = 0x806F8;
        assert!(virtualize(&native(), &config(&cpuid)).is_ok());
        cpuid[0][EAX] = 0x806F7;
        assert_eq!(
            virtualize(&native(), &config(&cpuid)),
            Err(ConfigError::Value {
                row: 0xFFFF_FFFF_0000_0001
            })
        );
        let migratable = TdConfig {
            attributes: Attributes::MIGRATABLE.bits(),
            ..config(&cpuid)
        };
        assert!(virtualize(&native(), &migratable).is_ok());
    }
}
