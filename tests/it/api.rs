//! The description (`docs/openapi.yaml`) and the daemon say the same: routes, statuses, fields, examples.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use crate::browser::Browser;
use crate::cluster::{Cluster, free_port};
use crate::node::{Node, Reply, exchange, until};
use crate::page::{is_at_peace, tunnel};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What is sent, beside what is answered: not every member of it has to be there.
const SENT: [&str; 4] = ["Question", "QuestionForm", "RefreshOrder", "LogOrder"];

/// Methods as the description has them, in the order of `Allow`.
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];

/// Routes that answer with events without an end.
const STREAMS: [&str; 2] = ["/v1/watch", "/v1/admin/events"];

/// What is different each time.
const VOLATILE: [&str; 5] = [
    "revision",
    "version_revision",
    "staleness_ms",
    "elapsed_ms",
    "cursor",
];

fn text() -> String {
    fs::read_to_string(format!("{ROOT}/docs/openapi.yaml")).unwrap()
}

fn description() -> Value {
    serde_saphyr::from_str(&text()).unwrap()
}

/// Follows a `$ref`.
fn followed<'a>(description: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(to) => description
            .pointer(&to[1..])
            .unwrap_or_else(|| panic!("{to}")),
        None => value,
    }
}

/// One route with one method.
struct Operation<'a> {
    method: String,
    path: &'a str,
    sides: Vec<&'a str>,
    responses: &'a Map<String, Value>,
}

fn operations(description: &Value) -> Vec<Operation<'_>> {
    let mut all = Vec::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let sides = operation["x-sides"].as_array().unwrap();
            all.push(Operation {
                method: method.to_uppercase(),
                path,
                sides: sides.iter().map(|side| side.as_str().unwrap()).collect(),
                responses: operation["responses"].as_object().unwrap(),
            });
        }
    }
    assert!(all.len() > 10);
    all
}

/// Every object with its properties closed: what is not described is not let through.
fn closed(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let is_object = map.get("type").is_some_and(|kind| {
                kind == "object"
                    || kind
                        .as_array()
                        .is_some_and(|kinds| kinds.contains(&json!("object")))
            });
            if is_object
                && map.contains_key("properties")
                && !map.contains_key("additionalProperties")
            {
                map.insert("additionalProperties".to_owned(), json!(false));
            }
            map.values_mut().for_each(closed);
        }
        Value::Array(values) => values.iter_mut().for_each(closed),
        _ => {}
    }
}

/// Judges answers by the description, closed.
struct Judge {
    description: Value,
}

impl Judge {
    fn new() -> Self {
        let mut description = description();
        closed(&mut description["components"]);
        closed(&mut description["paths"]);
        Self { description }
    }

    /// What is wrong with a value by a schema.
    fn faults(&self, schema: &Value, value: &Value) -> Vec<String> {
        let whole = json!({"allOf": [schema], "components": self.description["components"]});
        let validator = jsonschema::draft202012::options()
            .should_validate_formats(true)
            .build(&whole)
            .unwrap();
        let told = validator.iter_errors(value);
        told.map(|err| format!("{}: {err}", err.instance_path()))
            .collect()
    }

    fn schema(&self, name: &str) -> &Value {
        &self.description["components"]["schemas"][name]
    }

