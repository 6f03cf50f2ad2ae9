//! The virtual local APIC of a TD vCPU, with VMX's virtual-interrupt delivery and posted interrupts.
//!
//! Source: Intel SDM volume 3, chapter "APIC Virtualization and Virtual Interrupts". The registers lie in the vCPU's
//! virtual-APIC page. The requested and in-service vectors (RVI and SVI) lie in its VMCS.

use core::sync::atomic::Ordering;

use seam::abi::x86::msr::x2apic::{EOI as MSR_EOI, SELF_IPI as MSR_SELF_IPI, TPR as MSR_TPR};
use stub_module::PageWords;
use stub_module::vcpu::{Field, Vcpu};

const TPR: usize = 0x80;
const PPR: usize = 0xA0;
const ISR: usize = 0x100;
const IRR: usize = 0x200;
/// Mask of an interrupt's class, which is its priority.
const CLASS: u8 = 0xF0;

/// The virtual APIC of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct VirtualApic<'a, 'm> {
    vcpu: &'a Vcpu<'m>,
}

/// The outcome of a write to an x2APIC MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The write is complete.
    Done,
    /// #GP(0).
    Gp,
    /// An APIC-write VM exit for the register at this offset. The instruction is complete.
    Exit(u64),
}

impl<'a, 'm> VirtualApic<'a, 'm> {
    /// Returns the virtual APIC of `vcpu`.
    #[must_use]
    pub const fn of(vcpu: &'a Vcpu<'m>) -> Self {
        Self { vcpu }
    }

    fn read(&self, offset: usize) -> u32 {
        self.vcpu.vapic()[offset / 8].load(Ordering::Relaxed) as u32
    }

    fn write(&self, offset: usize, value: u32) {
        self.vcpu.vapic()[offset / 8].store(value.into(), Ordering::Relaxed);
    }

    /// Sets or clears a vector's bit in ISR or IRR.
    fn mark(&self, set: usize, vector: u8, on: bool) {
        let offset = set + usize::from(vector / 32) * 16;
        let bit = 1 << (vector % 32);
        let old = self.read(offset);
        self.write(offset, if on { old | bit } else { old & !bit });
    }

    /// Returns the highest vector in ISR or IRR; 0 if there is none.
    fn highest(&self, set: usize) -> u8 {
        (0..8)
            .rev()
            .find_map(|i| {
                let word = self.read(set + i * 16);
                (word != 0).then(|| (i * 32) as u8 + 31 - word.leading_zeros() as u8)
            })
            .unwrap_or(0)
    }

    /// Returns RVI, the highest requested vector.
    fn requested(&self) -> u8 {
        self.vcpu.vmcs(Field::INTERRUPT_STATUS) as u8
    }

    /// Returns SVI, the highest vector in service.
    fn in_service(&self) -> u8 {
        (self.vcpu.vmcs(Field::INTERRUPT_STATUS) >> 8) as u8
    }

    fn set_status(&self, requested: u8, in_service: u8) {
        let status = u64::from(in_service) << 8 | u64::from(requested);
        self.vcpu.set_vmcs(Field::INTERRUPT_STATUS, status);
    }

    /// Returns the task priority.
    #[must_use]
    pub fn task_priority(&self) -> u8 {
        self.read(TPR) as u8
    }

    /// Sets the task priority.
    pub fn set_task_priority(&self, priority: u8) {
        self.write(TPR, priority.into());
        self.update_priority();
    }

    /// Performs PPR virtualization.
    fn update_priority(&self) {
        let (task, service) = (self.task_priority(), self.in_service());
        let priority = if task & CLASS >= service & CLASS {
            task
        } else {
            service & CLASS
        };
        self.write(PPR, priority.into());
    }

    /// Updates the priority before the guest is entered, after possible changes by the host and the module.
    pub fn evaluate(&self) {
        self.update_priority();
    }

    /// Returns the interrupt to deliver next, if the guest accepts interrupts.
    #[must_use]
    pub fn deliverable(&self) -> Option<u8> {
        let requested = self.requested();
        (requested & CLASS > self.read(PPR) as u8 & CLASS).then_some(requested)
    }

    /// Returns whether an interrupt waits for the task priority to be lowered.
    #[must_use]
    pub fn waits_for_priority(&self) -> bool {
        let requested = self.requested() & CLASS;
        requested > self.in_service() & CLASS && requested <= self.task_priority() & CLASS
    }

    /// Performs virtual-interrupt delivery: the guest has started to handle `vector`.
    pub fn deliver(&self, vector: u8) {
        self.mark(ISR, vector, true);
        self.mark(IRR, vector, false);
        self.write(PPR, (vector & CLASS).into());
        self.set_status(self.highest(IRR), vector);
    }

    /// Requests a vector.
    pub fn request(&self, vector: u8) {
        self.mark(IRR, vector, true);
        self.set_status(self.requested().max(vector), self.in_service());
    }

    /// Performs posted-interrupt processing: clears the outstanding-notification bit of the descriptor at word `first`
    /// of the host's page `page`, then takes over the descriptor's requests.
    pub fn take_posted(&self, page: &PageWords, first: usize) {
        const OUTSTANDING: u64 = 1;
        page[first + 4].fetch_and(!OUTSTANDING, Ordering::SeqCst);
        for (number, requests) in (0..).zip(&page[first..first + 4]) {
            let mut requests = requests.swap(0, Ordering::SeqCst);
            while requests != 0 {
                let bit = requests.trailing_zeros() as u8;
                requests &= requests - 1;
                self.request(number * 64 + bit);
            }
        }
    }

