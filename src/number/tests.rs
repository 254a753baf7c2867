#![allow(clippy::arithmetic_side_effects)] // an overflow fails the test

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn rules(international: &str, country: &str, trunk: &str) -> Dialling {
    Dialling {
        international_prefix: international.parse().unwrap(),
        country_code: country.parse().unwrap(),
        trunk_prefix: trunk.parse().unwrap(),
    }
}

/// What a spelling means under the rules, all readings, or why it means nothing.
fn read(raw: &str, rules: &Dialling) -> Result<Vec<String>, InvalidNumber> {
    readings(raw, rules).map(|r| r.iter().map(|number| number.to_string()).collect())
}

#[track_caller]
fn is(raw: &str, number: &str) {
    assert_eq!(
        read(raw, &Dialling::default()),
        Ok(vec![number.to_owned()]),
        "{raw}"
    );
}

#[track_caller]
fn is_not(raw: &str, why: InvalidNumber) {
    assert_eq!(read(raw, &Dialling::default()), Err(why), "{raw}");
}

#[test]
fn only_the_one_spelling_parses_as_e164() {
    for good in ["+1234567", "+14155550100", "+123456789012345"] {
        let number: E164 = good.parse().unwrap();
        assert_eq!(number.to_string(), good);
        assert_eq!(number.as_str(), good);
        assert_eq!(format!("{number:?}"), good);
    }
    for bad in [
        "",
        "+",
        "14155550100",
        "+123456",
        "+1234567890123456",
        "+0123456789",
        "+1415555010a",
        " +14155550100",
        "+14155550100 ",
        "+14155550100\n",
        "++14155550100",
        "+1 4155550100",
        "+１４１５５５５０１００",
        "+1415555\u{0}0100",
    ] {
        assert_eq!(bad.parse::<E164>(), Err(InvalidNumber::Digits), "{bad}");
    }
}

#[test]
fn numbers_order_as_their_text_does() {
    let mut texts = vec![
        "+2000000",
        "+1999999999",
        "+1999999",
        "+19999990",
        "+123456789012345",
    ];
    let mut numbers: Vec<E164> = texts.iter().map(|text| text.parse().unwrap()).collect();
    texts.sort_unstable();
    numbers.sort_unstable();
    assert_eq!(numbers.iter().map(E164::as_str).collect::<Vec<_>>(), texts);
}

#[test]
fn a_number_is_text_in_json() {
    let number: E164 = serde_json::from_value(json!("+14155550100")).unwrap();
    assert_eq!(serde_json::to_value(number).unwrap(), json!("+14155550100"));
    let err = serde_json::from_value::<E164>(json!("555 0100 and a secret")).unwrap_err();
    assert!(err.to_string().contains("7 to 15 digits"), "{err}");
    assert!(!err.to_string().contains("0100"), "{err}");
    assert!(serde_json::from_value::<E164>(json!(14155550100_u64)).is_err());
}

#[test]
fn separators_and_every_kind_of_space_are_dropped() {
    is("+1 (415) 555-0100", "+14155550100");
    is("+1.415.555.0100", "+14155550100");
    is("+1/415/555/0100", "+14155550100");
    is("(+1) 415 5550100", "+14155550100");
    is(
        "+1\u{a0}415\u{202f}555\u{2007}01\u{2060}00\u{feff}",
        "+14155550100",
    );
    is_not("+1\t4155550100", InvalidNumber::Character);
    is_not("+1_4155550100", InvalidNumber::Character);
}

#[test]
fn a_plus_survives_every_depth_of_encoding() {
    is("+14155550100", "+14155550100");
    is("%2B14155550100", "+14155550100");
    is("%2b14155550100", "+14155550100");
    is("%252B14155550100", "+14155550100");
    is("sip%3A%2B14155550100%40gw.example", "+14155550100");
    is("%2B1%20415%C2%A0555-0100", "+14155550100");
    is_not("%25252B14155550100", InvalidNumber::Character);
    is_not("%2", InvalidNumber::Character);
    is_not("+1415555%A00100", InvalidNumber::Character);
    is_not("+14155550100%00", InvalidNumber::Character);
}

#[test]
fn a_plus_that_a_form_turned_into_a_space_is_digits() {
    is(" 14155550100", "+14155550100");
}

