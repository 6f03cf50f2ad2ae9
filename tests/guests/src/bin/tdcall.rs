//! A guest that checks TDCALL: its leafs, their statuses, and the registers that they leave.
//!
//! Rows: TDX Module ABI 1.5, "Guest-side (TDCALL) interface functions". Another guest checks memory.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "executes TDCALL in other modes")]

use core::arch::asm;

use guest_kit::attempt::{GP, outcome};
use guest_kit::check::{Check, Checks, expect};
use guest_kit::vcpu::{ATTEMPTED, RESUME};
use guest_kit::ve::reason;
use guest_kit::{attempt, ensure, fail, guest, memory, tdcall, vcpu, vmcall};
use guests::release::{self, Release};
use guests::tries::{ends, leaf, raises};
use seam::abi::metadata::td;
use seam::abi::{Gprs, GuestLeaf, Operand, Status};
use sha2::{Digest, Sha384};

guest!("tdcall", main);

fn main(checks: &mut Checks) {
    vcpu::start_all();
    checks.each("encoding", encoding);
    checks.each("registers-are-kept", registers);
    checks.each("not-in-64-bit-mode", compatibility_mode);
    checks.each("vp-vmcall", vp_vmcall);
    checks.each("vp-vmcall-passes-xmm", vmcall_xmm);
    checks.each("vp-info", vp_info);
    checks.each("mr-rtmr-extend", rtmr_extend);
    checks.each("vp-veinfo-get", veinfo_get);
    checks.each("vp-veinfo-get-kind", veinfo_get_kind);
    checks.each("mr-report", report);
    checks.each("mr-verifyreport", verify_report);
    checks.each("vp-cpuidve-set", cpuidve_set);
    checks.each("mem-page-accept-operands", accept_operands);
    checks.each("vm-rd-and-wr", vm_fields);
    checks.each("vp-rd-and-wr", vp_fields);
    checks.each("sys-rd-and-rdall", sys_fields);
    checks.each("servtd", servtd);
    checks.each("mem-page-attr", page_attributes);
    checks.each("l2-vms", l2_vms);
    checks.together("vp-info-all-at-once", vp_info);
    checks.together("mr-report-all-at-once", report);
}

fn invalid(operand: Operand) -> Status {
    Status::OPERAND_INVALID.with(operand)
}

/// Executes TDCALL with this RAX. Returns RAX afterwards.
fn call(rax: u64) -> u64 {
    let mut regs = Gprs {
        rax,
        ..Gprs::default()
    };
    tdcall::raw(&mut regs);
    regs.rax
}

fn encoding() -> Check {
    let bad = invalid(Operand::RAX).0;
    let unknown = (13..18)
        .chain([19, 21])
        .chain(28..32)
        .chain([64, 72, 0xFFFF]);
    for number in unknown {
        expect("RAX of an unknown leaf", call(number), bad)?;
    }
    for bit in (24..64).step_by(5) {
        expect(
            "RAX of TDG.VP.INFO with a reserved bit",
            call(1 | 1 << bit),
            bad,
        )?;
    }
    let has_veinfo_1 = release::module()? >= Release::V1_5_16;
    let veinfo = (!has_veinfo_1).then_some(GuestLeaf::VpVeinfoGet.rax());
    let others = [1u64, 2, 4, 5, 6, 8, 9, 10, 11, 12, 22, 23, 24];
    for leaf in others.into_iter().chain(veinfo) {
        expect("RAX of a version that is none", call(leaf | 1 << 16), bad)?;
    }
    expect("RAX of TDG.VM.RD, version 2", call(7 | 2 << 16), bad)
}

/// Checks that a leaf preserves the registers in which it returns nothing.
fn registers() -> Check {
    let given = Gprs {
        rax: 13,
        rcx: 1,
        rdx: 2,
        rbx: 3,
        rbp: 5,
        rsi: 6,
        rdi: 7,
        r8: 8,
        r9: 9,
        r10: 10,
        r11: 11,
        r12: 12,
        r13: 13,
        r14: 14,
        r15: 15,
    };
    let mut regs = given;
    tdcall::raw(&mut regs);
    let expected = Gprs {
        rax: invalid(Operand::RAX).0,
        ..given
    };
    ensure!(regs == expected, "{regs:x?}");
    let mut regs = Gprs {
        rax: GuestLeaf::VpInfo.rax(),
        ..given
    };
    tdcall::raw(&mut regs);
    ensure!(
        (regs.rbx, regs.rbp, regs.rsi, regs.rdi) == (3, 5, 6, 7)
            && (regs.r12, regs.r13, regs.r14, regs.r15) == (12, 13, 14, 15),
        "{regs:x?}"
    );
    Ok(())
}

