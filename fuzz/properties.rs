//! What holds of any input: asked by the fuzzer (`targets/`), and in every test run of its corpus and of what it found.
//!
//! An input is text of a few lines, so that its corpus can be read and written by hand.

#![allow(dead_code)] // each target asks one of them

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sidetone::admit::{self, AdmissionLimits, MAX_FAULTS};
use sidetone::answer::{self, Answer, Field, SHORT_BYTES};
use sidetone::condition::{self, Call, OUTSIDE_BUSINESS_HOURS};
use sidetone::explain;
use sidetone::health::Staleness;
use sidetone::hours::BusinessHours;
use sidetone::http;
use sidetone::number::{self, Dialling, E164};
use sidetone::profile::Profile;
use sidetone::resolve;
use sidetone::row::{NumberRecord, TenantRecord};
use sidetone::seal::{Context, DataKey, Keyring};
use sidetone::select::select;
use uuid::{Uuid, uuid};

const TENANT: Uuid = uuid!("6f717b5a-1a2b-4c3d-9e8f-112233445566");
const NUMBER: &str = "+14155550100";
const ROW: Context<'_> = Context {
    tenant: TENANT,
    provider: "openai",
    name: "default",
};
/// The value that every sealed value of the corpus holds.
const VALUE: &str = r#"{"api_key":"sk-prüfung-0001"}"#;
const LIMITS: AdmissionLimits = AdmissionLimits {
    prompt_bytes: 2048,
    credential_bytes: 1024,
    rows_per_tenant: 8,
};
const STACK_BYTES: usize = 3000;
const FRESH: Staleness = Staleness {
    ms: 412,
    stale: false,
    refuse_credentials: false,
};

/// The key 00 01 .. 1f, which the sealed values of the corpus were sealed with.
static RING: LazyLock<Keyring> =
    LazyLock::new(|| ring("k1", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="));
/// Another key of the same name.
static OTHER_RING: LazyLock<Keyring> =
    LazyLock::new(|| ring("k1", "/////////////////////////////////////////v8="));
static KEY: LazyLock<DataKey> = LazyLock::new(|| DataKey::generate().expect("random bytes"));
static OTHER_KEY: LazyLock<DataKey> = LazyLock::new(|| DataKey::generate().expect("random bytes"));

fn ring(id: &str, key: &str) -> Keyring {
    Keyring::parse(&format!("seal = \"{id}\"\n[open]\n{id} = \"{key}\"\n")).expect("a keyring")
}

/// The first line, and all that follows it.
fn first_line(data: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(data).ok()?;
    Some(text.split_once('\n').unwrap_or((text, "")))
}

/// A spelling of a called number; in front of it, on a line of its own, may stand
/// `international prefix,country code,trunk prefix`.
pub fn number(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (rules, raw) = text
        .split_once('\n')
        .map_or((None, text), |(rules, raw)| (dialling(rules), raw));
    let rules = rules.unwrap_or_default();
    let Ok(readings) = number::readings(raw, &rules) else {
        return;
    };
    assert_ne!(readings.second, Some(readings.first));
    assert!(readings.second.is_none() || !rules.country_code.as_str().is_empty());
    assert_eq!(
        number::readings(&format!(" {raw}"), &rules),
        Ok(readings),
        "a leading space"
    );
    assert_eq!(number::normalise(raw, &rules), Ok(readings.first));
    for number in readings.iter() {
        let text = number.as_str();
        let digits = text.strip_prefix('+').expect("a sign");
        assert!((7..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()));
        assert!(!digits.starts_with('0'));
        assert_eq!(text.parse::<E164>(), Ok(number));
        // Its one spelling, and every decoration of it, reads as itself under any rules.
        for spelt in [
            text.to_owned(),
            format!("%2B{digits}"),
            format!("%252B{digits}"),
            format!("tel:{text};ext=7"),
            format!("\"<\\\"x\" <SIP:{text}:pw@[::1]:5060;user=phone>;tag=1"),
            format!("({})-{}", &text[..3], &text[3..]),
        ] {
            assert_eq!(number::normalise(&spelt, &rules), Ok(number), "{spelt}");
        }
    }
}

fn dialling(line: &str) -> Option<Dialling> {
    let mut parts = line.split(',');
    let mut next = || parts.next().unwrap_or_default();
    Some(Dialling {
        international_prefix: next().parse().ok()?,
        country_code: next().parse().ok()?,
        trunk_prefix: next().parse().ok()?,
    })
}

/// Every byte percent-encoded.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        bytes.push(if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            rest = after.get(2..)?;
            u8::from_str_radix(digits.strip_prefix('+').map_or(digits, |_| "no"), 16).ok()?
        } else {
            *first
        });
    }
    String::from_utf8(bytes).ok()
}

