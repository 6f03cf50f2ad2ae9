//! Tests that each mistake costs its own table, that all of them are reported, and that what is shown is read again.

use proptest::prelude::*;

use super::{Problem, read};
use crate::{
    Clear, Config, Cpuid, Disk, File, Host, LogLevel, MacAddress, Names, Net, Network, Paravirt,
    Pci, Populate, Port, Smt, Td, TdConsole, Vsock, VsockService, Xfam, XfamFeature, keys::Keyed,
    parse, read_td,
};

const FILES: &str = "[[file]]\nname = \"k\"\npath = \"k\"\n";

/// Returns a TD in order, as text.
fn good(name: &str) -> String {
    format!("[[td]]\nname = \"{name}\"\nkernel = \"k\"\nmemory = \"64M\"\n")
}

fn said(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_mistake_in_one_td_costs_that_td_alone() {
    for broken in [
        "[[td]]\nname = \"bad\"\nkernel = \"k\"\nmemory = \"64\"\n",
        "[[td]]\nname = \"bad\"\nkernel = \"k\"\nmemroy = \"64M\"\nmemory = \"64M\"\n",
        "[[td]]\nname = \"bad\"\nkernel = \"k\"\nmemory = 64M\n",
        "[[td]]\nname = \"bad\nkernel = \"k\"\nmemory = \"64M\"\n",
        "[[td]]\nname = \"bad\"\nkernel = \"k\"\nmemory =\n",
        "[[td]]\nname = \"bad\"\nkernel = \"k\"\nmemory = \"64M\"\nvcpus = 1\nvcpus = 2\n",
        "[[td]]\nname = \"bad\"\nkernel = \"gone\"\nmemory = \"64M\"\n",
        "[[td]]\nname = \"one\"\nkernel = \"k\"\nmemory = \"64M\"\n",
        "[[td]]\nthis is no TOML\n",
        "[[td]]\nname = \"bad\"\nkernel = \"k\"\nmemory = \"64M\"\n[[td.cpuid]]\nleaf = \"x\"\n",
    ] {
        let text = format!(
            "{FILES}{}{broken}{}{}",
            good("one"),
            good("two"),
            good("three")
        );
        let found = read(text.as_bytes());
        let names: Vec<_> = found.config.td.iter().map(|td| &*td.name).collect();
        assert_eq!(
            names,
            ["one", "two", "three"],
            "{broken}: {:?}",
            found.problems
        );
        assert_eq!(found.lost_tds, 1);
        assert_eq!(found.problems.len(), 1, "{broken}: {:?}", found.problems);
        assert!(
            (8..=13).contains(&found.problems[0].line),
            "{:?}",
            found.problems
        );
        assert!(parse(text.as_bytes()).is_err());
    }
}

#[test]
fn every_mistake_is_reported_with_its_line_key_and_what_to_write() {
    let text = "[host]\nlog_level = 3\nslice_ms = \"10\"\ncolour = 1\n\
                [[td]]\nname = \"a\"\nvcpus = \"four\"\nautostart = 1\nkernel = true\ncpuid = 7\n\
                [[file]]\nname = \"f\"\n\
                [td2]\nx = 1\n";
    let found = read(text.as_bytes());
    let all = [
        "2: log_level is 3; it must be \"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
        "3: slice_ms is \"10\"; it must be a number from 1 to 100",
        "4: colour is not a key of [host]; its keys are log_level, on_crash, nmi, smt, cpu_timeout_ms, clear, \
         reclaim_share, slice_ms, cap_period_ms, console, console_lock, watchdog",
        "6: [[td]] needs memory: a multiple of 2M that is not 0, with M, G or T, such as \"256M\"",
        "7: vcpus is \"four\"; it must be a number from 1 to 65535",
        "8: autostart is 1; it must be true or false",
        "9: kernel is true; it must be the name of a [[file]], in quotes",
        "10: cpuid is 7; it must be [[td.cpuid]], a table for each leaf",
        "12: [[file]] needs path: a path in quotes, relative to the folder of the configuration",
        "13: td2 is not known here; write [host], [[file]], [[network]] or [[td]] above its keys",
    ];
    assert_eq!(said(&found.problems), all);
    assert_eq!(found.config, Config::default());
}

#[test]
fn who_looks_for_a_file_of_variables_is_told_why_there_is_none() {
    for name in ["variables", "vars", "nvram", "flash", "pflash"] {
        let td = format!("{}{name} = \"vars.fd\"\n", good("a"));
        let found = read(format!("{FILES}{td}").as_bytes());
        let line = format!(
            "8: {name} is not a key of [[td]]: the variables of UEFI firmware can't be kept in a file, because a TD has no \
             flash: the firmware holds them in private memory, and they are gone with the TD's life; boot_order sets what \
             it boots"
        );
        assert_eq!(said(&found.problems), [&*line]);
        assert_eq!(found.lost_tds, 1);
        let told = read_td(&td, &NAMES).unwrap_err();
        assert!(told[0].what.contains("no flash"), "{told:?}");
        let told = Td::blank().with(name, "vars.fd").unwrap_err();
        assert!(told.contains("no flash"), "{told}");
    }
}

#[test]
fn one_bracket_instead_of_two_is_explained() {
    for (text, line) in [
        (
            "[td]\nname = \"a\"\n",
            "1: td must be a list of tables: write [[td]], with two brackets, above each",
        ),
        (
            "[file]\nname = \"a\"\n",
            "1: file must be a list of tables: write [[file]], with two brackets, above each",
        ),
        (
            "host = 1\n",
            "1: host must be a table: write [host] above its keys",
        ),
    ] {
        assert_eq!(said(&read(text.as_bytes()).problems), [line]);
    }
}

#[test]
fn a_value_of_smt_that_is_not_understood_is_the_safe_one() {
    let found = read(b"[host]\nsmt = \"same_td\"\nslice_ms = 5\n");
    assert_eq!(
        (found.config.host.smt, found.config.host.slice_ms),
        (Smt::SameTd, 5)
    );
    assert_eq!(found.problems.len(), 1);
}

#[test]
fn a_section_host_that_can_t_be_read_protects_all_the_same() {
    for text in [
        "[host]\nsmt = same-td\nconsole_lock = \"x\n",
        "[host]\nconsole_lock = \"\"\"\nsmt = \"same-td\"\n",
    ] {
        let host = read(text.as_bytes()).config.host;
        assert_eq!(host.smt, Smt::SameTd, "{text}");
        assert!(host.console_lock.is_some(), "{text}");
    }
}

#[test]
fn a_definition_is_one_td() {
    let td = read_td(&good("a"), &NAMES).unwrap();
    let bare = "name = \"a\"\nkernel = \"k\"\nmemory = \"64M\"\n";
    assert_eq!(read_td(bare, &NAMES), Ok(td));
    let refused = |text: &str| said(&read_td(text, &NAMES).unwrap_err());
    assert_eq!(
        refused(&bare.replace("\"k\"", "\"l\"")),
        ["2: kernel is \"l\", and there is no such file (\"file list\" lists them)"]
    );
    assert_eq!(
        refused("name = \"a\"\nmemory = \"3M\"\nvcpus = 0\n"),
        [
            "1: a needs an image, firmware, or a kernel",
            "2: memory is \"3M\"; it must be a multiple of 2M that is not 0, with M, G or T, such as \"256M\"",
            "3: vcpus is 0; it must be a number from 1 to 65535",
        ]
    );
    assert_eq!(
        refused(&(good("a") + &good("b"))),
        ["1: there are 2 [[td]]; a definition is one"]
    );
    assert_eq!(
        refused(&format!("{}[host]\nslice_ms = 1\n", good("a"))),
        ["5: host does not belong here: a definition is one [[td]] and nothing else"]
    );
    assert_eq!(refused(&good("a").replace("64M\"", "64M")).len(), 1);
    assert!(!refused("").is_empty());
    let with_card = |network: &str| format!("{bare}net = [{{ network = \"{network}\" }}]\n");
    assert_eq!(
        refused(&with_card("wan")),
        ["4: net is \"wan\", and no [[network]] has that name"]
    );
    let td = read_td(&with_card("lan"), &NAMES).unwrap();
    assert_eq!(td.wrong_names("net", &NAMES), Vec::<String>::new());
    let twice = "[{ network = \"lan\", mac = \"02:00:00:00:00:01\" }, { network = \"lan\", mac = \"02:00:00:00:00:01\" }]";
    let wrong = td.with("net", twice).unwrap().wrong_names("net", &NAMES);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    let wrong = td.with("net", "[{ network = \"wan\" }]").unwrap();
    assert_eq!(
        wrong.wrong_names("net", &NAMES),
        ["net is \"wan\", and no [[network]] has that name"]
    );
    assert_eq!(wrong.wrong_names("disk", &NAMES), Vec::<String>::new());
}

/// There is a file and a network.
const NAMES: Names<'_> = Names {
    is_file: &|name| name == "k",
    is_network: &|name| name == "lan",
};

