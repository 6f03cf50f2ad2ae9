//! Tests of TD_PARAMS and of refusals.

use alloc::{format, string::ToString, vec, vec::Vec};

use super::*;
use crate::td::capabilities::Fixed;

struct Machine;

impl Native for Machine {
    fn cpuid(&self, leaf: u32, _: u32) -> [u32; 4] {
        match leaf {
            CPUID_WIDTHS => [0x3934, 0, 0, 0],
            _ => [leaf | 0xF00, u32::MAX, u32::MAX, 0x55],
        }
    }

    fn tsc_mhz(&self) -> u32 {
        2111
    }
}

fn module() -> Capabilities {
    let entry = |leaf, sub_leaf, mask| CpuidConfig {
        leaf,
        sub_leaf,
        mask,
    };
    Capabilities {
        attributes: Fixed {
            zero: Attributes::DEBUG
                | Attributes::SEPT_VE_DISABLE
                | Attributes::MIGRATABLE
                | Attributes::PERFMON,
            one: Attributes::empty(),
        },
        xfam: Fixed {
            zero: Xfam::from_bits_retain(0x6_DBE7),
            one: Xfam::X87 | Xfam::SSE,
        },
        config_flags: Fixed {
            zero: ConfigFlags::from_bits_retain(0xF),
            one: ConfigFlags::empty(),
        },
        cpuid: vec![
            entry(1, None, [0x0FFF_3FFF, 0x00FF_0000, 0x8, 0]),
            entry(7, Some(0), [0, 0x20, 0, u32::MAX]),
            entry(CPUID_WIDTHS, None, [0xFF, 0, 0, 0]),
        ],
        max_vcpus: 8,
        min_virt_maxpa: Some(45),
        tdcx_pages: 6,
        tdvps_pages: 6,
        topology_enum: false,
        ve_reduction: true,
    }
}

fn td(more: &str) -> config::Td {
    let text = format!(
        "[[file]]\nname = \"f\"\npath = \"f\"\n[[td]]\nname = \"a\"\nimage = \"f\"\nmemory = \"2M\"\n{more}"
    );
    config::parse(text.as_bytes()).unwrap().td.remove(0)
}

fn of(more: &str) -> Result<TdParams, Unsupported> {
    params(&td(more), &module(), &Machine)
}

#[test]
fn open_settings_take_the_machines_values() {
    let params = of("vcpus = 4\n").unwrap();
    assert_eq!(params.attributes, Attributes::SEPT_VE_DISABLE);
    // x87, SSE, AVX, AVX-512, PKRU and AMX: neither PT nor CET, UINTR and LBR, which this module supports too.
    assert_eq!((params.xfam.bits(), params.max_vcpus), (0x6_02E7, 4));
    assert_eq!(params.eptp_controls, 0x1E);
    assert!(params.config_flags.is_empty(), "an image may pass RBP");
    assert_eq!(params.tsc_frequency, 84);
    assert_eq!(params.cpuid_config[0], [0, 4 << 16, 8, 0]);
    assert_eq!(params.cpuid_config[1], [0, 0x20, 0, 0x55]);
    assert_eq!(params.cpuid_config[2], [52, 0, 0, 0]);
    assert_eq!(params.cpuid_config[3], [0; 4]);
}

#[test]
fn a_refused_leaf_is_told_with_the_bits_that_the_cpu_lacks() {
    let wanted = "[[td.cpuid]]\nleaf = 7\nsubleaf = 0\nebx = 0\nedx = 0x1F\n";
    let params = of(wanted).unwrap();
    let refused = |place| RefusedCpuid::find(place, &params, &module(), &Machine);
    assert_eq!(
        refused(7).unwrap().to_string(),
        "cpuid: leaf 0x7, subleaf 0x0, where this CPU does not have edx 0xa"
    );
    let model = refused(0xFFFF_FFFF_0000_0001).unwrap().to_string();
    let start = "cpuid: leaf 0x1, with the value eax 0x0, ebx 0x10000, ";
    assert!(model.starts_with(start), "{model}");
    assert_eq!(refused(8), None);
}

#[test]
fn a_td_gets_no_half_of_tsx() {
    let ebx = |mask| {
        let mut module = module();
        module.cpuid[1].mask[1] = mask;
        params(&td(""), &module, &Machine).map(|params| params.cpuid_config[1][1])
    };
    assert_eq!(ebx(TSX), Ok(TSX));
    // A module on a CPU without HLE lets the host configure RTM only.
    assert_eq!(ebx(1 << 11), Ok(0));
}

#[test]
fn the_parameters_follow_the_configuration() {
    let params = of(
        "debug = true\nsept_ve_disable = false\nno_rbp_mod = true\nxfam = 0xE7\ntsc_mhz = 1000\n\
         [[td.cpuid]]\nleaf = 7\nsubleaf = 0\nebx = 0\nedx = 7\n",
    )
    .unwrap();
    assert_eq!(params.attributes, Attributes::DEBUG);
    assert_eq!(params.config_flags, ConfigFlags::NO_RBP_MOD);
    assert_eq!((params.xfam.bits(), params.tsc_frequency), (0xE7, 40));
    assert_eq!(params.cpuid_config[1], [0, 0, 0, 7]);
}

