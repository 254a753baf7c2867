-- The platform's nine tables, in a database that has none of them, some of them or all of them.
--
-- Always true of this file:
--   * no row is inserted, changed or deleted;
--   * what is there is left as it is: types, nullability, names, foreign keys with other actions;
--   * only what is missing is added, and what the rows at hand do not allow is added for new rows
--     only (checks, foreign keys) or left out (unique keys), with a WARNING that says so;
--   * every name carries its schema, so the session's search_path does not matter.

set local search_path = pg_catalog, pg_temp;
-- Waiting for a lock holds up everyone who comes after us: rather give up and be run again.
set local lock_timeout = '10s';
-- Warnings are news, "already exists, skipping" is none.
set local client_min_messages = warning;

create schema if not exists sidetone;

create table if not exists public.tenants (
    id         uuid primary key default gen_random_uuid(),
    name       varchar(255) not null,
    slug       varchar(255) not null,
    status     varchar(20)  not null,
    created_at timestamptz  not null default now(),
    updated_at timestamptz  not null default now()
);

create table if not exists public.users (
    id            uuid primary key default gen_random_uuid(),
    email         varchar(255) not null,
    name          varchar(150) not null,
    hash_password text         not null,
    status        varchar(20)  not null,
    last_login_at timestamptz,
    created_at    timestamptz  not null default now()
);

create table if not exists public.tenant_users (
    id         uuid primary key default gen_random_uuid(),
    tenant_id  uuid        not null,
    user_id    uuid        not null,
    role       varchar(50) not null,
    created_at timestamptz not null default now()
);

create table if not exists public.tenant_credentials (
    id              uuid primary key default gen_random_uuid(),
    tenant_id       uuid         not null,
    provider        varchar(50)  not null,
    name            varchar(100) not null,
    data_ciphertext text         not null,
    created_at      timestamptz  not null default now(),
    updated_at      timestamptz  not null default now()
);

create table if not exists public.tenant_settings (
    tenant_id              uuid primary key,
    model                  varchar(100) not null,
    transcription_provider varchar(50),
    recording_enabled      boolean      not null default false,
    business_hours         jsonb,
    created_at             timestamptz  not null default now(),
    updated_at             timestamptz  not null default now()
);

create table if not exists public.tenant_phone_numbers (
    id               uuid primary key default gen_random_uuid(),
    tenant_id        uuid        not null,
    e164             varchar(20) not null,
    label            varchar(100),
    default_language varchar(10) not null,
    default_voice    varchar(50),
    timezone         varchar(50) not null,
    active           boolean     not null default true,
    created_at       timestamptz not null default now()
);

-- active and priority may be null, as in the platform's model: null means the default.
create table if not exists public.prompts (
    id          uuid primary key default gen_random_uuid(),
    tenant_id   uuid         not null,
    name        varchar(255) not null,
    description text,
    scope       varchar(50)  not null,
    active      boolean      default true,
    priority    integer      default 0,
    created_at  timestamptz  not null default now(),
    updated_at  timestamptz  not null default now()
);

create table if not exists public.prompt_versions (
    id                 uuid primary key default gen_random_uuid(),
    prompt_id          uuid        not null,
    version            integer     not null,
    content            text        not null,
    created_by_user_id uuid,
    created_at         timestamptz not null default now()
);

create table if not exists public.prompt_bindings (
    id              uuid primary key default gen_random_uuid(),
    prompt_id       uuid        not null,
    account_ref     varchar(100),
    event_type      varchar(50),
    phone_number_id uuid,
    conditions_json jsonb       default '{}',
    created_at      timestamptz not null default now()
);

-- What sidetone adds to tables that were there before it.
alter table public.tenant_settings add column if not exists business_hours jsonb;
alter table public.prompt_bindings add column if not exists phone_number_id uuid;
alter table public.prompt_bindings add column if not exists conditions_json jsonb default '{}';

-- A table of the same name that lacks a column of the model is somebody else's: better stop than guess.
do $$
declare
    missing text;
begin
    select string_agg(format('public.%s.%s', want.tab, col), ', ' order by want.tab, col)
      into missing
      from (values
        ('tenants',              '{id,name,slug,status,created_at,updated_at}'),
        ('users',                '{id}'),
        ('tenant_users',         '{id,tenant_id,user_id}'),
        ('tenant_credentials',   '{id,tenant_id,provider,name,data_ciphertext,updated_at}'),
        ('tenant_settings',      '{tenant_id,model,transcription_provider,recording_enabled,business_hours,updated_at}'),
        ('tenant_phone_numbers', '{id,tenant_id,e164,label,default_language,default_voice,timezone,active}'),
        ('prompts',              '{id,tenant_id,name,scope,active,priority,created_at,updated_at}'),
        ('prompt_versions',      '{id,prompt_id,version,content,created_by_user_id}'),
        ('prompt_bindings',      '{id,prompt_id,account_ref,event_type,phone_number_id,conditions_json,created_at}')
      ) as want (tab, cols)
      cross join lateral unnest(want.cols::text[]) as col
     where not exists (
        select from pg_attribute a
         where a.attrelid = format('public.%I', want.tab)::regclass
           and a.attname = col and a.attnum > 0 and not a.attisdropped);
    if missing is not null then
        raise exception 'these columns of the platform''s model are missing: %', missing
            using hint = 'the tables are not the platform''s; migrate another database or rename them';
    end if;
