//! Tests of the operator's choices for a TD that depend on the module's release.

use host::platform::Platform;
use host::td::end::Way;
use seam::abi::metadata::{FieldId, td as fields};
use stub_module::Release;

use super::kit::{ONE, Server, td};
use super::rig::Setup;

/// Starts a TD with these keys on a module of this release, and returns what `look` finds, or the refusal.
fn start<T>(
    release: Release,
    keys: &str,
    look: impl FnOnce(&Server, &host::td::Td) -> T,
) -> Result<T, String> {
    let server = Server::of(&Setup {
        release,
        ..Setup::default()
    });
    let tds = server.tds(&format!("{ONE}{keys}\n"));
    let found = tds.start(1).map(|_| look(&server, &td(&tds, 1)));
    if found.is_ok() {
        tds.destroy(1, Way::Terminate).unwrap();
    }
    server.assert_spotless();
    found.map_err(|error| error.to_string())
}

/// Returns a field of a TD with these keys.
fn field(release: Release, keys: &str, field: FieldId) -> Result<u64, String> {
    start(release, keys, |server, td| {
        let tdh = server.rig.tdh();
        let read = |tdr: &_| Ok(tdh.mng_rd(tdr, field)?);
        td.map().unwrap().keyed(read).unwrap()
    })
}

#[test]
fn a_td_has_the_features_that_are_named() {
    for release in Release::ALL {
        let xfam = |keys| field(release, keys, fields::XFAM.id);
        assert_eq!(xfam("xfam = [\"x87\", \"sse\"]"), Ok(3), "{release}");
        assert_eq!(xfam("xfam = [\"avx\", \"sse\", \"x87\"]"), Ok(7));
        // The default is the same on every release.
        assert_eq!(xfam(""), Ok(0x6_02E7));
        let refused = xfam("xfam = [\"x87\", \"sse\", \"apx\"]").unwrap_err();
        assert_eq!(
            refused,
            "xfam: this TDX module does not support APX (0x80000)"
        );
    }
}

#[test]
fn the_address_width_is_chosen_where_the_module_can_show_another() {
    for release in [Release::V1_5_16, Release::V1_5_25] {
        let width = |bits| field(release, &format!("maxpa = {bits}"), fields::VIRT_MAXPA.id);
        for bits in 45..=48 {
            assert_eq!(width(bits), Ok(bits), "{release}");
        }
        for bits in [44, 49] {
            let refused = width(bits).unwrap_err();
            assert_eq!(
                refused,
                format!("maxpa: {bits} is configured, and a TD on this machine may have 45 to 48")
            );
        }
    }
    let refused = field(Release::V1_5_01, "maxpa = 46", fields::XFAM.id).unwrap_err();
    assert_eq!(refused, "maxpa: this TDX module does not support it");
}

#[test]
fn a_guest_reduces_ve_only_where_the_operator_lets_it() {
    for release in [Release::V1_5_16, Release::V1_5_25] {
        let valid = |keys| field(release, keys, fields::VE_REDUCTION_VALID.id);
        for keys in ["", "ve_reduction = true"] {
            assert_eq!(valid(keys), Ok(1), "{release}: {keys}");
        }
        assert_eq!(valid("ve_reduction = false"), Ok(0), "{release}");
    }
    let old = |keys| start(Release::V1_5_01, keys, |_, _| ());
    assert_eq!(old("ve_reduction = false"), Ok(()), "no guest can");
    let refused = old("ve_reduction = true").unwrap_err();
    assert_eq!(refused, "ve_reduction: this TDX module does not support it");
}

#[test]
fn a_td_has_the_paravirtual_features_that_are_listed() {
    // Leaf 1, which has no sub-leaf: the second element is ECX and EDX.
    let id = fields::CPUID_VALUES.id;
    let id = id.with_code(id.code() | 1 << 9 | 0x1FE | 1);
    for release in [Release::V1_5_16, Release::V1_5_25] {
        // MCE, MTRR and MCA in EDX.
        let has = |keys| field(release, keys, id).map(|value| value >> 32 & 0x5080);
        assert_eq!(has(""), Ok(0x5080), "{release}");
        assert_eq!(has("paravirt = [\"mca\", \"mtrr\"]"), Ok(0x5080));
        assert_eq!(has("paravirt = [\"mtrr\"]"), Ok(0x1000));
        assert_eq!(has("paravirt = []"), Ok(0));
    }
    for keys in ["paravirt = []", "paravirt = [\"mtrr\"]"] {
        let refused = start(Release::V1_5_01, keys, |_, _| ()).unwrap_err();
        assert_eq!(refused, "paravirt: this TDX module does not support it");
    }
}
