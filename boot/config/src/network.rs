//! `[[network]]` and `[[td.net]]`: the networks of this host, and the cards by which TDs are in them.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use toml::de::DeValue;

use super::{
    Config, Td,
    keys::{self, Key, Keyed, Mistakes, choice, chosen, plain, quoted, text},
    td,
    value::{bytes, size},
};

/// Maximum number of network cards of a TD.
pub const MOST_CARDS: usize = 4;

const RATE: &str = "a number of bytes per second that is not 0, with M, G or T, such as \"100M\"";

/// A network: the TDs of this host whose cards name it reach each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Name of the network: as that of a TD.
    pub name: String,
    /// True if the ports of the network's cards are isolated unless a card says otherwise.
    pub isolated: bool,
    /// Number of bytes per second that each card may send unless it says otherwise. By default there is no limit.
    pub rate: Option<u64>,
}

impl Keyed for Network {
    const TABLE: &'static str = "[[network]]";
    const KEYS: &'static [Key<Self>] = &[
        Key::<Self>::new(
            "name",
            "a letter, then up to 31 letters, digits, '-', '_' or '.', in quotes",
            |network, value| {
                network.name = text(value).filter(|name| td::is_name(name))?;
                Some(())
            },
            |network| Some(quoted(&network.name)),
        )
        .required(),
        Key::<Self>::new(
            "isolated",
            "true or false",
            |network, value| value.as_bool().map(|on| network.isolated = on),
            |network| plain(network.isolated, false),
        ),
        Key::<Self>::new(
            "rate",
            RATE,
            |network, value| rate(value).map(|rate| network.rate = Some(rate)),
            |network| network.rate.map(|rate| quoted(&size(rate))),
        ),
    ];

    fn blank() -> Self {
        Self::default()
    }
}

/// A network card of a TD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Net {
    /// Name of the `[[network]]`.
    pub network: String,
    /// The card's address. By default it is derived from the names of network and TD ([`Td::mac`]).
    pub mac: Option<MacAddress>,
    /// The card's port. By default it is as the network says.
    pub port: Option<Port>,
    /// Number of bytes per second that the TD may send; frames beyond it are dropped. By default as the network says.
    pub rate: Option<u64>,
}

impl Net {
    /// Returns the kind of the card's port in its network.
    #[must_use]
    pub fn port_in(&self, network: &Network) -> Port {
        self.port.unwrap_or(match network.isolated {
            true => Port::Isolated,
            false => Port::Open,
        })
    }
}

impl Keyed for Net {
    const TABLE: &'static str = "[[td.net]]";
    const KEYS: &'static [Key<Self>] = &[
        Key::<Self>::new(
            "network",
            "the name of a [[network]], in quotes",
            |net, value| text(value).map(|name| net.network = name),
            |net| Some(quoted(&net.network)),
        )
        .required(),
        Key::<Self>::new(
            "mac",
            "the address of one card, such as \"02:00:00:00:00:01\", with an even first byte",
            |net, value| {
                net.mac = Some(MacAddress::parse(value.as_str()?)?);
                Some(())
            },
            |net| net.mac.map(|mac| quoted(&mac.to_string())),
        ),
        Key::<Self>::new(
            "port",
            "\"open\", \"isolated\" or \"trunk\"",
            |net, value| choice(value, PORTS).map(|port| net.port = Some(port)),
            |net| {
                let port = net.port?;
                // None of them is a default.
                let other = PORTS.iter().find(|(_, other)| *other != port)?;
                chosen(port, other.1, PORTS)
            },
        ),
        Key::<Self>::new(
            "rate",
            RATE,
            |net, value| rate(value).map(|rate| net.rate = Some(rate)),
            |net| net.rate.map(|rate| quoted(&size(rate))),
        ),
    ];

    fn blank() -> Self {
        Self::default()
    }
}

