//! Instructions that the guest can't execute itself: CPUID, HLT, IN and OUT, RDMSR and WRMSR, and MMIO loads and
//! stores.

use devices::{Effect, Power, open_bus};
use seam::abi::PAGE_4K;
use seam::abi::metadata::vp;

use super::{Served, answer, transfer};
use crate::apic::Request;
use crate::branch::Branch;
use crate::current::{Current, Stop};
use crate::end::End;
use crate::interrupts::{deliver_messages, receive_typed, send};
use crate::serve::now;
use crate::slice::{PhysicalCpu, TimeSlice};
use crate::state::Halt;
use crate::unanswered::Kind;

/// CPUID leaves of the extended topology and of the hypervisor.
const TOPOLOGY: u32 = 0x0B;
const TOPOLOGY_2: u32 = 0x1F;
const HYPERVISOR: u32 = 0x4000_0000;
const HYPERVISOR_NEXT: u32 = HYPERVISOR + 1;
const HYPERVISOR_LAST: u32 = 0x4000_01FF;
/// A second identity, where Linux looks for other hypervisors: KVM's, without any of its features. In x2APIC mode,
/// which a TD can't leave, Linux runs only under hypervisors that it knows, unless there is interrupt remapping.
///
/// Source: Linux arch/x86/kernel/apic/apic.c, try_to_enable_x2apic; arch/x86/kernel/kvm.c, kvm_x2apic_available.
const COMPATIBLE: u32 = 0x4000_0100;
const COMPATIBLE_LAST: u32 = COMPATIBLE + 1;
/// Number of ports.
const PORTS: u64 = 1 << 16;
/// EBX, ECX and EDX of the first hypervisor leaf: the signature.
const SIGNATURE: [u32; 3] = [
    u32::from_le_bytes(*b"Seam"),
    u32::from_le_bytes(*b"ark "),
    u32::from_le_bytes(*b"TDX "),
];
const COMPATIBLE_SIGNATURE: [u32; 3] = [
    u32::from_le_bytes(*b"KVMK"),
    u32::from_le_bytes(*b"VMKV"),
    u32::from_le_bytes(*b"M\0\0\0"),
];

/// Serves CPUID. R12: leaf, R13: sub-leaf. Returns EAX to EDX in R12 to R15.
#[inline(always)]
pub(super) fn cpuid<S: TimeSlice>(current: &mut Current<'_, S>) -> Branch {
    let regs = &mut current.vcpu.regs;
    let (Ok(leaf), Ok(sub_leaf)) = (u32::try_from(regs.r12), u32::try_from(regs.r13)) else {
        return Branch::CpuidInvalid;
    };
    let (branch, values) = match leaf {
        TOPOLOGY | TOPOLOGY_2 => (Branch::CpuidTopology, topology(current, sub_leaf)),
        HYPERVISOR => {
            let [ebx, ecx, edx] = SIGNATURE;
            (Branch::CpuidHypervisor, [HYPERVISOR, ebx, ecx, edx])
        }
        COMPATIBLE => {
            let [ebx, ecx, edx] = COMPATIBLE_SIGNATURE;
            (Branch::CpuidHypervisor, [COMPATIBLE_LAST, ebx, ecx, edx])
        }
        HYPERVISOR_NEXT..=HYPERVISOR_LAST => (Branch::CpuidHypervisor, [0; 4]),
        _ => (Branch::CpuidEmpty, [0; 4]),
    };
    let [eax, ebx, ecx, edx] = values;
    let regs = &mut current.vcpu.regs;
    // One by one, which needs no loop and no copy.
    regs.r12 = eax.into();
    regs.r13 = ebx.into();
    regs.r14 = ecx.into();
    regs.r15 = edx.into();
    branch
}

/// Describes one thread per core, and all cores in one package.
fn topology<S: TimeSlice>(current: &Current<'_, S>, sub_leaf: u32) -> [u32; 4] {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let id = current.state.apic_id();
    let vcpus = current.vm.vcpus().len() as u32;
    match sub_leaf {
        0 => [0, 1, THREADS, id],
        1 => [current.vm.id_bits(), vcpus, CORES | 1, id],
        other => [0, 0, other & 0xFF, id],
    }
}

