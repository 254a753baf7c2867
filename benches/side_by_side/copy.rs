//! The first copy, catching up after a long absence, starting without Postgres, and memory: at a hundred thousand and
//! at a million numbers.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Db, Options, Stop};
use crate::load::{self, Caller};
use crate::report::{Section, median};
use crate::world::World;
use crate::{Bench, Node, SETTINGS, ours, resident};

pub(crate) fn measure(bench: &Bench) -> Section {
    let mut section = Section::new(
        "First copy, start and memory",
        "20 prompts for each of 1 000 tenants. `COPY` sends the same columns of the same rows to `/dev/null`. Memory with \
         `cache.max_bytes = \"64MiB\"` after every number was asked once.",
    );
    let worlds: &[(World, f64)] = if bench.quick {
        &[(World::USUAL, 0.5)]
    } else {
        &[(World::USUAL, 0.5), (World::LARGE, 1.0)]
    };
    let mut memory = Vec::new();
    for (world, start_bound) in worlds {
        let cluster = Cluster::own(Options::default());
        let db = bench.runtime.block_on(cluster.database());
        bench.runtime.block_on(world.fill(&db));
        let name = format!("{} numbers", world.numbers);
        let copy = median(&[0; 3].map(|_| copy_out(&cluster, &db).as_secs_f64()));
        let mut node = Node::prepare(
            &db.url(),
            &format!("cache.max_bytes = \"64MiB\"\n{SETTINGS}"),
        );
        let began = Instant::now();
        node.start();
        bench.synced(&node);
        let first = began.elapsed().as_secs_f64();
        section.text += &format!("\n\n{name}: COPY {copy:.2} s, first copy {first:.2} s");
        section.at_most(format!("{name}: first copy / COPY"), first / copy, 4.0);

        load::closed(
            &ours(&node, world.questions("/v1/resolve")),
            8,
            Duration::from_secs(10),
        );
        let bytes = resident(node.pid()) / f64::from(1 << 20);
        section.text += &format!(", resident {bytes:.0} MiB");
        memory.push(bytes);

        if world.numbers == World::LARGE.numbers {
            node.stop();
            bench.runtime.block_on(db.sql(
                "update tenant_phone_numbers set label = label || '.' where e164 < '+541100500000'",
            ));
            let began = Instant::now();
            node.start();
            bench.until("the node is never level", async || {
                let last = node.try_get("/v1/lookup/label?to=%2B541100499999").await;
                last.is_ok_and(|reply| reply.body.ends_with('.'))
            });
            let caught_up = began.elapsed().as_secs_f64();
            section.text += &format!(", catching up with 500 000 changes {caught_up:.2} s");
            section.at_most(
                "catching up with 500 000 changes / first copy",
                caught_up / first,
                1.0,
            );
        }

        node.stop();
        cluster.stop(Stop::Immediate);
        let starts: Vec<f64> = (0..bench.alternations)
            .map(|_| start(&mut node, *world))
            .collect();
        let took = median(&starts);
        section.text += &format!(", start without Postgres {took:.3} s");
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
    section
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
