//! What the fuzzer once found, and the inputs it starts from, keep every property of `fuzz/properties.rs`.

use std::fs;
use std::panic::catch_unwind;

#[allow(unreachable_pub, reason = "the fuzzer's programs use it too")]
#[path = "../../fuzz/properties.rs"]
mod properties;

fn replay(target: &str, property: fn(&[u8])) {
    let dir = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut tried = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let data = fs::read(&path).unwrap();
        assert!(
            catch_unwind(|| property(&data)).is_ok(),
            "{} breaks a property of {target}",
            path.display()
        );
        tried += 1;
    }
    assert!(tried >= 10, "{dir} holds {tried} inputs");
}

/// A test for each target.
macro_rules! targets {
    ($($target:ident: $test:ident),* $(,)?) => {
        $(#[test]
        fn $test() {
            replay(stringify!($target), properties::$target);
        })*

        #[test]
        fn every_target_of_the_fuzzer_is_replayed() {
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/targets");
            let mut there: Vec<String> = fs::read_dir(dir)
                .unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            let mut replayed = vec![$(stringify!($target)),*];
            (there.sort(), replayed.sort_unstable());
            assert_eq!(there, replayed);
        }
    };
}

targets! {
    number: every_number_of_the_corpus_has_one_spelling,
    query: every_query_of_the_corpus_says_the_same_however_it_is_spelled,
    body: every_body_of_the_corpus_says_the_same_as_a_query,
    conditions: all_conditions_of_the_corpus_hold_as_the_design_says,
    hours: all_hours_of_the_corpus_are_open_when_the_text_says,
    jwe: nothing_of_the_corpus_opens_that_was_not_sealed,
    record: no_record_of_the_corpus_opens_elsewhere,
    admit: every_document_of_the_corpus_is_admitted_and_answered,
}
