//! The statements of the feed. A document is what the node keeps of a row, as JSON text; its SHA-256 is the row's hash.
//!
//! Always true: keys, rows and snapshot of a pull come from one statement, and so from one snapshot. The same
//! expression makes a document wherever it is read or hashed.

/// The document of a row `n` of `tenant_phone_numbers`.
macro_rules! number_doc {
    () => {
        "json_build_object('id', n.id, 'tenant_id', n.tenant_id, 'e164', n.e164, 'label', n.label, \
         'default_language', n.default_language, 'default_voice', n.default_voice, 'timezone', n.timezone, \
         'active', n.active)::text"
    };
}

/// The document of a row `t` of `tenants` with everything of the tenant but its numbers.
/// What is larger than any limit allows stays in Postgres: its size is told instead.
macro_rules! tenant_doc {
    () => {
        "json_build_object(
           'tenant', json_build_object('id', t.id, 'name', t.name, 'slug', t.slug, 'status', t.status),
           'settings', (select json_build_object('model', s.model, 'transcription_provider', s.transcription_provider,
                'recording_enabled', s.recording_enabled, 'business_hours', s.business_hours)
             from public.tenant_settings s where s.tenant_id = t.id limit 1),
           'credentials', (select coalesce(json_agg(json_build_object('id', c.id, 'provider', c.provider, 'name', c.name,
                'bytes', octet_length(c.data_ciphertext),
                'data_ciphertext', case when octet_length(c.data_ciphertext) <= 65536 then c.data_ciphertext end)
                order by c.id), '[]')
             from (select id, provider, name, data_ciphertext from public.tenant_credentials
                    where tenant_id = t.id order by id limit 10001) c),
           'prompts', (select coalesce(json_agg(json_build_object('id', p.id, 'name', p.name, 'scope', p.scope,
                'active', p.active, 'priority', p.priority, 'created_at', p.created_at,
                'version', (select json_build_object('id', v.id, 'version', v.version, 'bytes', octet_length(v.content),
                     'content', case when octet_length(v.content) <= 1048576 then v.content end)
                   from public.prompt_versions v where v.prompt_id = p.id order by v.version desc, v.id limit 1),
                'bindings', (select coalesce(json_agg(json_build_object('id', b.id, 'account_ref', b.account_ref,
                     'event_type', b.event_type, 'phone_number_id', b.phone_number_id,
                     'conditions_json', b.conditions_json, 'created_at', b.created_at) order by b.id), '[]')
                   from (select id, account_ref, event_type, phone_number_id, conditions_json, created_at
                           from public.prompt_bindings where prompt_id = p.id order by id limit 10001) b))
                order by p.id), '[]')
             from (select id, name, scope, active, priority, created_at from public.prompts
                    where tenant_id = t.id order by id limit 10001) p))::text"
    };
}

/// `$2`-like filters: `{0}` is the placeholder of the list of slugs and ids, null for every tenant.
macro_rules! held_tenant {
    ($list:literal) => {
        concat!(
            "(",
            $list,
            "::text[] is null or t.slug = any(",
            $list,
            ") or t.id::text = any(",
            $list,
            "))"
        )
    };
}

/// A number `n` is held when its tenant is.
macro_rules! held_number {
    ($list:literal) => {
        concat!(
            "(", $list, "::text[] is null or exists (select from public.tenants t where t.id = n.tenant_id and ",
            held_tenant!($list), "))"
        )
    };
}

/// Which server answers, started when, in which role, which database.
macro_rules! identity {
    () => {
        "json_build_object(
             'system', (select system_identifier::text from pg_control_system()),
             'started', (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint::text,
             'recovery', pg_is_in_recovery(),
             'database', (select oid::bigint from pg_database where datname = current_database()))"
    };
}

/// Everything of a pull beside keys and rows.
macro_rules! header {
    () => {
        concat!("json_build_object(
           'snapshot', pg_current_snapshot()::text,
           'identity', ", identity!(), ",
           'armed', sidetone.armed(),
           'schema_version', (select schema_version from sidetone.meta),
           'floor', (select floor::text from sidetone.meta),
           'future', exists (select from sidetone.change where xid >= pg_snapshot_xmax(pg_current_snapshot())),
           'queue_usage', case when pg_is_in_recovery() then 0 else pg_notification_queue_usage() end)::text")
    };
}

