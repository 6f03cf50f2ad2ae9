//! Claims: whole groups, one owner, labels that stay.

mod model;

use std::collections::{BTreeMap, BTreeSet};

use io::{Address, ClaimError, Header, Inventory, Owner, ReleaseError, Selector};
use model::server::{drive, four_sockets, root_port};
use model::{Behaviour, Config, Model, at};
use proptest::prelude::*;

/// A drive alone in its group.
const DRIVE: Address = at(0, 0x33, 0, 0);
/// Two drives behind a switch without access control.
const SWITCHED: [Address; 2] = [at(0, 0x43, 0, 0), at(0, 0x44, 0, 0)];

/// Every function is confined.
fn confined(_: Address, _: &[u16]) -> Vec<String> {
    Vec::new()
}

fn places(all: &[Address]) -> Vec<Selector> {
    all.iter().copied().map(Selector::Address).collect()
}

fn claim(
    inventory: &mut Inventory,
    model: &Model,
    td: &str,
    all: &[Address],
) -> Result<Vec<Address>, ClaimError> {
    inventory.claim(model, td, &places(all), confined)
}

#[test]
fn a_function_goes_from_td_to_td_by_release_alone() {
    let model = four_sockets();
    let mut inventory = model.inventory();
    assert_eq!(
        claim(&mut inventory, &model, "a", &[DRIVE]),
        Ok(vec![DRIVE])
    );
    assert_eq!(inventory.owner(DRIVE), Some(&Owner::Td("a".into())));
    for td in ["a", "b"] {
        let refused = claim(&mut inventory, &model, td, &[DRIVE]).unwrap_err();
        assert_eq!(refused, ClaimError::Owned(DRIVE, "a".into()));
    }
    assert_eq!(
        inventory.release(DRIVE),
        Err(ReleaseError::Owned(DRIVE, "a".into()))
    );
    inventory.give_back("a", &[DRIVE]);
    assert_eq!(inventory.owner(DRIVE), Some(&Owner::Former("a".into())));
    let refused = claim(&mut inventory, &model, "b", &[DRIVE]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "PCI function 0000:33:00.0 may hold data of TD a, which had it before; \"pci release 0000:33:00.0\" frees it \
         for others"
    );
    assert!(claim(&mut inventory, &model, "a", &[DRIVE]).is_ok());
    inventory.give_back("a", &[DRIVE]);
    let released = inventory.release(DRIVE).unwrap();
    assert_eq!((released.functions, &*released.td), (vec![DRIVE], "a"));
    assert_eq!(inventory.release(DRIVE), Err(ReleaseError::Unused(DRIVE)));
    assert!(claim(&mut inventory, &model, "b", &[DRIVE]).is_ok());
}

#[test]
fn a_claim_that_is_taken_back_leaves_what_was_before() {
    let model = four_sockets();
    let mut inventory = model.inventory();
    claim(&mut inventory, &model, "a", &[DRIVE]).unwrap();
    inventory.unclaim("b", &[DRIVE]);
    inventory.give_back("b", &[DRIVE]);
    assert_eq!(inventory.owner(DRIVE), Some(&Owner::Td("a".into())));
    inventory.unclaim("a", &[DRIVE]);
    assert_eq!(inventory.owner(DRIVE), Some(&Owner::Nobody));
    claim(&mut inventory, &model, "a", &[DRIVE]).unwrap();
    inventory.give_back("a", &[DRIVE]);
    claim(&mut inventory, &model, "a", &[DRIVE]).unwrap();
    inventory.unclaim("a", &[DRIVE]);
    assert_eq!(inventory.owner(DRIVE), Some(&Owner::Former("a".into())));
}

#[test]
fn functions_of_a_group_go_together_or_not_at_all() {
    let model = four_sockets();
    let mut inventory = model.inventory();
    let [first, second] = SWITCHED;
    let refused = claim(&mut inventory, &model, "a", &[DRIVE, first]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "PCI function 0000:43:00.0 can't be isolated from 0000:44:00.0, so that one TD gets all of them or none; name \
         it as well"
    );
    assert_eq!(inventory.owner(DRIVE), Some(&Owner::Nobody), "all or none");
    claim(&mut inventory, &model, "a", &[second, DRIVE, first]).unwrap();
    inventory.give_back("a", &[second, first]);
    let released = inventory.release(second).unwrap();
    assert_eq!(released.functions, SWITCHED);
    assert_eq!(inventory.owner(first), Some(&Owner::Nobody));
}

