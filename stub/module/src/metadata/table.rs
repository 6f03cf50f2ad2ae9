//! Format of the field tables, and the walk through them from field to field.

use seam::abi::Features0;
use seam::abi::metadata::{Context, Field, FieldId, vp};

use super::{rows_l2_vmcs, rows_sys, rows_td, rows_vmcs, rows_vp};
use crate::{Change, Release, cpuid};

/// Readable and writable bits. They are cut to the size of an element when used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Readable bits.
    pub read: u64,
    /// Writable bits.
    pub write: u64,
}

/// No access.
pub const NONE: Access = masks(0, 0);
/// All bits readable.
pub const R: Access = masks(u64::MAX, 0);
/// All bits readable and writable.
pub const RW: Access = masks(u64::MAX, u64::MAX);

/// Returns access with separate readable and writable bits.
pub const fn masks(read: u64, write: u64) -> Access {
    Access { read, write }
}

/// Returns access with all bits readable and some writable.
pub const fn part(write: u64) -> Access {
    masks(u64::MAX, write)
}

/// Returns access with the same bits readable and writable. The other bits do not exist.
pub const fn rw(bits: u64) -> Access {
    masks(bits, bits)
}

/// The kind of address that a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A number.
    Value,
    /// A physical address that the module chose.
    Hpa,
    /// A physical address under the TD's key.
    PrivateHpa,
    /// A physical address that the host chose.
    SharedHpa,
    /// A private guest-physical address.
    PrivateGpa,
}

/// [`Holds::Hpa`].
pub const HPA: Holds = Holds::Hpa;
/// [`Holds::PrivateHpa`].
pub const PRIVATE_HPA: Holds = Holds::PrivateHpa;
/// [`Holds::SharedHpa`].
pub const SHARED_HPA: Holds = Holds::SharedHpa;
/// [`Holds::PrivateGpa`].
pub const PRIVATE_GPA: Holds = Holds::PrivateGpa;

/// One row of a field table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Id and format.
    pub field: Field,
    /// The byte offset of the first element in the structure that holds it; 0 for VMCS fields and the module's own.
    pub offset: u16,
    /// The host's access to a production TD.
    pub production: Access,
    /// The host's access to a debug TD.
    pub debug: Access,
    /// The TD's own access.
    pub guest: Access,
    /// The kind of value.
    pub holds: Holds,
    /// The releases that have the row.
    pub presence: Presence,
}

/// The releases that have a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// All.
    Always,
    /// Those with a feature.
    Feature(Features0),
    /// Those with a change.
    Since(Change),
    /// Those without a change.
    Before(Change),
    /// Those with the first change and without the second.
    Between(Change, Change),
}

impl Row {
    /// Returns the access of `who`, cut to the size of an element.
    pub const fn access(&self, who: Who) -> Access {
        let access = match who {
            Who::Host { debug: false } => self.production,
            Who::Host { debug: true } => self.debug,
            Who::Guest => self.guest,
        };
        let size = self.element_mask();
        masks(access.read & size, access.write & size)
    }

    /// Returns the bits of an element.
    pub const fn element_mask(&self) -> u64 {
        u64::MAX >> (64 - 8 * self.field.id.element_size())
    }

    /// Returns the number of the element `id`, counted over all fields of the row.
    pub const fn index(&self, id: FieldId) -> u32 {
        (id.code() - self.field.id.code()) / self.field.id.stride()
    }

    /// Returns the same row, which only some releases have.
    pub const fn only(mut self, presence: Presence) -> Self {
        self.presence = presence;
        self
    }

    /// Returns whether a release has the row.
    pub const fn exists(&self, release: Release) -> bool {
        match self.presence {
            Presence::Always => true,
            Presence::Feature(feature) => release.has(feature),
            Presence::Since(change) => release.does(change),
            Presence::Before(change) => !release.does(change),
            Presence::Between(first, last) => release.does(first) && !release.does(last),
        }
    }

    /// Returns the same row, holding an address of that kind.
    pub const fn holding(mut self, holds: Holds) -> Self {
        self.holds = holds;
        self
    }
}

/// Returns a row for a field of the module, a TDR, a TDCS or a TDVPS.
pub const fn row(
    field: Field,
    offset: u16,
    production: Access,
    debug: Access,
    guest: Access,
) -> Row {
    Row {
        field,
        offset,
        production,
        debug,
        guest,
        holds: Holds::Value,
        presence: Presence::Always,
    }
}

/// Returns a row for `fields` VMCS fields with consecutive encodings.
pub const fn vmcs(
    encoding: u32,
    fields: u16,
    production: Access,
    debug: Access,
    guest: Access,
) -> Row {
    let field = Field {
        id: FieldId::vmcs(encoding),
        name: "",
        fields,
        elements: 1,
    };
    row(field, 0, production, debug, guest)
}

/// The party on whose behalf a field is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The host.
    Host {
        /// True if the TD has ATTRIBUTES.DEBUG.
        debug: bool,
    },
    /// The TD.
    Guest,
}

