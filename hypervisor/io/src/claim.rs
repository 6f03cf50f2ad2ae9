//! Claims: a TD gets functions, whole groups or nothing, and leaves its label on them.
//!
//! Each method is one step under the caller's lock of the inventory. A function goes from [`Owner::Nobody`] to
//! [`Owner::Td`] by [`Inventory::claim`], to [`Owner::Former`] by [`Inventory::give_back`], and from there to the same
//! TD again, or to nobody by [`Inventory::release`]. [`Inventory::retire`] takes it out of use for good.

use alloc::{
    borrow::ToOwned,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use crate::{Address, Function, Header, Inventory, Owner, Refusal, Selector, Space};

/// The reason why a TD does not get functions. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// No function is named so.
    Unknown(Selector),
    /// Several functions are named so.
    Ambiguous(Selector, Vec<Address>),
    /// A function is named more than once.
    Twice(Address),
    /// The TD of that name has the function.
    Owned(Address, String),
    /// The TD of that name had the function, which may hold its data.
    Former(Address, String),
    /// The function can't be given to any TD, for these reasons.
    Refused(Address, Vec<String>),
    /// The function can't be isolated from these, which were not named.
    Split(Address, Vec<Address>),
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(selector @ Selector::Address(_)) => {
                write!(
                    f,
                    "there is no PCI function {selector}; \"pci list\" lists them"
                )
            }
            Self::Unknown(selector) => {
                write!(
                    f,
                    "no PCI function is a {selector}; \"pci list\" lists them"
                )
            }
            Self::Ambiguous(selector, all) => write!(
                f,
                "{selector} is not one PCI function but {}: {}; name one by its address",
                all.len(),
                List(all)
            ),
            Self::Twice(at) => write!(f, "PCI function {at} is named twice"),
            Self::Owned(at, td) => write!(f, "TD {td} has PCI function {at}"),
            Self::Former(at, td) => write!(
                f,
                "PCI function {at} may hold data of TD {td}, which had it before; \"pci release {at}\" frees it for \
                 others"
            ),
            Self::Refused(at, reasons) => write!(
                f,
                "PCI function {at} can't be given to a TD: {}",
                reasons.join("; ")
            ),
            Self::Split(at, missing) => write!(
                f,
                "PCI function {at} can't be isolated from {}, so that one TD gets all of them or none; name {} as well",
                List(missing),
                if missing.len() == 1 { "it" } else { "them" }
            ),
        }
    }
}

impl core::error::Error for ClaimError {}

/// The reason why functions were not released. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReleaseError {
    /// There is no such function.
    Unknown(Address),
    /// The host keeps the function, for this reason.
    Host(Address, &'static str),
    /// No TD has had the function.
    Unused(Address),
    /// The TD of that name has the function.
    Owned(Address, String),
    /// The function is out of use, for this reason.
    Retired(Address, String),
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(at) => {
                write!(f, "there is no PCI function {at}; \"pci list\" lists them")
            }
            Self::Host(at, why) => {
                write!(
                    f,
                    "PCI function {at} is the host's: {why}; no TD has had it"
                )
            }
            Self::Unused(at) => write!(
                f,
                "no TD has had PCI function {at} since it was released or the machine started; any TD may have it"
            ),
            Self::Owned(at, td) => write!(
                f,
                "TD {td} has PCI function {at}; \"td destroy {td}\" ends the TD, which gives it back"
            ),
            Self::Retired(at, why) => write!(
                f,
                "PCI function {at} is out of use until the machine is switched off: {why}"
            ),
        }
    }
}

impl core::error::Error for ReleaseError {}

/// The functions of a group that were released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The functions.
    pub functions: Vec<Address>,
    /// The name of the TD that had them.
    pub td: String,
}

