//! CPUID values of a TD: the CPU's values, restricted to the TD's configuration.

use seam::abi::{Attributes, ConfigFlags, FeatureParavirtCtls, Features0, TdCtls};

use super::{
    EAX, EBX, ECX, EDX, NUM_ROWS, Native, Registers, Row, Table,
    fms::{self, Fms},
    topology,
};
use crate::{Change, Release};

/// The reason why a CPUID configuration is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// A bit of this row is not configurable, or its value is not allowed for this TD.
    Value {
        /// Leaf and sub-leaf of the row.
        row: u64,
    },
    /// The guest is told a physical address width that it can't have.
    PhysicalWidth,
    /// HLE and RTM differ; they must be set together.
    TsxHalf,
    /// TSX without IA32_TSX_CTRL.
    NoTsxCtrl,
    /// The topology of leaf 0x1F is malformed.
    Topology,
}

/// Features of a TD that the module itself depends on: the CPUID bits of these names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    pub monitor: bool,
    pub est: bool,
    pub tm2: bool,
    pub xtpr_update: bool,
    pub dca: bool,
    pub tsc_deadline: bool,
    pub mce: bool,
    pub mca: bool,
    pub mtrr: bool,
    pub acpi: bool,
    pub tsx: bool,
    pub rdt_m: bool,
    pub rdt_a: bool,
    pub waitpkg: bool,
    pub tme: bool,
    pub la57: bool,
    pub mktme: bool,
    pub core_capabilities: bool,
    pub ddpd: bool,
    pub xfd: bool,
}

/// A TD's own choices that change its features: TD_CTLS and FEATURE_PARAVIRT_CTLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// TD_CTLS.
    pub controls: TdCtls,
    /// FEATURE_PARAVIRT_CTLS.
    pub paravirtual: FeatureParavirtCtls,
}

impl Features {
    /// Derives the features from a TD's CPUID values and its choices.
    pub fn of(table: &Table, choices: Choices, value: impl Fn(usize) -> Registers) -> Self {
        let of = |leaf, sub_leaf| table.find(leaf, sub_leaf).map_or([0; 4], &value);
        let (version, extended) = (of(1, 0), of(7, 0));
        let bit = |register: u32, bit: u32| register >> bit & 1 != 0;
        let reduced = choices.controls.contains(TdCtls::REDUCE_VE);
        // With #VE reduction a TD has only those of these features that it asked for.
        let chosen = |configured: bool, choice: FeatureParavirtCtls| {
            configured && (!reduced || choices.paravirtual.contains(choice))
        };
        // Without it, a TD has these whatever its CPUID says.
        let kept = |configured: bool, choice: FeatureParavirtCtls| {
            !reduced || configured && choices.paravirtual.contains(choice)
        };
        type Choice = FeatureParavirtCtls;
        Self {
            monitor: bit(version[ECX], 3),
            est: chosen(bit(version[ECX], 7), Choice::EST),
            tm2: chosen(bit(version[ECX], 8), Choice::TM2),
            xtpr_update: bit(version[ECX], 14),
            dca: chosen(bit(version[ECX], 18), Choice::DCA),
            tsc_deadline: chosen(bit(version[ECX], 24), Choice::TSC_DEADLINE),
            mce: kept(bit(version[EDX], 7), Choice::MCA),
            mca: kept(bit(version[EDX], 14), Choice::MCA),
            mtrr: kept(bit(version[EDX], 12), Choice::MTRR),
            acpi: chosen(bit(version[EDX], 22), Choice::ACPI),
            tsx: bit(extended[EBX], 4),
            rdt_m: chosen(bit(extended[EBX], 12), Choice::RDT_M),
            rdt_a: chosen(bit(extended[EBX], 15), Choice::RDT_A),
            waitpkg: bit(extended[ECX], 5),
            tme: chosen(bit(extended[ECX], 13), Choice::TME),
            la57: bit(extended[ECX], 16),
            mktme: chosen(bit(extended[EDX], 18), Choice::PCONFIG),
            core_capabilities: kept(bit(extended[EDX], 30), Choice::CORE_CAPABILITIES),
            ddpd: bit(of(7, 2)[EDX], 3),
            xfd: bit(of(0xD, 1)[EAX], 4),
        }
    }
}

