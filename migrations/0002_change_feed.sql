-- The change feed: a log of the keys that committed transactions touched, and what keeps it.
--
-- Always true of this file:
--   * a writer needs no right on schema sidetone, may have any search_path, is never blocked by the
--     log and waits for nobody because of it;
--   * a log row says "read this key again", never what it became: it is read in the reader's snapshot;
--   * one statement logs a key at most once, and nothing when it changed nothing an answer depends on.
--
-- For Postgres 13 to 18: no max(xid8), no arithmetic on it, no MERGE here.

set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '10s';

-- One row of settings and state.
create table sidetone.meta (
    one_row        boolean  primary key default true check (one_row),
    -- Set by every migration. The daemon refuses to call itself fresh on another one.
    schema_version integer  not null,
    -- Whether commits ring. Off for two-phase commit: a transaction that has executed NOTIFY cannot be prepared.
    doorbell       boolean  not null default true,
    -- How long log rows are kept: how long a node may be away and still catch up without a full sync.
    keep           interval not null default '7 days' check (keep >= interval '0'),
    -- Log rows of transactions below this one may be gone. A cursor whose xmin is lower cannot be continued.
    floor          xid8     not null
);

-- The floor of a new log is the oldest transaction still running: cursors from before the log existed lie
-- below it, while a cursor taken now never does.
insert into sidetone.meta (schema_version, floor)
values (2, pg_snapshot_xmin(pg_current_snapshot()));

create table sidetone.change (
    -- The transaction that made the change: top level, with epoch, never reused.
    xid  xid8        not null,
    -- number: the row with this e164.          numbers_of: every number of this tenant.
    -- tenant: what this tenant's answers are made of.
    -- prompt: the tenant of this prompt. The reader looks it up, in the snapshot in which it reads the rows: a
    --         writer would read its own, where a prompt that another transaction is just moving to another tenant
    --         still belongs to the old one, and its change would never be looked for where it ends up.
    -- all:    anything (a table was truncated); id is ''.
    kind text        not null check (kind in ('number', 'tenant', 'prompt', 'numbers_of', 'all')),
    id   text        not null,
    at   timestamptz not null
);
create index change_xid on sidetone.change (xid);
create index change_at on sidetone.change (at);
-- No key is unique here; without this a publication FOR ALL TABLES would make prune() fail.
alter table sidetone.change replica identity full;

-- Appends the keys to the log and rings once for the transaction. Null and repeated keys are dropped; no key left,
-- nothing done.
create function sidetone.record(kind text, ids text[]) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    insert into sidetone.change (xid, kind, id, at)
    select pg_current_xact_id(), $1, key, clock_timestamp()
      from unnest($2) as key
     where key is not null
     group by key;
    if not found then
        return;
    end if;
    -- An edge must not see a commit that a crash of the server takes back.
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    -- A full queue would fail every writer's COMMIT, and it is emptied by nobody but those who ask for its usage.
    if (select doorbell from sidetone.meta) and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('sidetone', pg_current_xact_id()::text);
    end if;
end
$$;

-- The trigger functions, one for each table. Rows are compared as text, which knows every type and every difference
-- (json has no equality, citext and some collations take different texts as equal); the columns compared are exactly
-- those the daemon reads (deploy/sql/roles.sql).

create function sidetone.tenants_changed() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        perform sidetone.record('tenant', array(select id::text from new_rows));
    elsif tg_op = 'DELETE' then
        perform sidetone.record('tenant', array(select id::text from old_rows));
    else
        perform sidetone.record('tenant', array(
            with was as (select id::text as key, row(name, slug, status)::text as content from old_rows),
                 became as (select id::text as key, row(name, slug, status)::text as content from new_rows)
            select key from ((table was except all table became) union all (table became except all table was)) as d));
    end if;
    return null;
end
$$;

create function sidetone.tenant_settings_changed() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        perform sidetone.record('tenant', array(select distinct tenant_id::text from new_rows));
    elsif tg_op = 'DELETE' then
        perform sidetone.record('tenant', array(select distinct tenant_id::text from old_rows));
    else
        perform sidetone.record('tenant', array(
            with was as (select tenant_id::text as key,
                                row(model, transcription_provider, recording_enabled, business_hours)::text as content
                           from old_rows),
                 became as (select tenant_id::text as key,
                                row(model, transcription_provider, recording_enabled, business_hours)::text as content
                           from new_rows)
            select key from ((table was except all table became) union all (table became except all table was)) as d));
    end if;
    return null;
