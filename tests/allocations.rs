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
use sidetone::select::{Chosen, Selection, select};

fn selected<'a>(profile: &'a Profile, call: &'a Call) -> Selection<'a> {
    select(profile, call, rows::at(), rows::STACK_BYTES).expect("an answer")
}

#[test]
fn select_allocates_nothing_but_the_list_of_chosen_prompts() {
    let profile = rows::profile(50);
    for (call, prompts) in [(rows::call(), 40), (Call::default(), 0)] {
        // What is worked out at the first use is not counted.
        let chosen = selected(&profile, &call).prompts;
        assert_eq!(chosen.len(), prompts);
        let list = measure(|| {
            let mut list: Vec<Chosen<'_>> = Vec::new();
            chosen.iter().for_each(|prompt| list.push(*prompt));
            black_box(list);
        });
        assert_eq!(list.count_total > 0, prompts > 0);
        let all = measure(|| {
            black_box(selected(&profile, &call));
        });
        assert_eq!(all, list);
    }
}