#[test]
fn one_key_is_changed_and_set_back() {
    let td = read_td(&good("a"), &NAMES).unwrap();
    let set = |key, value| td.with(key, value);
    assert_eq!(set("memory", "128M").unwrap().memory, 128 << 20);
    assert_eq!(set("memory", "\"1G\"").unwrap().memory, 1 << 30);
    assert_eq!(set("vcpus", "4").unwrap().vcpus, 4);
    assert_eq!(
        set("cmdline", "console=ttyS0 quiet").unwrap().cmdline,
        "console=ttyS0 quiet"
    );
    assert_eq!(set("cmdline", "1").unwrap().cmdline, "1");
    assert_eq!(set("initrd", "default").unwrap().initrd, None);
    assert_eq!(
        set("initrd", "\"default\"").unwrap().initrd.as_deref(),
        Some("default")
    );
    assert_eq!(
        set("cpuid", "[{ leaf = 7, ebx = 1 }]").unwrap().cpuid[0].leaf,
        7
    );
    let capped = set("cap", "50").unwrap();
    assert_eq!(capped.cap, Some(50));
    assert_eq!(capped.with("cap", "default"), Ok(td.clone()));
    assert_eq!(
        set("vcpus", "many").unwrap_err(),
        "vcpus is many; it must be a number from 1 to 65535"
    );
    assert_eq!(
        set("memory", "default").unwrap_err(),
        "memory has no default; it must be a multiple of 2M that is not 0, with M, G or T, such as \"256M\""
    );
    assert!(
        set("memroy", "1")
            .unwrap_err()
            .starts_with("memroy is not a key of [[td]]; its keys are name,")
    );
    assert!(set("cpuid", "[{ leaf = 7, ebx = -1 }]").is_err());
    let drive = set("pci", "[{ device = \"1:0.0\" }]").unwrap();
    assert_eq!(
        drive.pci,
        [Pci {
            device: "0000:01:00.0".parse().unwrap()
        }]
    );
    assert_eq!(drive.with("pci", "default"), Ok(td.clone()));
    assert!(set("pci", "[{ device = \"1:0\" }]").is_err());
}

