//! Configuration spaces of random content: enumeration ends, and what it says fits together.

mod model;

use io::{Header, Space};
use model::{Behaviour, Config, Model, at};
use proptest::prelude::*;

/// A function with random registers, most of which look like a device's.
fn function() -> impl Strategy<Value = Config> {
    let words = prop::collection::vec((0u16..1024, any::<u32>()), 0..40);
    let masks = prop::collection::vec((4u16..10, any::<u32>()), 0..4);
    let header = prop_oneof![4 => Just(0u32), 4 => Just(1), 1 => 0u32..256];
    let kind = prop_oneof![
        Just(0u8),
        Just(4),
        Just(5),
        Just(6),
        Just(7),
        Just(8),
        Just(9),
        0u8..16
    ];
    let vanishes = prop::option::weighted(0.2, 0u32..200);
    let looks = (header, kind, any::<bool>(), any::<u16>(), vanishes);
    (any::<u32>(), words, masks, looks).prop_map(|(buses, words, masks, looks)| {
        let (header, kind, is_express, services, vanishes_after) = looks;
        let mut config = Config::new(0x8086, 0x1234, 0x01_0802);
        if is_express {
            config = config
                .express(kind, services & 1 != 0)
                .access_control(services);
            let mut words = [0; 15];
            words[1] = services.into();
            let sriov = config.extended(0x10, &words);
            config.set(sriov + 0x10, u32::from(services) & 0x1F);
            config.set(sriov + 0x14, buses);
        }
        config.set(0xC, header << 16);
        config.set(0x18, buses & 0x1F1F_1F1F);
        for (word, value) in words {
            config.set(word * 4, value);
        }
        for (word, mask) in masks {
            config = config.writable_at(word * 4, mask);
        }
        config.behaving(Behaviour {
            vanishes_after,
            reset_us: 1_000_000,
            ..Behaviour::default()
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 150 } else { 5000 }))]

    #[test]
    fn any_machine_is_enumerated(
        functions in prop::collection::btree_map((0u16..2, 0u8..32, 0u8..4, 0u8..3), function(), 0..25),
    ) {
        let model = Model::default();
        for ((segment, bus, device, number), config) in functions {
            model.add(at(segment, bus, device, number), config);
        }
        let mut inventory = model.inventory();
        let all = inventory.functions().to_vec();
        prop_assert!(all.windows(2).all(|pair| pair[0].address < pair[1].address));
        for function in &all {
            let place = function.address;
            let group = inventory.group(place).expect("a group");
            prop_assert!(inventory.members(group).any(|member| member.address == place));
            prop_assert_eq!(inventory.requesters(place)[0], place.requester());
            // A bridge to the bus is on a lower one.
            if let Some(bridge) = inventory.bridge(place) {
                prop_assert!(bridge.address.bus < place.bus);
                prop_assert!(matches!(bridge.header, Header::Bridge(_)));
            }
            let sizes = function.bars.iter().filter_map(|bar| bar.size);
            prop_assert!(sizes.clone().all(u64::is_power_of_two));
            // A reset of anything ends, too.
            let _ = model.reset(&mut inventory, place);
            let _ = function.health(&model);
            let _ = function.trouble(&model);
            function.unquiet(&model, function.quiet(&model));
            let _ = inventory.refusals(&model, place);
            let command = model.read16(place, 4);
            prop_assert!(command == u16::MAX || command & 4 == 0, "no master is left");
        }
        prop_assert_eq!(model.decoded_writes.get(), 0);
    }

    #[test]
    fn addresses_survive_being_written(id in any::<u16>(), segment in any::<u16>()) {
        let place = io::Address::of_requester(segment, id);
        prop_assert_eq!(place.to_string().parse(), Ok(place));
        prop_assert_eq!(place.requester(), id);
    }
}
