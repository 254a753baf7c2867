//! What the migrations, the triggers and the daemon's role promise, tried at the level of the change log.

use std::time::Duration;

use futures_util::SinkExt as _;

use crate::cluster::{Cluster, Db, Options, Session};

const A: &str = "a0000000-0000-4000-8000-000000000000";
const B: &str = "b0000000-0000-4000-8000-000000000000";
const PROMPT: &str = "c0000000-0000-4000-8000-00000000000a";
const OTHER_PROMPT: &str = "c0000000-0000-4000-8000-00000000000b";
const AUTHOR: &str = "d0000000-0000-4000-8000-000000000000";

const TABLES: [&str; 7] = [
    "tenants",
    "tenant_settings",
    "tenant_credentials",
    "tenant_phone_numbers",
    "prompts",
    "prompt_versions",
    "prompt_bindings",
];

/// A migrated database with a tenant that has one row of everything, another that has a prompt, and an empty log.
async fn seeded() -> Db<'static> {
    let db = Cluster::shared().database().await;
    seed(&db).await;
    db
}

async fn seed(db: &Session) {
    db.sql(&format!(
        "insert into public.tenants (id, name, slug, status) values ('{A}', 'A', 'a', 'active'), ('{B}', 'B', 'b', 'active');
         insert into public.users (id, email, name, hash_password, status)
         values ('{AUTHOR}', 'author@example.org', 'Author', 'secret', 'active');
         insert into public.tenant_users (tenant_id, user_id, role) values ('{A}', '{AUTHOR}', 'admin');
         insert into public.tenant_settings (tenant_id, model) values ('{A}', 'm');
         insert into public.tenant_credentials (tenant_id, provider, name, data_ciphertext) values ('{A}', 'p', 'n', 'x');
         insert into public.tenant_phone_numbers (tenant_id, e164, default_language, timezone)
         values ('{A}', '+15550000001', 'en', 'UTC');
         insert into public.prompts (id, tenant_id, name, scope)
         values ('{PROMPT}', '{A}', 'p', 'global'), ('{OTHER_PROMPT}', '{B}', 'q', 'global');
         insert into public.prompt_versions (prompt_id, version, content, created_by_user_id)
         values ('{PROMPT}', 1, 'text', '{AUTHOR}');
         insert into public.prompt_bindings (prompt_id, phone_number_id)
         select '{PROMPT}', id from public.tenant_phone_numbers;
         truncate sidetone.change;"
    ))
    .await;
}

/// Empties the log and tells what stood in it, sorted.
async fn logged(db: &Session) -> Vec<String> {
    db.column(
        "with gone as (delete from sidetone.change returning kind, id)
         select rtrim(kind || ' ' || id) from gone order by 1",
    )
    .await
}

/// What one script logs.
async fn logs(db: &Session, sql: &str) -> Vec<String> {
    db.sql(sql).await;
    logged(db).await
}

fn tenant(id: &str) -> String {
    format!("tenant {id}")
}

fn prompt(id: &str) -> String {
    format!("prompt {id}")
}

const NOTHING: [&str; 0] = [];

/// The migrations as psql would run them: here their warnings can be heard.
async fn migrate_aloud(db: &Session) -> Vec<String> {
    db.notices();
    db.sql(concat!(
        "begin;",
        include_str!("../../migrations/0001_platform_tables.sql"),
        "commit; begin;",
        include_str!("../../migrations/0002_change_feed.sql"),
        "commit;"
    ))
    .await;
    db.notices()
}

/// The platform's own tables, as they are before sidetone comes.
const PLATFORM: &str = "
    create table tenants (id uuid primary key, name varchar(255) not null, slug varchar(255) not null,
        status varchar(20) not null, created_at timestamptz default now(), updated_at timestamptz default now(),
        constraint one_slug unique (slug));
    create table users (id uuid primary key, email varchar(255) unique, name varchar(150), hash_password text,
        status varchar(20), last_login_at timestamptz, created_at timestamptz);
    create table tenant_users (id uuid primary key, tenant_id uuid, user_id uuid, role varchar(50), created_at timestamptz);
    create table tenant_credentials (id uuid primary key, tenant_id uuid, provider varchar(50), name varchar(100),
        data_ciphertext text, created_at timestamptz, updated_at timestamptz);
    create table tenant_settings (tenant_id uuid, model varchar(100), transcription_provider varchar(50),
        recording_enabled boolean, created_at timestamptz, updated_at timestamptz);
    create table tenant_phone_numbers (id uuid primary key, tenant_id uuid constraint belongs references tenants on delete restrict,
        e164 varchar(20), label varchar(100), default_language varchar(10), default_voice varchar(50),
        timezone varchar(50), active boolean default true, created_at timestamptz);
    create unique index the_number on tenant_phone_numbers (e164);
    create table prompts (id uuid primary key, tenant_id uuid, name varchar(255), description text, scope varchar(50),
        active boolean, priority integer, created_at timestamptz, updated_at timestamptz);
    create table prompt_versions (id uuid primary key, prompt_id uuid, version integer, content text,
        created_by_user_id uuid, created_at timestamptz);
    create table prompt_bindings (id uuid primary key, prompt_id uuid, account_ref varchar(100),
        event_type varchar(50), created_at timestamptz);
    insert into tenants select 'a0000000-0000-4000-8000-000000000000', 'A', 'a', 'active';
    insert into tenant_settings values ('a0000000-0000-4000-8000-000000000000', 'm', null, null, null, null);
    insert into tenant_phone_numbers values (gen_random_uuid(), 'a0000000-0000-4000-8000-000000000000', '+15550000001',
        null, 'en', null, 'UTC', null, null);
    insert into prompts values ('c0000000-0000-4000-8000-00000000000a', 'a0000000-0000-4000-8000-000000000000', 'p',
        null, 'global', null, null, '2020-01-01', '2020-01-01');
    insert into prompt_versions values (gen_random_uuid(), 'c0000000-0000-4000-8000-00000000000a', 1, 'text', null, null);
    insert into prompt_bindings values (gen_random_uuid(), 'c0000000-0000-4000-8000-00000000000a', 'ref', null, null);";