#[test]
fn more_vcpus_than_cpus_are_warned_of() {
    let td = read_td(&good("a"), &NAMES).unwrap();
    let many = td.with("vcpus", "1000").unwrap();
    assert_eq!(td.warning(1), None);
    assert_eq!(
        many.warning(4).unwrap(),
        "TD a: vcpus is 1000, and the machine has 4 CPUs: more vCPUs than CPUs only wait for each other"
    );
}

/// Returns functions at addresses, and one by vendor and device.
fn any_pci() -> impl Strategy<Value = Vec<Pci>> {
    let pci = |text: String| Pci {
        device: text.parse().unwrap(),
    };
    let places = proptest::collection::btree_set(any::<u16>(), 0..3);
    (any::<[u16; 2]>(), places).prop_map(move |([segment, vendor], places)| {
        let by_address = places.into_iter().map(|id| {
            let at = io::Address::of_requester(segment, id);
            pci(format!("{at}"))
        });
        let by_identity = vendor
            .is_multiple_of(2)
            .then(|| pci(format!("{vendor:04x}:0a54")));
        by_address.chain(by_identity).collect()
    })
}

fn any_td() -> impl Strategy<Value = Td> {
    let flags = any::<[bool; 9]>();
    let size = || (1u64..1 << 20).prop_map(|frames| frames * crate::MEMORY_STEP);
    let text = "[ -~]{0,20}";
    let cpuid = (
        any::<u32>(),
        any::<Option<u32>>(),
        any::<[Option<u32>; 4]>(),
    )
        .prop_map(|(leaf, subleaf, [eax, ebx, ecx, edx])| Cpuid {
            leaf,
            subleaf,
            eax,
            ebx,
            ecx,
            edx,
        });
    (
        (text, proptest::option::of(size()), size(), 1u16..),
        (flags, any::<Option<bool>>(), any::<bool>()),
        (
            proptest::option::of(0..=i64::MAX as u64),
            proptest::option::of(4u16..=400),
        ),
        (
            1u32..=10_000,
            proptest::option::of(1u32..=6_553_500),
            any::<[[u8; 16]; 3]>(),
        ),
        (proptest::collection::vec(cpuid, 0..3), any_pci()),
    )
        .prop_map(|(sizes, flags, numbers, shares, (cpuid, pci))| {
            let wide = |bytes: [u8; 16]| {
                let mut wide = [0; 48];
                wide[7..23].copy_from_slice(&bytes);
                wide
            };
            let [
                autostart,
                debug,
                sept_ve_disable,
                migratable,
                pks,
                perfmon,
                icssd,
                lass,
                control,
            ] = flags.0;
            let td = Td {
                kernel: Some("k".into()),
                initrd: flags.2.then(|| "k".into()),
                cmdline: sizes.0,
                max_4k: sizes.1,
                memory: sizes.2,
                vcpus: sizes.3,
                autostart,
                debug,
                sept_ve_disable,
                migratable,
                pks,
                perfmon,
                icssd,
                lass,
                control,
                no_rbp_mod: flags.1,
                xfam: numbers.0.map(|bits| match bits % 3 {
                    0 => Xfam::Features(
                        XfamFeature::ALL
                            .iter()
                            .copied()
                            .skip(bits as usize % 10)
                            .collect(),
                    ),
                    _ => Xfam::Bits(bits),
                }),
                maxpa: flags.1.map(|_| 46),
                ve_reduction: flags.1,
                paravirt: flags.1.map(|_| Paravirt::ALL.to_vec()),
                tsc_mhz: numbers.1.map(|n| n * 25),
                shares: shares.0,
                cap: shares.1,
                mrconfigid: wide(shares.2[0]),
                mrowner: wide(shares.2[1]),
                mrownerconfig: wide(shares.2[2]),
                populate: if flags.2 {
                    Populate::Start
                } else {
                    Populate::Demand
                },
                console: if debug {
                    TdConsole::Virtio
                } else {
                    TdConsole::Serial
                },
                disk: flags
                    .1
                    .map(|has_overlay| Disk {
                        file: "k".into(),
                        overlay: has_overlay.then_some(4 << 20),
                        serial: has_overlay.then(|| "a \"b".into()),
                    })
                    .into_iter()
                    .collect(),
                net: flags
                    .2
                    .then(|| Net {
                        network: "lan".into(),
                        mac: autostart.then_some(MacAddress([2, 0, 0, 0, 0, shares.0 as u8])),
                        port: [
                            None,
                            Some(Port::Open),
                            Some(Port::Isolated),
                            Some(Port::Trunk),
                        ][shares.0 as usize % 4],
                        rate: debug.then_some(u64::from(shares.0) << 20),
                    })
                    .into_iter()
                    .collect(),
                vsock: numbers.1.map(|cid| Vsock {
                    cid: u64::from(cid) + 3,
                    peers: (3..3 + u64::from(cid) % 4).collect(),
                    services: flags.1.map(|_| VsockService::Quote).into_iter().collect(),
                }),
                cpuid,
                pci,
                ..Td::blank()
            };
            if !lass {
                return td;
            }
            Td {
                kernel: None,
                initrd: None,
                cmdline: String::new(),
                firmware: Some("k".into()),
                boot_order: Vec::from([String::from("/a\\\"b"), "/pci@i0cf8/*@1".into()]),
                uuid: uuid::Uuid::from_bytes(shares.2[0]),
                ..td
            }
        })
}

