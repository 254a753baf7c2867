//! The rows that are measured on: tenants with twenty prompts each, numbers spread over them.

use crate::cluster::Db;
use crate::load::Question;

/// Prompts of a tenant.
pub(crate) const PROMPTS: u32 = 20;

/// How much of it there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    pub(crate) numbers: u32,
    pub(crate) tenants: u32,
}

impl World {
    pub(crate) const SMALL: Self = Self {
        numbers: 1_000,
        tenants: 10,
    };
    pub(crate) const QUICK: Self = Self {
        numbers: 20_000,
        tenants: 200,
    };
    pub(crate) const USUAL: Self = Self {
        numbers: 100_000,
        tenants: 1_000,
    };
    pub(crate) const LARGE: Self = Self {
        numbers: 1_000_000,
        tenants: 1_000,
    };

    pub(crate) fn e164(number: u32) -> String {
        format!("+5411{number:08}")
    }

    /// Writes the rows. A resolved answer is about 6.5 KB long, a short one 1.3 KB.
    pub(crate) async fn fill(self, db: &Db<'_>) {
        let Self { numbers, tenants } = self;
        let id = |kind: u32, of: &str| {
            format!("('{kind:08x}-0000-4000-8000-' || lpad(to_hex({of}), 12, '0'))::uuid")
        };
        let tenant = id(1, "t");
        let prompt = id(2, "t * 100 + p");
        let owner = id(1, &format!("n % {tenants}"));
        db.sql(&format!(
            "begin;
             insert into tenants (id, name, slug, status)
               select {tenant}, 'Seguridad ' || t, 'seguridad-' || t, 'active' from generate_series(0, {tenants} - 1) t;
             insert into tenant_settings (tenant_id, model, transcription_provider, recording_enabled, business_hours)
               select {tenant}, 'gpt-4o-mini', 'google', true, '{{\"mon\":[\"09:00-18:00\"],\"sat\":[\"09:00-13:00\"]}}'
                 from generate_series(0, {tenants} - 1) t;
             insert into prompts (id, tenant_id, name, scope, active, priority)
               select {prompt}, {tenant}, 'Instrucciones ' || p, 'global', true, p
                 from generate_series(0, {tenants} - 1) t, generate_series(1, {PROMPTS}) p;
             insert into prompt_versions (prompt_id, version, content)
               select {prompt}, 1, 'Actúa como agente en español neutro y verifica la identidad. ' || p
                 from generate_series(0, {tenants} - 1) t, generate_series(1, {PROMPTS}) p;
             insert into tenant_phone_numbers (tenant_id, e164, label, default_language, default_voice, timezone)
               select {owner}, '+5411' || lpad(n::text, 8, '0'), 'Línea ' || n, 'es-AR', 'es-AR-Standard-A',
                      'America/Argentina/Buenos_Aires'
                 from generate_series(0, {numbers} - 1) n;
             commit;"
        ))
        .await;
        db.sql("analyze").await;
    }

    /// A request for each number.
    pub(crate) fn questions(self, route: &str) -> Vec<Question> {
        (0..self.numbers)
            .map(|number| {
                let e164 = Self::e164(number);
                let digits = &e164[1..];
                Question {
                    bytes: format!(
                        "GET {route}?to=%2B{digits} HTTP/1.1\r\nHost: localhost\r\n\r\n"
                    )
                    .into_bytes(),
                    proof: e164.into_bytes(),
                }
            })
            .collect()
    }
}
