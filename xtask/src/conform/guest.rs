//! The guest of a recording. It produces the listed VM exits and records how the module handled each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use seam::abi::x86::{efer, exit_reason};
use stub_module::host::{self, Guest, HostMachine};
use stub_module::vcpu::{Field, Gpr, Held, Vcpu};

use super::native::NativeMsrs;
use super::number::{self, Number};
use super::registers::NAMES;
use super::replay::Difference;
use super::scenario::{Change, Changes, Exit};

/// TDCALL leaf TDG.MR.REPORT.
const MR_REPORT: u64 = 4;

/// The state in recordings, by the names that they use.
const FIELDS: [(&str, Source); 18] = [
    ("rflags", Source::Vmcs(Field::RFLAGS)),
    ("cr0", Source::Vmcs(Field::CR0)),
    ("cr3", Source::Vmcs(Field::CR3)),
    ("cr4", Source::Vmcs(Field::CR4)),
    ("efer", Source::Vmcs(Field::EFER)),
    ("xcr0", Source::Held(Held::Xcr0)),
    ("cr2", Source::Held(Held::Cr2)),
    ("dr0", Source::Held(Held::Dr0)),
    ("dr1", Source::Held(Held::Dr1)),
    ("dr2", Source::Held(Held::Dr2)),
    ("dr3", Source::Held(Held::Dr3)),
    ("dr6", Source::Held(Held::Dr6)),
    ("dr7", Source::Vmcs(Field::DR7)),
    ("debugctl", Source::Vmcs(Field::DEBUGCTL)),
    ("interruptibility", Source::Vmcs(Field::INTERRUPTIBILITY)),
    ("activity", Source::Vmcs(Field::ACTIVITY)),
    ("pending_dbg", Source::Vmcs(Field::PENDING_DEBUG)),
    ("cr8", Source::TaskPriority),
];

/// State that a guest can change and that recordings do not contain.
const SETTABLE: [(&str, Field); 4] = [
    ("rip", Field::RIP),
    ("rsp", Field::RSP),
    ("cs_ar", Field::CS_ACCESS),
    ("ss_ar", Field::SS_ACCESS),
];

/// MSRs whose guest value the module keeps, if they can be changed without a VM exit.
const MSRS: [(u32, Source); 13] = [
    (0x48, Source::Held(Held::SpecCtrl)),
    (0xe1, Source::Held(Held::UmwaitControl)),
    (0x174, Source::Vmcs(Field::SYSENTER_CS)),
    (0x175, Source::Vmcs(Field::SYSENTER_ESP)),
    (0x176, Source::Vmcs(Field::SYSENTER_EIP)),
    (0x277, Source::Vmcs(Field::PAT)),
    (0xda0, Source::Held(Held::Xss)),
    (0xc000_0081, Source::Held(Held::Star)),
    (0xc000_0082, Source::Held(Held::Lstar)),
    (0xc000_0084, Source::Held(Held::Fmask)),
    (0xc000_0100, Source::Vmcs(Field::FS_BASE)),
    (0xc000_0101, Source::Vmcs(Field::GS_BASE)),
    (0xc000_0102, Source::Held(Held::KernelGsBase)),
];

#[derive(Clone, Copy)]
enum Source {
    Vmcs(Field),
    Held(Held),
    TaskPriority,
}

/// The guest-visible state at one moment.
#[derive(Clone, Default)]
pub struct State {
    gprs: [u64; 16],
    rip: u64,
    fields: [u64; FIELDS.len()],
    nmi_window: u64,
    mtf: u64,
    ve_info_valid: bool,
    ve_info: [u64; 9],
    inject: Option<(u64, u64, u64)>,
    xmm: [u128; 16],
}

/// Names of the fields of the #VE information area, with their offset in the TDVPS and their size.
const VE_INFO: [(&str, usize, usize); 9] = [
    ("exit_reason", 0, 4),
    ("exit_qual", 8, 8),
    ("gla", 16, 8),
    ("gpa", 24, 8),
    ("ilen", 36, 4),
    ("iinfo", 40, 4),
    ("ext_info", 0x30, 8),
    ("interruptibility", 0x38, 4),
    ("apic_data", 0x40, 8),
];
const VE_INFO_VALID: usize = 4;