fn any_host() -> impl Strategy<Value = Host> {
    (
        any::<[bool; 3]>(),
        100u32..=60_000,
        0u32..=90,
        proptest::option::of(10u32..=600),
    )
        .prop_map(|(flags, cpu_timeout_ms, reclaim_share, watchdog)| Host {
            log_level: if flags[0] {
                LogLevel::Trace
            } else {
                LogLevel::Info
            },
            smt: if flags[1] { Smt::SameTd } else { Smt::Share },
            clear: if flags[2] {
                Clear::Reuse
            } else {
                Clear::Erratum
            },
            console: flags[0].then(|| crate::ConsolePort {
                port: if flags[1] { 0x2F8 } else { 0x3E0 },
                irq: flags[1].then_some(3),
                baud: if flags[2] { 9600 } else { 115_200 },
            }),
            cpu_timeout_ms,
            reclaim_share,
            watchdog,
            ..Host::default()
        })
}

proptest! {
    #[test]
    fn what_is_shown_is_read_again(
        host in any_host(),
        path in "[^\u{fffd}]{0,12}",
        tds in proptest::collection::vec(any_td(), 0..4),
    ) {
        let network = Network {
            name: "lan".into(),
            isolated: host.cpu_timeout_ms % 2 == 0,
            rate: (host.reclaim_share != 0).then(|| u64::from(host.reclaim_share) << 20),
        };
        let mut config = Config {
            host,
            file: vec![File { name: "k".into(), path }],
            network: vec![network],
            td: tds,
        };
        for (number, td) in config.td.iter_mut().enumerate() {
            td.name = format!("td{number}");
            if let Some(mac) = td.net.first_mut().and_then(|net| net.mac.as_mut()) {
                mac.0[1] = number as u8;
            }
            if let Some(vsock) = &mut td.vsock {
                vsock.cid += number as u64 * 100_000;
            }
        }
        let text = config.to_toml();
        prop_assert_eq!(parse(text.as_bytes()), Ok(config), "{}", text);
    }

    #[test]
    fn a_broken_line_costs_at_most_its_own_table(
        at in 0usize..3,
        line in 1usize..4,
        broken in "[a-z =\"0-9]{0,12}",
    ) {
        let mut tds = ["one", "two", "three"].map(good);
        let mut lines: Vec<_> = tds[at].lines().map(String::from).collect();
        lines[line] = broken;
        tds[at] = lines.join("\n") + "\n";
        let text = format!("{FILES}{}", tds.concat());
        let found = read(text.as_bytes());
        prop_assert!(found.config.td.len() >= 2, "{}\n{:?}", text, found);
        prop_assert_eq!(found.config.td.len() + found.lost_tds, 3);
        prop_assert_eq!(found.problems.is_empty(), found.lost_tds == 0, "{}\n{:?}", text, found);
    }
}
