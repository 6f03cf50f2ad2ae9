//! The families, models and steppings that a migratable TD may be configured as: the CPU's own, an older stepping of
//! it, or an older model of the table.

/// Family, model and stepping in the format of CPUID(1).EAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fms(pub u32);

impl Fms {
    const fn stepping(self) -> u32 {
        self.0 & 0xF
    }

    /// Returns whether family and model are equal.
    pub const fn same_model(self, other: Self) -> bool {
        self.0 & !0xF == other.0 & !0xF
    }
}

/// Models that module 1.5.01 knows, newest first, each with its latest stepping.
///
/// Source: TDX module 1.5.01, cpuid_fms.
const KNOWN: [Fms; 6] = [
    Fms(0xD06D0), // Clearwater Forest
    Fms(0xA06E0), // Granite Rapids D
    Fms(0xA06D0), // Granite Rapids SP
    Fms(0xA06F0), // Sierra Forest
    Fms(0xC06F2), // Emerald Rapids
    Fms(0x806F8), // Sapphire Rapids
];

/// Returns the models that a TD on `platform` may be configured as, newest first: the platform and all older ones.
fn allowed_from(platform: Fms) -> &'static [Fms] {
    let start = KNOWN.iter().position(|known| known.same_model(platform));
    start.map_or(&[], |start| &KNOWN[start..])
}

/// Returns the number of entries that [`allowed`] has.
pub fn num_allowed(platform: Fms) -> usize {
    allowed_from(platform).len()
}

/// Returns entry `index` of the list reported as ALLOWED_FMS: the platform itself, then older models.
pub fn allowed(platform: Fms, index: usize) -> Option<Fms> {
    let known = allowed_from(platform).get(index).copied()?;
    Some(if index == 0 { platform } else { known })
}

/// Returns whether a migratable TD on `platform` may be configured as `wanted`.
pub fn accepts(platform: Fms, wanted: Fms) -> bool {
    let too_new = platform.same_model(wanted) && wanted.stepping() > platform.stepping();
    !too_new
        && (allowed_from(platform).iter())
            .any(|known| known.same_model(wanted) && wanted.stepping() <= known.stepping())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_stepping_and_an_older_model_are_fine_a_newer_one_is_not() {
        let platform = Fms(0xC06F1);
        assert!(accepts(platform, Fms(0xC06F0)));
        assert!(!accepts(platform, Fms(0xC06F2)));
        assert!(accepts(platform, Fms(0x806F8)));
        assert!(!accepts(platform, Fms(0xA06F0)));
        assert!(!accepts(platform, Fms(0x12345)));
    }

    #[test]
    fn the_list_starts_with_the_platform_itself() {
        let platform = Fms(0xC06F1);
        assert_eq!(num_allowed(platform), 2);
        assert_eq!(allowed(platform, 0), Some(platform));
        assert_eq!(allowed(platform, 1), Some(Fms(0x806F8)));
        assert_eq!(allowed(platform, 2), None);
    }
}