/// Checks that TDCALL raises #GP(0) in compatibility mode, whatever the leaf.
fn compatibility_mode() -> Check {
    const CODE_32: u64 = 0x18;
    const CODE_64: u64 = 0x08;
    // SAFETY: all code lies below 4 GiB, and so does the stack; the program's segments have one of 32 bits. The
    // registers that a leaf could change are named.
    unsafe {
        asm!(
            "lea rax, [rip + 3f]",
            "mov gs:[{resume}], rax",
            "lea rax, [rip + 2f]",
            "mov gs:[{attempted}], rax",
            "lea rdi, [rip + 4f]",
            "push {code32}",
            "push rax",
            "mov eax, 1",
            "retfq",
            ".code32",
            "2: .byte 0x66, 0x0F, 0x01, 0xCC",
            "3: push {code64}",
            "push edi",
            "retf",
            ".code64",
            "4: mov qword ptr gs:[{resume}], 0",
            attempted = const ATTEMPTED,
            resume = const RESUME,
            code32 = const CODE_32,
            code64 = const CODE_64,
            out("rax") _, out("rcx") _, out("rdx") _, out("rdi") _, out("r8") _, out("r9") _, out("r10") _,
            out("r11") _,
        );
    }
    raises("TDCALL in compatibility mode", outcome(), GP)
}

fn vp_vmcall() -> Check {
    for mask in [1u64, 1 << 1, 1 << 4, 1 << 32, 1 << 63] {
        let (status, _) = leaf(GuestLeaf::VpVmcall, [mask, 0, 0, 0]);
        expect(
            "RAX of a mask that is none",
            status.0,
            invalid(Operand::RCX).0,
        )?;
    }
    // An unknown request: registers that are not passed keep their values.
    let mut regs = Gprs {
        rcx: 0xFC00,
        rdx: 2,
        rbx: 3,
        rsi: 6,
        rdi: 7,
        r8: 8,
        r9: 9,
        r11: 0x7777,
        ..Gprs::default()
    };
    vmcall::raw(&mut regs);
    expect("RAX", regs.rax, 0)?;
    expect("RCX", regs.rcx, 0xFC00)?;
    ensure!(
        (regs.rdx, regs.rbx, regs.rsi, regs.rdi, regs.r8, regs.r9) == (2, 3, 6, 7, 8, 9),
        "{regs:x?}"
    );
    ensure!(regs.r10 >> 63 == 1, "R10 is {:#x}", regs.r10);
    Ok(())
}

/// Checks that XMM registers that are not passed survive; the host sees nothing of them.
fn vmcall_xmm() -> Check {
    let mut found = [0u64; 2];
    // SAFETY: an unknown request; all registers that it changes are named.
    unsafe {
        asm!(
            "movq xmm3, {value}",
            "movq xmm15, {value}",
            ".byte 0x66, 0x0F, 0x01, 0xCC",
            "movq [{found}], xmm3",
            "movq [{found} + 8], xmm15",
            value = in(reg) 0x1122_3344_5566_7788u64,
            found = in(reg) &mut found,
            inout("rax") 0u64 => _, inout("rcx") 0xFC00u64 => _, inout("r10") 0u64 => _, inout("r11") 0x7777u64 => _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _, out("xmm3") _, out("xmm15") _,
        );
    }
    ensure!(
        found == [0x1122_3344_5566_7788; 2],
        "XMM3 and XMM15 are {found:x?}"
    );
    Ok(())
}

fn vp_info() -> Check {
    let (status, regs) = leaf(GuestLeaf::VpInfo, [0; 4]);
    expect("RAX", status.0, 0)?;
    ensure!(regs.rcx == 48 || regs.rcx == 52, "GPAW is {}", regs.rcx);
    let (vcpus, most) = (regs.r8 & 0xFFFF_FFFF, regs.r8 >> 32);
    ensure!(0 < vcpus && vcpus <= most, "{vcpus} vCPUs of {most}");
    expect("the vCPU's index", regs.r9, vcpu::current().index().into())?;
    expect("R10: TDG.SYS.RD is there", regs.r10 & 1, 1)?;
    expect("R11", regs.r11, 0)?;
    expect(
        "ATTRIBUTES",
        regs.rdx,
        tdcall::vm_rd(td::ATTRIBUTES.id.0).unwrap_or(u64::MAX),
    )
}

#[repr(C, align(1024))]
struct Buffer([u8; 1024]);

