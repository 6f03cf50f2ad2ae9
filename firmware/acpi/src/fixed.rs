//! The tables with a fixed size: RSDP, FADT, FACS, MCFG and CCEL.

use td_base::board;

use crate::{Log, checksum};

/// Size in bytes of the RSDP.
pub const RSDP_BYTES: usize = 36;
/// Size in bytes of the FACS.
pub const FACS_BYTES: usize = 64;

/// Size in bytes of the FADT.
const FADT_BYTES: usize = 276;
/// Places of the FADT's pointers: those of the FACS and of the DSDT, in four bytes, and that of the DSDT in eight.
pub const FADT_FACS: usize = 36;
/// See [`FADT_FACS`].
pub const FADT_DSDT: usize = 40;
/// See [`FADT_FACS`].
pub const FADT_X_DSDT: usize = 140;

/// The port of PM1 control.
const PM_CONTROL: u16 = board::POWER + board::POWER_CONTROL;
/// The port of the power-management timer.
const PM_TIMER: u16 = board::POWER + board::POWER_TIMER;
/// The value that resets the TD when written to the reset-control register.
const RESET_VALUE: u8 = 6;

/// Builds the FACS. Its only use is the global lock, which an operating system may want.
#[must_use]
pub fn facs() -> [u8; FACS_BYTES] {
    let mut facs = [0; FACS_BYTES];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = FACS_BYTES as u8;
    facs[32] = 2;
    facs
}

/// Builds the RSDP, which has the XSDT's address.
#[must_use]
pub fn root(xsdt: u64) -> [u8; RSDP_BYTES] {
    let mut rsdp = [0; RSDP_BYTES];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(b"SEAMRK");
    rsdp[15] = 2;
    rsdp[20] = RSDP_BYTES as u8;
    rsdp[24..32].copy_from_slice(&xsdt.to_le_bytes());
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

/// Returns the FADT's fields that are not zero, at their offsets. The first 36 bytes are left for the header.
pub fn fadt(dsdt: u64, facs: u64) -> [u8; FADT_BYTES] {
    const WBINVD: u32 = 1 << 0;
    /// The sleep button is not a fixed feature. The power button is.
    const NO_SLEEP_BUTTON: u32 = 1 << 5;
    const RESET_REGISTER: u32 = 1 << 10;
    /// Interrupts name one processor: an 8-bit destination of the I/O APIC can't name a set of x2APICs.
    const PHYSICAL: u32 = 1 << 19;
    /// No VGA. There is no CMOS flag and no 8042, and the power-management timer has 24 bits, so its flag is clear.
    const NO_VGA: u16 = 1 << 2;
    const SYSTEM_IO: u8 = 1;
    let mut fadt = [0; FADT_BYTES];
    let mut put = |at: usize, bytes: &[u8]| fadt[at..at + bytes.len()].copy_from_slice(bytes);
    // Both are below 4 GiB; the FACS must not have a second address then.
    put(FADT_FACS, &(facs as u32).to_le_bytes());
    put(FADT_DSDT, &(dsdt as u32).to_le_bytes());
    put(46, &u16::from(board::POWER_INTERRUPT).to_le_bytes());
    put(56, &u32::from(board::POWER).to_le_bytes());
    put(64, &u32::from(PM_CONTROL).to_le_bytes());
    put(76, &u32::from(PM_TIMER).to_le_bytes());
    // Lengths of event block, control block and timer.
    put(88, &[4, 2]);
    put(91, &[4]);
    put(108, &[board::CENTURY]);
    put(109, &NO_VGA.to_le_bytes());
    put(
        112,
        &(WBINVD | NO_SLEEP_BUTTON | RESET_REGISTER | PHYSICAL).to_le_bytes(),
    );
    put(116, &[SYSTEM_IO, 8, 0, 1]);
    put(120, &u64::from(board::RESET).to_le_bytes());
    put(128, &[RESET_VALUE]);
    // ACPI 6.3.
    put(131, &[3]);
    put(FADT_X_DSDT, &dsdt.to_le_bytes());
    for (at, bits, port) in [
        (148, 32, board::POWER),
        (172, 16, PM_CONTROL),
        (208, 32, PM_TIMER),
    ] {
        put(at, &[SYSTEM_IO, bits]);
        put(at + 4, &u64::from(port).to_le_bytes());
    }
    fadt
}

/// Returns the location of the configuration space: that of segment 0, bus 0.
///
/// Source: PCI Firmware Specification 3.2, section 4.1.2.
pub fn mcfg(config: u64) -> [u8; 24] {
    let mut content = [0; 24];
    content[8..16].copy_from_slice(&config.to_le_bytes());
    content
}

/// Returns the location of the event log.
pub fn ccel(log: Log) -> [u8; 20] {
    const TDX: u8 = 2;
    let mut content = [0; 20];
    content[0] = TDX;
    content[4..12].copy_from_slice(&log.bytes.to_le_bytes());
    content[12..].copy_from_slice(&log.at.to_le_bytes());
    content
}
