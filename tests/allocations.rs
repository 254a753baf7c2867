//! What a call allocates once its profile is in memory. A binary of its own, as it has an allocator of its own.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

#[path = "../benches/instructions/rows.rs"]
mod rows;

use std::hint::black_box;

use allocation_counter::measure;
use sidetone::condition::Call;
use sidetone::profile::Profile;
use sidetone::select::{Selection, select};

fn selected<'a>(profile: &'a Profile, call: &'a Call) -> Selection<'a> {
    select(profile, call, rows::at(), rows::STACK_BYTES).expect("an answer")
}

#[test]
fn select_allocates_nothing() {
    let profile = rows::profile(50);
    for (call, prompts) in [(rows::call(), 40), (Call::default(), 0)] {
        // What is worked out at the first use is not counted.
        assert_eq!(selected(&profile, &call).prompts.len(), prompts);
        let all = measure(|| {
            black_box(selected(&profile, &call));
        });
        assert_eq!(all.count_total, 0);
    }
}