    fn end_of_interrupt(&self) {
        let vector = self.in_service();
        self.mark(ISR, vector, false);
        self.set_status(self.requested(), self.highest(ISR));
        self.update_priority();
    }

    /// Executes RDMSR of 0x800 to 0x8FF where the MSR bitmap permits it.
    #[must_use]
    pub fn read_msr(&self, msr: u32) -> u64 {
        self.vcpu.vapic()[(msr as usize & 0xFF) * 2].load(Ordering::Relaxed)
    }

    /// Executes WRMSR of 0x800 to 0x8FF where the MSR bitmap permits it.
    pub fn write_msr(&self, msr: u32, value: u64) -> Written {
        const SELF_IPI: usize = 0x3F0;
        match msr {
            MSR_TPR if value <= 0xFF => self.set_task_priority(value as u8),
            MSR_EOI if value == 0 => self.end_of_interrupt(),
            MSR_SELF_IPI if value <= 0xFF => {
                self.write(SELF_IPI, value as u32);
                if value as u8 & CLASS == 0 {
                    return Written::Exit(SELF_IPI as u64);
                }
                self.request(value as u8);
            }
            _ => return Written::Gp,
        }
        Written::Done
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU64;

    use stub_module::vcpu::VCPU_PAGES;

    use super::*;

    fn with_apic(test: impl FnOnce(VirtualApic<'_, '_>)) {
        let pages: [PageWords; VCPU_PAGES] =
            [const { [const { AtomicU64::new(0) }; 512] }; VCPU_PAGES];
        let vcpu = Vcpu::new(pages.each_ref());
        test(VirtualApic::of(&vcpu));
    }

    #[test]
    fn the_highest_request_comes_first_and_waits_for_interrupts_in_service() {
        with_apic(|apic| {
            apic.request(0x41);
            apic.request(0x62);
            assert_eq!(apic.deliverable(), Some(0x62));
            apic.deliver(0x62);
            assert_eq!(apic.deliverable(), None, "a lower class");
            apic.request(0x6F);
            assert_eq!(apic.deliverable(), None, "the same class");
            apic.request(0x70);
            assert_eq!(apic.deliverable(), Some(0x70));
            apic.deliver(0x70);
            assert_eq!(apic.write_msr(MSR_EOI, 0), Written::Done);
            assert_eq!(apic.deliverable(), None);
            assert_eq!(apic.write_msr(MSR_EOI, 0), Written::Done);
            assert_eq!(apic.deliverable(), Some(0x6F));
            apic.deliver(0x6F);
            assert_eq!(apic.write_msr(MSR_EOI, 0), Written::Done);
            assert_eq!(apic.deliverable(), Some(0x41));
        });
    }

    #[test]
    fn the_task_priority_blocks_its_class_and_lower_ones() {
        with_apic(|apic| {
            apic.request(0x45);
            assert_eq!(apic.write_msr(MSR_TPR, 0x40), Written::Done);
            assert_eq!(apic.deliverable(), None);
            assert!(apic.waits_for_priority());
            assert_eq!(apic.write_msr(MSR_TPR, 0x3F), Written::Done);
            assert_eq!(apic.deliverable(), Some(0x45));
            assert!(!apic.waits_for_priority());
        });
    }

    #[test]
    fn a_repeated_request_is_taken_once() {
        with_apic(|apic| {
            apic.request(0x80);
            apic.request(0x80);
            apic.deliver(0x80);
            apic.request(0x80);
            assert_eq!(apic.write_msr(MSR_EOI, 0), Written::Done);
            assert_eq!(
                apic.deliverable(),
                Some(0x80),
                "it came while it was in service"
            );
            apic.deliver(0x80);
            assert_eq!(apic.write_msr(MSR_EOI, 0), Written::Done);
            assert_eq!(apic.deliverable(), None);
        });
    }

    #[test]
    fn posted_requests_are_taken_from_the_descriptor() {
        with_apic(|apic| {
            let page: PageWords = [const { AtomicU64::new(0) }; 512];
            page[8].store(1 << 0x31, Ordering::Relaxed);
            page[11].store(1 << 63, Ordering::Relaxed);
            page[12].store(0b11, Ordering::Relaxed);
            apic.take_posted(&page, 8);
            assert_eq!(apic.deliverable(), Some(0xFF));
            apic.deliver(0xFF);
            assert_eq!(apic.write_msr(MSR_EOI, 0), Written::Done);
            assert_eq!(apic.deliverable(), Some(0x31));
            assert_eq!(page[8].load(Ordering::Relaxed), 0);
            assert_eq!(page[12].load(Ordering::Relaxed), 0b10, "only ON is cleared");
        });
    }

    #[test]
    fn accesses_that_hardware_refuses_are_refused() {
        with_apic(|apic| {
            assert_eq!(apic.write_msr(MSR_EOI, 1), Written::Gp);
            assert_eq!(apic.write_msr(MSR_TPR, 0x100), Written::Gp);
            assert_eq!(apic.write_msr(0x80A, 0), Written::Gp);
            assert_eq!(apic.write_msr(MSR_SELF_IPI, 0xF), Written::Exit(0x3F0));
            assert_eq!(apic.write_msr(MSR_SELF_IPI, 0x21), Written::Done);
            assert_eq!(apic.deliverable(), Some(0x21));
            assert_eq!(apic.read_msr(0x821), 2, "IRR of vectors 32 to 63");
        });
    }
}