#[test]
fn names_that_are_not_one_function_are_refused() {
    let model = four_sockets();
    let mut inventory = model.inventory();
    let mut said = |all: &[&str]| {
        let wanted: Vec<_> = all.iter().map(|text| text.parse().unwrap()).collect();
        let refused = inventory.claim(&model, "a", &wanted, confined);
        refused.unwrap_err().to_string()
    };
    assert_eq!(
        said(&["0000:99:00.0"]),
        "there is no PCI function 0000:99:00.0; \"pci list\" lists them"
    );
    assert_eq!(
        said(&["1234:5678"]),
        "no PCI function is a 1234:5678; \"pci list\" lists them"
    );
    assert_eq!(
        said(&["15b3:101d"]),
        "15b3:101d is not one PCI function but 8: 0000:17:00.0, 0000:17:00.1, 0000:97:00.0, 0000:97:00.1, \
         0001:17:00.0, 0001:17:00.1, 0001:97:00.0 and 0001:97:00.1; name one by its address"
    );
    assert_eq!(
        said(&["33:0.0", "0000:33:00.0"]),
        "PCI function 0000:33:00.0 is named twice"
    );
    assert_eq!(
        said(&["8086:28c0"]).split(": ").next(),
        Some("PCI function 0000:80:00.5 can't be given to a TD"),
        "vendor and device name VMD"
    );
}

#[test]
fn what_no_td_can_have_is_refused_with_the_reason() {
    let model = four_sockets();
    let mut inventory = model.inventory();
    let mut said = |place| {
        claim(&mut inventory, &model, "a", &[place])
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        said(at(0, 0, 0x1F, 5)),
        "PCI function 0000:00:1f.5 can't be given to a TD: it offers no reset that the host can use; it can't be \
         isolated from 0000:00:1f.0, which the host keeps: it is a bridge of the chipset"
    );
    assert_eq!(
        said(at(0, 0x16, 2, 0)).split(": ").nth(1),
        Some("the host keeps it")
    );
    assert!(said(at(0, 0x80, 0, 5)).contains("VMD"));
    let open = |at: Address, ids: &[u16]| {
        assert_eq!(ids, [at.requester()]);
        vec!["nothing confines its DMA: there is no unit".to_string()]
    };
    let refused = inventory.claim(&model, "a", &places(&[DRIVE]), open);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "PCI function 0000:33:00.0 can't be given to a TD: nothing confines its DMA: there is no unit"
    );
    model.with(DRIVE, |config| config.behaviour.vanishes_after = Some(0));
    let refused = claim(&mut inventory, &model, "a", &[DRIVE]).unwrap_err();
    assert!(refused.to_string().ends_with("it does not answer"));
}

#[test]
fn a_broken_register_is_found_before_a_td_gets_the_function() {
    let model = Model::default();
    model.add(at(0, 0, 1, 0), root_port(1, 1));
    let place = at(0, 1, 0, 0);
    model.add(place, drive(1 << 32).writable_at(0x10, 0x00F0_0000));
    let found = io::scan::segment(&model, 0, 0..=255);
    for function in &found {
        function.stop(&model);
    }
    let mut inventory = Inventory::new(&model, found, |_| false);
    let refused = claim(&mut inventory, &model, "a", &[place]).unwrap_err();
    assert!(
        refused.to_string().contains("base address register 0"),
        "{refused}"
    );
}

#[test]
fn a_function_that_does_not_survive_its_reset_is_out_of_use() {
    let dead = Behaviour {
        never_returns: true,
        ..Behaviour::default()
    };
    let model = Model::default();
    model.add(at(0, 0, 1, 0), root_port(1, 1));
    let place = at(0, 1, 0, 0);
    model.add(place, drive(1 << 32).behaving(dead));
    let mut inventory = model.inventory();
    claim(&mut inventory, &model, "a", &[place]).unwrap();
    assert!(model.reset(&mut inventory, place).is_err());
    inventory.unclaim("a", &[place]);
    inventory.give_back("a", &[place]);
    let why = "PCI function 0000:01:00.0 did not answer within 60 s of its reset";
    assert_eq!(inventory.owner(place), Some(&Owner::Retired(why.into())));
    let refused = claim(&mut inventory, &model, "a", &[place]).unwrap_err();
    let said = format!("it is out of use until the machine is switched off: {why}");
    assert!(refused.to_string().contains(&said), "{refused}");
    let refused = inventory.release(place).unwrap_err();
    assert!(refused.to_string().ends_with(why), "{refused}");
}