type Read = Result<
    (
        Option<String>,
        Call,
        Option<Timestamp>,
        bool,
        Option<String>,
        bool,
    ),
    String,
>;

fn within_bounds(read: &Read) {
    let Ok((to, call, _, _, provider, _)) = read else {
        return;
    };
    let all = [to, &call.account_ref, &call.event_type, provider]
        .into_iter()
        .flatten();
    let mut count = 0;
    for value in all.chain(call.attributes.values().flatten()) {
        assert!(value.len() <= 256 && !value.chars().any(char::is_control));
        count += 1;
    }
    assert!(count <= 64);
    for name in call.attributes.keys() {
        assert!(!name.is_empty() && !["account_ref", "event_type"].contains(&name.as_str()));
    }
}

/// A query.
pub fn query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let read = http::read(text, None, b"");
    within_bounds(&read);
    let form = http::read("", Some("Application/X-www-form-urlencoded ;x"), data);
    assert_eq!(read, form, "a query and a form body are read alike");
    let pairs: Option<Vec<(String, String)>> = text
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| Some((decoded(name)?, decoded(value)?)))
        .collect();
    let Some(pairs) = pairs else {
        return assert!(read.is_err(), "it cannot be decoded");
    };
    let spelt = |pairs: &mut dyn Iterator<Item = &(String, String)>| {
        let pairs: Vec<String> = pairs
            .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
            .collect();
        http::read(&pairs.join("&&"), None, b"")
    };
    assert_eq!(
        read,
        spelt(&mut pairs.iter()),
        "another spelling of the same"
    );
    let names: BTreeSet<&String> = pairs.iter().map(|(name, _)| name).collect();
    if read.is_ok() && names.len() == pairs.len() {
        assert_eq!(
            read,
            spelt(&mut pairs.iter().rev()),
            "another order of different parameters"
        );
    }
}

/// The JSON body of a call.
pub fn body(data: &[u8]) {
    const JSON: Option<&str> = Some("application/json");
    let read = http::read("", JSON, data);
    within_bounds(&read);
    let (Ok(_), Ok(value)) = (&read, serde_json::from_slice::<Value>(data)) else {
        return;
    };
    let spread = serde_json::to_vec_pretty(&value).expect("JSON");
    let sorted = |read: Read| {
        read.map(|mut read| {
            read.1
                .attributes
                .values_mut()
                .for_each(|values| values.sort());
            read
        })
    };
    // An attribute may be told in two places; in which order does not matter.
    let read = sorted(read.clone());
    assert_eq!(
        read,
        sorted(http::read("", JSON, &spread)),
        "the same spread out"
    );
    // The same as a query.
    let mut pairs = Vec::new();
    for (name, value) in value.as_object().expect("an object") {
        match value {
            Value::Object(attributes) if name == "attr" => {
                for (name, value) in attributes {
                    each(value, &mut |value| {
                        pairs.push((format!("attr.{name}"), value))
                    });
                }
            }
            Value::Array(_) | Value::Object(_) if name != "zone" && !name.starts_with("attr.") => {
                pairs.push(("nobody".to_owned(), String::new()));
            }
            value => each(value, &mut |value| pairs.push((name.clone(), value))),
        }
    }
    let query: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
        .collect();
    assert_eq!(
        read,
        sorted(http::read(&query.join("&"), None, b"")),
        "the same as a query"
    );
}

fn each(value: &Value, take: &mut dyn FnMut(String)) {
    match value {
        Value::Null => {}
        Value::String(text) => take(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| each(value, take)),
        value => take(value.to_string()),
    }
}

/// Lines of `name=value` as a call.
fn call(lines: &str) -> Call {
    let mut call = Call::default();
    for (name, value) in lines.lines().filter_map(|line| line.split_once('=')) {
        give(&mut call, name, value);
    }
    call
}

fn give(call: &mut Call, name: &str, value: &str) {
    let value = value.to_owned();
    match name {
        "account_ref" => call.account_ref = Some(value),
        "event_type" => call.event_type = Some(value),
        _ => call
            .attributes
            .entry(name.to_owned())
            .or_default()
            .push(value),
    }
}

