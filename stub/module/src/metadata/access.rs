//! Element reads, element writes and field lists, common to all contexts.

use seam::abi::Status;
use seam::abi::metadata::FieldId;

use super::table::{Position, Row, Step, Tables, Who};

/// The fields of a context.
pub trait Fields {
    /// Returns the tables of this context.
    fn tables(&self) -> Tables;

    /// Reads an element, regardless of access rights.
    ///
    /// # Errors
    /// If `id` is not an element of the row, or can't be read at the moment.
    fn get(&self, row: &Row, id: FieldId, who: Who) -> Result<u64, Status>;

    /// Writes an element. `change` holds the old value, the wanted value and the bits to change.
    ///
    /// # Errors
    /// If the field can't hold the new value. Nothing has changed then.
    fn set(&self, row: &Row, id: FieldId, who: Who, change: Change) -> Result<(), Status>;
}

/// A requested change of an element, with access rights already checked.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The current value.
    pub old: u64,
    /// The requested value, in the bits of `request`.
    pub wanted: u64,
    /// Bits that the caller requests to change.
    pub request: u64,
    /// Bits that the caller may change.
    pub writable: u64,
}

impl Change {
    /// Returns the bits that change: requested and writable.
    pub const fn mask(&self) -> u64 {
        self.request & self.writable
    }

    /// Returns the new value, given the field's other bits.
    ///
    /// # Errors
    /// METADATA_FIELD_VALUE_NOT_VALID if a bit that is requested but not writable would change.
    pub const fn apply(&self, old: u64) -> Result<u64, Status> {
        let forbidden = self.request & !self.writable;
        if old & forbidden == self.wanted & forbidden {
            Ok(old & !self.mask() | self.wanted & self.mask())
        } else {
            Err(Status::METADATA_FIELD_VALUE_NOT_VALID)
        }
    }
}

fn find(fields: &impl Fields, id: FieldId) -> Result<Position, Status> {
    fields
        .tables()
        .find(id)
        .ok_or(Status::METADATA_FIELD_ID_INCORRECT)
}

/// Checks that an id names a single element.
///
/// # Errors
/// METADATA_FIELD_ID_INCORRECT.
fn check_single(id: FieldId) -> Result<(), Status> {
    if id.is_single_element() {
        Ok(())
    } else {
        Err(Status::METADATA_FIELD_ID_INCORRECT)
    }
}

/// Reads the element `id`. Bits that `who` may not read are 0.
///
/// # Errors
/// METADATA_FIELD_ID_INCORRECT, METADATA_FIELD_NOT_READABLE.
pub fn read(fields: &impl Fields, id: FieldId, who: Who) -> Result<u64, Status> {
    let tables = fields.tables();
    let id = id.in_context(tables.context());
    check_single(id)?;
    let row = tables.row(find(fields, id)?);
    let value = fields.get(row, id, who)?;
    match row.access(who).read {
        0 => Err(Status::METADATA_FIELD_NOT_READABLE),
        readable => Ok(value & readable),
    }
}

/// Writes the bits `request` of the element `id`. Returns the previous value, without bits that `who` may not read.
///
/// # Errors
/// METADATA_FIELD_ID_INCORRECT, METADATA_FIELD_NOT_WRITABLE, METADATA_FIELD_VALUE_NOT_VALID and those of the field.
pub fn write(
    fields: &impl Fields,
    id: FieldId,
    who: Who,
    wanted: u64,
    request: u64,
) -> Result<u64, Status> {
    let tables = fields.tables();
    let id = id.in_context(tables.context());
    check_single(id)?;
    let row = tables.row(find(fields, id)?);
    let old = fields.get(row, id, who)? & row.element_mask();
    let access = row.access(who);
    let change = Change {
        old,
        wanted,
        request,
        writable: access.write,
    };
    if change.mask() == 0 {
        return Err(Status::METADATA_FIELD_NOT_WRITABLE);
    }
    fields.set(row, id, who, change)?;
    Ok(old & access.read)
}

