//! The platform's example rows, for `sidetone demo` and the tests.
//!
//! The rows are those of `examples/platform.json`, unchanged but for the credentials: the sample ciphertext opens
//! under no key, so whoever loads the rows seals the values anew.

use serde_json::Value;
use sqlx::{Connection as _, PgConnection};

const ROWS: &str = include_str!("../examples/platform.json");

/// Which credential row a value is to be sealed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// `tenant_credentials.tenant_id`, in the spelling Postgres gives it.
    pub tenant: String,
    /// `tenant_credentials.provider`
    pub provider: String,
    /// `tenant_credentials.name`
    pub name: String,
}

/// Why the example rows could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ExampleError {
    /// The file built into the program is not what this code expects.
    #[error("examples/platform.json: {what}")]
    Rows {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The file built into the program is no JSON.
    #[error("examples/platform.json: not JSON")]
    Json {
        /// Where it stops being JSON.
        source: serde_json::Error,
    },
    /// Postgres refused a row.
    #[error("example rows: cannot insert into {table}")]
    Insert {
        /// The table.
        table: &'static str,
        /// What Postgres said.
        source: sqlx::Error,
    },
    /// Postgres went away.
    #[error("example rows: cannot begin or commit")]
    Transaction {
        /// What Postgres said.
        source: sqlx::Error,
    },
}

/// Inserts the example rows, in one transaction, into a migrated database that does not hold them yet.
/// `seal` gives the `data_ciphertext` of each credential.
///
/// # Errors
/// [`ExampleError`]; then none of the rows is there.
pub async fn load(
    conn: &mut PgConnection,
    seal: impl Fn(&Credential) -> String + Send,
) -> Result<(), ExampleError> {
    let mut rows: Value =
        serde_json::from_str(ROWS).map_err(|source| ExampleError::Json { source })?;
    seal_credentials(&mut rows, seal)?;
    let mut tx = conn
        .begin()
        .await
        .map_err(|source| ExampleError::Transaction { source })?;
    for (table, sql) in INSERTS {
        let of_table = rows.get(table).ok_or(ExampleError::Rows {
            what: "a table is missing",
        })?;
        sqlx::query(sql)
            .bind(of_table)
            .execute(&mut *tx)
            .await
            .map_err(|source| ExampleError::Insert { table, source })?;
    }
    tx.commit()
        .await
        .map_err(|source| ExampleError::Transaction { source })
}

fn seal_credentials(
    rows: &mut Value,
    seal: impl Fn(&Credential) -> String,
) -> Result<(), ExampleError> {
    let credentials = rows
        .get_mut("tenant_credentials")
        .and_then(Value::as_array_mut)
        .ok_or(ExampleError::Rows {
            what: "tenant_credentials is no list",
        })?;
    for row in credentials {
        let field = |name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
        let (Some(tenant), Some(provider), Some(name)) =
            (field("tenant_id"), field("provider"), field("name"))
        else {
            return Err(ExampleError::Rows {
                what: "a credential lacks a key",
            });
        };
        let sealed = seal(&Credential {
            tenant,
            provider,
            name,
        });
        if let Some(fields) = row.as_object_mut() {
            fields.insert("data_ciphertext".into(), Value::String(sealed));
        }
    }
    Ok(())
}

/// Each table after those it refers to.
const INSERTS: [(&str, &str); 9] = [
    (
        "tenants",
        "insert into public.tenants (id, name, slug, status, created_at, updated_at)
         select id, name, slug, status, created_at, updated_at
           from jsonb_populate_recordset(null::public.tenants, $1)",
    ),
    (
        "users",
        "insert into public.users (id, email, name, hash_password, status, last_login_at, created_at)
         select id, email, name, hash_password, status, last_login_at, created_at
           from jsonb_populate_recordset(null::public.users, $1)",
    ),
    (
        "tenant_users",
        "insert into public.tenant_users (id, tenant_id, user_id, role, created_at)
         select id, tenant_id, user_id, role, created_at
           from jsonb_populate_recordset(null::public.tenant_users, $1)",
    ),
    (
        "tenant_credentials",
        "insert into public.tenant_credentials
                (id, tenant_id, provider, name, data_ciphertext, created_at, updated_at)
         select id, tenant_id, provider, name, data_ciphertext, created_at, updated_at
           from jsonb_populate_recordset(null::public.tenant_credentials, $1)",
    ),
    (
        "tenant_settings",
        "insert into public.tenant_settings
                (tenant_id, model, transcription_provider, recording_enabled, business_hours, created_at, updated_at)
         select tenant_id, model, transcription_provider, recording_enabled, business_hours, created_at, updated_at
           from jsonb_populate_recordset(null::public.tenant_settings, $1)",
    ),
    (
        "tenant_phone_numbers",
        "insert into public.tenant_phone_numbers
                (id, tenant_id, e164, label, default_language, default_voice, timezone, active, created_at)
         select id, tenant_id, e164, label, default_language, default_voice, timezone, active, created_at
           from jsonb_populate_recordset(null::public.tenant_phone_numbers, $1)",
    ),
    (
        "prompts",
        "insert into public.prompts
                (id, tenant_id, name, description, scope, active, priority, created_at, updated_at)
         select id, tenant_id, name, description, scope, active, priority, created_at, updated_at
           from jsonb_populate_recordset(null::public.prompts, $1)",
    ),
    (
        "prompt_versions",
        "insert into public.prompt_versions (id, prompt_id, version, content, created_by_user_id, created_at)
         select id, prompt_id, version, content, created_by_user_id, created_at
           from jsonb_populate_recordset(null::public.prompt_versions, $1)",
    ),
    (
        "prompt_bindings",
        "insert into public.prompt_bindings
                (id, prompt_id, account_ref, event_type, phone_number_id, conditions_json, created_at)
         select id, prompt_id, account_ref, event_type, phone_number_id, conditions_json, created_at
           from jsonb_populate_recordset(null::public.prompt_bindings, $1)",
    ),
];
