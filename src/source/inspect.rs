//! What `sidetone check` asks Postgres: what the role may read, and whether the feed can be believed.
//!
//! Reads catalogues only; changes nothing.

use sqlx::{Connection as _, PgConnection};

use super::target::failure;
use super::{Role, SourceError, Target};
use crate::row::Table;

/// Every column an answer is made of. `deploy/sql/roles.sql` grants these and no others.
pub const READS: [(Table, &[&str]); 7] = [
    (Table::Tenants, &["id", "name", "slug", "status"]),
    (
        Table::TenantSettings,
        &[
            "tenant_id",
            "model",
            "transcription_provider",
            "recording_enabled",
            "business_hours",
        ],
    ),
    (
        Table::TenantCredentials,
        &["id", "tenant_id", "provider", "name", "data_ciphertext"],
    ),
    (
        Table::TenantPhoneNumbers,
        &[
            "id",
            "tenant_id",
            "e164",
            "label",
            "default_language",
            "default_voice",
            "timezone",
            "active",
        ],
    ),
    (
        Table::Prompts,
        &[
            "id",
            "tenant_id",
            "name",
            "scope",
            "active",
            "priority",
            "created_at",
        ],
    ),
    (
        Table::PromptVersions,
        &["id", "prompt_id", "version", "content"],
    ),
    (
        Table::PromptBindings,
        &[
            "id",
            "prompt_id",
            "account_ref",
            "event_type",
            "phone_number_id",
            "conditions_json",
            "created_at",
        ],
    ),
];

/// What Postgres says of itself, of our role and of the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// As it calls itself.
    pub server_version: String,
    /// The same as a number, such as 150006.
    pub server_version_num: i32,
    /// Of the database; `UTF8` is needed.
    pub encoding: String,
    /// A standby takes no LISTEN.
    pub recovery: bool,
    /// The role logged in as.
    pub role: String,
    /// It may everything.
    pub superuser: bool,
    /// Columns that are not there, as `table.column`.
    pub missing: Vec<String>,
    /// Columns that are there and may not be read.
    pub unreadable: Vec<String>,
    /// Tables the role may write to.
    pub writable: Vec<String>,
    /// `users.hash_password` may be read.
    pub reads_passwords: bool,
    /// `None` where the schema `sidetone` is not there.
    pub feed: Option<Feed>,
}

/// What the schema `sidetone` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// Tables and functions the role may not use.
    pub forbidden: Vec<String>,
    /// `None` where it may not be read.
    pub schema_version: Option<i32>,
    /// Whether commits ring; `None` where it may not be read.
    pub doorbell: Option<bool>,
    /// What `sidetone.armed()` says; `None` where it may not be asked.
    pub armed: Option<bool>,
    /// Triggers that are missing or not enabled always, as `table.trigger`.
    pub silent: Vec<String>,
}

/// One connection for a command, within `connect_timeout`.
///
/// # Errors
/// [`SourceError`]: not reached, refused, too slow.
pub async fn connect(target: &Target) -> Result<PgConnection, SourceError> {
    let limit = target.connect_timeout;
    match tokio::time::timeout(limit, PgConnection::connect_with(&target.sqlx(Role::Any))).await {
        Err(_) => Err(SourceError::Timeout(limit)),
        Ok(Ok(conn)) => Ok(conn),
        Ok(Err(err)) => {
            let code = err.as_database_error().and_then(|db| db.code());
            let said = err
                .as_database_error()
                .map(|db| (code.as_deref().unwrap_or(""), db.message()));
            Err(failure(&target.place, &err, said))
        }
    }
}