#[test]
fn uris_are_reduced_to_their_number() {
    is("tel:+14155550100", "+14155550100");
    is("TEL:+1-415-555-0100", "+14155550100");
    is("tel://+14155550100", "+14155550100");
    is("sip:+14155550100@gw.example", "+14155550100");
    is(
        "SIPS:+14155550100@gw.example:5061;transport=tls",
        "+14155550100",
    );
    is(
        "Sip:+14155550100:hunter2@gw.example;user=phone?subject=x",
        "+14155550100",
    );
    is("sip:+14155550100;ext=7:hunter2@gw.example", "+14155550100");
    is("sip:+14155550100", "+14155550100");
    is("sip:+14155550100;user=phone", "+14155550100");
    is("+14155550100@gw.example", "+14155550100");
    is("sip:+14155550100@[2001:db8::1]:5060", "+14155550100");
    is("tel:+14155550100;ext=99", "+14155550100");
    is("sip:+14155550100?to=a@b", "+14155550100");
    is_not("mailto:+14155550100", InvalidNumber::Character);
    is_not("sip:sip:+14155550100", InvalidNumber::Character);
    is_not("sip:alice@gw.example", InvalidNumber::Character);
    is_not("sip:@gw.example", InvalidNumber::Empty);
    is_not("sip:gw.example", InvalidNumber::Character);
}

#[test]
fn display_names_and_angle_brackets_are_dropped() {
    is("<+14155550100>", "+14155550100");
    is(
        "Alice Smith <sip:+14155550100@gw.example>;tag=1928",
        "+14155550100",
    );
    is("\"Alice\" <tel:+14155550100>", "+14155550100");
    is(
        "\"a <b> +15551112222 \\\" <c>\" <tel:+14155550100>",
        "+14155550100",
    );
    is("+15551112222 <sip:+14155550100@gw.example>", "+14155550100");
    is("< sip:+14155550100@gw.example > ", "+14155550100");
    is_not("<sip:+14155550100@gw.example", InvalidNumber::Address);
    is_not(
        "<tel:+14155550100>, <tel:+15551112222>",
        InvalidNumber::Address,
    );
    is_not("\"<tel:+14155550100>", InvalidNumber::Character);
    is_not("<>", InvalidNumber::Empty);
}

#[test]
fn a_global_phone_context_stands_in_front_of_local_digits() {
    is("tel:45678901;phone-context=+5411", "+541145678901");
    is(
        "tel:4567-8901;ext=1:2;Phone-Context=+54-11",
        "+541145678901",
    );
    is("tel:45678901;phone-context=%2B5411", "+541145678901");
    is(
        "sip:45678901;phone-context=+5411@gw.example;user=phone",
        "+541145678901",
    );
    is(
        "sip:45678901;phone-context=+5411:pw@gw.example",
        "+541145678901",
    );
    is(
        "sip:45678901@gw.example;user=phone;phone-context=+5411",
        "+541145678901",
    );
    is(
        "<sip:45678901@gw.example;phone-context=+5411?x=y>",
        "+541145678901",
    );
    is("tel:0045678901;phone-context=+54", "+540045678901");
}

#[test]
fn a_phone_context_that_is_not_global_or_not_needed_is_dropped() {
    is("tel:14155550100;phone-context=gw.example", "+14155550100");
    is("tel:14155550100;phone-context=54", "+14155550100");
    is("tel:14155550100;phone-context=+", "+14155550100");
    is("tel:+14155550100;phone-context=+54", "+14155550100");
    is("<tel:14155550100>;phone-context=+54", "+14155550100");
    is(
        "tel:45678901;phone-context=gw.example;phone-context=+5411",
        "+541145678901",
    );
}

#[test]
fn the_international_prefix_stands_for_plus() {
    is("0014155550100", "+14155550100");
    is("00 1 (415) 555-0100", "+14155550100");
    is_not("00123", InvalidNumber::Digits);
    let us = rules("011", "", "1");
    assert_eq!(
        read("011541145678901", &us),
        Ok(vec!["+541145678901".to_owned()])
    );
    assert_eq!(read("+01154114567890", &us), Err(InvalidNumber::Digits));
    let none = rules("", "", "");
    assert_eq!(read("0014155550100", &none), Err(InvalidNumber::Digits));
    assert_eq!(
        read("14155550100", &none),
        Ok(vec!["+14155550100".to_owned()])
    );
}

