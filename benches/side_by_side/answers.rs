//! Answers of one of many numbers at random, on kept connections and on a new one for each.

use std::path::Path;
use std::sync::Arc;

use crate::Bench;
use crate::cluster::{self, Cluster, Options, scratch};
use crate::load::{self, At, Framing, Question, Target};
use crate::peers::{Join, Peer};
use crate::report::{Section, Series};
use crate::world::{PROMPTS, World};

/// A request with the same head as a question's.
fn get(path: &str, proof: &str) -> Vec<Question> {
    let bytes = format!("GET {path}?to=%2B541100000000 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    vec![Question {
        bytes: bytes.into_bytes(),
        proof: proof.as_bytes().to_vec(),
    }]
}

pub(crate) fn measure(bench: &Bench) -> Section {
    let world = World::USUAL;
    let cluster = Cluster::own(Options::default());
    let db = bench.runtime.block_on(cluster.database());
    bench.runtime.block_on(world.fill(&db));
    let node = bench.node(&db, "");
    let to = World::e164(0).replace('+', "%2B");
    let body = |route: &str| {
        bench
            .runtime
            .block_on(node.get(&format!("{route}?to={to}")))
            .body
    };
    let dir = scratch("peers");
    let tcp_port = cluster::free_port();
    let mut section = Section::new(
        "One of 100 000 numbers at random over a Unix socket; what Redis and nginx hold has as many bytes as sidetone's \
         answer. The echo reads a request of the same length and writes an answer of the same length without a look at \
         either: the limit. Postgres answers `/v1/resolve`'s question by one prepared join, its answer as JSON.",
    );
    let postmaster = std::fs::read_to_string(cluster.data().join("postmaster.pid"));
    let postmaster: u32 = postmaster
        .expect("the server runs")
        .lines()
        .next()
        .and_then(|line| line.parse().ok())
        .expect("the server's process id");
    for route in ["/v1/resolve", "/v1/lookup"] {
        let body = body(route);
        let dir = dir.join(&route[4..]);
        std::fs::create_dir_all(&dir).expect("a directory for peers");
        let unix = |path: &Path| At::Unix(path.to_owned());
        let target = |pid: u32, at: At, framing, questions: Vec<Question>| Target {
            at,
            framing,
            questions: Arc::new(questions),
            hello: Vec::new(),
            fresh: false,
            server: Some(pid),
        };
        let ours = world.questions(route);
        let first = ours.first().expect("a number");
        let echo = Peer::echo(&dir, first.bytes.len(), body.len() + 150);
        let nginx = Peer::nginx(&dir, tcp_port, &body);
        let answers = (0..world.numbers).map(|number| {
            let e164 = World::e164(number);
            let answer = body.replace(&World::e164(0), &e164);
            (e164, answer)
        });
        let redis = Peer::redis(&dir, answers);
        let proof = World::e164(0);
        let redis_asks = (0..world.numbers).map(|number| {
            let e164 = World::e164(number);
            let bytes = format!("*2\r\n$3\r\nGET\r\n${}\r\n{e164}\r\n", e164.len()).into_bytes();
            Question {
                bytes,
                proof: e164.into_bytes(),
            }
        });
        let mut kept = vec![
            ("echo", echo.echoed(first, body.len() + 150)),
            (
                "sidetone",
                target(node.pid(), unix(&node.unix()), Framing::Http, ours.clone()),
            ),
            (
                "sidetone /healthz",
                target(
                    node.pid(),
                    unix(&node.unix()),
                    Framing::Http,
                    get("/healthz", "ok"),
                ),
            ),
            (
                "nginx return",
                target(
                    nginx.pid(),
                    unix(&nginx.socket),
                    Framing::Http,
                    get("/text", &proof),
                ),
            ),
            (
                "nginx file",
                target(
                    nginx.pid(),
                    unix(&nginx.socket),
                    Framing::Http,
                    get("/file", &proof),
                ),
            ),
            (
                "redis GET",
                target(
                    redis.pid(),
                    unix(&redis.socket),
                    Framing::Redis,
                    redis_asks.collect(),
                ),
            ),
        ];
        // What is measured is memory; what the first question to a number costs stands in the part on growth.
        load::warm(&target(
            node.pid(),
            unix(&node.unix()),
            Framing::Http,
            ours.clone(),
        ));
        if route == "/v1/resolve" {
            let socket = format!(".s.PGSQL.{}", cluster.port());
            let asks = (0..world.numbers).map(|number| Join::question(&World::e164(number)));
            let join = Target {
                hello: Join::prepared("sidetone", db.name()).hello,
                ..target(
                    postmaster,
                    unix(&cluster.socket_dir().join(socket)),
                    Framing::Postgres,
                    asks.collect(),
                )
            };
            let row = bench.runtime.block_on(db.query_one(Join::SQL, &[&proof]));
            let joined: String = row.get(0);
            let prompts = |answer: &str| {
                let answer: serde_json::Value = serde_json::from_str(answer).expect("JSON");
                answer["prompt"]["layers"].as_array().map(Vec::len)
            };
            assert_eq!(prompts(&joined), prompts(&body), "{joined}");
            section.tell(&format!(
                "For `/v1/resolve`, sidetone's answer has {} bytes and that of Postgres {}, both with {PROMPTS} prompts.",
                body.len(),
                joined.len()
            ));
            kept.push(("Postgres join", join));
        }
        for callers in [8, 64] {
            if callers > 8 {
                kept.retain(|(name, _)| *name != "Postgres join");
            }
            let load = format!("{route}, {} bytes, {callers} kept connections", body.len());
            bench.alternate(&mut section, &load, callers, &kept);
            if callers == 8 {
                section.percentiles(&format!("answers-{}", &route[4..]), &load);
            }
            let of = |name| section.series(&load, name);
            let (us, nginx, redis, echo) = (
                of("sidetone"),
                of("nginx return"),
                of("redis GET"),
                of("echo"),
            );
            let name = |peer: &str| {
                format!("{route}, {callers} connections: throughput, sidetone / {peer}")
            };
            section.at_least(name("nginx"), us.per_second() / nginx.per_second(), 1.2);
            section.at_least(name("Redis"), us.per_second() / redis.per_second(), 1.6);
            section.at_least(name("echo"), us.per_second() / echo.per_second(), 0.7);
            let name =
                |peer: &str| format!("{route}, {callers} connections: p99, sidetone / {peer}");
            section.at_most(name("nginx"), us.p99() / nginx.p99(), 1.0);
            section.at_most(name("Redis"), us.p99() / redis.p99(), 1.0);
        }
        let fresh = |pid: u32, at: At, questions| Target {
            fresh: true,
            ..target(pid, at, Framing::Http, questions)
        };
        let tcp = |port: u16| At::Tcp(([127, 0, 0, 1], port).into());
        for (kind, servers) in [
            (
                "Unix",
                [
                    (
                        "sidetone",
                        fresh(node.pid(), unix(&node.unix()), ours.clone()),
                    ),
                    (
                        "nginx return",
                        fresh(nginx.pid(), unix(&nginx.socket), get("/text", &proof)),
                    ),
                ],
            ),
            (
                "TCP",
                [
                    ("sidetone", fresh(node.pid(), tcp(node.tcp), ours.clone())),
                    (
                        "nginx return",
                        fresh(nginx.pid(), tcp(tcp_port), get("/text", &proof)),
                    ),
                ],
            ),
        ] {
            let load = format!("{route}, a new {kind} connection for each request, 8 at once");
            bench.alternate(&mut section, &load, 8, &servers);
            let of = |name| section.series(&load, name);
            section.at_least(
                format!("{route}, a new {kind} connection each: throughput, sidetone / nginx"),
                of("sidetone").per_second() / of("nginx return").per_second(),
                1.0,
            );
        }
    }
    section.bars(
        "answers-throughput",
        "Throughput",
        "answers/s",
        Series::per_second,
    );
    section.bars("answers-p99", "99th percentile", "µs", Series::p99);
    section
}
