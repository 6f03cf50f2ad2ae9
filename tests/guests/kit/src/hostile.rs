//! Calls of a hostile guest to its host: every kind, well-formed and malformed.
//!
//! The caller decides which ones it survives itself: [`Call::is_last`] and [`Call::converts`] describe a call's effect
//! on the guest. Timers and messages come with any vector, also those of exceptions, so the caller should keep
//! interrupts disabled. The host's own tests make the same calls to the host's code without a machine.

use core::ops::Range;

use seam::abi::ghci::Request;
use seam::abi::{Gprs, PAGE_2M, PAGE_4K};

use crate::numbers::Numbers;

/// The resources that hostile calls refer to.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The SHARED bit.
    pub shared: u64,
    /// Memory that may be converted, between two multiples of 2 MiB. The 2 MiB behind it are shared pages for data
    /// that the host writes; few calls convert them.
    pub memory: Range<u64>,
    /// Number of vCPUs that can receive interrupts.
    pub vcpus: u32,
}

/// Ports with a device, and two without.
const PORTS: [u64; 17] = [
    0x3F9, 0x3FA, 0x3FB, 0x3FD, 0x3FF, 0x70, 0x71, 0x600, 0x602, 0x608, 0xCF8, 0xCFC, 0xCFE, 0x80,
    0x510, 0x511, 0x514,
];
/// The port that starts a transfer to memory.
const TRANSFER: u64 = 0x518;
/// Ports that end a TD: power-off, reset, the keyboard controller's, and the panic port.
const LAST_PORTS: [u64; 4] = [0x604, 0xCF9, 0x64, 0x505];
/// MSRs that the host handles.
const MSRS: [u64; 11] = [
    0x6E0, 0x1B, 0xFE, 0x830, 0x832, 0x838, 0x83E, 0x80F, 0x179, 0x2FF, 0x1A0,
];
const ICR: u64 = 0x830;
const TSC_DEADLINE: u64 = 0x6E0;
/// The I/O APIC, and an address without a device.
const IO_APIC: u64 = 0xFEC0_0000;
const NOTHING: u64 = 0xFED0_0000;

/// Number of pages in the buffer for quotes.
pub const QUOTES: u64 = 4;

/// A call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The registers. The caller sets RCX.
    pub regs: Gprs,
}

/// Builds the registers of a call: sub-function in R11, operands in R12 to R15.
#[must_use]
pub fn registers(function: u64, operands: [u64; 4]) -> Gprs {
    let [r12, r13, r14, r15] = operands;
    Gprs {
        r11: function,
        r12,
        r13,
        r14,
        r15,
        ..Gprs::default()
    }
}

impl Ground {
    /// Returns the 2 MiB whose pages are shared most of the time.
    #[must_use]
    pub const fn buffer(&self) -> u64 {
        self.memory.end
    }

    /// Generates the next call.
    pub fn next(&self, numbers: &mut Numbers) -> Call {
        const COMMON: [Request; 15] = [
            Request::Cpuid,
            Request::Hlt,
            Request::Io,
            Request::Io,
            Request::Rdmsr,
            Request::Wrmsr,
            Request::Wrmsr,
            Request::Mmio,
            Request::Mmio,
            Request::Pconfig,
            Request::GetTdVmCallInfo,
            Request::MapGpa,
            Request::GetQuote,
            Request::SetupEventNotifyInterrupt,
            Request::Service,
        ];
        let function = match numbers.below(32) {
            0 => numbers.next(),
            _ => numbers.of(&COMMON) as u64,
        };
        let mut regs = registers(function, self.operands(numbers, function));
        regs.rdx = numbers.next();
        regs.rbx = numbers.next();
        regs.rsi = numbers.next();
        if numbers.once_in(64) {
            regs.r10 = numbers.next();
        }
        Call { regs }
    }

    /// Generates the start of a transfer whose descriptor is in the buffer, or anywhere.
    fn transfer(&self, numbers: &mut Numbers, wild: u64) -> [u64; 4] {
        let word = self.buffer() + numbers.below(QUOTES * PAGE_4K / 8) * 8;
        let at = numbers.of(&[word, word, wild]) as u32;
        [4, 1, TRANSFER, at.swap_bytes().into()]
    }

