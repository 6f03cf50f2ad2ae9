//! Sends interrupts to vCPUs: from vCPUs, and from devices through the I/O APIC.

use devices::{Message, NotListening, Trigger};

use crate::apic::{Destination, Ipi, IpiKind};
use crate::state::Event;
use crate::wake::Waker;

/// Sends an interrupt from the vCPU with x2APIC id `sender` to all its targets.
pub(crate) fn send(waker: Waker<'_>, ipi: Ipi, sender: u32) {
    let event = match ipi.kind {
        IpiKind::Fixed(vector) => Event::Interrupt(vector),
        IpiKind::Nmi => Event::Nmi,
    };
    for (number, state) in (0..).zip(waker.vm().vcpus()) {
        if ipi.to.includes(state.apic_id(), sender) {
            waker.wake(number, event);
        }
    }
}

/// Moves typed bytes to the serial port as long as it has room, and updates its line at the interrupt controller. The
/// bytes stay where they are while the guest drives the virtio console.
pub fn receive_typed(waker: Waker<'_>) {
    let vm = waker.vm();
    let console = vm.console();
    let take = || (!console.has_virtio()).then(|| console.take_typed())?;
    let message = vm.devices().feed_uart(take);
    if let Some(message) = message {
        deliver(waker, message);
    }
}

/// Delivers the interrupts that functions of the PCI bus send.
pub fn deliver_messages(waker: Waker<'_>) {
    while let Some(message) = waker.vm().devices().pci().take_message() {
        deliver(waker, message);
    }
}

/// Presses the guest's power button.
///
/// # Errors
/// [`NotListening`].
pub fn press_power_button(waker: Waker<'_>) -> Result<(), NotListening> {
    if let Some(message) = waker.vm().devices().press_power_button()? {
        deliver(waker, message);
    }
    Ok(())
}

/// Delivers a message of the I/O APIC or of a function. Takes no lock.
pub fn deliver(waker: Waker<'_>, message: Message) {
    let to = match (message.is_logical, message.destination) {
        (_, 0xFF) => Destination::All,
        (true, set) => Destination::Logical(0, set.into()),
        (false, id) => Destination::Physical(id.into()),
    };
    let kind = match message.trigger {
        Trigger::Fixed => IpiKind::Fixed(message.vector),
        Trigger::Nmi => IpiKind::Nmi,
    };
    // No vCPU has this id, so the sender is never a target: devices are not vCPUs.
    send(waker, Ipi { kind, to }, u32::MAX);
}
