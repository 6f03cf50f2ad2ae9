//! Virtual devices of a TD: a part of the report of `td show`.

use alloc::string::String;

use serde::Serialize;

/// A virtual device on a TD's PCI bus.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, Serialize)]
pub struct TdDevice {
    /// Its number on the TD's bus: the guest sees the function `00:DEVICE.0`.
    pub device: u8,
    /// The kind of device, such as `disk`.
    pub kind: &'static str,
    /// The file of a disk, or the network of a network card.
    pub name: Option<String>,
    /// True while the guest's driver is ready.
    pub running: bool,
    /// Number of queues that the driver has enabled.
    pub queues: usize,
    /// Number of times that the driver notified the device, each with an exit.
    pub notifications: u64,
    /// Number of interrupts for the driver.
    pub interrupts: u64,
    /// Bytes that the device wrote for the guest.
    pub to_guest_bytes: u64,
    /// Bytes that the device took from the guest.
    pub from_guest_bytes: u64,
    /// Number of frames that were dropped, or of requests that failed.
    pub dropped: u64,
    /// The rule that the driver broke, if the device waits for a reset.
    pub problem: Option<String>,
}