/// Serves HLT. R12: 1 if the guest has interrupts disabled.
#[inline(always)]
pub(super) fn halt<S: TimeSlice>(current: &mut Current<'_, S>) -> Served {
    let halt = match current.vcpu.regs.r12 {
        0 => Halt::Interruptible,
        1 => Halt::Blocked,
        _ => return Ok(Branch::HltInvalid),
    };
    let is_interruptible = halt == Halt::Interruptible;
    let has_posted = || current.state.descriptor().is_outstanding();
    if is_interruptible && (has_posted() || has_virtual_interrupt(current)) {
        return Ok(Branch::HltPending);
    }
    if current.vm.devices().pci().has_work() {
        // It was left over while memory was being converted.
        return Ok(Branch::HltPending);
    }
    // From here on, a poster finds the vCPU halted and wakes it. The check below finds anything posted earlier, and NMIs.
    current.state.set_halt(halt);
    if current.state.is_waiting() {
        answer(current, Branch::HltHalted);
        Err(Stop::Halted)
    } else {
        current.state.set_halt(Halt::No);
        Ok(Branch::HltPending)
    }
}

/// Returns whether the vCPU's APIC page holds a pending interrupt, delivered by the CPU during the last run. Only
/// the module can read this page.
#[inline(never)]
fn has_virtual_interrupt<S: TimeSlice>(current: &Current<'_, S>) -> bool {
    const INTERRUPT_PENDING: u64 = 1 << 0;
    let details = current
        .slice
        .tdh()
        .vp_rd(current.tdvpr, vp::VCPU_STATE_DETAILS.id);
    // If the read fails, the guest is entered and checks for itself.
    details.map_or(true, |details| details & INTERRUPT_PENDING != 0)
}

/// Serves IN and OUT. R12: size, R13: 0 for IN and 1 for OUT, R14: port, R15: value to write. Returns the value
/// read in R11.
#[inline(always)]
pub(super) fn port_io<S: TimeSlice>(current: &mut Current<'_, S>) -> Served {
    let regs = &current.vcpu.regs;
    let (size @ (1 | 2 | 4), 0 | 1) = (regs.r12, regs.r13) else {
        return Ok(Branch::IoInvalid);
    };
    if regs.r14 > PORTS - size {
        return Ok(Branch::IoInvalid);
    }
    let (port, size) = (regs.r14 as u16, size as u8);
    if current.vm.devices().has_port(port) {
        device_io(current, port, size)
    } else {
        Ok(absent_io(current, port, size))
    }
}

/// Serves IN and OUT of a port that no device has. The operands are checked.
#[inline(always)]
fn absent_io<S: TimeSlice>(current: &mut Current<'_, S>, port: u16, size: u8) -> Branch {
    let unanswered = current.state.unanswered();
    if current.vcpu.regs.r13 == 0 {
        unanswered.read(Kind::Port, port.into());
        current.vcpu.regs.r11 = open_bus(size);
        Branch::IoAbsentIn
    } else {
        unanswered.write(Kind::Port, port.into());
        Branch::IoAbsentOut
    }
}

/// Serves IN and OUT of a device's port. The operands are checked.
#[inline(never)]
fn device_io<S: TimeSlice>(current: &mut Current<'_, S>, port: u16, size: u8) -> Served {
    let (devices, now) = (current.vm.devices(), || now(current.slice.cpu()));
    if current.vcpu.regs.r13 == 0 {
        let Some(value) = devices.input(port, size, now) else {
            return Ok(absent_io(current, port, size));
        };
        current.vcpu.regs.r11 = value;
        // A read makes room for waiting input.
        receive_typed(current.waker());
        return Ok(Branch::IoIn);
    }
    match devices.output(port, size, current.vcpu.regs.r15, now) {
        Some(effect) => carry_out(current, effect, Branch::IoOut),
        None => Ok(absent_io(current, port, size)),
    }
}

