//! Isolation groups: the functions that can reach each other, or that the IOMMU can't tell apart.
//!
//! Two functions are in one group if a request of one may reach the other before the IOMMU, because a port between them
//! or their common device does not redirect it; or if their requests carry the same requester id, behind a bridge to
//! conventional PCI or by a quirk. The rules are those of Linux's `pci_device_group`, and one more: a port that does not
//! redirect requests may pass them to the ports beside it, in its switch or root complex.

use alloc::{collections::BTreeMap, vec::Vec};

use crate::{Address, Defect, Function, Port, Space, acs, extended, quirk};

/// The place at which a bus is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Above {
    /// It is a root bus.
    Root,
    /// One bridge leads to it: the index of the function.
    Bridge(usize),
    /// These bridges claim it, and it can't be told which of them leads there.
    Unclear(Vec<usize>),
}

/// The functions with their places in the tree of buses.
pub struct Tree<'a> {
    functions: &'a [Function],
    above: BTreeMap<(u16, u8), Above>,
    isolates: Vec<bool>,
}

impl<'a> Tree<'a> {
    /// Finds the bridge of each bus and reads each function's access control.
    pub fn new(space: &impl Space, functions: &'a [Function]) -> Self {
        let isolates = functions
            .iter()
            .map(|function| {
                let is_single = function.physical.is_some() || !has_siblings(functions, function);
                acs::isolates(space, function, is_single)
            })
            .collect();
        let mut above = BTreeMap::new();
        for function in functions {
            let Address { segment, bus, .. } = function.address;
            above
                .entry((segment, bus))
                .or_insert_with(|| attachment(functions, segment, bus));
        }
        Self {
            functions,
            above,
            isolates,
        }
    }

    /// Returns where the bus of a function is attached.
    pub fn above(&self, at: Address) -> &Above {
        self.above
            .get(&(at.segment, at.bus))
            .unwrap_or(&Above::Root)
    }

    /// Returns true if every port from the bus of `at` up to the root complex isolates what is behind it. Each bridge is
    /// on a bus with a lower number than the one behind it, so the way ends.
    fn is_isolated(&self, at: Address) -> bool {
        match self.above(at) {
            Above::Root => true,
            Above::Bridge(bridge) => {
                self.isolates[*bridge] && self.is_isolated(self.functions[*bridge].address)
            }
            Above::Unclear(_) => false,
        }
    }

    /// Returns the number of each function's group. Groups are numbered in the order of their first functions.
    pub fn groups(&self) -> Vec<usize> {
        let mut sets = Sets::new(self.functions.len());
        for (index, function) in self.functions.iter().enumerate() {
            if !self.is_isolated(function.address) {
                match self.above(function.address) {
                    Above::Root => {}
                    Above::Bridge(bridge) => sets.join(index, *bridge),
                    Above::Unclear(bridges) => {
                        bridges.iter().for_each(|bridge| sets.join(index, *bridge));
                    }
                }
            }
            if let Some(alias) = quirk::alias(function).and_then(|at| find(self.functions, at)) {
                sets.join(index, alias);
            }
        }
        self.join_siblings(&mut sets);
        self.join_ports(&mut sets);
        sets.numbers()
    }

