//! A TD whose devices reach its shared memory: conversions that the devices' view does not follow.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use mm::shared::{Mirror, MirrorError, Page};
use seam::abi::{PAGE_2M, PAGE_4K};
use seam::address::Gpa;
use vcpu::{End, Stop};

use crate::kit::{Act, SHARED, Script, Shape, call};
use crate::{INVALID, MAP_GPA, one, with_shape};

/// The devices' view: bytes mapped, and what the next changes answer.
#[derive(Debug, Default)]
struct Devices {
    bytes: AtomicU64,
    refusal: Mutex<Option<MirrorError>>,
}

impl Devices {
    fn refuse(&self, error: Option<MirrorError>) {
        *self.refusal.lock().unwrap() = error;
    }

    fn answer(&self) -> Result<(), MirrorError> {
        self.refusal.lock().unwrap().map_or(Ok(()), Err)
    }
}

impl Mirror for Devices {
    fn map(&self, _: Gpa, page: Page) -> Result<(), MirrorError> {
        self.answer()?;
        self.bytes.fetch_add(page.size.bytes(), SeqCst);
        Ok(())
    }

    fn unmap(&self, range: Range<u64>) -> Result<(), MirrorError> {
        self.answer()?;
        self.bytes.fetch_sub(range.end - range.start, SeqCst);
        Ok(())
    }
}

fn shape() -> (Arc<Devices>, Shape) {
    let devices = Arc::<Devices>::default();
    let mirror = Some(devices.clone() as Arc<dyn Mirror>);
    let shape = Shape {
        mirror,
        ..Shape::default()
    };
    (devices, shape)
}

#[test]
fn devices_follow_conversions() {
    let (devices, shape) = shape();
    with_shape(&shape, |td| {
        one(td, MAP_GPA, [SHARED, PAGE_2M + PAGE_4K, 0, 0]);
        assert_eq!(devices.bytes.load(SeqCst), PAGE_2M + PAGE_4K);
        one(td, MAP_GPA, [0, PAGE_4K, 0, 0]);
        assert_eq!(devices.bytes.load(SeqCst), PAGE_2M);
    });
}

#[test]
fn without_memory_for_the_devices_tables_a_conversion_fails() {
    let (devices, shape) = shape();
    with_shape(&shape, |td| {
        let [there, back] = [[SHARED, PAGE_2M, 0, 0], [0, PAGE_4K, 0, 0]];
        devices.refuse(Some(MirrorError::NoMemory));
        assert_eq!(one(td, MAP_GPA, there).r10, INVALID);
        devices.refuse(None);
        assert_eq!(one(td, MAP_GPA, there).r10, 0);
        devices.refuse(Some(MirrorError::NoMemory));
        assert_eq!(one(td, MAP_GPA, back).r10, INVALID);
        assert!(td.vm.shared().has(td.rig, Gpa(0)), "it is shared still");
        devices.refuse(None);
        assert_eq!(one(td, MAP_GPA, back).r10, 0);
        assert_eq!(td.vm.end(), None);
    });
}

#[test]
fn a_unit_that_does_not_answer_is_the_end_of_the_td() {
    for (is_shared, bytes) in [(false, PAGE_2M), (true, PAGE_2M), (true, PAGE_4K)] {
        let (devices, shape) = shape();
        with_shape(&shape, |td| {
            if is_shared {
                one(td, MAP_GPA, [SHARED, PAGE_2M, 0, 0]);
            }
            let (out, shared) = (td.rig.out(), td.vm.shared().holding().pages);
            devices.refuse(Some(MirrorError::NoAnswer));
            let to = if is_shared { 0 } else { SHARED };
            let script = Script::new([Act::Call(call(MAP_GPA, [to, bytes, 0, 0]))]);
            assert_eq!(td.run(&td.host(), 0, &script), Stop::Ended);
            let end = Some(&End::Devices(MirrorError::NoAnswer));
            assert_eq!(td.vm.end(), end);
            let holding = td.vm.shared().holding();
            let bytes = |[small, large]: [u64; 2]| small * PAGE_4K + large * PAGE_2M;
            assert_eq!(bytes(holding.pages), bytes(shared), "no frame is freed");
            assert!(td.rig.out() >= out);
            // At the end, they are put away; without an answer, nobody knows what the devices reach.
            let kept = td.vm.shared().dissolve(td.rig);
            assert_eq!(kept, if is_shared { PAGE_2M } else { 0 });
        });
    }
}