/// The kind of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The card reaches all others of the network. It has one address.
    Open,
    /// The card reaches trunk ports alone.
    Isolated,
    /// The TD bridges to other networks: it may send from any address, and gets the frames for addresses that no card of
    /// the network has.
    Trunk,
}

impl Port {
    /// Returns the word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Isolated => "isolated",
            Self::Trunk => "trunk",
        }
    }
}

const PORTS: &[(&str, Port)] = &[
    ("open", Port::Open),
    ("isolated", Port::Isolated),
    ("trunk", Port::Trunk),
];

/// The address of a network card, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Parses six bytes of two hexadecimal digits with colons between them. Returns `None` for an address of a group, and
    /// for zero.
    fn parse(text: &str) -> Option<Self> {
        let mut address = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut address {
            let digits = parts.next()?;
            let is_byte = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            *byte = u8::from_str_radix(digits, 16).ok().filter(|_| is_byte)?;
        }
        let is_whole = parts.next().is_none();
        let is_card = address[0] & 1 == 0 && address != [0; 6];
        (is_whole && is_card).then_some(Self(address))
    }

    /// Derives an address from names: one that is administered locally.
    fn derived(network: &str, td: &str, card: usize) -> Self {
        /// FNV-1a with 64 bits.
        const BASIS: u64 = 0xCBF2_9CE4_8422_2325;
        const PRIME: u64 = 0x100_0000_01B3;
        // No name has a zero, so that no two triples give the same bytes.
        let bytes = network.bytes().chain([0]).chain(td.bytes());
        let hash = bytes.chain([0, card as u8]).fold(BASIS, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(PRIME)
        });
        let [high, low, rest @ ..] = hash.to_be_bytes();
        let mut address = rest;
        address[0] = (address[0] ^ high) & 0xFC | 2;
        address[1] ^= low;
        Self(address)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Td {
    /// Returns the address of the TD's card of this number: the configured one, or else one that is derived from the
    /// names of network and TD, and is the same in every life of the TD.
    #[must_use]
    pub fn mac(&self, card: usize) -> Option<MacAddress> {
        let net = self.net.get(card)?;
        let derived = || MacAddress::derived(&net.network, &self.name, card);
        Some(net.mac.unwrap_or_else(derived))
    }

    /// Returns the network and the address of each card.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, MacAddress)> {
        let cards = self.net.iter().enumerate();
        cards.filter_map(|(card, net)| Some((&*net.network, self.mac(card)?)))
    }
}

impl Config {
    /// Finds a network.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<&Network> {
        self.network.iter().find(|network| network.name == name)
    }
}

/// Says which address of `td` a card of `others`, or another card of its own, has in the same network.
pub(crate) fn taken<'o>(td: &Td, others: impl Iterator<Item = &'o Td>) -> Option<String> {
    let own: Vec<_> = td.addresses().collect();
    let is_twice = |index: &usize| own[..*index].contains(&own[*index]);
    if let Some(index) = (0..own.len()).find(is_twice) {
        let (network, mac) = own[index];
        return Some(format!(
            "net has the address {mac} twice in network {network:?}: give each card a mac of its own"
        ));
    }
    others.into_iter().find_map(|other| {
        let (network, mac) = other.addresses().find(|address| own.contains(address))?;
        let other = &other.name;
        Some(format!(
            "net has the address {mac}, which TD {other:?} has in network {network:?}: give the card another mac"
        ))
    })
}

fn rate(value: &DeValue<'_>) -> Option<u64> {
    bytes(value.as_str()?).filter(|bytes| *bytes != 0)
}

/// Reads the tables of `[[td.net]]`. Returns `None` if the value is not a list of tables, or of too many.
pub(crate) fn cards(value: &DeValue<'_>, mistakes: &mut Mistakes<'_>) -> Option<Vec<Net>> {
    value.as_array().filter(|all| all.len() <= MOST_CARDS)?;
    keys::read_list(value, mistakes)
}

#[cfg(test)]
mod tests;