#[test]
fn registers_of_a_function_that_is_out_of_use_are_not_written() {
    let model = Model::default();
    model.add(at(0, 0, 1, 0), root_port(1, 1));
    let place = at(0, 1, 0, 0);
    let untouchable = Behaviour {
        untouchable: true,
        ..Behaviour::default()
    };
    model.add(place, drive(1 << 32).behaving(untouchable));
    let found = io::scan::segment(&model, 0, 0..=255);
    let mut inventory = Inventory::new(&model, found, |_| false);
    inventory.retire(place, "it was not given back");
    assert!(claim(&mut inventory, &model, "a", &[place]).is_err());
    inventory.measure(&model, place);
    assert_eq!(*model.offended.borrow(), []);
}

#[test]
fn a_reset_under_way_is_left_alone() {
    let plain = || Config::new(0x10DE, 0x1EB8, 0x03_0200).express(0, false);
    let model = Model::default();
    model.add(at(0, 0, 1, 0), root_port(1, 1));
    let both = [at(0, 1, 0, 0), at(0, 1, 0, 1)];
    model.add(both[0], plain().multi_function());
    model.add(both[1], plain());
    let mut inventory = model.inventory();
    let mut resets = inventory.begin_resets(&model, &model, &both).unwrap();
    assert_eq!(resets.len(), 1, "their bus is reset once");
    assert!(both.iter().all(|at| inventory.is_away(*at)));
    let reads = || both.map(|at| model.with(at, |config| config.reads));
    let before = reads();
    assert_eq!(inventory.refusals(&model, both[0]), []);
    assert_eq!(reads(), before);
    assert_eq!(
        inventory
            .begin_resets(&model, &model, &both[1..])
            .unwrap_err(),
        io::ResetError::UnderWay(both[0])
    );
    let outcome = resets[0].finish(&model, &model);
    inventory.end_reset(&resets[0], outcome);
    assert_eq!(outcome, Ok(io::Reset::Bus(at(0, 0, 1, 0))));
    assert!(both.iter().all(|at| !inventory.is_away(*at)));
    assert_eq!(
        both.map(|at| model.with(at, |config| config.resets)),
        [1, 1]
    );
}

/// One thing that happens to functions.
#[derive(Clone, Debug)]
enum Action {
    Claim(usize, Vec<usize>),
    Unclaim(usize),
    GiveBack(usize),
    Release(usize),
    Retire(usize),
    Reset(usize),
}

const TDS: [&str; 3] = ["a", "b", "c"];

/// Any functions of the first `count`; often whole runs, as groups are.
fn some(count: usize) -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        prop::collection::vec(0..count, 0..4),
        (0..count, 1usize..4)
            .prop_map(move |(start, length)| { (start..(start + length).min(count)).collect() }),
    ]
}

fn action(count: usize) -> impl Strategy<Value = Action> {
    let td = || 0..TDS.len();
    prop_oneof![
        6 => (td(), some(count)).prop_map(|(td, all)| Action::Claim(td, all)),
        2 => td().prop_map(Action::Unclaim),
        4 => td().prop_map(Action::GiveBack),
        3 => (0..count).prop_map(Action::Release),
        1 => (0..count).prop_map(Action::Retire),
        1 => (0..count).prop_map(Action::Reset),
    ]
}

/// Functions that TDs can have: single ones, groups of two, of two behind a switch, and one that dies at its reset.
fn machine() -> (Model, Vec<Address>) {
    let model = Model::default();
    let mut all = Vec::new();
    for (device, bus) in [(1, 0x10), (2, 0x20), (3, 0x30)] {
        model.add(at(0, 0, device, 0), root_port(bus, bus));
        for function in 0..device {
            let place = at(0, bus, 0, function);
            let base = u64::from(bus) << 32 | u64::from(function) << 20;
            model.add(place, drive(base).multi_function());
            all.push(place);
        }
    }
    model.add(at(0, 0, 4, 0), root_port(0x40, 0x45));
    model.add(
        at(0, 0x40, 0, 0),
        Config::bridge(0x8608, 0x41, 0x45).express(5, false),
    );
    for (device, bus) in [(1, 0x42), (2, 0x43)] {
        let port = Config::bridge(0x8608, bus, bus).express(6, false);
        model.add(at(0, 0x41, device, 0), port);
        model.add(at(0, bus, 0, 0), drive(u64::from(bus) << 32));
        all.push(at(0, bus, 0, 0));
    }
    model.add(at(0, 0, 5, 0), root_port(0x50, 0x50));
    let dead = Behaviour {
        never_returns: true,
        ..Behaviour::default()
    };
    model.add(at(0, 0x50, 0, 0), drive(0x50 << 32).behaving(dead));
    all.push(at(0, 0x50, 0, 0));
    (model, all)
}

/// The functions that [`machine`] has for TDs.
const COUNT: usize = 9;

