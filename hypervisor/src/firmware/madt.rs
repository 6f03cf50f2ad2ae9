//! CPUs and interrupt controllers: the MADT, and the CPUs' proximity domains from the SRAT.
//!
//! Source: ACPI Specification 6.5, sections 5.2.12 and 5.2.16.

use alloc::vec::Vec;

use super::spcr::Interrupt;

/// The contents of the MADT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Madt {
    /// The enabled CPUs, in the firmware's order.
    pub processors: Vec<Processor>,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// ISA interrupts that are not at the input of their own number.
    pub overrides: Vec<Override>,
}

/// One enabled CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// The (x2)APIC id.
    pub apic_id: u32,
    /// The proximity domain, if the SRAT names one.
    pub node: Option<u32>,
}

/// One I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its id.
    pub id: u8,
    /// Physical address of the registers.
    pub pa: u64,
    /// The global interrupt number of the first input.
    pub first_gsi: u32,
}

/// The input of an ISA interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The ISA interrupt.
    pub isa: u8,
    /// The global interrupt number.
    pub gsi: u32,
    /// True if the interrupt is active low.
    pub active_low: bool,
    /// True if the interrupt is level-triggered.
    pub level: bool,
}

impl Madt {
    /// Returns the input of an ISA interrupt: ISA's default unless overridden.
    #[must_use]
    pub fn isa(&self, isa: u8) -> Override {
        let found = self.overrides.iter().find(|o| o.isa == isa);
        found.copied().unwrap_or(Override {
            isa,
            gsi: isa.into(),
            active_low: false,
            level: false,
        })
    }

    /// Returns the input of a port's interrupt. A global interrupt that is none of the ISA bus is a PCI device's:
    /// level-triggered and active low.
    #[must_use]
    pub fn line(&self, interrupt: Interrupt) -> Override {
        let gsi = match interrupt {
            Interrupt::Isa(isa) => return self.isa(isa),
            Interrupt::Gsi(gsi) => gsi,
        };
        if let Some(line) = self.overrides.iter().find(|o| o.gsi == gsi) {
            return *line;
        }
        match u8::try_from(gsi) {
            Ok(isa @ ..16) => self.isa(isa),
            _ => Override {
                isa: 0,
                gsi,
                active_low: true,
                level: true,
            },
        }
    }
}

/// Maximum number of CPUs. The firmware of the largest machines lists fewer.
pub const MAX_PROCESSORS: usize = 4096;
/// Maximum number of I/O APICs, and of ranges of memory.
const MAX_OTHERS: usize = 4096;
/// Ids that address all CPUs at once: no CPU has one of them.
const BROADCAST: [u32; 2] = [0xFF, u32::MAX];

const MADT_ENTRIES: usize = 44;
const SRAT_ENTRIES: usize = 48;
const ENABLED: u32 = 1;

/// Parses the MADT.
#[must_use]
pub fn parse(table: &[u8]) -> Madt {
    let mut madt = Madt::default();
    for (kind, entry) in entries(table, MADT_ENTRIES) {
        let u32_at = |at| u32_at(entry, at);
        match kind {
            0 if u32_at(4) & ENABLED != 0 => {
                madt.add(u32::from(byte_at(entry, 3)), BROADCAST[0]);
            }
            9 if u32_at(8) & ENABLED != 0 => madt.add(u32_at(4), BROADCAST[1]),
            1 if madt.io_apics.len() < MAX_OTHERS => madt.io_apics.push(IoApic {
                id: byte_at(entry, 2),
                pa: u32_at(4).into(),
                first_gsi: u32_at(8),
            }),
            2 if madt.overrides.len() < MAX_OTHERS => {
                let flags = byte_at(entry, 8);
                madt.overrides.push(Override {
                    isa: byte_at(entry, 3),
                    gsi: u32_at(4),
                    active_low: flags & 3 == 3,
                    level: flags >> 2 & 3 == 3,
                });
            }
            _ => {}
        }
    }
    madt
}

impl Madt {
    fn add(&mut self, apic_id: u32, broadcast: u32) {
        if apic_id == broadcast || self.processors.len() == MAX_PROCESSORS {
            return;
        }
        // Firmware may list a CPU both as an APIC and as an x2APIC.
        if !self.processors.iter().any(|p| p.apic_id == apic_id) {
            self.processors.push(Processor {
                apic_id,
                node: None,
            });
        }
    }
}

/// Records the proximity domains that the SRAT gives.
pub fn add_nodes(processors: &mut [Processor], srat: &[u8]) {
    for (kind, entry) in entries(srat, SRAT_ENTRIES) {
        let (apic_id, node, flags) = match kind {
            0 => {
                let high = u32_at(entry, 8) & 0xFFFF_FF00;
                let node = u32::from(byte_at(entry, 2)) | high;
                (u32::from(byte_at(entry, 3)), node, u32_at(entry, 4))
            }
            2 => (u32_at(entry, 8), u32_at(entry, 4), u32_at(entry, 12)),
            _ => continue,
        };
        if flags & ENABLED == 0 {
            continue;
        }
        for p in processors.iter_mut().filter(|p| p.apic_id == apic_id) {
            p.node = Some(node);
        }
    }
}