end
$$;

create function sidetone.tenant_credentials_changed() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        perform sidetone.record('tenant', array(select distinct tenant_id::text from new_rows));
    elsif tg_op = 'DELETE' then
        perform sidetone.record('tenant', array(select distinct tenant_id::text from old_rows));
    else
        perform sidetone.record('tenant', array(
            with was as (select tenant_id::text as key, row(id, provider, name, data_ciphertext)::text as content
                           from old_rows),
                 became as (select tenant_id::text as key, row(id, provider, name, data_ciphertext)::text as content
                           from new_rows)
            select key from ((table was except all table became) union all (table became except all table was)) as d));
    end if;
    return null;
end
$$;

-- Old and new number, so that a renamed one is dropped under its old name. More than 1 000 numbers in one statement
-- are logged as the tenants they belonged or belong to.
create function sidetone.tenant_phone_numbers_changed() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    numbers text[];
    tenants text[];
begin
    if tg_op = 'INSERT' then
        select array_agg(distinct e164::text), array_agg(distinct tenant_id::text)
          into numbers, tenants from new_rows;
    elsif tg_op = 'DELETE' then
        select array_agg(distinct e164::text), array_agg(distinct tenant_id::text)
          into numbers, tenants from old_rows;
    else
        with was as (select e164::text as key, tenant_id::text as tenant,
                            row(id, label, default_language, default_voice, timezone, active)::text as content
                       from old_rows),
             became as (select e164::text as key, tenant_id::text as tenant,
                            row(id, label, default_language, default_voice, timezone, active)::text as content
                       from new_rows)
        select array_agg(distinct key), array_agg(distinct tenant)
          into numbers, tenants
          from ((table was except all table became) union all (table became except all table was)) as d;
    end if;
    if cardinality(numbers) > 1000 then
        perform sidetone.record('numbers_of', tenants);
    else
        perform sidetone.record('number', numbers);
    end if;
    return null;
end
$$;

-- created_at counts: it orders prompts of equal priority and scope.
create function sidetone.prompts_changed() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        perform sidetone.record('tenant', array(select distinct tenant_id::text from new_rows));
    elsif tg_op = 'DELETE' then
        perform sidetone.record('tenant', array(select distinct tenant_id::text from old_rows));
    else
        perform sidetone.record('tenant', array(
            with was as (select tenant_id::text as key,
                                row(id, name, scope, active, priority, created_at)::text as content from old_rows),
                 became as (select tenant_id::text as key,
                                row(id, name, scope, active, priority, created_at)::text as content from new_rows)
            select key from ((table was except all table became) union all (table became except all table was)) as d));
    end if;
    return null;
end
$$;

-- The two tables that know their tenant only through their prompt log the prompt. One that is gone or has moved
-- needs no word here: whoever removed or moved it logged the tenants.
create function sidetone.prompt_versions_changed() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        perform sidetone.record('prompt', array(select distinct prompt_id::text from new_rows));
    elsif tg_op = 'DELETE' then
        perform sidetone.record('prompt', array(select distinct prompt_id::text from old_rows));
    else
        perform sidetone.record('prompt', array(
            with was as (select prompt_id::text as key, row(id, version, content)::text as content from old_rows),
                 became as (select prompt_id::text as key, row(id, version, content)::text as content from new_rows)
            select key from ((table was except all table became) union all (table became except all table was)) as d));
    end if;
    return null;
end
$$;

-- created_at counts: of equally special bindings the newest acts.
create function sidetone.prompt_bindings_changed() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        perform sidetone.record('prompt', array(select distinct prompt_id::text from new_rows));
    elsif tg_op = 'DELETE' then
        perform sidetone.record('prompt', array(select distinct prompt_id::text from old_rows));
    else
        perform sidetone.record('prompt', array(
            with was as (select prompt_id::text as key,
                                row(id, account_ref, event_type, phone_number_id, conditions_json, created_at)::text
                                    as content from old_rows),
                 became as (select prompt_id::text as key,
                                row(id, account_ref, event_type, phone_number_id, conditions_json, created_at)::text
                                    as content from new_rows)
            select key from ((table was except all table became) union all (table became except all table was)) as d));
    end if;
    return null;
end
$$;

create function sidetone.table_truncated() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform sidetone.record('all', '{""}');
    return null;
