//! From commit to answer, beside what Postgres alone needs for it: a NOTIFY that is received and one query.

use std::time::{Duration, Instant};

use tokio_postgres::{AsyncMessage, NoTls};

use crate::cluster::{Cluster, Options};
use crate::load::{At, Caller, Framing, Measured, Question, Target, histogram};
use crate::node::Node;
use crate::proxy::{Proxy, Weather};
use crate::report::{Section, Series, median};
use crate::world::World;
use crate::{Bench, SETTINGS};

/// Between two questions: asked without a pause, questioner and node would take the cores of a small machine from Postgres and
/// from the feed that are waited for. It is counted as the node's.
const PAUSE: Duration = Duration::from_micros(50);
/// Between node and Postgres, each way.
const DELAY: Duration = Duration::from_millis(50);

pub(crate) fn measure(bench: &Bench) -> Section {
    let cluster = Cluster::own(Options::default());
    let db = bench.runtime.block_on(cluster.database());
    bench.runtime.block_on(World::SMALL.fill(&db));
    let node = bench.node(&db, "");
    let changes = if bench.quick { 50 } else { 200 };
    let (mut ours, mut bare) = (Series::default(), Series::default());
    let e164 = World::e164(7);
    let writer = bench.runtime.block_on(db.session());
    let write = |label: &str| {
        bench.runtime.block_on(writer.sql(&format!(
            "update tenant_phone_numbers set label = '{label}' where e164 = '{e164}'"
        )));
        Instant::now()
    };
    let bare_client = Bare::start(bench, &db.url(), &e164);
    for round in 0..bench.alternations {
        let mut latency = histogram();
        for change in 0..changes {
            let label = format!("a{round}-{change}");
            let committed = write(&label);
            let took = answered(&node.unix(), &e164, &label, committed);
            latency.saturating_record(took);
        }
        ours.add(&Measured {
            per_second: f64::from(changes),
            latency,
        });
        let mut latency = histogram();
        for change in 0..changes {
            let label = format!("b{round}-{change}");
            let committed = write(&label);
            latency.saturating_record(bare_client.seen(&label, committed));
        }
        bare.add(&Measured {
            per_second: f64::from(changes),
            latency,
        });
    }
    let mut section = Section::new(
        "From the return of COMMIT to the first answer that has the change, asked for 50 µs after every other one, beside a bare client that \
         is notified and runs one query by key.",
    );
    let (p50, p99) = (ours.p50() / bare.p50(), ours.p99() / bare.p99());
    let load = "one change at a time";
    section.keep(
        load,
        vec![
            ("sidetone".to_owned(), ours),
            ("NOTIFY and one query".to_owned(), bare),
        ],
    );
    section.at_most("p50, sidetone / bare", p50, 1.5);
    section.at_most("p99, sidetone / bare", p99, 2.5);
    section.percentiles("fresh-latency", load);
    let pulls = |what: &str| {
        let name = format!(r#"sidetone_pull_duration_seconds_{what}{{cause="doorbell"}}"#);
        bench.runtime.block_on(node.metric(&name))
    };
    section.tell(&format!(
        "By the node's own count a pull takes {:.2} ms on average, from being sent to being applied.",
        pulls("sum") / pulls("count") * 1e3
    ));

    let trips = far(bench);
    section.tell(&format!(
        "With {} ms of delay each way between node and Postgres, and none between writer and Postgres, a change is answered \
         with after {trips:.2} round trips: one way for the notification, there and back for the rows.",
        DELAY.as_millis()
    ));
    section.at_most(
        "round trips from COMMIT to answer, far from Postgres",
        trips,
        1.6,
    );
    section
}

/// Round trips between a node and a far Postgres from COMMIT to answer.
fn far(bench: &Bench) -> f64 {
    let cluster = Cluster::own(Options::default().tcp());
    let db = bench.runtime.block_on(cluster.database());
    bench.runtime.block_on(World::SMALL.fill(&db));
    let proxy = bench.runtime.block_on(Proxy::before(cluster.port()));
    let mut node = Node::prepare(&proxy.url(db.name()), SETTINGS);
    node.start();
    bench.synced(&node);
    proxy.set(Weather::Delay(DELAY));
    let e164 = World::e164(7);
    let each: Vec<f64> = (0..bench.alternations * 5)
        .map(|change| {
            // Each change by itself: what the node does for the one before is over.
            std::thread::sleep(DELAY * 6);
            let label = format!("far{change}");
            bench.runtime.block_on(db.sql(&format!(
                "update tenant_phone_numbers set label = '{label}' where e164 = '{e164}'"
            )));
            let took = answered(&node.unix(), &e164, &label, Instant::now());
            took as f64 / (2.0 * DELAY.as_nanos() as f64)
        })
        .collect();
    median(&each)
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Asks until the answer has the label.
fn answered(socket: &std::path::Path, e164: &str, label: &str, committed: Instant) -> u64 {
    let bytes = format!(
        "GET /v1/lookup/label?to=%2B{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &e164[1..]
    );
    let question = Question {
        bytes: bytes.into_bytes(),
        proof: label.as_bytes().to_vec(),
    };
    let target = Target {
        at: At::Unix(socket.to_owned()),
        framing: Framing::Http,
        questions: std::sync::Arc::new(Vec::new()),
        hello: Vec::new(),
        fresh: false,
        server: None,
    };
    let mut caller = Caller::new(&target);
    loop {
        if caller.ask(&question).is_ok() {
            return nanos(committed);
        }
        std::thread::sleep(PAUSE);
        assert!(
            committed.elapsed() < Duration::from_secs(20),
            "the change never comes"
        );
    }
}

/// The least that could be done: LISTEN, and a query for each notification.
struct Bare {
    told: std::sync::mpsc::Receiver<(String, Instant)>,
}

impl Bare {
    fn start(bench: &Bench, url: &str, e164: &str) -> Self {
        let (tell, told) = std::sync::mpsc::channel();
        let e164 = e164.to_owned();
        let (client, mut connection) = bench
            .runtime
            .block_on(tokio_postgres::connect(url, NoTls))
            .expect("a connection of the bare client");
        let (ring, mut rung) = tokio::sync::mpsc::unbounded_channel();
        bench.runtime.spawn(async move {
            while let Some(Ok(message)) =
                std::future::poll_fn(|cx| connection.poll_message(cx)).await
            {
                if let AsyncMessage::Notification(_) = message {
                    let _ = ring.send(());
                }
            }
        });
        bench
            .runtime
            .block_on(client.batch_execute("listen sidetone"))
            .expect("LISTEN");
        let statement = bench
            .runtime
            .block_on(client.prepare("select label from tenant_phone_numbers where e164 = $1"))
            .expect("a statement");
        bench.runtime.spawn(async move {
            while rung.recv().await.is_some() {
                let Ok(row) = client.query_one(&statement, &[&e164]).await else {
                    return;
                };
                let _ = tell.send((row.get::<_, String>(0), Instant::now()));
            }
        });
        Self { told }
    }

    fn seen(&self, label: &str, committed: Instant) -> u64 {
        loop {
            let (seen, at) = self
                .told
                .recv_timeout(Duration::from_secs(20))
                .expect("the bare client is told");
            if seen == label {
                return u64::try_from(at.saturating_duration_since(committed).as_nanos())
                    .unwrap_or(0);
            }
        }
    }
}
