//! Dropped tokens are lost, and counted.

#![expect(
    clippy::disallowed_methods,
    reason = "the test plays the allocator and the pool"
)]

use seam::abi::PageSize;
use seam::address::Hpa;
use seam::hkid::{Hkid, lost_hkids};
use seam::page::{Page, lost_pages};

#[test]
fn a_dropped_token_is_counted_a_surrendered_one_is_not() {
    let page = |size| Page::mint(Hpa(1 << 30), size).unwrap();
    page(PageSize::Size4K).surrender();
    assert_eq!(lost_pages(), 0);
    drop(page(PageSize::Size4K));
    assert_eq!(lost_pages(), 1);
    let mut parts = page(PageSize::Size2M).split().unwrap();
    let first = parts.next().unwrap();
    drop(parts);
    assert_eq!(lost_pages(), 1 + 511);
    first.surrender();
    assert_eq!(lost_pages(), 1 + 511);

    assert_eq!(Hkid::mint(33).surrender(), 33);
    assert_eq!(lost_hkids(), 0);
    drop(Hkid::mint(34));
    assert_eq!(lost_hkids(), 1);
}