#[test]
fn bare_digits_are_a_number_with_its_country_code_unless_a_country_is_set() {
    is("14155550100", "+14155550100");
    is_not("01145678901", InvalidNumber::Digits);
}

#[test]
fn with_a_country_set_bare_digits_are_tried_as_they_are_and_then_within_it() {
    let ar = rules("00", "54", "0");
    let both = |first: &str, second: &str| Ok(vec![first.to_owned(), second.to_owned()]);
    assert_eq!(
        read("1145678901", &ar),
        both("+1145678901", "+541145678901")
    );
    assert_eq!(
        read("01145678901", &ar),
        Ok(vec!["+541145678901".to_owned()])
    );
    assert_eq!(read("45678", &ar), Ok(vec!["+5445678".to_owned()]));
    assert_eq!(
        read("123456789012345", &ar),
        Ok(vec!["+123456789012345".to_owned()])
    );
    assert_eq!(read("0", &ar), Err(InvalidNumber::Digits));
    assert_eq!(read("+1145678901", &ar), Ok(vec!["+1145678901".to_owned()]));
    assert_eq!(
        read("001145678901", &ar),
        Ok(vec!["+1145678901".to_owned()])
    );
    assert_eq!(
        read("tel:1145678901;phone-context=+1", &ar),
        Ok(vec!["+11145678901".to_owned()])
    );
    assert_eq!(normalise("1145678901", &ar), "+1145678901".parse());
}

#[test]
fn the_trunk_prefix_is_dropped_once_and_only_with_a_country() {
    let ar = rules("00", "54", "0");
    let it = rules("00", "39", "");
    assert_eq!(
        read("0612345678", &it),
        Ok(vec!["+390612345678".to_owned()])
    );
    let us = rules("011", "1", "1");
    assert_eq!(
        read("14155550100", &us),
        Ok(vec!["+14155550100".to_owned()])
    );
    assert_eq!(
        read("0011", &rules("", "54", "0")),
        Err(InvalidNumber::Digits),
        "+54011 is too short"
    );
    assert_eq!(
        read("0 011 4567 890", &rules("", "54", "0")),
        Ok(vec!["+540114567890".to_owned()])
    );
    assert_eq!(read("0", &ar), Err(InvalidNumber::Digits));
}

#[test]
fn what_is_no_number_is_refused() {
    is_not("", InvalidNumber::Empty);
    is_not("+", InvalidNumber::Empty);
    is_not(" ", InvalidNumber::Empty);
    is_not("anonymous", InvalidNumber::Character);
    is_not("*98", InvalidNumber::Character);
    is_not("++14155550100", InvalidNumber::Character);
    is_not("1+4155550100", InvalidNumber::Character);
    is_not("+004155550100", InvalidNumber::Digits);
    is_not("911", InvalidNumber::Digits);
    is_not("+1234567890123456", InvalidNumber::Digits);
    is_not("+١٢٣٤٥٦٧٨٩", InvalidNumber::Character);
}

#[test]
fn a_hostile_spelling_takes_linear_time() {
    for unit in [
        "<",
        "\"",
        "\\\"",
        "%25",
        ";phone-context=",
        ";phone-context=+",
        "@",
        ":",
        "0",
        "+",
    ] {
        let raw = unit.repeat(300_000);
        let started = std::time::Instant::now();
        assert!(normalise(&raw, &Dialling::default()).is_err());
        assert!(started.elapsed().as_secs() < 5, "{unit}");
    }
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let rules: Dialling = serde_json::from_value(json!({})).unwrap();
    assert_eq!(rules, Dialling::default());
    let shown = json!({"international_prefix": "00", "country_code": "", "trunk_prefix": "0"});
    assert_eq!(serde_json::to_value(&rules).unwrap(), shown);
    assert_eq!(serde_json::from_value::<Dialling>(shown).unwrap(), rules);
}