/// Asks everything.
///
/// # Errors
/// [`sqlx::Error`] when the connection breaks.
pub async fn inspect(conn: &mut PgConnection) -> Result<Inspection, sqlx::Error> {
    let server = sqlx::query!(
        r#"select current_setting('server_version') as "version!", current_setting('server_version_num')::int as "number!",
                  current_setting('server_encoding') as "encoding!", pg_is_in_recovery() as "recovery!",
                  current_user::text as "role!",
                  (select rolsuper from pg_roles where rolname = current_user) as "superuser!""#
    )
    .fetch_one(&mut *conn)
    .await?;
    let (tables, columns) = READS
        .iter()
        .flat_map(|(table, columns)| columns.iter().map(move |c| (table.as_str(), *c)))
        .unzip::<_, _, Vec<_>, Vec<_>>();
    let found = sqlx::query!(
        r#"select w.tab || '.' || w.col as "name!", a.attnum is not null as "exists!",
                  coalesce(has_column_privilege(a.attrelid, a.attnum, 'select'), false) as "readable!"
             from unnest($1::text[], $2::text[]) as w (tab, col)
             left join pg_attribute a
               on a.attrelid = to_regclass('public.' || w.tab) and a.attname = w.col and not a.attisdropped"#,
        &tables as &[&str],
        &columns as &[&str],
    )
    .fetch_all(&mut *conn)
    .await?;
    let named = |wanted: fn(bool, bool) -> bool| {
        found
            .iter()
            .filter(|row| wanted(row.exists, row.readable))
            .map(|row| row.name.clone())
            .collect::<Vec<_>>()
    };
    let every_table = Table::ALL.map(Table::as_str);
    let rights = sqlx::query!(
        r#"select exists (select from pg_attribute a
                           where a.attrelid = to_regclass('public.users') and a.attname = 'hash_password'
                             and has_column_privilege(a.attrelid, a.attnum, 'select')) as "passwords!",
                  array(select t.tab from unnest($1::text[]) as t (tab)
                         where has_table_privilege(to_regclass('public.' || t.tab), 'insert, update, delete, truncate'))
                    as "writable!: Vec<String>""#,
        every_table.as_slice() as &[&str],
    )
    .fetch_one(&mut *conn)
    .await?;
    Ok(Inspection {
        server_version: server.version,
        server_version_num: server.number,
        encoding: server.encoding,
        recovery: server.recovery,
        role: server.role,
        superuser: server.superuser,
        missing: named(|exists, _| !exists),
        unreadable: named(|exists, readable| exists && !readable),
        writable: rights.writable,
        reads_passwords: rights.passwords,
        feed: feed(conn).await?,
    })
}

async fn feed(conn: &mut PgConnection) -> Result<Option<Feed>, sqlx::Error> {
    let there =
        sqlx::query_scalar!(r#"select to_regnamespace('sidetone') is not null as "there!""#)
            .fetch_one(&mut *conn)
            .await?;
    if !there {
        return Ok(None);
    }
    // A name in a schema that may not be used cannot even be looked up, hence the catalogues.
    let rights = sqlx::query!(
        r#"select 'schema sidetone' as "name!", has_schema_privilege('sidetone', 'usage') as "allowed!"
         union all
         select 'sidetone.' || w.name, coalesce(bool_or(has_table_privilege(c.oid, 'select')), false)
           from unnest('{meta,change}'::text[]) as w (name)
           left join pg_class c on c.relname = w.name and c.relnamespace = to_regnamespace('sidetone')
          group by w.name
         union all
         select 'sidetone.' || w.name || '()', coalesce(bool_or(has_function_privilege(p.oid, 'execute')), false)
           from unnest('{armed,prune}'::text[]) as w (name)
           left join pg_proc p on p.proname = w.name and p.pronamespace = to_regnamespace('sidetone')
          group by w.name"#
    )
    .fetch_all(&mut *conn)
    .await?;
    let forbidden: Vec<String> = rights
        .into_iter()
        .filter(|right| !right.allowed)
        .map(|right| right.name)
        .collect();
    let may = |name: &str| {
        !forbidden
            .iter()
            .any(|no| no == name || no == "schema sidetone")
    };
    let meta = if may("sidetone.meta") {
        sqlx::query!("select schema_version, doorbell from sidetone.meta")
            .fetch_optional(&mut *conn)
            .await?
    } else {
        None
    };
    let armed = if may("sidetone.armed()") {
        Some(
            sqlx::query_scalar!(r#"select sidetone.armed() as "armed!""#)
                .fetch_one(&mut *conn)
                .await?,
        )
    } else {
        None
    };
    let every_table = Table::ALL.map(Table::as_str);
    let silent = sqlx::query_scalar!(
        r#"select w.tab || '.' || event.name as "name!"
           from unnest($1::text[]) as w (tab)
          cross join unnest('{sidetone_insert,sidetone_update,sidetone_delete,sidetone_truncate}'::text[]) as event (name)
           left join pg_trigger t
             on t.tgrelid = to_regclass('public.' || w.tab) and t.tgname = event.name and t.tgenabled = 'A'
          where t.oid is null
          order by 1"#,
        every_table.as_slice() as &[&str],
    )
    .fetch_all(&mut *conn)
    .await?;
    Ok(Some(Feed {
        forbidden,
        schema_version: meta.as_ref().map(|meta| meta.schema_version),
        doorbell: meta.as_ref().map(|meta| meta.doorbell),
        armed,
        silent,
    }))
}
