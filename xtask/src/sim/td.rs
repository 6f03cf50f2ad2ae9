//! A TD in the simulation, built by the hypervisor's code on the emulated module, with pages of one size.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use anyhow::{Result, anyhow, ensure};
use host::platform::Platform;
use host::tdx::hkids::Hkids;
use host::tdx::release::{Coordinator, Ending, Release, Vcpus};
use mm::frames::{Frame, ORDER_2M, ORDER_4K};
use mm::private::{Cpu, Ledger, Levels, NoneRuns, Pool, PrivateMap, Settings};
use seam::abi::metadata::sys;
use seam::abi::x86::{efer, exit_reason};
use seam::abi::{Gprs, PAGE_1G, PAGE_2M, PAGE_4K, PageSize, Status, TdParams, Xfam};
use seam::address::{Gpa, Hpa, KeyIdPosition};
use seam::error::Error;
use seam::page::{Donated, Page};
use seam::platform::KeyIds;
use seam::tdh::{EnterFlags, Tdvpr};
use stub_module::host::{Exit, Guest, HostMachine};
use stub_module::vcpu::{Field, Gpr, Vcpu};
use zerocopy::{FromZeros, IntoBytes};

use super::world::{BASE, Taking, World};

/// The address of the TD parameters.
const BUFFER: Hpa = Hpa(1 << 20);

/// A TD with a vCPU on each CPU.
pub struct Td {
    pub map: PrivateMap,
    pub vcpus: SimVcpus,
    control: Vec<Page<Donated>>,
    release: Release,
    coordinator: Coordinator,
    /// Number of 4 KiB frames that are set aside for alignment.
    pub aside: u64,
}

impl Td {
    /// Builds a runnable TD with `bytes` of private memory, in pages of one size.
    pub fn build(world: &World, bytes: u64, size: PageSize) -> Result<Self> {
        world.take(Taking::Off);
        let mut td = Self::empty(world, bytes)?;
        let tdh = world.on(0);
        let cpu = Cpu {
            tdh: &tdh,
            pool: world.pool(),
        };
        td.map.finalize(&tdh).map_err(|error| anyhow!("{error}"))?;
        if size == PageSize::Size1G {
            // One table for each GiB that will become one page, and those above.
            td.aside = align_frames(world, bytes / PAGE_1G + 16)?;
        }
        let step = if size == PageSize::Size4K {
            PAGE_4K
        } else {
            PAGE_2M
        };
        let mapped = if size == PageSize::Size4K {
            PageSize::Size4K
        } else {
            PageSize::Size2M
        };
        for gpa in (0..bytes).step_by(step as usize) {
            let result = td.map.map(cpu, Gpa(gpa), mapped);
            result.map_err(|error| anyhow!("{gpa:#x}: {error}"))?;
        }
        if size == PageSize::Size1G {
            td.accept(world, bytes)?;
            let made = td.map.promote_all(cpu, 0..bytes, &NoneRuns);
            let made = made.map_err(|error| anyhow!("{error}"))?;
            ensure!(made[2] == bytes / PAGE_1G, "only {made:?} pages are whole");
        }
        let holding = td.map.holding().pages[size as usize];
        ensure!(
            holding == bytes / size.bytes(),
            "the TD has {holding} pages"
        );
        td.control.shrink_to_fit();
        Ok(td)
    }

