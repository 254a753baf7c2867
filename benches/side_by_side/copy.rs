//! The first copy, catching up after a long absence, starting without Postgres, and memory: at a hundred thousand and
//! at a million numbers.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Db, Options, Stop};
use crate::load::{self, Caller};
use crate::plot::{self, Axis};
use crate::report::{Section, median};
use crate::world::World;
use crate::{Bench, Node, SETTINGS, ours, resident};

/// Numbers that one commit rewrites.
const REWRITTEN: u32 = 200;

pub(crate) fn measure(bench: &Bench) -> Section {
    let mut section = Section::new(
        "20 prompts for each of 1 000 tenants. `COPY` sends the same columns of the same rows to `/dev/null`. Memory with \
         `cache.max_bytes = \"64MiB\"`: after seconds of questions about all numbers, and then while \
         labels are rewritten as fast as Postgres takes them, 200 with each commit, and 1 000 questions are asked per second.",
    );
    let worlds: &[(World, f64)] = if bench.quick {
        &[(World::USUAL, 0.5)]
    } else {
        &[(World::USUAL, 0.5), (World::LARGE, 1.0)]
    };
    let mut memory = Vec::new();
    let mut curves = Vec::new();
    for (world, start_bound) in worlds {
        let cluster = Cluster::own(Options::default());
        let db = bench.runtime.block_on(cluster.database());
        bench.runtime.block_on(world.fill(&db));
        let name = format!("{} numbers", plot::readable(f64::from(world.numbers)));
        let (mut copies, mut firsts) = (Vec::new(), Vec::new());
        let settings = format!("cache.max_bytes = \"64MiB\"\n{SETTINGS}");
        let mut kept = None;
        for _ in 0..if bench.quick { 3 } else { 5 } {
            copies.push(copy_out(&cluster, &db).as_secs_f64());
            drop(kept.take());
            let mut node = Node::prepare(&db.url(), &settings);
            let began = Instant::now();
            node.start();
            bench.synced(&node);
            firsts.push(began.elapsed().as_secs_f64());
            kept = Some(node);
        }
        let mut node = kept.expect("a node");
        let (copy, first) = (median(&copies), median(&firsts));
        section.tell(&format!(
            "{name}: COPY {copy:.2} s, first copy {first:.2} s."
        ));
        section.at_most(format!("{name}: first copy / COPY"), first / copy, 4.0);

        load::closed(
            &ours(&node, world.questions("/v1/resolve")),
            8,
            Duration::from_secs(if bench.quick { 3 } else { 10 }),
        );
        let bytes = mib(resident(node.pid()));
        section.tell(&format!("{name}: resident {bytes:.0} MiB."));
        memory.push(bytes);

        let away = world.numbers / 2;
        node.stop();
        bench.runtime.block_on(db.sql(&format!(
            "update tenant_phone_numbers set label = label || '.' where e164 < '{}'",
            World::e164(away)
        )));
        let last = World::e164(away - 1).replace('+', "%2B");
        let path = format!("/v1/lookup/label?to={last}");
        let began = Instant::now();
        node.start();
        bench.until("the node is never level", async || {
            let last = node.try_get(&path).await;
            last.is_ok_and(|reply| reply.body.ends_with('.'))
        });
        let caught_up = began.elapsed().as_secs_f64();
        let changes = plot::readable(f64::from(away));
        section.tell(&format!(
            "{name}: catching up with {changes} changes {caught_up:.2} s."
        ));
        section.at_most(
            format!("{name}: catching up with {changes} changes / first copy"),
            caught_up / first,
            1.0,
        );

        let curve = rewrite(bench, &db, &node, *world);
        section.at_most(
            format!("{name}: resident in the last third of rewriting / in the second"),
            grown(&curve),
            1.1,
        );
        section.at_most(
            format!("{name}: most MiB resident while rewriting"),
            curve.iter().map(|(_, mib)| *mib).fold(0.0, f64::max),
            200.0,
        );
        curves.push((name.clone(), curve));

        node.stop();
        cluster.stop(Stop::Immediate);
        let starts: Vec<f64> = (0..bench.alternations)
            .map(|_| start(&mut node, *world))
            .collect();
        let took = median(&starts);
        section.tell(&format!("{name}: start without Postgres {took:.3} s."));
        section.at_most(
            format!("{name}: start without Postgres, seconds"),
            took,
            *start_bound,
        );
    }
    if let [small, large] = memory[..] {
        section.at_most("resident MiB at 1 000 000 numbers", large, 200.0);
        section.at_most(
            "resident at 1 000 000 / at 100 000 numbers",
            large / small,
            1.2,
        );
    }
    let points = || curves.iter().flat_map(|(_, points)| points.iter());
    let lasted = points().map(|(x, _)| *x).fold(0.0, f64::max);
    let most = points().map(|(_, y)| *y).fold(0.0, f64::max);
    let x = Axis::linear("seconds of rewriting", lasted);
    let y = Axis::linear("MiB resident", most);
    section.plot(plot::lines(
        "copy-memory",
        "Memory while rows are rewritten",
        &x,
        &y,
        &curves,
    ));
    section
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// Rewrites labels all over and asks for all numbers: second and MiB resident, each second.
fn rewrite(bench: &Bench, db: &Db<'_>, node: &Node, world: World) -> Vec<(f64, f64)> {
    let lasts = Duration::from_secs(if bench.quick { 9 } else { 90 });
    let target = ours(node, world.questions("/v1/resolve"));
    let session = bench.runtime.block_on(db.session());
    let stop = AtomicBool::new(false);
    let mut curve = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| load::open(&target, 8, lasts, 1_000.0));
        let runtime = bench.runtime.handle().clone();
        let (stopped, session) = (&stop, &session);
        scope.spawn(move || {
            let mut round: u32 = 0;
            while !stopped.load(Ordering::Relaxed) {
                let numbers: Vec<String> = (0..REWRITTEN)
                    .map(|one| {
                        round
                            .wrapping_mul(REWRITTEN)
                            .wrapping_add(one)
                            .wrapping_mul(7919)
                    })
                    .map(|one| format!("'{}'", World::e164(one % world.numbers)))
                    .collect();
                runtime.block_on(session.sql(&format!(
                    "update tenant_phone_numbers set label = 'Línea {round}' where e164 in ({})",
                    numbers.join(", ")
                )));
                round += 1;
            }
        });
        let began = Instant::now();
        while began.elapsed() < lasts {
            std::thread::sleep(Duration::from_secs(1));
            curve.push((began.elapsed().as_secs_f64(), mib(resident(node.pid()))));
        }
        stop.store(true, Ordering::Relaxed);
    });
    curve
}