#[test]
fn a_setting_that_is_no_prefix_is_refused_and_says_what_is() {
    for bad in [
        json!({"international_prefix": "+"}),
        json!({"international_prefix": "00000000"}),
        json!({"trunk_prefix": 0}),
        json!({"country_code": "+54"}),
        json!({"country_code": "054"}),
        json!({"country_code": "5411"}),
        json!({"country_code": -5}),
        json!({"country_code": 0}),
        json!({"country": "54"}),
        json!({"country_code": null}),
    ] {
        assert!(
            serde_json::from_value::<Dialling>(bad.clone()).is_err(),
            "{bad}"
        );
    }
    let err = serde_json::from_value::<Dialling>(json!({"trunk_prefix": 0})).unwrap_err();
    assert!(err.to_string().contains("digits in quotes"), "{err}");
    let err = serde_json::from_value::<Dialling>(json!({"country_code": "+54"})).unwrap_err();
    assert!(err.to_string().contains("without +"), "{err}");
}

#[test]
fn a_country_code_may_be_a_bare_number() {
    let rules: Dialling = serde_json::from_value(json!({"country_code": 54})).unwrap();
    assert_eq!(rules.country_code.as_str(), "54");
    let rules: Dialling = toml::from_str("country_code = 54").unwrap();
    assert_eq!(rules.country_code.as_str(), "54");
}

/// The rules of dialling written a second time: byte by byte, copying at every step.
mod naive {
    pub(super) fn readings(
        raw: &str,
        international: &str,
        country: &str,
        trunk: &str,
    ) -> Vec<String> {
        let Some(text) = decode(raw.as_bytes().to_vec()).and_then(decode) else {
            return vec![];
        };
        let Some(text) = bracketed(String::from_utf8(text).unwrap().chars().collect()) else {
            return vec![];
        };
        let text: String = text.into_iter().collect();
        let mut text = text.as_str();
        while let Some(c) = text.chars().next().filter(|c| SPACES.contains(*c)) {
            text = &text[c.len_utf8()..];
        }
        let lower = text.to_ascii_lowercase();
        for scheme in ["sip:", "sips:", "tel:"] {
            if lower.starts_with(scheme) {
                text = &text[scheme.len()..];
                break;
            }
        }
        let at = text.find('@');
        let (left, right) = match at {
            Some(at) => (text[..at].split(':').next().unwrap(), &text[at + 1..]),
            None => (text, ""),
        };
        let left = left.split('?').next().unwrap();
        let right = right.split('?').next().unwrap();
        let mut pieces = left.split(';');
        let Some((plus, digits)) = dial(pieces.next().unwrap().split(':').next().unwrap()) else {
            return vec![];
        };
        if plus {
            return valid(&[digits]);
        }
        for piece in pieces.chain(right.split(';').skip(1)) {
            let Some(equals) = piece.find('=') else {
                continue;
            };
            let name = piece[..equals].trim_matches(|c| SPACES.contains(c));
            if let Some((true, context)) = dial(&piece[equals + 1..])
                && name.eq_ignore_ascii_case("phone-context")
            {
                return valid(&[context + &digits]);
            }
        }
        if !international.is_empty() && digits.starts_with(international) {
            return valid(&[digits[international.len()..].to_owned()]);
        }
        let mut candidates = vec![digits.clone()];
        if !country.is_empty() {
            let skip = if digits.starts_with(trunk) {
                trunk.len()
            } else {
                0
            };
            candidates.push(format!("{country}{}", &digits[skip..]));
        }
        valid(&candidates)
    }

    const SPACES: &str = " \u{a0}\u{2007}\u{202f}\u{2060}\u{feff}";

    fn decode(bytes: Vec<u8>) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
            if let (b'%', Some(high), Some(low)) = (bytes[at], hex(at + 1), hex(at + 2)) {
                out.push((high * 16 + low) as u8);
                at += 3;
            } else {
                out.push(bytes[at]);
                at += 1;
            }
        }
        String::from_utf8(out).ok().map(String::into_bytes)
    }

    fn bracketed(text: Vec<char>) -> Option<Vec<char>> {
        let mut at = 0;
        let mut quoted = false;
        while at < text.len() {
            if text[at] == '"' {
                quoted = !quoted;
            } else if quoted && text[at] == '\\' {
                at += 1;
            } else if !quoted && text[at] == '<' {
                let close = (at..text.len()).find(|i| text[*i] == '>')?;
                let after = text[close + 1..].iter().find(|c| !SPACES.contains(**c));
                return matches!(after, None | Some(';')).then(|| text[at + 1..close].to_vec());
            }
            at += 1;
        }
        Some(text)
    }

    fn dial(text: &str) -> Option<(bool, String)> {
        let mut kept = text.to_owned();
        for drop in SPACES.chars().chain("-./()".chars()) {
            kept = kept.replace(drop, "");
        }
        let (plus, digits) = match kept.strip_prefix('+') {
            Some(digits) => (true, digits.to_owned()),
            None => (false, kept),
        };
        let all_digits = !digits.is_empty() && digits.chars().all(|c| "0123456789".contains(c));
        all_digits.then_some((plus, digits))
    }

    fn valid(candidates: &[String]) -> Vec<String> {
        let mut found = Vec::new();
        for digits in candidates {
            let number = format!("+{digits}");
            let fits = (7..=15).contains(&digits.len()) && !digits.starts_with('0');
            if fits && !found.contains(&number) {
                found.push(number);
            }
        }
        found
    }
}