fn rtmr_extend() -> Check {
    let before = tdcall::mr_report(&[0; 64]);
    let mut data = Buffer([0; 1024]);
    data.0[..48].fill(vcpu::current().index() as u8 + 1);
    let at = &raw const data as u64;
    for index in 0..4 {
        ends(
            "extending",
            leaf(GuestLeaf::MrRtmrExtend, [at, index, 0, 0]),
            Status::SUCCESS,
        )?;
    }
    let after = tdcall::mr_report(&[0; 64]);
    let (Ok(before), Ok(after)) = (before, after) else {
        return fail!("no report");
    };
    for (old, new) in before.td_info.rtmr.iter().zip(&after.td_info.rtmr) {
        let mut hash = Sha384::new();
        hash.update(old);
        hash.update(&data.0[..48]);
        ensure!(hash.finalize()[..] == new[..], "RTMR is {new:x?}");
    }
    let extend = |rcx, rdx| leaf(GuestLeaf::MrRtmrExtend, [rcx, rdx, 0, 0]);
    ends("index 4", extend(at, 4), invalid(Operand::RDX))?;
    ends("not aligned", extend(at + 8, 0), invalid(Operand::RCX))?;
    ends(
        "shared",
        extend(at | memory::shared_bit(), 0),
        invalid(Operand::RCX),
    )?;
    ends("too high", extend(at | 1 << 52, 0), invalid(Operand::RCX)).map(drop)
}

fn veinfo_get() -> Check {
    let regs = ends(
        "nothing there",
        leaf(GuestLeaf::VpVeinfoGet, [1, 2, 3, 4]),
        Status::NO_VALID_VE_INFO,
    )?;
    ensure!(
        [regs.rcx, regs.rdx, regs.r8, regs.r9, regs.r10] == [0; 5],
        "{regs:x?}"
    );
    Ok(())
}

/// Checks version 1 of TDG.VP.VEINFO.GET: the kind of the #VE is in the high half of RCX.
fn veinfo_get_kind() -> Check {
    /// An instruction that exits.
    const INSTRUCTION: u64 = 0x11;
    let version_1 = || {
        let mut regs = Gprs {
            rax: GuestLeaf::VpVeinfoGet.rax() | 1 << 16,
            ..Gprs::default()
        };
        tdcall::raw(&mut regs);
        regs
    };
    let has_kinds = release::module()? >= Release::V1_5_16;
    let nothing = if has_kinds {
        Status::NO_VALID_VE_INFO
    } else {
        invalid(Operand::RAX)
    };
    expect("RAX with nothing there", version_1().rax, nothing.0)?;
    // The second #VE is a #DF, so the information of the first one is still there.
    vcpu::current().fault_in_next_ve();
    // SAFETY: raises #VE, in whose handler another is raised.
    let _double_fault = unsafe { attempt!("hlt") };
    let regs = version_1();
    if !has_kinds {
        expect("RAX of an unknown version", regs.rax, nothing.0)?;
        let Ok(info) = tdcall::veinfo_get() else {
            return fail!("the information is gone");
        };
        return expect("the reason", info.reason.into(), reason::HLT.into());
    }
    expect("RAX", regs.rax, 0)?;
    expect("RCX", regs.rcx, INSTRUCTION << 32 | u64::from(reason::HLT))?;
    expect("RAX the second time", version_1().rax, nothing.0)
}

fn report() -> Check {
    let data: [u8; 64] = core::array::from_fn(|i| i as u8 ^ vcpu::current().index() as u8);
    let Ok(report) = tdcall::mr_report(&data) else {
        return fail!("no report");
    };
    ensure!(
        report.report_mac.report_data == data,
        "the report has other data"
    );
    ensure!(report.td_info.mrtd != [0; 48], "nothing was measured");
    let buffer = Buffer([0; 1024]);
    let at = &raw const buffer as u64;
    let call = |rcx, rdx, r8| leaf(GuestLeaf::MrReport, [rcx, rdx, r8, 0]);
    ends("another subtype", call(at, at, 1), invalid(Operand::R8))?;
    ends(
        "a report that is not aligned",
        call(at + 64, at, 0),
        invalid(Operand::RCX),
    )?;
    ends(
        "data that is not aligned",
        call(at, at + 8, 0),
        invalid(Operand::RDX),
    )
    .map(drop)
}

