//! A TD and a vCPU as the host holds them: the control pages that it gave, and the phase that the TD is in.

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

/// TD_BLOCKED: the TD runs no more, its key's lines are written back package by package. Nothing can be taken from it.
#[derive(Debug)]
pub struct Releasing {
    pub(super) hkid: Hkid,
}

/// TD_TEARDOWN: the TD has no key. Its pages are taken back one call each.
#[derive(Debug)]
pub struct Keyless(());

impl Keyless {
    pub(super) const NEW: Self = Self(());
}

/// The phases of a TD's life. Sealed: these three are all there is.
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

/// The root page of a TD, which stands for the TD. It owns the page, and the HKID while the TD has one.
#[derive(Debug)]
#[must_use = "it owns the TD's root page and its HKID"]
pub struct Tdr<P: Phase> {
    pub(super) page: Page<Donated>,
    pub(super) phase: P,
}

impl<P: Phase> Tdr<P> {
    /// Its address: what the module reports as the owner of the TD's pages.
    pub fn hpa(&self) -> Hpa {
        self.page.hpa()
    }
}

impl Tdr<Keyless> {
    /// Its page, to be put away for good: the TD has pages that never come back.
    pub fn into_page(self) -> Page<Donated> {
        self.page
    }
}

impl Tdr<Keyed> {
    /// The number of the TD's key.
    pub const fn hkid(&self) -> u16 {
        self.phase.hkid.number()
    }

    /// Its page and the number of its key, both to be put away for good: the module has shut down, and gives neither back.
    pub fn write_off(self) -> (Page<Donated>, u16) {
        (self.page, self.phase.hkid.surrender())
    }
}

impl Tdr<Releasing> {
    /// The number of the TD's key, which is still its own.
    pub const fn hkid(&self) -> u16 {
        self.phase.hkid.number()
    }

    /// Its page and the number of its key, as [`Tdr::<Keyed>::write_off`].
    pub fn write_off(self) -> (Page<Donated>, u16) {
        (self.page, self.phase.hkid.surrender())
    }
}

/// The root page of a vCPU, which stands for the vCPU. It owns the page.
#[derive(Debug)]
#[must_use = "it owns the vCPU's root page"]
pub struct Tdvpr {
    page: Page<Donated>,
}

impl Tdvpr {
    pub(super) const fn new(page: Page<Donated>) -> Self {
        Self { page }
    }

    /// Its address.
    pub fn hpa(&self) -> Hpa {
        self.page.hpa()
    }

    /// The page, to be reclaimed. The vCPU can't be called any more.
    pub fn into_page(self) -> Page<Donated> {
        self.page
    }
}

/// Control pages are 4 KiB; a larger token would take more out of the host than the module is given.
pub(super) fn is_control_page<S: crate::page::State>(page: &Page<S>) -> bool {
    page.size() == PageSize::Size4K
}
