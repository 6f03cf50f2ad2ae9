//! The functions of the machine, with their groups and owners.

use alloc::vec::Vec;

use crate::{
    Address, BarKind, Defect, Function, Header, Owner, Refusal, Reset, Space, acs, bar, group,
    quirk, reset,
};

/// Knowledge of a function beside its own registers.
#[derive(Debug)]
pub(crate) struct Place {
    group: usize,
    requesters: Vec<u16>,
    /// The resets that it offers by itself, the best first.
    resets: Vec<Reset>,
    /// The index of the bridge to its bus, if there is exactly one.
    bridge: Option<usize>,
    pub owner: Owner,
    /// True if the TD that has it had it before.
    pub has_label: bool,
    /// True while it is being reset: its registers are not accessed.
    pub is_away: bool,
    /// True if its base address registers are measured, or must never be.
    is_measured: bool,
}

/// The functions of the machine, in the order of their addresses.
#[derive(Debug)]
pub struct Inventory {
    functions: Vec<Function>,
    places: Vec<Place>,
}

impl Inventory {
    /// Takes the functions that [`crate::scan::segment`] found on all segments, switches access control on, and forms the
    /// groups. No function is a bus master, and nothing else uses configuration space.
    ///
    /// `is_needed` says that the machine needs a function at every moment, such as the console's port: the host keeps it,
    /// and its registers are never measured.
    pub fn new(
        space: &impl Space,
        mut functions: Vec<Function>,
        is_needed: impl Fn(&Function) -> bool,
    ) -> Self {
        functions.sort_by_key(|function| function.address);
        functions.dedup_by_key(|function| function.address);
        for function in &functions {
            acs::enable(space, function);
        }
        let tree = group::Tree::new(space, &functions);
        let places = (tree.groups().into_iter().zip(&functions))
            .map(|(group, function)| Place {
                group,
                requesters: tree.requesters(function),
                resets: reset::offered(space, function),
                bridge: match tree.above(function.address) {
                    group::Above::Bridge(index) => Some(*index),
                    _ => None,
                },
                owner: match is_needed(function) {
                    true => Owner::Host("it needs it at every moment"),
                    false => host_use(function).map_or(Owner::Nobody, Owner::Host),
                },
                has_label: false,
                is_away: false,
                is_measured: is_needed(function) || quirk::keeps_its_bars(function),
            })
            .collect();
        let unreachable: Vec<_> = functions.iter().map(|f| tree.defect(f)).collect();
        for (function, defect) in functions.iter_mut().zip(unreachable) {
            function.defects.extend(defect);
        }
        Self { functions, places }
    }

    /// Returns the functions.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Returns the function at an address.
    #[must_use]
    pub fn find(&self, at: Address) -> Option<&Function> {
        Some(&self.functions[self.index(at)?])
    }

    /// Measures the base address registers of a function, if that was not done and is allowed. The function does not
    /// decode them meanwhile, so nothing is done unless nobody uses it: it is called before the function is given to a TD.
    /// A virtual function's are those of its physical function.
    pub fn measure(&mut self, space: &impl Space, at: Address) {
        let Some(index) = self.index(at) else {
            return;
        };
        let place = &mut self.places[index];
        let is_free = matches!(place.owner, Owner::Nobody | Owner::Former(_)) && !place.is_away;
        if !is_free || core::mem::replace(&mut place.is_measured, true) {
            return;
        }
        match self.functions[index].physical {
            None => measure(space, &mut self.functions[index]),
            Some(physical) => self.measure_virtual(space, physical),
        }
    }

    /// Measures the registers that the virtual functions of `physical` share, and gives each its slice.
    fn measure_virtual(&mut self, space: &impl Space, physical: Address) {
        let Some(index) = self.index(physical) else {
            return;
        };
        let function = &mut self.functions[index];
        let Some(virtuals) = function.virtuals else {
            return;
        };
        let shared = virtuals.measure(space, physical, &mut function.defects);
        let all = self.functions.iter_mut().zip(&mut self.places);
        for (function, place) in all.filter(|(other, _)| other.physical == Some(physical)) {
            function.bars = virtuals.slice(&shared, physical, function.address);
            place.is_measured = true;
        }
    }

