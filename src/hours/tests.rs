#![allow(clippy::arithmetic_side_effects)] // an overflow fails the test

use jiff::civil::date as civil_date;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn hours(json: Value) -> BusinessHours {
    BusinessHours::parse(&json).unwrap()
}

/// Whether these hours are open at a time shown by the clock, without any zone.
#[track_caller]
fn open(json: Value, local: &str) -> bool {
    hours(json).is_open_locally(local.parse().unwrap())
}

#[track_caller]
fn refused(json: Value) -> String {
    BusinessHours::parse(&json).unwrap_err().to_string()
}

// 2026-11-23 is a Monday.

#[test]
fn an_interval_holds_its_start_and_not_its_end() {
    let mon = json!({"mon": ["09:00-13:00", "14:00-18:00"]});
    for (time, is) in [
        ("08:59:59.999999999", false),
        ("09:00", true),
        ("12:59:59.999999999", true),
        ("13:00", false),
        ("14:00", true),
        ("18:00", false),
    ] {
        assert_eq!(
            open(mon.clone(), &format!("2026-11-23T{time}")),
            is,
            "{time}"
        );
    }
}

#[test]
fn a_day_that_is_not_named_is_closed() {
    assert!(!open(json!({"mon": ["00:00-24:00"]}), "2026-11-24T12:00"));
    assert!(!open(json!({}), "2026-11-23T12:00"));
    assert!(!open(json!({"mon": []}), "2026-11-23T12:00"));
}

#[test]
fn each_key_is_its_own_day_of_the_week() {
    for (index, name) in ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
        .iter()
        .enumerate()
    {
        for day in 0..7_usize {
            let local = format!("2026-11-{}T12:00", 23 + day);
            assert_eq!(
                open(json!({*name: ["12:00-12:01"]}), &local),
                index == day,
                "{local}"
            );
        }
    }
}

#[test]
fn a_day_may_end_at_twenty_four_hours() {
    let mon = json!({"mon": ["20:00-24:00"]});
    assert!(open(mon.clone(), "2026-11-23T23:59:59"));
    assert!(!open(mon, "2026-11-24T00:00"));
}

#[test]
fn an_interval_past_midnight_belongs_to_the_day_it_starts() {
    let mon = json!({"mon": ["22:00-06:00"]});
    assert!(
        !open(mon.clone(), "2026-11-23T05:00"),
        "the night before is Sunday's"
    );
    assert!(open(mon.clone(), "2026-11-23T22:00"));
    assert!(open(mon.clone(), "2026-11-24T05:59"));
    assert!(!open(mon.clone(), "2026-11-24T06:00"));
    assert!(!open(mon, "2026-11-24T22:00"));
}

#[test]
fn an_interval_that_ends_when_it_starts_lasts_a_day() {
    let mon = json!({"mon": ["09:00-09:00"]});
    assert!(!open(mon.clone(), "2026-11-23T08:59"));
    assert!(open(mon.clone(), "2026-11-23T09:00"));
    assert!(open(mon.clone(), "2026-11-24T08:59"));
    assert!(!open(mon, "2026-11-24T09:00"));
    let all = json!({"mon": ["00:00-00:00"]});
    assert!(open(all.clone(), "2026-11-23T00:00"));
    assert!(open(all.clone(), "2026-11-23T23:59"));
    assert!(!open(all, "2026-11-24T00:00"));
}

#[test]
fn an_exception_replaces_the_whole_day() {
    let with = |exceptions: Value| json!({"mon": ["09:00-18:00"], "exceptions": exceptions});
    assert!(!open(with(json!({"2026-11-23": []})), "2026-11-23T10:00"));
    assert!(!open(
        with(json!({"11-23": ["19:00-20:00"]})),
        "2026-11-23T10:00"
    ));
    assert!(open(
        with(json!({"11-23": ["19:00-20:00"]})),
        "2026-11-23T19:30"
    ));
    assert!(open(with(json!({"2025-11-23": []})), "2026-11-23T10:00"));
}

#[test]
fn the_exception_of_one_date_beats_that_of_every_year() {
    let hours = json!({"exceptions": {"12-24": ["09:00-12:00"], "2026-12-24": ["15:00-16:00"]}});
    assert!(!open(hours.clone(), "2026-12-24T10:00"));
    assert!(open(hours.clone(), "2026-12-24T15:00"));
    assert!(open(hours.clone(), "2027-12-24T10:00"));
    assert!(!open(hours, "2027-12-24T15:00"));
}