    fn empty(world: &World, bytes: u64) -> Result<Self> {
        let tdh = world.on(0);
        let hkids = Hkids::new(&KeyIds {
            shared: 31,
            private: 32,
            max_pa: 52,
            bits: 6,
        });
        let global = hkids.take_global().map_err(|none| anyhow!("{none}"))?;
        ensure!(global.surrender() == super::world::GLOBAL_HKID);
        let coordinator = Coordinator::new(hkids);
        let frame = || {
            let frame = world.pool().take(PageSize::Size4K);
            frame.ok_or_else(|| anyhow!("no frame is left"))
        };
        let failed = |error: Error| anyhow!("{error}");
        let tdr = coordinator
            .create(world, frame()?)
            .map_err(|(error, _)| anyhow!("{error}"))?;
        let release = Release::new(tdr.hkid());
        let mut package = None;
        for place in world.cpus() {
            if package != Some(place.package) {
                package = Some(place.package);
                world.on(place.cpu).mng_key_config(&tdr).map_err(failed)?;
            }
        }
        let mut control = Vec::new();
        for _ in 0..tdh.sys_rd(sys::TDCS_BASE_SIZE.id).map_err(failed)? / PAGE_4K {
            let page = tdh.mng_addcx(&tdr, frame()?).map_err(|r| failed(r.error))?;
            control.push(page);
        }
        let mut params = TdParams::new_zeroed();
        params.xfam = Xfam::X87 | Xfam::SSE;
        params.max_vcpus = world.cpus().len() as u16;
        params.eptp_controls = 0x1e;
        params.tsc_frequency = 40;
        world.write(BUFFER, params.as_bytes());
        tdh.mng_init(&tdr, BUFFER).map_err(failed)?;
        let mut vcpus = Vec::new();
        let tdvps = tdh.sys_rd(sys::TDVPS_BASE_SIZE.id).map_err(failed)? / PAGE_4K;
        for place in world.cpus() {
            let tdvpr = tdh.vp_create(&tdr, frame()?).map_err(|r| failed(r.error))?;
            for _ in 1..tdvps {
                let page = tdh
                    .vp_addcx(&tdvpr, frame()?)
                    .map_err(|r| failed(r.error))?;
                control.push(page);
            }
            world
                .on(place.cpu)
                .vp_init(&tdvpr, 0, None)
                .map_err(failed)?;
            vcpus.push((place.cpu, tdvpr, AtomicBool::new(true)));
        }
        let settings = Settings {
            limit: bytes.next_multiple_of(PAGE_1G),
            levels: Levels::Four,
            keyid: KeyIdPosition::new(52, 6).ok_or_else(|| anyhow!("52 bits have room for 6"))?,
            sept_limit: u64::MAX,
        };
        let map = PrivateMap::new(tdr, settings).map_err(|(error, _)| anyhow!("{error}"))?;
        Ok(Self {
            map,
            vcpus: SimVcpus(vcpus),
            control,
            release,
            coordinator,
            aside: 0,
        })
    }

    /// Lets the guest accept everything, 2 MiB at a time.
    fn accept(&self, world: &World, bytes: u64) -> Result<()> {
        let machine = world.core.server.machine();
        let asked = Arc::new(AtomicU64::new(0));
        let told = Arc::new(AtomicU64::new(0));
        let script = Accept {
            asked: Arc::clone(&asked),
            told: Arc::clone(&told),
            is_asking: true,
        };
        machine.set_guest(0, Some(Box::new(script)));
        let tdh = world.on(0);
        let (_, vcpu, _) = &self.vcpus.0[0];
        for gpa in (0..bytes).step_by(PAGE_2M as usize) {
            asked.store(gpa | PageSize::Size2M as u64, SeqCst);
            let entered = tdh.vp_enter(vcpu, EnterFlags::default(), &mut Gprs::default());
            entered.map_err(|error| anyhow!("{error}"))?;
            let status = Status(told.load(SeqCst));
            ensure!(
                status == Status::SUCCESS,
                "the guest accepts {gpa:#x}: {status:?}"
            );
        }
        machine.set_guest(0, None);
        Ok(())
    }

    /// Releases the HKID through the hypervisor's coordinator.
    pub fn release(&self, world: &World) -> Result<()> {
        let vcpus = FlushHere(&self.vcpus, world);
        let ending = Ending {
            map: &self.map,
            vcpus: &vcpus,
            release: &self.release,
        };
        for result in self.coordinator.release(world, &[ending]) {
            result.map_err(|error| anyhow!("{error}"))?;
        }
        Ok(())
    }