end
$$;

-- Defaults, where a column has none.
do $$
declare
    want record;
begin
    for want in
        select * from (values
            ('tenants', 'created_at', 'now()'),              ('tenants', 'updated_at', 'now()'),
            ('users', 'created_at', 'now()'),                ('tenant_users', 'created_at', 'now()'),
            ('tenant_credentials', 'created_at', 'now()'),   ('tenant_credentials', 'updated_at', 'now()'),
            ('tenant_settings', 'created_at', 'now()'),      ('tenant_settings', 'updated_at', 'now()'),
            ('tenant_settings', 'recording_enabled', 'false'),
            ('tenant_phone_numbers', 'created_at', 'now()'), ('tenant_phone_numbers', 'active', 'true'),
            ('prompts', 'created_at', 'now()'),              ('prompts', 'updated_at', 'now()'),
            ('prompts', 'active', 'true'),                   ('prompts', 'priority', '0'),
            ('prompt_versions', 'created_at', 'now()'),
            ('prompt_bindings', 'created_at', 'now()'),      ('prompt_bindings', 'conditions_json', '''{}''')
        ) as d (tab, col, val)
        join pg_attribute a on a.attrelid = format('public.%I', d.tab)::regclass
         and a.attname = d.col and a.attnum > 0 and not a.attisdropped
         and not a.atthasdef and a.attidentity = ''
    loop
        execute format('alter table public.%I alter column %I set default %s', want.tab, want.col, want.val);
    end loop;
end
$$;

-- Primary and unique keys: taken as present when any unique index holds exactly these columns,
-- whatever its name; left out with a WARNING when rows stand against them.
do $$
declare
    want       record;
    rel        regclass;
    cols       text;
    not_null   text;
    attnums    smallint[];
    duplicates bigint;
begin
    for want in
        select * from (values
            ('tenants',              '{id}',                      true),
            ('users',                '{id}',                      true),
            ('tenant_users',         '{id}',                      true),
            ('tenant_credentials',   '{id}',                      true),
            ('tenant_settings',      '{tenant_id}',               true),
            ('tenant_phone_numbers', '{id}',                      true),
            ('prompts',              '{id}',                      true),
            ('prompt_versions',      '{id}',                      true),
            ('prompt_bindings',      '{id}',                      true),
            ('tenants',              '{slug}',                    false),
            ('users',                '{email}',                   false),
            ('tenant_users',         '{tenant_id,user_id}',       false),
            ('tenant_credentials',   '{tenant_id,provider,name}', false),
            ('tenant_phone_numbers', '{e164}',                    false),
            ('prompt_versions',      '{prompt_id,version}',       false)
        ) as k (tab, cols, is_primary)
    loop
        rel := format('public.%I', want.tab)::regclass;
        select array_agg(a.attnum order by a.attnum),
               string_agg(quote_ident(c), ', ' order by n),
               string_agg(quote_ident(c) || ' is not null', ' and ' order by n)
          into attnums, cols, not_null
          from unnest(want.cols::text[]) with ordinality as u (c, n)
          join pg_attribute a on a.attrelid = rel and a.attname = u.c and not a.attisdropped;
        continue when exists (
            select from pg_index i
             where i.indrelid = rel and i.indisunique and i.indisvalid
               and i.indpred is null and i.indexprs is null
               and attnums = array(select k from unnest(i.indkey::smallint[]) with ordinality as x (k, n)
                                    where n <= i.indnkeyatts order by k));
        execute format('select count(*) from (select from %s where %s group by %s having count(*) > 1) d',
                       rel, not_null, cols)
           into duplicates;
        if duplicates > 0 then
            raise warning 'sidetone: %: no unique key on (%): % values stand there more than once; '
                          'remove the duplicates and add the key by hand', rel, cols, duplicates;
            continue;
        end if;
        begin
            if want.is_primary
               and not exists (select from pg_constraint where conrelid = rel and contype = 'p') then
                execute format('alter table %s add primary key (%s)', rel, cols);
            else
                execute format('alter table %s add unique (%s)', rel, cols);
            end if;
        exception
            when lock_not_available then raise;
            when others then
                raise warning 'sidetone: %: no unique key on (%): %', rel, cols, sqlerrm;
        end;
    end loop;
end
$$;

