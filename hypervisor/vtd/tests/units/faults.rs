//! Faults: events, books, floods.

use stub_vtd::UnitShape;
use vtd::{
    Event, Function, Iommu,
    books::{FLOOD, TOLD},
    unit::Request,
};

use super::{at, nothing_wrong, start};

/// Reads the fault records until there are none. Returns what is told.
fn served(iommu: &Iommu<stub_vtd::Machine>) -> Vec<Event> {
    let mut events = Vec::new();
    iommu.serve(&mut |event| events.push(*event));
    events
}

fn told(events: &[Event]) -> Vec<(Function, Request)> {
    let faults = events.iter().filter_map(|event| match event {
        Event::Fault(fault) => Some((fault.function, fault.request)),
        Event::Muted(_) => None,
    });
    faults.collect()
}

#[test]
fn each_blocked_page_is_told_once_with_function_and_address() {
    let (machine, iommu) = start(&[UnitShape::new(0xFED9_0000)]);
    let (one, other) = (at(1, 0, 0), at(2, 3, 4));
    for _ in 0..2 {
        let _ = machine.dma(one, 0x1234, true);
        let _ = machine.dma(one, 0x5678, false);
        let _ = machine.dma(other, 0x1000, true);
        let told = told(&served(&iommu));
        if iommu.with_books(|books| books.entries()[0].accesses) == 2 {
            assert_eq!(
                told,
                [
                    (one, Request::Write(0x1000)),
                    (one, Request::Read(0x5000)),
                    (other, Request::Write(0x1000)),
                ]
            );
        } else {
            assert_eq!(told, []);
        }
    }
    iommu.with_books(|books| {
        let counts: Vec<_> = books.entries().iter().map(|e| e.accesses).collect();
        assert_eq!(counts, [4, 2]);
    });
    nothing_wrong(&machine);
}

#[test]
fn a_fault_interrupts_once_until_it_is_read() {
    let (machine, iommu) = start(&[UnitShape::like_qemu(0xFED9_0000)]);
    let device = at(1, 0, 0);
    let _ = machine.dma(device, 0x1000, true);
    assert_eq!(machine.fault_events(0).0, 0, "events are masked at first");
    iommu.signal_faults(0x1_FEE0_5000, 0xE4);
    assert_eq!(machine.fault_events(0), (1, 0x1_FEE0_5000, 0xE4));
    iommu.mask_faults();
    served(&iommu);
    let _ = machine.dma(device, 0x2000, true);
    let _ = machine.dma(device, 0x3000, true);
    assert_eq!(machine.fault_events(0).0, 1);
    iommu.unmask_faults();
    assert_eq!(machine.fault_events(0).0, 2, "it came while masked");
    // The unit has one record: the second fault was lost, and it says so.
    assert_eq!(told(&served(&iommu)), [(device, Request::Write(0x2000))]);
    assert_eq!(iommu.with_books(|books| books.lost()), 1);
    nothing_wrong(&machine);
}

#[test]
fn a_flood_is_muted_and_no_other_function_with_it() {
    for shape in [
        UnitShape::new(0xFED9_0000),
        UnitShape {
            caches_absent: true,
            ..UnitShape::like_qemu(0xFED9_0000)
        },
    ] {
        let (machine, iommu) = start(&[shape]);
        let (wild, other) = (at(1, 0, 0), at(1, 0, 1));
        let mut events = Vec::new();
        for page in 0..u64::from(FLOOD) * 3 {
            assert!(machine.dma(wild, page << 12, true).is_err());
            events.extend(served(&iommu));
        }
        assert_eq!(told(&events).len(), TOLD as usize);
        assert_eq!(events.last(), Some(&Event::Muted(wild)));
        assert_eq!(events.len(), TOLD as usize + 1);
        assert!(iommu.with_books(|books| books.entries()[0].is_muted));
        let _ = machine.dma(other, 0x1000, true);
        assert_eq!(told(&served(&iommu)), [(other, Request::Write(0x1000))]);
        // A new owner starts anew.
        let mut domain = iommu.domain().expect("a domain");
        iommu.attach(&mut domain, wild).expect("attached");
        let _ = machine.dma(wild, 0x7777_0000, true);
        let counted = iommu.with_books(|books| books.entries()[0].accesses);
        served(&iommu);
        let now =
            iommu.with_books(|books| (books.entries()[0].accesses, books.entries()[0].is_muted));
        assert_eq!(now, (counted + 1, false));
        nothing_wrong(&machine);
    }
}
