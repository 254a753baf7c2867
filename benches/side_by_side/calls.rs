//! What the call's context costs: fifty prompts and a hundred bindings against an answer of the same size without any.

use std::hint::black_box;
use std::time::Instant;

use sidetone::select::select;

use crate::cluster::{Cluster, Options};
use crate::load::Question;
use crate::report::{Section, Series, median};
use crate::world::World;
use crate::{Bench, ours, rows};

/// How often `select` is timed, and how many times at once.
const BATCHES: usize = 1_000;
const BATCH: u32 = 100;
/// Numbers that are asked.
const NUMBERS: u32 = 1_000;

pub(crate) fn measure(bench: &Bench) -> Section {
    let cluster = Cluster::own(Options::default());
    let db = bench.runtime.block_on(cluster.database());
    // The first tenant: 50 prompts with two bindings each, of which ten prompts apply to the call that is asked. The
    // second: those ten as global prompts.
    bench.runtime.block_on(db.sql(&format!(
        "insert into tenants (id, name, slug, status)
           select ('0000000' || t || '-0000-4000-8000-000000000001')::uuid, 'Seguridad ' || t, 'seguridad-' || t, 'active'
             from generate_series(1, 2) t;
         insert into tenant_settings (tenant_id, model, business_hours)
           select id, 'gpt-4o-mini', '{{\"mon\":[\"09:00-18:00\"]}}' from tenants;
         insert into prompts (id, tenant_id, name, scope, active, priority)
           select ('00000001-0000-4000-8000-' || lpad(p::text, 12, '0'))::uuid,
                  '00000001-0000-4000-8000-000000000001'::uuid, 'Instrucciones ' || lpad(p::text, 3, '0'), 'event_type', true, p
             from generate_series(1, 50) p
           union all
           select ('00000002-0000-4000-8000-' || lpad(p::text, 12, '0'))::uuid,
                  '00000002-0000-4000-8000-000000000001'::uuid, 'Instrucciones ' || lpad(p::text, 3, '0'), 'event_type', true, p
             from generate_series(1, 10) p;
         insert into prompt_versions (prompt_id, version, content)
           select id, 1, 'Actúa como agente en español neutro y verifica la identidad de quien llama.' from prompts;
         insert into prompt_bindings (prompt_id, account_ref, event_type, conditions_json)
           select id, null, case when priority <= 10 then 'door_open' else 'panic_' || priority end,
                  json_build_object('call_direction', side)::jsonb
             from prompts, (values ('inbound'), ('outbound')) s (side)
            where tenant_id = '00000001-0000-4000-8000-000000000001'
           union all
           select id, null, 'door_open', null from prompts
            where tenant_id = '00000002-0000-4000-8000-000000000001';
         insert into tenant_phone_numbers (tenant_id, e164, label, default_language, timezone)
           select ('0000000' || 1 + n % 2 || '-0000-4000-8000-000000000001')::uuid, '+5411' || lpad(n::text, 8, '0'),
                  'Línea', 'es-AR', 'America/Argentina/Buenos_Aires' from generate_series(0, {NUMBERS} * 2 - 1) n"
    )));
    let node = bench.node(&db, "");
    let asks = |of: u32, context: &str| -> Vec<Question> {
        let numbers = (0..NUMBERS).map(|n| World::e164(n * 2 + of));
        numbers
            .map(|e164| {
                let digits = &e164[1..];
                let head = "HTTP/1.1\r\nHost: localhost\r\n\r\n";
                let bytes =
                    format!("GET /v1/resolve?to=%2B{digits}&event_type=door_open{context} {head}");
                Question {
                    bytes: bytes.into_bytes(),
                    proof: b"Instrucciones 010".to_vec(),
                }
            })
            .collect()
    };
    let mut section = Section::new(
        "A call against 50 prompts with 100 bindings, of which ten prompts apply, beside a call against just those ten.",
    );
    let load = "/v1/resolve, 8 kept connections";
    bench.alternate(
        &mut section,
        load,
        8,
        &[
            (
                "50 prompts, 100 bindings",
                ours(&node, asks(0, "&attr.call_direction=inbound")),
            ),
            (
                "10 prompts, 10 bindings",
                ours(&node, asks(1, "&attr.call_direction=inbound")),
            ),
        ],
    );
    section.bars(
        "calls-throughput",
        "Calls with context",
        "answers/s",
        Series::per_second,
    );
    let rate = |name| section.series(load, name).per_second();
    let ratio = rate("50 prompts, 100 bindings") / rate("10 prompts, 10 bindings");
    section.at_least("throughput, with 100 bindings / with 10", ratio, 0.8);
    section.at_most(
        "µs to select among 50 prompts with 100 bindings",
        selecting(),
        5.0,
    );
    section
}

/// Microseconds that `select` takes for the call whose instructions and allocations are counted: the median of many short
/// batches, so that what else runs on the machine enters few of them.
fn selecting() -> f64 {
    let (profile, call) = (rows::profile(50), rows::call());
    let batches: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let began = Instant::now();
            for _ in 0..BATCH {
                let (profile, call) = (black_box(&profile), black_box(&call));
                let selected = select(profile, call, rows::at(), rows::STACK_BYTES);
                assert!(black_box(selected).is_ok_and(|chosen| chosen.prompts.len() == 40));
            }
            began.elapsed().as_secs_f64() * 1e6 / f64::from(BATCH)
        })
        .collect();
    median(&batches)
}