#[test]
fn an_exception_governs_the_night_its_day_begins_and_not_the_one_it_ends() {
    let nights = |exceptions: Value| json!({"mon": ["22:00-06:00"], "tue": ["22:00-06:00"], "exceptions": exceptions});
    let closed = nights(json!({"2026-11-24": []}));
    assert!(
        open(closed.clone(), "2026-11-24T05:00"),
        "Monday's night runs on"
    );
    assert!(!open(closed.clone(), "2026-11-24T23:00"));
    assert!(!open(closed, "2026-11-25T05:00"));
    let added = nights(json!({"11-25": ["23:00-01:00"]}));
    assert!(open(added.clone(), "2026-11-26T00:30"));
    assert!(open(added, "2026-11-25T05:00"), "Tuesday's night runs on");
}

#[test]
fn the_leap_day_may_be_an_exception_of_every_year() {
    let leap = json!({"exceptions": {"02-29": ["10:00-11:00"], "2028-02-29": ["12:00-13:00"]}});
    assert!(open(leap.clone(), "2024-02-29T10:00"));
    assert!(open(leap.clone(), "2028-02-29T12:00"));
    assert!(!open(leap, "2026-03-01T10:00"));
}

#[test]
fn the_hours_are_those_of_the_zone_asked_about() {
    let hours = hours(json!({"mon": ["09:00-18:00"]}));
    let at: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
    let zone = |name| TimeZone::get(name).unwrap();
    assert!(hours.is_open(at, &TimeZone::UTC));
    assert!(hours.is_open(at, &zone("America/Argentina/Buenos_Aires")));
    assert!(!hours.is_open(at, &zone("America/Los_Angeles")));
    assert!(!hours.is_open(at, &zone("Pacific/Kiritimati")));
}

#[test]
fn an_hour_that_a_clock_change_repeats_is_open_both_times() {
    // New York, 2026-11-01 (a Sunday): 01:00-02:00 happens at -04 and again at -05.
    let hours = hours(json!({"sun": ["01:15-01:45"]}));
    let ny = TimeZone::get("America/New_York").unwrap();
    for (at, is) in [
        ("2026-11-01T01:14:59-04:00", false),
        ("2026-11-01T01:15:00-04:00", true),
        ("2026-11-01T01:45:00-04:00", false),
        ("2026-11-01T01:00:00-05:00", false),
        ("2026-11-01T01:15:00-05:00", true),
        ("2026-11-01T01:45:00-05:00", false),
    ] {
        assert_eq!(hours.is_open(at.parse().unwrap(), &ny), is, "{at}");
    }
}

#[test]
fn hours_that_begin_in_a_gap_at_midnight_are_open_right_after_it() {
    // Asuncion, 2023-10-01 (a Sunday): 00:00-01:00 does not happen.
    let hours = hours(json!({"sat": ["22:00-00:30"], "sun": ["00:30-02:00"]}));
    let zone = TimeZone::get("America/Asuncion").unwrap();
    for (at, is) in [
        ("2023-10-01T01:59:59Z", false), // Saturday 21:59:59
        ("2023-10-01T02:00:00Z", true),  // Saturday 22:00:00
        ("2023-10-01T03:59:59Z", true),  // Saturday 23:59:59
        ("2023-10-01T04:00:00Z", true),  // Sunday 01:00:00
        ("2023-10-01T04:59:59Z", true),  // Sunday 01:59:59
        ("2023-10-01T05:00:00Z", false), // Sunday 02:00:00
    ] {
        assert_eq!(hours.is_open(at.parse().unwrap(), &zone), is, "{at}");
    }
}

#[test]
fn the_ends_of_time_are_answered() {
    let nights = hours(json!({
        "mon": ["22:00-06:00"], "tue": ["22:00-06:00"], "wed": ["22:00-06:00"],
        "thu": ["22:00-06:00"], "fri": ["22:00-06:00"], "sat": ["22:00-06:00"],
        "sun": ["22:00-06:00"],
    }));
    for zone in ["UTC", "Pacific/Kiritimati", "Pacific/Niue"] {
        let zone = TimeZone::get(zone).unwrap();
        nights.is_open(Timestamp::MIN, &zone);
        nights.is_open(Timestamp::MAX, &zone);
    }
    assert!(
        !nights.is_open_locally(DateTime::MIN),
        "no day before it lends a night"
    );
    assert!(nights.is_open_locally(DateTime::MAX));
}

