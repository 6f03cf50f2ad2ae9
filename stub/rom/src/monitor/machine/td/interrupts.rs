//! Interrupts of the machine, which make the guest exit, and interrupts of the guest's virtual APIC.
#![expect(unsafe_code, reason = "enables interrupts and contains their handlers")]

use core::arch::{asm, naked_asm};
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use stub_module::Machine;
use stub_module::vcpu::{Field, Vcpu};
use stub_rom::apic::Xapic;
use stub_rom::vapic::VirtualApic;

use super::{Next, Td};
use crate::monitor::anchor::{ANCHOR, Anchor, STACK};
use crate::monitor::hardware::Hardware;
use crate::monitor::machine::SeamCpu;
use crate::monitor::vmcb::control;

/// Lower vectors are exceptions.
pub const FIRST_VECTOR: usize = 32;
/// Pin-based control: process posted interrupts.
const POSTED_INTERRUPTS: u64 = 1 << 7;
const EOI: u32 = 0xB0;

/// Takes the interrupt pending on this processor. Returns its vector, or `None` if there was none after all. The
/// interrupt is then in service, and the host signals its end. An NMI that arrives at the same time is not handled
/// here, and stays pending.
fn acknowledge(machine: &SeamCpu, anchor: &Anchor) -> Option<u8> {
    anchor.interrupt.store(0, Ordering::Relaxed);
    anchor.took_nmi.store(0, Ordering::Relaxed);
    // SAFETY: all interrupt vectors lead to `taken`, which leaves interrupts disabled.
    unsafe { asm!("sti", "stgi", "nop", "nop", "clgi", "cli") };
    if anchor.took_nmi.load(Ordering::Relaxed) != 0 {
        machine.shared().send_nmi();
    }
    match anchor.interrupt.load(Ordering::Relaxed) {
        0 => None,
        vector => Some(vector as u8),
    }
}

/// Records the vector, and returns with interrupts disabled.
#[unsafe(naked)]
unsafe extern "C" fn taken<const VECTOR: u8>() {
    naked_asm!(
        "push rax",
        "mov rax, rsp",
        "or rax, {stack} - 1",
        "mov dword ptr [rax - {anchor} + 1 + {at}], {vector}",
        "pop rax",
        "and qword ptr [rsp + 16], ~0x200",
        "iretq",
        stack = const STACK,
        anchor = const ANCHOR,
        at = const offset_of!(Anchor, interrupt),
        vector = const VECTOR,
    )
}

impl Td {
    /// Handles the external-interrupt exit. It handles the notification of posted interrupts itself; all other
    /// interrupts go to the host.
    #[inline(never)]
    pub(super) fn external_interrupt(&mut self, machine: &SeamCpu, vcpu: &Vcpu<'_>) -> Next {
        self.redeliver();
        let vector = acknowledge(machine, self.anchor);
        match vector {
            Some(vector) if is_notification(vcpu, vector) => {
                Hardware.write(EOI, 0);
                self.take_posted(machine, vcpu);
                Next::Resume
            }
            Some(vector) => Self::interrupt_exit(vector),
            None => Next::Resume,
        }
    }

    fn take_posted(&self, machine: &SeamCpu, vcpu: &Vcpu<'_>) {
        let descriptor = vcpu.vmcs(Field::POSTED_INT_DESCRIPTOR);
        let page = machine.page(descriptor);
        let first = descriptor as usize % 4096 / 64 * 8;
        VirtualApic::of(vcpu).take_posted(page, first);
    }

    /// Offers the guest's next interrupt to SVM, which delivers it as soon as the guest can take it.
    #[inline(always)]
    pub(super) fn offer_interrupt(&mut self, vcpu: &Vcpu<'_>) {
        let apic = VirtualApic::of(vcpu);
        apic.evaluate();
        self.priority = apic.task_priority() >> 4;
        self.offered = apic.deliverable().filter(|_| self.step.is_none());
        self.vmcb.interrupt_control = control::MASKING
            | control::IGNORE_TPR
            | u64::from(self.priority)
            | self.offered.map_or(0, |vector| {
                control::IRQ | u64::from(vector) << control::VECTOR_SHIFT
            });
    }

    /// Returns whether `vector` is offered in the VMCB, not yet taken by the guest.
    pub(super) fn is_offered(&self, vector: u8) -> bool {
        self.offered == Some(vector)
    }

    /// Updates the state after an exit: the offered interrupt, if the guest has taken it, and the guest's task
    /// priority.
    #[inline(always)]
    pub(super) fn settle_interrupt(&mut self, vcpu: &Vcpu<'_>) {
        let state = self.vmcb.interrupt_control;
        let priority = (state & control::TPR) as u8;
        if priority != self.priority {
            VirtualApic::of(vcpu).set_task_priority(priority << 4);
        }
        if state & control::IRQ == 0
            && let Some(vector) = self.offered.take()
        {
            VirtualApic::of(vcpu).deliver(vector);
        }
    }
}

fn is_notification(vcpu: &Vcpu<'_>, vector: u8) -> bool {
    vcpu.vmcs(Field::PIN_BASED) & POSTED_INTERRUPTS != 0
        && vcpu.vmcs(Field::POSTED_INT_VECTOR) == u64::from(vector)
}

type Stub = unsafe extern "C" fn();

/// Installs the handlers of all vectors from [`FIRST_VECTOR`] on.
pub fn install(set: impl FnMut((usize, Stub))) {
    (FIRST_VECTOR..).zip(STUBS).for_each(set);
}

macro_rules! stubs {
    ($($vector:literal)*) => { [$(taken::<$vector> as Stub),*] };
}

#[rustfmt::skip]
const STUBS: [Stub; 256 - FIRST_VECTOR] = stubs! {
    32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47
    48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
    64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79
    80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95
    96 97 98 99 100 101 102 103 104 105 106 107 108 109 110 111
    112 113 114 115 116 117 118 119 120 121 122 123 124 125 126 127
    128 129 130 131 132 133 134 135 136 137 138 139 140 141 142 143
    144 145 146 147 148 149 150 151 152 153 154 155 156 157 158 159
    160 161 162 163 164 165 166 167 168 169 170 171 172 173 174 175
    176 177 178 179 180 181 182 183 184 185 186 187 188 189 190 191
    192 193 194 195 196 197 198 199 200 201 202 203 204 205 206 207
    208 209 210 211 212 213 214 215 216 217 218 219 220 221 222 223
    224 225 226 227 228 229 230 231 232 233 234 235 236 237 238 239
    240 241 242 243 244 245 246 247 248 249 250 251 252 253 254 255
};