-- Checks and foreign keys: taken as present when one on the same column is there, whatever its name
-- and action. They are added for new rows first and for all rows if the rows at hand allow it.
--
-- What belongs to a tenant or a prompt goes with it. The author of a version may go: what he wrote is
-- still in force, so it stays and only forgets him. A binding goes with its phone number: set to null
-- it would match the calls of every number, and refusing would make numbers impossible to delete.
do $$
declare
    want record;
    rel  regclass;
    name text;
begin
    for want in
        select * from (values
            ('c', 'tenant_phone_numbers', 'e164',               null,                   $c$check (e164 ~ '^\+[1-9][0-9]{6,14}$')$c$),
            ('c', 'prompts',              'scope',              null,                   $c$check (scope in ('global', 'event_type', 'account', 'phone-number'))$c$),
            ('f', 'tenant_users',         'tenant_id',          'tenants',              'cascade'),
            ('f', 'tenant_users',         'user_id',            'users',                'cascade'),
            ('f', 'tenant_credentials',   'tenant_id',          'tenants',              'cascade'),
            ('f', 'tenant_settings',      'tenant_id',          'tenants',              'cascade'),
            ('f', 'tenant_phone_numbers', 'tenant_id',          'tenants',              'cascade'),
            ('f', 'prompts',              'tenant_id',          'tenants',              'cascade'),
            ('f', 'prompt_versions',      'prompt_id',          'prompts',              'cascade'),
            ('f', 'prompt_versions',      'created_by_user_id', 'users',                'set null'),
            ('f', 'prompt_bindings',      'prompt_id',          'prompts',              'cascade'),
            ('f', 'prompt_bindings',      'phone_number_id',    'tenant_phone_numbers', 'cascade')
        ) as c (kind, tab, col, parent, body)
    loop
        rel := format('public.%I', want.tab)::regclass;
        name := format('%s_%s_%s', want.tab, want.col, case want.kind when 'c' then 'check' else 'fkey' end);
        continue when exists (
            select from pg_constraint c
             where c.conrelid = rel
               and c.contype::text = want.kind
               and (want.kind = 'c' or c.confrelid = to_regclass('public.' || want.parent))
               and c.conkey = array(select a.attnum from pg_attribute a
                                     where a.attrelid = rel and a.attname = want.col and not a.attisdropped));
        begin
            if want.kind = 'f' then
                want.body := format('foreign key (%I) references public.%I (id) on delete %s',
                                    want.col, want.parent, want.body);
            end if;
            execute format('alter table %s add constraint %I %s not valid', rel, name, want.body);
        exception
            when lock_not_available then raise;
            when others then
                raise warning 'sidetone: %.%: % left out: %', rel, want.col, name, sqlerrm;
                continue;
        end;
        begin
            execute format('alter table %s validate constraint %I', rel, name);
        exception
            when check_violation or foreign_key_violation then
                raise warning 'sidetone: %.%: % holds for new rows only: %; mend the rows, then validate it',
                    rel, want.col, name, sqlerrm;
        end;
    end loop;
end
$$;

-- Indexes for the foreign keys and for reading a tenant's rows, where none begins with the column.
do $$
declare
    want record;
begin
    for want in
        select d.tab, d.col from (values
            ('tenant_users', 'user_id'),           ('tenant_credentials', 'tenant_id'),
            ('tenant_settings', 'tenant_id'),      ('tenant_phone_numbers', 'tenant_id'),
            ('tenant_phone_numbers', 'e164'),      ('prompts', 'tenant_id'),
            ('prompt_versions', 'prompt_id'),      ('prompt_versions', 'created_by_user_id'),
            ('prompt_bindings', 'prompt_id'),      ('prompt_bindings', 'phone_number_id')
        ) as d (tab, col)
        join pg_attribute a on a.attrelid = format('public.%I', d.tab)::regclass
         and a.attname = d.col and not a.attisdropped
        where not exists (
            select from pg_index i
             where i.indrelid = a.attrelid and i.indkey[0] = a.attnum and i.indisvalid and i.indpred is null)
    loop
        execute format('create index on public.%I (%I)', want.tab, want.col);
    end loop;
end
$$;

-- updated_at tells when the row last changed, whoever writes and whatever he sends. Not ENABLE ALWAYS:
-- rows that come by replication or restore keep the time they came with.
create or replace function sidetone.touch_updated_at() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- *<> compares the stored bytes: it knows every type, json among them, and takes null as a value.
    if new *<> old then
        new.updated_at := now();
    end if;
    return new;
end
$$;
revoke all on function sidetone.touch_updated_at() from public;

do $$
declare
    tab text;
begin
    foreach tab in array '{tenants,tenant_credentials,tenant_settings,prompts}'::text[] loop
        execute format('drop trigger if exists sidetone_updated_at on public.%I', tab);
        execute format('create trigger sidetone_updated_at before update on public.%I '
                       'for each row execute function sidetone.touch_updated_at()', tab);
    end loop;
end
$$;
