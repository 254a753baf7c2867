//! What Asterisk and FreeSWITCH send, byte for byte, and what they make of the answer. Neither is in every distribution: the requests in
//! `golden/` were recorded, with the answers, between a node with the example's rows and Asterisk 16.28 (Debian 11) running
//! `clients/asterisk/extensions.conf`, and libcurl 7.88 with the options that FreeSWITCH's mod_curl sets.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{example, file, program, with_luasocket};
use crate::cluster::scratch;
use crate::node::{ACME, Node, PATIENCE};

/// The values that differ from one answer to the next, or from one day to another.
const CHANGING: [&str; 6] = [
    "date: ",
    "content-length: ",
    "&local_time=",
    "&business_hours=",
    "&revision=",
    "&staleness_ms=",
];

fn masked(answer: &str) -> String {
    let mut answer = answer.to_owned();
    for name in CHANGING {
        if let Some((before, after)) = answer.split_once(name) {
            let end = after.find(['&', '\r']).unwrap_or(after.len());
            answer = format!("{before}{name}…{}", &after[end..]);
        }
    }
    answer
}

/// Sends these bytes and reads until the answer is as long as it says.
async fn exchange(node: &Node, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", node.tcp)).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let whole = |answer: &[u8]| {
        let text = String::from_utf8_lossy(answer).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.split_once("content-length: ")?.1;
        let length: usize = length.split("\r\n").next()?.parse().ok()?;
        (body.len() >= length).then_some(text)
    };
    let reading = async {
        loop {
            if let Some(text) = whole(&answer) {
                return text;
            }
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "closed");
        }
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("no whole answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_as_asterisk_and_freeswitch_send_them_are_answered_as_recorded() {
    let db = example().await;
    let node = Node::with_example(&db, "").await;
    node.level().await;
    let mut replayed = 0;
    for entry in fs::read_dir(file("tests/it/clients/golden")).unwrap() {
        let request = entry.unwrap().path();
        if request.extension().is_none_or(|is| is != "request") {
            continue;
        }
        let recorded = fs::read_to_string(request.with_extension("answer")).unwrap();
        let answered = exchange(&node, &fs::read(&request).unwrap()).await;
        assert_eq!(
            masked(&answered),
            masked(&recorded),
            "{}",
            request.display()
        );
        replayed += 1;
    }
    assert_eq!(replayed, 7);
}

#[test]
fn the_dialplan_of_asterisk_asks_what_was_recorded() {
    let dialplan = fs::read_to_string(file("clients/asterisk/extensions.conf")).unwrap();
    let url = "http://127.0.0.1:8377/v1/lookup?format=form&to=${URIENCODE(${ARG1})}&${ARG2}";
    assert!(dialplan.contains(url));
    let recorded =
        fs::read_to_string(file("tests/it/clients/golden/asterisk-known.request")).unwrap();
    let asked = "GET /v1/lookup?format=form&to=%2B14155550100&event_type=line_test&account_ref=ACME-001234 HTTP/1.1\r\n";
    assert!(recorded.starts_with(asked));
}