#[test]
fn what_is_not_understood_is_refused_with_its_place() {
    let many: Vec<String> = (0..25)
        .map(|minute| format!("10:{minute:02}-11:00"))
        .collect();
    for (json, error) in [
        (json!(null), "business_hours: must be an object of days"),
        (json!([]), "business_hours: must be an object of days"),
        (
            json!({"Mon": []}),
            "business_hours.Mon: must be mon, tue, wed, thu, fri, sat, sun or exceptions",
        ),
        (
            json!({"mon\u{0}\n": []}),
            "business_hours.mon\\0\\n: must be mon, tue, wed, thu, fri, sat, sun or exceptions",
        ),
        (
            json!({"mon": null}),
            "business_hours.mon: must be a list of intervals such as \"09:00-13:00\", [] for closed",
        ),
        (
            json!({"mon": "09:00-13:00"}),
            "business_hours.mon: must be a list of intervals such as \"09:00-13:00\", [] for closed",
        ),
        (
            json!({"tue": ["09:00-13:00", "9-5"]}),
            "business_hours.tue[1]: must be an interval such as \"09:00-13:00\", from 00:00 to 24:00",
        ),
        (
            json!({"tue": [null]}),
            "business_hours.tue[0]: must be an interval such as \"09:00-13:00\", from 00:00 to 24:00",
        ),
        (
            json!({"wed": ["22:00-00:00", "22:00-24:00"]}),
            "business_hours.wed[1]: repeats an interval of this day; leave one of them",
        ),
        (
            json!({"wed": many}),
            "business_hours.wed: has more than 24 intervals; join those that touch",
        ),
        (
            json!({"exceptions": null}),
            "business_hours.exceptions: must be an object of days",
        ),
        (
            json!({"exceptions": []}),
            "business_hours.exceptions: must be an object of days",
        ),
        (
            json!({"exceptions": {"2026-02-29": []}}),
            "business_hours.exceptions.2026-02-29: must be a date such as 2026-12-25, or 12-25 for every year",
        ),
        (
            json!({"exceptions": {"12-24": null}}),
            "business_hours.exceptions.12-24: must be a list of intervals such as \"09:00-13:00\", [] for closed",
        ),
        (
            json!({"exceptions": {"2026-12-24": ["09:00-12:00", "x"]}}),
            "business_hours.exceptions.2026-12-24[1]: must be an interval such as \"09:00-13:00\", from 00:00 to 24:00",
        ),
    ] {
        assert_eq!(refused(json.clone()), error, "{json}");
    }
}

