//! What a node costs that is asked nothing, and what many nodes cost Postgres.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Db, Options};
use crate::report::{Section, median};
use crate::world::World;
use crate::{Bench, cpu_seconds};

pub(crate) fn measure(bench: &Bench) -> Section {
    let mut section = Section::new("At rest, and many nodes", "");
    let cluster = Cluster::own(Options::default());
    let db = bench.runtime.block_on(cluster.database());
    bench.runtime.block_on(World::USUAL.fill(&db));
    let node = bench.node(&db, "");
    bench.runtime.block_on(node.level());
    let lasts = Duration::from_secs(if bench.quick { 10 } else { 60 });
    let (began, before) = (Instant::now(), cpu_seconds(node.pid()));
    std::thread::sleep(lasts);
    let share = (cpu_seconds(node.pid()) - before) / began.elapsed().as_secs_f64();
    section.at_most("share of a core, asked nothing", share * 100.0, 0.5);
    let backends: i64 = bench
        .runtime
        .block_on(db.value("select count(*) from pg_stat_activity where usename = 'sidetone'"));
    section.at_most("Postgres backends of a node", backends as f64, 1.0);

    let alone = commits(bench, &db);
    let most = if bench.quick { 9 } else { 99 };
    let mut nodes = vec![node];
    nodes.extend((0..most).map(|_| bench.node(&db, "")));
    let together = commits(bench, &db);
    section.at_most(
        format!("median COMMIT of a writer, {} nodes / 1 node", nodes.len()),
        together / alone,
        1.05,
    );
    section
}

/// Median time of a committed change.
fn commits(bench: &Bench, db: &Db<'_>) -> f64 {
    let session = bench.runtime.block_on(db.session());
    let each: Vec<f64> = (0..bench.alternations * 20)
        .map(|change| {
            // Each burst on its own: what the nodes do for the one before is over.
            std::thread::sleep(Duration::from_millis(50));
            let began = Instant::now();
            let number = World::e164(u32::try_from(change).unwrap_or(0));
            bench.runtime.block_on(session.sql(&format!(
                "update tenant_phone_numbers set label = 'c{change}' where e164 = '{number}'"
            )));
            began.elapsed().as_secs_f64()
        })
        .collect();
    median(&each)
}
