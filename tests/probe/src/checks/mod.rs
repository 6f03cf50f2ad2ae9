//! The checks, in the order in which they run: what leaves something behind comes last.

mod apic;
mod memory;
mod personality;
mod private;
mod seam;
mod smp;
mod td;
mod vmx;

use crate::Check;

pub use vmx::enter as enter_vmx;

use crate::tdx;
use crate::team::{Team, gather};

/// Brings TDX up on all processors, for good. Firmware's timer is silent from then on: in a TD, nothing would handle its
/// interrupts.
pub fn bring_up() -> Result<Team, crate::Failure> {
    use ::seam::abi::x86::msr::x2apic::LVT_TIMER;
    const LEGACY_MASKS: [u16; 2] = [0x21, 0xA1];
    const MASKED: u64 = 1 << 16;
    for port in LEGACY_MASKS {
        crate::cpu::out_byte(port, 0xFF);
    }
    let masked = crate::attempt::wrmsr(LVT_TIMER, MASKED);
    crate::expect("masking the timer", masked.err().unwrap_or(0), 0)?;
    // An interrupt that had come before is delivered now.
    crate::cpu::wait(0, || false);
    seam::sys_init()?;
    enter_vmx(vmx::region())?;
    let team = gather()?;
    tdx::bring_up(team)?;
    Ok(team)
}

type Named = (&'static str, fn() -> Check);

/// Every check with its name.
pub const ALL: &[Named] = &[
    (
        "cpuid-vendor-and-signature",
        personality::vendor_and_signature,
    ),
    ("cpuid-features", personality::features),
    ("cpuid-address-widths", personality::address_widths),
    ("cpuid-topology", personality::topology),
    ("cpuid-clock", personality::clock),
    (
        "cpuid-beyond-the-last-leaf",
        personality::beyond_the_last_leaf,
    ),
    (
        "msr-feature-control-is-locked",
        personality::feature_control,
    ),
    ("msr-tdx-host", personality::tdx_host),
    ("msr-keyid-partition", personality::keyid_partition),
    ("msr-svm-is-unknown", personality::svm_is_unknown),
    ("efer-hides-svme", personality::efer),
    (
        "svm-instructions-are-unknown",
        personality::svm_instructions,
    ),
    ("vmxon-without-vmxe", vmx::vmxon_without_vmxe),
    (
        "vmx-instructions-outside-vmx-operation",
        vmx::outside_vmx_operation,
    ),
    (
        "seamcall-outside-vmx-operation",
        seam::outside_vmx_operation,
    ),
    ("cr4-vmxe-shows", vmx::vmxe_shows),
    ("vmxon-bad-regions", vmx::bad_regions),
    ("vmxon-and-vmxoff", vmx::on_and_off),
    ("vmx-fixed-bits", vmx::fixed_bits),
    ("vmcs-becomes-current", vmx::vmcs),
    ("vmcs-fields", vmx::fields),
    ("invept", vmx::invept),
    ("invvpid", vmx::invvpid),
    ("movdir64b", memory::movdir64b),
    ("movdir64b-alignment", memory::movdir64b_alignment),
    ("movdir64b-loop-clears-2-mib", memory::movdir64b_loop),
    (
        "movdir64b-loop-with-a-counter-in-memory",
        memory::movdir64b_memory_counter,
    ),
    ("seamrr-access-reads-as-ones", memory::seamrr_access),
    ("keyid-alias-reads-as-ones", memory::keyid_alias),
    ("seamrr-write-is-dropped", memory::seamrr_write),
    ("keyid-alias-twice-at-once", memory::keyid_alias_twice),
    ("memory-map-reserves-seamrr", memory::map_reserves_seamrr),
    ("x2apic-is-on-and-locked", apic::on_and_locked),
    ("x2apic-ids", apic::ids),
    ("x2apic-reserved-bits", apic::reserved_bits),
    ("x2apic-self-ipi-and-eoi", apic::self_ipi),
    ("x2apic-error-status", apic::error_status),
    ("x2apic-nmi-to-self", apic::nmi_to_self),
    ("x2apic-timer-one-shot", apic::one_shot),
    ("x2apic-timer-periodic", apic::periodic),
    ("x2apic-tsc-deadline", apic::deadline),
    ("ap-starts", smp::starts),
    ("ap-gets-ipis-and-nmis", smp::ipis),
    ("ap-init-and-start-again", smp::starts_again),
    ("seamcall-unknown-leaf", seam::unknown_leaf),
    ("seamcall-registers-are-kept", seam::registers_are_kept),
    ("seamldr-info", seam::seamldr_info),
    ("tdcall-outside-a-td", seam::tdcall),
    ("tdh-sys-init", seam::sys_init),
    ("tdx-comes-up", private::comes_up),
    ("pamt-is-out-of-reach", private::pamt),
    ("private-page-is-out-of-reach", private::page),
    (
        "private-page-is-out-of-reach-of-a-tlb",
        private::page_in_a_tlb,
    ),
    ("movdir64b-to-a-private-page", private::movdir64b),
    ("td-runs", td::runs),
    ("td-exceptions-and-exits", td::exceptions),
    ("reclaimed-page-is-the-hosts", private::reclaimed),
];