/// The length of a step of the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To the next element.
    Element,
    /// To the first element of the next field.
    Field,
}

/// The field tables that one context has.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    release: Release,
    context: Context,
    num_l2_vms: u8,
}

/// Maximum number of L2 VMs of a TD.
pub const MAX_L2_VMS: u8 = 3;
/// Class of the TD VMCS.
pub const VMCS_CLASS: u8 = 0;
/// Class of a TD's CPUID values. Their field codes encode leaf and sub-leaf.
pub const CPUID_CLASS: u8 = 20;

/// Returns the L2 VM (1 to 3) whose VMCS has this class, if any.
pub const fn l2_vmcs_vm(class: u8) -> Option<u8> {
    match class {
        36 => Some(1),
        44 => Some(2),
        52 => Some(3),
        _ => None,
    }
}

/// One table of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Sys,
    Td,
    Vmcs,
    Vp,
    /// The VMCS of that L2 VM's class.
    L2Vmcs(u8),
}

/// A field or element that the walk has reached.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    table: Table,
    row: usize,
    /// Its id.
    pub id: FieldId,
}

impl Tables {
    /// Returns the tables of a context. A TD and a vCPU have rows for each of `num_l2_vms` L2 VMs.
    pub const fn new(release: Release, context: Context, num_l2_vms: u8) -> Self {
        Self {
            release,
            context,
            num_l2_vms,
        }
    }

    /// Returns the CPUID table of the release.
    pub const fn cpuid(&self) -> &'static cpuid::Table {
        cpuid::Table::of(self.release)
    }

    /// Returns the context.
    pub const fn context(&self) -> Context {
        self.context
    }

    const fn rows(&self, table: Table) -> &'static [Row] {
        let unused = MAX_L2_VMS.saturating_sub(self.num_l2_vms) as usize;
        let (rows, unused) = match table {
            Table::Sys => (rows_sys::ROWS, 0),
            Table::Td => (rows_td::ROWS, unused),
            Table::Vmcs => (rows_vmcs::ROWS, 0),
            Table::Vp => (rows_vp::ROWS, 3 * unused),
            Table::L2Vmcs(_) => (rows_l2_vmcs::ROWS, 0),
        };
        rows.split_at(rows.len() - unused).0
    }

    /// Returns the row of a position.
    pub fn row(&self, position: Position) -> &'static Row {
        &self.rows(position.table)[position.row]
    }

    /// Returns the same field or row at another of its elements.
    pub const fn at(position: Position, id: FieldId) -> Position {
        Position { id, ..position }
    }

    fn table_of(&self, id: FieldId) -> Table {
        match self.context {
            Context::Sys => Table::Sys,
            Context::Td => Table::Td,
            Context::Vp if id.is_null() || id.class() == VMCS_CLASS => Table::Vmcs,
            Context::Vp if l2_vmcs_vm(id.class()).is_some() => Table::L2Vmcs(id.class()),
            Context::Vp => Table::Vp,
        }
    }

    /// Finds the element `id`, ignoring its size and context.
    pub fn find(&self, id: FieldId) -> Option<Position> {
        let table = self.table_of(id);
        let key = match table {
            // The row has two elements. The reader of the value checks leaf and sub-leaf.
            Table::Td if id.class() == CPUID_CLASS => id.with_code(id.code() & 1),
            Table::L2Vmcs(_) => id.with_class(VMCS_CLASS),
            _ => id,
        };
        let row = self
            .rows(table)
            .iter()
            .position(|row| row.field.contains(key) && row.exists(self.release))?;
        Some(Position { table, row, id })
    }

    /// Returns the first element after `position` that `who` may read.
    pub fn next_readable(
        &self,
        position: Option<Position>,
        step: Step,
        who: Who,
    ) -> Option<Position> {
        let mut next = match position {
            None => self.enter(self.table_of(FieldId::NULL), 0),
            Some(position) => self.next(position, step),
        };
        while let Some(position) = next {
            if self.row(position).access(who).read != 0 {
                break;
            }
            next = self.next(position, step);
        }
        next
    }

    fn next(&self, position: Position, step: Step) -> Option<Position> {
        let row = self.row(position);
        if self.context == Context::Td && row.field.id.class() == CPUID_CLASS {
            if let Some(id) = self.next_cpuid(position.id, step) {
                return Some(Position { id, ..position });
            }
        } else {
            let elements = match step {
                Step::Element => 1,
                Step::Field => u32::from(row.field.elements),
            };
            let index = row.index(position.id) / elements * elements + elements;
            if index < u32::from(row.field.fields) * u32::from(row.field.elements) {
                let code = row.field.id.code() + index * row.field.id.stride();
                return Some(Position {
                    id: position.id.with_code(code),
                    ..position
                });
            }
        }
        self.enter(position.table, position.row + 1)
    }

    /// Returns the first element of a row, or of the next table if the row is past the end.
    fn enter(&self, table: Table, row: usize) -> Option<Position> {
        let rows = self.rows(table).iter().enumerate().skip(row);
        let mut existing = rows.filter(|(_, row)| row.exists(self.release));
        let Some((row, entered)) = existing.next() else {
            return match table {
                Table::Vmcs => self.enter(Table::Vp, 0),
                Table::L2Vmcs(class) => {
                    let parent = self
                        .rows(Table::Vp)
                        .iter()
                        .position(|row| row.field.id.class() == class)?;
                    self.enter(Table::Vp, parent + 1)
                }
                Table::Sys | Table::Td | Table::Vp => None,
            };
        };
        let id = entered.field.id;
        match table {
            Table::Vp if l2_vmcs_vm(id.class()).is_some() => {
                self.enter(Table::L2Vmcs(id.class()), 0)
            }
            Table::L2Vmcs(class) => Some(Position {
                table,
                row,
                id: id.with_class(class),
            }),
            Table::Td if id.class() == CPUID_CLASS => Some(Position {
                table,
                row,
                id: self.cpuid_id(0),
            }),
            _ => Some(Position { table, row, id }),
        }
    }

    /// Returns the id of the first half of row `index` of the CPUID table.
    fn cpuid_id(&self, index: usize) -> FieldId {
        let row = &self.cpuid().rows[index];
        FieldId::cpuid_value(row.leaf, row.sub_leaf, 0)
    }

    fn next_cpuid(&self, id: FieldId, step: Step) -> Option<FieldId> {
        if step == Step::Element && id.code() & 1 == 0 {
            return Some(id.with_code(id.code() + 1));
        }
        let (leaf, sub_leaf) = cpuid_leaf(id);
        let next = self.cpuid().find(leaf, sub_leaf)? + 1;
        (next < self.cpuid().rows.len()).then(|| self.cpuid_id(next))
    }
}