/// A simple book of the functions.
#[derive(Default)]
struct Book {
    /// The TDs that have functions.
    holders: BTreeMap<Address, usize>,
    /// The TDs whose data functions may hold.
    labels: BTreeMap<Address, usize>,
    retired: BTreeSet<Address>,
}

impl Book {
    fn may_have(&self, td: usize, all: &[Address], inventory: &Inventory) -> bool {
        let is_free = |at: &Address| {
            !self.holders.contains_key(at)
                && !self.retired.contains(at)
                && self.labels.get(at).is_none_or(|label| *label == td)
        };
        let chosen: BTreeSet<_> = all.iter().copied().collect();
        let groups = chosen.iter().map(|at| inventory.group(*at).unwrap());
        let whole: BTreeSet<_> = groups
            .flat_map(|group| endpoints(inventory, group))
            .collect();
        chosen.len() == all.len() && chosen == whole && all.iter().all(is_free)
    }
}

fn endpoints(inventory: &Inventory, group: usize) -> Vec<Address> {
    let members = inventory.members(group);
    let endpoints = members.filter(|member| member.header == Header::Endpoint);
    endpoints.map(|member| member.address).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 300 } else { 5000 }))]

    #[test]
    fn no_function_has_two_owners_no_group_splits_and_labels_stay(
        actions in prop::collection::vec(action(COUNT), 1..40),
    ) {
        let (model, all) = machine();
        prop_assert_eq!(all.len(), COUNT);
        let mut inventory = model.inventory();
        let mut book = Book::default();
        for action in actions {
            let some = |chosen: &[usize]| -> Vec<_> { chosen.iter().map(|index| all[*index]).collect() };
            match &action {
                Action::Claim(td, chosen) => {
                    let chosen = some(chosen);
                    let may = book.may_have(*td, &chosen, &inventory);
                    let claimed = claim(&mut inventory, &model, TDS[*td], &chosen);
                    prop_assert_eq!(claimed.is_ok(), may, "{:?}: {:?}", action, claimed);
                    if claimed.is_ok() {
                        book.holders.extend(chosen.into_iter().map(|at| (at, *td)));
                    }
                }
                Action::Unclaim(td) => {
inventory.unclaim(TDS[*td], &all);
                    book.holders.retain(|_, holder| holder != td);
                }
                Action::GiveBack(td) => {
                    inventory.give_back(TDS[*td], &all);
                    let given: Vec<_> = book.holders.iter().filter(|pair| pair.1 == td).map(|pair| *pair.0).collect();
                    book.labels.extend(given.iter().map(|at| (*at, *td)));
                    book.holders.retain(|_, holder| holder != td);
                }
                Action::Release(index) => {
                    let at = all[*index];
                    let group = endpoints(&inventory, inventory.group(at).unwrap());
                    let may = group.iter().all(|member| {
                        book.labels.contains_key(member)
                            && !book.holders.contains_key(member)
                            && !book.retired.contains(member)
                    });
                    let released = inventory.release(at);
                    prop_assert_eq!(released.is_ok(), may, "{:?}: {:?}", action, released);
                    if may {
                        book.labels.retain(|member, _| !group.contains(member));
                    }
                }
                Action::Retire(index) => {
                    inventory.retire(all[*index], "it was not given back");
                    book.holders.remove(&all[*index]);
                    book.retired.insert(all[*index]);
                }
                Action::Reset(index) => {
                    let at = all[*index];
                    if model.reset(&mut inventory, at).is_err() {
                        book.holders.remove(&at);
                        book.retired.insert(at);
                    }
                }
            }
            for &at in &all {
                let owner = inventory.owner(at).unwrap();
                let expected = match (book.holders.get(&at), book.labels.get(&at)) {
                    _ if book.retired.contains(&at) => matches!(owner, Owner::Retired(_)),
                    (Some(td), _) => *owner == Owner::Td(TDS[*td].into()),
                    (None, Some(td)) => *owner == Owner::Former(TDS[*td].into()),
                    (None, None) => *owner == Owner::Nobody,
                };
                prop_assert!(expected, "{:?}: {} is {:?}", action, at, owner);
                let group = endpoints(&inventory, inventory.group(at).unwrap());
                let owners: BTreeSet<_> = group.iter().filter_map(|member| book.holders.get(member)).collect();
                prop_assert!(owners.len() <= 1, "{:?}: {:?} is split", action, group);
            }
            let hosts = inventory.functions().iter().filter(|function| function.header != Header::Endpoint);
            prop_assert!(hosts.clone().all(|function| matches!(inventory.owner(function.address), Some(Owner::Host(_)))));
        }
    }
}
