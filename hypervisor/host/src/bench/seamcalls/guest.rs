//! The guest of the benchmark's TD: a program of a few instructions, and a host that does nothing for it but enter it.
//!
//! The program switches to 64-bit mode, accepts one large page, and then makes TDG.VP.VMCALLs in a loop. The time of an
//! entry that ends with such a call is thus that of the transitions into and out of the guest, plus a few instructions.

use alloc::{boxed::Box, format, string::String, string::ToString, sync::Arc, vec::Vec};

use mm::{private::Levels, shared::SharedMap};
use seam::address::SHARED;
use seam::{
    abi::{Gprs, GuestLeaf, PAGE_2M, PAGE_4K, Status, ghci::Request},
    address::Level,
    tdh::EnterFlags,
};
use sync::Mutex;
use td_base::long_mode::{CODE, CR0, CR4, SEGMENTS};
use tdvf::{Entry, Kind, TAIL_BYTES};
use vcpu::{
    Wiring,
    exit::{Exit, Obstacle},
    posted::Descriptor,
};

use crate::{
    platform::Running,
    td::{
        Td,
        error::Error,
        host::{GuestEnd, Runner},
        vcpu::Held,
    },
};

/// The large page that the program accepts.
pub const ACCEPTED: u64 = PAGE_2M;

/// Limits on reaching the next call: microseconds, and entries.
const MAX_US: u64 = 1_000_000;
const MAX_ENTRIES: u32 = 10_000;

/// Layout of guest memory: the image ends at 4 GiB, and a vCPU starts 16 bytes below.
const IMAGE: u32 = IMAGE_BYTES.wrapping_neg();
const IMAGE_BYTES: u32 = 8 * PAGE_4K as u32;
const ROOT: u32 = IMAGE;
const DIRECTORY: u32 = IMAGE + 0x1000;
const GDT: u32 = IMAGE + 0x2000;
const GDT_POINTER: u32 = GDT + 0x40;
const PROGRAM: u32 = GDT + 0x80;
const START: u32 = 16u32.wrapping_neg();

/// Bytes of the program before its 64-bit part.
const BEFORE_64: u32 = 44;

/// The program, in steps that each end with a 32-bit operand. EFER.LME is set when a vCPU starts.
const STEPS: [(&[u8], u32); 9] = [
    // movl %cr4, %eax; orl $CR4, %eax
    (&[0x0F, 0x20, 0xE0, 0x0D], CR4),
    // movl %eax, %cr4; movl $ROOT, %eax
    (&[0x0F, 0x22, 0xE0, 0xB8], ROOT),
    // movl %eax, %cr3; movl %cr0, %eax; orl $CR0, %eax
    (&[0x0F, 0x22, 0xD8, 0x0F, 0x20, 0xC0, 0x0D], CR0),
    // movl %eax, %cr0; lgdtl GDT_POINTER
    (&[0x0F, 0x22, 0xC0, 0x0F, 0x01, 0x15], GDT_POINTER),
    // ljmpl $CODE, $(PROGRAM + BEFORE_64)
    (&[0xEA], PROGRAM + BEFORE_64),
    // CS selector; 64-bit code from here on: movl $(ACCEPTED + level), %ecx
    (&[CODE as u8, 0, 0xB9], ACCEPTED as u32 | Level::Pd as u32),
    // movl $MemPageAccept, %eax
    (&[0xB8], GuestLeaf::MemPageAccept as u32),
    // tdcall; movq %rax, %r12; 1: xorl %r10d, %r10d; movl $GetTdVmCallInfo, %r11d
    (
        &[
            0x66, 0x0F, 0x01, 0xCC, 0x49, 0x89, 0xC4, 0x45, 0x31, 0xD2, 0x41, 0xBB,
        ],
        Request::GetTdVmCallInfo as u32,
    ),
    // movl $(R10 to R12), %ecx
    (&[0xB9], 0b111 << 10),
];
/// xorl %eax, %eax (VpVmcall); tdcall; jmp 1b
const LAST_STEP: [u8; 8] = [0x31, 0xC0, 0x66, 0x0F, 0x01, 0xCC, 0xEB, 0xEA];