/// What `Set(HASH(x)=${CURL(url)})` leaves, as func_curl with hashcompat and func_strings do it: decoded, commas escaped, joined by
/// commas, and split again where quotes, parentheses and brackets are balanced.
fn as_asterisk_reads(form: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8().unwrap().into_owned();
    let pairs: Vec<(String, String)> = form
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect();
    let escaped = pairs
        .iter()
        .map(|(_, value)| value.replace('\\', "\\\\").replace(',', "\\,"));
    let joined = escaped.collect::<Vec<_>>().join(",");
    let mut values = vec![String::new()];
    let (mut parentheses, mut brackets, mut quoted) = (0_u32, 0_u32, false);
    let mut chars = joined.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => {
                quoted = !quoted;
                continue;
            }
            '(' => parentheses += 1,
            ')' => parentheses = parentheses.saturating_sub(1),
            '[' => brackets += 1,
            ']' => brackets = brackets.saturating_sub(1),
            ',' if parentheses == 0 && brackets == 0 && !quoted => {
                values.push(String::new());
                continue;
            }
            _ => {}
        }
        let kept = if char == '\\' {
            chars.next()
        } else {
            Some(char)
        };
        values.last_mut().unwrap().extend(kept);
    }
    values.resize(pairs.len(), String::new());
    pairs
        .into_iter()
        .map(|(name, _)| name)
        .zip(values)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_label_and_no_caller_spoils_the_fields_that_asterisk_reads() {
    let db = example().await;
    let node = Node::with_example(&db, "").await;
    node.level().await;
    let question = format!("/v1/lookup?format=form&to={ACME}");
    let plain = as_asterisk_reads(&node.get(&question).await.body);
    assert_eq!(plain["label"], "Salida principal AR");
    assert_eq!(plain["prompt_ids"].split(',').count(), 2);
    db.session()
        .await
        .sql("update tenant_phone_numbers set label = 'Salida (\"principal, [x' where e164 = '+14155550100'")
        .await;
    node.until(&format!("/v1/lookup/label?to={ACME}"), |reply| {
        reply.body.ends_with("[x")
    })
    .await;
    let caller = "%22%28%5B%2C%5C%26status%3Dok%2C";
    let form = node
        .get(&format!(
            "{question}&account_ref={caller}&event_type={caller}"
        ))
        .await
        .body;
    let read = as_asterisk_reads(&form);
    for (name, value) in &plain {
        let free = ["label", "tenant_name", "account_ref", "event_type"].contains(&name.as_str());
        let changing =
            ["local_time", "business_hours", "revision", "staleness_ms"].contains(&name.as_str());
        if !free && !changing {
            assert_eq!(&read[name], value, "{name} of {form}");
        }
    }
}

/// A FreeSWITCH session is whoever has getVariable and setVariable.
const SESSION: &str = r#"
local variables = { destination_number = arg[2], sidetone_socket = arg[3], account_ref = "ACME-001234" }
session = {
    getVariable = function(_, name) return variables[name] end,
    setVariable = function(_, name, value) assert(type(value) == "string", name); variables[name] = value end,
}
dofile(arg[1])
for _, name in ipairs { "sidetone", "sidetone_status", "sidetone_language", "sidetone_stale", "sidetone_label" } do
    io.write(variables[name] or "-", "\n")
end
"#;

/// What the script for mod_lua sets for a number.
fn freeswitch_call(version: &str, scripts: &Path, number: &str, socket: &Path) -> Vec<String> {
    let mut command = program(&format!("lua{version}"));
    with_luasocket(&mut command, version);
    let session = scripts.join("session.lua");
    fs::write(&session, SESSION).unwrap();
    let output = command
        .arg(&session)
        .arg(scripts.join("sidetone_call.lua"))
        .args([number.as_ref(), socket.as_os_str()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    told.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_for_freeswitch_leaves_the_answer_in_the_channel() {
    let db = example().await;
    let node = Node::with_example(&db, "").await;
    node.level().await;
    let scripts = scratch("freeswitch");
    for from in [
        "clients/freeswitch/sidetone_call.lua",
        "clients/lua/sidetone.lua",
    ] {
        let from = file(from);
        fs::copy(&from, scripts.join(from.file_name().unwrap())).unwrap();
    }
    for version in ["5.1", "5.4"] {
        let call = |number: &str, socket: &Path| freeswitch_call(version, &scripts, number, socket);
        let answer = ["yes", "ok", "es-AR", "0", "Salida principal AR"];
        assert_eq!(call("+14155550100", &node.unix()), answer);
        assert_eq!(
            call("+15005550006", &node.unix()),
            ["no", "unknown_number", "-", "-", "-"]
        );
        assert_eq!(
            call("+14155550100", &scripts.join("nobody")),
            ["away", "unreachable", "-", "-", "-"]
        );
    }
}