/// Returns leaf and sub-leaf of a CPUID value. All ones means no sub-leaf.
pub const fn cpuid_leaf(id: FieldId) -> (u32, u32) {
    let code = id.code();
    let sub_leaf = if code >> 8 & 1 != 0 {
        u32::MAX
    } else {
        code >> 1 & 0x7F
    };
    (code >> 9 & 0x7F | (code >> 16 & 1) << 31, sub_leaf)
}

const _: () = assert!(
    vp::L2_VMCS_1.id.class() == 36
        && vp::L2_VMCS_2.id.class() == 44
        && vp::L2_VMCS_3.id.class() == 52
);

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(tables: Tables, who: Who) -> impl Iterator<Item = FieldId> {
        let mut at = None;
        core::iter::from_fn(move || {
            at = Some(tables.next_readable(at, Step::Element, who)?);
            at.map(|position: Position| position.id)
        })
    }

    #[test]
    fn the_walk_visits_every_readable_element_of_the_module_once() {
        let all: u32 = rows_sys::ROWS
            .iter()
            .filter(|row| row.exists(Release::V1_5_01))
            .map(|row| u32::from(row.field.fields) * u32::from(row.field.elements))
            .sum();
        assert_eq!(
            walk(
                Tables::new(Release::V1_5_01, Context::Sys, 0),
                Who::Host { debug: false }
            )
            .count(),
            all as usize
        );
    }

    #[test]
    fn a_vcpu_s_walk_goes_from_its_vmcs_to_the_rest() {
        let tables = Tables::new(Release::V1_5_01, Context::Vp, 0);
        let classes = walk(tables, Who::Host { debug: false }).map(FieldId::class);
        assert!(classes.eq([VMCS_CLASS; 16].into_iter().chain([17]).chain([32; 23])));
    }

    #[test]
    fn the_fields_of_an_l2_vm_are_there_only_if_the_vm_is() {
        let of_class = |vms, class| {
            walk(
                Tables::new(Release::V1_5_01, Context::Vp, vms),
                Who::Host { debug: true },
            )
            .filter(|id| id.class() == class)
            .count()
        };
        assert_eq!(of_class(0, 36), 0);
        assert!(of_class(1, 36) > 100);
        assert_eq!(of_class(1, 37), 512);
        assert_eq!(of_class(1, 44), 0);
    }

    #[test]
    fn cpuid_values_follow_the_order_of_the_cpuid_table() {
        let tables = Tables::new(Release::V1_5_01, Context::Td, 0);
        let mut cpuid =
            walk(tables, Who::Host { debug: false }).filter(|id| id.class() == CPUID_CLASS);
        assert_eq!(cpuid.next(), Some(FieldId::cpuid_value(1, None, 0)));
        assert_eq!(cpuid.next(), Some(FieldId::cpuid_value(1, None, 1)));
        assert_eq!(cpuid.next(), Some(FieldId::cpuid_value(4, Some(0), 0)));
        assert_eq!(cpuid.count(), 2 * tables.cpuid().rows.len() - 3);
    }
}
