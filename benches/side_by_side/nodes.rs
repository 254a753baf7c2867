//! What many nodes on one Postgres cost its writers, beside as many connections that listen and do nothing, and how often a
//! node pulls.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Db, Options, Session};
use crate::plot;
use crate::report::{Section, median};
use crate::world::World;
use crate::{Bench, Node, SETTINGS};

/// Commits of a burst, one after the other as fast as Postgres takes them.
const BURST: u32 = 100;
/// A node that has not pulled for this long has nothing left to pull for.
const QUIET: Duration = Duration::from_millis(50);

/// Who follows a Postgres, and how many of them.
#[derive(Debug, Clone, Copy)]
enum Followers {
    Nodes(usize),
    Listeners(usize),
}

/// A Postgres with its writer and those who follow it.
struct Fleet {
    nodes: Vec<Node>,
    /// Connections that listen, and nothing else: what Postgres itself does for whoever wants to hear.
    listeners: Vec<Session>,
    writer: Session,
    /// Seconds of each COMMIT.
    commits: Vec<f64>,
    /// Pulls of each node for one transaction, and for a burst of them.
    for_one: Vec<f64>,
    for_burst: Vec<f64>,
    changes: u32,
}

pub(crate) fn measure(bench: &Bench) -> Section {
    let counts: &[usize] = if bench.quick { &[1, 10] } else { &[1, 10, 100] };
    let mut section = Section::new(&format!(
        "Clusters with so many nodes each, written to in turn. A COMMIT changes one number, each by itself; then how often a node \
         pulls because the doorbell rang: for one transaction of {BURST} changes, and for {BURST} transactions one after the other. \
         Beside each, a cluster with as many connections that listen and do nothing when they hear: what Postgres itself and the \
         machine take for telling them.",
    ));
    let followers = counts
        .iter()
        .flat_map(|count| [Followers::Nodes(*count), Followers::Listeners(*count)]);
    let followers: Vec<Followers> = followers.collect();
    let clusters: Vec<Cluster> = followers
        .iter()
        .map(|_| Cluster::own(Options::default()))
        .collect();
    let databases: Vec<Db<'_>> = clusters
        .iter()
        .map(|cluster| {
            let db = bench.runtime.block_on(cluster.database());
            bench.runtime.block_on(World::SMALL.fill(&db));
            db
        })
        .collect();
    let mut fleets: Vec<Fleet> = followers
        .iter()
        .zip(&databases)
        .map(|(followers, db)| Fleet::start(bench, db, *followers))
        .collect();
    for _ in 0..bench.alternations {
        for fleet in &mut fleets {
            fleet.commit(bench, 20);
            if fleet.nodes.is_empty() {
                continue;
            }
            let pulls = fleet.pulls(bench, Fleet::transaction);
            fleet.for_one.push(pulls);
            let pulls = fleet.pulls(bench, Fleet::burst);
            fleet.for_burst.push(pulls);
        }
    }
    let mut rows = "| nodes | median COMMIT ms | with as many that only listen | pulls per node, one transaction | pulls per node, burst |\n\
                    |--:|--:|--:|--:|--:|"
        .to_owned();
    let (mut alone, mut alone_listening) = (f64::NAN, f64::NAN);
    for (count, pair) in counts.iter().zip(fleets.chunks(2)) {
        let [fleet, listeners] = pair else { continue };
        let (commit, listening) = (median(&fleet.commits), median(&listeners.commits));
        let values = [
            commit * 1e3,
            listening * 1e3,
            median(&fleet.for_one),
            median(&fleet.for_burst),
        ];
        let [ms, listening_ms, one, burst] = values.map(plot::readable);
        rows += &format!("\n| {count} | {ms} | {listening_ms} | {one} | {burst} |");
        if *count == 1 {
            (alone, alone_listening) = (commit, listening);
            continue;
        }
        section.at_most(
            format!("median COMMIT of a writer, {count} nodes / 1 node"),
            commit / alone,
            1.05,
        );
        section.tell(&format!(
            "With {count} connections that only listen, a COMMIT takes {} times what it takes with one.",
            plot::readable(listening / alone_listening)
        ));
        section.at_most(
            format!("pulls per node for one transaction, {count} nodes"),
            median(&fleet.for_one),
            1.0,
        );
        section.at_most(
            format!("pulls per node and commit in a burst of {BURST} commits, {count} nodes"),
            median(&fleet.for_burst) / f64::from(BURST),
            1.0,
        );
    }
    section.tell(&rows);
    section
}

