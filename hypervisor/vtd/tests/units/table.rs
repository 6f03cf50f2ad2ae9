//! Makes DMARs, byte by byte.

/// A device scope: kind, enumeration id, bus, path.
pub fn scope(kind: u8, id: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    let mut scope = vec![kind, 6 + 2 * path.len() as u8, 0, 0, id, bus];
    scope.extend(path.iter().flat_map(|hop| [hop.0, hop.1]));
    scope
}

/// A structure of this kind: its fields behind type and length, and its scopes.
pub fn structure(kind: u16, fields: &[u8], scopes: &[Vec<u8>]) -> Vec<u8> {
    let scopes = scopes.concat();
    let length = (4 + fields.len() + scopes.len()) as u16;
    [
        &kind.to_le_bytes()[..],
        &length.to_le_bytes(),
        fields,
        &scopes,
    ]
    .concat()
}

/// A unit (DRHD).
pub fn unit(base: u64, segment: u16, all: bool, scopes: &[Vec<u8>]) -> Vec<u8> {
    let mut fields = vec![u8::from(all), 0];
    fields.extend(segment.to_le_bytes());
    fields.extend(base.to_le_bytes());
    structure(0, &fields, scopes)
}

/// Reserved memory (RMRR).
pub fn reserved(segment: u16, (start, last): (u64, u64), scopes: &[Vec<u8>]) -> Vec<u8> {
    let mut fields = vec![0, 0];
    fields.extend(segment.to_le_bytes());
    fields.extend(start.to_le_bytes());
    fields.extend(last.to_le_bytes());
    structure(1, &fields, scopes)
}

/// The whole table.
pub fn dmar(address_bits: u8, flags: u8, structures: &[Vec<u8>]) -> Vec<u8> {
    let mut table = b"DMAR".to_vec();
    table.resize(48, 0);
    (table[36], table[37]) = (address_bits - 1, flags);
    table.extend(structures.concat());
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table
}