#[test]
fn times_no_clock_shows_are_refused() {
    for bad in [
        "",
        "-",
        "09:00",
        "09:00-",
        "-09:00",
        "9:00-10:00",
        "09:00-25:00",
        "09:00-24:01",
        "24:00-24:00",
        "24:00-01:00",
        "09:60-10:00",
        "09:00 - 10:00",
        " 09:00-10:00",
        "09:00-10:00 ",
        "09:00-10:00-11:00",
        "09:00–10:00",
        "+9:00-10:00",
        "09:-1-10:00",
        "09:00:00-10:00",
        "0900-1000",
        "０９:00-10:00",
    ] {
        assert!(
            BusinessHours::parse(&json!({"mon": [bad]})).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn dates_no_calendar_has_are_refused() {
    for bad in [
        "",
        "-",
        "2026",
        "02-30",
        "13-01",
        "00-10",
        "1-1",
        "12-24 ",
        "2026-1-1",
        "2026-12-32",
        "20261224",
        "+2026-12-24",
        "-2026-12-24",
        "2026-12-24T00:00",
        "2026-12-24-",
        "mon",
        "12/24",
        "exceptions",
    ] {
        assert!(
            BusinessHours::parse(&json!({"exceptions": {bad: []}})).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn exceptions_have_a_limit() {
    let days = |count: usize| {
        let first = civil_date(2026, 1, 1);
        let keys = first.series(jiff::Span::new().days(1)).take(count);
        let days: Map<String, Value> = keys.map(|day| (day.to_string(), json!([]))).collect();
        json!({"exceptions": days})
    };
    hours(days(MAX_EXCEPTIONS));
    assert!(refused(days(MAX_EXCEPTIONS + 1)).contains("exceptions: has more than"));
}

#[test]
fn a_long_key_is_shown_in_part() {
    let error = refused(json!({"é".repeat(5000): []}));
    assert!(error.len() < 200, "{error}");
    assert!(error.contains("é…: must be"), "{error}");
}

/// The same hours a second time: a picture of the two days an interval can touch, painted minute by
/// minute from the JSON each time a question is asked.
fn naively_open(json: &Value, local: DateTime) -> bool {
    let minute = local.strftime("%H").to_string().parse::<usize>().unwrap() * 60
        + local.strftime("%M").to_string().parse::<usize>().unwrap();
    let yesterday = local.date().checked_sub(jiff::Span::new().days(1)).unwrap();
    painted(json, local.date())[minute] || painted(json, yesterday)[minute + 1440]
}

fn painted(json: &Value, date: Date) -> Vec<bool> {
    let full = date.strftime("%Y-%m-%d").to_string();
    let exceptions = &json["exceptions"];
    let day = [&exceptions[&full], &exceptions[&full[5..]]]
        .into_iter()
        .find(|day| !day.is_null())
        .unwrap_or(&json[date.strftime("%a").to_string().to_lowercase()]);
    let mut minutes = vec![false; 2 * 1440 + 1];
    for interval in day.as_array().unwrap_or(&Vec::new()) {
        let text = interval.as_str().unwrap();
        let part = |from: usize| text[from..from + 2].parse::<usize>().unwrap();
        let (start, mut end) = (part(0) * 60 + part(3), part(6) * 60 + part(9));
        if end <= start {
            end += 1440;
        }
        minutes[start..end].fill(true);
    }
    minutes
}

fn clock() -> impl Strategy<Value = String> {
    let round = prop::sample::select(vec!["00:00", "00:30", "01:00", "02:00", "03:00", "23:00"]);
    prop_oneof![
        round.prop_map(str::to_owned),
        (0..24_u8, 0..60_u8).prop_map(|(hour, minute)| format!("{hour:02}:{minute:02}")),
    ]
}

fn some_day() -> impl Strategy<Value = Vec<String>> {
    let end = prop_oneof![4 => clock(), 1 => Just("24:00".to_owned())];
    // One interval per start: `-00:00` and `-24:00` are the same end, and a repeat is refused.
    prop::collection::btree_map(clock(), end, 0..4).prop_map(|day| {
        day.into_iter()
            .map(|(start, end)| format!("{start}-{end}"))
            .collect()
    })
}

/// Hours with exceptions on and around the given date.
fn some_hours(around: Date) -> impl Strategy<Value = Value> {
    let week = prop::collection::btree_map(
        prop::sample::select(vec!["mon", "tue", "wed", "thu", "fri", "sat", "sun"]),
        some_day(),
        0..8,
    );
    let exceptions = prop::collection::vec((-2..3_i32, any::<bool>(), some_day()), 0..4);
    (week, exceptions).prop_map(move |(week, exceptions)| {
        let mut json = json!(week);
        for (days, yearly, day) in exceptions {
            let date = around.checked_add(jiff::Span::new().days(days)).unwrap();
            let key = date
                .strftime(if yearly { "%m-%d" } else { "%Y-%m-%d" })
                .to_string();
            json["exceptions"][key] = json!(day);
        }
        json
    })
}

/// Zones whose clocks change, most of them at midnight, and one that skipped a day.
const ZONES: [&str; 9] = [
    "America/Santiago",
    "America/Asuncion",
    "America/Sao_Paulo",
    "Africa/Cairo",
    "America/Havana",
    "Asia/Beirut",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "Pacific/Apia",
];

/// Instants within two days of a clock change of the zone.
fn near_a_change() -> impl Strategy<Value = (&'static str, Timestamp)> {
    let seconds = prop_oneof![-7200..7200_i64, -172_800..172_800_i64];
    (prop::sample::select(ZONES.to_vec()), 0..60_usize, seconds).prop_map(|(name, nth, seconds)| {
        let zone = TimeZone::get(name).unwrap();
        let start: Timestamp = "2005-01-01T00:00:00Z".parse().unwrap();
        let change = zone
            .following(start)
            .nth(nth)
            .map_or(start, |change| change.timestamp());
        (name, change + jiff::SignedDuration::from_secs(seconds))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn around_clock_changes_the_hours_are_those_painted(
        (zone, at, json) in near_a_change().prop_flat_map(|(zone, at)| {
            let local = TimeZone::get(zone).unwrap().to_datetime(at).date();
            (Just(zone), Just(at), some_hours(local))
        }),
    ) {
        let tz = TimeZone::get(zone).unwrap();
        let local = at.to_zoned(tz.clone()).datetime();
        prop_assert_eq!(hours(json.clone()).is_open(at, &tz), naively_open(&json, local));
    }

    #[test]
    fn at_any_minute_of_a_week_the_hours_are_those_painted(
        json in some_hours(civil_date(2028, 2, 29)),
        minutes in 0..(9 * 1440_i64),
    ) {
        let local = civil_date(2028, 2, 25).at(0, 0, 0, 0) + jiff::SignedDuration::from_mins(minutes);
        prop_assert_eq!(hours(json.clone()).is_open_locally(local), naively_open(&json, local));
    }

    #[test]
    fn no_json_makes_it_panic(
        key in prop_oneof![
            Just("mon".to_owned()), Just("exceptions".to_owned()), any::<String>(),
            "[0-9]{1,4}-[0-9]{1,2}(-[0-9]{1,2})?",
        ],
        text in prop_oneof!["[0-9:-]{0,13}", "[0-9]{2}:[0-9]{2}-[0-9]{2}:[0-9]{2}", any::<String>()],
    ) {
        for json in [
            json!({&key: [&text]}),
            json!({&key: {&text: []}}),
            json!({"exceptions": {&key: [&text]}}),
        ] {
            if let Ok(hours) = BusinessHours::parse(&json) {
                hours.is_open(Timestamp::UNIX_EPOCH, &TimeZone::UTC);
            }
        }
    }
}