end
$$;

-- ENABLE ALWAYS: session_replication_role = replica must not silence them. For each statement: a trigger for each
-- row made a write of 100 000 rows twelve times as slow.
do $$
declare
    tab text;
    event record;
begin
    foreach tab in array '{tenants,tenant_settings,tenant_credentials,tenant_phone_numbers,prompts,prompt_versions,prompt_bindings}'::text[] loop
        for event in
            select * from (values
                ('insert',   'referencing new table as new_rows'),
                ('update',   'referencing old table as old_rows new table as new_rows'),
                ('delete',   'referencing old table as old_rows'),
                ('truncate', '')
            ) as e (name, sees)
        loop
            execute format('create trigger %I after %s on public.%I %s for each statement execute function sidetone.%I()',
                'sidetone_' || event.name, event.name, tab, event.sees,
                case event.name when 'truncate' then 'table_truncated' else tab || '_changed' end);
            execute format('alter table public.%I enable always trigger %I', tab, 'sidetone_' || event.name);
        end loop;
    end loop;
end
$$;

-- Whether the log can be believed by whoever asks: every trigger is there, is fired for every writer and calls our
-- function, and no row-level security hides rows from the role that asks.
create function sidetone.armed() returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select count(t.oid) = count(*) and not bool_or(coalesce(row_security_active(rel), true))
          from unnest('{tenants,tenant_settings,tenant_credentials,tenant_phone_numbers,prompts,prompt_versions,prompt_bindings}'::text[]) as tab
         cross join (values
            ('sidetone_insert', 4, null, 'new_rows'), ('sidetone_delete', 8, 'old_rows', null),
            ('sidetone_update', 16, 'old_rows', 'new_rows'), ('sidetone_truncate', 32, null, null)
         ) as event (name, tgtype, old_rows, new_rows)
         cross join lateral to_regclass('public.' || tab) as rel
          left join pg_trigger t
            on t.tgrelid = rel
           and t.tgname = event.name
           and t.tgtype = event.tgtype
           and t.tgenabled = 'A'
           and t.tgqual is null
           and t.tgoldtable is not distinct from event.old_rows
           and t.tgnewtable is not distinct from event.new_rows
           and t.tgfoid = to_regprocedure(
                'sidetone.' || case event.tgtype when 32 then 'table_truncated' else tab || '_changed' end || '()')
    );
end
$$;

-- Deletes log rows older than meta.keep, at most 100 000 in one call, and returns how many; 0 also when another
-- session is at it. The floor rises to the newest transaction deleted + 1.
--
-- Rows of transactions not below the oldest one running stay: the floor then never passes the xmin of a cursor taken
-- now, and nobody is sent into a full sync that cannot help.
--
-- A transaction this server has not begun yet comes from a dump of another one. Such rows would be read at every
-- pull, and such a floor would bar every cursor: they are removed, and it is set to the oldest transaction running.
-- This is the one case in which the floor sinks.
create function sidetone.prune() returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    pruned    bigint;
    strangers bigint;
    newest    xid8;
begin
    if not pg_try_advisory_xact_lock(hashtextextended('sidetone.prune', 0)) then
        return 0;
    end if;

    delete from sidetone.change c
     where c.xid >= pg_snapshot_xmax(pg_current_snapshot())
       and c.xid is distinct from pg_current_xact_id_if_assigned();
    get diagnostics strangers = row_count;
    update sidetone.meta m
       set floor = pg_snapshot_xmin(pg_current_snapshot())
     where m.floor > pg_snapshot_xmax(pg_current_snapshot());

    with old as (
        select c.ctid as place
          from sidetone.change c
         where c.at < now() - (select m.keep from sidetone.meta m)
           and c.xid < pg_snapshot_xmin(pg_current_snapshot())
         order by c.xid
         limit 100000
    ), gone as (
        delete from sidetone.change c using old where c.ctid = old.place returning c.xid
    )
    select count(*), (select g.xid from gone g order by g.xid desc limit 1)
      into pruned, newest
      from gone;

    if newest is not null then
        update sidetone.meta m
           set floor = greatest(m.floor, (newest::text::bigint + 1)::text::xid8);
    end if;
    return pruned + strangers;
end
$$;

revoke all on schema sidetone from public;
revoke all on all tables in schema sidetone from public;
revoke all on all functions in schema sidetone from public;
