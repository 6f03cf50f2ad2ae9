//! Fault injection: calls fail where a script says so, as on hardware, and the counters count the outcomes.

mod kit;

use kit::{BASE, Builder, GLOBAL_HKID, PAGE};
use seam::abi::{Leaf, Operand, Status};
use stub_module::Impossible;
use stub_module::hooks::Hooks;

fn built(script: &str) -> Builder {
    Builder::new(Hooks::parse(script).unwrap())
}

#[test]
fn a_busy_call_does_nothing_and_can_be_repeated() {
    let built = built("busy:TDR TDH.MNG.ADDCX call 3");
    let cpu = built.cpu(0);
    let tdr = BASE;
    cpu.leaf(Leaf::MngCreate, [(Operand::RCX, tdr), (Operand::RDX, 33)])
        .unwrap();
    for lp in [0, 2] {
        built
            .cpu(lp)
            .leaf(Leaf::MngKeyConfig, [(Operand::RCX, tdr)])
            .unwrap();
    }
    let addcx = |page: u64| {
        let operands = [(Operand::RCX, tdr + page * PAGE), (Operand::RDX, tdr)];
        cpu.leaf(Leaf::MngAddcx, operands).map(drop)
    };
    addcx(1).unwrap();
    addcx(2).unwrap();
    assert_eq!(addcx(3), Err(Status::OPERAND_BUSY.with(Operand::TDR)));
    let rdmd = cpu.leaf(Leaf::PhymemPageRdmd, [(Operand::RCX, tdr + 3 * PAGE)]);
    assert_eq!(rdmd.unwrap().rcx, 0, "the page is still the host's");
    addcx(3).unwrap();
    let counters = built.server.module().counters();
    assert_eq!(counters.of(Leaf::MngAddcx, Status::SUCCESS), 3);
    assert_eq!(counters.of(Leaf::MngAddcx, Status::OPERAND_BUSY), 1);
}

#[test]
fn an_interrupted_write_back_resumes_where_it_was() {
    let built = built("interrupted TDH.PHYMEM.CACHE.WB call 1");
    let td = built.td(33);
    let cpu = built.cpu(0);
    cpu.leaf(Leaf::MngVpflushdone, [(Operand::RCX, td.tdr)])
        .unwrap();
    let cache_wb = |lp, resume| {
        built
            .cpu(lp)
            .leaf(Leaf::PhymemCacheWb, [(Operand::RCX, resume)])
            .map(drop)
    };
    assert_eq!(cache_wb(0, 0), Err(Status::INTERRUPTED_RESUMABLE));
    cache_wb(2, 0).unwrap();
    let freeid = || {
        cpu.leaf(Leaf::MngKeyFreeid, [(Operand::RCX, td.tdr)])
            .map(drop)
    };
    assert_eq!(freeid(), Err(Status::WBCACHE_NOT_COMPLETE));
    // Another processor of the same package may resume.
    cache_wb(1, 1).unwrap();
    freeid().unwrap();
}

#[test]
fn a_lack_of_entropy_is_passed() {
    let built = built("no-entropy TDH.MNG.CREATE calls 1-2\nno-entropy TDH.MNG.KEY.CONFIG call 1");
    let cpu = built.cpu(0);
    let create = || {
        let operands = [(Operand::RCX, BASE), (Operand::RDX, 33)];
        cpu.leaf(Leaf::MngCreate, operands).map(drop)
    };
    assert_eq!(create(), Err(Status::RND_NO_ENTROPY));
    assert_eq!(create(), Err(Status::RND_NO_ENTROPY));
    create().unwrap();
    let key_config = || {
        cpu.leaf(Leaf::MngKeyConfig, [(Operand::RCX, BASE)])
            .map(drop)
    };
    assert_eq!(key_config(), Err(Status::KEY_GENERATION_FAILED));
    key_config().unwrap();
}

#[test]
fn a_call_can_be_held_while_others_act() {
    use seam::abi::PageType;
    use stub_module::Point;

    let built = built("");
    let page = BASE + 16 * PAGE;
    let held = built
        .server
        .machine()
        .hold_at(0, Point::Movdir64b, 1)
        .unwrap();
    std::thread::scope(|scope| {
        let create = scope.spawn(|| {
            let operands = [(Operand::RCX, page), (Operand::RDX, 33)];
            built.cpu(0).leaf(Leaf::MngCreate, operands).map(drop)
        });
        assert!(held.wait());
        let other = [(Operand::RCX, page + PAGE), (Operand::RDX, 34)];
        assert_eq!(
            built.cpu(1).leaf(Leaf::MngCreate, other),
            Err(Status::OPERAND_BUSY.with(Operand::KOT))
        );
        drop(held);
        create.join().unwrap().unwrap();
    });
    let rdmd = built
        .cpu(1)
        .leaf(Leaf::PhymemPageRdmd, [(Operand::RCX, page)]);
    assert_eq!(rdmd.unwrap().rcx, PageType::Tdr as u64);
}

#[test]
fn a_server_of_a_tebibyte_costs_what_is_touched() {
    use stub_module::host::{Config, Server, TdmrPlan};

    const TIB: u64 = 1 << 40;
    for tebibytes in [1, 8] {
        let server = Server::new(Config {
            cmrs: [(BASE, (tebibytes + 1) * TIB)].into(),
            seamrr: (1 << 21, 128 << 20),
            ..Config::default()
        });
        let tdmr = TdmrPlan {
            base: BASE,
            size: tebibytes * TIB,
        };
        server.bring_up(tdmr, GLOBAL_HKID).unwrap();
        let page = BASE + (tebibytes * TIB - PAGE);
        server
            .processor(0)
            .unwrap()
            .leaf(Leaf::MngCreate, [(Operand::RCX, page), (Operand::RDX, 33)])
            .unwrap();
        let footprint = server.machine().memory().footprint();
        assert!(footprint < 8 << 20, "{footprint} bytes");
    }
}

#[test]
fn a_module_that_shuts_down_answers_every_later_call_so() {
    let built = built("shutdown TDH.PHYMEM.PAGE.RDMD call 2");
    let rdmd = |lp| {
        let operands = [(Operand::RCX, BASE)];
        built.cpu(lp).leaf(Leaf::PhymemPageRdmd, operands).map(drop)
    };
    rdmd(0).unwrap();
    for lp in [1, 0, 2] {
        assert_eq!(rdmd(lp), Err(Status::SYS_SHUTDOWN));
    }
    let create = [(Operand::RCX, BASE), (Operand::RDX, 33)];
    let created = built.cpu(0).leaf(Leaf::MngCreate, create).map(drop);
    assert_eq!(created, Err(Status::SYS_SHUTDOWN));
    let told = built.server.machine().impossible_exits();
    assert_eq!(told, [Impossible::WANTED], "the machine learns why");
}