    /// Generates operands for a sub-function. Half of the time they are of the kind that it takes.
    fn operands(&self, numbers: &mut Numbers, function: u64) -> [u64; 4] {
        let wild = [(); 4].map(|()| self.operand(numbers));
        let any = numbers.next();
        if any & 1 == 0 {
            return wild;
        }
        let any = any >> 1;
        match Request::from_number(function) {
            Some(Request::Cpuid) => {
                let leaf = numbers.of(&[0xB, 0x1F, 6, 0x4000_0000, 0x4000_0001]);
                [leaf, any % 4, 0, 0]
            }
            Some(Request::Hlt) => [any % 3, 0, 0, 0],
            Some(Request::Io) if numbers.once_in(4) => self.transfer(numbers, wild[3]),
            Some(Request::Io) => {
                let port = match any >> 8 & 1 {
                    0 => numbers.of(&PORTS),
                    _ => wild[2] & 0xFFFF,
                };
                [numbers.of(&[1, 2, 4]), any % 2, port, wild[3]]
            }
            Some(Request::Rdmsr) => [self.msr(numbers), 0, 0, 0],
            Some(Request::Wrmsr) => self.wrmsr(numbers, wild[1]),
            Some(Request::Mmio) => {
                let gpa = numbers.of(&[IO_APIC, IO_APIC + 0x10, NOTHING, wild[2] & 0xFF_FFF8]);
                let space = numbers.of(&[0, self.shared, self.shared]);
                [numbers.of(&[1, 2, 4, 8]), any % 2, space | gpa, wild[3]]
            }
            Some(Request::MapGpa) => self.map_gpa(numbers),
            Some(Request::GetQuote) => {
                let at = self.buffer() + (any >> 8) % QUOTES * PAGE_4K;
                let size = numbers.of(&[0, PAGE_4K, PAGE_4K, PAGE_4K, 0x800]);
                let space = numbers.of(&[0, self.shared, self.shared]);
                [space | at, size, 0, 0]
            }
            Some(Request::SetupEventNotifyInterrupt) => [any % 512, 0, 0, 0],
            Some(Request::Service) => {
                let at = self.shared | self.buffer();
                let vector = numbers.of(&[0, 0x50, 7]);
                [at, at + PAGE_4K + any % 2 * 8, vector, 0]
            }
            _ => [any % 3, wild[1], wild[2], wild[3]],
        }
    }

    /// Generates a register value: arbitrary, or one that a host might accept.
    fn operand(&self, numbers: &mut Numbers) -> u64 {
        const EDGES: [u64; 10] = [
            0,
            1,
            2,
            3,
            4,
            8,
            16,
            u64::MAX,
            1 << 63,
            u64::MAX - PAGE_4K + 1,
        ];
        let any = numbers.next();
        match any % 8 {
            0 => any,
            1 => any >> (any % 64),
            2 => 1 << (any >> 8 & 63),
            3 => numbers.of(&EDGES),
            4 => self.somewhere(numbers) | ((any >> 40) % 40 * PAGE_4K),
            5 => self.somewhere(numbers) | ((any >> 40) % 40 * PAGE_2M),
            6 => any >> 32 & 0xFFFF,
            _ => numbers.of(&PORTS),
        }
    }

    fn somewhere(&self, numbers: &mut Numbers) -> u64 {
        numbers.of(&[0, self.shared]) | self.memory.start
    }

    /// Generates a range of memory: usually a few pages, sometimes more than one step of 2 MiB.
    fn map_gpa(&self, numbers: &mut Numbers) -> [u64; 4] {
        let blocks = (self.memory.end - self.memory.start) / PAGE_2M;
        let block = self.memory.start + numbers.below(blocks) * PAGE_2M;
        let space = numbers.of(&[0, self.shared]);
        let (at, bytes) = match numbers.below(16) {
            0 => (block, PAGE_2M),
            // Never within the last block, so that the range may extend into the next.
            1 => (block + PAGE_2M - 2 * PAGE_4K, 4 * PAGE_4K),
            2 => (block, PAGE_4K / 2),
            3 if numbers.once_in(64) => (self.buffer(), QUOTES * PAGE_4K),
            // Long enough to be interrupted.
            4..=8 => (self.memory.start, blocks.min(8) * PAGE_2M),
            pages => (block + numbers.below(64) * PAGE_4K, pages / 4 * PAGE_4K),
        };
        [space | at, bytes, 0, 0]
    }

    fn msr(&self, numbers: &mut Numbers) -> u64 {
        let any = numbers.next();
        match any % 4 {
            0 => 0x800 + (any >> 8) % 0x40,
            1 => 0x200 + (any >> 8) % 0x110,
            2 => numbers.of(&MSRS),
            _ => self.operand(numbers),
        }
    }