/// `conditions_json`, then lines of `name=value`.
pub fn conditions(data: &[u8]) {
    let Some((json, lines)) = first_line(data) else {
        return;
    };
    let Ok(value) = serde_json::from_str::<Value>(json) else {
        return;
    };
    let Ok(rules) = condition::compile(&value) else {
        return;
    };
    let call = call(lines);
    let empty = Map::new();
    let keys = value.as_object().unwrap_or(&empty);
    for outside in [false, true] {
        let holds = keys
            .iter()
            .all(|(key, value)| holds(key, value, &call, outside));
        assert_eq!(rules.holds(&call, outside), holds, "{rules:?} {call:?}");
        assert_eq!(rules.first_failing(&call, outside).is_none(), holds);
    }
    for condition in &rules.conditions {
        assert!(!condition.to_string().contains(char::is_control));
    }
    // A number equals its own spelling.
    let raw: BTreeMap<String, Box<RawValue>> = serde_json::from_str(json).unwrap_or_default();
    for (key, raw) in raw {
        let is_plain = !key.ends_with("_in") && !key.ends_with("_override");
        let Some(Value::Number(_)) = keys.get(&key).filter(|_| is_plain) else {
            continue;
        };
        let one = Value::Object(Map::from_iter([(key.clone(), keys[&key].clone())]));
        let mut call = Call::default();
        give(&mut call, &key, raw.get());
        assert!(
            condition::compile(&one)
                .expect("compiled above")
                .holds(&call, false),
            "{key}: {raw}"
        );
    }
}

/// Section 4 of the design, word by word.
fn holds(key: &str, wanted: &Value, call: &Call, outside: bool) -> bool {
    let values = |name: &str| match name {
        "account_ref" => call.account_ref.clone().into_iter().collect(),
        "event_type" => call.event_type.clone().into_iter().collect(),
        _ => call.attributes.get(name).cloned().unwrap_or_default(),
    };
    let any = |name: &str, wanted: &[Value]| {
        values(name)
            .iter()
            .any(|given| wanted.iter().any(|wanted| equal(given, wanted)))
    };
    let list = |value: &Value| value.as_array().expect("a list").clone();
    if key.ends_with("_override") {
        true
    } else if key == OUTSIDE_BUSINESS_HOURS && values(key).is_empty() {
        *wanted == Value::Bool(outside)
    } else if let Some(name) = key.strip_suffix("_not_in") {
        !values(name).is_empty() && !any(name, &list(wanted))
    } else if let Some(name) = key.strip_suffix("_in") {
        any(name, &list(wanted))
    } else {
        any(key, std::slice::from_ref(wanted))
    }
}

fn equal(given: &str, wanted: &Value) -> bool {
    let given = given.trim();
    match wanted {
        Value::String(text) => given.eq_ignore_ascii_case(text.trim()),
        Value::Bool(true) => given == "1" || given.eq_ignore_ascii_case("true"),
        Value::Bool(false) => given == "0" || given.eq_ignore_ascii_case("false"),
        Value::Number(number) => match (given.parse::<i128>(), number.as_i128()) {
            (Ok(given), Some(wanted)) => given == wanted,
            // Whole numbers are compared exactly however they are written.
            (Ok(given), None) => number.as_f64().is_some_and(|wanted| is(wanted, given)),
            (Err(_), Some(wanted)) => given.parse().is_ok_and(|given| is(given, wanted)),
            (Err(_), None) => given.parse::<f64>().ok() == number.as_f64(),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => unreachable!("it did not compile"),
    }
}

/// Whether a double is exactly this whole number.
fn is(double: f64, integer: i128) -> bool {
    double.fract() == 0.0 && double.abs() < 2_f64.powi(127) && double as i128 == integer
}

/// `business_hours`, then a line of seconds since 1970 and a line of a zone's name.
pub fn hours(data: &[u8]) {
    let Some((json, rest)) = first_line(data) else {
        return;
    };
    let Ok(value) = serde_json::from_str::<Value>(json) else {
        return;
    };
    let Ok(hours) = BusinessHours::parse(&value) else {
        return;
    };
    let (seconds, zone) = rest.split_once('\n').unwrap_or((rest, ""));
    let at = seconds
        .parse()
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok());
    let zone = admit::zone(zone).unwrap_or(TimeZone::UTC);
    for at in [at.unwrap_or_default(), Timestamp::MIN, Timestamp::MAX] {
        let local = zone.to_datetime(at);
        assert_eq!(hours.is_open(at, &zone), is_open(&value, local), "{local}");
    }
}

