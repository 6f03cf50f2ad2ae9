//! The emulated module's description of itself.

#![expect(
    clippy::disallowed_methods,
    reason = "the test plays the allocator and the pool"
)]

mod rig;

use rig::{Rig, Td};
use seam::{hkid::Hkid, module::Info};

#[test]
fn a_module_describes_itself_without_a_single_refused_call() {
    let rig = Rig::new("");
    rig.bring_up();
    let info = Info::read(&rig.on(0)).unwrap();
    assert_eq!((info.major_version, info.minor_version), (1, 5));
    assert_eq!(info.vendor_id, 0x8086);
    assert_eq!(info.pamt_4k_entry_size, 16);
    assert_eq!(info.max_tdmrs, 64);
    assert_eq!(info.max_vcpus_per_td, Some(576));
    assert!(!info.cmrs.is_empty());
    assert!(info.cmrs.iter().all(|c| c.size != 0));
    assert_eq!(rig.illegal(), 0);
}

#[test]
fn it_says_the_same_while_tds_live() {
    let rig = Rig::ready("");
    let before = Info::read(&rig.on(0)).unwrap();
    let td = Td::build(&rig, Hkid::mint(33));
    assert_eq!(Info::read(&rig.on(3)).unwrap(), before);
    td.terminate().surrender();
}
