use super::*;
use crate::parse;

fn parsed(networks: &str, tds: &[&str]) -> Result<Config, String> {
    let mut text = format!("[[file]]\nname = \"k\"\npath = \"k\"\n{networks}");
    for (name, nets) in ["a", "b", "c"].iter().zip(tds) {
        text += &format!("[[td]]\nname = \"{name}\"\nkernel = \"k\"\nmemory = \"64M\"\n{nets}");
    }
    parse(text.as_bytes())
}

const LAN: &str = "[[network]]\nname = \"lan\"\n";
const CARD: &str = "[[td.net]]\nnetwork = \"lan\"\n";

#[test]
fn a_card_is_in_a_network_with_an_address_a_port_and_a_rate() {
    let networks = "[[network]]\nname = \"lan\"\nisolated = true\nrate = \"10M\"\n";
    let card = "[[td.net]]\nnetwork = \"lan\"\nmac = \"52:54:00:AB:cd:01\"\nport = \"trunk\"\nrate = \"1G\"\n";
    let config = parsed(networks, &[card, CARD]).unwrap();
    let lan = config.network("lan").unwrap();
    assert_eq!((lan.isolated, lan.rate), (true, Some(10 << 20)));
    let [a, b] = [0, 1].map(|td| &config.td[td].net[0]);
    assert_eq!(a.mac, Some(MacAddress([0x52, 0x54, 0, 0xAB, 0xCD, 1])));
    assert_eq!((a.port_in(lan), a.rate), (Port::Trunk, Some(1 << 30)));
    assert_eq!((b.port_in(lan), b.rate), (Port::Isolated, None));
    let shown = keys::show_list(&config.td[0].net).unwrap();
    assert_eq!(
        shown,
        "[{ network = \"lan\", mac = \"52:54:00:ab:cd:01\", port = \"trunk\", rate = \"1G\" }]"
    );
    assert_eq!(parse(config.to_toml().as_bytes()), Ok(config));
}

#[test]
fn an_address_that_is_not_given_is_the_same_each_time_and_differs_from_all_others() {
    let two = CARD.repeat(2);
    let config = parsed(LAN, &[&two, &two, CARD]).unwrap();
    let all: Vec<_> = config
        .td
        .iter()
        .flat_map(|td| td.addresses().map(|(_, mac)| mac))
        .collect();
    let again = parsed(LAN, &[&two, &two, CARD]).unwrap();
    assert_eq!(again.td[1].mac(1), Some(all[3]));
    for (index, mac) in all.iter().enumerate() {
        assert_eq!(mac.0[0] & 3, 2, "{mac} is a card's, administered locally");
        assert!(!all[..index].contains(mac), "{mac}");
    }
}

#[test]
fn a_mistake_is_named_with_its_line_and_what_to_write() {
    let card = |key: &str| format!("{CARD}{key}\n");
    let many = CARD.repeat(5);
    for (networks, tds, said) in [
        (
            LAN,
            [&*card("mac = \"01:00:00:00:00:01\""), ""],
            "12: mac is \"01:00:00:00:00:01\"; it must be the address of one card, such as \"02:00:00:00:00:01\", with \
             an even first byte",
        ),
        (
            LAN,
            [&card("port = \"shut\""), ""],
            "12: port is \"shut\"; it must be \"open\", \"isolated\" or \"trunk\"",
        ),
        (
            LAN,
            [&card("rate = \"0M\""), ""],
            "12: rate is \"0M\"; it must be a number of bytes per second that is not 0, with M, G or T, such as \
             \"100M\"",
        ),
        (
            LAN,
            [&card("speed = 3"), ""],
            "12: speed is not a key of [[td.net]]; its keys are network, mac, port, rate",
        ),
        (
            LAN,
            ["[[td.net]]\nport = \"open\"\n", ""],
            "11: [[td.net]] needs network: the name of a [[network]], in quotes",
        ),
        (
            LAN,
            [&many, ""],
            "10: net is [[td.net]]; it must be [[td.net]], up to 4 tables",
        ),
        (
            "",
            [CARD, ""],
            "8: net is \"lan\", and no [[network]] has that name",
        ),
        (
            LAN,
            [&card("mac = \"02:00:00:00:00:01\"").repeat(2), ""],
            "10: net has the address 02:00:00:00:00:01 twice in network \"lan\": give each card a mac of its own",
        ),
        (
            LAN,
            [
                &card("mac = \"02:00:00:00:00:01\""),
                &card("mac = \"02:00:00:00:00:01\""),
            ],
            "17: net has the address 02:00:00:00:00:01, which TD \"a\" has in network \"lan\": give the card another mac",
        ),
        (
            "[[network]]\nname = \"a b\"\n",
            ["", ""],
            "5: name is \"a b\"; it must be a letter, then up to 31 letters, digits, '-', '_' or '.', in quotes",
        ),
        (
            "[[network]]\nname = \"lan\"\n[[network]]\nname = \"lan\"\n",
            ["", ""],
            "7: name is \"lan\", which another [[network]] has",
        ),
        (
            "[network]\nname = \"lan\"\n",
            ["", ""],
            "4: network must be a list of tables: write [[network]], with two brackets, above each",
        ),
    ] {
        let error = parsed(networks, &tds).unwrap_err();
        assert_eq!(error, format!("seamark.toml:{said}"), "{networks}{tds:?}");
    }
    // A network with a mistake is missed, and its TDs are not blamed.
    let error = parsed("[[network]]\nname = \"lan\"\nrate = 3\n", &[CARD]).unwrap_err();
    assert_eq!(error.matches("seamark.toml:").count(), 1, "{error}");
}

#[test]
fn what_is_no_address_of_a_card_is_none() {
    for wrong in [
        "",
        "02",
        "02:0:0:0:0:1",
        "02:00:00:00:00:01:02",
        "0200:00:00:00:01",
        "00:00:00:00:00:00",
        "03:00:00:00:00:01",
        "+2:00:00:00:00:01",
        "02-00-00-00-00-01",
    ] {
        assert_eq!(MacAddress::parse(wrong), None, "{wrong}");
    }
}
