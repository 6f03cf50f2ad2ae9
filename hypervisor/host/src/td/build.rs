//! Builds a TD in the order that the module demands. If a step fails, everything built so far is torn down in the same
//! way as for any TD that ends.

use alloc::{sync::Arc, vec::Vec};
use core::ops::Range;

use mm::private::{self, Pool, PrivateMap, Unowned};
use seam::{
    abi::{MEASUREMENT_SIZE, Measurement, PAGE_4K, PageSize, Status, TdParams, metadata::td},
    address::Hpa,
    call::SeamCall,
    error::{Handover, Rejected},
    page::{Clean, Page},
    retry::Wait,
    tdh::Tdh,
};
use sync::{Mutex, Once};
use tdvf::ImagePage;
use vcpu::Wiring;
use zerocopy::IntoBytes;

use super::{
    Body, Td,
    error::Error,
    host::Host,
    life::State,
    meter::{Meter, Summary},
    params::RefusedCpuid,
    plan::Plan,
    vcpu::Stopped,
};
use crate::{platform::Platform, tdx::release::Release};

/// Bytes to populate between two checks for a request to terminate the TD.
const AT_ONCE: u64 = 64 << 20;

/// Builds an admitted TD in state [`State::Building`]. The TD is paused afterwards.
///
/// # Errors
/// [`Error`]. The caller tears down what was built, by [`super::end::unwind`].
pub(super) fn build<P: Platform>(
    host: &Host<'_, P>,
    td: &Td,
    plan: Plan<'_>,
) -> Result<Summary, Error> {
    let mut meter = Meter::new(host.platform);
    let scratch = Scratch::take(host.platform)?;
    let built = Building {
        host,
        td,
        scratch: &scratch,
    };
    let Plan {
        params,
        image,
        list,
        list_at,
        map,
        limit,
        populate,
        placement,
    } = plan;
    let body = meter.phase("key", || built.key(map, limit))?;
    meter.phase("control", || built.control(body, &params))?;
    meter.phase("image", || {
        let image = match list_at {
            0 => image,
            _ => image.with_hob(&list).map_err(Error::Hob)?,
        };
        image.pages().try_for_each(|page| built.add(body, page))
    })?;
    meter.phase("memory", || {
        for range in populate
            .into_iter()
            .flat_map(|range| in_parts(range, AT_ONCE))
        {
            td.go_on_building()?;
            host.with_cpu(|cpu| body.map.populate(cpu, range))?;
        }
        Ok::<_, Error>(())
    })?;
    meter.phase("vcpus", || {
        host.runner.prepare(td).map_err(Error::Runner)?;
        let vcpus = (0..).zip(placement);
        vcpus
            .into_iter()
            .try_for_each(|(index, cpu)| built.vcpu(body, index, cpu, list_at))
    })?;
    meter.phase("finalize", || built.finalize(body))?;
    td.advance(host.platform, State::Building, State::Paused)
        .map_err(Error::State)?;
    Ok(meter.finish())
}

/// Splits a range at the multiples of `step`.
fn in_parts(range: Range<u64>, step: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    core::iter::from_fn(move || {
        let part = at..range.end.min((at + 1).next_multiple_of(step));
        at = part.end;
        Some(part).filter(|part| part.start < part.end)
    })
}

/// A TD under construction.
struct Building<'a, 'h, P: Platform> {
    host: &'a Host<'h, P>,
    td: &'a Td,
    scratch: &'a Scratch<'h, P>,
}