impl Fleet {
    fn start(bench: &Bench, db: &Db<'_>, followers: Followers) -> Self {
        let (nodes, listeners) = match followers {
            Followers::Nodes(count) => (count, 0),
            Followers::Listeners(count) => (0, count),
        };
        let listeners = (0..listeners).map(|_| {
            bench.runtime.block_on(async {
                let session = db.as_sidetone().await;
                session.sql("listen sidetone").await;
                session
            })
        });
        let listeners = listeners.collect();
        let nodes: Vec<Node> = (0..nodes)
            .map(|_| {
                let mut node = Node::prepare(&db.url(), SETTINGS);
                node.start();
                node
            })
            .collect();
        for node in &nodes {
            bench.synced(node);
        }
        Self {
            nodes,
            listeners,
            writer: bench.runtime.block_on(db.session()),
            commits: Vec::new(),
            for_one: Vec::new(),
            for_burst: Vec::new(),
            changes: 0,
        }
    }

    /// A statement that changes one number, another one each time.
    fn change(&mut self) -> String {
        self.changes += 1;
        let number = World::e164(self.changes % World::SMALL.numbers);
        let label = self.changes;
        format!("update tenant_phone_numbers set label = 'c{label}' where e164 = '{number}'")
    }

    fn commit(&mut self, bench: &Bench, times: u32) {
        for _ in 0..times {
            let sql = self.change();
            let began = Instant::now();
            bench.runtime.block_on(self.writer.sql(&sql));
            self.commits.push(began.elapsed().as_secs_f64());
            // What the nodes do for it is over before the next one.
            self.settled(bench);
        }
    }

    fn transaction(&mut self, bench: &Bench) {
        // Statements sent together are one transaction.
        let all: Vec<String> = (0..BURST).map(|_| self.change()).collect();
        bench.runtime.block_on(self.writer.sql(&all.join("; ")));
    }

    fn burst(&mut self, bench: &Bench) {
        for _ in 0..BURST {
            let sql = self.change();
            bench.runtime.block_on(self.writer.sql(&sql));
        }
    }

    /// Pulls of a node that the doorbell caused while this was done.
    fn pulls(&mut self, bench: &Bench, work: impl FnOnce(&mut Self, &Bench)) -> f64 {
        let before = self.doorbells(bench);
        work(self, bench);
        self.settled(bench);
        (self.doorbells(bench) - before) / self.nodes.len() as f64
    }

    /// Pulls of all nodes so far, once they have become no more for a while.
    fn doorbells(&self, bench: &Bench) -> f64 {
        let name = r#"sidetone_pulls_total{cause="doorbell"}"#;
        let count = || {
            let each = self
                .nodes
                .iter()
                .map(|node| bench.runtime.block_on(node.metric(name)));
            each.sum::<f64>()
        };
        let mut last = count();
        loop {
            std::thread::sleep(QUIET);
            let now = count();
            if now == last {
                return now;
            }
            last = now;
        }
    }

    /// Waits until every node answers with the last change, and everybody else has heard of it.
    fn settled(&self, bench: &Bench) {
        for listener in &self.listeners {
            let heard = bench.runtime.block_on(listener.notifications());
            assert_eq!(heard.len(), 1, "a commit rings once");
        }
        let digits = World::e164(self.changes % World::SMALL.numbers).replace('+', "%2B");
        let (path, label) = (
            format!("/v1/lookup/label?to={digits}"),
            format!("c{}", self.changes),
        );
        for node in &self.nodes {
            bench.until("a node never has the last change", async || {
                node.try_get(&path)
                    .await
                    .is_ok_and(|reply| reply.body == label)
            });
        }
    }
}