    /// Joins each port that does not isolate with the ports on its bus.
    fn join_ports(&self, sets: &mut Sets) {
        let mut ports: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, function) in self.functions.iter().enumerate() {
            if matches!(function.port(), Some(Port::Root | Port::Downstream)) {
                let Address { segment, bus, .. } = function.address;
                ports.entry((segment, bus)).or_default().push(index);
            }
        }
        for ports in ports.values() {
            if ports.iter().any(|port| !self.isolates[*port]) {
                ports.iter().for_each(|port| sets.join(*port, ports[0]));
            }
        }
    }

    /// Joins the functions of each device that do not isolate themselves.
    fn join_siblings(&self, sets: &mut Sets) {
        let mut first: BTreeMap<_, usize> = BTreeMap::new();
        for (index, function) in self.functions.iter().enumerate() {
            let is_open = function.physical.is_none()
                && !self.isolates[index]
                && has_siblings(self.functions, function);
            if is_open {
                let device = device(self.functions, function.address);
                sets.join(index, *first.entry(device).or_insert(index));
            }
        }
    }

    /// Returns the requester ids that the requests of a function may carry at the IOMMU, its own first.
    pub fn requesters(&self, function: &Function) -> Vec<u16> {
        let mut ids = Vec::from([function.address.requester()]);
        ids.extend(quirk::alias(function).map(Address::requester));
        let mut at = function.address;
        while let Above::Bridge(index) = self.above(at) {
            let bridge = &self.functions[*index];
            let own = bridge.address.requester();
            match bridge.port() {
                // It takes ownership of requests, as the first function of the bus behind it.
                Some(Port::ToPci) => ids.push(u16::from(at.bus) << 8),
                Some(Port::FromPci) | None => ids.push(own),
                Some(_) => {}
            }
            at = bridge.address;
        }
        ids.dedup();
        ids
    }

    /// Returns the defects that a function's place in the tree shows.
    pub fn defect(&self, function: &Function) -> Option<Defect> {
        matches!(self.above(function.address), Above::Unclear(_)).then_some(Defect::Unreachable)
    }
}

/// Returns the index of the function at an address in a sorted list.
pub fn find(functions: &[Function], at: Address) -> Option<usize> {
    functions.binary_search_by_key(&at, |f| f.address).ok()
}

fn attachment(functions: &[Function], segment: u16, bus: u8) -> Above {
    let bridges = || {
        (functions.iter().enumerate())
            .filter(|(_, function)| function.address.segment == segment)
            .filter_map(|(index, function)| Some((index, function.behind()?)))
    };
    let exact = bridges().filter(|(_, buses)| buses.secondary == bus);
    let exact: Vec<_> = exact.map(|(index, _)| index).collect();
    match exact[..] {
        [bridge] => return Above::Bridge(bridge),
        [] => {}
        _ => return Above::Unclear(exact),
    }
    let around =
        bridges().filter(|(_, buses)| (buses.secondary..=buses.subordinate).contains(&bus));
    let around: Vec<_> = around.map(|(index, _)| index).collect();
    if around.is_empty() {
        Above::Root
    } else {
        Above::Unclear(around)
    }
}

/// Returns the first address of the device that a function belongs to. With alternative routing it is the whole bus.
fn device(functions: &[Function], at: Address) -> Address {
    let first = Address {
        device: 0,
        function: 0,
        ..at
    };
    let has_alternative_routing = find(functions, first).is_some_and(|index| {
        functions[index]
            .capabilities
            .extended(extended::ARI)
            .is_some()
    });
    if has_alternative_routing {
        first
    } else {
        at.sibling(0)
    }
}

/// Returns true if the function's device has another physical function.
fn has_siblings(functions: &[Function], function: &Function) -> bool {
    let own = device(functions, function.address);
    let start = functions.partition_point(|other| other.address < own);
    functions[start..]
        .iter()
        .take_while(|other| device(functions, other.address) == own)
        .any(|other| other.address != function.address && other.physical.is_none())
}

/// Disjoint sets of indices.
struct Sets(Vec<usize>);

impl Sets {
    fn new(count: usize) -> Self {
        Self((0..count).collect())
    }

    fn root(&mut self, mut index: usize) -> usize {
        while self.0[index] != index {
            self.0[index] = self.0[self.0[index]];
            index = self.0[index];
        }
        index
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }

    fn numbers(mut self) -> Vec<usize> {
        let mut numbers = BTreeMap::new();
        (0..self.0.len())
            .map(|index| {
                let root = self.root(index);
                let next = numbers.len();
                *numbers.entry(root).or_insert(next)
            })
            .collect()
    }
}
