-- The role sidetone's daemons log in with: it reads what an answer is made of and nothing else.
--
--     psql -v ON_ERROR_STOP=1 -d <database> -f deploy/sql/roles.sql
--
-- Run it after `sidetone migrate`, and again after each later migration, as the owner of the tables or a
-- superuser. It may be run any number of times. It sets no password; until the role has one (or a
-- certificate, or peer authentication) it cannot log in:
--
--     psql -d <database> -c '\password sidetone'

begin;

do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'sidetone') then
        create role sidetone;
    end if;
    -- The limit keeps sidetone from taking every connection: a node holds two, 300 nodes are meant.
    alter role sidetone with login nosuperuser nocreatedb nocreaterole noinherit noreplication nobypassrls
        connection limit 700;
    if exists (select from pg_catalog.pg_auth_members
                where member = (select oid from pg_catalog.pg_roles where rolname = 'sidetone')) then
        raise warning 'role sidetone is a member of other roles and can take their rights with SET ROLE; '
                      'revoke the memberships';
    end if;
    execute pg_catalog.format('grant connect on database %I to sidetone', pg_catalog.current_database());
end
$$;

-- A safety net below the daemon's own time-outs; jit costs more than any query of the daemon.
alter role sidetone set statement_timeout = '5min';
alter role sidetone set lock_timeout = '10s';
alter role sidetone set idle_in_transaction_session_timeout = '1min';
alter role sidetone set jit = off;

-- Grants of an earlier version go first: what is not granted below is not granted.
revoke all on all tables in schema public from sidetone;
revoke all on schema sidetone from public, sidetone;
revoke all on all tables in schema sidetone from public, sidetone;
revoke all on all functions in schema sidetone from public, sidetone;

grant usage on schema public, sidetone to sidetone;

-- Exactly the columns the triggers of migrations/0002_change_feed.sql compare, and the keys.
grant select (id, name, slug, status)
    on public.tenants to sidetone;
grant select (tenant_id, model, transcription_provider, recording_enabled, business_hours)
    on public.tenant_settings to sidetone;
grant select (id, tenant_id, provider, name, data_ciphertext)
    on public.tenant_credentials to sidetone;
grant select (id, tenant_id, e164, label, default_language, default_voice, timezone, active)
    on public.tenant_phone_numbers to sidetone;
grant select (id, tenant_id, name, scope, active, priority, created_at)
    on public.prompts to sidetone;
grant select (id, prompt_id, version, content)
    on public.prompt_versions to sidetone;
grant select (id, prompt_id, account_ref, event_type, phone_number_id, conditions_json, created_at)
    on public.prompt_bindings to sidetone;

grant select on sidetone.meta, sidetone.change to sidetone;
grant execute on function sidetone.armed(), sidetone.prune() to sidetone;

-- Written by `sidetone migrate`; not there when the migrations were applied by other means.
do $$
begin
    if pg_catalog.to_regclass('sidetone._sqlx_migrations') is not null then
        grant select on sidetone._sqlx_migrations to sidetone;
    end if;
end
$$;

commit;