impl State {
    fn capture(machine: &HostMachine, lp: u32, vcpu: &Vcpu<'_>) -> Self {
        const NMI_WINDOW_EXITING: u32 = 22;
        const MONITOR_TRAP: u32 = 27;
        let controls = vcpu.vmcs(Field::PROC_BASED);
        let injected = vcpu.vmcs(Field::ENTRY_INT_INFO);
        Self {
            gprs: Gpr::ALL.map(|register| vcpu.gpr(register)),
            rip: vcpu.vmcs(Field::RIP),
            fields: FIELDS.map(|(_, source)| source.read(machine, lp, vcpu)),
            nmi_window: controls >> NMI_WINDOW_EXITING & 1,
            mtf: controls >> MONITOR_TRAP & 1,
            ve_info_valid: vcpu.read(VE_INFO_VALID, 4) != 0,
            ve_info: VE_INFO.map(|(_, offset, size)| vcpu.read(offset, size)),
            inject: (injected >> 31 & 1 == 1).then(|| {
                (
                    injected,
                    vcpu.vmcs(Field::ENTRY_INT_ERROR),
                    vcpu.vmcs(Field::ENTRY_INSTRUCTION_LENGTH),
                )
            }),
            xmm: core::array::from_fn(|index| vcpu.xmm(index)),
        }
    }

    /// Returns the differences from `before`, in the names of the recordings.
    fn changes_since(&self, before: &Self) -> Changes {
        let mut changes = BTreeMap::new();
        let mut tell = |name: String, before: u64, now: u64| {
            if before != now {
                changes.insert(name, Change::Number(now));
            }
        };
        for (register, name) in NAMES.iter().enumerate() {
            if register != Gpr::Rsp as usize {
                let name = format!("regs/{name}");
                tell(name, before.gprs[register], self.gprs[register]);
            }
        }
        tell("rip".into(), 0, self.rip.wrapping_sub(before.rip));
        for (at, (name, _)) in FIELDS.iter().enumerate() {
            tell((*name).into(), before.fields[at], self.fields[at]);
        }
        tell("nmi_window".into(), before.nmi_window, self.nmi_window);
        tell("mtf".into(), before.mtf, self.mtf);
        if self.ve_info_valid && (!before.ve_info_valid || self.ve_info != before.ve_info) {
            for ((name, ..), value) in VE_INFO.iter().zip(self.ve_info) {
                tell(format!("ve_info/{name}"), 0, value);
            }
        }
        if let Some((info, error, length)) = self.inject {
            tell("inject/vector".into(), u64::MAX, info & 0xff);
            if info >> 11 & 1 == 1 {
                tell("inject/error_code".into(), u64::MAX, error);
            }
            if let Some(name) = event_type(info) {
                let name = Change::Text(name.into());
                changes.insert("inject/type".into(), name);
                if info >> 8 & 7 >= 4 {
                    changes.insert("inject/ilen".into(), Change::Number(length));
                }
            }
        }
        if before.ve_info_valid && !self.ve_info_valid {
            changes.insert("ve_info_valid".into(), Change::Number(0));
        }
        for (index, (before, now)) in before.xmm.iter().zip(self.xmm).enumerate() {
            if *before != now {
                let digits = now.to_le_bytes().map(|byte| format!("{byte:02x}")).concat();
                changes.insert(format!("xmm/{index}"), Change::Text(digits));
            }
        }
        Changes(changes)
    }

    /// Returns the state that a recording gives for an entry: all registers that are not zero, the instruction
    /// pointer, and other differences from the vCPU's last exit.
    fn entry_since(&self, last: &Self) -> Changes {
        let everything = Self {
            gprs: [0; 16],
            rip: 0,
            ..last.clone()
        };
        self.changes_since(&everything)
    }
}

/// Returns the name of an injected event's type, or `None` for a hardware exception.
fn event_type(info: u64) -> Option<&'static str> {
    match info >> 8 & 7 {
        0 => Some("ext_int"),
        2 => Some("nmi"),
        3 => None,
        4 => Some("sw_int"),
        5 => Some("priv_sw_exc"),
        6 => Some("sw_exc"),
        _ => Some("reserved"),
    }
}

impl Source {
    fn read(self, machine: &HostMachine, lp: u32, vcpu: &Vcpu<'_>) -> u64 {
        match self {
            Self::Vmcs(field) => vcpu.vmcs(field),
            Self::Held(register) => vcpu.held(register),
            Self::TaskPriority => machine.task_priority(lp),
        }
    }

