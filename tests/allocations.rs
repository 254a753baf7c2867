//! What a call allocates once its profile is in memory, and what the cache holds of what it counts. A binary of its own, as it has an allocator of its own.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

#[path = "../benches/instructions/rows.rs"]
mod rows;

use std::hint::black_box;
use std::sync::Arc;

use allocation_counter::measure;
use serde_json::json;
use sidetone::admit::{self, AdmissionLimits};
use sidetone::cache::{Cache, Touched, Which};
use sidetone::condition::Call;
use sidetone::metrics::Metrics;
use sidetone::number::E164;
use sidetone::profile::Profile;
use sidetone::resolve;
use sidetone::seal::Keyring;
use sidetone::select::{Selection, select};

fn selected<'a>(profile: &'a Profile, call: &'a Call) -> Selection<'a> {
    select(profile, call, rows::at(), rows::STACK_BYTES).expect("an answer")
}

#[test]
fn select_allocates_nothing() {
    let profile = rows::profile(50);
    for (call, prompts) in [(rows::call(), 40), (Call::default(), 0)] {
        // What is worked out at the first use is not counted.
        assert_eq!(selected(&profile, &call).prompts.len(), prompts);
        let all = measure(|| {
            black_box(selected(&profile, &call));
        });
        assert_eq!(all.count_total, 0);
    }
}

/// A cache of small tenants with a number each, as costly for what they say as any.
struct Small {
    cache: Cache,
    keyring: Keyring,
}

impl Small {
    const LIMITS: AdmissionLimits = AdmissionLimits {
        prompt_bytes: 1000,
        credential_bytes: 1000,
        rows_per_tenant: 10,
    };

    fn keep_tenant(&self, n: u128) {
        let id = uuid::Uuid::from_u128(1 + n);
        let document = json!({
            "tenant": {"id": id, "name": format!("Tenant {n}"), "slug": format!("t{n}"), "status": "active"},
            "settings": {"model": "gpt-4o-mini", "transcription_provider": "google", "recording_enabled": false, "business_hours": null},
            "credentials": [], "prompts": [],
        });
        let record = admit::tenant(id, &document.to_string(), None, &Self::LIMITS);
        let tenant = resolve::tenant(&record, &self.keyring, None).expect("a tenant");
        let tenant = Arc::new(tenant);
        tenant.owner.written(|| vec![b' '; 100]);
        tenant.models.written(|| vec![b' '; 100]);
        let now = self.cache.tenant_generation(id);
        self.cache.keep_tenant(id, &tenant, now);
        self.tidy_after(n);
    }

    /// And has it known its tenant.
    fn keep_number(&self, n: u128) {
        let id = uuid::Uuid::from_u128(1 + n);
        let e164 = format!("+1650{n:07}");
        let document = json!({
            "id": id, "tenant_id": id, "e164": e164, "label": format!("Line {n}"), "default_language": "es-CL",
            "default_voice": "es-CL-Standard-A", "timezone": "America/Santiago", "active": true,
        });
        let record = admit::number(&e164, &document.to_string(), None);
        let number = Arc::new(resolve::number(&record).expect("a number"));
        number.called.written(|| vec![b' '; 100]);
        number.speech.written(|| vec![b' '; 100]);
        let e164: E164 = e164.parse().expect("a number");
        let now = self.cache.number_generation(&e164);
        self.cache.keep_number(&e164, &number, now);
        assert!(self.cache.get(&e164).is_some());
        self.tidy_after(n);
    }

    fn tidy_after(&self, n: u128) {
        if n.is_multiple_of(50) {
            self.cache.tidy();
        }
    }
}

#[test]
fn the_cache_takes_what_it_counts_and_little_of_what_it_has_dropped() {
    const MANY: u128 = 20_000;
    let small = Small {
        cache: Cache::new(1 << 30, &Arc::new(Metrics::new().expect("metrics"))),
        keyring: Keyring::parse(&Keyring::generate("k1").expect("random bytes"))
            .expect("a keyring"),
    };
    // What each of so many takes by itself, the allocator's own bookkeeping not counted.
    let each = |bytes: i64| bytes as f64 / MANY as f64;
    let counted = || i64::try_from(small.cache.size().1).expect("few bytes");
    let tenants = measure(|| (0..MANY).for_each(|n| small.keep_tenant(n)));
    let (taken, known) = (each(tenants.bytes_current), each(counted()));
    assert!(
        (0.7..=1.0).contains(&(taken / known)),
        "a tenant: {taken}, counted as {known}"
    );
    let before = counted();
    let numbers = measure(|| (0..MANY).for_each(|n| small.keep_number(n)));
    let (taken, known) = (each(numbers.bytes_current), each(counted() - before));
    assert!(
        (0.7..=1.0).contains(&(taken / known)),
        "a number: {taken}, counted as {known}"
    );
    // All tenants change, and nobody calls after that: their numbers still know of them.
    let gone = measure(|| {
        drop(small.cache.changing(Touched {
            numbers: Which::These(Vec::new()),
            tenants: Which::All,
        }));
        for _ in 0..1000 {
            small.cache.tidy();
        }
    });
    let left = each(tenants.bytes_current + gone.bytes_current);
    assert!(left < 60.0, "{left} of each tenant that was dropped");
}