/// Returns the proximity domains of memory from the SRAT: first address, first address behind it, domain.
pub fn memory_nodes(srat: &[u8]) -> Vec<(u64, u64, u32)> {
    const MEMORY: u8 = 1;
    let u64_at = |entry, at| u64::from(u32_at(entry, at)) | u64::from(u32_at(entry, at + 4)) << 32;
    entries(srat, SRAT_ENTRIES)
        .filter(|(kind, entry)| *kind == MEMORY && u32_at(entry, 28) & ENABLED != 0)
        .map(|(_, entry)| {
            let start = u64_at(entry, 8);
            let end = start.saturating_add(u64_at(entry, 16));
            (start, end, u32_at(entry, 2))
        })
        .filter(|(start, end, _)| start < end)
        .take(MAX_OTHERS)
        .collect()
}

/// Returns the entries of a table from offset `at`: type and all bytes. Stops at the first entry with an invalid
/// length.
fn entries(table: &[u8], at: usize) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = table.get(at..).unwrap_or(&[]);
    core::iter::from_fn(move || {
        let (&kind, &len) = (rest.first()?, rest.get(1)?);
        let entry = rest.get(..usize::from(len)).filter(|e| e.len() >= 2)?;
        rest = &rest[entry.len()..];
        Some((kind, entry))
    })
}

fn byte_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn table(header: usize, entries: &[&[u8]]) -> Vec<u8> {
        let mut table = vec![0; header];
        table.extend(entries.iter().flat_map(|e| e.iter()));
        table
    }

    #[test]
    fn a_port_s_interrupt_is_found_as_isa_or_gsi() {
        let moved = Override {
            isa: 4,
            gsi: 20,
            active_low: true,
            level: false,
        };
        let madt = Madt {
            overrides: vec![moved],
            ..Madt::default()
        };
        assert_eq!(madt.line(Interrupt::Isa(4)), moved);
        assert_eq!(madt.line(Interrupt::Gsi(20)), moved);
        assert_eq!(madt.line(Interrupt::Gsi(3)), madt.isa(3));
        let pci = madt.line(Interrupt::Gsi(16));
        assert!(pci.gsi == 16 && pci.level && pci.active_low);
    }

    #[test]
    fn enabled_cpus_are_listed_once() {
        let madt = parse(&table(
            MADT_ENTRIES,
            &[
                &[0, 8, 0, 0, 1, 0, 0, 0],
                &[0, 8, 1, 2, 0, 0, 0, 0],
                &[9, 16, 0, 0, 0x34, 0x12, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0],
                &[9, 16, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0],
                // These ids address every CPU.
                &[0, 8, 0, 0xFF, 1, 0, 0, 0],
                &[9, 16, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 7, 0, 0, 0],
            ],
        ));
        let ids: Vec<u32> = madt.processors.iter().map(|p| p.apic_id).collect();
        assert_eq!(ids, [0, 0x1234]);
    }

    #[test]
    fn isa_interrupts_are_where_the_overrides_say() {
        let madt = parse(&table(
            MADT_ENTRIES,
            &[
                &[1, 12, 5, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0],
                &[2, 10, 0, 9, 20, 0, 0, 0, 0x0F, 0],
            ],
        ));
        assert_eq!((madt.io_apics[0].id, madt.io_apics[0].pa), (5, 0xFEC0_0000));
        let nine = madt.isa(9);
        assert!((nine.gsi, nine.active_low, nine.level) == (20, true, true));
        assert_eq!(madt.isa(4).gsi, 4);
    }

    #[test]
    fn the_srat_names_proximity_domains() {
        let mut cpus = [1, 0x200].map(|apic_id| Processor {
            apic_id,
            node: None,
        });
        add_nodes(
            &mut cpus,
            &table(
                SRAT_ENTRIES,
                &[
                    &[0, 16, 3, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                    &[
                        2, 24, 0, 0, 5, 0, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                    ],
                ],
            ),
        );
        assert_eq!(cpus.map(|c| c.node), [Some(3), Some(5)]);
    }

    #[test]
    fn the_srat_names_the_nodes_of_memory() {
        let mut entry = [0; 40];
        (entry[0], entry[1], entry[2], entry[28]) = (1, 40, 7, 1);
        entry[8..16].copy_from_slice(&(4u64 << 30).to_le_bytes());
        entry[16..24].copy_from_slice(&(6u64 << 30).to_le_bytes());
        let (mut disabled, mut empty) = (entry, entry);
        disabled[28] = 0;
        empty[16..24].fill(0);
        let srat = table(SRAT_ENTRIES, &[&disabled, &entry, &empty]);
        assert_eq!(memory_nodes(&srat), [(4 << 30, 10 << 30, 7)]);
    }

    #[test]
    fn an_entry_without_length_ends_the_table() {
        let madt = parse(&table(
            MADT_ENTRIES,
            &[&[0, 0, 0, 0], &[0, 8, 0, 0, 1, 0, 0, 0]],
        ));
        assert!(madt.processors.is_empty());
    }

    #[test]
    fn no_table_lists_more_than_the_maximum() {
        let entry = |id: u32| {
            let mut entry = [9, 16, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
            entry[4..8].copy_from_slice(&id.to_le_bytes());
            entry
        };
        let all: Vec<_> = (0..MAX_PROCESSORS as u32 + 9).map(entry).collect();
        let all: Vec<&[u8]> = all.iter().map(|e| &e[..]).collect();
        let madt = parse(&table(MADT_ENTRIES, &all));
        assert_eq!(madt.processors.len(), MAX_PROCESSORS);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let mut madt = parse(&bytes);
            add_nodes(&mut madt.processors, &bytes);
            memory_nodes(&bytes);
        }
    }
}
