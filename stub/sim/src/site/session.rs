//! One simulation on a server: some of its CPUs, as the [`Platform`] that the host's code runs on.

use std::ops::ControlFlow;

use hypervisor::cpu::call::NoAnswer;
use hypervisor::platform::{CpuPlace, Platform};
use hypervisor::tdx::release::Coordinator;
use mm::private::{Clock, Cpu, Kick, Ledger, NoAnswer as NoKick, PrivateMap, Reclaim, Step};
use seam::abi::{Gprs, Leaf};
use seam::address::{Hpa, KeyIdPosition};
use seam::call::{Fault, SeamCall};
use seam::counters::Counters;
use seam::retry::{Pause, Wait};
use seam::tdh::Tdh;

use super::memory::out;
use super::{Pool, Site};
use crate::cost::{Costs, Item};
use crate::error::Error;
use crate::machine::{Kind, Line, Machine, Turn};

/// One simulation.
pub struct Session<'s> {
    site: &'s Site,
    places: Vec<CpuPlace>,
    counters: Vec<Counters>,
}

/// What the CPUs work on at a TD's end.
pub type Reclaimer<'m> = Reclaim<&'m PrivateMap>;

impl<'s> Session<'s> {
    /// With so many of the server's CPUs; no time passes yet.
    ///
    /// # Errors
    /// When the CPUs are not in as many packages as the server has.
    pub fn new(site: &'s Site, cpus: u32, costs: Costs) -> Result<Self, Error> {
        let topology = site.topology(cpus);
        if topology.packages != site.packages() {
            return Err(Error::new(
                "the CPUs",
                "they need another number of packages",
            ));
        }
        let places = (0..cpus).map(|cpu| CpuPlace {
            cpu,
            package: topology.package(cpu),
        });
        let places: Vec<_> = places.collect();
        site.machine.reset(topology, costs);
        Ok(Self {
            site,
            counters: places.iter().map(|_| Counters::new()).collect(),
            places,
        })
    }

    /// The server.
    pub const fn site(&self) -> &'s Site {
        self.site
    }

    /// What time passes on.
    pub fn machine(&self) -> &'s Machine {
        &self.site.machine
    }

    /// Who gives HKIDs out and takes them back.
    pub const fn coordinator(&self) -> &'s Coordinator {
        &self.site.coordinator
    }

    /// Where the KeyID is in a physical address.
    ///
    /// # Errors
    /// As [`Site::keyid_position`].
    pub fn keyid_position(&self) -> Result<KeyIdPosition, Error> {
        self.site.keyid_position()
    }

    /// Works with the CPU that runs.
    pub fn with<R>(&self, work: impl FnOnce(Cpu<'_, Caller<'s>, Passing<'s>, Pool>) -> R) -> R {
        let tdh = self.tdh();
        work(Cpu {
            tdh: &tdh,
            pool: self.pool(),
        })
    }

    /// Calls of a leaf so far, on all CPUs.
    pub fn calls(&self, leaf: Leaf) -> u64 {
        self.counters.iter().map(|c| c.leaf(leaf).calls).sum()
    }

    /// Lets all CPUs reclaim until everything is back.
    ///
    /// # Errors
    /// When the module keeps something.
    pub fn reclaim(&self, reclaim: &Reclaimer<'_>) -> Result<(), Error> {
        let machine = self.machine();
        let mut end = Ok(());
        machine.run(self.places.len() as u32, |cpu| {
            let step = self.with(|with| reclaim.work(with, cpu, self));
            match step {
                Step::More => {
                    machine.pay(Kind::Books, Item::StepBooks);
                    machine.write(Line::Handout);
                    Turn::More
                }
                Step::Idle => Turn::Idle,
                Step::Done => Turn::Done,
                Step::Stuck => {
                    if let Some(refusal) = reclaim.last_refusal() {
                        end = Err(Error::new("reclaim", refusal));
                    }
                    Turn::Done
                }
            }
        });
        end
    }

    /// Whether everything is as it was: no frame is out, nothing illegal was asked, and the host touched nothing that was not
    /// its own.
    ///
    /// # Errors
    /// What is not so.
    pub fn check_spotless(&self) -> Result<(), Error> {
        let pool = self.pool();
        let is_out = pool.ledger().with(|frames| out(frames));
        let illegal: u64 = self.counters.iter().map(|c| c.total().illegal).sum();
        let violations = self.site.server.module().violations().total();
        let refused = pool.refused();
        if (is_out, illegal, violations, refused) == (0, 0, 0, 0) {
            return Ok(());
        }
        let why = format!(
            "{is_out} frames are out, {illegal} calls were illegal, {violations} accesses forbidden, {refused} frames \
             not the allocator's"
        );
        Err(Error::new("the end", why))
    }
}

