//! PCI functions that TDs' definitions name: a machine's in plain data, and the commands that attach and detach them.

use config::{MOST_FUNCTIONS, Pci};
use console::host::absent;
use console::host::pci::TdPci;
use hypervisor::machine::devices::PciView;
use io::{Address, ClaimError, Selector};

use super::kit::{Server, TWO};
use super::operator::Operator;

/// Functions 1 to 4. The first two have vendor and device 8086:0001, the third is the only 8086:0003, and no TD can have
/// the fourth. TD *two* has left its label on the third.
pub struct Four;

/// The address of function `number`.
pub const fn at(number: u8) -> Address {
    Address {
        segment: 0,
        bus: number,
        device: 0,
        function: 0,
    }
}

impl Four {
    fn resolve(device: Selector) -> Result<Address, ClaimError> {
        let named: Vec<_> = match device {
            Selector::Address(address) => vec![address],
            Selector::Identity { device: 1, .. } => vec![at(1), at(2)],
            Selector::Identity { device, .. } => vec![at(device as u8)],
        };
        match named[..] {
            [address] if (1..=4).map(at).any(|known| known == address) => Ok(address),
            [_] => Err(ClaimError::Unknown(device)),
            _ => Err(ClaimError::Ambiguous(device, named)),
        }
    }
}

impl PciView for Four {
    fn check(&self, td: &str, functions: &[Selector]) -> Result<(), ClaimError> {
        let mut chosen = Vec::new();
        for function in functions {
            let address = Self::resolve(*function)?;
            if chosen.contains(&address) {
                return Err(ClaimError::Twice(address));
            }
            if address == at(4) {
                let why = vec!["it offers no reset that the host can use".into()];
                return Err(ClaimError::Refused(address, why));
            }
            chosen.push(address);
        }
        match chosen.contains(&at(3)) && td != "two" {
            true => Err(ClaimError::Former(at(3), "two".into())),
            false => Ok(()),
        }
    }

    fn look(&self, pci: Pci) -> TdPci {
        let address = Self::resolve(pci.device).ok();
        TdPci {
            address: address.map(|address| address.to_string()),
            kind: address.map(|_| "NVMe drive"),
            owner: address.map(|address| match address == at(3) {
                true => "formerly two".into(),
                false => "none".into(),
            }),
            ..absent::unknown(&pci)
        }
    }
}

#[test]
fn a_td_that_is_stopped_gets_and_loses_functions() {
    let server = Server::new("");
    let tds = server.tds(TWO);
    let mut operator = Operator::new(&tds).with_pci(&Four);
    let attached = operator.succeed("td attach one 1:0.0");
    assert_eq!(attached["function"]["device"], "0000:01:00.0", "{attached}");
    assert_eq!(attached["warnings"], serde_json::json!([]), "{attached}");
    let attached = operator.succeed("td attach one 8086:0003");
    assert_eq!(
        attached["warnings"][0],
        "TD one could not start now: PCI function 0000:03:00.0 may hold data of TD two, which had it before; \
         \"pci release 0000:03:00.0\" frees it for others",
        "{attached}"
    );
    let shown = operator.succeed("td show one");
    let functions = shown["pci"].as_array().unwrap().iter();
    let functions: Vec<_> = functions
        .map(|own| ["device", "address", "kind", "owner"].map(|key| own[key].as_str().unwrap()))
        .collect();
    assert_eq!(
        functions,
        [
            ["0000:01:00.0", "0000:01:00.0", "NVMe drive", "none"],
            ["8086:0003", "0000:03:00.0", "NVMe drive", "formerly two"],
        ],
        "{shown}"
    );
    let text = operator.read("td show one");
    assert!(
        text.contains("0000:03:00.0 (8086:0003), NVMe drive, owner formerly two\n"),
        "{text}"
    );
    let toml = operator.succeed("config show")["toml"].clone();
    assert!(
        toml.as_str()
            .unwrap()
            .contains("pci = [{ device = \"0000:01:00.0\" }, { device = \"8086:0003\" }]\n"),
        "{toml}"
    );
    // By its address, too, whatever the definition says.
    let detached = operator.succeed("td detach one 0000:03:00.0");
    assert_eq!(detached["function"]["device"], "8086:0003", "{detached}");
    operator.succeed("td detach one 0000:01:00.0");
    assert_eq!(
        operator.succeed("td show one")["pci"],
        serde_json::json!([])
    );
}

#[test]
fn what_can_not_be_attached_is_refused_with_the_reason() {
    let server = Server::new("");
    let tds = server.tds(TWO);
    let mut operator = Operator::new(&tds).with_pci(&Four);
    operator.succeed("td attach two 0000:03:00.0");
    for (line, code, said) in [
        (
            "td attach two 0000:09:00.0",
            "invalid-argument",
            "there is no PCI function 0000:09:00.0; \"pci list\" lists them",
        ),
        (
            "td attach two 8086:0001",
            "invalid-argument",
            "8086:0001 is not one PCI function but 2: 0000:01:00.0 and 0000:02:00.0; name one by its address",
        ),
        (
            "td attach two nvme0",
            "invalid-argument",
            "nvme0 names no PCI function: write an address, such as 0000:01:00.0, or vendor and device, such as \
             8086:0a54",
        ),
        (
            "td attach two 0000:04:00.0",
            "unsupported",
            "PCI function 0000:04:00.0 can't be given to a TD: it offers no reset that the host can use",
        ),
        (
            "td attach two 0000:03:00.0",
            "exists",
            "TD two: PCI function 0000:03:00.0 is named twice",
        ),
        (
            "td attach two 8086:0003",
            "exists",
            "TD two: PCI function 0000:03:00.0 is named twice",
        ),
        (
            "td detach two 0000:01:00.0",
            "invalid-argument",
            "TD two: it has no PCI function 0000:01:00.0; \"td show\" lists its functions",
        ),
    ] {
        let answer = operator.ask(line);
        assert_eq!(answer["code"], code, "{line}: {answer}");
        assert_eq!(answer["error"], said, "{line}");
    }
}

#[test]
fn a_td_has_at_most_as_many_functions_as_its_configuration_allows() {
    let server = Server::new("");
    let tds = server.tds(TWO);
    let function = |number| Pci {
        device: Selector::Address(at(number)),
    };
    for number in 0..MOST_FUNCTIONS as u8 {
        tds.attach(1, function(number)).unwrap();
    }
    let refused = tds.attach(1, function(0xFF)).unwrap_err();
    assert_eq!(refused.to_string(), "a TD can have 16 PCI functions");
    let config = tds.config(1).unwrap();
    assert_eq!(config.pci.len(), MOST_FUNCTIONS);
}

#[test]
fn nothing_is_plugged_into_a_td_that_lives() {
    let server = Server::new("");
    let tds = server.tds(TWO);
    let mut operator = Operator::new(&tds).with_pci(&Four);
    for line in ["td create one", "td start one"] {
        operator.succeed(line);
        for verb in ["attach", "detach"] {
            let answer = operator.ask(&format!("td {verb} one 0000:01:00.0"));
            assert_eq!(answer["code"], "wrong-state", "{answer}");
            let said = answer["error"].as_str().unwrap();
            assert!(
                said.ends_with(
                    ", and PCI functions are attached and detached while a TD is not built; \"td destroy one\" \
                     terminates it"
                ),
                "{said}"
            );
        }
    }
    operator.succeed("td destroy one");
    operator.succeed("td attach one 0000:01:00.0");
    server.assert_spotless();
}
