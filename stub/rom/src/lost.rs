//! Detection of a guest whose state or whose entry TCG has lost.
//!
//! TCG 7.2 sometimes leaves CPU 0 in nested paging when it exits a guest while another CPU loads x87 state. The
//! monitor's first instruction then takes a nested page fault, and the guest's state is lost. The machine can't
//! continue after that.
//!
//! A guest can load any CR3 and execute at any address, so neither distinguishes the monitor's state from a guest's.
//! The limits of the monitor's descriptor tables do: they are drawn at random when the monitor starts, and no guest can
//! read them.
//!
//! The same race in the other direction enters a guest on CPU 0 without nested paging. The CPU then walks the guest's page
//! tables in the host's memory, and the guest triple-faults before its first instruction. The guest's state is intact:
//! [`Entered`] remembers the entry, which the monitor repeats.

/// Limits of the monitor's GDT and IDT, in bytes less one. Both cover the tables; the excess is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The GDT's limit.
    pub gdt: u16,
    /// The IDT's limit.
    pub idt: u16,
}

impl Limits {
    /// The smallest limit drawn: the IDT's 256 gates take 4 KiB.
    const LEAST: u16 = 0x0FFF;

    /// Derives limits from 31 bits of a random number.
    #[must_use]
    pub const fn draw(random: u64) -> Self {
        const fn limit(random: u16) -> u16 {
            Limits::LEAST + random % (u16::MAX - Limits::LEAST + 1)
        }
        Self {
            gdt: limit(random as u16),
            idt: limit((random >> 16) as u16),
        }
    }
}

/// The state that identifies the monitor.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// CR3.
    pub cr3: u64,
    /// Base and size in bytes of the SEAM range, which holds the monitor's code.
    pub seamrr: (u64, u64),
    /// The limits of the monitor's descriptor tables.
    pub limits: Limits,
}

/// A CPU's state at a nested page fault.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The number of the logical processor.
    pub lp: u32,
    /// The guest-physical address.
    pub address: u64,
    /// CR3.
    pub cr3: u64,
    /// The instruction pointer.
    pub rip: u64,
    /// The GDT's limit.
    pub gdt_limit: u32,
    /// The IDT's limit.
    pub idt_limit: u32,
}

impl Own {
    /// Returns whether the monitor itself took the nested page fault.
    #[must_use]
    pub fn has_taken(&self, fault: &Fault) -> bool {
        let (base, size) = self.seamrr;
        fault.lp == 0
            && fault.address == self.cr3
            && fault.cr3 == self.cr3
            && (base..base + size).contains(&fault.rip)
            && fault.gdt_limit == u32::from(self.limits.gdt)
            && fault.idt_limit == u32::from(self.limits.idt)
    }
}

/// The guest state at an entry that the monitor needs to repeat it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The instruction pointer.
    pub rip: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// CR2.
    pub cr2: u64,
    /// The event to deliver, in the VMCB's format.
    pub event: u64,
}

/// The last entry of a guest on one CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entered {
    entry: Entry,
    was_repeated: bool,
}

impl Entered {
    /// Records an entry.
    #[inline(always)]
    pub fn note(&mut self, entry: Entry) {
        self.entry = entry;
    }

    /// Records an exit other than a triple fault.
    #[inline(always)]
    pub fn settle(&mut self) {
        self.was_repeated = false;
    }

    /// Returns the entry to repeat after a triple fault on CPU `lp` with the guest at `rip` and `rsp`. Returns `None` if the
    /// guest itself caused the fault: it has executed something, it has triple-faulted twice in a row, or `lp` is not 0.
    #[must_use]
    pub fn repeat(&mut self, lp: u32, rip: u64, rsp: u64) -> Option<Entry> {
        let has_begun = (rip, rsp) != (self.entry.rip, self.entry.rsp);
        if lp != 0 || has_begun || self.was_repeated {
            self.was_repeated = false;
            return None;
        }
        self.was_repeated = true;
        Some(self.entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: Entry = Entry {
        rip: 0xFFFF_8000_0000_1000,
        rsp: 0xFFFF_C000_0000_0F00,
        cr2: 0x1234,
        event: 0x8000_00EC,
    };

    fn entered() -> Entered {
        let mut entered = Entered::default();
        entered.note(ENTRY);
        entered
    }

    #[test]
    fn a_guest_that_has_not_executed_is_entered_again_once() {
        let mut entered = entered();
        assert_eq!(entered.repeat(0, ENTRY.rip, ENTRY.rsp), Some(ENTRY));
        entered.note(ENTRY);
        assert_eq!(entered.repeat(0, ENTRY.rip, ENTRY.rsp), None, "in a row");
    }

    #[test]
    fn an_exit_in_between_allows_another_repetition() {
        let mut entered = entered();
        assert_eq!(entered.repeat(0, ENTRY.rip, ENTRY.rsp), Some(ENTRY));
        entered.note(ENTRY);
        entered.settle();
        entered.note(ENTRY);
        assert_eq!(entered.repeat(0, ENTRY.rip, ENTRY.rsp), Some(ENTRY));
    }

    #[test]
    fn a_guest_that_has_executed_or_runs_on_another_cpu_has_faulted_itself() {
        assert_eq!(entered().repeat(0, ENTRY.rip + 1, ENTRY.rsp), None);
        assert_eq!(entered().repeat(0, ENTRY.rip, ENTRY.rsp - 8), None);
        assert_eq!(entered().repeat(1, ENTRY.rip, ENTRY.rsp), None);
    }

    const OWN: Own = Own {
        cr3: 0x7E00_1000,
        seamrr: (0x7E00_0000, 0x200_0000),
        limits: Limits {
            gdt: 0x1234,
            idt: 0x5678,
        },
    };

    const MONITOR: Fault = Fault {
        lp: 0,
        address: 0x7E00_1000,
        cr3: 0x7E00_1000,
        rip: 0x7E00_2345,
        gdt_limit: 0x1234,
        idt_limit: 0x5678,
    };

    #[test]
    fn the_monitors_own_fault_is_recognised() {
        assert!(OWN.has_taken(&MONITOR));
    }

    #[test]
    fn a_guest_with_the_monitors_cr3_and_rip_is_not_mistaken_for_it() {
        for limits in [(0x7F, 0xFFF), (0x1234, 0xFFF), (0x7F, 0x5678)] {
            let guest = Fault {
                gdt_limit: limits.0,
                idt_limit: limits.1,
                ..MONITOR
            };
            assert!(!OWN.has_taken(&guest), "{limits:x?}");
        }
        for guest in [
            Fault { lp: 1, ..MONITOR },
            Fault {
                address: 0x7E00_2000,
                ..MONITOR
            },
            Fault {
                cr3: 0x1000,
                ..MONITOR
            },
            Fault {
                rip: 0x8000_0000,
                ..MONITOR
            },
        ] {
            assert!(!OWN.has_taken(&guest), "{guest:x?}");
        }
    }

    #[test]
    fn every_limit_covers_the_tables() {
        for random in [0, 1, 0xF000, 0xF001, 0xFFFF, 0xF001_F001, u64::MAX] {
            let Limits { gdt, idt } = Limits::draw(random);
            assert!(gdt >= Limits::LEAST && idt >= Limits::LEAST, "{random:x}");
        }
        assert_ne!(Limits::draw(1 << 16), Limits::draw(1));
    }
}