/// The parts of a TD's configuration that its CPUID depends on.
#[derive(Clone, Copy, Debug)]
pub struct TdConfig<'a> {
    /// The release that configures the TD.
    pub release: Release,
    /// ATTRIBUTES.
    pub attributes: u64,
    /// XFAM.
    pub xfam: u64,
    /// CONFIG_FLAGS.
    pub flags: ConfigFlags,
    /// TSC frequency in units of 25 MHz.
    pub tsc_frequency: u16,
    /// TD_PARAMS.CPUID_CONFIG.
    pub cpuid: &'a [Registers],
    /// True if the CPU has IA32_TSX_CTRL.
    pub has_tsx_ctrl: bool,
}

impl TdConfig<'_> {
    const fn has(&self, attribute: Attributes) -> bool {
        self.attributes & attribute.bits() != 0
    }

    /// Returns the width of guest-physical addresses.
    const fn gpa_width(&self) -> u32 {
        if self.flags.contains(ConfigFlags::GPAW) {
            52
        } else {
            48
        }
    }
}

/// Returns a TD's CPUID values, by row of the table.
///
/// # Errors
/// The first [`ConfigError`] in the order of the rows.
pub fn virtualize(
    native: &Native,
    td: &TdConfig<'_>,
) -> Result<[Registers; NUM_ROWS], ConfigError> {
    let table = native.table;
    let mut values = native.values;
    let mut known = Known::default();
    for (index, row) in table.rows.iter().enumerate() {
        let value = &mut values[index];
        if let Some(position) = table.configures(index) {
            let (entry, config) = (&table.configurable[position], td.cpuid[position]);
            if (0..4).any(|i| config[i] & !(entry.direct[i] | entry.allowed[i]) != 0) {
                return Err(ConfigError::Value { row: row.id() });
            }
            for (i, value) in value.iter_mut().enumerate() {
                *value = *value & !entry.direct[i] | config[i] & entry.direct[i];
                *value &= config[i] | !entry.allowed[i];
            }
        }
        let xfam_bits = table.xfam_bits.iter();
        for needed in
            xfam_bits.filter(|needed| (needed.leaf, needed.sub_leaf) == (row.leaf, row.sub_leaf))
        {
            if td.xfam & needed.xfam != needed.xfam {
                *value = core::array::from_fn(|i| value[i] & !needed.bits[i]);
            }
        }
        known.adapt(native, td, row, value)?;
    }
    if td.release.has(Features0::TOPOLOGY_ENUM) {
        topology::complete(native, &mut values)?;
    }
    Ok(values)
}

/// The features of a TD that its later CPUID leafs depend on.
#[derive(Default)]
struct Known {
    monitor: bool,
    la57: bool,
    counter_leaf: bool,
    counter_sub_leafs: u32,
}