    /// Returns the number of the group of a function. Functions of one group go to one owner.
    #[must_use]
    pub fn group(&self, at: Address) -> Option<usize> {
        Some(self.places[self.index(at)?].group)
    }

    /// Returns the functions of a group.
    pub fn members(&self, group: usize) -> impl Iterator<Item = &Function> {
        let all = self.functions.iter().zip(&self.places);
        all.filter(move |(_, place)| place.group == group)
            .map(|(function, _)| function)
    }

    /// Returns the requester ids under which the IOMMU may see the function's requests, its own first.
    #[must_use]
    pub fn requesters(&self, at: Address) -> &[u16] {
        self.index(at)
            .map_or(&[], |index| &self.places[index].requesters)
    }

    /// Returns the bridge to the function's bus; `None` on a root bus.
    #[must_use]
    pub fn bridge(&self, at: Address) -> Option<&Function> {
        Some(&self.functions[self.places[self.index(at)?].bridge?])
    }

    /// Returns the function that a path of devices and functions leads to, from a bus of a segment on. Firmware's
    /// tables name functions so.
    #[must_use]
    pub fn follow(&self, segment: u16, bus: u8, path: &[(u8, u8)]) -> Option<&Function> {
        let mut bus = bus;
        let mut found = None;
        for &(device, function) in path {
            // A step after the first is behind the function before it.
            if let Some(before) = found {
                bus = Function::behind(before)?.secondary;
            }
            found = Some(self.find(Address {
                segment,
                bus,
                device,
                function,
            })?);
        }
        found
    }

    /// Returns the owner of a function.
    #[must_use]
    pub fn owner(&self, at: Address) -> Option<&Owner> {
        Some(&self.places[self.index(at)?].owner)
    }

    /// Returns the function whose base address registers locate `address`: of memory, or an I/O port.
    #[must_use]
    pub fn behind_address(&self, address: u64, is_port: bool) -> Option<&Function> {
        self.functions
            .iter()
            .find(|function| locates(function, address, is_port))
    }

    /// Returns the ways to reset a function, the best first. A bus is reset only if everything on it belongs to the
    /// function's group.
    #[must_use]
    pub fn resets(&self, at: Address) -> Vec<Reset> {
        let Some(index) = self.index(at) else {
            return Vec::new();
        };
        let mut ways = self.places[index].resets.clone();
        ways.extend(self.bus_reset(index));
        ways
    }

    /// Returns the reasons why a function can't be given to any TD. Nothing is said of the functions of its group that
    /// TDs can have.
    pub fn refusals(&self, space: &impl Space, at: Address) -> Vec<Refusal> {
        let Some(index) = self.index(at) else {
            return Vec::from([Refusal::Gone]);
        };
        let (function, place) = (&self.functions[index], &self.places[index]);
        let mut reasons = Vec::new();
        match &place.owner {
            Owner::Host(why) => reasons.push(Refusal::Host(why)),
            Owner::Retired(why) => reasons.push(Refusal::Retired(why.clone())),
            _ => {}
        }
        if !place.is_away && !function.answers(space) {
            reasons.push(Refusal::Gone);
        }
        if let Header::Other(layout) = function.header {
            reasons.push(Refusal::Header(layout));
        }
        reasons.extend(function.defects.iter().copied().map(Refusal::Defect));
        if quirk::is_volume_management(function) {
            reasons.push(Refusal::VolumeManagement);
        }
        if let Some(enabled) = function.virtuals.map(|v| v.enabled).filter(|n| *n > 0) {
            reasons.push(Refusal::VirtualFunctions(enabled));
        }
        if self.resets(at).is_empty() {
            reasons.push(Refusal::NoReset);
        }
        reasons.extend(self.group_refusal(index));
        reasons
    }

