//! The module's answer to the question whose page an address is in.

use alloc::{format, string::String};

use seam::{
    abi::{PAGE_4K, PageType, Status},
    address::{Hpa, KeyIdPosition},
};

use crate::platform::Platform;

/// The owner of a page, according to the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageOwner {
    /// The host, or nobody.
    Host,
    /// The module: the page is reserved, describes others, or is of a type that is not known.
    Module,
    /// A TD.
    Td {
        /// The TD's root page.
        root: Hpa,
        /// The use of the page, as a noun phrase.
        what: &'static str,
    },
}

/// Asks the module who owns the page at `page`. A page in no TDMR is the host's.
///
/// # Errors
/// The module's, when it does not answer.
pub fn owner_of(platform: &impl Platform, page: Hpa) -> Result<PageOwner, seam::error::Error> {
    let found = match platform.tdh().phymem_page_rdmd(page) {
        Ok(found) => found,
        Err(error) if error.is(Status::OPERAND_ADDR_RANGE_ERROR) => return Ok(PageOwner::Host),
        Err(error) => return Err(error),
    };
    let (root, what) = match found.page_type {
        Some(PageType::Nda) => return Ok(PageOwner::Host),
        Some(PageType::Rsvd | PageType::Pamt) | None => return Ok(PageOwner::Module),
        Some(PageType::Tdr) => (page, "the root page"),
        Some(PageType::Reg) => (found.owner, "private memory"),
        Some(PageType::Tdcx) => (found.owner, "a control page"),
        Some(PageType::Tdvpr) => (found.owner, "the root page of a vCPU"),
        Some(PageType::Ept) => (found.owner, "a secure EPT page"),
    };
    Ok(PageOwner::Td { root, what })
}

/// Checks that the host may read the page at `pa`, which may contain a KeyID: no TD owns it, as far as the module says.
/// Reserved memory, such as a device's, may be read.
///
/// # Errors
/// A sentence: the page belongs to a TD.
pub fn check_readable(
    platform: &impl Platform,
    keyid: KeyIdPosition,
    pa: u64,
) -> Result<(), String> {
    let page = Hpa(pa & !keyid.mask() & !(PAGE_4K - 1));
    let Ok(PageOwner::Td { root, what }) = owner_of(platform, page) else {
        return Ok(());
    };
    let of = if root == page {
        String::from("of a TD")
    } else {
        format!("of the TD whose root page is at {:#x}", root.0)
    };
    Err(format!(
        "the page at {:#x} is {what} {of}, and a read could stop the machine; \"td dump\" shows the memory of a debug TD",
        page.0
    ))
}
