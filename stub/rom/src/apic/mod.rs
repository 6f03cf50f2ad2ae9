//! The local APIC that software sees, in xAPIC and in x2APIC mode, on top of QEMU's, which only has xAPIC mode.
//!
//! Source: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller". The model has no side effects of
//! its own: it accesses hardware through an [`Xapic`], and returns an IPI requested by an ICR write as an [`Ipi`].

mod icr;
mod regs;
mod timer;

pub use icr::{Delivery, Ipi, Station};
use timer::Timer;

/// Address of the xAPIC's registers, the only base that IA32_APIC_BASE may hold here.
pub const BASE: u64 = 0xFEE0_0000;

const APIC_BASE_BSP: u64 = 1 << 8;
const APIC_BASE_EXTD: u64 = 1 << 10;
const APIC_BASE_EN: u64 = 1 << 11;

/// QEMU's local APIC of the executing processor, by register offset.
pub trait Xapic {
    /// Reads a 32-bit register.
    fn read(&self, offset: u32) -> u32;
    /// Writes a 32-bit register.
    fn write(&mut self, offset: u32, value: u32);
}

/// #GP(0): the access faults and has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// The mode that IA32_APIC_BASE selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Globally disabled.
    Disabled,
    /// Registers in memory, 8-bit ids.
    Xapic,
    /// Registers are MSRs, 32-bit ids.
    X2apic,
}

/// The local APIC of one processor.
#[derive(Clone, Debug)]
pub struct Apic {
    id: u32,
    base: u64,
    locked: bool,
    icr: u64,
    ldr: u32,
    dfr: u32,
    lvt_cmci: u32,
    esr: u32,
    esr_pending: u32,
    timer: Timer,
}

impl Apic {
    /// Returns the APIC of the processor `id` as firmware leaves it: permanently in x2APIC mode if `locked`
    /// (IA32_XAPIC_DISABLE_STATUS), else in xAPIC mode.
    #[must_use]
    pub fn new(id: u32, bsp: bool, locked: bool, tsc_hz: u64) -> Self {
        let mut base = BASE | APIC_BASE_EN;
        if bsp {
            base |= APIC_BASE_BSP;
        }
        if locked {
            base |= APIC_BASE_EXTD;
        }
        Self {
            id,
            base,
            locked,
            icr: 0,
            ldr: 0,
            dfr: u32::MAX,
            lvt_cmci: regs::LVT_MASKED,
            esr: 0,
            esr_pending: 0,
            timer: Timer::new(tsc_hz),
        }
    }

    /// Takes over the state of the hardware beneath, and gives it the logical id that x2APIC mode implies. Messages
    /// from devices with an 8-bit logical id then arrive.
    pub fn adopt(&mut self, xapic: &mut impl Xapic) {
        self.ldr = xapic.read(regs::LDR << 4);
        self.dfr = xapic.read(regs::DFR << 4);
        self.timer.adopt(xapic);
        if self.mode() == Mode::X2apic {
            self.enter_x2apic(xapic);
        }
    }

    /// Performs INIT: resets all registers to their power-up values, except IA32_APIC_BASE.
    pub fn init(&mut self, xapic: &mut impl Xapic) {
        let base = self.base;
        *self = Self::new(self.id, false, self.locked, self.timer.tsc_hz());
        self.base = base;
        xapic.write(regs::SVR << 4, 0xFF);
        xapic.write(regs::TPR << 4, 0);
        for lvt in regs::LVT_TIMER..=regs::LVT_ERROR {
            xapic.write(lvt << 4, regs::LVT_MASKED);
        }
        xapic.write(regs::INITIAL_COUNT << 4, 0);
        xapic.write(regs::DIVIDE << 4, 0);
        self.adopt(xapic);
    }

