//! Tests of large TDs, and of the tables that a TD takes from the host.

use host::sched::ends;
use host::td::error::Error;
use host::td::life::State;
use seam::abi::{PAGE_1G, PAGE_2M, PAGE_4K};

use super::kit::Server;
use super::rig::Setup;
use super::site::{Act, Site, accept, on_site};

/// Number of pages of the S-EPT above the page tables that a TD of 32 GiB with an image may have.
const ABOVE: u64 = (33 + 2) + (1 + 2);

fn server(bytes: u64) -> Server {
    Server::of(&Setup {
        memory: bytes,
        ..Setup::default()
    })
}

/// Returns the act of accepting the first 4 KiB of each block of 2 MiB of a TD with `bytes` of memory. The image has
/// the first 16 MiB.
fn a_piece_of_each_block(bytes: u64) -> Vec<Act> {
    let hole = 3 * PAGE_1G;
    let blocks = (16 << 20..bytes).step_by(PAGE_2M as usize);
    let moved = blocks.map(|gpa| if gpa < hole { gpa } else { gpa + PAGE_1G });
    moved.map(accept).collect()
}

/// Returns the reason for the end of the TD's guest.
fn end_of(site: &Site<'_>, id: u32) -> Option<String> {
    let guest = site.scheduler.guest(id)?;
    guest.vm().end().map(ToString::to_string)
}

#[test]
fn a_guest_that_accepts_32_gib_in_small_pieces_ends_at_its_own_limit() {
    let text = "[[td]]\nname = \"one\"\nmemory = \"32G\"\nmax_4k = \"4G\"\nvcpus = 1\n\
                [[td]]\nname = \"two\"\nmemory = \"16M\"\nvcpus = 1\n";
    let server = server(34 * PAGE_1G);
    on_site(&server, text, |site| {
        site.tds.start(1).unwrap();
        let script = site.play(&a_piece_of_each_block(32 * PAGE_1G));
        let limit = 2048 + 2 + ABOVE;
        assert_eq!(
            end_of(site, 1).unwrap(),
            format!(
                "its memory: too much of it is in pages of 4 KiB: all {limit} pages that its S-EPT may have are in \
                 use; raise max_4k of the TD"
            )
        );
        assert!(script.left() > 13 << 10, "{}", script.left());
        let td = site.tds.get(1).unwrap();
        assert_eq!(td.holding().sept, limit);
        assert!(ends::serve(site.scheduler, &site.tds));
        assert_eq!(site.tds.state(1), State::Paused);
        // Another TD starts, and runs as if nothing had happened.
        site.tds.start(2).unwrap();
        let script = site.play(&[accept(14 << 20)]);
        assert_eq!((script.left(), end_of(site, 2)), (0, None));
    });
    server.assert_spotless();
}

#[test]
fn a_guest_without_a_limit_accepts_all_of_its_memory_in_small_pieces() {
    let text = "[[td]]\nname = \"one\"\nmemory = \"8G\"\nvcpus = 1\n";
    let server = server(9 * PAGE_1G);
    on_site(&server, text, |site| {
        site.tds.start(1).unwrap();
        let promised = site.tds.promised();
        let script = site.play(&a_piece_of_each_block(8 * PAGE_1G));
        assert_eq!((script.left(), end_of(site, 1)), (0, None));
        let td = site.tds.get(1).unwrap();
        let holding = td.holding();
        assert!(holding.sept >= 4096, "{holding:?}");
        // All that it took was promised to it, and the mirror with it.
        let taken = holding.bytes() + holding.sept * PAGE_4K;
        assert!(site.tds.promised() + taken < promised);
    });
    server.assert_spotless();
}

#[test]
fn a_td_of_6_tib_has_a_plan_where_one_percent_more_is_free() {
    const TIB: u64 = 1 << 40;
    let text = "[[td]]\nname = \"one\"\nmemory = \"6T\"\nvcpus = 1\n";
    let create = |bytes: u64| {
        // The module knows nothing of this memory, so a TD gets as far as its first page.
        let server = Server::of(&Setup {
            more_memory: vec![(TIB, TIB + bytes)],
            ..Setup::default()
        });
        let created = server.tds(text).create(1).map(drop);
        server.assert_nothing_lost();
        created.unwrap_err()
    };
    let planned = create(6 * TIB / 100 * 101);
    assert!(matches!(planned, Error::Create(_)), "{planned}");
    let refused = create(6 * TIB / 1000 * 1005);
    assert!(matches!(refused, Error::NoFrames { .. }), "{refused}");
}