/// Every row of the platform's tables, without the columns sidetone adds.
async fn rows(db: &Session) -> Vec<String> {
    let mut all = Vec::new();
    for table in TABLES.iter().chain(&["users", "tenant_users"]) {
        let sql = format!(
            "select '{table} ' || (to_jsonb(t) - 'business_hours' - 'phone_number_id' - 'conditions_json')::text
               from public.{table} t order by 1"
        );
        all.extend(db.column::<String>(&sql).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_gets_the_data_model_and_an_armed_feed() {
    let db = Cluster::shared().empty_database().await;
    db.migrate().await;
    seed(&db).await;
    assert!(db.value::<bool>("select sidetone.armed()").await);
    assert_eq!(
        db.value::<i32>("select schema_version from sidetone.meta")
            .await,
        sidetone::source::migrate::SCHEMA_VERSION
    );
    for (sql, code) in [
        (
            "insert into tenants (name, slug, status) values ('x', 'a', 'active')",
            "23505",
        ),
        (
            "insert into users (email, name, hash_password, status) values ('author@example.org', 'x', 'x', 'x')",
            "23505",
        ),
        (
            "insert into tenant_users (tenant_id, user_id, role) select tenant_id, user_id, 'x' from tenant_users",
            "23505",
        ),
        (
            "insert into tenant_settings (tenant_id, model) select tenant_id, 'x' from tenant_settings",
            "23505",
        ),
        (
            "insert into tenant_credentials (tenant_id, provider, name, data_ciphertext)
          select tenant_id, provider, name, 'x' from tenant_credentials",
            "23505",
        ),
        (
            "insert into tenant_phone_numbers (tenant_id, e164, default_language, timezone)
          select tenant_id, e164, 'en', 'UTC' from tenant_phone_numbers",
            "23505",
        ),
        (
            "insert into prompt_versions (prompt_id, version, content) select prompt_id, 1, 'x' from prompt_versions",
            "23505",
        ),
        (
            "update tenant_phone_numbers set e164 = '5550000001'",
            "23514",
        ),
        (
            "update tenant_phone_numbers set e164 = '+05550000001'",
            "23514",
        ),
        ("update tenant_phone_numbers set e164 = '+123456'", "23514"),
        (
            "update tenant_phone_numbers set e164 = '+1234567890123456'",
            "23514",
        ),
        (
            "update tenant_phone_numbers set e164 = e'+15550000001\\n'",
            "23514",
        ),
        ("update prompts set scope = 'phone_number'", "23514"),
        (
            "insert into tenant_settings (tenant_id, model) values (gen_random_uuid(), 'x')",
            "23503",
        ),
        (
            "insert into prompt_bindings (prompt_id) values (gen_random_uuid())",
            "23503",
        ),
        (
            "update prompt_bindings set phone_number_id = gen_random_uuid()",
            "23503",
        ),
        ("update tenant_settings set model = null", "23502"),
    ] {
        let err = db.try_sql(sql).await.expect_err(sql);
        assert!(err.starts_with(code), "{sql}: {err}");
    }
    db.sql("update prompts set active = null, priority = null")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_sidetone_keeps_for_itself_is_in_its_schema() {
    let db = Cluster::shared().database().await;
    let tables: Vec<String> = db
        .column("select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind <> 'i' order by 1")
        .await;
    let mut model: Vec<&str> = TABLES
        .iter()
        .chain(&["users", "tenant_users"])
        .copied()
        .collect();
    model.sort_unstable();
    assert_eq!(tables, model);
    let functions: i64 = db
        .value("select count(*) from pg_proc where pronamespace = 'public'::regnamespace")
        .await;
    assert_eq!(functions, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn migrating_again_changes_nothing() {
    let db = Cluster::shared().database().await;
    let objects = "select string_agg(o, ',' order by o) from (
        select oid::text as o from pg_class union all select oid::text from pg_proc
        union all select oid::text from pg_trigger union all select oid::text from pg_constraint) all_";
    let before: (String, i64) = (
        db.value(objects).await,
        db.value("select count(*) from sidetone._sqlx_migrations")
            .await,
    );
    db.migrate().await;
    assert_eq!(
        before,
        (
            db.value(objects).await,
            db.value("select count(*) from sidetone._sqlx_migrations")
                .await
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_migrations_at_once_do_not_disturb_each_other() {
    let db = Cluster::shared().empty_database().await;
    tokio::join!(db.migrate(), db.migrate(), db.migrate());
    assert!(db.value::<bool>("select sidetone.armed()").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_own_tables_are_adopted_without_a_changed_row() {
    let db = Cluster::shared().empty_database().await;
    db.sql(PLATFORM).await;
    let before = rows(&db).await;
    db.sql("set search_path = ''").await;
    assert_eq!(migrate_aloud(&db).await, NOTHING);
    db.sql("reset search_path").await;
    assert_eq!(rows(&db).await, before);
    assert!(db.value::<bool>("select sidetone.armed()").await);
    assert_eq!(
        db.value::<i64>("select count(*) from sidetone.change")
            .await,
        0
    );

    // What was there under other names, and with another action, is left alone and not doubled.
    let on_numbers: Vec<String> = db
        .column(
            "select conname || confdeltype::text from pg_constraint
              where conrelid = 'tenant_phone_numbers'::regclass and contype in ('f', 'u') order by 1",
        )
        .await;
    assert_eq!(on_numbers, ["belongsr"]);
    let slugs: i64 = db
        .value("select count(*) from pg_index where indrelid = 'tenants'::regclass")
        .await;
    assert_eq!(slugs, 2);
    // What was missing is there.
    let primary: bool =
        db.value("select exists (select from pg_index where indrelid = 'tenant_settings'::regclass and indisprimary)").await;
    assert!(primary);
    db.sql(&format!(
        "insert into tenant_users (id, tenant_id, user_id) values (gen_random_uuid(), '{A}', null)"
    ))
    .await;
    let err = db.try_sql("insert into prompts (id, tenant_id, scope) values (gen_random_uuid(), gen_random_uuid(), 'global')");
    assert!(err.await.unwrap_err().starts_with("23503"));
    assert_eq!(
        db.value::<String>("select conditions_json::text from prompt_bindings")
            .await,
        "{}"
    );
    assert_eq!(
        logs(
            &db,
            "truncate sidetone.change; update prompts set active = true"
        )
        .await,
        [tenant(A)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_break_a_rule_are_told_and_do_not_stop_the_migration() {
    let db = Cluster::shared().empty_database().await;
    db.sql(PLATFORM).await;
    db.sql(
        "drop index the_number;
         insert into tenant_phone_numbers (id, tenant_id, e164)
         select gen_random_uuid(), tenant_id, n from tenant_phone_numbers, unnest('{+15550000001,0800}'::text[]) n;
         insert into tenant_settings select * from tenant_settings;
         insert into prompts (id, tenant_id, scope) values (gen_random_uuid(), gen_random_uuid(), 'unheard_of');",
    )
    .await;
    let before = rows(&db).await;
    let warnings = migrate_aloud(&db).await.join("\n");
    for told in [
        "WARNING: sidetone: public.tenant_settings: no unique key on (tenant_id): 1 values stand there more than once",
        "WARNING: sidetone: public.tenant_phone_numbers: no unique key on (e164): 1 values",
        "tenant_phone_numbers_e164_check holds for new rows only",
        "prompts_scope_check holds for new rows only",
        "prompts_tenant_id_fkey holds for new rows only",
    ] {
        assert!(warnings.contains(told), "{told}\nis not in\n{warnings}");
    }
    assert_eq!(warnings.lines().count(), 5, "{warnings}");
    assert_eq!(rows(&db).await, before);
    assert!(db.value::<bool>("select sidetone.armed()").await);
    // New rows keep the rules.
    let err = db
        .try_sql("update tenant_phone_numbers set e164 = '112' where e164 like '+%'")
        .await
        .unwrap_err();
    assert!(err.starts_with("23514"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_break_a_rule_do_not_stop_the_programs_own_migration() {
    let db = Cluster::shared().empty_database().await;
    db.sql(PLATFORM).await;
    db.sql(
        "insert into tenant_settings select * from tenant_settings; update prompts set scope = 'x'",
    )
    .await;
    db.migrate().await;
    assert!(db.value::<bool>("select sidetone.armed()").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_the_same_name_that_is_not_the_platforms_is_refused_and_left_as_it_was() {
    let db = Cluster::shared().empty_database().await;
    db.sql("create table tenants (id integer, slug text)").await;
    let err = sidetone::source::migrate::run(&mut db.sqlx().await)
        .await
        .unwrap_err();
    let text = format!("{:?}", err);
    assert!(
        text.contains("public.tenants.name") && text.contains("public.tenants.status"),
        "{text}"
    );
    let columns: i64 = db
        .value("select count(*) from information_schema.columns where table_schema = 'public'")
        .await;
    assert_eq!(columns, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn updated_at_moves_when_the_row_changes_and_only_then() {
    let db = seeded().await;
    db.sql("alter table tenants disable trigger sidetone_updated_at; update tenants set updated_at = '2020-01-01';
            alter table tenants enable trigger sidetone_updated_at")
        .await;
    let fresh = "select bool_and(updated_at = now()) from tenants";
    let check = async |sql: &str| {
        db.sql("begin").await;
        db.sql(sql).await;
        let moved: bool = db.value(fresh).await;
        db.sql("rollback").await;
        moved
    };
    assert!(!check("update tenants set name = name").await);
    assert!(check("update tenants set name = name || '.'").await);
    assert!(check("update tenants set name = 'x', updated_at = '1999-01-01'").await);
    assert!(
        !check(
            "set local session_replication_role = replica; update tenants set name = 'restored'"
        )
        .await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_logs_the_keys_it_touched() {
    let db = seeded().await;
    let number = "number +15550000001".to_owned();
    for (sql, expected) in [
        // insert
        (
            format!(
                "insert into tenants (id, name, slug, status) values ('{AUTHOR}', 'x', 'x', 'active')"
            ),
            vec![tenant(AUTHOR)],
        ),
        (
            format!("insert into tenant_settings (tenant_id, model) values ('{B}', 'm')"),
            vec![tenant(B)],
        ),
        (
            format!(
                "insert into tenant_credentials (tenant_id, provider, name, data_ciphertext) values ('{B}', 'p', 'n', 'x'), ('{B}', 'p', 'o', 'x')"
            ),
            vec![tenant(B)],
        ),
        (
            format!(
                "insert into tenant_phone_numbers (tenant_id, e164, default_language, timezone) values ('{B}', '+15550000002', 'en', 'UTC')"
            ),
            vec!["number +15550000002".into()],
        ),
        (
            format!(
                "insert into prompts (tenant_id, name, scope) values ('{A}', 'x', 'global'), ('{B}', 'x', 'global')"
            ),
            vec![tenant(A), tenant(B)],
        ),
        (
            format!(
                "insert into prompt_versions (prompt_id, version, content) values ('{PROMPT}', 2, 'x'), ('{PROMPT}', 3, 'x')"
            ),
            vec![prompt(PROMPT)],
        ),
        (
            format!("insert into prompt_bindings (prompt_id) values ('{OTHER_PROMPT}')"),
            vec![prompt(OTHER_PROMPT)],
        ),
        // update
        (
            format!("update tenants set status = 'suspended' where id = '{A}'"),
            vec![tenant(A)],
        ),
        (
            format!(
                "update tenant_settings set business_hours = '{{\"mon\":[]}}' where tenant_id = '{A}'"
            ),
            vec![tenant(A)],
        ),
        (
            format!("update tenant_settings set business_hours = null where tenant_id = '{A}'"),
            vec![tenant(A)],
        ),
        (
            format!("update tenant_credentials set data_ciphertext = 'y' where tenant_id = '{A}'"),
            vec![tenant(A)],
        ),
        (
            "update tenant_phone_numbers set label = 'front desk' where e164 = '+15550000001'"
                .into(),
            vec![number.clone()],
        ),
        (
            format!("update prompts set created_at = '2020-01-01' where id = '{PROMPT}'"),
            vec![tenant(A)],
        ),
        (
            format!(
                "update prompt_versions set content = 'y' where prompt_id = '{PROMPT}' and version = 1"
            ),
            vec![prompt(PROMPT)],
        ),
        (
            format!(
                "update prompt_bindings set created_at = '2020-01-01' where prompt_id = '{PROMPT}'"
            ),
            vec![prompt(PROMPT)],
        ),
        (
            format!(
                "update prompt_bindings set conditions_json = null where prompt_id = '{PROMPT}'"
            ),
            vec![prompt(PROMPT)],
        ),
        // keys that move
        (
            "update tenant_phone_numbers set e164 = '+15550000009' where e164 = '+15550000001'"
                .into(),
            vec![number.clone(), "number +15550000009".into()],
        ),
        (
            format!(
                "update tenant_phone_numbers set tenant_id = '{B}' where e164 = '+15550000009'"
            ),
            vec!["number +15550000009".into()],
        ),
        (
            format!(
                "update tenant_credentials set tenant_id = '{B}', name = 'moved' where tenant_id = '{A}'"
            ),
            vec![tenant(A), tenant(B)],
        ),
        (
            format!("update prompts set tenant_id = '{B}' where id = '{PROMPT}'"),
            vec![tenant(A), tenant(B)],
        ),
        (
            format!(
                "update prompt_bindings set prompt_id = '{OTHER_PROMPT}' where prompt_id = '{PROMPT}'"
            ),
            vec![prompt(PROMPT), prompt(OTHER_PROMPT)],
        ),
        (
            format!(
                "update prompt_versions set prompt_id = '{OTHER_PROMPT}' where prompt_id = '{PROMPT}'"
            ),
            vec![prompt(PROMPT), prompt(OTHER_PROMPT)],
        ),
        // upsert
        (
            format!(
                "insert into tenant_settings (tenant_id, model) values ('{A}', 'n') on conflict (tenant_id) do update set model = excluded.model"
            ),
            vec![tenant(A)],
        ),
        // delete
        (
            "delete from tenant_phone_numbers where e164 = '+15550000002'".into(),
            vec!["number +15550000002".into()],
        ),
        (
            format!("delete from tenant_settings where tenant_id = '{A}'"),
            vec![tenant(A)],
        ),
        ("delete from tenant_credentials".into(), vec![tenant(B)]),
        (
            "delete from prompt_versions where version = 1".into(),
            vec![prompt(OTHER_PROMPT)],
        ),
        (
            format!("delete from tenants where id = '{AUTHOR}'"),
            vec![tenant(AUTHOR)],
        ),
    ] {
        assert_eq!(logs(&db, &sql).await, expected, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_answer_depends_on_logs_nothing_and_does_not_ring() {
    let db = seeded().await;
    let listener = db.session().await;
    listener.sql("listen sidetone").await;
    for sql in [
        "update tenants set name = name",
        "update tenants set updated_at = updated_at + interval '1 day', created_at = '2020-01-01'",
        "update tenant_settings set model = model, created_at = '2020-01-01'",
        "update tenant_credentials set created_at = '2020-01-01'",
        "update tenant_phone_numbers set created_at = '2020-01-01'",
        "update prompts set description = 'new'",
        "update prompt_versions set created_by_user_id = null, created_at = '2020-01-01'",
        "update prompt_bindings set conditions_json = '{ }'",
        "delete from tenants where slug = 'nobody'",
        "update prompts set name = 'x' where false",
        "insert into tenants select * from tenants where false",
        "insert into tenants select * from tenants on conflict do nothing",
        "insert into tenants select * from tenants on conflict (id) do update set name = excluded.name",
        "update users set hash_password = 'x', last_login_at = now()",
        "update tenant_users set role = 'x'",
        "delete from users",
        "begin; update tenants set name = 'x'; rollback",
        "begin; savepoint s; update tenants set name = 'x'; rollback to s; commit",
        "do $$ begin begin update tenants set name = 'x'; raise exception 'no'; exception when others then null; end; end $$",
    ] {
        assert_eq!(logs(&db, sql).await, NOTHING, "{sql}");
    }
    assert_eq!(listener.notifications().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_swapping_their_content_are_a_change() {
    let db = seeded().await;
    db.sql(&format!(
        "insert into prompts (id, tenant_id, name, scope) values ('{AUTHOR}', '{A}', 'second', 'global'); delete from sidetone.change"
    ))
    .await;
    let swap = format!(
        "update prompts p set name = o.name from prompts o where p.tenant_id = '{A}' and o.tenant_id = '{A}' and p.id <> o.id"
    );
    assert_eq!(logs(&db, &swap).await, [tenant(A)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_written_while_its_prompt_moves_is_looked_for_where_the_prompt_ends_up() {
    let db = seeded().await;
    let (mover, writer) = (db.session().await, db.session().await);
    mover
        .sql(&format!(
            "begin; update prompts set tenant_id = '{B}' where id = '{PROMPT}'"
        ))
        .await;
    // The writer sees the prompt in A, and commits last.
    writer
        .sql(&format!(
            "begin; update prompt_versions set content = 'new' where prompt_id = '{PROMPT}'"
        ))
        .await;
    mover.sql("commit").await;
    assert_eq!(logged(&db).await, [tenant(A), tenant(B)]);
    writer.sql("commit").await;
    assert_eq!(logged(&db).await, [prompt(PROMPT)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn merge_logs_what_each_of_its_actions_touched() {
    if Cluster::shared().major() < 15 {
        return;
    }
    let db = seeded().await;
    let merge = format!(
        "merge into tenant_settings s using (values ('{A}'::uuid, 'new'), ('{B}'::uuid, 'first')) v (id, model) on s.tenant_id = v.id
         when matched then update set model = v.model
         when not matched then insert (tenant_id, model) values (v.id, v.model)"
    );
    assert_eq!(logs(&db, &merge).await, [tenant(A), tenant(B)]);
    assert_eq!(logs(&db, &merge).await, NOTHING);
    let delete = format!(
        "merge into tenant_settings s using (values ('{A}'::uuid)) v (id) on s.tenant_id = v.id when matched then delete"
    );
    assert_eq!(logs(&db, &delete).await, [tenant(A)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_logs_every_key() {
    let db = seeded().await;
    let mut writer = db.session().await;
    let copy = "copy tenant_phone_numbers (tenant_id, e164, default_language, timezone) from stdin";
    let mut sink = Box::pin(writer.client().copy_in(copy).await.unwrap());
    let lines: String = (0..3)
        .map(|n| format!("{A}\t+1555000010{n}\ten\tUTC\n"))
        .collect();
    sink.send(bytes::Bytes::from(lines)).await.unwrap();
    sink.as_mut().finish().await.unwrap();
    assert_eq!(
        logged(&db).await,
        [
            "number +15550000100",
            "number +15550000101",
            "number +15550000102"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_with_its_parent_is_logged_once_per_table_and_key() {
    let db = seeded().await;
    assert_eq!(
        logs(&db, &format!("delete from prompts where id = '{PROMPT}'")).await,
        [prompt(PROMPT), prompt(PROMPT), tenant(A)]
    );
    db.sql("delete from tenants").await;
    let twice: i64 =
        db.value("select count(*) from (select from sidetone.change group by kind, id having count(*) > 4) d").await;
    assert_eq!(twice, 0);
    db.sql("delete from sidetone.change").await;
    let left: i64 = db
        .value("select (select count(*) from prompts) + (select count(*) from prompt_versions)
                     + (select count(*) from tenant_phone_numbers) + (select count(*) from tenant_users)")
        .await;
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cascade_of_300_tenants_logs_each_key_once_per_table_and_rings_once() {
    let db = Cluster::shared().database().await;
    db.sql(
        "insert into tenants (name, slug, status) select 'n', i, 'active' from generate_series(1, 300) i;
         insert into tenant_settings (tenant_id, model) select id, 'm' from tenants;
         insert into tenant_phone_numbers (tenant_id, e164, default_language, timezone)
         select id, '+1555' || lpad(slug, 7, '0'), 'en', 'UTC' from tenants;
         insert into prompts (tenant_id, name, scope) select id, n::text, 'global' from tenants, generate_series(1, 3) n;
         insert into prompt_versions (prompt_id, version, content) select id, n, 'x' from prompts, generate_series(1, 3) n;
         insert into prompt_bindings (prompt_id) select id from prompts;
         truncate sidetone.change",
    )
    .await;
    let listener = db.session().await;
    listener.sql("listen sidetone").await;
    db.sql("delete from tenants").await;
    let counts: Vec<String> = db
        .column("select kind || ' ' || count(*) || ' ' || count(distinct id) from sidetone.change group by kind order by 1")
        .await;
    // prompt: versions and bindings; tenant: tenants, settings, prompts
    assert_eq!(
        counts,
        ["number 300 300", "prompt 1800 900", "tenant 900 300"]
    );
    assert_eq!(listener.notifications().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_author_who_leaves_leaves_his_versions_and_logs_nothing() {
    let db = seeded().await;
    assert_eq!(logs(&db, "delete from users").await, NOTHING);
    assert_eq!(
        db.value::<i64>("select count(*) from prompt_versions where created_by_user_id is null")
            .await,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_goes_with_its_number() {
    let db = seeded().await;
    assert_eq!(
        logs(&db, "delete from tenant_phone_numbers").await,
        ["number +15550000001".to_owned(), prompt(PROMPT)]
    );
    assert_eq!(
        db.value::<i64>("select count(*) from prompt_bindings")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_thousand_numbers_are_logged_as_their_tenants() {
    let db = seeded().await;
    let insert = |first: u32, count: u32, tenant: &str| {
        format!(
            "insert into tenant_phone_numbers (tenant_id, e164, default_language, timezone)
             select '{tenant}', '+1' || i, 'en', 'UTC' from generate_series({first}::bigint, {first}::bigint + {count} - 1) i"
        )
    };
    let thousand = logs(&db, &insert(3_000_000_000, 1000, A)).await;
    assert_eq!(thousand.len(), 1000);
    assert!(thousand.iter().all(|row| row.starts_with("number +13")));
    assert_eq!(
        logs(&db, &insert(3_100_000_000, 1001, B)).await,
        [format!("numbers_of {B}")]
    );
    // Old and new tenant.
    assert_eq!(
        logs(
            &db,
            &format!("update tenant_phone_numbers set tenant_id = '{A}' where tenant_id = '{B}'")
        )
        .await,
        [format!("numbers_of {A}"), format!("numbers_of {B}")]
    );
    // Two keys a number: 501 renamed numbers are 1 002 keys.
    let rename = "update tenant_phone_numbers set e164 = '+7' || substr(e164, 2)
                   where e164 in (select e164 from tenant_phone_numbers where e164 like '+13%' order by 1 limit";
    assert_eq!(logs(&db, &format!("{rename} 500)")).await.len(), 1000);
    assert_eq!(
        logs(&db, &format!("{rename} 501)")).await,
        [format!("numbers_of {A}")]
    );
    assert_eq!(
        logs(&db, "delete from tenant_phone_numbers").await,
        [format!("numbers_of {A}"), prompt(PROMPT)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_logs_that_anything_may_have_changed() {
    let db = seeded().await;
    assert_eq!(logs(&db, "truncate prompt_bindings").await, ["all"]);
    assert_eq!(logs(&db, "truncate tenants cascade").await, ["all"; 7]);
    assert_eq!(logs(&db, "truncate tenant_users").await, NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn session_replication_role_does_not_silence_the_log() {
    let db = seeded().await;
    for role in ["replica", "local"] {
        let sql = format!(
            "set session_replication_role = {role}; update tenants set name = name || '!' where slug = 'a'"
        );
        assert_eq!(logs(&db, &sql).await, [tenant(A)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_search_path_changes_nothing() {
    let db = seeded().await;
    let role = format!("hostile_{}", db.name());
    db.sql(&format!(
        "create role {role} login; grant all on all tables in schema public to {role};
         create schema evil authorization {role}; grant temp on database {} to {role}",
        db.name()
    ))
    .await;
    let writer = db.session_as(&role).await;
    writer
        .sql(
            "create function evil.no(anyelement, anyelement) returns boolean language sql as 'select false';
             create operator evil.<> (leftarg = anyelement, rightarg = anyelement, function = evil.no);
             create operator evil.= (leftarg = anyelement, rightarg = anyelement, function = evil.no);
             create function evil.record(text, text[]) returns void language sql as 'select';
             create function evil.pg_notify(text, text) returns void language sql as 'select';
             create function evil.pg_current_xact_id() returns xid8 language sql as $$ select '1'::xid8 $$;
             create function evil.now() returns timestamptz language sql as $$ select 'epoch'::timestamptz $$;
             create table evil.change (xid xid8, kind text, id text, at timestamptz);
             create temp table change (xid xid8, kind text, id text, at timestamptz);
             create temp table prompts (id uuid, tenant_id uuid);
             create temp table meta (doorbell boolean);
             set search_path = evil, pg_temp, public, pg_catalog;",
        )
        .await;
    let listener = db.session().await;
    listener.sql("listen sidetone").await;
    writer
        .sql("update public.tenants set name = 'renamed' where slug operator(pg_catalog.=) 'a'")
        .await;
    let xids: Vec<String> = db.column("select xid::text from sidetone.change").await;
    assert_eq!(
        listener.notifications().await,
        [("sidetone".to_owned(), xids[0].clone())]
    );
    assert_eq!(logged(&db).await, [tenant(A)]);
    assert!(
        db.value::<bool>(
            "select updated_at > now() - interval '1 hour' from public.tenants where slug = 'a'"
        )
        .await
    );
    assert!(
        writer
            .value::<bool>("select exists (select from pg_catalog.pg_class)")
            .await
    );
    db.sql(&format!("grant usage on schema sidetone to {role}; grant execute on function sidetone.armed() to {role}")).await;
    assert!(writer.value::<bool>("select sidetone.armed()").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_without_any_right_on_the_feed_is_logged_and_cannot_touch_the_log() {
    let db = seeded().await;
    let role = format!("writer_{}", db.name());
    db.sql(&format!("create role {role} login; grant select, insert, update, delete, truncate on all tables in schema public to {role}"))
        .await;
    let writer = db.session_as(&role).await;
    writer
        .sql("update tenants set name = 'renamed' where slug = 'a'")
        .await;
    writer.sql("truncate prompt_bindings").await;
    assert_eq!(logged(&db).await, ["all".to_owned(), tenant(A)]);
    for sql in [
        "select * from sidetone.change",
        "insert into sidetone.change values ('1', 'all', '', now())",
        "update sidetone.meta set doorbell = false",
        "select sidetone.record('all', '{x}')",
        "select sidetone.prune()",
        "create trigger mine after insert on tenants execute function sidetone.table_truncated()",
    ] {
        let err = writer.try_sql(sql).await.unwrap_err();
        assert!(err.starts_with("42501"), "{sql}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_changes_its_type_keeps_being_followed_in_the_same_session() {
    let db = seeded().await;
    db.sql(
        "update tenants set name = 'before' where slug = 'a'; update prompts set name = 'before'",
    )
    .await;
    logged(&db).await;
    db.sql(
        "alter table tenants alter column name type text, alter column status type text;
         alter table tenant_settings alter column business_hours type json using business_hours::json;
         alter table prompts add column note json default '{}'",
    )
    .await;
    assert_eq!(
        logs(&db, "update tenants set name = 'after' where slug = 'a'").await,
        [tenant(A)]
    );
    assert_eq!(
        logs(
            &db,
            r#"update tenant_settings set business_hours = '{"mon":[]}'"#
        )
        .await,
        [tenant(A)]
    );
    assert_eq!(
        logs(&db, r#"update prompts set note = '{"a":1}'"#).await,
        NOTHING
    );
    assert!(db.value::<bool>("select sidetone.armed()").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_statements_in_one_transaction_ring_once() {
    let db = seeded().await;
    let listener = db.session().await;
    listener.sql("listen sidetone").await;
    db.sql("do $$ begin for i in 1..10000 loop update tenants set name = i where slug = 'a'; end loop; end $$").await;
    let xid: String = db
        .value("select distinct xid::text from sidetone.change")
        .await;
    assert_eq!(
        listener.notifications().await,
        [("sidetone".to_owned(), xid)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn subtransactions_log_under_the_transaction_they_belong_to() {
    let db = seeded().await;
    let listener = db.session().await;
    listener.sql("listen sidetone").await;
    db.sql("begin").await;
    for n in 0..80 {
        db.sql(&format!(
            "savepoint s{n}; update tenants set name = 'n{n}' where slug = 'a'"
        ))
        .await;
    }
    db.sql("rollback to s40; commit").await;
    assert_eq!(
        db.value::<i64>("select count(*) from sidetone.change")
            .await,
        40
    );
    let xid: String = db
        .value("select distinct xid::text from sidetone.change")
        .await;
    assert_eq!(
        listener.notifications().await,
        [("sidetone".to_owned(), xid)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_rows_are_one_log_row_and_one_doorbell() {
    let db = seeded().await;
    db.sql(&format!(
        "insert into prompt_versions (prompt_id, version, content)
         select '{OTHER_PROMPT}', i, repeat('x', 100) from generate_series(1, 100000) i;"
    ))
    .await;
    assert_eq!(logged(&db).await, [prompt(OTHER_PROMPT)]);
    let listener = db.session().await;
    listener.sql("listen sidetone").await;
    assert_eq!(
        logs(
            &db,
            "update prompt_versions set content = content || 'y' where version > 1"
        )
        .await,
        [prompt(OTHER_PROMPT)]
    );
    assert_eq!(listener.notifications().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_in_opposite_order_neither_wait_nor_deadlock() {
    let db = seeded().await;
    db.sql(&format!(
        "insert into tenant_credentials (tenant_id, provider, name, data_ciphertext)
         select t, 'p', w, 'x' from unnest('{{{A},{B}}}'::uuid[]) t, unnest('{{one,two}}'::text[]) w"
    ))
    .await;
    let (one, two) = (db.session().await, db.session().await);
    let write = |tenant: &str, who: &str| {
        format!(
            "update tenant_credentials set data_ciphertext = 'y' where tenant_id = '{tenant}' and name = '{who}'"
        )
    };
    for session in [&one, &two] {
        session.sql("set lock_timeout = '1ms'; begin").await;
    }
    one.sql(&write(A, "one")).await;
    two.sql(&write(B, "two")).await;
    one.sql(&write(B, "one")).await;
    two.sql(&write(A, "two")).await;
    two.sql("commit").await;
    one.sql("commit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logged_change_is_never_committed_asynchronously() {
    let db = seeded().await;
    let show = "select current_setting('synchronous_commit')";
    db.sql("begin; set local synchronous_commit = off; update users set name = 'x'; update tenants set name = name").await;
    assert_eq!(db.value::<String>(show).await, "off");
    db.sql("savepoint s; update tenants set name = 'x'").await;
    assert_eq!(db.value::<String>(show).await, "on");
    db.sql("rollback to s").await;
    assert_eq!(db.value::<String>(show).await, "off");
    db.sql("update tenants set name = 'y'").await;
    assert_eq!(db.value::<String>(show).await, "on");
    db.sql("commit; set synchronous_commit = local; begin; update tenants set name = 'z'")
        .await;
    assert_eq!(db.value::<String>(show).await, "local");
    db.sql("commit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_doorbell_a_change_can_be_prepared_and_is_logged_when_it_commits() {
    let db = seeded().await;
    let (write, name) = ("update tenants set name = 'x' where slug = 'a'", db.name());
    db.sql(&format!("begin; {write}")).await;
    let err = db
        .try_sql(&format!("prepare transaction '{name}'"))
        .await
        .unwrap_err();
    assert!(err.contains("NOTIFY"), "{err}");
    db.sql("update sidetone.meta set doorbell = false").await;
    let listener = db.session().await;
    listener.sql("listen sidetone").await;
    db.sql(&format!("begin; {write}; prepare transaction '{name}'"))
        .await;
    assert_eq!(logged(&db).await, NOTHING);
    db.sql(&format!("commit prepared '{name}'")).await;
    assert_eq!(logged(&db).await, [tenant(A)]);
    db.sql(&format!(
        "begin; update tenants set name = 'y'; prepare transaction '{name}'"
    ))
    .await;
    db.sql(&format!("rollback prepared '{name}'")).await;
    assert_eq!(logged(&db).await, NOTHING);
    assert_eq!(listener.notifications().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_is_armed_only_with_every_trigger_there_and_always_on() {
    let db = seeded().await;
    let armed = "select sidetone.armed()";
    for table in TABLES {
        for trigger in [
            "sidetone_insert",
            "sidetone_update",
            "sidetone_delete",
            "sidetone_truncate",
        ] {
            for state in ["disable", "enable", "enable replica"] {
                db.sql(&format!("alter table {table} {state} trigger {trigger}"))
                    .await;
                assert!(!db.value::<bool>(armed).await, "{table} {state} {trigger}");
            }
            db.sql(&format!(
                "alter table {table} enable always trigger {trigger}"
            ))
            .await;
            assert!(db.value::<bool>(armed).await, "{table} {trigger}");
        }
    }
    let replace = |when: &str, function: &str, events: &str| {
        format!(
            "begin; drop trigger sidetone_truncate on tenants;
             create trigger sidetone_truncate after {events} on tenants for each statement {when} execute function {function}();
             alter table tenants enable always trigger sidetone_truncate"
        )
    };
    for (sql, expected) in [
        ("begin; alter table tenants disable trigger user".to_owned(), false),
        ("begin; drop trigger sidetone_update on prompts".to_owned(), false),
        ("begin; alter trigger sidetone_update on prompts rename to x".to_owned(), false),
        ("begin; drop table prompt_bindings".to_owned(), false),
        ("begin; alter table prompts rename to prompts_old; create table prompts (like prompts_old)".to_owned(), false),
        ("begin; drop function sidetone.prompts_changed cascade".to_owned(), false),
        (replace("", "sidetone.tenants_changed", "truncate"), false),
        (replace("when (false)", "sidetone.table_truncated", "truncate"), false),
        (replace("", "sidetone.table_truncated", "insert"), false),
        (replace("", "sidetone.table_truncated", "truncate"), true),
    ] {
        db.sql(&sql).await;
        assert_eq!(db.value::<bool>(armed).await, expected, "{sql}");
        db.sql("rollback").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_security_that_hides_rows_from_the_daemon_disarms_the_feed_for_it() {
    let db = seeded().await;
    let daemon = db.as_sidetone().await;
    for table in TABLES {
        assert!(daemon.value::<bool>("select sidetone.armed()").await);
        db.sql(&format!("alter table {table} enable row level security"))
            .await;
        assert!(
            !daemon.value::<bool>("select sidetone.armed()").await,
            "{table}"
        );
        assert!(db.value::<bool>("select sidetone.armed()").await);
        db.sql(&format!("alter table {table} disable row level security"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_deletes_what_is_older_than_kept_and_raises_the_floor_past_it() {
    // A cluster of its own: transactions running elsewhere in a cluster keep log rows from being pruned.
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    seed(&db).await;
    let daemon = db.as_sidetone().await;
    let floor = "select floor::text::bigint from sidetone.meta";
    db.sql("update tenants set name = 'old' where slug = 'a'")
        .await;
    let old: i64 = db
        .value("select max(xid::text::bigint) from sidetone.change")
        .await;
    db.sql("update sidetone.change set at = now() - interval '8 days'")
        .await;
    db.sql("update tenants set name = 'new' where slug = 'b'")
        .await;
    assert!(db.value::<i64>(floor).await <= old);
    assert_eq!(daemon.value::<i64>("select sidetone.prune()").await, 1);
    assert_eq!(db.value::<i64>(floor).await, old + 1);
    assert_eq!(daemon.value::<i64>("select sidetone.prune()").await, 0);
    assert_eq!(db.value::<i64>(floor).await, old + 1);
    assert_eq!(logged(&db).await, [tenant(B)]);

    // Older rows deleted later do not lower it.
    db.sql("update sidetone.meta set floor = pg_current_xact_id()")
        .await;
    let high: i64 = db.value(floor).await;
    db.sql("insert into sidetone.change values ('700', 'all', '', now() - interval '8 days')")
        .await;
    assert_eq!(daemon.value::<i64>("select sidetone.prune()").await, 1);
    assert_eq!(db.value::<i64>(floor).await, high);
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_keeps_what_is_not_below_the_oldest_running_transaction() {
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    seed(&db).await;
    db.sql("update sidetone.meta set keep = '0'").await;
    let idle = db.session().await;
    idle.sql("begin; update users set name = 'idle'").await;
    db.sql("update tenants set name = 'x' where slug = 'a'")
        .await;
    assert_eq!(db.value::<i64>("select sidetone.prune()").await, 0);
    idle.sql("commit").await;
    assert_eq!(db.value::<i64>("select sidetone.prune()").await, 1);
    let reachable = "select floor <= pg_snapshot_xmin(pg_current_snapshot()) from sidetone.meta";
    assert!(db.value::<bool>(reachable).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_prunes_at_a_time_and_the_others_do_not_wait() {
    let db = seeded().await;
    let (one, two) = (db.session().await, db.session().await);
    one.sql("begin; select sidetone.prune()").await;
    let second = tokio::time::timeout(
        Duration::from_secs(20),
        two.value::<i64>("select sidetone.prune()"),
    );
    assert_eq!(second.await.unwrap(), 0);
    one.sql("commit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_rows_and_a_floor_from_another_servers_future_are_pruned_away() {
    let db = seeded().await;
    db.sql("insert into sidetone.change values ('900000000000', 'all', '', now()); update sidetone.meta set floor = '900000000001'")
        .await;
    db.sql("begin; update tenants set name = 'own' where slug = 'a'")
        .await;
    assert_eq!(db.value::<i64>("select sidetone.prune()").await, 1);
    db.sql("commit").await;
    assert!(
        db.value::<bool>(
            "select floor <= pg_snapshot_xmin(pg_current_snapshot()) from sidetone.meta"
        )
        .await
    );
    assert_eq!(logged(&db).await, [tenant(A)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_works_under_a_publication_for_all_tables() {
    let cluster = Cluster::own(Options::default().set("wal_level", "logical"));
    let db = cluster.database().await;
    seed(&db).await;
    db.sql("create publication everything for all tables").await;
    db.sql("update sidetone.meta set keep = '0'; update tenants set name = 'x' where slug = 'a'")
        .await;
    assert_eq!(db.value::<i64>("select sidetone.prune()").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_role_reads_what_an_answer_is_made_of_and_nothing_else() {
    let db = seeded().await;
    let daemon = db.as_sidetone().await;
    for sql in [
        "select id, name, slug, status from tenants",
        "select tenant_id, model, transcription_provider, recording_enabled, business_hours from tenant_settings",
        "select id, tenant_id, provider, name, data_ciphertext from tenant_credentials",
        "select id, tenant_id, e164, label, default_language, default_voice, timezone, active from tenant_phone_numbers",
        "select id, tenant_id, name, scope, active, priority, created_at from prompts",
        "select id, prompt_id, version, content from prompt_versions",
        "select id, prompt_id, account_ref, event_type, phone_number_id, conditions_json, created_at from prompt_bindings",
        "select * from sidetone.meta",
        "select * from sidetone.change",
        "select * from sidetone._sqlx_migrations",
        "select sidetone.armed(), sidetone.prune()",
        "select pg_current_snapshot(), pg_notification_queue_usage(), system_identifier from pg_control_system()",
        "listen sidetone",
    ] {
        daemon.sql(sql).await;
    }
    for sql in [
        "select hash_password from users",
        "select id from users",
        "select id from tenant_users",
        "select description from prompts",
        "select created_by_user_id from prompt_versions",
        "select * from prompts",
        "update tenants set status = 'active'",
        "delete from prompts",
        "insert into sidetone.change values ('1', 'all', '', now())",
        "update sidetone.meta set doorbell = false",
        "select sidetone.record('all', '{x}')",
        "create table sidetone.mine ()",
        "create role other",
        "set role postgres",
    ] {
        let err = daemon.try_sql(sql).await.unwrap_err();
        assert!(err.starts_with("42501"), "{sql}: {err}");
    }
    let limited: bool = db
        .value("select rolcanlogin and not rolsuper and not rolbypassrls and rolconnlimit > 0 from pg_roles where rolname = 'sidetone'")
        .await;
    assert!(limited);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_script_may_run_again_and_takes_back_what_it_does_not_give() {
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    db.sql("grant select on users to sidetone; grant execute on function sidetone.record(text, text[]) to public").await;
    db.sql(include_str!("../../deploy/sql/roles.sql")).await;
    let daemon = db.as_sidetone().await;
    for sql in [
        "select id from users",
        "select sidetone.record('all', '{x}')",
    ] {
        assert!(
            daemon.try_sql(sql).await.unwrap_err().starts_with("42501"),
            "{sql}"
        );
    }
    daemon.sql("select id from tenants").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_rows_can_be_stored_and_are_logged() {
    let db = Cluster::shared().database().await;
    db.load_example_sealed(|c| {
        assert_eq!(c.tenant, "6f717b5a-1a2b-4c3d-9e8f-112233445566");
        format!("{}/{}", c.provider, c.name)
    })
    .await;
    let file: serde_json::Value =
        serde_json::from_str(include_str!("../../examples/platform.json")).unwrap();
    for (table, expected) in file.as_object().unwrap() {
        let stored: i64 = db
            .value(&format!("select count(*) from public.{table}"))
            .await;
        assert_eq!(
            stored,
            i64::try_from(expected.as_array().unwrap().len()).unwrap(),
            "{table}"
        );
    }
    assert_eq!(
        db.value::<String>("select data_ciphertext from tenant_credentials")
            .await,
        "openai/default"
    );
    assert_eq!(
        db.value::<i64>("select count(*) from sidetone.change where kind = 'number'")
            .await,
        3
    );
    let exact = "select created_at = '2025-08-26T12:07:00Z' from prompt_bindings where conditions_json ? 'zone_in'";
    assert!(db.value::<bool>(exact).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_comes_back_with_its_rows_on_the_same_port_whatever_befell_it() {
    use crate::cluster::Stop;
    let cluster = Cluster::own(Options::default().tcp());
    let name = {
        let db = cluster.database().await;
        seed(&db).await;
        db.name().to_owned()
    };
    let url = cluster.tcp_url("postgres", &name);
    for breakage in [
        (|c: &Cluster| c.stop(Stop::Fast)) as fn(&Cluster),
        |c| c.stop(Stop::Immediate),
        |c| c.kill(),
        |c| {
            c.pause();
            c.kill();
        },
    ] {
        breakage(&cluster);
        assert_eq!(cluster.processes().len(), 0);
        cluster.start();
        assert_eq!(cluster.tcp_url("postgres", &name), url);
        let over_tcp = Session::connect(&url.parse().unwrap()).await.unwrap();
        assert_eq!(
            over_tcp.value::<i64>("select count(*) from tenants").await,
            2
        );
    }
    let db = cluster.open(&name).await;
    cluster.pause();
    assert!(
        tokio::time::timeout(Duration::from_millis(200), db.sql("select 1"))
            .await
            .is_err()
    );
    cluster.resume();
    db.sql("select 1").await;
}
