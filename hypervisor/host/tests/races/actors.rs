//! Actions of a CPU while another one terminates the TD.

use host::platform::Platform;
use host::td::end::{Ended, Way};
use host::td::error::Error;
use host::td::life::State;
use host::td::registry::Tds;
use host::td::vcpu::{Held, Refused};
use mm::private::{self, Outcome};
use seam::abi::metadata::vp;
use seam::abi::{Gprs, Leaf, PAGE_1G, PAGE_2M, PAGE_4K, PageSize};
use seam::address::Gpa;
use seam::tdh::EnterFlags;
use sync::atomic::Ordering::SeqCst;

use crate::explore::World;
use crate::machine::Machine;

/// Number of rounds that an actor makes.
const ROUNDS: usize = 3;

/// Memory outside the image.
pub const FREE: u64 = 14 << 20;

/// Builds the first TD, and lets its vCPUs run.
pub fn start(world: &World<'_>) {
    world.tds.start(1).unwrap();
}

/// Builds both TDs, and lets their vCPUs run.
pub fn start_both(world: &World<'_>) {
    world.tds.start(1).unwrap();
    world.tds.start(2).unwrap();
}

/// Starts the first TD with memory that can be removed.
pub fn start_full(world: &World<'_>) {
    world.tds.start(1).unwrap();
    let td = world.td(1);
    let given = world.tds.host().with_cpu(|cpu| {
        td.map()
            .unwrap()
            .populate(cpu, FREE - PAGE_2M..FREE + PAGE_2M)
    });
    given.unwrap();
}

/// Starts the first TD in the same way, on CPUs that do not wait for long.
pub fn start_in_haste(world: &World<'_>) {
    start_full(world);
    world.machine.run_clock(true);
}

/// Starts the first TD with a split page of 2 MiB, whose parts are all present and accepted.
pub fn start_split(world: &World<'_>) {
    world.tds.start(1).unwrap();
    let td = world.td(1);
    let private = td.map().unwrap();
    let accept = |page| {
        world.machine.accept_next(page);
        let held = td.hold(world.machine, 0).unwrap();
        enter(world, &held);
    };
    map(world, FREE, PageSize::Size2M);
    accept(FREE | 1);
    let range = FREE..FREE + PAGE_4K;
    let host = world.tds.host();
    let taken = host.with_cpu(|cpu| private.remove(cpu, range, &private::NoneRuns));
    assert!(taken.is_ok(), "{taken:?}");
    map(world, FREE, PageSize::Size4K);
    accept(FREE);
    assert!(private.is_joinable());
}

/// Promotes the split page, as an idle CPU does.
pub fn join(world: &World<'_>) {
    for _ in 0..12 {
        world.tds.work();
        world.machine.breathe();
    }
}