fn verify_report() -> Check {
    use zerocopy::IntoBytes;
    let Ok(report) = tdcall::mr_report(&[7; 64]) else {
        return fail!("no report");
    };
    let mut buffer = Buffer([0; 1024]);
    buffer.0[..256].copy_from_slice(&report.report_mac.as_bytes()[..256]);
    let verify = |buffer: &Buffer| {
        leaf(
            GuestLeaf::MrVerifyreport,
            [&raw const *buffer as u64, 0, 0, 0],
        )
    };
    ends("a true report", verify(&buffer), Status::SUCCESS)?;
    buffer.0[130] ^= 1;
    let (status, _) = verify(&buffer);
    expect(
        "a forged report",
        status.code().0,
        Status::INVALID_REPORTMACSTRUCT.0,
    )?;
    let odd = &raw const buffer as u64 + 8;
    ends(
        "a report that is not aligned",
        leaf(GuestLeaf::MrVerifyreport, [odd, 0, 0, 0]),
        invalid(Operand::RCX),
    )
    .map(drop)
}

fn cpuidve_set() -> Check {
    for flags in [1, 2, 3, 0] {
        ends(
            "flags",
            leaf(GuestLeaf::VpCpuidveSet, [flags, 0, 0, 0]),
            Status::SUCCESS,
        )?;
    }
    for flags in [4, 1 << 63] {
        ends(
            "reserved flags",
            leaf(GuestLeaf::VpCpuidveSet, [flags, 0, 0, 0]),
            invalid(Operand::RCX),
        )?;
    }
    Ok(())
}

fn accept_operands() -> Check {
    let accept = |rcx| leaf(GuestLeaf::MemPageAccept, [rcx, 0, 0, 0]);
    let gpa = 0x40_0000;
    for level in 2..8 {
        ends(
            "a level that is none",
            accept(gpa | level),
            invalid(Operand::RCX),
        )?;
    }
    ends("a reserved bit", accept(gpa | 8), invalid(Operand::RCX))?;
    ends(
        "not aligned to 2 MiB",
        accept((gpa + 0x1000) | 1),
        invalid(Operand::RCX),
    )?;
    ends(
        "a shared page",
        accept(gpa | memory::shared_bit()),
        invalid(Operand::RCX),
    )?;
    ends("too high", accept(gpa | 1 << 52), invalid(Operand::RCX)).map(drop)
}

fn vm_fields() -> Check {
    let rd = |rcx, field| leaf(GuestLeaf::VmRd, [rcx, field, 5, 0]);
    let attributes = td::ATTRIBUTES.id.0;
    let regs = ends("ATTRIBUTES", rd(0, attributes), Status::SUCCESS)?;
    expect("RDX, which version 0 keeps", regs.rdx, attributes)?;
    let regs = ends("RCX", rd(1, attributes), invalid(Operand::RCX))?;
    expect("R8 of an error", regs.r8, 0)?;
    let (status, _) = rd(0, u64::MAX >> 8);
    ensure!(status.is_error(), "a field that is none: {status:?}");

    let mut regs = Gprs {
        rax: GuestLeaf::VmRd.rax_version(1),
        rdx: u64::MAX,
        ..Gprs::default()
    };
    tdcall::raw(&mut regs);
    expect(
        "RAX for the first field",
        regs.rax,
        Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT.0,
    )?;
    ensure!(regs.rdx != u64::MAX, "no first field");

    let wr = |field, value| leaf(GuestLeaf::VmWr, [0, field, value, u64::MAX]);
    let notify = td::NOTIFY_ENABLES.id.0;
    let one = ends("NOTIFY_ENABLES on", wr(notify, 1), Status::SUCCESS)?;
    let two = ends("NOTIFY_ENABLES off", wr(notify, 0), Status::SUCCESS)?;
    ensure!(
        (one.r8, two.r8) == (0, 1),
        "the values before: {} {}",
        one.r8,
        two.r8
    );
    let (status, _) = wr(td::TD_CTLS.id.0, 1);
    expect(
        "TD_CTLS without FLEXIBLE_PENDING_VE",
        status.code().0,
        Status::METADATA_FIELD_VALUE_NOT_VALID.0,
    )?;
    let (status, _) = wr(attributes, 0);
    ensure!(status.is_error(), "ATTRIBUTES can be written: {status:?}");
    Ok(())
}

