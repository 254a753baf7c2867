//! Whether anything gets slower as there is more of it.

use std::time::Instant;

use crate::cluster::{Cluster, Options};
use crate::load;
use crate::plot;
use crate::report::{Section, Series, median};
use crate::world::World;
use crate::{Bench, ours};

pub(crate) fn measure(bench: &Bench) -> Section {
    let mut section = Section::new(
        "The same load on nodes with more numbers, and a tenant's change with more numbers in the tenant.",
    );
    let large = bench.large();
    let cluster = Cluster::own(Options::default());
    let mut nodes = Vec::new();
    for world in [World::SMALL, large] {
        let db = bench.runtime.block_on(cluster.database());
        bench.runtime.block_on(world.fill(&db));
        nodes.push((world, bench.node(&db, ""), db));
    }
    let load = "/v1/lookup, 2 000 questions per second on 8 connections";
    let mut all: Vec<(String, Series)> = Vec::new();
    let targets: Vec<_> = nodes
        .iter()
        .map(|(world, node, _)| ours(node, world.questions("/v1/lookup")))
        .collect();
    for (world, ..) in &nodes {
        all.push((
            format!("{} numbers", plot::readable(f64::from(world.numbers))),
            Series::default(),
        ));
    }
    for _ in 0..bench.alternations {
        for (target, (_, series)) in targets.iter().zip(&mut all) {
            series.add(&load::open(target, 8, bench.lasts, 2_000.0));
        }
    }
    if let [(_, few), (name, many)] = &all[..] {
        let (p50, name) = (many.p50() / few.p50(), name.clone());
        section.keep(load, all);
        section.at_most(format!("p50 with {name} / with 1 000"), p50, 1.2);
        section.percentiles("growth-latency", load);
    }

    // One tenant with a hundred thousand numbers, one with a single one.
    let db = bench.runtime.block_on(cluster.database());
    bench.runtime.block_on(
        World {
            numbers: 100_000,
            tenants: 1,
        }
        .fill(&db),
    );
    bench.runtime.block_on(db.sql(
        "insert into tenants (id, name, slug, status)
           values ('0000000f-0000-4000-8000-000000000001', 'Seguridad uno', 'uno', 'active');
         insert into tenant_phone_numbers (tenant_id, e164, default_language, timezone)
           values ('0000000f-0000-4000-8000-000000000001', '+541199999999', 'es-AR', 'UTC')",
    ));
    let node = bench.node(&db, "");
    let took = |slug: &str, number: &str| {
        let each: Vec<f64> = (0..bench.alternations * 5)
            .map(|change| {
                let name = format!("Seguridad {change}");
                let sql = format!("update tenants set name = '{name}' where slug = '{slug}'");
                bench.runtime.block_on(db.sql(&sql));
                let began = Instant::now();
                bench.until("the change never comes", async || {
                    let path = format!("/v1/lookup/tenant_name?to=%2B{number}");
                    node.try_get(&path)
                        .await
                        .is_ok_and(|reply| reply.body == name)
                });
                began.elapsed().as_secs_f64()
            })
            .collect();
        median(&each)
    };
    let (one, many) = (
        took("uno", "541199999999"),
        took("seguridad-0", "541100000007"),
    );
    section.at_most(
        "a tenant's change, 100 000 numbers / one number",
        many / one,
        1.2,
    );
    section
}