pub fn nothing(_: &World<'_>) {}

pub fn terminate(world: &World<'_>) {
    let ended = world.tds.terminate(1);
    assert!(ended.is_ok(), "{ended:?}");
}

pub fn terminate_other(world: &World<'_>) {
    let ended = world.tds.terminate(2);
    assert!(ended.is_ok(), "{ended:?}");
}

pub fn destroy(world: &World<'_>) {
    let ended = world.tds.destroy(1, Way::Terminate);
    assert!(ended.is_ok(), "{ended:?}");
}

pub fn destroy_dynamically(world: &World<'_>) {
    let ended = world.tds.destroy(1, Way::Dynamic);
    assert!(ended.is_ok(), "{ended:?}");
}

/// Requests termination as a guest does, and carries it out as an idle CPU does.
pub fn ask(world: &World<'_>) {
    let _ = world.tds.ask_end(1);
    world.tds.end_asked();
}

/// Terminates the first TD, whose memory the actors reclaim.
pub fn start_teardown(world: &World<'_>) {
    start_full(world);
    terminate(world);
}

/// Reclaims memory, as an idle CPU does, until none is left.
pub fn reclaim(world: &World<'_>) {
    while world.tds.get(1).is_some() {
        world.tds.work();
        world.machine.breathe();
    }
}

/// Waits until the TD is reclaimed. The record of its termination is complete then.
pub fn read_when_reclaimed(world: &World<'_>) {
    let Some(td) = world.tds.get(1) else { return };
    while td.state() != State::Reclaimed {
        world.machine.breathe();
    }
    let ended = td.notes().ended.unwrap();
    let names: Vec<_> = ended.work.phases.iter().map(|phase| &*phase.name).collect();
    assert!(names.ends_with(&["reclaim", "clear"]), "{names:?}");
}

pub fn carry_out(world: &World<'_>) {
    for _ in 0..ROUNDS {
        world.tds.work();
        world.machine.breathe();
    }
}

/// Retries a termination that is not stuck.
pub fn retry(world: &World<'_>) {
    for _ in 0..ROUNDS {
        match world.tds.retry(1) {
            Ok(_) | Err(Error::Busy | Error::State(_)) => {}
            Err(error) => panic!("{error}"),
        }
        world.machine.breathe();
    }
}

/// Builds the TD, which may be terminated meanwhile.
pub fn build(world: &World<'_>) {
    match world.tds.create(1) {
        Ok(_) | Err(Error::State(State::Terminating)) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Terminates the TD as soon as it exists.
pub fn terminate_when_there(world: &World<'_>) {
    let id = world.td(1).id();
    assert!(world.tds.terminate(id).is_ok());
}

pub fn terminate_at_its_key(world: &World<'_>) {
    world.wait_for(Leaf::MngKeyConfig);
    terminate(world);
}

pub fn terminate_at_its_vcpus(world: &World<'_>) {
    world.wait_for(Leaf::VpCreate);
    terminate(world);
}

pub fn terminate_at_their_initialisation(world: &World<'_>) {
    world.wait_for(Leaf::VpInit);
    terminate(world);
}

/// Returns whether a vCPU is refused because of the TD's state. Nothing else may refuse it for good.
fn is_over(refused: &Refused) -> bool {
    match refused {
        Refused::State(_) => true,
        Refused::InUse | Refused::NoVcpu => false,
        other => panic!("{other}"),
    }
}

/// Uses a vCPU as long as the TD's state allows it.
fn with_vcpu(world: &World<'_>, index: u16, mut work: impl FnMut(&Held<'_>)) {
    let td = world.td(1);
    for _ in 0..ROUNDS {
        match td.hold(world.machine, index) {
            Ok(held) => {
                for _ in 0..ROUNDS {
                    if !held.may_run() {
                        break;
                    }
                    work(&held);
                    world.machine.breathe();
                }
            }
            Err(refused) if is_over(&refused) => return,
            Err(_) => world.machine.breathe(),
        }
    }
}

fn enter(world: &World<'_>, held: &Held<'_>) {
    let Ok(tdvpr) = held.tdvpr() else { return };
    let mut regs = Gprs::default();
    let tdh = world.machine.tdh();
    let status = tdh
        .vp_enter(tdvpr, EnterFlags::default(), &mut regs)
        .unwrap();
    assert!(!status.is_error(), "{status:?}");
}

/// Runs vCPU 0 with repeated entries and exits.
pub fn run(world: &World<'_>) {
    with_vcpu(world, 0, |held| enter(world, held));
}

/// Holds vCPU 0 for a while, whatever happens to the TD.
pub fn keep(world: &World<'_>) {
    let td = world.td(1);
    let held = td.hold(world.machine, 0);
    for _ in 0..20 * ROUNDS {
        world.machine.breathe();
    }
    drop(held);
}

/// Runs vCPU 1, which was associated with another CPU.
pub fn run_other(world: &World<'_>) {
    with_vcpu(world, 1, |held| enter(world, held));
}

/// Executes TDH.VP.RD and TDH.VP.WR.
pub fn look_at_a_vcpu(world: &World<'_>) {
    with_vcpu(world, 1, |held| {
        let Ok(tdvpr) = held.tdvpr() else { return };
        let tdh = world.machine.tdh();
        tdh.vp_rd(tdvpr, vp::VCPU_STATE_DETAILS.id).unwrap();
        tdh.vp_wr(tdvpr, vp::PEND_NMI.id, 1, 1).unwrap();
    });
}

/// Posts interrupts, which interrupt the CPU that runs a vCPU.
pub fn post(world: &World<'_>) {
    let td = world.td(1);
    for index in (0..td.vcpus().count()).cycle().take(2 * ROUNDS) {
        if let Some(cpu) = td.vcpus().user(index) {
            world.machine.on_each(&[cpu], &|_| {}).unwrap();
        }
        world.machine.breathe();
    }
}

/// Returns whether an operation on memory may fail with this error.
fn is_fair(error: private::Error) -> bool {
    use private::Error;
    matches!(
        error,
        Error::Terminated | Error::Busy | Error::Occupied | Error::NotMapped | Error::Blocked
    )
}

fn map(world: &World<'_>, gpa: u64, size: PageSize) {
    let td = world.td(1);
    let Some(map) = td.map() else { return };
    let mapped = world
        .tds
        .host()
        .with_cpu(|cpu| map.map(cpu, Gpa(gpa), size));
    assert!(mapped.is_ok() || mapped.is_err_and(is_fair), "{mapped:?}");
}

/// Maps a page where there is no table yet.
pub fn link(world: &World<'_>) {
    map(world, PAGE_1G, PageSize::Size4K);
    map(world, 2 * PAGE_1G, PageSize::Size4K);
}

/// Maps pages as EPT violations do.
pub fn augment(world: &World<'_>) {
    for block in 1..4 {
        map(world, block * PAGE_2M, PageSize::Size2M);
    }
    map(world, FREE - 4 * PAGE_2M, PageSize::Size4K);
}

/// Serves MapGPA on the CPU that has the vCPU.
pub fn share(world: &World<'_>) {
    with_vcpu(world, 0, |_| convert(world));
}

/// Converts memory as MapGPA does: removes it because the guest shares it, and gives it back.
pub fn convert(world: &World<'_>) {
    let td = world.td(1);
    let Some(private) = td.map() else { return };
    let range = FREE..FREE + 2 * PAGE_4K;
    for _ in 0..2 {
        let kick = td.kick(world.machine);
        let removed = world
            .tds
            .host()
            .with_cpu(|cpu| private.remove(cpu, range.clone(), &kick));
        assert!(
            removed.is_ok() || removed.is_err_and(is_fair),
            "{removed:?}"
        );
        map(world, FREE, PageSize::Size4K);
    }
}

pub fn shrink(world: &World<'_>) {
    match world.tds.shrink(1, FREE) {
        Ok(Outcome::Queued) => world.is_shrink_promised.store(true, SeqCst),
        Ok(Outcome::Removed(_) | Outcome::LeftToReclaim) => {}
        Err(Error::State(_)) => {}
        Err(Error::Map(error)) if is_fair(error) => {}
        Err(Error::Busy) if world.machine.is_clock_running() => {}
        Err(error) => panic!("{error}"),
    }
}

/// Terminates the TD, which lives on if a CPU does not release it in time.
pub fn terminate_or_not(world: &World<'_>) {
    end_or_not(world, |tds| tds.terminate(1));
}

pub fn destroy_dynamically_or_not(world: &World<'_>) {
    end_or_not(world, |tds| tds.destroy(1, Way::Dynamic));
}

fn end_or_not(world: &World<'_>, end: impl Fn(&Tds<'_, Machine>) -> Result<Ended, Error>) {
    match end(&world.tds) {
        Ok(_) | Err(Error::Busy | Error::Stuck(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

pub fn pause_and_resume(world: &World<'_>) {
    for result in [world.tds.pause(1), world.tds.resume(1)] {
        assert!(
            matches!(result, Ok(()) | Err(Error::State(_) | Error::Busy)),
            "{result:?}"
        );
    }
}

/// Reads everything that the console shows of a TD, repeatedly.
pub fn watch(world: &World<'_>) {
    for _ in 0..ROUNDS {
        let (state, notes) = (world.tds.state(1), world.tds.notes(1));
        assert!(state != State::Created || notes.is_none());
        if let Some(td) = world.tds.get(1) {
            let _ = (td.layout(), td.holding(), td.hkid(), td.promised_bytes());
            for index in 0..td.vcpus().count() {
                let _ = (td.vcpus().user(index), td.vcpus().association(index));
            }
            if let Some(reclaim) = td.reclaim() {
                let progress = reclaim.progress(&host::td::host::Time(world.machine));
                assert!(progress.reclaimed.bytes() <= progress.total);
            }
        }
        world.machine.breathe();
    }
}

/// Starts the TD again, if it is gone.
pub fn start_again(world: &World<'_>) {
    match world.tds.start(1) {
        Ok(()) | Err(Error::State(_) | Error::Busy) => {}
        Err(error) => panic!("{error}"),
    }
}