/// Returns the image: page tables that identity-map 4 GiB, segments, the program, and HLT everywhere else.
pub fn image() -> Vec<u8> {
    const HLT: u8 = 0xF4;
    /// Page-table flags: present, writable, accessed, dirty, large page.
    const TABLE: u64 = 0x23;
    const PAGE: u64 = 0xE3;

    let firmware = Entry {
        data: 0..IMAGE_BYTES,
        gpa: IMAGE.into(),
        bytes: IMAGE_BYTES.into(),
        kind: Kind::Bfv as u32,
        attributes: 1,
    };
    let content = IMAGE_BYTES as usize - tdvf::metadata_bytes(1) - TAIL_BYTES;
    let mut image = alloc::vec![HLT; content];
    let mut put = |at: u32, bytes: &[u8]| {
        let at = (at - IMAGE) as usize;
        image[at..at + bytes.len()].copy_from_slice(bytes);
        at as u32 + bytes.len() as u32 + IMAGE
    };
    put(ROOT, &[0; 2 * PAGE_4K as usize]);
    put(ROOT, &(u64::from(DIRECTORY) | TABLE).to_le_bytes());
    let mut at = DIRECTORY;
    for gib in 0..4_u64 {
        at = put(at, &(gib << 30 | PAGE).to_le_bytes());
    }
    at = GDT;
    for segment in SEGMENTS {
        at = put(at, &segment.to_le_bytes());
    }
    put(GDT_POINTER, &((at - GDT - 1) as u16).to_le_bytes());
    put(GDT_POINTER + 2, &GDT.to_le_bytes());
    at = PROGRAM;
    for (code, operand) in STEPS {
        at = put(at, code);
        at = put(at, &operand.to_le_bytes());
    }
    put(at, &LAST_STEP);

    // jmp PROGRAM
    let mut tail = [HLT; TAIL_BYTES];
    let start = &mut tail[TAIL_BYTES - 16..];
    start[0] = 0xE9;
    start[1..5].copy_from_slice(&PROGRAM.wrapping_sub(START + 5).to_le_bytes());
    tdvf::write(&image, &[firmware], &tail)
}

/// Wiring of the TD's vCPUs: empty shared memory, and descriptors to which nothing is posted.
pub struct Wires<'p, P: Running> {
    platform: &'p P,
    // On the heap, so that their addresses stay fixed for the CPU.
    descriptors: Box<[Descriptor]>,
    shared: Mutex<Option<SharedMap>>,
}

impl<'p, P: Running> Wires<'p, P> {
    /// Creates the wiring for a TD with `vcpus` vCPUs. The TD may be rebuilt any number of times.
    pub fn new(platform: &'p P, vcpus: u16) -> Self {
        Self {
            platform,
            descriptors: (0..vcpus).map(|_| Descriptor::new()).collect(),
            shared: Mutex::new(None),
        }
    }

    fn cut(&self) {
        if let Some(shared) = self.shared.lock().take() {
            shared.dissolve(self.platform.shared_frames());
        }
    }
}

impl<P: Running> Runner for Wires<'_, P> {
    fn prepare(&self, _: &Td) -> Result<(), String> {
        let shared = SharedMap::new(self.platform.shared_frames(), Levels::Four, SHARED);
        *self.shared.lock() = Some(shared.map_err(|error| error.to_string())?);
        Ok(())
    }

    fn wiring(&self, _: &Td, index: u16) -> Option<Wiring> {
        let descriptor = self.descriptors.get(usize::from(index))?;
        Some(Wiring {
            descriptor: self.platform.descriptor_at(descriptor),
            notification: self.platform.notification_vector(),
            shared: self.shared.lock().as_ref()?.root(),
        })
    }

    fn start(&self, _: &Arc<Td>) {}

    fn end(&self, _: &Td) {
        self.cut();
    }

    fn shrunk(&self, _: &Td) -> bool {
        true
    }

    fn guest_end(&self, _: &Td) -> Option<GuestEnd> {
        None
    }

    // The benchmark itself does the work.
    fn work_waits(&self) {}
}

impl<P: Running> Drop for Wires<'_, P> {
    // Covers an end that got stuck before `Runner::end`; the TD is not entered any more.
    fn drop(&mut self) {
        self.cut();
    }
}

/// The vCPU that runs the program on the calling CPU, with interrupts off.
pub struct Entered<'a, P> {
    platform: &'a P,
    held: Held<'a>,
    regs: Gprs,
}