    /// The schema of an answer; none where it has no body.
    fn answer(&self, method: &str, path: &str, reply: &Reply) -> Option<&Value> {
        let operation = &self.description["paths"][path][method.to_lowercase()];
        let response = &operation["responses"][reply.status.to_string()];
        assert!(
            !response.is_null(),
            "{method} {path}: {} is not described",
            reply.status
        );
        let response = followed(&self.description, response);
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            let header = followed(&self.description, header);
            match reply.headers.get(&name.to_lowercase()) {
                Some(text) => {
                    let number = text
                        .parse::<u64>()
                        .ok()
                        .filter(|_| header["schema"]["type"] == "integer");
                    let value = number.map_or(json!(text), |number| json!(number));
                    assert_eq!(
                        self.faults(&header["schema"], &value),
                        [""; 0],
                        "{path} {name}"
                    );
                }
                None => assert!(header["required"] != true, "{method} {path}: no {name}"),
            }
        }
        let known = ["content-type", "content-length", "date", "connection"];
        for name in reply
            .headers
            .keys()
            .filter(|name| !known.contains(&name.as_str()))
        {
            let described = response["headers"].as_object().into_iter().flatten();
            assert!(
                described
                    .into_iter()
                    .any(|(known, _)| known.eq_ignore_ascii_case(name)),
                "{method} {path} {}: {name} is sent but not described",
                reply.status
            );
        }
        if reply.status == 304 {
            return None;
        }
        let media = reply.headers["content-type"]
            .split(';')
            .next()
            .unwrap()
            .to_owned();
        let content = &response["content"][&media];
        assert!(
            !content.is_null(),
            "{method} {path} {}: {media} is not described",
            reply.status
        );
        Some(&content["schema"])
    }

    /// An answer has exactly the fields that are described.
    fn accepts(&self, method: &str, path: &str, reply: &Reply) {
        if let Some(schema) = self.answer(method, path, reply) {
            let faults = self.faults(schema, &body(reply));
            assert!(faults.is_empty(), "{method} {path}: {faults:#?}\n{reply:?}");
        }
    }
}

/// A body as the description sees it.
fn body(reply: &Reply) -> Value {
    match reply.headers["content-type"].as_str() {
        "application/json" => reply.json(),
        "application/x-www-form-urlencoded" => pairs(&reply.body),
        "application/yaml" => serde_saphyr::from_str(&reply.body).unwrap(),
        _ => json!(reply.body),
    }
}

fn pairs(text: &str) -> Value {
    let decoded = |text: &str| {
        percent_encoding::percent_decode_str(text)
            .decode_utf8()
            .unwrap()
            .into_owned()
    };
    let mut map = Map::new();
    for pair in text.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        assert!(
            map.insert(decoded(name), json!(decoded(value))).is_none(),
            "{name} twice"
        );
    }
    map.into()
}

/// Asks on the side that has the route: calls on the Unix socket.
async fn asked(node: &Node, side: &str, method: &str, target: &str, body: &str) -> Reply {
    let stream = UnixStream::connect(socket(node, side)).await.unwrap();
    let json = if body.is_empty() {
        ""
    } else {
        "Content-Type: application/json\r\n"
    };
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{json}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    exchange(stream, &request).await.unwrap()
}

/// The socket of a side; calls ask on the Unix socket.
fn socket(node: &Node, side: &str) -> PathBuf {
    if side == "call" {
        node.unix()
    } else {
        node.path("admin/admin.sock")
    }
}

/// The head of a stream of events.
async fn head_of_stream(node: &Node, side: &str, target: &str) -> String {
    let mut stream = UnixStream::connect(socket(node, side)).await.unwrap();
    let request = format!("HEAD {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = String::new();
    stream.read_to_string(&mut head).await.unwrap();
    head
}

/// The rows of a table of the reference that begin with a side.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let reference = fs::read_to_string(format!("{ROOT}/docs/reference.md")).unwrap();
    let (_, part) = reference.split_once(heading).unwrap();
    let part = part.split("\n#").next().unwrap();
    let cells = |line: &str| {
        line.split(" | ")
            .map(|cell| cell.trim_matches(['|', ' ', '`']).to_owned())
            .collect()
    };
    part.lines()
        .filter(|line| line.starts_with("| call ") || line.starts_with("| admin "))
        .map(cells)
        .collect()
}

#[test]
fn the_routes_of_the_description_are_those_of_the_reference() {
    let description = description();
    let described: BTreeSet<String> = operations(&description)
        .iter()
        .map(|operation| format!("{} {}", operation.method, operation.path))
        .collect();
    let mut told = BTreeSet::new();
    for row in rows("\n## Routes\n") {
        let route = row[1].split(['?', '`', '[']).next().unwrap();
        assert!(told.insert(route.trim().to_owned()), "{route} twice");
        let operations = operations(&description);
        let here = operations
            .iter()
            .find(|one| format!("{} {}", one.method, one.path) == route.trim());
        assert!(
            here.is_some_and(|here| here.sides.contains(&row[0].as_str())),
            "{row:?}"
        );
    }
    assert_eq!(told, described);
}

