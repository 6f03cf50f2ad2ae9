//! Random lives of a TD's memory, checked against a model, with both ways to end.

use std::collections::BTreeMap;
use std::ops::Range;

use mm::private::{Clearing, Error, Holding, NoneRuns, Outcome};
use proptest::prelude::*;
use seam::abi::{PAGE_1G, PAGE_2M, PAGE_4K, PageSize, Status};
use seam::address::Gpa;

use crate::build::end;
use crate::kit::{Host, Td};
use crate::reclaim::reclaim;

/// Blocks of 2 MiB that the guest may have: some next to a GiB's edge, some far away.
const BLOCKS: [u64; 6] = [0, 1, 510, 511, 512, 1500];

#[derive(Clone, Debug)]
enum Action {
    Map4k(usize, u64),
    Map2m(usize),
    Accept4k(usize, u64),
    Accept2m(usize),
    Remove(usize, u64, u64),
    Demote(usize),
    Promote(usize),
    PromoteAll,
}

fn action() -> impl Strategy<Value = Action> {
    let block = 0..BLOCKS.len();
    // Few pages, so that operations meet.
    let page = prop_oneof![Just(0), Just(511), 0..4u64, 100..104u64];
    let pages = prop_oneof![Just(1), Just(512), Just(1024), 1..8u64];
    prop_oneof![
        3 => (block.clone(), page.clone()).prop_map(|(b, p)| Action::Map4k(b, p)),
        4 => block.clone().prop_map(Action::Map2m),
        2 => (block.clone(), page.clone()).prop_map(|(b, p)| Action::Accept4k(b, p)),
        3 => block.clone().prop_map(Action::Accept2m),
        3 => (block.clone(), page, pages).prop_map(|(b, p, n)| Action::Remove(b, p, n)),
        3 => block.clone().prop_map(Action::Demote),
        2 => block.prop_map(Action::Promote),
        1 => Just(Action::PromoteAll),
    ]
}

/// The content of a block. The booleans say whether the guest has accepted a page.
#[derive(Clone, Debug, PartialEq)]
enum Block {
    Large(bool),
    Small(BTreeMap<u64, bool>),
}

#[derive(Default)]
struct Model(BTreeMap<u64, Block>);

impl Model {
    fn holding(&self) -> [u64; 3] {
        let mut pages = [0; 3];
        for block in self.0.values() {
            match block {
                Block::Large(_) => pages[1] += 1,
                Block::Small(small) => pages[0] += small.len() as u64,
            }
        }
        pages
    }

    fn map_4k(&mut self, block: u64, page: u64) -> Result<(), Error> {
        let small = || Block::Small(BTreeMap::new());
        match self.0.entry(block).or_insert_with(small) {
            Block::Small(small) if !small.contains_key(&page) => {
                small.insert(page, false);
                Ok(())
            }
            _ => Err(Error::Occupied),
        }
    }

    fn map_2m(&mut self, block: u64) -> Result<(), Error> {
        if self.0.contains_key(&block) {
            return Err(Error::Occupied);
        }
        self.0.insert(block, Block::Large(false));
        Ok(())
    }

    fn demote(&mut self, block: u64) -> Result<(), Error> {
        match self.0.get_mut(&block) {
            Some(entry @ Block::Large(_)) => {
                let Block::Large(accepted) = *entry else {
                    unreachable!()
                };
                *entry = Block::Small((0..512).map(|page| (page, accepted)).collect());
                Ok(())
            }
            _ => Err(Error::NotMapped),
        }
    }

    fn remove(&mut self, pages: &Range<u64>) {
        let blocks: Vec<u64> = self.0.keys().copied().collect();
        for block in blocks {
            let own = block * 512..(block + 1) * 512;
            let (start, end) = (own.start.max(pages.start), own.end.min(pages.end));
            if start >= end {
                continue;
            }
            if (start, end) == (own.start, own.end) {
                self.0.remove(&block);
                continue;
            }
            _ = self.demote(block);
            if let Some(Block::Small(small)) = self.0.get_mut(&block) {
                small.retain(|page, _| !(start..end).contains(&(own.start + page)));
                if small.is_empty() {
                    self.0.remove(&block);
                }
            }
        }
    }

    /// Returns whether all small pages of a block are mapped and accepted. Only the module knows whether they are one
    /// frame.
    fn may_be_whole(&self, block: u64) -> bool {
        matches!(self.0.get(&block), Some(Block::Small(small))
            if small.len() == 512 && small.values().all(|accepted| *accepted))
    }
}