    /// Returns the TD's map and all its control pages.
    pub fn into_parts(self) -> (PrivateMap, Vec<Page<Donated>>) {
        let mut control = self.control;
        control.extend(
            self.vcpus
                .0
                .into_iter()
                .map(|(_, tdvpr, _)| tdvpr.into_page()),
        );
        (self.map, control)
    }
}

/// Makes the next frame of 2 MiB one at the start of a GiB, so that each GiB of the TD is contiguous. Leaves `tables`
/// frames of 4 KiB before it for the S-EPT and sets the others aside. Returns how many of 4 KiB are set aside.
fn align_frames(world: &World, tables: u64) -> Result<u64> {
    const PARTS: u64 = PAGE_2M / PAGE_4K;
    let failed = |error: mm::frames::FrameError| anyhow!("{error}");
    let ledger = world.pool().ledger();
    let mut aside = 0;
    let mut left = tables;
    loop {
        let frame = ledger
            .with(|frames| frames.alloc(ORDER_2M))
            .map_err(failed)?;
        if (frame.pa - BASE).is_multiple_of(PAGE_1G) {
            ledger.with(|frames| frames.free(frame)).map_err(failed)?;
            ensure!(left == 0, "{left} tables have no frames");
            return Ok(aside);
        }
        if left == 0 {
            aside += PARTS;
            continue;
        }
        // Frees all parts but one: complete, they would merge to a large frame again, which the TD would take.
        ledger
            .with(|frames| frames.split(frame, ORDER_4K))
            .map_err(failed)?;
        for pa in (frame.pa..frame.pa + PAGE_2M)
            .step_by(PAGE_4K as usize)
            .skip(1)
        {
            let part = Frame {
                pa,
                order: ORDER_4K,
            };
            ledger.with(|frames| frames.free(part)).map_err(failed)?;
        }
        aside += 1;
        left = left.saturating_sub(PARTS - 1);
    }
}

/// The vCPUs of a TD: the CPU, the vCPU, and true if the vCPU is associated with it.
pub struct SimVcpus(Vec<(u32, Tdvpr, AtomicBool)>);

/// The vCPUs, and the CPUs that they are on.
struct FlushHere<'a>(&'a SimVcpus, &'a World);

impl Vcpus for FlushHere<'_> {
    fn cpus(&self) -> Vec<u32> {
        let associated = self.0.0.iter().filter(|(_, _, is)| is.load(SeqCst));
        associated.map(|(cpu, ..)| *cpu).collect()
    }

    fn flush_here(&self) -> Result<(), Error> {
        let me = self.1.this_cpu();
        for (_, vcpu, is_associated) in self.0.0.iter().filter(|(cpu, ..)| *cpu == me) {
            self.1.tdh().vp_flush(vcpu)?;
            is_associated.store(false, SeqCst);
        }
        Ok(())
    }
}

/// A guest that accepts the memory that it is asked to, and is interrupted then.
struct Accept {
    asked: Arc<AtomicU64>,
    told: Arc<AtomicU64>,
    is_asking: bool,
}

impl Guest for Accept {
    fn run(&mut self, machine: &HostMachine, _: u32, vcpu: &Vcpu<'_>) {
        const MEM_PAGE_ACCEPT: u64 = 6;
        const L: u64 = 1 << 13;
        if !self.is_asking {
            self.told.store(vcpu.gpr(Gpr::Rax), SeqCst);
            self.is_asking = true;
            Exit::EXTERNAL_INTERRUPT.leave(machine, vcpu);
            return;
        }
        self.is_asking = false;
        vcpu.set_vmcs(Field::EFER, vcpu.vmcs(Field::EFER) | efer::LMA);
        vcpu.set_vmcs(Field::CS_ACCESS, vcpu.vmcs(Field::CS_ACCESS) | L);
        vcpu.set_gpr(Gpr::Rax, MEM_PAGE_ACCEPT);
        vcpu.set_gpr(Gpr::Rcx, self.asked.load(SeqCst));
        let exit = Exit {
            instruction_length: 4,
            ..Exit::of(exit_reason::TDCALL)
        };
        exit.leave(machine, vcpu);
    }
}