#[test]
fn every_path_that_stands_in_the_source_of_the_routers_is_described() {
    let description = description();
    let mut found = 0;
    for file in ["lookup.rs", "admin.rs", "page.rs"] {
        let source = fs::read_to_string(format!("{ROOT}/src/http/{file}")).unwrap();
        let source = source.split("\nmod tests").next().unwrap();
        for literal in source
            .split('"')
            .skip(1)
            .step_by(2)
            .filter(|text| text.starts_with('/') && !text.starts_with("/assets/"))
        {
            let path = if literal == "/v1/lookup/" {
                "/v1/lookup/{field}"
            } else {
                literal
            };
            assert!(!description["paths"][path].is_null(), "{file}: {literal}");
            found += 1;
        }
    }
    assert!(found >= 15, "the routers do not look as they did");
}

/// HTTP statuses and the `status` of the answers that have them.
fn statuses(description: &Value) -> BTreeSet<(u16, String)> {
    let mut all = BTreeSet::new();
    for operation in operations(description) {
        for (code, response) in operation.responses {
            let code: u16 = code.parse().unwrap();
            let response = followed(description, response);
            for content in response["content"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(_, content)| content)
            {
                let mut schemas = vec![&content["schema"]];
                while let Some(schema) = schemas.pop() {
                    // One schema for what calls are answered with and for what they are refused with.
                    let one_for_all = schema["$ref"] == "#/components/schemas/Explanation";
                    let schema = followed(description, schema);
                    schemas.extend(schema["anyOf"].as_array().into_iter().flatten());
                    let status = &schema["properties"]["status"];
                    let words = status["enum"].as_array().cloned().unwrap_or_default();
                    for word in words
                        .iter()
                        .chain(status.get("const"))
                        .filter_map(Value::as_str)
                    {
                        let given = match word {
                            "ok" => 200,
                            "tenant_suspended" => 403,
                            "inactive_number" => 404,
                            _ => code,
                        };
                        if given == code || !one_for_all {
                            all.insert((code, word.to_owned()));
                        }
                    }
                }
                let bare = content["x-statuses"].as_array().into_iter().flatten();
                all.extend(bare.map(|word| (code, word.as_str().unwrap().to_owned())));
            }
        }
    }
    all
}

#[test]
fn every_status_has_its_code_in_the_description_and_the_description_no_other() {
    let told: BTreeSet<(u16, String)> = rows("\n### Statuses\n")
        .into_iter()
        .map(|row| (row[2].parse().unwrap(), row[1].clone()))
        .collect();
    assert!(told.len() > 15);
    assert_eq!(statuses(&description()), told);
}