impl Known {
    /// Adapts the value of a row to the TD's configuration.
    fn adapt(
        &mut self,
        native: &Native,
        td: &TdConfig<'_>,
        row: &Row,
        value: &mut Registers,
    ) -> Result<(), ConfigError> {
        match (row.leaf, row.sub_leaf.unwrap_or(0)) {
            (1, _) => {
                adapt_model(native, td, row, value)?;
                self.monitor = value[ECX] >> 3 & 1 != 0;
            }
            (5, _) if !self.monitor => *value = [0; 4],
            (7, 0) => {
                let (hle, rtm) = (value[EBX] >> 4 & 1 != 0, value[EBX] >> 11 & 1 != 0);
                if hle != rtm {
                    return Err(if td.release.does(Change::MORE_CPUID) {
                        ConfigError::Value { row: row.id() }
                    } else {
                        ConfigError::TsxHalf
                    });
                }
                if hle && !td.has_tsx_ctrl {
                    return Err(ConfigError::NoTsxCtrl);
                }
                let pks = td.has(Attributes::PKS);
                value[ECX] = value[ECX] & !(1 << 31 | 1 << 23) | u32::from(pks) << 31;
                self.la57 = value[ECX] >> 16 & 1 != 0;
            }
            (7, 1) => {
                self.counter_leaf = value[EAX] >> 8 & 1 != 0;
                if td.release.does(Change::MORE_CPUID) {
                    let lass = u32::from(td.has(Attributes::LASS));
                    value[EAX] = value[EAX] & !(1 << 6) | lass << 6;
                }
            }
            (0xA, _) if !td.has(Attributes::PERFMON) => *value = [0; 4],
            (0xD, 0) => value[ECX] = native.standard_size(td.xfam),
            (0xD, 1) if native.xfd & td.xfam == 0 => value[EAX] &= !(1 << 4),
            (0xD, component @ 2..) if td.xfam >> component & 1 == 0 => *value = [0; 4],
            (0x15, _) => value[EBX] = u32::from(td.tsc_frequency),
            (0x19, _) => *value = [0; 4],
            (0x1A, _) if td.has(Attributes::MIGRATABLE) => *value = [0; 4],
            (0x23, sub_leaf) if td.release.does(Change::MORE_CPUID) => {
                if !td.has(Attributes::PERFMON) || !self.counter_leaf {
                    *value = [0; 4];
                } else if sub_leaf == 0 {
                    self.counter_sub_leafs = value[EAX];
                } else if self.counter_sub_leafs >> sub_leaf & 1 == 0 {
                    *value = [0; 4];
                }
            }
            (0x8000_0008, _) => self.adapt_widths(native, td, value)?,
            _ => {}
        }
        Ok(())
    }

    /// Sets the widths of addresses.
    fn adapt_widths(
        &self,
        native: &Native,
        td: &TdConfig<'_>,
        value: &mut Registers,
    ) -> Result<(), ConfigError> {
        let linear = if self.la57 { 57 } else { 48 };
        if !td.release.has(Features0::MAXPA_VIRT) {
            value[EAX] = value[EAX] & !0xFF00 | linear << 8;
            return Ok(());
        }
        let most = native.max_pa.min(td.gpa_width());
        let (physical, guest) = if td.flags.contains(ConfigFlags::MAXGPA_VIRT) {
            (native.max_pa, most)
        } else if td.flags.contains(ConfigFlags::MAXPA_VIRT) {
            match value[EAX] & 0xFF {
                0 => (most, 0),
                wanted if (MIN_VIRT_MAXPA..=td.gpa_width()).contains(&wanted) => (wanted, 0),
                _ => return Err(ConfigError::PhysicalWidth),
            }
        } else {
            (native.max_pa, 0)
        };
        value[EAX] = physical | linear << 8 | guest << 16;
        Ok(())
    }
}

/// The least physical address width that a TD can be told (MIN_VIRT_MAXPA).
pub const MIN_VIRT_MAXPA: u32 = 45;

/// Sets the model of a TD's CPU.
fn adapt_model(
    native: &Native,
    td: &TdConfig<'_>,
    row: &Row,
    value: &mut Registers,
) -> Result<(), ConfigError> {
    if value[EAX] == 0 {
        value[EAX] = native.fms;
    }
    let accepted = if td.has(Attributes::MIGRATABLE) {
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
    Ok(())
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
        Native::sample(cpuid, |_| 0, 0x806F8, Table::of(Release::V1_5_01))
    }

    fn config(cpuid: &[Registers; NUM_CONFIGURABLE]) -> TdConfig<'_> {
        TdConfig {
            release: Release::V1_5_01,
            flags: ConfigFlags::empty(),
            attributes: 0,
            xfam: 3,
            tsc_frequency: 100,
            cpuid,
            has_tsx_ctrl: true,
        }
    }

    fn row(leaf: u32, sub_leaf: u32) -> usize {
        Table::of(Release::V1_5_01).find(leaf, sub_leaf).unwrap()
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
        let native = Native::sample(here, |_| 0, PLATFORM, Table::of(Release::V1_5_01));
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