impl<'a, P: Platform> Building<'a, '_, P> {
    /// Creates the root page (TDR), and configures its key on every package.
    fn key(&self, map: Unowned, limit: u64) -> Result<&'a Body, Error> {
        let Host {
            platform,
            coordinator,
            ..
        } = self.host;
        let capacity = self.control_pages();
        let mut control = Vec::new();
        let reserved = control.try_reserve_exact(capacity);
        reserved.map_err(|_| Error::NoHeap)?;

        let page = take(*platform)?;
        let tdr = coordinator
            .create(*platform, page)
            .map_err(|(error, page)| {
                give(*platform, page);
                Error::Create(error)
            })?;
        let hkid = tdr.hkid();
        let body = self.td.body.call_once(|| Body {
            map: Arc::new(map.owned_by(tdr)),
            limit,
            hkid,
            release: Release::new(hkid),
            control: Mutex::new(control),
            reclaim: Once::new(),
        });
        self.configure_key(&body.map)?;
        Ok(body)
    }

    /// Executes TDH.MNG.KEY.CONFIG on one CPU of each package, in parallel.
    fn configure_key(&self, map: &PrivateMap) -> Result<(), Error> {
        let platform = self.host.platform;
        let failed = Mutex::new(None);
        let configure = |_| {
            let configured = map.keyed(|tdr| Ok(platform.tdh().mng_key_config(tdr)?));
            if let Err(error) = configured {
                *failed.lock() = Some(error);
            }
        };
        let answered = platform.on_each(&self.host.leaders(), &configure);
        answered.map_err(|silent| Error::Silent(silent.to_vec()))?;
        failed
            .into_inner()
            .map_or(Ok(()), |error| Err(error.into()))
    }

    /// Adds the TDCX pages, and executes TDH.MNG.INIT.
    fn control(&self, body: &Body, wanted: &TdParams) -> Result<(), Error> {
        let platform = self.host.platform;
        for _ in 0..self.host.capabilities.tdcx_pages {
            self.td.go_on_building()?;
            let added = body.map.keyed(|tdr| {
                let page = take(platform)?;
                kept(platform, platform.tdh().mng_addcx(tdr, page))
            });
            body.control.lock().push(added?);
        }
        self.scratch.write(wanted.as_bytes());
        let params = self.scratch.hpa();
        let init = |tdr: &_| Ok(platform.tdh().mng_init(tdr, params));
        body.map.keyed(init)?.map_err(|error| {
            let [place, ..] = error.outputs();
            let is_about_cpuid = error.is(Status::OPERAND_INVALID) && place != 0;
            let find = || {
                let (module, native) = (&self.host.capabilities, self.host.native);
                RefusedCpuid::find(place, wanted, module, native)
            };
            Error::Init(error, is_about_cpuid.then(find).flatten())
        })
    }

    /// Adds a page of the image.
    fn add(&self, body: &Body, page: ImagePage<'_>) -> Result<(), Error> {
        self.td.go_on_building()?;
        self.scratch.write(&page.content());
        let source = self.scratch.hpa();
        self.host.with_cpu(|cpu| {
            body.map.add(cpu, page.gpa, source, page.measured)?;
            Ok(())
        })
    }

    /// Creates a vCPU and initialises it on the CPU where it will run.
    fn vcpu(&self, body: &Body, index: u16, cpu: u32, list_at: u64) -> Result<(), Error> {
        let platform = self.host.platform;
        let mut slot = self.td.slots.stop(index).ok_or(Error::Busy)?;
        self.td.go_on_building()?;
        slot.put(body.map.keyed(|tdr| {
            let page = take(platform)?;
            kept(platform, platform.tdh().vp_create(tdr, page))
        })?);
        let tdvpr = slot.tdvpr().ok_or(Error::Busy)?;
        for _ in 1..self.host.capabilities.tdvps_pages {
            self.td.go_on_building()?;
            let added = platform.tdh().vp_addcx(tdvpr, take(platform)?);
            body.control.lock().push(kept(platform, added)?);
        }
        let initial = Initial {
            rcx: list_at,
            x2apic_id: Some(u32::from(index)).filter(|_| self.has_x2apic_ids()),
            wiring: self.host.runner.wiring(self.td, index),
        };
        let result = Mutex::new(Err(Error::Silent(Vec::from([cpu]))));
        let init = |cpu| {
            let tdh = platform.tdh();
            *result.lock() = init_vcpu(&tdh, &slot, cpu, &initial);
        };
        // A CPU that does not answer leaves the result unchanged.
        let _ = platform.on_each(&[cpu], &init);
        result.into_inner()
    }

    /// Returns whether the vCPUs get their x2APIC ids. Without them a guest can neither reduce #VE nor read its topology
    /// in CPUID.
    fn has_x2apic_ids(&self) -> bool {
        self.host.capabilities.topology_enum && self.td.config.ve_reduction != Some(false)
    }

    /// Executes TDH.MR.FINALIZE, and reads MRTD.
    fn finalize(&self, body: &Body) -> Result<(), Error> {
        self.td.go_on_building()?;
        let tdh = self.host.platform.tdh();
        body.map.finalize(&tdh)?;
        let mut mrtd: Measurement = [0; MEASUREMENT_SIZE];
        for (element, bytes) in (0..).zip(mrtd.chunks_exact_mut(8)) {
            let field = td::MRTD.element(element);
            let word = body.map.keyed(|tdr| Ok(tdh.mng_rd(tdr, field)?))?;
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        self.td.mrtd.call_once(|| mrtd);
        Ok(())
    }

    /// Returns the maximum length of [`Body::control`], including the vCPUs' root pages.
    fn control_pages(&self) -> usize {
        let capabilities = &self.host.capabilities;
        let vcpus = usize::from(self.td.slots.count()) * capabilities.tdvps_pages as usize;
        capabilities.tdcx_pages as usize + vcpus
    }
}

