//! `vsock`: the socket device of a TD.

use alloc::{format, string::String, vec::Vec};

use toml::de::DeValue;

use super::keys::{self, Key, Keyed, Mistakes, choice, number};

/// The lowest context id of a TD; those below have a meaning of their own, such as 2 for the host.
const FIRST: u64 = 3;
/// The highest one: an id has 32 bits in Linux, and the last one means any.
const LAST: u64 = u32::MAX as u64 - 1;
/// Maximum number of peers.
const MOST: usize = 16;

/// The socket device (AF_VSOCK) of a TD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vsock {
    /// Its context id, from 3. No two TDs have the same.
    pub cid: u64,
    /// The context ids of the TDs that it connects with, if they name it as well.
    pub peers: Vec<u64>,
    /// The services of the host that it may connect to.
    pub services: Vec<VsockService>,
}

/// A service of the host, at a port of context id 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VsockService {
    /// The quote port: the TD answers the other TDs' requests for quotes.
    Quote,
}

const SERVICES: &[(&str, VsockService)] = &[("quote", VsockService::Quote)];

impl Keyed for Vsock {
    const TABLE: &'static str = "vsock";
    const KEYS: &'static [Key<Self>] = &[
        Key::<Self>::new(
            "cid",
            "a number from 3 to 4294967294",
            |vsock, value| {
                vsock.cid = cid(value)?;
                Some(())
            },
            |vsock| Some(format!("{}", vsock.cid)),
        )
        .required(),
        Key::<Self>::new(
            "peers",
            "a list of up to 16 cids of other TDs, such as [4, 5]",
            |vsock, value| {
                let list = value.as_array().filter(|list| list.len() <= MOST)?;
                let peers = list.iter().map(|peer| cid(peer.get_ref()));
                vsock.peers = peers.collect::<Option<_>>()?;
                Some(())
            },
            |vsock| (!vsock.peers.is_empty()).then(|| format!("{:?}", vsock.peers)),
        ),
        Key::<Self>::new(
            "services",
            "a list of services of the host, such as [\"quote\"]",
            |vsock, value| {
                let list = value.as_array()?.iter();
                let services = list.map(|name| choice(name.get_ref(), SERVICES));
                vsock.services = services.collect::<Option<_>>()?;
                Some(())
            },
            |vsock| (!vsock.services.is_empty()).then(|| shown(&vsock.services)),
        ),
    ];

    fn blank() -> Self {
        Self {
            cid: FIRST,
            ..Self::default()
        }
    }
}

fn cid(value: &DeValue<'_>) -> Option<u64> {
    number(value, FIRST..=LAST)
}

fn shown(services: &[VsockService]) -> String {
    let names = SERVICES.iter().filter(|(_, one)| services.contains(one));
    let names: Vec<_> = names.map(|(name, _)| *name).collect();
    format!("{names:?}")
}

/// Reads the table. Returns `None` if the value is not one.
pub(crate) fn vsock(value: &DeValue<'_>, mistakes: &mut Mistakes<'_>) -> Option<Vsock> {
    let table = value.as_table()?;
    // An empty one has no place of its own.
    let at = keys::start_of(table)?;
    Some(keys::read(table, at, mistakes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, parse};
    use alloc::string::ToString;

    /// Returns the configuration of TDs with these lines; those of the first begin at line 8.
    fn tds(lines: &[&str]) -> Result<Config, String> {
        let file = "[[file]]\nname = \"k\"\npath = \"k\"\n".to_string();
        let tds = lines.iter().zip(["a", "b", "c"]);
        let text = tds.fold(file, |text, (line, name)| {
            text + &format!("[[td]]\nname = \"{name}\"\nkernel = \"k\"\nmemory = \"64M\"\n{line}\n")
        });
        parse(text.as_bytes())
    }

    #[test]
    fn a_td_has_a_cid_peers_and_services() {
        let line = "vsock = { cid = 7, peers = [3, 4], services = [\"quote\"] }";
        let config = tds(&[line, "vsock = { cid = 0xFFFFFFFE }", ""]).unwrap();
        let vsock = config.td[0].vsock.as_ref().unwrap();
        assert_eq!((vsock.cid, &*vsock.peers), (7, &[3, 4][..]));
        assert_eq!(vsock.services, [VsockService::Quote]);
        assert_eq!(vsock.inline(), line.split_once("= ").unwrap().1);
        assert_eq!(config.td[1].vsock.as_ref().unwrap().cid, 0xFFFF_FFFE);
        assert_eq!(config.td[2].vsock, None);
    }

    #[test]
    fn what_is_no_socket_device_is_refused_with_its_line() {
        for wrong in [
            "vsock = 3",
            "vsock = {}",
            "vsock = { cid = 2 }",
            "vsock = { cid = 4294967295 }",
            "vsock = { cid = \"3\" }",
            "vsock = { cid = 3, peers = [2] }",
            "vsock = { cid = 3, peers = 4 }",
            "vsock = { cid = 3, services = [\"mail\"] }",
            "vsock = { cid = 3, port = 1 }",
        ] {
            let error = tds(&[wrong]).unwrap_err();
            assert!(error.starts_with("seamark.toml:8: "), "{wrong}: {error}");
        }
        let error = tds(&["vsock = { cid = 2 }"]).unwrap_err();
        assert!(
            error.contains("cid is 2; it must be a number from 3"),
            "{error}"
        );
    }

    #[test]
    fn two_tds_with_one_cid_are_refused() {
        let error = tds(&["vsock = { cid = 3 }", "", "vsock = { cid = 3 }"]).unwrap_err();
        let expected = "seamark.toml:18: vsock has the cid 3, which TD a has; give each TD its own";
        assert!(error.starts_with(expected), "{error}");
    }
}