/// What the column says of a minute, read from the text each time.
fn is_open(hours: &Value, local: DateTime) -> bool {
    let clock = local.strftime("%H:%M").to_string();
    let day_of = |date: jiff::civil::Date| {
        let exceptions = &hours["exceptions"];
        let weekday = date.strftime("%a").to_string().to_lowercase();
        let day = exceptions
            .get(date.strftime("%Y-%m-%d").to_string())
            .or_else(|| exceptions.get(date.strftime("%m-%d").to_string()))
            .or_else(|| hours.get(weekday));
        day.and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let any = |date, open: &dyn Fn(&str, &str) -> bool| {
        day_of(date).iter().any(|interval| {
            let (start, end) = interval
                .as_str()
                .and_then(|text| text.split_once('-'))
                .expect("parsed");
            open(start, end)
        })
    };
    // `HH:MM` orders as the time does.
    any(local.date(), &|start, end| {
        start <= &*clock && (end <= start || &*clock < end)
    }) || local
        .date()
        .yesterday()
        .is_ok_and(|yesterday| any(yesterday, &|start, end| end <= start && &*clock < end))
}

/// A sealed credential; and a value to be sealed.
pub fn jwe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for raw in [None, Some("k1")] {
        // Nobody can make one that opens: all that do are the corpus's own.
        if let Ok(opened) = RING.open(text, &ROW, raw) {
            assert_eq!((opened.secret.expose(), opened.kid.as_str()), (VALUE, "k1"));
        }
        assert!(
            OTHER_RING.open(text, &ROW, raw).is_err(),
            "another key opens it"
        );
    }
    let other = Context {
        name: "defaul",
        ..ROW
    };
    assert!(
        RING.open(text, &other, None).is_err(),
        "it opens for another row"
    );

    let Ok(sealed) = RING.seal_jwe(text, &ROW) else {
        return;
    };
    let opened = RING
        .open(&sealed, &ROW, None)
        .expect("what was sealed opens");
    assert_eq!(opened.secret.expose(), text);
    assert!(OTHER_RING.open(&sealed, &ROW, None).is_err());
    for other in [
        other,
        Context {
            provider: "",
            ..ROW
        },
        Context {
            tenant: Uuid::from_u128(TENANT.as_u128() ^ 1),
            ..ROW
        },
    ] {
        assert!(
            RING.open(&sealed, &other, None).is_err(),
            "it opens for another row"
        );
    }
    let at = text
        .bytes()
        .fold(7_usize, |at, byte| at.wrapping_mul(31) ^ usize::from(byte))
        % sealed.len();
    assert!(
        RING.open(&sealed[..at], &ROW, Some("k1")).is_err(),
        "cut at {at}"
    );
    let mut altered = sealed.clone().into_bytes();
    altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
    let altered = String::from_utf8(altered).expect("ASCII");
    assert!(
        RING.open(&altered, &ROW, Some("k1")).is_err(),
        "altered at {at}"
    );
}

/// A record of the replica: as bytes on disk, as what is sealed, and as what was once sealed.
pub fn record(data: &[u8]) {
    let place = b"tenant/1".as_slice();
    assert!(KEY.open(place, data).is_err(), "it was never sealed");
    let sealed = KEY.seal(place, data).expect("sealed");
    assert_eq!(
        KEY.open(place, &sealed).expect("what was sealed opens"),
        data
    );
    assert!(
        OTHER_KEY.open(place, &sealed).is_err(),
        "another key opens it"
    );
    for other in [b"tenant/2".as_slice(), b"tenant/", b""] {
        assert!(
            KEY.open(other, &sealed).is_err(),
            "it opens in another place"
        );
    }
    let at = data
        .iter()
        .fold(7_usize, |at, byte| at.wrapping_mul(31) ^ usize::from(*byte))
        % sealed.len();
    assert!(KEY.open(place, &sealed[..at]).is_err(), "cut at {at}");
    let mut altered = sealed.clone();
    altered[at] ^= 1 << (at % 8);
    assert!(KEY.open(place, &altered).is_err(), "altered at {at}");

    let number = serde_json::from_slice::<NumberRecord>(data).ok();
    let tenant = serde_json::from_slice::<TenantRecord>(data).ok();
    number.as_ref().into_iter().for_each(same_again);
    tenant.as_ref().into_iter().for_each(same_again);
    answers(tenant.as_ref(), number.as_ref());
}