fn act(td: &Td<'_>, model: &mut Model, action: &Action) {
    let host = td.host;
    let map = &td.map;
    host.with(0, |cpu| match *action {
        Action::Map4k(block, page) => {
            let block = BLOCKS[block];
            let gpa = Gpa(block * PAGE_2M + page * PAGE_4K);
            let mapped = map.map(cpu, gpa, PageSize::Size4K);
            assert_eq!(mapped, model.map_4k(block, page));
        }
        Action::Map2m(block) => {
            let block = BLOCKS[block];
            let mapped = map.map(cpu, Gpa(block * PAGE_2M), PageSize::Size2M);
            assert_eq!(mapped, model.map_2m(block));
        }
        Action::Accept4k(block, page) => {
            let block = BLOCKS[block];
            if let Some(Block::Small(small)) = model.0.get_mut(&block)
                && let Some(accepted) = small.get_mut(&page)
            {
                let status = td.accept(block * PAGE_2M + page * PAGE_4K, PageSize::Size4K);
                let code = status.unwrap().code();
                let again = if *accepted {
                    Status::PAGE_ALREADY_ACCEPTED
                } else {
                    Status::SUCCESS
                };
                assert_eq!(code, again);
                *accepted = true;
            }
        }
        Action::Accept2m(block) => {
            let block = BLOCKS[block];
            match model.0.get_mut(&block) {
                Some(Block::Large(accepted)) => {
                    let status = td.accept(block * PAGE_2M, PageSize::Size2M);
                    let code = status.unwrap().code();
                    let again = if *accepted {
                        Status::PAGE_ALREADY_ACCEPTED
                    } else {
                        Status::SUCCESS
                    };
                    assert_eq!(code, again);
                    *accepted = true;
                }
                Some(Block::Small(small)) if small.len() == 512 => {
                    for (page, accepted) in small {
                        if !*accepted {
                            let gpa = block * PAGE_2M + page * PAGE_4K;
                            let status = td.accept(gpa, PageSize::Size4K);
                            assert_eq!(status, Some(Status::SUCCESS));
                            *accepted = true;
                        }
                    }
                }
                _ => {}
            }
        }
        Action::Remove(block, page, pages) => {
            let first = BLOCKS[block] * 512 + page;
            let range = first * PAGE_4K..(first + pages) * PAGE_4K;
            let before = model.holding();
            let taken = map.remove(cpu, range, &NoneRuns);
            model.remove(&(first..first + pages));
            let after = model.holding();
            let bytes = |[small, large, _]: [u64; 3]| small + 512 * large;
            match taken {
                Ok(Outcome::Removed(taken)) => {
                    assert_eq!(bytes(taken.pages), bytes(before) - bytes(after));
                }
                other => panic!("{other:?}"),
            }
        }
        Action::Demote(block) => {
            let block = BLOCKS[block];
            let demoted = map.demote(cpu, Gpa(block * PAGE_2M), PageSize::Size2M, &NoneRuns);
            assert_eq!(demoted, model.demote(block));
        }
        Action::Promote(block) => {
            let block = BLOCKS[block];
            let promoted = map.promote(cpu, Gpa(block * PAGE_2M), PageSize::Size2M, &NoneRuns);
            match promoted {
                Ok(()) => {
                    assert!(model.may_be_whole(block));
                    model.0.insert(block, Block::Large(true));
                }
                Err(Error::NotWhole) => {
                    assert!(matches!(model.0.get(&block), Some(Block::Small(_))));
                }
                Err(error) => {
                    assert_eq!(error, Error::NotMapped);
                    assert!(!matches!(model.0.get(&block), Some(Block::Small(_))));
                }
            }
        }
        Action::PromoteAll => {
            let [_, joined, whole] = map.promote_all(cpu, 0..4 * PAGE_1G, &NoneRuns).unwrap();
            assert_eq!(whole, 0);
            let mut left = joined;
            for block in BLOCKS {
                // Of the blocks that may be whole, it joined those that a split had made. On the others, accepting 2
                // MiB fails.
                if model.may_be_whole(block) && is_large(td, block) {
                    model.0.insert(block, Block::Large(true));
                    left -= 1;
                }
            }
            assert_eq!(left, 0);
        }
    });
    let holding = Holding {
        pages: model.holding(),
        ..td.map.holding()
    };
    assert_eq!(td.map.holding(), holding);
}

/// Returns whether the module maps an accepted block by one page.
fn is_large(td: &Td<'_>, block: u64) -> bool {
    let status = td.accept(block * PAGE_2M, PageSize::Size2M);
    status.is_some_and(|status| status.code() == Status::PAGE_ALREADY_ACCEPTED)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// After any sequence of operations, the map holds what the model holds, the module agrees, and all memory comes
    /// back whichever way the TD ends.
    #[test]
    fn memory_is_what_the_model_says_and_all_of_it_comes_back(
        actions in prop::collection::vec(action(), 1..40),
        terminates in any::<bool>(),
    ) {
        let host = Host::new("patterns");
        let td = Td::runnable(&host, 33, 1);
        let mut model = Model::default();
        for (number, action) in actions.iter().enumerate() {
            act(&td, &mut model, action);
            if number % 8 == 7 {
                host.audit();
            }
        }
        host.audit();
        if terminates {
            td.release();
            let reclaimed = reclaim(td, Clearing::Clear);
            prop_assert_eq!(reclaimed.pages, model.holding());
            prop_assert!(reclaimed.cleared >= reclaimed.bytes());
            host.assert_spotless();
        } else {
            end(td);
        }
    }
}