/// The log since a cursor: `$1` everything from this transaction id on, `$2` and these.
/// Two arms, because one with OR chose a full scan. A prompt's tenant is looked up here, in the reader's snapshot.
macro_rules! log_since {
    () => {
        "log as materialized (
            (select kind, id, at from sidetone.change where xid >= $1::text::xid8 order by xid limit 50001)
            union all
            (select kind, id, at from sidetone.change where xid = any($2::text[]::xid8[]) limit 50001)
         ), keys as materialized (
            select kind, id, max(age) as age from (
              select kind, id, clock_timestamp() - at as age from log where kind <> 'prompt'
              union all
              select 'tenant', p.tenant_id::text, clock_timestamp() - l.at
                from log l join public.prompts p
                  on p.id = case when l.id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' then l.id::uuid end
               where l.kind = 'prompt') k
            group by kind, id
         )"
    };
}

/// One statement: header, changed keys and their rows. `$3` tenants held, `$4` most keys whose rows come along, and no more
/// than a hundred tenants: theirs are large.
pub(super) const PULL: &str = concat!(
    "with ", log_since!(), ",
     whole as materialized (select (select count(*) from keys) <= $4::bigint and (select count(*) from log) <= 50000
        and (select count(*) from keys where kind = 'tenant') <= 100 as is),
     tenants as materialized (select id::uuid from keys, whole where whole.is and kind = 'tenant'
        and id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'),
     numbers as materialized (select id from keys, whole where whole.is and kind = 'number')
     select 0::int, case when whole.is then 'whole' else 'part' end, ", header!(), " from whole
     union all
     select 1, kind, json_build_array(id, greatest(0, (extract(epoch from age) * 1000000)::bigint))::text from keys
     union all
     select 2, n.tenant_id::text || ' ' || n.e164, ", number_doc!(), "
       from public.tenant_phone_numbers n where n.e164 in (select id from numbers) and ", held_number!("$3"), "
     union all
     select 3, t.id::text, ", tenant_doc!(), "
       from public.tenants t where t.id in (select id from tenants) and ", held_tenant!("$3")
);

/// The header alone, first statement of a longer look in one snapshot.
pub(super) const HEADER: &str = concat!("select ", header!());

/// The changed keys alone: `$1`, `$2` as in [`PULL`].
pub(super) const KEYS: &str = concat!(
    "with ",
    log_since!(),
    "
     select kind, id, greatest(0, (extract(epoch from age) * 1000000)::bigint) from keys
     union all
     select 'all', '', 0 from (select count(*) as n from log) c where c.n > 50000"
);

/// Hash of each held tenant: `$1` tenants held.
pub(super) const TENANT_DIGESTS: &str = concat!(
    "select t.id, encode(sha256(convert_to(",
    tenant_doc!(),
    ", 'UTF8')), 'hex') from public.tenants t where ",
    held_tenant!("$1")
);

/// Count and hash of the numbers of each tenant, in byte order of the numbers: `$1` tenants held.
pub(super) const NUMBER_DIGESTS: &str = concat!(
    "select n.tenant_id, count(*), encode(sha256(string_agg(sha256(convert_to(",
    number_doc!(),
    ", 'UTF8')), ''::bytea
        order by n.e164 collate \"C\")), 'hex')
       from public.tenant_phone_numbers n where ",
    held_number!("$1"),
    " group by n.tenant_id"
);

/// All tenants: `$1` tenants held.
pub(super) const ALL_TENANTS: &str = concat!(
    "select t.id, ",
    tenant_doc!(),
    " from public.tenants t where ",
    held_tenant!("$1"),
    " order by t.id"
);

/// Tenants by id: `$1` ids, `$2` tenants held.
pub(super) const TENANTS: &str = concat!(
    "select t.id, ",
    tenant_doc!(),
    " from public.tenants t where t.id = any($1::uuid[]) and ",
    held_tenant!("$2"),
    " order by t.id"
);

/// The columns of a number's document in its order. Where they are of the types of the platform's model, the document is
/// written by the reader: that is half the server's work.
macro_rules! number_columns {
    () => {
        "n.tenant_id, n.e164, n.id, n.label, n.default_language, n.default_voice, n.timezone, n.active"
    };
}

/// Tenant, number and document.
macro_rules! number_with_doc {
    () => {
        concat!("n.tenant_id, n.e164::text, ", number_doc!())
    };
}

/// Where and in which order numbers are read that are not all of a pull: as columns and as documents.
macro_rules! numbers_where {
    ($rest:expr) => {
        Numbers {
            columns: concat!(
                "select ",
                number_columns!(),
                " from public.tenant_phone_numbers n where ",
                $rest
            ),
            documents: concat!(
                "select ",
                number_with_doc!(),
                " from public.tenant_phone_numbers n where ",
                $rest
            ),
        }
    };
}

/// One question in two forms.
pub(super) struct Numbers {
    /// Answered with columns.
    pub(super) columns: &'static str,
    /// Answered with documents.
    pub(super) documents: &'static str,
}

/// All numbers, in byte order: so they are written one after the other. `$1` tenants held.
pub(super) const ALL_NUMBERS: Numbers = numbers_where!(concat!(
    held_number!("$1"),
    " order by n.e164 collate \"C\""
));

/// The same where that is the database's own order: its index has them in it, and nothing is sorted before the first
/// one comes.
pub(super) const ALL_NUMBERS_AS_INDEXED: Numbers =
    numbers_where!(concat!(held_number!("$1"), " order by n.e164"));

/// Numbers of tenants: `$1` tenants, `$2` tenants held. In the order of tenant and number.
pub(super) const NUMBERS_OF: Numbers = numbers_where!(concat!(
    "n.tenant_id = any($1::uuid[]) and ",
    held_number!("$2"),
    " order by n.tenant_id, n.e164 collate \"C\""
));

/// Numbers by number: `$1` numbers, `$2` tenants held. In byte order.
pub(super) const NUMBERS: Numbers = numbers_where!(concat!(
    "n.e164 = any($1::text[]) and ",
    held_number!("$2"),
    " order by n.e164 collate \"C\""
));

/// One number with its tenant, before the first synchronisation: `$1` number, `$2` tenants held.
pub(super) const ONE_NUMBER: &str = concat!(
    "select n.tenant_id, ",
    number_doc!(),
    " as number, (select ",
    tenant_doc!(),
    " from public.tenants t
        where t.id = n.tenant_id) as tenant
      from public.tenant_phone_numbers n where n.e164 = $1 and ",
    held_number!("$2")
);