    fn wrmsr(&self, numbers: &mut Numbers, wild: u64) -> [u64; 4] {
        match numbers.below(8) {
            0 => {
                let to = numbers.below(u64::from(self.vcpus) + 1) << 32;
                [ICR, to | (0x40 + numbers.below(16)), 0, 0]
            }
            // All, others, and nobody; vectors and delivery modes that exist and that do not.
            1 => [ICR, numbers.next() & 0xC_0FFF, 0, 0],
            2 => [TSC_DEADLINE, wild, 0, 0],
            _ => {
                let value = numbers.of(&[0, 1, 0x31, 0x1FF, 2 << 17 | 0x41, wild]);
                [self.msr(numbers), value, 0, 0]
            }
        }
    }
}

impl Call {
    /// Returns the request if it is one of the standard ones.
    #[must_use]
    pub fn request(&self) -> Option<Request> {
        (self.regs.r10 == 0)
            .then(|| Request::from_number(self.regs.r11))
            .flatten()
    }

    /// Returns true if the call ends the TD.
    #[must_use]
    pub fn is_last(&self) -> bool {
        match self.request() {
            Some(Request::ReportFatalError) => true,
            Some(Request::Io) => LAST_PORTS.contains(&self.regs.r14),
            _ => false,
        }
    }

    /// Returns the memory that the call may convert, without the SHARED bit; `None` if the call is another request, or
    /// one that no host can carry out.
    #[must_use]
    pub fn converts(&self, ground: &Ground) -> Option<Range<u64>> {
        if self.request() != Some(Request::MapGpa) {
            return None;
        }
        let start = self.regs.r12 & !ground.shared;
        let end = start.checked_add(self.regs.r13)?;
        let is_whole = start.is_multiple_of(PAGE_4K) && end.is_multiple_of(PAGE_4K);
        (is_whole && end <= ground.shared && start < end).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground() -> Ground {
        Ground {
            shared: 1 << 47,
            memory: 64 << 20..96 << 20,
            vcpus: 2,
        }
    }

    #[test]
    fn a_call_that_converts_memory_tells_which() {
        let ground = ground();
        let map = |at, bytes| Call {
            regs: registers(Request::MapGpa as u64, [at, bytes, 0, 0]),
        };
        assert_eq!(
            map(1 << 47 | 0x5000, 0x1000).converts(&ground),
            Some(0x5000..0x6000)
        );
        for (at, bytes) in [
            (0, 0),
            (8, 0x1000),
            (0, 8),
            (0x1000, !0xFFF),
            (1 << 48, 0x1000),
            (0x1000, 1 << 47),
        ] {
            assert_eq!(map(at, bytes).converts(&ground), None, "{at:#x} {bytes:#x}");
        }
        let vendor = Call {
            regs: Gprs {
                r10: 1,
                ..map(0, 0x1000).regs
            },
        };
        assert_eq!(vendor.converts(&ground), None);
    }

    #[test]
    fn what_ends_the_guest_is_told_from_what_does_not() {
        let call = |function: Request, operands| Call {
            regs: registers(function as u64, operands),
        };
        assert!(call(Request::ReportFatalError, [0; 4]).is_last());
        assert!(call(Request::Io, [1, 1, 0xCF9, 6]).is_last());
        assert!(!call(Request::Io, [1, 1, 0x3F8, 6]).is_last());
    }

    #[test]
    fn every_request_is_made_and_most_conversions_stay_on_the_ground() {
        let ground = ground();
        let mut numbers = Numbers::new(1);
        let mut seen = [0; Request::ALL.len()];
        let (mut inside, mut outside) = (0, 0);
        for _ in 0..100_000 {
            let call = ground.next(&mut numbers);
            if let Some(request) = call.request() {
                seen[Request::ALL.iter().position(|r| *r == request).unwrap()] += 1;
            }
            if let Some(range) = call.converts(&ground) {
                let last = ground.buffer() + PAGE_2M;
                if range.start >= ground.memory.start && range.end <= last {
                    inside += 1;
                } else {
                    outside += 1;
                }
            }
        }
        for (count, request) in seen.iter().zip(Request::ALL) {
            assert!(
                *count > 1000 || *request == Request::ReportFatalError,
                "{request:?}"
            );
        }
        assert!(inside > 1000 && outside < inside, "{inside} {outside}");
    }
}