/// Returns the first id that `who` may read.
pub fn first_id(fields: &impl Fields, who: Who) -> FieldId {
    let first = fields.tables().next_readable(None, Step::Element, who);
    first.map_or(FieldId::NULL, |position| position.id)
}

/// Returns the id that `who` may read after `id`, an existing id; [`FieldId::NULL`] at the end.
pub fn next_id(fields: &impl Fields, id: FieldId, who: Who) -> FieldId {
    let tables = fields.tables();
    let position = tables.find(id.in_context(tables.context()));
    let next =
        position.and_then(|position| tables.next_readable(Some(position), Step::Element, who));
    next.map_or(FieldId::NULL, |position| position.id)
}

/// Words of a metadata list page.
const LIST_WORDS: usize = 512;

/// Lists whole fields from `id` on into a page, word by word through `put`. Returns the next field, which did not fit.
///
/// A list is a header (bytes used, number of sequences) and sequences. A sequence is an id that holds the number of
/// fields and of elements per field, then the elements, 8 bytes each.
///
/// # Errors
/// METADATA_FIELD_ID_INCORRECT if `id` is not the first element of a field, with the field's own element size.
pub fn dump(
    fields: &impl Fields,
    id: FieldId,
    who: Who,
    mut put: impl FnMut(usize, u64),
) -> Result<FieldId, Status> {
    let tables = fields.tables();
    let mut next = if id.is_null() {
        tables.next_readable(None, Step::Field, who)
    } else {
        let id = id.in_context(tables.context());
        let position = find(fields, id)?;
        let row = tables.row(position);
        let starts = row.index(id).is_multiple_of(u32::from(row.field.elements));
        if !starts || id.element_size_code() != row.field.id.element_size_code() {
            return Err(Status::METADATA_FIELD_ID_INCORRECT);
        }
        let id = row.field.id.with_code(id.code());
        Some(Tables::at(position, id))
    };
    if next.is_none() {
        return Ok(FieldId::NULL);
    }
    let (mut used, mut sequences) = (1, 0);
    while let Some(first) = next {
        let shape = tables.row(first);
        let elements = usize::from(shape.field.elements);
        if used + 1 + elements > LIST_WORDS {
            break;
        }
        let header = used;
        let (mut end, mut count) = (header + 1, 0);
        let mut last = first;
        while let Some(position) = next {
            let row = tables.row(position);
            let contiguous = position.id.class() == last.id.class()
                && (count == 0
                    || position.id.code()
                        == last.id.code() + elements as u32 * row.field.id.stride())
                && row.field.elements == shape.field.elements
                && row.field.id.element_size_code() == shape.field.id.element_size_code();
            if !contiguous || end + elements > LIST_WORDS {
                break;
            }
            for element in 0..elements {
                let id = position
                    .id
                    .with_code(position.id.code() + element as u32 * row.field.id.stride());
                put(
                    end + element,
                    fields.get(row, id, who)? & row.access(who).read,
                );
            }
            end += elements;
            count += 1;
            last = position;
            next = tables.next_readable(Some(position), Step::Field, who);
        }
        let id = first
            .id
            .with_last_element(elements as u32 - 1)
            .with_last_field(count - 1);
        put(header, id.0);
        sequences += 1;
        used = end;
    }
    put(0, (used as u64 * 8) | (sequences << 16));
    Ok(next.map_or(FieldId::NULL, |position| position.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_that_is_not_writable_may_be_written_as_it_is() {
        let change = |wanted| Change {
            old: 0b01,
            wanted,
            request: 0b11,
            writable: 0b10,
        };
        assert_eq!(change(0b11).apply(0b01), Ok(0b11));
        assert_eq!(
            change(0b10).apply(0b01),
            Err(Status::METADATA_FIELD_VALUE_NOT_VALID)
        );
    }
}