/// SEAMCALL on the CPU that runs, at the price of the cost model.
pub struct Caller<'s>(&'s Site);

impl SeamCall for Caller<'_> {
    fn seamcall(&self, regs: &mut Gprs) -> Result<(), Fault> {
        let Site {
            machine, server, ..
        } = self.0;
        let asked = *regs;
        let cpu = server.processor(machine.lp()).ok_or(Fault::NotVmx)?;
        cpu.seamcall(regs)?;
        if let Some(leaf) = Leaf::from_number(asked.rax as u16) {
            machine.call(leaf, &asked, regs);
            if matches!(leaf, Leaf::PhymemPageReclaim | Leaf::MemPageRemove) {
                machine.pay(Kind::Books, Item::PageBooks);
            }
        }
        Ok(())
    }
}

/// Lets the pauses between two tries pass.
pub struct Passing<'s>(&'s Machine);

impl Wait for Passing<'_> {
    fn wait(&self, pause: Pause) -> ControlFlow<()> {
        self.0.spend(Kind::Books, u64::from(pause.us) * PS_PER_US);
        ControlFlow::Continue(())
    }
}

const PS_PER_US: u64 = 1_000_000;

impl Clock for Session<'_> {
    fn ns(&self) -> u64 {
        self.machine().now() / 1000
    }
}

/// Kicks a vCPU on every CPU.
impl Kick for Session<'_> {
    fn kick(&self) -> Result<(), NoKick> {
        self.machine().interrupt(self.places.iter().map(|p| p.cpu));
        Ok(())
    }
}

impl<'s> Platform for Session<'s> {
    type Call = Caller<'s>;
    type Wait = Passing<'s>;
    type Pool = Pool;

    fn tdh(&self) -> Tdh<'_, Self::Call, Self::Wait> {
        Tdh::new(
            Caller(self.site),
            Passing(&self.site.machine),
            &self.counters[self.this_cpu() as usize],
        )
    }

    fn pool(&self) -> &Pool {
        &self.site.pool
    }

    fn cpus(&self) -> &[CpuPlace] {
        &self.places
    }

    fn this_cpu(&self) -> u32 {
        self.machine().cpu()
    }

    fn counters(&self, cpu: u32) -> Option<&Counters> {
        self.counters.get(cpu as usize)
    }

    // The module was brought up with the server; nothing of what comes after asks for this.
    fn write_back_caches(&self) {}

    fn on_each(&self, cpus: &[u32], work: &(dyn Fn(u32) + Sync)) -> Result<(), NoAnswer> {
        self.machine().on_each(cpus, work);
        Ok(())
    }

    fn relax(&self) {
        self.machine().spend(Kind::Books, PS_PER_US);
    }

    fn read(&self, from: Hpa, into: &mut [u8]) {
        self.site.server.machine().memory().read(from.0, into);
    }

    fn write(&self, to: Hpa, bytes: &[u8]) {
        self.site.server.machine().memory().write(to.0, bytes);
    }

    fn now_us(&self) -> u64 {
        self.machine().now() / PS_PER_US
    }
}
