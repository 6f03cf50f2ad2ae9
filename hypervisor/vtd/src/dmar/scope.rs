//! Device scopes.
//!
//! Source: VT-d specification, section 8.3.1 (Device Scope Structure).

use alloc::{format, string::String, vec::Vec};

/// A device, or the devices behind a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The kind of device.
    pub kind: ScopeKind,
    /// The enumeration id: an I/O APIC's id, an HPET's number, an ACPI device's number.
    pub id: u8,
    /// The bus on which the path begins.
    pub bus: u8,
    /// Device and function on each bus of the path. It is not empty.
    pub path: Vec<(u8, u8)>,
}

/// The kind of device that a scope names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// One function.
    Endpoint,
    /// A bridge with everything behind it.
    Bridge,
    /// An I/O APIC.
    IoApic,
    /// An HPET that interrupts by messages.
    Hpet,
    /// A device of the ACPI namespace.
    Acpi,
    /// A kind that this driver does not know.
    Other(u8),
}

const HEADER: usize = 6;

/// Parses scopes. They must fill `bytes`.
pub(super) fn parse(mut bytes: &[u8]) -> Result<Vec<Scope>, String> {
    let mut scopes = Vec::new();
    while !bytes.is_empty() {
        let wrong = || format!("has a wrong length in its device scope {}", scopes.len());
        let length = usize::from(*bytes.get(1).ok_or_else(wrong)?);
        if length < HEADER + 2 || !length.is_multiple_of(2) {
            return Err(wrong());
        }
        let (scope, rest) = bytes.split_at_checked(length).ok_or_else(wrong)?;
        bytes = rest;
        let hops = scope[HEADER..].chunks_exact(2);
        let path: Vec<_> = hops.map(|hop| (hop[0], hop[1])).collect();
        if let Some((device, function)) = path.iter().find(|hop| hop.0 > 31 || hop.1 > 7) {
            return Err(format!("names device {device}, function {function}"));
        }
        scopes.push(Scope {
            kind: match scope[0] {
                1 => ScopeKind::Endpoint,
                2 => ScopeKind::Bridge,
                3 => ScopeKind::IoApic,
                4 => ScopeKind::Hpet,
                5 => ScopeKind::Acpi,
                other => ScopeKind::Other(other),
            },
            id: scope[4],
            bus: scope[5],
            path,
        });
    }
    Ok(scopes)
}
