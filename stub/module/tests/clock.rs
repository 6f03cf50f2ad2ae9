//! A TD's clock: the value of RDTSC in the TD, and the fields from which the host computes it.

mod kit;

use std::sync::{Arc, Mutex};

use kit::{BASE, Builder, PAGE, SIZE, TDVPS_PAGES};
use seam::abi::metadata::td::{TSC_MULTIPLIER, TSC_OFFSET};
use seam::abi::{Leaf, Operand, Status};
use stub_module::Machine;
use stub_module::hooks::Hooks;
use stub_module::host::{Config, Exit, Guest, HostMachine};
use stub_module::vcpu::{Field, Vcpu};

/// Denominator, numerator and crystal of counters at 2,596,170,000, 1,999,987,000 and 2,000,000,000 Hz.
const MACHINES: [[u32; 3]; 3] = [
    [100_000, 259_617, 1_000_000_000],
    [1_000_000, 1_999_987, 1_000_000_000],
    [1, 80, 25_000_000],
];
/// Bits after the binary point of TSC_MULTIPLIER.
const FRACTION: u32 = 48;
/// More than an hour.
const LONG: u64 = 10_000_000_000_000;

/// A guest that reads its counter, as this machine derives it from the VMCS.
struct Reader {
    seen: Arc<Mutex<(u64, u64)>>,
}

impl Guest for Reader {
    fn run(&mut self, machine: &HostMachine, lp: u32, vcpu: &Vcpu<'_>) {
        let now = machine.rdtsc(lp);
        let multiplier = if machine.scales_tsc() {
            vcpu.vmcs(Field::TSC_MULTIPLIER)
        } else {
            1 << FRACTION
        };
        let shown = scaled(now, multiplier).wrapping_add(vcpu.vmcs(Field::TSC_OFFSET));
        *self.seen.lock().unwrap() = (now, shown);
        Exit::EXTERNAL_INTERRUPT.leave(machine, vcpu);
    }
}

fn scaled(tsc: u64, multiplier: u64) -> u64 {
    ((u128::from(tsc) * u128::from(multiplier)) >> FRACTION) as u64
}

/// Returns pairs of the value that the host computes from the machine's counter and the value of the guest's RDTSC at
/// that moment: at the TD's start, and late.
fn told_and_shown(scales_tsc: bool, tsc_leaf: [u32; 3]) -> [(u64, u64); 2] {
    let config = Config {
        scales_tsc,
        tsc_leaf: Some(tsc_leaf),
        ..Config::default()
    };
    let built = Builder::sized(config, SIZE, Hooks::default());
    let machine = built.server.machine();
    machine.advance_tsc(LONG);
    let td = built.td(33);
    built.initialize(&td);
    let cpu = built.cpu(0);
    let tdvpr = BASE + (64 << 20);
    cpu.leaf(
        Leaf::VpCreate,
        [(Operand::RCX, tdvpr), (Operand::RDX, td.tdr)],
    )
    .unwrap();
    for page in 1..TDVPS_PAGES {
        let add = [(Operand::RCX, tdvpr + page * PAGE), (Operand::RDX, tdvpr)];
        cpu.leaf(Leaf::VpAddcx, add).unwrap();
    }
    cpu.leaf(Leaf::VpInit, [(Operand::RCX, tdvpr)]).unwrap();
    cpu.leaf(Leaf::MrFinalize, [(Operand::RCX, td.tdr)])
        .unwrap();
    let field = |field: seam::abi::metadata::Field| {
        let operands = [(Operand::RCX, td.tdr), (Operand::RDX, field.id.0)];
        cpu.leaf(Leaf::MngRd, operands).unwrap().r8
    };
    let (multiplier, offset) = (field(TSC_MULTIPLIER), field(TSC_OFFSET));
    let seen = Arc::new(Mutex::new((0, 0)));
    machine.set_guest(
        0,
        Some(Box::new(Reader {
            seen: Arc::clone(&seen),
        })),
    );
    [0, LONG].map(|ticks| {
        machine.advance_tsc(ticks);
        let exit = cpu
            .leaf(Leaf::VpEnter, [(Operand::RCX, tdvpr)])
            .unwrap_err();
        assert_eq!(exit.code(), Status::SUCCESS);
        let (now, shown) = *seen.lock().unwrap();
        (scaled(now, multiplier).wrapping_add(offset), shown)
    })
}

#[test]
fn what_the_fields_say_is_what_a_td_sees_on_any_machine() {
    for scales_tsc in [true, false] {
        for machine in MACHINES {
            for (told, shown) in told_and_shown(scales_tsc, machine) {
                assert_eq!(told, shown, "{machine:?}, scaling: {scales_tsc}");
            }
        }
    }
}

#[test]
fn a_td_counts_from_zero_at_its_own_frequency_or_at_the_machines() {
    for machine in MACHINES {
        let [denominator, numerator, crystal] = machine.map(u128::from);
        let hz = crystal * numerator / denominator;
        for (scales_tsc, own_hz) in [(true, 2_500_000_000), (false, hz)] {
            let [begin, late] = told_and_shown(scales_tsc, machine).map(|(_, shown)| shown);
            assert!(begin < 1_000_000, "{machine:?}: {begin}");
            let expected = (u128::from(LONG) * own_hz / hz) as u64;
            let passed = late - begin;
            assert!(
                passed.abs_diff(expected) < 1_000_000,
                "{machine:?}: {passed}"
            );
        }
    }
}