/// Calls `each` with every object schema and where it stands.
fn each_object(value: &Value, at: &str, each: &mut impl FnMut(&str, &Map<String, Value>)) {
    match value {
        Value::Object(map) => {
            if map.get("properties").is_some_and(Value::is_object) && map.contains_key("type") {
                each(at, map);
            }
            for (name, value) in map {
                each_object(value, &format!("{at}/{name}"), each);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| each_object(value, at, each)),
        _ => {}
    }
}

#[test]
fn an_answer_always_has_every_field_that_is_described() {
    let description = description();
    let mut objects = 0;
    each_object(&description, "", &mut |at, schema| {
        if SENT
            .iter()
            .any(|sent| at.starts_with(&format!("/components/schemas/{sent}")))
        {
            return;
        }
        let mut properties: BTreeSet<&str> = schema["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let required = schema.get("required").and_then(Value::as_array);
        let required: BTreeSet<&str> = required
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        // The one that may be left out.
        if at == "/components/schemas/KeyList/items" {
            assert!(properties.remove("expires"));
        }
        assert_eq!(properties, required, "{at}");
        objects += 1;
    });
    assert!(objects > 40);
}

#[test]
fn the_fields_that_can_be_asked_for_alone_are_those_of_the_form() {
    let description = description();
    let schemas = &description["components"]["schemas"];
    let words = |list: &Value| -> BTreeSet<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        words(&schemas["FieldName"]["enum"]),
        words(&schemas["LookupForm"]["required"])
    );
}

#[test]
fn every_schema_parameter_header_and_answer_is_used() {
    let (text, description) = (text(), description());
    for kind in ["schemas", "parameters", "headers", "responses"] {
        for name in description["components"][kind].as_object().unwrap().keys() {
            assert!(
                text.contains(&format!("'#/components/{kind}/{name}'")),
                "{kind} {name}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_has_exactly_the_methods_that_are_described_and_only_on_its_sides() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let description = description();
    let mut paths: BTreeMap<&str, (Vec<String>, Vec<&str>)> = BTreeMap::new();
    for operation in operations(&description) {
        let known = paths.entry(operation.path).or_default();
        known.0.push(operation.method);
        known.1 = operation.sides;
    }
    let judge = Judge::new();
    for (path, (methods, sides)) in paths {
        let target = path.replace("{field}", "language");
        let mut allow: Vec<&str> = METHODS
            .into_iter()
            .filter(|method| methods.iter().any(|known| known == method))
            .collect();
        if allow.first() == Some(&"GET") {
            allow.insert(1, "HEAD");
        }
        for side in ["call", "admin"] {
            for method in METHODS {
                if STREAMS.contains(&path) && method == "GET" && sides.contains(&side) {
                    let head =
                        head_of_stream(&node, side, &format!("{path}?to=%2B14155550100")).await;
                    assert!(
                        head.starts_with("HTTP/1.1 200 ")
                            && head.contains("cache-control: no-store"),
                        "{head}"
                    );
                    continue;
                }
                let reply = asked(&node, side, method, &target, "").await;
                let told = format!("{side} {method} {path}: {reply:?}");
                if !sides.contains(&side) {
                    assert_eq!(
                        (reply.status, reply.text("/status")),
                        (404, "no_such_route".to_owned()),
                        "{told}"
                    );
                } else if methods.iter().any(|known| known == method) {
                    assert!(reply.status != 405 && reply.status != 404, "{told}");
                    judge.accepts(method, path, &reply);
                } else {
                    assert_eq!(
                        (reply.status, reply.headers.get("allow")),
                        (405, Some(&allow.join(", "))),
                        "{told}"
                    );
                    judge.accepts(&methods[0], path, &reply);
                }
            }
        }
    }
}

/// HTTP status, side, method, path, target, body.
const ASKED: &str = r#"200 call GET /v1/lookup /v1/lookup?to=%2B14155550100&zone=Z1&account_ref=A
200 call GET /v1/lookup /v1/lookup?to=%2B14155550100&format=form
400 call GET /v1/lookup /v1/lookup?to=x&format=form
400 call GET /v1/lookup /v1/lookup
404 call GET /v1/lookup /v1/lookup?to=%2B14155550101
503 call GET /v1/lookup /v1/lookup?to=%2B14155550103
403 call GET /v1/lookup /v1/lookup?to=%2B542994000003&format=form
200 call GET /v1/lookup/{field} /v1/lookup/language?to=%2B14155550100
503 call GET /v1/lookup/{field} /v1/lookup/language?to=%2B14155550103
403 call GET /v1/lookup/{field} /v1/lookup/language?to=%2B542994000003
400 call GET /v1/lookup/{field} /v1/lookup/language?to=1
404 call GET /v1/lookup/{field} /v1/lookup/nothing?to=%2B14155550100
404 call GET /v1/lookup/{field} /v1/lookup/voice?to=%2B15005550006
200 call GET /v1/resolve /v1/resolve?to=%2B14155550100&zone=Z1&event_type=door_open
200 call GET /v1/resolve /v1/resolve?to=%2B14155550100&include=credentials
200 call POST /v1/resolve /v1/resolve {"to":"+14155550100","attr":{"vip":true},"include":"credentials"}
400 call POST /v1/resolve /v1/resolve []
200 call GET /v1/credentials /v1/credentials?to=%2B14155550100
200 call GET /v1/explain /v1/explain?to=%2B14155550100&account_ref=ACME-001234&attr.vip=1
200 call GET /v1/explain /v1/explain?to=%2B14155550102
403 call GET /v1/explain /v1/explain?to=%2B542994000003
404 call GET /v1/explain /v1/explain?to=%2B14155550101
404 call GET /v1/explain /v1/explain?to=%2B15005550006
503 call GET /v1/explain /v1/explain?to=%2B14155550103
400 call GET /v1/watch /v1/watch
200 call GET /healthz /healthz
200 call GET /readyz /readyz
200 call GET /metrics /metrics
200 call GET /openapi.yaml /openapi.yaml
200 admin GET /openapi.yaml /openapi.yaml
200 admin GET / /
200 admin GET /api /api
200 admin GET /v1/admin/status /v1/admin/status
200 admin GET /v1/admin/lookup /v1/admin/lookup?to=%2B14155550100&zone=Z1
503 admin GET /v1/admin/lookup /v1/admin/lookup?to=%2B14155550103
200 admin GET /v1/admin/explain /v1/admin/explain?to=%2B14155550102
403 admin GET /v1/admin/explain /v1/admin/explain?to=%2B542994000003
200 admin POST /v1/admin/refresh /v1/admin/refresh {"number":"+14155550100","wait":true}
202 admin POST /v1/admin/refresh /v1/admin/refresh {"scope":"all"}
400 admin POST /v1/admin/refresh /v1/admin/refresh {"number":"x"}
404 admin POST /v1/admin/refresh /v1/admin/refresh {"tenant":"nobody","wait":true}
200 admin POST /v1/admin/verify /v1/admin/verify
200 admin POST /v1/admin/keys/reload /v1/admin/keys/reload
200 admin PUT /v1/admin/log /v1/admin/log {"filter":"info"}
400 admin PUT /v1/admin/log /v1/admin/log {"filter":"info=="}"#;

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_exactly_the_fields_that_are_described() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    // A number that is off, one whose row was good once, one whose row never was, and a binding that is not understood.
    db.sql(
        "insert into public.tenant_phone_numbers (id, tenant_id, e164, default_language, timezone, active) values
           (gen_random_uuid(), '6f717b5a-1a2b-4c3d-9e8f-112233445566', '+14155550101', 'es', 'UTC', false),
           (gen_random_uuid(), '6f717b5a-1a2b-4c3d-9e8f-112233445566', '+14155550102', 'es', 'UTC', true),
           (gen_random_uuid(), '6f717b5a-1a2b-4c3d-9e8f-112233445566', '+14155550103', 'es', 'Nowhere/Else', true);
         insert into public.prompt_bindings (id, prompt_id, event_type, conditions_json)
           values (gen_random_uuid(), '22222222-2222-4222-8222-222222222222', 'x', '{\"mood_override\": 1}')",
    )
    .await;
    node.until("/v1/lookup?to=%2B14155550102", |reply| reply.status == 200)
        .await;
    db.sql(
        "update public.tenant_phone_numbers set timezone = 'Nowhere' where e164 = '+14155550102'",
    )
    .await;
    node.until("/v1/explain?to=%2B14155550102", |reply| {
        reply.body.contains("\"last_good\":true")
    })
    .await;
    let judge = Judge::new();
    let mut seen = BTreeSet::new();
    for line in ASKED.lines() {
        let mut words = line.splitn(6, ' ');
        let [status, side, method, path, target] = [(); 5].map(|()| words.next().unwrap());
        let body = words.next().unwrap_or_default();
        let reply = asked(&node, side, method, target, body).await;
        assert_eq!(reply.status.to_string(), status, "{target}: {reply:?}");
        judge.accepts(method, path, &reply);
        seen.insert((method, path));
    }
    fs::remove_file(node.path("keyring.toml")).unwrap();
    let reply = asked(&node, "admin", "POST", "/v1/admin/keys/reload", "").await;
    assert_eq!(reply.status, 409);
    judge.accepts("POST", "/v1/admin/keys/reload", &reply);
    let tag = asked(&node, "call", "GET", "/openapi.yaml", "")
        .await
        .headers["etag"]
        .clone();
    for path in ["/openapi.yaml", "/v1/resolve"] {
        let request = format!(
            "GET {path}?to=%2B14155550100 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nIf-None-Match: {}\r\n\r\n",
            if path == "/v1/resolve" { "*" } else { &tag }
        );
        let stream = UnixStream::connect(node.unix()).await.unwrap();
        let reply = exchange(stream, &request).await.unwrap();
        assert_eq!(reply.status, 304);
        judge.accepts("GET", path, &reply);
    }
    let over_tcp = node.get_tcp("/v1/credentials?to=%2B14155550100").await;
    assert_eq!(over_tcp.text("/status"), "credentials_need_unix_socket");
    judge.accepts("GET", "/v1/credentials", &over_tcp);
    let all = operations(&judge.description);
    let unseen: Vec<String> = all
        .iter()
        .filter(|one| !seen.contains(&(one.method.as_str(), one.path)))
        .map(|one| format!("{} {}", one.method, one.path))
        .collect();
    assert_eq!(
        unseen,
        ["GET /v1/admin/events"],
        "a stream, told of elsewhere"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_no_copy_answers_as_described() {
    let mut node = Node::prepare(crate::node::AWAY, "");
    node.start();
    node.answering().await;
    let judge = Judge::new();
    for (path, target) in [
        ("/readyz", "/readyz"),
        ("/v1/lookup", "/v1/lookup?to=%2B14155550100"),
        ("/v1/resolve", "/v1/resolve?to=%2B14155550100&format=form"),
        ("/v1/explain", "/v1/explain?to=%2B14155550100"),
    ] {
        let reply = node.get(target).await;
        assert_eq!(reply.status, 503, "{path}");
        judge.accepts("GET", path, &reply);
    }
    let status = node.admin("GET", "/v1/admin/status", "").await;
    judge.accepts("GET", "/v1/admin/status", &status);
    until("the failure is told", async || {
        let status = node.admin("GET", "/v1/admin/status", "").await;
        judge.accepts("GET", "/v1/admin/status", &status);
        !status.json()["feed"]["last_error"].is_null()
    })
    .await;
    let verify = node.admin("POST", "/v1/admin/verify", "").await;
    assert_eq!(verify.status, 503);
    judge.accepts("POST", "/v1/admin/verify", &verify);
}

/// An event of a stream: its name, its id, its data.
fn events(stream: &str) -> Vec<Value> {
    let field = |block: &str, name: &str| {
        let mut lines = block.lines();
        lines.find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(": ")
                .map(str::to_owned)
        })
    };
    let mut found = Vec::new();
    for block in stream
        .split("\n\n")
        .filter(|block| block.starts_with("event: "))
    {
        let mut event = json!({"event": field(block, "event"), "data": field(block, "data")});
        if let Some(id) = field(block, "id") {
            event["id"] = json!(id);
        }
        found.push(event);
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_stream_have_exactly_the_fields_that_are_described() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    node.level().await;
    let mut streams = Vec::new();
    for (schema, side, target, last) in [
        (
            "WatchEvent",
            "call",
            "/v1/watch?to=%2B14155550100",
            "heartbeat",
        ),
        (
            "WatchEvent",
            "call",
            "/v1/watch?tenant=seguridad-acme-sa",
            "heartbeat",
        ),
        (
            "WatchEvent",
            "call",
            "/v1/watch?to=%2B15005550006",
            "heartbeat",
        ),
        ("WatchEvent", "call", "/v1/watch?tenant=nobody", "heartbeat"),
        ("PageEvent", "admin", "/v1/admin/events", "sample"),
    ] {
        let mut stream = UnixStream::connect(socket(&node, side)).await.unwrap();
        let request = format!("GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains(&format!("event: {last}\n")) {
            assert!(stream.read_buf(&mut text).await.unwrap() > 0, "{target}");
        }
        streams.push((schema, stream, text));
    }
    assert!(node.stop().success());
    let judge = Judge::new();
    let mut seen = BTreeSet::new();
    for (schema, mut stream, mut text) in streams {
        stream.read_to_end(&mut text).await.unwrap();
        for event in events(&String::from_utf8(text).unwrap()) {
            let faults = judge.faults(judge.schema(schema), &event);
            assert_eq!(faults, [""; 0], "{event}");
            let kinds = judge.schema(schema)["oneOf"].as_array().unwrap();
            let kind = kinds
                .iter()
                .find(|kind| judge.faults(kind, &event).is_empty())
                .unwrap();
            let data: Value = serde_json::from_str(event["data"].as_str().unwrap()).unwrap();
            let faults = judge.faults(&kind["properties"]["data"]["contentSchema"], &data);
            assert_eq!(faults, [""; 0], "{data}");
            seen.insert(event["event"].as_str().unwrap().to_owned());
        }
    }
    let all = ["end", "heartbeat", "revision", "sample", "status"];
    assert_eq!(seen, BTreeSet::from(all.map(str::to_owned)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_is_rendered_in_a_browser_by_the_node_alone() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let url = tunnel(&node).await;
    let browser = Browser::open("en").await;
    browser.go(&format!("{url}api")).await;
    let all = operations(&description()).len();
    browser
        .until(&format!(
            "document.querySelectorAll('.opblock').length === {all}"
        ))
        .await;
    browser.picture("api").await;
    browser
        .click("#operations-Calls-lookup .opblock-summary-control")
        .await;
    let lookup = "#operations-Calls-lookup";
    browser.reads(lookup, "tenant_suspended").await;
    browser.reads(lookup, "The called number as it came").await;
    browser.reads(lookup, "Salida principal AR").await;
    browser.picture("api-lookup").await;
    browser
        .until("document.querySelector('.errors-wrapper') === null")
        .await;
    // Swagger UI says so of each format that it has no widget for.
    let mut console = browser.console().await;
    console.retain(|line| !line.contains("Could not find component:"));
    assert_eq!(console, [""; 0]);
    is_at_peace(&browser, &url).await;
}

/// With everything that is different each time in one spelling.
fn masked(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if VOLATILE.contains(&name.as_str()) && !value.is_object() {
                    *value = json!("…");
                } else {
                    masked(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(masked),
        _ => {}
    }
}

/// Every example of an answer: method, path, HTTP status, media type, and the example.
fn examples(description: &Value) -> Vec<(String, String, u16, String, Value)> {
    let mut all = Vec::new();
    for operation in operations(description) {
        for (code, response) in operation.responses {
            let response = followed(description, response);
            for (media, content) in response["content"].as_object().into_iter().flatten() {
                for example in content["examples"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(_, one)| one)
                {
                    let (method, path) = (operation.method.clone(), operation.path.to_owned());
                    all.push((
                        method,
                        path,
                        code.parse().unwrap(),
                        media.clone(),
                        example.clone(),
                    ));
                }
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_answers_are_what_the_daemon_answers() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    node.level().await;
    let judge = Judge::new();
    let mut asked_for = BTreeSet::new();
    for (method, path, code, media, example) in examples(&judge.description) {
        let operation = &judge.description["paths"][&path][method.to_lowercase()];
        let response = followed(
            &judge.description,
            &operation["responses"][code.to_string()],
        );
        let schema = &response["content"][&media]["schema"];
        let summary = example["summary"].as_str().unwrap();
        assert_eq!(
            judge.faults(schema, &example["value"]),
            [""; 0],
            "{path}: {summary}"
        );
        let Some(question) = example["x-asked"].as_str() else {
            continue;
        };
        if !asked_for.insert(question.to_owned()) {
            continue;
        }
        let mut words = question.splitn(3, ' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let side = if target.starts_with("/v1/admin") {
            "admin"
        } else {
            "call"
        };
        let reply = asked(
            &node,
            side,
            method,
            target,
            words.next().unwrap_or_default(),
        )
        .await;
        assert_eq!(
            (
                reply.status,
                reply.headers["content-type"].split(';').next()
            ),
            (code, Some(media.as_str())),
            "{question}"
        );
        if media.ends_with("form-urlencoded") && code == 200 {
            let order = judge.schema("LookupForm")["required"].as_array().unwrap();
            let names = reply
                .body
                .split('&')
                .map(|pair| pair.split('=').next().unwrap());
            assert!(
                names.eq(order.iter().map(|name| name.as_str().unwrap())),
                "{question}"
            );
        }
        let (mut shown, mut told) = (example["value"].clone(), body(&reply));
        masked(&mut shown);
        masked(&mut told);
        assert_eq!(shown, told, "{question}");
    }
    assert!(asked_for.len() > 15, "{asked_for:?}");
    // What is sent in the examples is taken.
    for (path, methods) in judge.description["paths"].as_object().unwrap() {
        for operation in methods.as_object().unwrap().values() {
            for (media, content) in operation["requestBody"]["content"]
                .as_object()
                .into_iter()
                .flatten()
            {
                for example in content["examples"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(_, one)| one)
                {
                    assert_eq!(
                        judge.faults(&content["schema"], &example["value"]),
                        [""; 0],
                        "{path} {media}"
                    );
                }
            }
        }
    }
}

const TOKEN: &str = "a-token-of-these-tests-0123456789";

/// One run of schemathesis against one door.
fn schemathesis(node: &Node, name: &str, url: &str, door: Option<&Path>, more: &[&str]) {
    let script = Command::new(format!("{ROOT}/scripts/ensure-schemathesis"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(
        script.status.success(),
        "scripts/ensure-schemathesis failed"
    );
    let programs = String::from_utf8(script.stdout).unwrap();
    let mut command = Command::new(format!("{}/schemathesis", programs.trim()));
    command
        .current_dir(&node.dir)
        .args([
            "--config-file",
            &format!("{ROOT}/tests/api/schemathesis.toml"),
        ])
        .args(["run", &format!("{ROOT}/docs/openapi.yaml"), "--url", url])
        .args(more)
        .env("PYTHONPATH", format!("{ROOT}/tests/api"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("NO_COLOR", "1")
        .env_remove("SIDETONE_SOCKET")
        .env(
            "SIDETONE_TOKEN",
            if name == "admin, TCP" { TOKEN } else { "" },
        );
    if let Some(door) = door {
        command.env("SIDETONE_SOCKET", door);
    }
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{name}:\n{told}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let cases = told
        .lines()
        .find(|line| line.contains(" generated, "))
        .unwrap_or_default();
    println!("{name}: {}", cases.trim());
}

/// Takes about a minute: `make test-api`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by `make test-api`"]
async fn schemathesis_finds_nothing_wrong_on_any_door() {
    let db = Cluster::shared().database().await;
    let (port, mut node) = (free_port(), Node::prepare(&db.url(), ""));
    let token = node.path("token");
    fs::write(&token, TOKEN).unwrap();
    fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    node.configure(
        &db.url(),
        &format!(
            "[admin]\ntcp = \"127.0.0.1:{port}\"\ntoken_file = \"{}\"\n",
            token.display()
        ),
    );
    db.load_example_sealed(|row| {
        node.seal(&row.tenant, &row.provider, &row.name, crate::node::SECRET)
    })
    .await;
    node.start();
    node.synced().await;
    TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let call = ["--include-tag", "Calls", "--include-tag", "Both sides"];
    let admin = ["--include-tag", "Operators", "--include-tag", "Both sides"];
    let node = &node;
    let (unix, admin_unix) = (node.unix(), node.path("admin/admin.sock"));
    let (tcp, admin_tcp) = (
        format!("http://127.0.0.1:{}", node.tcp),
        format!("http://127.0.0.1:{port}"),
    );
    // Side by side: what takes its time is the answer to a wrong token.
    std::thread::scope(|scope| {
        scope.spawn(|| schemathesis(node, "admin, TCP", &admin_tcp, None, &admin));
        scope.spawn(|| schemathesis(node, "call, TCP", &tcp, None, &call));
        for (name, socket, tags) in [
            ("call, Unix socket", &unix, call),
            ("admin, Unix socket", &admin_unix, admin),
        ] {
            scope.spawn(move || schemathesis(node, name, "http://localhost", Some(socket), &tags));
        }
    });
    assert_eq!(node.get("/healthz").await.status, 200);
}