/// Pieces of spellings, so that random joins of them are often nearly right.
fn spelling() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[0-9]{1,8}",
        2 => prop::sample::select(vec![
            "+", "%2B", "%252b", "00", "0", "54", " ", "%20", "\u{a0}", "%C2%A0", "\u{2060}", "-",
            ".", "(", ")", "/",
        ]).prop_map(str::to_owned),
        1 => prop::sample::select(vec![
            "sip:", "SIPS:", "Tel:", "tel:", "<", ">", "\"", "\\", "Bob ", ":", "@", "?", ";", "=",
            ";phone-context=+54", ";PHONE-CONTEXT=+1-", ";phone-context=x.example", "%", "%3B",
            "%E2", "é", "*", "\u{0}", ";ext=1:2", ":pw@", "@host.example;user=phone",
        ]).prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..9).prop_map(|pieces| pieces.concat())
}

fn some_rules() -> impl Strategy<Value = (String, String, String)> {
    let prefix = prop::sample::select(vec!["", "0", "00", "011", "1"]);
    let country = prop::sample::select(vec!["", "1", "54", "598"]);
    (prefix.clone(), country, prefix)
        .prop_map(|(i, c, t)| (i.to_owned(), c.to_owned(), t.to_owned()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_spelling_reads_as_the_naive_reading_does(raw in spelling(), set in some_rules()) {
        let (international, country, trunk) = set;
        let ours = read(&raw, &rules(&international, &country, &trunk)).unwrap_or_default();
        prop_assert_eq!(ours, naive::readings(&raw, &international, &country, &trunk));
    }

    #[test]
    fn any_text_at_all_reads_as_the_naive_reading_does(raw in any::<String>()) {
        let ours = read(&raw, &Dialling::default()).unwrap_or_default();
        prop_assert_eq!(ours, naive::readings(&raw, "00", "", "0"));
    }

    #[test]
    fn every_decoration_of_a_number_is_that_number(
        digits in "[1-9][0-9]{6,14}",
        separators in prop::collection::vec(
            prop::sample::select(vec!["", "", " ", "-", ".", "/", "\u{a0}"]), 15),
        (before, after) in prop::sample::select(vec![
            ("", ""), ("tel:", ""), ("TEL:", ";ext=12"), ("sip:", "@h"), ("SIPS:", ":pw@h:1;a=b?c=d"),
            ("<sip:", "@h>;tag=1"), ("\"N <x>\" <tel:", ";isub=1>"), ("Bob <", ">"),
        ]),
        plus in prop::sample::select(vec!["+", "%2B", "%252B", "00", "(+)", "0-0"]),
    ) {
        let body: String =
            digits.chars().zip(separators).flat_map(|(d, s)| [d.to_string(), s.to_owned()]).collect();
        let number = normalise(&format!("{before}{plus}{body}{after}"), &Dialling::default());
        prop_assert_eq!(number.map(|n| n.to_string()), Ok(format!("+{digits}")));
    }

    #[test]
    fn a_normalised_number_is_its_own_spelling(raw in spelling(), set in some_rules()) {
        let rules = rules(&set.0, &set.1, &set.2);
        for number in readings(&raw, &rules).iter().flat_map(Readings::iter) {
            prop_assert_eq!(number.as_str().parse(), Ok(number));
            prop_assert_eq!(
                readings(number.as_str(), &rules),
                Ok(Readings { first: number, second: None })
            );
        }
    }
}
