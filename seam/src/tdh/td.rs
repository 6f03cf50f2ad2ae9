//! The host's tokens of a TD and a vCPU: the donated root pages, and the TD's phase.

use core::fmt;

use crate::abi::PageSize;
use crate::address::Hpa;
use crate::hkid::Hkid;
use crate::page::{Donated, Page};

/// A TD with its key: TD_HKID_ASSIGNED and TD_KEYS_CONFIGURED. It can be built, run and shrunk.
#[derive(Debug)]
pub struct Keyed {
    pub(super) hkid: Hkid,
}

/// TD_BLOCKED: the TD does not run any more, and its key's cache lines are written back package by package. No page can
/// be removed or reclaimed.
#[derive(Debug)]
pub struct Releasing {
    pub(super) hkid: Hkid,
}

/// TD_TEARDOWN: the TD has no key. One call reclaims each page.
#[derive(Debug)]
pub struct Keyless(());

impl Keyless {
    pub(super) const NEW: Self = Self(());
}

/// A phase of a TD's life. Sealed: there are only these three.
///
/// Source: TDX Module ABI 1.5, "TD life cycle state machine".
pub trait Phase: fmt::Debug + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Keyed {}
    impl Sealed for super::Releasing {}
    impl Sealed for super::Keyless {}
}

impl Phase for Keyed {}
impl Phase for Releasing {}
impl Phase for Keyless {}

/// The root page of a TD, which represents the TD. It owns the page, and the HKID while the TD has one.
#[derive(Debug)]
#[must_use = "it owns the TD's root page and its HKID"]
pub struct Tdr<P: Phase> {
    pub(super) page: Page<Donated>,
    pub(super) phase: P,
}

impl<P: Phase> Tdr<P> {
    /// Returns the address of the root page, which the module reports as the owner of the TD's pages.
    pub fn hpa(&self) -> Hpa {
        self.page.hpa()
    }
}

impl Tdr<Keyless> {
    /// Returns the root page for permanent quarantine: some pages of the TD can never be reclaimed.
    pub fn into_page(self) -> Page<Donated> {
        self.page
    }
}

impl Tdr<Keyed> {
    /// Returns the TD's HKID.
    pub const fn hkid(&self) -> u16 {
        self.phase.hkid.number()
    }

    /// Returns the root page and the HKID for permanent quarantine: the module has shut down and returns neither.
    pub fn write_off(self) -> (Page<Donated>, u16) {
        (self.page, self.phase.hkid.surrender())
    }
}

impl Tdr<Releasing> {
    /// Returns the TD's HKID, which the TD still owns.
    pub const fn hkid(&self) -> u16 {
        self.phase.hkid.number()
    }

    /// Returns the root page and the HKID for permanent quarantine; see [`Tdr::<Keyed>::write_off`].
    pub fn write_off(self) -> (Page<Donated>, u16) {
        (self.page, self.phase.hkid.surrender())
    }
}

/// The root page of a vCPU, which represents the vCPU. It owns the page.
#[derive(Debug)]
#[must_use = "it owns the vCPU's root page"]
pub struct Tdvpr {
    page: Page<Donated>,
    /// The page's address, which every entry of the vCPU needs.
    hpa: Hpa,
}

impl Tdvpr {
    pub(super) fn new(page: Page<Donated>) -> Self {
        let hpa = page.hpa();
        Self { page, hpa }
    }

    /// Returns the address of the root page.
    pub const fn hpa(&self) -> Hpa {
        self.hpa
    }

    /// Returns the root page, for reclaim. The vCPU can't be called any more.
    pub fn into_page(self) -> Page<Donated> {
        self.page
    }
}

/// Control pages are 4 KiB. A larger page would take more memory from the host than the module receives.
pub(super) fn is_control_page<S: crate::page::State>(page: &Page<S>) -> bool {
    page.size() == PageSize::Size4K
}