#[test]
fn an_unsupported_setting_is_refused_with_its_key() {
    let cases = [
        ("pks = true\n", "pks: "),
        ("icssd = true\n", "icssd: "),
        ("lass = true\n", "lass: "),
        ("migratable = true\ndebug = true\n", "migratable: "),
        ("migratable = true\nperfmon = true\n", "migratable: "),
        (
            "xfam = 0xB\n",
            "xfam: this TDX module does not support BNDREGS (0x8)",
        ),
        ("xfam = 0x1\n", "xfam: every TD must have SSE (0x2)"),
        ("xfam = [\"sse\"]\n", "xfam: every TD must have X87 (0x1)"),
        (
            "xfam = [\"x87\", \"sse\", \"apx\"]\n",
            "xfam: this TDX module does not support APX (0x80000)",
        ),
        (
            "xfam = [\"x87\", \"sse\", \"avx512\"]\n",
            "xfam: AVX, OPMASK, ZMM_HI256, HI16_ZMM (0xe4) must be",
        ),
        (
            "maxpa = 44\n",
            "maxpa: 44 is configured, and a TD on this machine may have 45 to 48",
        ),
        (
            "paravirt = [\"mtrr\"]\n",
            "paravirt: this CPU does not have mtrr",
        ),
        (
            "xfam = 0x27\n",
            "xfam: OPMASK, ZMM_HI256, HI16_ZMM (0xe0) must be",
        ),
        (
            "xfam = 0xE3\n",
            "xfam: AVX, OPMASK, ZMM_HI256, HI16_ZMM (0xe4) must be",
        ),
        (
            "vcpus = 9\n",
            "vcpus: 9 are configured, and this TDX module supports at most 8",
        ),
        ("[[td.cpuid]]\nleaf = 2\n", "cpuid: "),
        ("[[td.cpuid]]\nleaf = 7\n", "cpuid: "),
        (
            "[[td.cpuid]]\nleaf = 7\nsubleaf = 0\nebx = 0x30\n",
            "cpuid: this TDX module does not let the host configure the bits 0x10 of ebx in leaf 0x7, subleaf \
             0x0",
        ),
    ];
    for (text, start) in cases {
        let refused = of(text).unwrap_err().to_string();
        assert!(refused.starts_with(start), "{refused}");
    }
    let mut strange = module();
    strange.attributes.one = Attributes::KL | Attributes::from_bits_retain(1 << 8);
    let refused = params(&td(""), &strange, &Machine).unwrap_err().to_string();
    assert!(
        refused.starts_with("attributes: this TDX module requires bit 8, KL (0x80000100)"),
        "{refused}"
    );
}

#[test]
fn features_are_named_in_any_order() {
    let bits = |list: &str| of(&format!("xfam = [{list}]\n")).map(|params| params.xfam.bits());
    assert_eq!(bits(r#""sse", "x87""#), Ok(3));
    assert_eq!(
        bits(r#""x87", "sse", "avx", "avx512", "pkru", "amx""#),
        Ok(0x6_02E7)
    );
    assert_eq!(
        bits(r#""x87", "sse", "pt", "cet", "uintr", "lbr", "x87""#),
        Ok(0xD903)
    );
}

#[test]
fn a_guest_is_told_the_width_that_the_operator_chooses() {
    let params = of("maxpa = 46\n").unwrap();
    assert_eq!(params.config_flags, ConfigFlags::MAXPA_VIRT);
    assert_eq!(params.cpuid_config[2], [46, 0, 0, 0]);
}

#[test]
fn a_guest_keeps_the_features_that_are_listed_alone() {
    let ecx = |keys: &str| {
        let mut module = module();
        module.cpuid[0].mask[2] = 0x0104_0189;
        params(&td(keys), &module, &Machine).map(|params| params.cpuid_config[0][2])
    };
    // SSE3 and MONITOR are not among them.
    assert_eq!(ecx(""), Ok(0x0104_0189));
    assert_eq!(ecx("paravirt = []\n"), Ok(9));
    assert_eq!(ecx("paravirt = [\"est\", \"dca\"]\n"), Ok(0x0004_0089));
    assert_eq!(
        ecx("paravirt = [\"tsc_deadline\", \"tm2\"]\n"),
        Ok(0x0100_0109)
    );
}

#[test]
fn rbp_is_passed_as_the_operator_says_if_the_module_can_do_that() {
    let flags = |more: &str, zero, one| {
        let module = Capabilities {
            config_flags: Fixed {
                zero: ConfigFlags::from_bits_retain(zero),
                one: ConfigFlags::from_bits_retain(one),
            },
            ..module()
        };
        params(&td(more), &module, &Machine).map(|params| params.config_flags.bits())
    };
    const BIT: u64 = ConfigFlags::NO_RBP_MOD.bits();
    assert_eq!(flags("no_rbp_mod = true\n", 7, 0), Ok(BIT));
    assert_eq!(flags("no_rbp_mod = false\n", 7, 0), Ok(0));
    // A setting left open follows the module.
    assert_eq!(flags("", 7, BIT), Ok(BIT));
    assert_eq!(flags("kernel = \"f\"\n", 3, 0), Ok(0));
    let refused = flags("no_rbp_mod = true\n", 3, 0).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "no_rbp_mod: this TDX module has it in no TD"
    );
    let refused = flags("no_rbp_mod = false\n", 7, BIT);
    assert_eq!(refused, Err(Unsupported::NoRbpMod(true)));
}

#[test]
fn every_frequency_that_a_host_may_have_gives_one_that_a_td_can_have() {
    let units: Vec<_> = [1, 2000, 2111, 2113, 20_000].map(tsc_units).into();
    assert_eq!(units, [4, 80, 84, 85, 400]);
}
