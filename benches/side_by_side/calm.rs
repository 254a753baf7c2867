//! What a caller notices of whatever else the node does: the p99 of a moderate, steady load, with and without it, and
//! what the same load notices of it at the same time that asks the echo, which has nothing to do with the node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Db, Options, Stop, scratch};
use crate::load::{self, Target};
use crate::node::Node;
use crate::peers::Peer;
use crate::plot;
use crate::report::{Section, Series, median};
use crate::world::World;
use crate::{Bench, ours};

/// Questions per second, a telephony node's busy hour many times over and far from saturation.
const RATE: f64 = 2_000.0;
const CALLERS: usize = 8;
/// Bytes of the echo's answer: about as many as a number's.
const ANSWER: usize = 1_400;

pub(crate) fn measure(bench: &Bench) -> Section {
    let (world, more) = (bench.usual(), bench.large());
    let cluster = Cluster::own(Options::default());
    let db = bench.runtime.block_on(cluster.database());
    bench.runtime.block_on(world.fill(&db));
    let node = bench.node(&db, "");
    let scene = Scene::new(&node, ours(&node, world.questions("/v1/lookup")));
    let mut section = Section::new(
        "The p99 of 2 000 questions per second on 8 connections (open loop), with and without something else going on. \
         Load clients, Postgres and node share the machine, so that what the others take from the cores is in the figures too. \
         How much that is the echo tells, a process by itself that is asked as often, on 8 connections of its own, at the same time: \
         what it suffers, whoever answers on this machine suffers then.",
    );

    let mut rates = Vec::new();
    beside(
        bench,
        &mut section,
        "1 000 changes per second arrive",
        &scene,
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
        &scene,
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
        &scene,
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
        &scene,
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

/// A node that is asked, and an echo of its answers.
pub(crate) struct Scene<'n> {
    node: &'n Node,
    target: Target,
    limit: Target,
    _echo: Peer,
}

impl<'n> Scene<'n> {
    /// With every number in memory.
    pub(crate) fn new(node: &'n Node, target: Target) -> Self {
        load::warm(&target);
        let first = target.questions.first().expect("a number");
        let echo = Peer::echo(&scratch("echo"), first.bytes.len(), ANSWER);
        Self {
            node,
            limit: echo.echoed(first, ANSWER),
            target,
            _echo: echo,
        }
    }
}

/// Alternates between nothing and something, which begins before its measurement and ends after it.
pub(crate) fn beside<T>(
    bench: &Bench,
    section: &mut Section,
    what: &str,
    scene: &Scene<'_>,
    mut begin: impl FnMut() -> T,
    mut end: impl FnMut(T),
) {
    let mut series: [Series; 4] = Default::default();
    let ask = |series: &mut [Series]| {
        let targets = [&scene.target, &scene.limit];
        let both = load::open_both(targets, CALLERS, bench.lasts * 2, RATE);
        for (series, measured) in series.iter_mut().zip(&both) {
            series.add(measured);
        }
    };
    for _ in 0..bench.alternations {
        bench.runtime.block_on(scene.node.level());
        ask(&mut series[..2]);
        let going_on = begin();
        ask(&mut series[2..]);
        end(going_on);
    }
    let [alone, limit_alone, beside, limit] = &series;
    let (ours, machine) = (beside.p99() / alone.p99(), limit.p99() / limit_alone.p99());
    section.tell(&format!(
        "While {what}, the p99 of the echo is {} times that alone; that of sidetone is {} times that of the echo.",
        plot::readable(machine),
        plot::readable(beside.p99() / limit.p99()),
    ));
    let names = [
        "sidetone, nothing else",
        "echo, nothing else",
        "sidetone, meanwhile",
        "echo, meanwhile",
    ];
    let named = names.map(str::to_owned).into_iter().zip(series.clone());
    section.keep(what, named.collect());
    section.at_most(format!("p99 while {what} / p99 alone"), ours, 1.5);
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