/// Carries out the action that a device requested.
fn carry_out<S: TimeSlice>(current: &mut Current<'_, S>, effect: Effect, branch: Branch) -> Served {
    match effect {
        // The run loop does the work before the vCPU is entered again.
        Effect::None | Effect::Work => {}
        Effect::Output(byte) => {
            current.vm.console().put(byte);
            current.note_output();
        }
        Effect::Power(Power::Off) => return Err(end(current, End::PowerOff)),
        Effect::Power(Power::Reset) => return Err(end(current, End::Reset)),
        Effect::Panicked => return Err(end(current, End::Panicked)),
        Effect::Signal => deliver_messages(current.waker()),
        Effect::Transfer(at) => return Ok(transfer::carry_out(current, at)),
        Effect::Windows => {
            if let Some(stop) = current.move_windows() {
                answer(current, branch);
                return Err(stop);
            }
            return Ok(branch);
        }
    }
    receive_typed(current.waker());
    Ok(branch)
}

/// Ends the TD as a device requested.
#[cold]
fn end<S: TimeSlice>(current: &mut Current<'_, S>, why: End) -> Stop {
    answer(current, Branch::IoPower);
    current.end(why)
}

/// Serves RDMSR. R12: MSR. Returns its value in R11.
pub(super) fn rdmsr<S: TimeSlice>(current: &mut Current<'_, S>) -> Branch {
    let clock = current.vm.clock();
    let now = clock.guest(current.slice.cpu().tsc());
    let msr = current.vcpu.regs.r12;
    let value = u32::try_from(msr)
        .ok()
        .and_then(|msr| current.vcpu.msrs.read(msr, now, clock).ok());
    match value {
        Some(value) => {
            current.vcpu.regs.r11 = value;
            Branch::Rdmsr
        }
        None => {
            current.state.unanswered().read(Kind::Msr, msr);
            Branch::RdmsrUnknown
        }
    }
}

/// Serves WRMSR. R12: MSR, R13: value.
pub(super) fn wrmsr<S: TimeSlice>(current: &mut Current<'_, S>) -> Branch {
    let (msr, value) = (current.vcpu.regs.r12, current.vcpu.regs.r13);
    let Ok(msr) = u32::try_from(msr) else {
        return Branch::WrmsrInvalid;
    };
    let clock = current.vm.clock();
    let now = clock.guest(current.slice.cpu().tsc());
    match current.vcpu.msrs.write(msr, value, now, clock) {
        Ok(Request::None) => Branch::Wrmsr,
        Ok(Request::Timer) => {
            current.arm_timer();
            Branch::WrmsrTimer
        }
        Ok(Request::Send(ipi)) => {
            send(current.waker(), ipi, current.state.apic_id());
            Branch::WrmsrIpi
        }
        Err(_) => {
            current.state.unanswered().write(Kind::Msr, msr.into());
            Branch::WrmsrInvalid
        }
    }
}

/// Serves MMIO. R12: size, R13: 0 for a load and 1 for a store, R14: address, R15: value to store. Returns the
/// loaded value in R11.
pub(super) fn mmio<S: TimeSlice>(current: &mut Current<'_, S>) -> Served {
    let regs = &current.vcpu.regs;
    let (size @ (1 | 2 | 4 | 8), direction @ (0 | 1)) = (regs.r12, regs.r13) else {
        return Ok(Branch::MmioInvalid);
    };
    let shared = current.vm.shared().shared_bit();
    if regs.r14 & shared == 0 || regs.r14 >= shared << 1 {
        return Ok(Branch::MmioPrivate);
    }
    let gpa = regs.r14 & !shared;
    if gpa % PAGE_4K + size > PAGE_4K {
        return Ok(Branch::MmioInvalid);
    }
    let (size, value) = (size as u8, regs.r15);
    let now = now(current.slice.cpu());
    if direction == 0 {
        let (value, branch) = match current.vm.devices().load(gpa, size, now) {
            Some(value) => (value, Branch::MmioLoad),
            None => {
                current.state.unanswered().read(Kind::Memory, gpa);
                (open_bus(size), Branch::MmioAbsentLoad)
            }
        };
        current.vcpu.regs.r11 = value;
        return Ok(branch);
    }
    match current.vm.devices().store(gpa, size, value, now) {
        Some(effect) => carry_out(current, effect, Branch::MmioStore),
        None => {
            current.state.unanswered().write(Kind::Memory, gpa);
            Ok(Branch::MmioAbsentStore)
        }
    }
}