impl Inventory {
    /// Gives functions to the TD of this name, all or none, as [`Self::check`] allows it. Returns their addresses, in the
    /// order of `wanted`.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn claim(
        &mut self,
        space: &impl Space,
        td: &str,
        wanted: &[Selector],
        unconfined: impl Fn(Address, &[u16]) -> Vec<String>,
    ) -> Result<Vec<Address>, ClaimError> {
        let chosen = self.check(space, td, wanted, unconfined)?;
        for &at in &chosen {
            self.own(at, td);
        }
        Ok(chosen)
    }

    /// Checks whether the TD of this name can have functions now. Returns their addresses, in the order of `wanted`. Their
    /// base address registers are measured.
    ///
    /// A TD gets all functions of a group, bridges apart, or none of it. `unconfined` returns why the machine can't
    /// confine a function, one sentence for each reason; it gets the ids that the function's requests carry.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn check(
        &mut self,
        space: &impl Space,
        td: &str,
        wanted: &[Selector],
        unconfined: impl Fn(Address, &[u16]) -> Vec<String>,
    ) -> Result<Vec<Address>, ClaimError> {
        let chosen = self.resolve_all(wanted)?;
        for &at in &chosen {
            self.check_owner(at, td)?;
        }
        for &at in &chosen {
            self.measure(space, at);
            let mut reasons: Vec<_> = (self.refusals(space, at).iter())
                .map(Refusal::to_string)
                .collect();
            reasons.extend(unconfined(at, self.requesters(at)));
            if !reasons.is_empty() {
                return Err(ClaimError::Refused(at, reasons));
            }
        }
        for &at in &chosen {
            let missing = self.missing(at, &chosen);
            if !missing.is_empty() {
                return Err(ClaimError::Split(at, missing));
            }
        }
        Ok(chosen)
    }

    /// Takes back functions that [`Self::claim`] has given to the TD and that it has not used. They have the owner from
    /// before.
    pub fn unclaim(&mut self, td: &str, functions: &[Address]) {
        self.each_of(td, functions, |had_it| match had_it {
            true => Owner::Former(td.to_owned()),
            false => Owner::Nobody,
        });
    }

    /// Takes functions from the TD, after it has used them. They were reset, and keep its label.
    pub fn give_back(&mut self, td: &str, functions: &[Address]) {
        self.each_of(td, functions, |_| Owner::Former(td.to_owned()));
    }

    /// Takes a function out of use until the machine is switched off, because its owner can't give it back or it did not
    /// survive a reset. What the host keeps, it keeps.
    pub fn retire(&mut self, at: Address, why: &str) {
        if let Some(place) = self.place_mut(at)
            && !matches!(place.owner, Owner::Host(_) | Owner::Retired(_))
        {
            place.owner = Owner::Retired(why.to_owned());
        }
    }

    /// Removes the label of the TD that had a function, from all functions of its group: any TD may have them then.
    ///
    /// Nothing is erased.
    ///
    /// # Errors
    /// [`ReleaseError`].
    pub fn release(&mut self, at: Address) -> Result<Released, ReleaseError> {
        let group = self.group(at).ok_or(ReleaseError::Unknown(at))?;
        let former = |owner: Option<&Owner>, at| match owner {
            None => Err(ReleaseError::Unknown(at)),
            Some(Owner::Host(why)) => Err(ReleaseError::Host(at, why)),
            Some(Owner::Nobody) => Err(ReleaseError::Unused(at)),
            Some(Owner::Td(name)) => Err(ReleaseError::Owned(at, name.clone())),
            Some(Owner::Former(name)) => Ok(name.clone()),
            Some(Owner::Retired(why)) => Err(ReleaseError::Retired(at, why.clone())),
        };
        let td = former(self.owner(at), at)?;
        let functions: Vec<_> = self.for_tds(group).map(|member| member.address).collect();
        for &member in &functions {
            former(self.owner(member), member)?;
        }
        for &member in &functions {
            if let Some(place) = self.place_mut(member) {
                place.owner = Owner::Nobody;
                place.has_label = false;
            }
        }
        Ok(Released { functions, td })
    }

    /// Returns the address of the function that is named.
    ///
    /// # Errors
    /// [`ClaimError::Unknown`], [`ClaimError::Ambiguous`].
    pub fn resolve(&self, selector: Selector) -> Result<Address, ClaimError> {
        let all = self.functions().iter().filter(|f| selector.matches(f));
        let all: Vec<_> = all.map(|function| function.address).collect();
        match all[..] {
            [] => Err(ClaimError::Unknown(selector)),
            [at] => Ok(at),
            _ => Err(ClaimError::Ambiguous(selector, all)),
        }
    }

    fn resolve_all(&self, wanted: &[Selector]) -> Result<Vec<Address>, ClaimError> {
        let mut chosen = Vec::new();
        for selector in wanted {
            match self.resolve(*selector)? {
                at if chosen.contains(&at) => return Err(ClaimError::Twice(at)),
                at => chosen.push(at),
            }
        }
        Ok(chosen)
    }

    /// Checks that no TD has the function, and that no other TD's data may be in it.
    fn check_owner(&self, at: Address, td: &str) -> Result<(), ClaimError> {
        match self.owner(at) {
            Some(Owner::Td(name)) => Err(ClaimError::Owned(at, name.clone())),
            Some(Owner::Former(name)) if name != td => Err(ClaimError::Former(at, name.clone())),
            // Functions that the host keeps, or that are retired, are refused with the other reasons.
            _ => Ok(()),
        }
    }

    /// Returns the functions of a function's group that go with it and are not among `chosen`.
    fn missing(&self, at: Address, chosen: &[Address]) -> Vec<Address> {
        let group = self.group(at).into_iter();
        let members = group.flat_map(|group| self.for_tds(group));
        members
            .map(|member| member.address)
            .filter(|member| !chosen.contains(member))
            .collect()
    }

    /// Returns the functions of a group that go to TDs. Bridges to other buses have no DMA that anybody controls, and
    /// stay the host's.
    fn for_tds(&self, group: usize) -> impl Iterator<Item = &Function> {
        self.members(group)
            .filter(|member| !matches!(member.header, Header::Bridge(_)))
    }

    fn own(&mut self, at: Address, td: &str) {
        if let Some(place) = self.place_mut(at) {
            place.has_label = matches!(place.owner, Owner::Former(_));
            place.owner = Owner::Td(td.to_owned());
        }
    }

    /// Sets the owner of those functions that the TD has. `owner` gets whether the TD had the function before.
    fn each_of(&mut self, td: &str, functions: &[Address], owner: impl Fn(bool) -> Owner) {
        for &at in functions {
            if let Some(place) = self.place_mut(at)
                && matches!(&place.owner, Owner::Td(name) if name == td)
            {
                place.owner = owner(place.has_label);
            }
        }
    }
}

/// Addresses in a sentence.
struct List<'a>(&'a [Address]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, at) in self.0.iter().enumerate() {
            f.write_str(match number {
                0 => "",
                _ if number + 1 == self.0.len() => " and ",
                _ => ", ",
            })?;
            write!(f, "{at}")?;
        }
        Ok(())
    }
}