    fn write(self, vcpu: &Vcpu<'_>, value: u64) {
        match self {
            Self::Vmcs(field) => vcpu.set_vmcs(field, value),
            Self::Held(register) => vcpu.set_held(register, value),
            Self::TaskPriority => {
                // The guest writes to the virtual APIC.
                const TPR: usize = 0x80;
                vcpu.vapic()[TPR / 8].store(value << 4, std::sync::atomic::Ordering::Relaxed);
            }
        }
    }
}

/// The observations of a guest during one TDH.VP.ENTER.
#[derive(Default)]
pub struct Witness {
    /// The state at the last exit.
    pub last: Option<State>,
    pub differences: Vec<Difference>,
    /// Addresses at which the guest asked for a TDREPORT.
    pub reports: BTreeSet<u64>,
    /// Number of entries.
    pub entries: usize,
}

/// The recorded part of a guest in one TDH.VP.ENTER.
pub struct Recorded {
    pub exits: Vec<Exit>,
    /// The expected state at the entry, if any.
    pub entry: Option<Changes>,
    /// The MSRs that it accesses without an exit, if the recording lists them.
    pub native_msrs: Option<NativeMsrs>,
}

/// Replays the exits of one TDH.VP.ENTER.
pub struct Script {
    recorded: Arc<Recorded>,
    /// True if the recording contains the module's handling of each exit.
    watched: bool,
    witness: Arc<Mutex<Witness>>,
}

impl Script {
    /// Creates a guest that continues where `witness` left off.
    pub fn new(recorded: Arc<Recorded>, watched: bool, witness: Arc<Mutex<Witness>>) -> Self {
        Self {
            recorded,
            watched,
            witness,
        }
    }
}

impl Guest for Script {
    fn run(&mut self, machine: &HostMachine, lp: u32, vcpu: &Vcpu<'_>) {
        let mut witness = self.witness.lock().unwrap_or_else(PoisonError::into_inner);
        let now = State::capture(machine, lp, vcpu);
        let number = witness.entries;
        witness.entries += 1;
        if self.watched {
            let last = witness.last.clone().unwrap_or_default();
            if number == 0 {
                if let Some(native) = &self.recorded.native_msrs {
                    native.compare(machine, vcpu, &mut witness.differences);
                }
                let expected = self.recorded.entry.clone().unwrap_or_default();
                compare(
                    "entry",
                    &expected,
                    &now.entry_since(&last),
                    &mut witness.differences,
                );
            } else {
                let expected = self.after(number - 1);
                let path = format!("guest/{}/after", number - 1);
                compare(
                    &path,
                    &expected,
                    &now.changes_since(&last),
                    &mut witness.differences,
                );
            }
        }
        match self.recorded.exits.get(number) {
            None => host::Exit::EXTERNAL_INTERRUPT.leave(machine, vcpu),
            Some(exit) => {
                if !self.watched {
                    into_64_bit_mode(vcpu);
                }
                if let Some(instructions) = exit.insts {
                    machine.set_retired(lp, instructions);
                }
                if let Err(error) = exit.leave(machine, vcpu) {
                    let place = format!("guest/{number}/set");
                    witness.differences.push(Difference::new(
                        place,
                        "something that can be set",
                        error,
                    ));
                }
                if exit.reason.0 == u64::from(exit_reason::TDCALL)
                    && vcpu.gpr(Gpr::Rax) == MR_REPORT
                {
                    witness.reports.insert(vcpu.gpr(Gpr::Rcx));
                }
            }
        }
        witness.last = Some(State::capture(machine, lp, vcpu));
    }
}

/// Switches to 64-bit mode: the guests of the host-side recordings run 64-bit code from the start.
fn into_64_bit_mode(vcpu: &Vcpu<'_>) {
    const L: u64 = 1 << 13;
    vcpu.set_vmcs(Field::EFER, vcpu.vmcs(Field::EFER) | efer::LMA);
    vcpu.set_vmcs(Field::CS_ACCESS, vcpu.vmcs(Field::CS_ACCESS) | L);
}

impl Script {
    /// Returns the recorded state after an exit.
    fn after(&self, number: usize) -> Changes {
        let exit = self.recorded.exits.get(number);
        exit.and_then(|exit| exit.after.clone()).unwrap_or_default()
    }

