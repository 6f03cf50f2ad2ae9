//! Any accesses at all: the function asserts that none of them does what the policy forbids.

use proptest::prelude::*;

use super::*;
use crate::pci::Interrupts;

/// One access of a guest, from three random numbers.
fn access(guest: &Guest, [what, at, value]: [u64; 3]) {
    let size = 1 << (what >> 8 & 3);
    let (_, home) = HOMES[(what >> 10 & 3) as usize];
    let gpa = match what >> 12 & 7 {
        // Registers of the header, and of the capabilities.
        0..=2 => CONFIG + at % 0x40,
        3 | 4 => CONFIG + at % 0x100,
        5 => home + at % 0x8000,
        6 => HOMES[0].1 + TABLE + at % 0x100,
        _ => at,
    };
    // Half of the accesses are aligned.
    let gpa = if what & 1 << 16 == 0 {
        gpa
    } else {
        gpa / size * size
    };
    let value = match what >> 17 & 7 {
        0 => home,
        1 => MEMORY_ON | MASTER,
        2 => 0xFEE0_0000 | value & 0x7_F000,
        3 => value & 0xFF,
        4 => RESET,
        _ => value,
    };
    let effect = match what % 8 {
        0..=2 => {
            assert_eq!(guest.load(gpa, size as u8) & !open_bus(size as u8), 0);
            Effect::None
        }
        7 if what & 0x30 == 0 => {
            // The work that was put off is done at last.
            guest.settle(false);
            guest.fake.come_back();
            // The guest sets it up again.
            guest.switch_on();
            for vector in 0..at % 8 {
                let entry = HOMES[0].1 + TABLE + vector * 16;
                guest.store(entry, 8, 0xFEE0_0000);
                guest.store(entry + 8, 8, value & 0xFF);
            }
            guest.write(0x62, 2, 1 << 15)
        }
        _ => guest.store(gpa, size as u8, value),
    };
    if effect == Effect::Windows && what & 0x30_0000 != 0 {
        guest.settle(false);
    }
    check(guest);
}

/// Checks what holds after each access.
fn check(guest: &Guest) {
    let mut state = guest.fake.state();
    assert!(!state.is_away || !state.is_master && !state.interrupts_on);
    state.accesses.clear();
    if state.memory.len() > 4096 {
        state.memory.clear();
    }
    drop(state);
    for piece in guest.devices.pci().pieces() {
        if let Some(gpa) = piece.gpa {
            let end = gpa + piece.bytes;
            assert!(RAM.iter().all(|ram| end <= ram.start || ram.end <= gpa));
            assert!(!guest.fake.state().is_away);
        }
    }
}

fn guest(is_msi: bool) -> Guest {
    let guest = match is_msi {
        true => Guest::with(Fake::with(Interrupts::Msi(8))),
        false => Guest::new(),
    };
    guest.fake.state().most = 5;
    guest.switch_on();
    guest
}

proptest! {
    #[test]
    fn no_access_does_what_the_policy_forbids(
        is_msi in any::<bool>(),
        accesses in proptest::collection::vec(any::<[u64; 3]>(), 1..300),
    ) {
        let guest = guest(is_msi);
        let before = guest.fake.state().config.clone();
        for numbers in accesses {
            access(&guest, numbers);
        }
        // Of the configuration space, nothing but the vital product data and its address has changed.
        let vital = usize::from(VITAL_DATA_AT) + 2..usize::from(VITAL_DATA_AT) + 8;
        let after = guest.fake.state().config.clone();
        for (at, (before, after)) in before.iter().zip(&after).enumerate() {
            prop_assert!(before == after || vital.contains(&at), "{at:#x}");
        }
    }
}

/// Makes accesses from a seed.
fn make(accesses: u64, seed: u64) {
    extern crate std;
    std::println!("{accesses} accesses from seed {seed:#x}");
    let guest = guest(false);
    let mut state = seed;
    let mut next = || {
        // xorshift64*, as in Vigna, "An experimental exploration of Marsaglia's xorshift generators".
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    };
    for _ in 0..accesses {
        access(&guest, [next(), next(), next()]);
    }
    let state = guest.fake.state();
    std::println!(
        "{} resets, {} directions, {} configuration and {} memory accesses, {} refused",
        state.resets,
        state.directions,
        guest.counts.config(),
        guest.counts.memory(),
        guest.counts.refused(),
    );
    assert!(state.resets > accesses / 10_000 && state.directions > accesses / 10_000);
    assert!(guest.counts.memory() > accesses / 100);
}

#[test]
fn a_million_accesses_do_nothing_that_the_policy_forbids() {
    make(1_000_000, 0x5EA_3A4C_0001);
}

/// Makes ten million accesses; `cargo test -p devices --release -- --ignored`.
#[test]
#[ignore = "takes minutes; run by name"]
fn ten_million_accesses_do_nothing_that_the_policy_forbids() {
    make(10_000_000, 0x5EA_3A4C_0010);
}
