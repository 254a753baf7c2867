//! What a node costs that is asked nothing.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Options};
use crate::report::Section;
use crate::world::World;
use crate::{Bench, cpu_seconds};

pub(crate) fn measure(bench: &Bench) -> Section {
    let mut section =
        Section::new("A node with 100 000 numbers that is asked nothing, while nothing changes.");
    let cluster = Cluster::own(Options::default());
    let db = bench.runtime.block_on(cluster.database());
    bench.runtime.block_on(World::USUAL.fill(&db));
    let node = bench.node(&db, "");
    bench.runtime.block_on(node.level());
    let lasts = Duration::from_secs(if bench.quick { 5 } else { 60 });
    let (began, before) = (Instant::now(), cpu_seconds(node.pid()));
    std::thread::sleep(lasts);
    let share = (cpu_seconds(node.pid()) - before) / began.elapsed().as_secs_f64();
    section.at_most("share of a core, asked nothing", share * 100.0, 0.5);
    let backends: i64 = bench
        .runtime
        .block_on(db.value("select count(*) from pg_stat_activity where usename = 'sidetone'"));
    section.at_most("Postgres backends of a node", backends as f64, 1.0);

    section
}
