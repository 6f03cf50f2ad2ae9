//! A guest that does anything.

use proptest::prelude::*;

use super::*;

/// Something that a guest does.
#[derive(Clone, Debug)]
enum Action {
    Select(u16),
    Read(u8),
    Out(u16, u8, u32),
    Transfer {
        at: u64,
        control: u32,
        bytes: u32,
        to: u64,
    },
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let key = prop_oneof![0u16..0x30, any::<u16>()];
    let gpa = prop_oneof![0u64..5 * PAGE, (u64::MAX - PAGE)..=u64::MAX, any::<u64>()];
    let bytes = prop_oneof![0u32..600, 0u32..20_000, any::<u32>()];
    let action = prop_oneof![
        key.clone().prop_map(Action::Select),
        any::<u8>().prop_map(Action::Read),
        (
            0x510u16..0x51C,
            prop::sample::select(vec![1u8, 2, 4]),
            any::<u32>()
        )
            .prop_map(|(port, size, value)| Action::Out(port, size, value)),
        (gpa.clone(), key, 0u32..32, bytes, gpa).prop_map(|(at, key, low, bytes, to)| {
            Action::Transfer {
                at,
                control: u32::from(key) << 16 | low,
                bytes,
                to,
            }
        }),
    ];
    prop::collection::vec(action, 1..40)
}

/// The contents of the items, read by port beyond their ends. They never change here, because the bus does not.
static CONTENTS: spin::LazyLock<Vec<Vec<u8>>> = spin::LazyLock::new(|| {
    let devices = devices();
    (0..0x40).map(|key| item(&devices, key, 8192)).collect()
});

/// A model of the device.
struct Model {
    key: u16,
    offset: u64,
}

impl Model {
    fn next(&mut self, bytes: usize) -> Vec<u8> {
        let content = CONTENTS
            .get(usize::from(self.key))
            .map_or(&[][..], |content| content);
        let start = self.offset;
        self.offset = start.saturating_add(bytes as u64);
        let byte = |at: u64| {
            content
                .get(usize::try_from(at).unwrap_or(usize::MAX))
                .copied()
        };
        (0..bytes as u64)
            .map(|at| byte(start.saturating_add(at)).unwrap_or(0))
            .collect()
    }
}

proptest! {
    #[test]
    fn a_guest_reads_what_the_items_hold_and_touches_only_what_it_shares(actions in actions()) {
        let mut model = Model { key: 0xFFFF, offset: 0 };
        let devices = devices();
        for action in actions {
            match action {
                Action::Select(key) => {
                    output(&devices, 0x510, 2, key.into());
                    (model.key, model.offset) = (key, 0);
                }
                Action::Read(times) => {
                    for expected in model.next(times.into()) {
                        prop_assert_eq!(devices.input(0x511, 1, Now::default), Some(expected.into()));
                    }
                }
                Action::Out(port, size, value) => {
                    if (port, size) == (0x510, 2) {
                        (model.key, model.offset) = (value as u16, 0);
                    }
                    output(&devices, port, size, value.into());
                }
                Action::Transfer { at, control, bytes, to } => {
                    let memory = Memory::of([1, 3]);
                    let in_page = |gpa: u64, bytes: u64| {
                        gpa.checked_add(bytes).is_some_and(|end| {
                            [1, 3].iter().any(|page| page * PAGE <= gpa && end <= (page + 1) * PAGE)
                        })
                    };
                    let is_described = in_page(at, 16);
                    if is_described {
                        memory.describe(at, control, bytes, to);
                    }
                    memory.touched.set(0);
                    let before = memory.pages.borrow().clone();
                    let outcome = devices.transfer(at, &memory);
                    prop_assert!(memory.touched.get() <= 16 + 4 + (64 << 10));
                    if !is_described {
                        prop_assert_eq!(outcome, Outcome::Refused);
                        prop_assert_eq!(&*memory.pages.borrow(), &before);
                        continue;
                    }
                    if control & 8 != 0 {
                        (model.key, model.offset) = ((control >> 16) as u16, 0);
                    }
                    if control & 2 != 0 {
                        let overlaps = to < at + 16 && at < to.saturating_add(bytes.into());
                        if in_page(to, bytes.into()) || bytes == 0 {
                            prop_assert_eq!(outcome, Outcome::Done);
                            let expected = model.next(bytes as usize);
                            if !overlaps {
                                prop_assert_eq!(memory.get(to, bytes as usize), expected);
                            }
                        } else {
                            prop_assert_eq!(outcome, Outcome::Refused);
                            // How far it got is not defined.
                            output(&devices, 0x510, 2, 0);
                            (model.key, model.offset) = (0, 0);
                        }
                    } else if control & 16 != 0 {
                        prop_assert_eq!(outcome, Outcome::Refused);
                    } else {
                        prop_assert_eq!(outcome, Outcome::Done);
                        if control & 4 != 0 {
                            model.offset = model.offset.saturating_add(bytes.into());
                        }
                    }
                    let result = memory.get(at, 4);
                    prop_assert_eq!(result, u32::from(outcome == Outcome::Refused).to_be_bytes());
                }
            }
        }
    }
}