/// A document of a tenant as Postgres sends it, and on the next line the one that follows it; or of the number.
pub fn admit(data: &[u8]) {
    let Some((first, second)) = first_line(data) else {
        return;
    };
    let mut was: Option<TenantRecord> = None;
    let mut number_was: Option<NumberRecord> = None;
    for document in [first, second] {
        let tenant = admit::tenant(TENANT, document, was.as_ref(), &LIMITS);
        assert_eq!(
            admit::tenant(TENANT, document, was.as_ref(), &LIMITS),
            tenant
        );
        same_again(&tenant);
        assert!(tenant.faults.len() <= MAX_FAULTS + 1);
        let bundle = &tenant.bundle;
        assert!(bundle.prompts.len() <= LIMITS.rows_per_tenant);
        assert!(bundle.credentials.len() <= LIMITS.rows_per_tenant);
        for prompt in &bundle.prompts {
            assert!(prompt.bindings.len() <= LIMITS.rows_per_tenant);
            assert!(
                prompt
                    .version
                    .as_ref()
                    .is_none_or(|it| it.content.len() <= LIMITS.prompt_bytes)
            );
            assert!(!prompt.name.contains(char::is_control));
        }
        assert!(
            bundle
                .credentials
                .iter()
                .all(|row| row.data_ciphertext.len() <= LIMITS.credential_bytes)
        );
        let number = admit::number(NUMBER, document, number_was.as_ref());
        same_again(&number);
        assert_eq!(
            number.row.is_none()
                || number.row == number_was.as_ref().and_then(|was| was.row.clone()),
            !number.faults.is_empty()
                || number.row == number_was.as_ref().and_then(|was| was.row.clone())
        );
        for fault in tenant.faults.iter().chain(&number.faults) {
            assert!(
                fault.detail.len() < 4096 && !fault.detail.contains(char::is_control),
                "{fault:?}"
            );
        }
        answers(Some(&tenant), number.row.is_some().then_some(&number));
        (was, number_was) = (Some(tenant), Some(number));
    }
}

/// What is stored reads as what was stored.
fn same_again<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
    record: &T,
) {
    let json = serde_json::to_vec(record).expect("it is written");
    assert_eq!(
        &serde_json::from_slice::<T>(&json).expect("it is read"),
        record
    );
}

/// Every answer that these records give, well-formed. Where one is missing, that of the example is in its place.
fn answers(tenant: Option<&TenantRecord>, number: Option<&NumberRecord>) {
    static EXAMPLE: LazyLock<(TenantRecord, NumberRecord)> = LazyLock::new(|| {
        let row = format!(
            r#"{{"id":"22222222-2222-4222-8222-222222222222","tenant_id":"{TENANT}","e164":"{NUMBER}","label":null,
                "default_language":"es-AR","default_voice":null,"timezone":"America/Santiago","active":true}}"#
        );
        let tenant = format!(
            r#"{{"tenant":{{"id":"{TENANT}","name":"a","slug":"a","status":"active"}},"settings":null,"credentials":[],"prompts":[]}}"#
        );
        (
            admit::tenant(TENANT, &tenant, None, &LIMITS),
            admit::number(NUMBER, &row, None),
        )
    });
    let tenant = resolve::tenant(tenant.unwrap_or(&EXAMPLE.0), &RING, Some("k1"));
    let number = resolve::number(number.unwrap_or(&EXAMPLE.1));
    let (Ok(tenant), Ok(number)) = (tenant, number) else {
        return;
    };
    let profile = Profile::new(Arc::new(number), Arc::new(tenant));
    let call = call("account_ref=ACME-001234\nevent_type=door_open\nzone=Z1\nzone=Z2\nvip=1");
    let at: Timestamp = "2026-11-22T13:45:00Z".parse().expect("an instant");
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON");
    json(&explain::explain(&profile, &call, at, STACK_BYTES).body);
    let Ok(selection) = select(&profile, &call, at, STACK_BYTES) else {
        return;
    };
    let contents: usize = selection
        .prompts
        .iter()
        .filter_map(|chosen| chosen.prompt.version.as_ref())
        .map(|version| version.layer.content_bytes())
        .sum();
    assert!(contents <= STACK_BYTES);
    let answer = Answer::new(&selection, FRESH);
    let all = |_: &str| true;
    for full in [answer.resolve(None), answer.resolve(Some(&all))] {
        let full = json(&full.body.to_vec());
        let fields = full.as_object().expect("an object");
        assert!(
            fields.iter().all(|(_, value)| !value.is_null()),
            "a field is null"
        );
    }
    json(&answer::credentials(&profile, FRESH, &all));
    let short = answer.lookup().to_vec();
    assert!(short.len() < SHORT_BYTES && !short.contains(&b'\n'));
    json(&short);
    let form = answer.form();
    assert!(form.len() < SHORT_BYTES && form.starts_with(b"status=ok"));
    assert!(
        form.iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~%&=".contains(byte))
    );
    for field in Field::ALL {
        assert!(answer.field(*field).len() < SHORT_BYTES);
    }
}