fn vp_fields() -> Check {
    use seam::abi::metadata::vp;
    let field = vp::CPUID_SUPERVISOR_VE.id.0;
    let rd = || leaf(GuestLeaf::VpRd, [0, field, 0, 0]);
    let wr = |value| leaf(GuestLeaf::VpWr, [0, field, value, u64::MAX]);
    let regs = ends("CPUID_SUPERVISOR_VE", rd(), Status::SUCCESS)?;
    expect("its value", regs.r8, 0)?;
    ensure!(regs.rdx != field, "RDX is no next field");
    ends("on", wr(1), Status::SUCCESS)?;
    let on = rd();
    let off = wr(0);
    expect(
        "the value that was read",
        ends("reading", on, Status::SUCCESS)?.r8,
        1,
    )?;
    expect("the value before", ends("off", off, Status::SUCCESS)?.r8, 1)?;
    ends(
        "RCX",
        leaf(GuestLeaf::VpRd, [1, field, 0, 0]),
        invalid(Operand::RCX),
    )?;
    ends(
        "RCX",
        leaf(GuestLeaf::VpWr, [1, field, 0, 0]),
        invalid(Operand::RCX),
    )
    .map(drop)
}

fn sys_fields() -> Check {
    let (status, first) = leaf(GuestLeaf::SysRd, [0, u64::MAX, 0, 0]);
    expect(
        "RAX for the first field",
        status.0,
        Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT.0,
    )?;
    let mut field = first.rdx;
    let mut fields = 0;
    while field != u64::MAX && fields < 1000 {
        field = ends(
            "a field",
            leaf(GuestLeaf::SysRd, [0, field, 0, 0]),
            Status::SUCCESS,
        )?
        .rdx;
        fields += 1;
    }
    ensure!((10..1000).contains(&fields), "{fields} fields");
    let page = memory::take(4096, 4096);
    let (status, regs) = leaf(GuestLeaf::SysRdall, [0, page, u64::MAX, 0]);
    ensure!(
        status == Status::SUCCESS && regs.r8 == u64::MAX
            || status.code() == Status::METADATA_LIST_OVERFLOW && regs.r8 != u64::MAX,
        "TDG.SYS.RDALL: {status:?}, R8 {:#x}",
        regs.r8
    );
    ensure!(memory::word(page) != 0, "the list is empty");
    ends(
        "a list that is not aligned",
        leaf(GuestLeaf::SysRdall, [0, page + 8, u64::MAX, 0]),
        invalid(Operand::RDX),
    )
    .map(drop)
}

/// Checks that no TD is bound to this one.
fn servtd() -> Check {
    for which in [GuestLeaf::ServtdRd, GuestLeaf::ServtdWr] {
        let (status, _) = leaf(which, [0, td::ATTRIBUTES.id.0, 0, 0]);
        ensure!(status.is_error(), "{which:?}: {status:?}");
    }
    Ok(())
}

fn page_attributes() -> Check {
    const LEVEL: u64 = 7;
    let page = memory::take(4096, 4096);
    let regs = ends(
        "reading",
        leaf(GuestLeaf::MemPageAttrRd, [page, 0, 0, 0]),
        Status::SUCCESS,
    )?;
    let level = regs.rcx & LEVEL;
    ensure!(
        level <= 1
            && (regs.rcx & !LEVEL..(regs.rcx & !LEVEL) + (4096 << (9 * level))).contains(&page),
        "RCX is {:#x} for {page:#x}",
        regs.rcx
    );
    expect("attributes for L2 VMs, which are none", regs.rdx, 0)?;
    let shared = page | memory::shared_bit();
    let regs = ends(
        "a shared page",
        leaf(GuestLeaf::MemPageAttrRd, [shared, 0, 0, 0]),
        invalid(Operand::RCX),
    )?;
    ensure!((regs.rcx, regs.rdx) == (0, 0), "{regs:x?}");
    let write = |rcx, rdx, r8| leaf(GuestLeaf::MemPageAttrWr, [rcx, rdx, r8, 0]);
    ends(
        "attributes for a VM that is not",
        write(regs.rcx, 0x8001 << 16, 0),
        invalid(Operand::RDX),
    )?;
    ends(
        "flags for a VM that is not",
        write(page, 0, 1 << 16),
        invalid(Operand::R8),
    )
    .map(drop)
}

/// Checks that this TD has no L2 VMs.
fn l2_vms() -> Check {
    let page = memory::take(4096, 4096);
    for (what, answer) in [
        (
            "TDG.VP.ENTER",
            leaf(GuestLeaf::VpEnter, [1 << 52, page, 0, 0]),
        ),
        ("TDG.VP.INVEPT", leaf(GuestLeaf::VpInvept, [2, 0, 0, 0])),
        (
            "TDG.VP.INVVPID",
            leaf(GuestLeaf::VpInvvpid, [1 << 52, 0, 0, 0]),
        ),
    ] {
        ends(what, answer, invalid(Operand::RCX))?;
    }
    Ok(())
}
