//! Races of terminate against everything that may happen to a TD.

use crate::actors::{
    ask, augment, build, carry_out, convert, destroy, destroy_dynamically,
    destroy_dynamically_or_not, join, keep, link, look_at_a_vcpu, nothing, pause_and_resume, post,
    read_when_reclaimed, reclaim, retry, run, run_other, share, shrink, start, start_again,
    start_both, start_full, start_in_haste, start_split, start_teardown, terminate,
    terminate_at_its_key, terminate_at_its_vcpus, terminate_at_their_initialisation,
    terminate_or_not, terminate_other, terminate_when_there, watch,
};
use crate::explore::explore;

#[test]
fn a_build_in_progress() {
    explore(nothing, &[build, terminate_when_there]);
    explore(nothing, &[build, terminate_at_its_key]);
}

#[test]
fn creation_of_vcpus() {
    explore(nothing, &[build, terminate_at_its_vcpus]);
}

#[test]
fn initialisation_of_vcpus() {
    explore(nothing, &[build, terminate_at_their_initialisation]);
}

#[test]
fn entry_and_exit() {
    explore(start, &[run, terminate]);
}

#[test]
fn entry_and_exit_of_two_vcpus() {
    explore(start, &[run, terminate, run_other]);
}

#[test]
fn access_to_a_tdvps() {
    explore(start, &[look_at_a_vcpu, terminate, run]);
}

#[test]
fn posting_of_interrupts() {
    explore(start, &[post, terminate, run]);
}

#[test]
fn destroy_by_another_cpu() {
    explore(start, &[destroy, terminate, run]);
    explore(start, &[destroy_dynamically, terminate, run]);
}

#[test]
fn another_terminate() {
    explore(start, &[terminate, terminate, run]);
}

#[test]
fn a_guest_that_asks_for_its_end() {
    explore(start, &[ask, terminate, carry_out]);
    explore(start, &[ask, run, carry_out]);
}

#[test]
fn reading_of_the_record() {
    explore(start_teardown, &[reclaim, read_when_reclaimed, reclaim]);
    explore(
        start_teardown,
        &[reclaim, read_when_reclaimed, read_when_reclaimed],
    );
}

#[test]
fn a_retry() {
    explore(start, &[retry, terminate, run]);
}

#[test]
fn linking_of_s_ept_pages() {
    explore(start, &[link, terminate, run]);
}

#[test]
fn aug_on_an_ept_violation() {
    explore(start, &[augment, terminate, run]);
}

#[test]
fn map_gpa() {
    explore(start_full, &[convert, terminate, run]);
}

#[test]
fn shrinking() {
    explore(start_full, &[shrink, terminate, run]);
}

#[test]
fn shrinking_while_all_is_removed() {
    explore(start_full, &[shrink, destroy_dynamically, run]);
    explore(start_full, &[shrink, destroy_dynamically, shrink]);
    explore(start_full, &[share, destroy_dynamically, shrink]);
}

#[test]
fn shrinking_while_an_end_fails() {
    explore(start_in_haste, &[shrink, terminate_or_not, keep]);
    explore(start_in_haste, &[shrink, destroy_dynamically_or_not, keep]);
    explore(
        start_in_haste,
        &[shrink, destroy_dynamically_or_not, terminate_or_not],
    );
}

#[test]
fn making_pages_whole() {
    explore(start_split, &[join, terminate, run]);
    explore(start_split, &[join, convert, terminate]);
    explore(start_split, &[join, destroy_dynamically, join]);
    explore(start_split, &[join, shrink, run]);
}

#[test]
fn pausing() {
    explore(start, &[pause_and_resume, terminate, run]);
}

#[test]
fn attaching_the_console() {
    explore(start, &[watch, terminate, carry_out]);
}

#[test]
fn another_td_that_ends_in_the_same_write_back() {
    explore(start_both, &[terminate_other, terminate, run]);
}

#[test]
fn building_it_again() {
    explore(start, &[start_again, destroy, run]);
}
