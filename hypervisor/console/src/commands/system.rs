//! The machine as a whole: `version`, `boot`, `cpus`, `reboot`, `poweroff`.

use alloc::{collections::BTreeSet, string::String, vec::Vec};
use core::fmt::{self, Write};

use serde::Serialize;

use crate::{
    argument::Args,
    command::{Class, Command, Context},
    error::Error,
    host::{Boot, Build, Cpu, CpuState, PowerAction, errors::Mitigation},
    reply::{Reply, Text},
    table::{Count, Facts, Maybe, Micros, Table},
};

pub const COMMANDS: &[Command] = &[
    Command {
        name: "version",
        class: Class::Read,
        args: &[],
        summary: "Show the hypervisor's version",
        help: "Shows the version of the hypervisor, and its commit and compiler if the build recorded them. \"tdx\" \
               shows the version of the TDX module.",
        run: |context, _| Ok(Reply::new(context.host.build())),
    },
    Command {
        name: "boot",
        class: Class::Read,
        args: &[],
        summary: "Show how this boot went",
        help: "Shows the boot CPU's model and microcode, where the image was loaded from, which configuration was read and any error in it, other \
               problems, the crashes since the last \"crash drop\", and how long the boot took.",
        run: |context, _| Ok(Reply::new(context.host.boot())),
    },
    Command {
        name: "cpus",
        class: Class::Read,
        args: &[],
        summary: "List the CPUs with their topology and state",
        help: "Lists every CPU that the firmware reports as enabled: its APIC id, package, core and thread, its NUMA \
               node if the firmware describes one, and its state. A star marks the CPU that the firmware booted on. Below \
               are the mitigations of attacks by speculative execution.",
        run: cpus,
    },
    Command {
        name: "reboot",
        class: Class::Host,
        args: &[],
        summary: "Reset the machine",
        help: "Acts at once, without confirmation. Nothing is saved.",
        run: |context, args| power(context, args, PowerAction::Reboot),
    },
    Command {
        name: "poweroff",
        class: Class::Host,
        args: &[],
        summary: "Switch the machine off",
        help: "Acts at once, without confirmation. Nothing is saved.",
        run: |context, args| power(context, args, PowerAction::PowerOff),
    },
];

impl Text for Build {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut facts = Facts::default();
        facts.fact("seamark", &self.version);
        facts.fact("commit", Maybe(self.commit.as_ref()));
        facts.fact("compiler", Maybe(self.compiler.as_ref()));
        write!(out, "{facts}")
    }
}

impl Text for Boot {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut facts = Facts::default();
        facts.fact("CPU", &self.cpu);
        facts.fact(
            "loaded from",
            format_args!("{}, at {}", self.loaded_from, self.image),
        );
        let secure_boot = if self.secure_boot { "on" } else { "off" };
        facts.fact("Secure Boot", secure_boot);
        facts.fact("configuration", Maybe(self.config.as_ref()));
        for problem in self.config_problems.iter().chain(&self.problems) {
            facts.fact("problem", problem);
        }
        let show = if self.crashes > 0 {
            " (\"crash show\")"
        } else {
            ""
        };
        facts.fact("crashes", format_args!("{}{show}", self.crashes));
        facts.fact("time to prompt", Maybe(self.to_prompt_us.map(Micros)));
        facts.fact("uptime", Micros(self.uptime_us));
        write!(out, "{facts}")
    }
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Cpus {
    cpus: Vec<Cpu>,
    running: usize,
    packages: usize,
    mitigations: Vec<Mitigation>,
}

fn cpus(context: &mut Context<'_>, _: &Args) -> Result<Reply, Error> {
    let cpus = context.host.cpus();
    let runs = |cpu: &&Cpu| matches!(cpu.state, CpuState::Online | CpuState::Idle);
    Ok(Reply::new(Cpus {
        running: cpus.iter().filter(runs).count(),
        packages: cpus
            .iter()
            .map(|cpu| cpu.package)
            .collect::<BTreeSet<_>>()
            .len(),
        mitigations: context.host.mitigations(),
        cpus,
    }))
}

impl Text for Cpus {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let mut table = Table::new(&[
            "CPU", "APIC", "PACKAGE", "CORE", "THREAD", "NODE", "STATE", "",
        ]);
        for cpu in &self.cpus {
            let star = if cpu.bootstrap { "*" } else { " " };
            let state = alloc::format!("{}{star}", cpu.state);
            let detail = cpu.detail.as_deref().unwrap_or_default();
            table.row(&[
                &cpu.index,
                &cpu.apic_id,
                &cpu.package,
                &cpu.core,
                &cpu.thread,
                &Maybe(cpu.numa_node),
                &state,
                &detail,
            ]);
        }
        let packages = Count(self.packages, "package");
        writeln!(
            out,
            "{table}{} of {} run, in {packages}",
            self.running,
            Count(self.cpus.len(), "CPU")
        )?;
        let mut table = Table::new(&["ATTACK", "STATE", "BY"]);
        for mitigation in &self.mitigations {
            table.row(&[&mitigation.attack, &mitigation.state, &mitigation.by]);
        }
        write!(out, "{table}")
    }
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Power {
    action: PowerAction,
    by: String,
}

fn power(context: &mut Context<'_>, _: &Args, action: PowerAction) -> Result<Reply, Error> {
    let by = context.host.request_power(action)?;
    Ok(Reply::new(Power { action, by }))
}

impl Text for Power {
    fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let doing = match self.action {
            PowerAction::Reboot => "Resetting the machine",
            PowerAction::PowerOff => "Switching the machine off",
        };
        writeln!(out, "{doing} ({})", self.by)
    }
}