    /// Checks, after TDH.VP.ENTER has returned, that it did so after the recorded exit.
    pub fn finish(&self, must_not_enter: bool) {
        let mut witness = self.witness.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = std::mem::take(&mut witness.entries);
        if !self.watched {
            return;
        }
        if must_not_enter || entries == 0 {
            if must_not_enter != (entries == 0) {
                let told = |entered| if entered { "entered" } else { "not entered" };
                witness.differences.push(Difference::new(
                    "entry".into(),
                    told(!must_not_enter),
                    told(entries > 0),
                ));
            }
            return;
        }
        let expected = self.after(entries - 1);
        let mut actual = Changes::default();
        actual.0.insert("td_exit".into(), Change::Number(1));
        let path = format!("guest/{}/after", entries - 1);
        compare(&path, &expected, &actual, &mut witness.differences);
    }
}

fn compare(path: &str, expected: &Changes, actual: &Changes, into: &mut Vec<Difference>) {
    let names: BTreeSet<_> = expected.0.keys().chain(actual.0.keys()).collect();
    for name in names {
        let (expected, actual) = (expected.0.get(name), actual.0.get(name));
        if expected != actual {
            let told = |change: Option<&Change>| match change {
                None => "unchanged".to_owned(),
                Some(Change::Number(number)) => format!("{number:#x}"),
                Some(Change::Text(text)) => text.clone(),
            };
            into.push(Difference::new(
                format!("{path}/{name}"),
                told(expected),
                told(actual),
            ));
        }
    }
}

impl Exit {
    /// Leaves the guest with this exit, after the guest's changes before it.
    fn leave(&self, machine: &HostMachine, vcpu: &Vcpu<'_>) -> Result<()> {
        let number = |name: &str| match self.set.get(name) {
            Some(value) => serde::Deserialize::deserialize(value)
                .map(|number: Number| number.0)
                .with_context(|| format!("{name} is not a number")),
            None => Ok(0),
        };
        host::Exit {
            reason: self.reason.0 as u32,
            qualification: self.qual.0,
            gpa: self.gpa.0,
            gla: number("gla")?,
            instruction_length: self.ilen.0 as u32,
            instruction_info: number("instr_info")? as u32,
            interruption: (self.intinfo.0 as u32, number("int_err")? as u32),
            idt_vectoring: (number("idt_vec")? as u32, number("idt_err")? as u32),
        }
        .leave(machine, vcpu);
        machine.advance_tsc(number("tsc_add")?);
        for (register, value) in self.regs.listed() {
            vcpu.set_gpr(Gpr::ALL[register], value);
        }
        for (name, value) in &self.set {
            match name.as_str() {
                "gla" | "instr_info" | "int_err" | "idt_vec" | "idt_err" | "tsc_add" => {}
                "xmm" => {
                    let named = value.as_object().context("xmm is not an object")?;
                    for (index, digits) in named {
                        let digits = digits.as_str().context("xmm is not a string")?;
                        vcpu.set_xmm(index.parse()?, number::xmm(digits)?);
                    }
                }
                "msrs" => {
                    let named = value.as_object().context("msrs is not an object")?;
                    for (msr, value) in named {
                        let msr = Number::parse(msr)?.0;
                        let value: Number = serde::Deserialize::deserialize(value)?;
                        let known = MSRS.iter().find(|(known, _)| u64::from(*known) == msr);
                        let (_, home) =
                            known.with_context(|| format!("MSR {msr:#x} is kept nowhere"))?;
                        home.write(vcpu, value.0);
                    }
                }
                "efer" => {
                    // At an exit the CPU copies EFER.LMA into the VM-entry controls.
                    const IA32E_GUEST: u64 = 1 << 9;
                    let efer = number(name)?;
                    let controls = vcpu.vmcs(Field::ENTRY_CONTROLS) & !IA32E_GUEST;
                    let mode = if efer & efer::LMA != 0 {
                        IA32E_GUEST
                    } else {
                        0
                    };
                    vcpu.set_vmcs(Field::ENTRY_CONTROLS, controls | mode);
                    vcpu.set_vmcs(Field::EFER, efer);
                }
                _ => {
                    let value = number(name)?;
                    let field = SETTABLE.iter().find(|(known, _)| known == name);
                    let home = match field {
                        Some((_, field)) => Some(Source::Vmcs(*field)),
                        None => FIELDS
                            .iter()
                            .find(|(known, _)| known == name)
                            .map(|(_, home)| *home),
                    };
                    home.with_context(|| format!("`{name}` can't be set"))?
                        .write(vcpu, value);
                }
            }
        }
        Ok(())
    }
}