/// The median of the last third over that of the second one: at first the cache fills.
fn grown(curve: &[(f64, f64)]) -> f64 {
    let resident: Vec<f64> = curve.iter().map(|(_, mib)| *mib).collect();
    let third = resident.len() / 3;
    median(&resident[2 * third..]) / median(&resident[third..2 * third])
}

/// How long Postgres needs to send the rows.
fn copy_out(cluster: &Cluster, db: &Db<'_>) -> Duration {
    let began = Instant::now();
    for query in [
        "select id, tenant_id, e164, label, default_language, default_voice, timezone, active from tenant_phone_numbers",
        "select t.*, s.* from tenants t join tenant_settings s on s.tenant_id = t.id",
        "select p.*, v.* from prompts p join prompt_versions v on v.prompt_id = p.id",
    ] {
        let status = Command::new("psql")
            .args(["-q", "-d", &cluster.url("postgres", db.name()), "-c"])
            .arg(format!("copy ({query}) to stdout"))
            .stdout(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "psql copies");
    }
    began.elapsed()
}

/// From exec to the first right answer.
fn start(node: &mut Node, world: World) -> f64 {
    let questions = world.questions("/v1/resolve");
    let began = Instant::now();
    node.start();
    let target = ours(node, Vec::new());
    let question = &questions[questions.len() / 2];
    while Caller::new(&target).ask(question).is_err() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "the node never answers"
        );
        std::thread::sleep(Duration::from_micros(500));
    }
    let took = began.elapsed().as_secs_f64();
    node.kill();
    took
}
