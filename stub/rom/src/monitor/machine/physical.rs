//! Physical memory as the software on one processor may access it.
#![expect(unsafe_code, reason = "reads and writes memory of the software above")]

use core::sync::atomic::{AtomicU64, Ordering};

use stub_module::Module;
use stub_module::hooks::{Access, HostAccess};
use stub_rom::personality::KEYID_MASK;
use stub_rom::vmx::Memory;

use super::SeamCpu;
use crate::monitor::world::World;
use crate::report;

/// Physical memory of the software's page tables. Inaccessible memory reads as ones and ignores writes.
#[derive(Clone, Copy)]
pub struct Physical {
    world: &'static World,
    number: u32,
}

/// Physical memory of an emulated instruction's operands. Like [`Physical`], but accesses to inaccessible memory are
/// reported.
#[derive(Clone, Copy)]
pub struct Data {
    physical: Physical,
    /// The address of the instruction.
    rip: u64,
}

impl Physical {
    /// Returns the memory that the software on processor `number` may access.
    pub fn new(world: &'static World, number: u32) -> Self {
        Self { world, number }
    }

    /// Returns the memory that the instruction at `rip` may access.
    pub fn at(self, rip: u64) -> Data {
        Data {
            physical: self,
            rip,
        }
    }

    /// Returns whether the software may access the physical address. It must not lie in the SEAM range, have a KeyID,
    /// belong to a private page, or be out of the monitor's own reach.
    pub fn is_accessible(self, pa: u64) -> bool {
        pa < 1 << 47
            && !self.world.is_in_seamrr(pa)
            && (self.world.npt.maps(pa) || !self.is_private(pa))
    }

    /// Returns whether the page belongs to the module or to a TD.
    pub fn is_private(self, pa: u64) -> bool {
        let machine = SeamCpu::for_look_up(self.world, self.number);
        let module = self.world.module.as_ref();
        module.is_some_and(|module| module.is_private(&machine, pa))
    }
}

impl Data {
    /// Reports an access to memory that the software must not access.
    pub fn report_refused(self, pa: u64, access: Access) {
        let (Physical { world, number }, rip) = (self.physical, self.rip);
        if world.is_in_seamrr(pa) {
            report::violation("seamrr_access", number, rip, pa);
        } else if pa & KEYID_MASK != 0 {
            report::violation("keyid_alias", number, rip, pa);
        } else if let Some(module) = &world.module {
            // The module classifies the access and records it.
            let machine = SeamCpu::for_look_up(world, number);
            let access = HostAccess {
                lp: number,
                pa,
                access,
                rip: Some(rip),
            };
            let _ = module.check_host_access(&machine, access);
            report_violations(module);
        }
    }

    /// Returns whether the instruction may access its operand. Reports the access if not.
    fn admit(self, pa: u64, access: Access) -> bool {
        let admitted = self.physical.is_accessible(pa);
        if !admitted {
            self.report_refused(pa, access);
        }
        admitted
    }

    /// Copies from physical memory. The range lies inside one page.
    pub fn copy_from(self, pa: u64, to: &mut [u8]) {
        if self.admit(pa, Access::Read) {
            // SAFETY: as for `Physical::read`; `to` is the monitor's and can't overlap the software's memory.
            unsafe { core::ptr::copy_nonoverlapping(pa as *const u8, to.as_mut_ptr(), to.len()) };
        } else {
            to.fill(0xFF);
        }
    }

    /// Copies to physical memory. The range lies inside one page.
    pub fn copy_to(self, pa: u64, from: &[u8]) {
        if self.admit(pa, Access::Write) {
            // SAFETY: as for `Physical::write`.
            unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), pa as *mut u8, from.len()) };
        }
    }

    /// Copies `line` to physical memory `times` times. All copies lie inside one page.
    pub fn fill(self, pa: u64, line: &[u8; 64], times: usize) {
        if !self.admit(pa, Access::Write) {
            return;
        }
        let to = pa as *mut u8;
        // SAFETY: as for `Physical::write`; the software's right to write is the same for the whole page.
        unsafe {
            if line.iter().all(|&byte| byte == 0) {
                to.write_bytes(0, times * line.len());
            } else {
                for at in 0..times {
                    to.add(at * line.len()).copy_from(line.as_ptr(), line.len());
                }
            }
        }
    }
}

impl Memory for Data {
    fn read(&self, pa: u64) -> u64 {
        if self.admit(pa, Access::Read) {
            self.physical.read(pa)
        } else {
            u64::MAX
        }
    }

    fn write(&mut self, pa: u64, value: u64) {
        if self.admit(pa, Access::Write) {
            self.physical.write(pa, value);
        }
    }
}

impl Memory for Physical {
    fn read(&self, pa: u64) -> u64 {
        if !self.is_accessible(pa) {
            return u64::MAX;
        }
        word(pa)
    }

    fn write(&mut self, pa: u64, value: u64) {
        if self.is_accessible(pa) {
            // SAFETY: identity-mapped memory of the software's own choice, none of the monitor's: the software could
            // have written there itself.
            unsafe { ((pa & !7) as *mut u64).write_volatile(value) };
        }
    }
}

/// Reads a word that the caller has found to be accessible. On the walk to code, the software could access it when the
/// walk was recorded, and still can.
#[inline(always)]
pub fn word(pa: u64) -> u64 {
    // SAFETY: identity-mapped memory, which the caller has found to be the software's, none of the monitor's.
    unsafe { ((pa & !7) as *const u64).read_volatile() }
}

/// Reports on the debug console the host's violations that the module has recorded.
pub fn report_violations(module: &Module) {
    static REPORTED: AtomicU64 = AtomicU64::new(0);
    let total = module.violations().total();
    if REPORTED.load(Ordering::Relaxed) != total && REPORTED.swap(total, Ordering::Relaxed) != total
    {
        report_all(module);
    }
}

#[inline(never)]
fn report_all(module: &Module) {
    for v in module.violations().take() {
        // Violation classes on the debug console are identifiers.
        let class = v.kind.name().replace('-', "_");
        report::violation(&class, v.lp, v.rip.unwrap_or(0), v.pa);
    }
}