/// The values that a vCPU is initialised with.
struct Initial {
    /// RCX, as the guest sees it: the address of the list of memory.
    rcx: u64,
    /// The x2APIC id, if the module is to have the vCPUs' topology.
    x2apic_id: Option<u32>,
    wiring: Option<Wiring>,
}

/// Executes TDH.VP.INIT on the calling CPU, and configures the vCPU's wiring.
fn init_vcpu<C: SeamCall, W: Wait>(
    tdh: &Tdh<'_, C, W>,
    slot: &Stopped<'_>,
    cpu: u32,
    initial: &Initial,
) -> Result<(), Error> {
    let tdvpr = slot.tdvpr().ok_or(Error::Busy)?;
    tdh.vp_init(tdvpr, initial.rcx, initial.x2apic_id)?;
    slot.associate(cpu);
    if let Some(wiring) = initial.wiring {
        vcpu::wire(tdh, tdvpr, wiring)?;
    }
    Ok(())
}

/// A frame through which the host passes content to the module. Returned to the pool on drop.
struct Scratch<'p, P: Platform> {
    platform: &'p P,
    page: Option<Page<Clean>>,
}

impl<'p, P: Platform> Scratch<'p, P> {
    fn take(platform: &'p P) -> Result<Self, Error> {
        let page = Some(take(platform)?);
        Ok(Self { platform, page })
    }

    fn hpa(&self) -> Hpa {
        self.page.as_ref().map_or(Hpa(0), Page::hpa)
    }

    /// Writes `content`, at most 4 KiB, to the start of the frame.
    fn write(&self, content: &[u8]) {
        debug_assert!(content.len() as u64 <= PAGE_4K);
        self.platform.write(self.hpa(), content);
    }
}

impl<P: Platform> Drop for Scratch<'_, P> {
    fn drop(&mut self) {
        if let Some(page) = self.page.take() {
            give(self.platform, page);
        }
    }
}

/// Takes a 4 KiB frame from the pool.
fn take<P: Platform>(platform: &P) -> Result<Page<Clean>, private::Error> {
    let page = platform.pool().take(PageSize::Size4K);
    page.ok_or(private::Error::NoFrames(PageSize::Size4K))
}

fn give<P: Platform>(platform: &P, page: Page<Clean>) {
    platform.pool().give(core::iter::once(page));
}

/// Returns the module's result for a frame. A frame that the module did not accept goes back to the pool.
fn kept<P: Platform, T>(
    platform: &P,
    result: Handover<T, Page<Clean>>,
) -> Result<T, private::Error> {
    result.map_err(|Rejected { error, given }| {
        give(platform, given);
        error.into()
    })
}