    /// Returns the functions that hide others from this inventory, for a message.
    pub fn volume_managers(&self) -> impl Iterator<Item = Address> {
        (self.functions.iter())
            .filter(|function| quirk::is_volume_management(function))
            .map(|function| function.address)
    }

    fn index(&self, at: Address) -> Option<usize> {
        group::find(&self.functions, at)
    }

    pub(crate) fn place_mut(&mut self, at: Address) -> Option<&mut Place> {
        let index = self.index(at)?;
        self.places.get_mut(index)
    }

    /// Returns true while a function is being reset: its registers must not be accessed.
    #[must_use]
    pub fn is_away(&self, at: Address) -> bool {
        self.index(at)
            .is_some_and(|index| self.places[index].is_away)
    }

    pub(crate) fn on_bus_of(&self, at: Address) -> impl Iterator<Item = (usize, &Function)> {
        let on_bus = move |function: &Function| {
            (function.address.segment, function.address.bus) == (at.segment, at.bus)
        };
        let all = self.functions.iter().enumerate();
        all.filter(move |(_, function)| on_bus(function))
    }

    fn bus_reset(&self, index: usize) -> Option<Reset> {
        let (function, place) = (&self.functions[index], &self.places[index]);
        let bridge = &self.functions[place.bridge?];
        let may_be_reset = |(other, function): (usize, &Function)| {
            let other = &self.places[other];
            other.group == place.group
                && !matches!(other.owner, Owner::Host(_))
                && function.header == Header::Endpoint
                && function.physical.is_none()
        };
        self.on_bus_of(function.address)
            .all(may_be_reset)
            .then_some(Reset::Bus(bridge.address))
    }

    /// Returns why the rest of a function's group prevents that it is given away. Bridges to other buses have no DMA that
    /// anybody controls, and stay the host's.
    fn group_refusal(&self, index: usize) -> Option<Refusal> {
        let place = &self.places[index];
        let all = self.functions.iter().zip(&self.places).enumerate();
        all.filter(|(other, (function, other_place))| {
            *other != index
                && other_place.group == place.group
                && !matches!(function.header, Header::Bridge(_))
        })
        .find_map(|(_, (function, other_place))| match other_place.owner {
            Owner::Host(why) => Some(Refusal::Group(function.address, why)),
            _ => None,
        })
    }
}

/// Measures the base address registers of an endpoint.
fn measure(space: &impl Space, function: &mut Function) {
    if function.header != Header::Endpoint || !function.answers(space) {
        return;
    }
    let at = function.address;
    let mut defects = Vec::new();
    let place = bar::Place::header(at, function.bar_places());
    let bars = bar::undecoded(space, at, || bar::measure(space, place, &mut defects));
    if function.answers(space) {
        function.bars = bars;
        function.defects.extend(defects);
    } else {
        function.defects.push(Defect::Vanished);
    }
}

/// Returns why the host keeps a function, by what it is.
fn host_use(function: &Function) -> Option<&'static str> {
    if let Header::Bridge(_) = function.header {
        return Some("it is a bridge");
    }
    match (function.identity.class.base, function.identity.class.sub) {
        (0x06, _) => Some("it is a bridge of the chipset"),
        (0x05, sub) if sub != 2 => Some("it belongs to the memory controller"),
        (0x08, _) | (0x11, 0x01) => Some("it belongs to the chipset"),
        (0x0B, sub) if sub != 0x40 => Some("it is a processor"),
        (0x0C, 0x05) => Some("the firmware uses it to manage the machine"),
        _ => None,
    }
}

fn locates(function: &Function, address: u64, is_port: bool) -> bool {
    let bars = function.bars.iter();
    bars.filter(|bar| (bar.kind == BarKind::Io) == is_port)
        .any(|bar| bar.contains(address))
}
