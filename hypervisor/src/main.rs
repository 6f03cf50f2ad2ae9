//! The bare-metal hypervisor: the firmware's entry point, the panic handler and the heap.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "the entry point has the name and the arguments that the firmware expects"
)]

use core::{ffi::c_void, panic::PanicInfo};

use boot::efi::{self, Handle, Status};
use hypervisor::{crash, heap::Heap, memory, start};

#[global_allocator]
static HEAP: Heap = Heap::new(&memory::HeapFrames);

#[unsafe(no_mangle)]
extern "efiapi" fn efi_main(image: Handle, system_table: *const c_void) -> Status {
    // SAFETY: the firmware calls this once, with these arguments.
    unsafe { efi::attach(image, system_table) };
    match start::from_firmware(&HEAP) {
        Ok(never) => match never {},
        Err(_) => Status::LOAD_ERROR,
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    crash::panicked(info)
}
