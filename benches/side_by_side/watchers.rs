//! What a caller notices of a thousand connections that watch numbers.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::calm::{Scene, beside};
use crate::cluster::{Cluster, Options};
use crate::node::Node;
use crate::report::{Section, Series};
use crate::world::World;
use crate::{Bench, ours};

const WATCHERS: u32 = 1_000;
/// Longest head of an answer.
const MOST_HEAD: usize = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn measure(bench: &Bench) -> Section {
    let cluster = Cluster::own(Options::default());
    let db = bench.runtime.block_on(cluster.database());
    bench.runtime.block_on(bench.usual().fill(&db));
    let node = bench.node(&db, "http.max_connections = 4096\n");
    let scene = Scene::new(&node, ours(&node, bench.usual().questions("/v1/lookup")));
    let mut section = Section::new(
        "The load of the part before, with and without 1 000 connections that watch a number each (`GET /v1/watch`). Every one has \
         to have the status 200 before the measurement, and to stand after it.",
    );
    beside(
        bench,
        &mut section,
        "1 000 watchers are connected",
        &scene,
        || Watchers::connect(bench, &node),
        |watchers| watchers.end(bench, &node),
    );
    section.bars(
        "watchers-p99",
        "99th percentile, alone and beside",
        "µs",
        Series::p99,
    );
    section
}

/// Connections whose answers do not end.
struct Watchers {
    tasks: JoinSet<String>,
}

impl Watchers {
    fn connect(bench: &Bench, node: &Node) -> Self {
        let mut tasks = JoinSet::new();
        bench.runtime.block_on(async {
            for number in 0..WATCHERS {
                let begun = tokio::time::timeout(PATIENCE, begin(node, number));
                let stream = match begun.await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(err)) => panic!("watcher {number}: {err}"),
                    Err(_) => panic!("watcher {number}: no answer"),
                };
                tasks.spawn(watch(number, stream));
            }
        });
        Self { tasks }
    }

    /// Fails where one of them ended before. Waits until the node knows that they are gone.
    fn end(mut self, bench: &Bench, node: &Node) {
        if let Some(ended) = self.tasks.try_join_next() {
            panic!("{}", ended.expect("a watcher's task"));
        }
        bench.runtime.block_on(self.tasks.shutdown());
        bench.until("the node keeps watchers that are gone", async || {
            node.metric("sidetone_watchers").await == 0.0
        });
    }
}

/// Asks, and reads the head of the answer.
async fn begin(node: &Node, number: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(node.unix()).await?;
    let to = World::e164(number).replace('+', "%2B");
    let request = format!(
        "GET /v1/watch?to={to} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while memchr::memmem::find(&head, b"\r\n\r\n").is_none() {
        if stream.read_buf(&mut head).await? == 0 || head.len() > MOST_HEAD {
            break;
        }
    }
    let text = String::from_utf8_lossy(&head);
    let events = text
        .to_ascii_lowercase()
        .contains("content-type: text/event-stream");
    if !text.starts_with("HTTP/1.1 200") || !events {
        return Err(io::Error::other(format!("no stream of events: {text}")));
    }
    Ok(stream)
}

/// Reads what comes, for as long as it comes; why it came no longer.
async fn watch(number: u32, mut stream: UnixStream) -> String {
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece).await {
            Ok(0) => return format!("watcher {number}: the node ended the answer"),
            Ok(_) => {}
            Err(err) => return format!("watcher {number}: {err}"),
        }
    }
}
