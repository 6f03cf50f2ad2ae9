//! The module's answer to the question whose page an address is in.

use alloc::{format, string::String};

use seam::{
    abi::{PAGE_4K, PageType},
    address::{Hpa, KeyIdPosition},
};

use crate::platform::Platform;

/// Checks that the host may read the page at `pa`, which may contain a KeyID. A page that the module has in no TDMR is
/// not a TD's.
///
/// # Errors
/// A sentence: the page belongs to a TD.
pub fn check_readable(
    platform: &impl Platform,
    keyid: KeyIdPosition,
    pa: u64,
) -> Result<(), String> {
    let page = Hpa(pa & !keyid.mask() & !(PAGE_4K - 1));
    let Ok(found) = platform.tdh().phymem_page_rdmd(page) else {
        return Ok(());
    };
    let what = match found.page_type {
        // The host's own, reserved memory such as a device's, or a type that this module is too new for.
        Some(PageType::Nda | PageType::Rsvd) | None => return Ok(()),
        Some(PageType::Reg) => "private memory",
        Some(PageType::Tdr) => "the root page",
        Some(PageType::Tdcx) => "a control page",
        Some(PageType::Tdvpr) => "the root page of a vCPU",
        Some(PageType::Ept) => "a secure EPT page",
    };
    let of = match found.page_type {
        Some(PageType::Tdr) => String::from("of a TD"),
        _ => format!("of the TD whose root page is at {:#x}", found.owner.0),
    };
    Err(format!(
        "the page at {:#x} is {what} {of}, and a read could stop the machine; \"td dump\" shows the memory of a debug TD",
        page.0
    ))
}
