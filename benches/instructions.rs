//! How many instructions a call costs once its profile is in memory: `make check-instructions`, against
//! `benches/instructions.toml`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::print_stdout,
    reason = "a benchmark ends where something is wrong, as a test does; the macros write no docs"
)]

#[path = "instructions/rows.rs"]
mod rows;

use std::hint::black_box;
use std::sync::Arc;

use gungraun::prelude::*;
use sidetone::answer::{Answer, Resolved, Written};
use sidetone::cache::Cache;
use sidetone::condition::Call;
use sidetone::health::Staleness;
use sidetone::metrics::Metrics;
use sidetone::number::E164;
use sidetone::profile::Profile;
use sidetone::select::{Selection, select};

const FRESH: Staleness = Staleness {
    ms: 412,
    stale: false,
    refuse_credentials: false,
};

/// For as long as the process runs, which is one measurement.
fn keep<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn asked(prompts: usize) -> (&'static Profile, &'static Call) {
    let (profile, call) = (keep(rows::profile(prompts)), keep(rows::call()));
    // What is worked out at the first use is not counted.
    assert_eq!(selected(profile, call).prompts.len(), prompts / 5 * 4);
    (profile, call)
}

fn selected<'a>(profile: &'a Profile, call: &'a Call) -> Selection<'a> {
    select(profile, call, rows::at(), rows::STACK_BYTES).expect("an answer")
}

/// Twenty prompts in the stack.
fn selection() -> &'static Selection<'static> {
    let (profile, call) = asked(25);
    let selection = keep(selected(profile, call));
    black_box(Answer::new(selection, FRESH).lookup());
    selection
}

/// A cache that holds the number, and was asked before.
fn cache() -> (&'static Cache, E164, &'static Call) {
    let (profile, call) = asked(25);
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let cache = keep(Cache::new(1 << 24, &metrics));
    let (number, tenant) = (profile.number.row.e164, profile.tenant.tenant.id);
    cache.keep_number(&number, &profile.number, cache.number_generation(&number));
    cache.keep_tenant(tenant, &profile.tenant, cache.tenant_generation(tenant));
    cache.tidy();
    let (profile, tenant) = cache.get(&number).expect("it was kept");
    let profile = Profile::new(profile, tenant);
    black_box(Answer::new(&selected(&profile, call), FRESH).lookup());
    (cache, number, call)
}

// A call with context against 50 prompts with 100 bindings.
#[library_benchmark]
#[bench::of_50(asked(50))]
fn selecting((profile, call): (&'static Profile, &'static Call)) -> Selection<'static> {
    black_box(selected(black_box(profile), black_box(call)))
}

// The short view of 20 prompts.
#[library_benchmark]
#[bench::of_20(selection())]
fn short_view(selection: &'static Selection<'static>) -> Written {
    black_box(Answer::new(black_box(selection), FRESH).lookup())
}

// The full view of 20 prompts.
#[library_benchmark]
#[bench::of_20(selection())]
fn full_view(selection: &'static Selection<'static>) -> Resolved {
    black_box(Answer::new(black_box(selection), FRESH).resolve(None))
}

// From the number to the bytes of its short view.
#[library_benchmark]
#[bench::of_20(cache())]
fn from_cache((cache, number, call): (&'static Cache, E164, &'static Call)) -> Written {
    let (number, tenant) = cache.get(black_box(&number)).expect("it was kept");
    let profile = Profile::new(number, tenant);
    let selection = selected(&profile, black_box(call));
    black_box(Answer::new(&selection, FRESH).lookup())
}

library_benchmark_group!(
    name = call,
    benchmarks = [selecting, short_view, full_view, from_cache]
);
main!(library_benchmark_groups = call);
