//! Tests that the simulated server fulfils the contract of [`Platform`].

mod rig;

use std::sync::Mutex;

use host::platform::Platform;
use mm::private::Pool;
use rig::{Rig, Setup};
use seam::abi::{Leaf, PageSize, Status};

#[test]
fn work_runs_on_each_cpu_as_that_cpu() {
    let rig = Rig::new(&Setup::default());
    let ran = Mutex::new(Vec::new());
    let work = |cpu| ran.lock().unwrap().push((cpu, rig.this_cpu()));
    rig.on_each(&[0, 1, 2, 3], &work).unwrap();
    let mut ran = ran.into_inner().unwrap();
    ran.sort_unstable();
    assert_eq!(ran, [(0, 0), (1, 1), (2, 2), (3, 3)]);
}

#[test]
fn a_silent_cpu_is_named_and_the_others_have_done_their_work() {
    let rig = Rig::new(&Setup::default());
    rig.set_silent(2, true);
    let ran = Mutex::new(Vec::new());
    let work = |cpu| ran.lock().unwrap().push(cpu);
    let answer = rig.on_each(&[1, 2, 3], &work);
    assert_eq!(answer.unwrap_err()[..], [2]);
    rig.set_silent(2, false);
    rig.on_each(&[2], &work).unwrap();
    let mut ran = ran.into_inner().unwrap();
    ran.sort_unstable();
    assert_eq!(ran, [1, 2, 3]);
}

#[test]
fn cpus_that_are_at_work_call_each_other() {
    let rig = Rig::new(&Setup::default());
    let jobs = [1, 2, 3].map(|cpu| {
        let this = rig.clone();
        rig.start(cpu, move || {
            let others: Vec<u32> = (1..4).filter(|other| *other != cpu).collect();
            for _ in 0..100 {
                this.on_each(&others, &|_| {}).unwrap();
            }
        })
    });
    for job in jobs {
        job.wait(&rig);
    }
}

#[test]
#[should_panic(expected = "on CPU 3")]
fn a_panic_on_another_cpu_is_propagated() {
    let rig = Rig::new(&Setup::default());
    let _ = rig.on_each(&[1, 3], &|cpu| assert_ne!(cpu, 3, "on CPU 3"));
}

#[test]
fn each_cpu_calls_the_module_as_itself_and_a_call_can_be_refused() {
    let rig = Rig::new(&Setup::default());
    rig.refuse(Leaf::SysInit, 1..=2, Status::RND_NO_ENTROPY);
    rig.tdh().sys_init().unwrap();
    assert_eq!(rig.calls(Leaf::SysInit), 3);
    rig.on_each(&[0, 1, 2, 3], &|_| rig.tdh().sys_lp_init().unwrap())
        .unwrap();
    let again = rig.tdh().sys_lp_init().unwrap_err();
    assert!(again.is(Status::SYS_LP_INIT_DONE));
    assert_eq!(rig.illegal(), 1);
}

#[test]
fn memory_is_read_as_written_and_frames_come_back() {
    let rig = Rig::ready("");
    let page = rig.pool().take(PageSize::Size4K).unwrap();
    rig.write(page.hpa(), &[7; 24]);
    let mut bytes = [0; 32];
    rig.read(page.hpa(), &mut bytes);
    assert_eq!((&bytes[..24], &bytes[24..]), (&[7; 24][..], &[0; 8][..]));
    assert_eq!(rig.out().0, 4096);
    rig.pool().give(std::iter::once(page));
    rig.assert_spotless();
}