impl<'a, P: Running> Entered<'a, P> {
    /// Enters the vCPU for the first time, up to its first call. The guest has accepted its page by then.
    ///
    /// # Errors
    /// As [`Self::measure`]; [`Error::Runner`] if the page could not be accepted.
    pub fn begin(platform: &'a P, held: Held<'a>) -> Result<Self, Error> {
        let mut this = Self {
            platform,
            held,
            regs: Gprs::default(),
        };
        this.enter()?;
        match Status(this.regs.r12) {
            Status::SUCCESS => Ok(this),
            status => Err(Error::Runner(format!(
                "its guest could not accept a page of 2 MiB: {status:?}"
            ))),
        }
    }

    /// Enters the vCPU `entries` times, each up to its next call, with the machine's stopwatch running.
    ///
    /// # Errors
    /// [`Error::Runner`] if an entry ends with anything else, or not in time; [`Error::Vcpu`]; [`Error::Seam`].
    pub fn measure(&mut self, entries: usize) -> Result<(), Error> {
        let tdvpr = self.held.tdvpr().map_err(Error::Vcpu)?.hpa();
        let stopwatch = self.platform.stopwatch();
        stopwatch.with_entries_of(tdvpr, || (0..entries).try_for_each(|_| self.enter()))
    }

    /// Enters the vCPU until its next call.
    fn enter(&mut self) -> Result<(), Error> {
        let platform = self.platform;
        let until = platform.tsc() + MAX_US * (platform.tsc_hz() / 1_000_000);
        // The timer interrupts the guest whatever it does.
        platform.set_timer(Some(until));
        let entered = self.enter_until(until);
        platform.set_timer(None);
        entered
    }

    fn enter_until(&mut self, until: u64) -> Result<(), Error> {
        let platform = self.platform;
        for _ in 0..MAX_ENTRIES {
            let tdvpr = self.held.tdvpr().map_err(Error::Vcpu)?;
            let tdh = platform.tdh();
            let status = tdh.vp_enter(tdvpr, EnterFlags::default(), &mut self.regs)?;
            match Exit::decode(status, &self.regs, SHARED) {
                Exit::Call => {
                    self.regs.r10 = 0;
                    return Ok(());
                }
                Exit::Interrupt { vector } => platform.serve_interrupt(vector),
                Exit::Nmi => platform.serve_nmi(),
                Exit::NotEntered(Obstacle::Busy(_)) => platform.take_interrupts(),
                Exit::Passed | Exit::BusLock | Exit::Notify | Exit::HostHadPriority => {}
                exit => {
                    if matches!(exit, Exit::MachineCheck(_)) {
                        platform.serve_machine_check();
                    }
                    return Err(Error::Runner(format!(
                        "TDH.VP.ENTER came back with something else than its guest's call: {exit:?}"
                    )));
                }
            }
            if platform.tsc() >= until {
                break;
            }
        }
        Err(Error::Runner(
            "TDH.VP.ENTER did not come back with its guest's call in time".into(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tdvf::TdImage;

    fn operand(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_image_is_one_and_its_jumps_lead_where_they_should() {
        let image = image();
        let parsed = TdImage::parse(&image).unwrap();
        let [section] = parsed.sections() else {
            panic!("{:?}", parsed.sections());
        };
        assert_eq!((section.gpa, section.bytes), (0xFFFF_8000, 0x8000));
        assert!(!section.augmented);

        let start = image.len() - 16;
        assert_eq!(image[start], 0xE9);
        let target = START
            .wrapping_add(5)
            .wrapping_add(operand(&image, start + 1));
        assert_eq!(target, PROGRAM);

        let program = &image[(PROGRAM - IMAGE) as usize..];
        let far = BEFORE_64 as usize - 7;
        assert_eq!(program[far], 0xEA);
        assert_eq!(operand(program, far + 1), PROGRAM + BEFORE_64);
        assert_eq!(program[far + 5..far + 8], [CODE as u8, 0, 0xB9]);

        let len: usize = STEPS.iter().map(|(code, _)| code.len() + 4).sum();
        let end = len + LAST_STEP.len();
        let back = program[end - 1] as i8;
        let again = end.wrapping_add_signed(back.into());
        assert_eq!(program[again..again + 3], [0x45, 0x31, 0xD2]);
    }
}