/// Who answers, and held tenants that are not active: `$1` tenants held. Bounded, because it is asked often.
pub(super) const NOT_ACTIVE: &str = concat!(
    "select ",
    identity!(),
    "::text, array(select t.id from public.tenants t where t.status <> 'active' and ",
    held_tenant!("$1"),
    " limit 100000)"
);

/// The id of a tenant by slug or id.
pub(super) const TENANT_ID: &str = "select t.id from public.tenants t where t.slug = $1 or t.id::text = $1 order by t.slug = $1 desc limit 1";

/// What a session must be told before it is used.
pub(super) const SESSION: &str = concat!(
    "select current_setting('server_version'), current_setting('server_encoding'),
     to_regclass('sidetone.meta') is not null and to_regclass('sidetone.change') is not null, pg_backend_pid(), ",
    identity!(),
    "::text, (select datcollate in ('C', 'POSIX') from pg_database where datname = current_database())"
);

/// How far the primary has written: a standby that has replayed this holds everything that had committed.
pub(super) const WRITTEN: &str = "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8";

/// How far a standby has replayed the log, and how long ago the last transaction it replayed was committed.
pub(super) const REPLAYED: &str = "select (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::int8, \
     greatest(0, extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000)::int8";

/// Whether this session still hears: a transaction pooler accepts LISTEN and delivers to strangers.
pub(super) const LISTENING: &str = "select pg_backend_pid(), exists (select from pg_listening_channels() as c where c = 'sidetone')";

/// Deletes old rows of the log.
pub(super) const PRUNE: &str = "select sidetone.prune()";
