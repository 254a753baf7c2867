//! What a caller notices of whatever else the node does: the p99 of a moderate, steady load, with and without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Db, Options, Stop};
use crate::load::{self, Target};
use crate::node::Node;
use crate::plot;
use crate::report::{Section, Series, median};
use crate::world::World;
use crate::{Bench, ours};

/// Questions per second, a telephony node's busy hour many times over and far from saturation.
const RATE: f64 = 2_000.0;
const CALLERS: usize = 8;

pub(crate) fn measure(bench: &Bench) -> Section {
    let (world, more) = (bench.usual(), bench.large());
    let cluster = Cluster::own(Options::default());
    let db = bench.runtime.block_on(cluster.database());
    bench.runtime.block_on(world.fill(&db));
    let node = bench.node(&db, "");
    let target = ours(&node, world.questions("/v1/lookup"));
    load::warm(&target);
    let mut section = Section::new(
        "The p99 of 2 000 questions per second on 8 connections (open loop), with and without something else going on. \
         Load client, Postgres and node share the machine, so that what the others take from the cores is in the figures too.",
    );

    let mut rates = Vec::new();
    beside(
        bench,
        &mut section,
        "1 000 changes per second arrive",
        (&node, &target),
        || Writer::start(bench, &db, world),
        |writer| rates.push(writer.stop()),
    );
    section.tell(&format!(
        "Changes that were committed, each by itself: {:.0} per second.",
        median(&rates)
    ));

    let mut round = 0;
    beside(
        bench,
        &mut section,
        &format!(
            "{} changed numbers are taken in",
            plot::readable(f64::from(world.numbers))
        ),
        (&node, &target),
        || {
            round += 1;
            bench.runtime.block_on(async {
                let session = db.session().await;
                let sql = format!("update tenant_phone_numbers set label = 'Línea {round}'");
                session.sql(&sql).await;
            });
        },
        drop,
    );

    beside(
        bench,
        &mut section,
        "Postgres is down",
        (&node, &target),
        || cluster.stop(Stop::Immediate),
        |()| cluster.start(),
    );

    // One machine, the worst of both.
    let other = Cluster::own(Options::default());
    let large = bench.runtime.block_on(other.database());
    bench.runtime.block_on(more.fill(&large));
    beside(
        bench,
        &mut section,
        &format!(
            "another node on this machine makes its first copy of {} numbers",
            plot::readable(f64::from(more.numbers))
        ),
        (&node, &target),
        || {
            let mut node = Node::prepare(&large.url(), crate::SETTINGS);
            node.start();
            node
        },
        drop,
    );
    section.bars(
        "calm-p99",
        "99th percentile, alone and beside",
        "µs",
        Series::p99,
    );
    section
}

/// Alternates between nothing and something, which begins before its measurement and ends after it.
pub(crate) fn beside<T>(
    bench: &Bench,
    section: &mut Section,
    what: &str,
    (node, target): (&Node, &Target),
    mut begin: impl FnMut() -> T,
    mut end: impl FnMut(T),
) {
    let (mut alone, mut beside) = (Series::default(), Series::default());
    let lasts = bench.lasts * 2;
    for _ in 0..bench.alternations {
        bench.runtime.block_on(node.level());
        alone.add(&load::open(target, CALLERS, lasts, RATE));
        let going_on = begin();
        beside.add(&load::open(target, CALLERS, lasts, RATE));
        end(going_on);
    }
    let ratio = beside.p99() / alone.p99();
    section.keep(
        what,
        vec![
            ("nothing else".to_owned(), alone),
            ("meanwhile".to_owned(), beside),
        ],
    );
    section.at_most(format!("p99 while {what} / p99 alone"), ratio, 1.5);
}

/// Commits a thousand changes per second until stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<f64>,
}

impl Writer {
    fn start(bench: &Bench, db: &Db<'_>, world: World) -> Self {
        let session = bench.runtime.block_on(db.session());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let runtime = bench.runtime.handle().clone();
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let mut written: u32 = 0;
            while !stopped.load(Ordering::Relaxed) {
                let due = began + Duration::from_millis(1) * written;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let number = World::e164(written.wrapping_mul(7919) % world.numbers);
                runtime.block_on(session.sql(&format!(
                    "update tenant_phone_numbers set label = 'Línea ' || txid_current() where e164 = '{number}'"
                )));
                written += 1;
            }
            f64::from(written) / began.elapsed().as_secs_f64()
        });
        Self { stop, thread }
    }

    /// Changes per second that were committed.
    fn stop(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer failed")
    }
}
