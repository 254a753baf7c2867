//! What a caller notices of whatever else the node does: the p99 of a moderate, steady load, with and without it.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Db, Options, Stop};
use crate::load::{self, Target};
use crate::report::{Section, Series};
use crate::world::World;
use crate::{Bench, ours};

/// Questions per second, a telephony node's busy hour many times over and far from saturation.
const RATE: f64 = 2_000.0;
const CALLERS: usize = 8;

pub(crate) fn measure(bench: &Bench) -> Section {
    let world = if bench.quick {
        World::USUAL
    } else {
        World::LARGE
    };
    let cluster = Cluster::own(Options::default());
    let db = bench.runtime.block_on(cluster.database());
    bench.runtime.block_on(World::USUAL.fill(&db));
    let node = bench.node(&db, "");
    let target = ours(&node, World::USUAL.questions("/v1/lookup"));
    let mut section = Section::new(
        "Calm",
        "The p99 of 2 000 questions per second on 8 connections (open loop), with and without something else going on. \
         Load client, Postgres and node share the machine.",
    );

    section = beside(bench, section, "1 000 changes per second", &target, || {
        Writer::start(bench, &db)
    });
    let away = || {
        cluster.stop(Stop::Immediate);
        Away(&cluster)
    };
    section = beside(bench, section, "Postgres is down", &target, away);

    // A second node copies everything while the first one answers: one machine, the worst of both.
    let other = Cluster::own(Options::default());
    let large = bench.runtime.block_on(other.database());
    bench.runtime.block_on(world.fill(&large));
    let copying = || {
        let mut node = crate::Node::prepare(&large.url(), crate::SETTINGS);
        node.start();
        node
    };
    beside(
        bench,
        section,
        "a first copy by another node on this machine",
        &target,
        copying,
    )
}

/// Alternates between nothing and something.
fn beside<T>(
    bench: &Bench,
    mut section: Section,
    what: &str,
    target: &Target,
    mut begin: impl FnMut() -> T,
) -> Section {
    let (mut alone, mut beside) = (Series::default(), Series::default());
    let lasts = bench.lasts.max(Duration::from_secs(2));
    for _ in 0..bench.alternations {
        alone.add(&load::open(target, CALLERS, lasts, RATE));
        let going_on = begin();
        beside.add(&load::open(target, CALLERS, lasts, RATE));
        drop(going_on);
    }
    let ratio = beside.p99() / alone.p99();
    section.keep(
        what,
        vec![
            ("nothing else".to_owned(), alone),
            (what.to_owned(), beside),
        ],
    );
    section.at_most(format!("p99 while {what} / p99 alone"), ratio, 1.5);
    section
}

/// Starts Postgres again.
struct Away<'a>(&'a Cluster);

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.0.start();
    }
}

/// Commits a thousand changes per second until dropped.
struct Writer(
    Option<(
        tokio::sync::oneshot::Sender<()>,
        std::thread::JoinHandle<()>,
    )>,
);

impl Writer {
    fn start(bench: &Bench, db: &Db<'_>) -> Self {
        let session = bench.runtime.block_on(db.session());
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let runtime = bench.runtime.handle().clone();
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let mut written: u32 = 0;
            while stopped.try_recv().is_err() {
                let due = began + Duration::from_millis(1) * written;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let number = World::e164(written * 7919 % World::USUAL.numbers);
                runtime.block_on(session.sql(&format!(
                    "update tenant_phone_numbers set label = 'Línea {written}' where e164 = '{number}'"
                )));
                written += 1;
            }
        });
        Self(Some((stop, thread)))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}