    /// Returns the current mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        match (
            self.base & APIC_BASE_EN != 0,
            self.base & APIC_BASE_EXTD != 0,
        ) {
            (false, _) => Mode::Disabled,
            (true, false) => Mode::Xapic,
            (true, true) => Mode::X2apic,
        }
    }

    /// Returns the ids by which IPIs reach this APIC.
    #[must_use]
    pub fn station(&self) -> Station {
        match self.mode() {
            Mode::X2apic => Station::x2apic(self.id),
            _ => Station::xapic(self.id, self.ldr, self.dfr),
        }
    }

    /// Returns IA32_APIC_BASE.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE.
    ///
    /// # Errors
    /// [`Gp`] for reserved bits, for a transition that the architecture forbids, for leaving x2APIC mode while it is
    /// locked, and for moving the registers away from [`BASE`], which this machine does not support.
    pub fn set_base(&mut self, value: u64, xapic: &mut impl Xapic) -> Result<(), Gp> {
        const FLAGS: u64 = APIC_BASE_BSP | APIC_BASE_EXTD | APIC_BASE_EN;
        let before = self.mode();
        let after = match (value & APIC_BASE_EN != 0, value & APIC_BASE_EXTD != 0) {
            (false, false) => Mode::Disabled,
            (false, true) => return Err(Gp),
            (true, false) => Mode::Xapic,
            (true, true) => Mode::X2apic,
        };
        if value & !FLAGS != BASE
            || before == Mode::X2apic && (after == Mode::Xapic || self.locked && after != before)
            || before == Mode::Disabled && after == Mode::X2apic
        {
            return Err(Gp);
        }
        self.base = value;
        if after == Mode::X2apic && before != after {
            self.icr &= 0xFFFF_FFFF;
            self.enter_x2apic(xapic);
        }
        Ok(())
    }

    fn enter_x2apic(&mut self, xapic: &mut impl Xapic) {
        let flat = if self.id < 8 { 1 << self.id } else { 0 };
        xapic.write(regs::DFR << 4, u32::MAX);
        xapic.write(regs::LDR << 4, flat << 24);
    }

    /// Executes RDMSR of 0x800 to 0x8FF.
    ///
    /// # Errors
    /// [`Gp`] outside x2APIC mode, and for a register that can't be read.
    pub fn read_msr(&self, msr: u32, xapic: &impl Xapic) -> Result<u64, Gp> {
        if self.mode() != Mode::X2apic {
            return Err(Gp);
        }
        let register = msr - 0x800;
        match register {
            regs::ICR => Ok(self.icr),
            regs::EOI | regs::SELF_IPI | regs::DFR | regs::ICR_HIGH => Err(Gp),
            regs::ID => Ok(u64::from(self.id)),
            regs::LDR => Ok(u64::from(self.station().logical_id())),
            _ if regs::exists(register) => Ok(u64::from(self.read(register, xapic))),
            _ => Err(Gp),
        }
    }

    /// Executes WRMSR of 0x800 to 0x8FF. Returns the IPI to send.
    ///
    /// # Errors
    /// [`Gp`] outside x2APIC mode, for a register that can't be written, and for reserved bits.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        xapic: &mut impl Xapic,
    ) -> Result<Option<Ipi>, Gp> {
        let register = msr - 0x800;
        if self.mode() != Mode::X2apic || value & !regs::writable(register).ok_or(Gp)? != 0 {
            return Err(Gp);
        }
        if register == regs::ICR {
            self.icr = value;
            return Ok(self.send(Ipi::from_x2apic(value)));
        }
        Ok(self.write(register, value as u32, xapic))
    }

    /// Executes a 32-bit load from `offset` of the register page.
    #[must_use]
    pub fn read_memory(&self, offset: u32, xapic: &impl Xapic) -> u32 {
        if self.mode() != Mode::Xapic {
            return u32::MAX;
        }
        match offset >> 4 {
            regs::ID => self.id << 24,
            regs::ICR => self.icr as u32,
            regs::ICR_HIGH => (self.icr >> 32) as u32,
            regs::LDR => self.ldr,
            regs::DFR => self.dfr,
            register if regs::exists(register) => self.read(register, xapic),
            _ => 0,
        }
    }

    /// Executes a 32-bit store to `offset` of the register page. Returns the IPI to send.
    pub fn write_memory(&mut self, offset: u32, value: u32, xapic: &mut impl Xapic) -> Option<Ipi> {
        if self.mode() != Mode::Xapic {
            return None;
        }
        match offset >> 4 {
            regs::ICR => {
                self.icr = self.icr & !0xFFFF_FFFF | u64::from(value & regs::ICR_LOW);
                self.send(Ipi::from_xapic(self.icr))
            }
            regs::ICR_HIGH => {
                self.icr = self.icr & 0xFFFF_FFFF | u64::from(value & 0xFF00_0000) << 32;
                None
            }
            regs::LDR => {
                self.ldr = value & 0xFF00_0000;
                xapic.write(regs::LDR << 4, self.ldr);
                None
            }
            regs::DFR => {
                self.dfr = value | 0x0FFF_FFFF;
                xapic.write(regs::DFR << 4, self.dfr);
                None
            }
            regs::EOI => self.write(regs::EOI, 0, xapic),
            regs::SELF_IPI => None,
            register => {
                let mask = regs::writable(register)? as u32;
                self.write(register, value & mask, xapic)
            }
        }
    }

    fn read(&self, register: u32, xapic: &impl Xapic) -> u32 {
        match register {
            regs::VERSION => regs::VERSION_VALUE,
            regs::ESR => self.esr,
            regs::LVT_CMCI => self.lvt_cmci,
            regs::LVT_TIMER | regs::INITIAL_COUNT | regs::CURRENT_COUNT | regs::DIVIDE => {
                self.timer.read(register, xapic)
            }
            _ => xapic.read(register << 4),
        }
    }

    fn write(&mut self, register: u32, value: u32, xapic: &mut impl Xapic) -> Option<Ipi> {
        match register {
            regs::ESR => self.esr = core::mem::take(&mut self.esr_pending),
            regs::LVT_CMCI => self.lvt_cmci = value,
            regs::LVT_TIMER | regs::INITIAL_COUNT | regs::DIVIDE => {
                self.timer.write(register, value, xapic);
            }
            regs::SELF_IPI => return self.send(Ipi::to_self(value as u8)),
            _ => xapic.write(register << 4, value),
        }
        None
    }

    fn send(&mut self, ipi: Option<Ipi>) -> Option<Ipi> {
        let ipi = ipi?;
        if ipi.has_illegal_vector() {
            self.esr_pending |= regs::ESR_SEND_ILLEGAL_VECTOR;
            return None;
        }
        Some(ipi)
    }

    /// Returns IA32_TSC_DEADLINE at the time `now`.
    #[must_use]
    pub fn deadline(&self, now: u64) -> u64 {
        self.timer.deadline(now)
    }

    /// Writes IA32_TSC_DEADLINE at the time `now`.
    pub fn set_deadline(&mut self, value: u64, now: u64, xapic: &mut impl Xapic) {
        self.timer.set_deadline(value, now, xapic);
    }
}

#[cfg(test)]
mod tests;
