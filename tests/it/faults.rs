//! A bad network, a Postgres that is restarted and a node that is killed, while writers write and readers ask: then a
//! judge looks at the whole history (design section 9).
//!
//! `SIDETONE_FAULT_SECONDS` sets how long (20), `SIDETONE_SEED` which misfortunes (1; 0 takes the clock's); both are printed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Session, Stop};
use crate::history::{
    Bounds, Millis, Outcome, Read, State, Violation, Write, judge, not_converged,
};
use crate::node::{Node, PATIENCE};
use crate::proxy::{Proxy, Weather};
use crate::tls::{self, Authority};

const WRITERS: u32 = 4;
/// What happens to the keys that a writer changes again and again; each writer has one of each.
const FATES: [Fate; 5] = [
    Fate::Plain,
    Fate::Moves,
    Fate::Suspended,
    Fate::Deleted,
    Fate::Bad,
];
const HOT: u32 = WRITERS * 5;
/// Changed by a transaction that stays open while others come and go.
const LONG: u32 = HOT;
/// From here on keys that are changed once: a busy key hides a lost change.
const FIRST_COLD: u32 = LONG + 1;
/// Level again within this time of healing, then every commit within two seconds.
const LEVEL_AGAIN: Millis = 5000;
const BOUNDS: Bounds = Bounds {
    visible_within: 2000,
    suspended_within: 1000,
};

/// xorshift64*: the same seed, the same run.
#[derive(Clone)]
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |value| value.parse().unwrap())
}

fn e164(key: u32) -> String {
    format!("+1650{}", 1_000_000 + key)
}

fn tenant(key: u32) -> String {
    format!("'00000000-0000-4000-8000-{key:012}'")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Number and tenant change together.
    Plain,
    /// The number goes to another tenant and back.
    Moves,
    /// The tenant is suspended and active again.
    Suspended,
    /// The number is deleted, or its tenant with it, and comes back.
    Deleted,
    /// Every second row cannot be used.
    Bad,
}

impl Fate {
    fn of_hot(key: u32) -> Self {
        FATES[usize::try_from(key / WRITERS).unwrap()]
    }

    fn state(self, version: u64) -> State {
        match self {
            Self::Plain | Self::Moves => State::Active,
            _ if version.is_multiple_of(2) => State::Active,
            Self::Suspended => State::Suspended,
            Self::Deleted => State::Gone,
            Self::Bad => State::Bad,
        }
    }

    /// The statements that make a version of a key.
    fn change(self, key: u32, version: u64) -> String {
        let (number, own) = (e164(key), tenant(key));
        let set_number = |what: &str| {
            format!(
                "update public.tenant_phone_numbers set {what}, label = '{version}' where e164 = '{number}';"
            )
        };
        let set_model = |tenant: &str| {
            format!(
                "update public.tenant_settings set model = '{version}' where tenant_id = {tenant};"
            )
        };
        let set_status = |status: &str| {
            format!("update public.tenants set status = '{status}' where id = {own};")
        };
        match (self, self.state(version)) {
            (Self::Moves, _) => {
                let to = [own.clone(), tenant(900_000 + key)][usize::from(version % 2 == 1)].clone();
                set_number(&format!("tenant_id = {to}")) + &set_model(&to)
            }
            (_, State::Bad) => set_number("timezone = 'Mars/Olympus'"),
            (_, State::Suspended) => set_status("suspended") + &set_number("active = true") + &set_model(&own),
            (_, State::Gone) if version % 4 == 1 => {
                format!("delete from public.tenant_phone_numbers where e164 = '{number}';") + &set_model(&own)
            }
            (_, State::Gone) => format!("delete from public.tenants where id = {own};"),
            (Self::Deleted, State::Active) => format!(
                "insert into public.tenants (id, name, slug, status) values ({own}, 't{key}', 't{key}', 'active') on conflict do nothing;
                 insert into public.tenant_settings (tenant_id, model) values ({own}, '{version}')
                   on conflict (tenant_id) do update set model = excluded.model;
                 insert into public.tenant_phone_numbers (id, tenant_id, e164, label, default_language, timezone)
                   values (gen_random_uuid(), {own}, '{number}', '{version}', 'es-AR', 'UTC');"
            ),
            (Self::Suspended, State::Active) => set_status("active") + &set_number("active = true") + &set_model(&own),
            (_, State::Active) => set_number("timezone = 'UTC'") + &set_model(&own),
        }
    }
}

struct Stage {
    began: Instant,
    over: AtomicBool,
    writes: Mutex<Vec<Write>>,
    reads: Mutex<Vec<Read>>,
    /// One more than the last key.
    end: u32,
    next_cold: AtomicU64,
    /// Spans in which the feed was not hindered.
    up: Mutex<Vec<(Millis, Millis)>>,
    /// Spans in which the node's process was being started again.
    away: Mutex<Vec<(Millis, Millis)>>,
}

impl Stage {
    fn now(&self) -> Millis {
        u64::try_from(self.began.elapsed().as_millis()).unwrap()
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn wrote(&self, write: Write) {
        self.writes.lock().unwrap().push(write);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_any_fault_no_answer_is_invented_older_than_before_half_or_younger_than_it_says() {
    let seconds = setting("SIDETONE_FAULT_SECONDS", 20);
    ordeal(seconds, true, async |_| {}).await;
}

/// Lets misfortunes happen for so long and judges what was answered meanwhile. `kills` says whether the node is killed
/// too; `watch` goes on for as long, with the socket that calls come in by.
pub(crate) async fn ordeal(seconds: u64, kills: bool, watch: impl AsyncFnOnce(PathBuf)) {
    let clock = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let seed = match setting("SIDETONE_SEED", 1) {
        0 => u64::try_from(clock.as_nanos() & 0xffff_ffff).unwrap() | 1,
        seed => seed,
    };
    println!("SIDETONE_SEED={seed} SIDETONE_FAULT_SECONDS={seconds}");

    // Over TLS: in the clear, a byte that is another on its way is noticed by nobody.
    let authority = Authority::new("faults");
    let cluster = Arc::new(Cluster::own(tls::options(&authority.for_loopback())));
    let end = FIRST_COLD + 2000 + 40 * u32::try_from(seconds).unwrap();
    let name = {
        let db = cluster.database().await;
        let tenants = format!(
            "(select generate_series(0, {end} - 1) union select 900000 + generate_series(0, {HOT} - 1)) as key (i)"
        );
        db.sql(&format!(
            "insert into public.tenants (id, name, slug, status)
               select ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 't' || i, 't' || i, 'active' from {tenants};
             insert into public.tenant_settings (tenant_id, model)
               select ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, '0' from {tenants};
             insert into public.tenant_phone_numbers (id, tenant_id, e164, label, default_language, timezone)
               select gen_random_uuid(), ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, '+1650' || (1000000 + i), '0',
                 'es-AR', 'UTC' from generate_series(0, {end} - 1) i"
        ))
        .await;
        db.name().to_owned()
    };
    let proxy = Proxy::before(cluster.port()).await;
    let mut node = Node::prepare("", "");
    let url = format!("postgres://sidetone@127.0.0.1:{}/{name}", proxy.port);
    tls::settle(
        &node,
        Some(&authority),
        &url,
        "feed.heartbeat_every = '500ms'\nfeed.heartbeat_timeout = '700ms'\nfeed.stale_after = '2s'\nlog.filter = 'info'\ncache.max_bytes = '64MiB'",
    );
    node.start();
    node.synced().await;
    let stage = Arc::new(Stage {
        began: Instant::now(),
        over: AtomicBool::new(false),
        writes: Mutex::default(),
        reads: Mutex::default(),
        end,
        next_cold: AtomicU64::new(u64::from(FIRST_COLD)),
        up: Mutex::default(),
        away: Mutex::default(),
    });
    let url = cluster.url("postgres", &name);
    let mut writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let chance = Chance(seed.wrapping_mul(u64::from(writer) + 2) | 1);
            tokio::spawn(write(Arc::clone(&stage), url.clone(), writer, chance))
        })
        .collect();
    writers.push(tokio::spawn(hold_open(
        Arc::clone(&stage),
        url,
        Chance(seed ^ 0x5555 | 1),
    )));
    let socket = node.unix();
    let reader = tokio::spawn(read(Arc::clone(&stage), socket.clone(), Chance(seed | 1)));

    let mut chance = Chance(seed ^ 0x9e37_79b9_7f4a_7c15 | 1);
    let suffering = async {
        while stage.began.elapsed() < Duration::from_secs(seconds) {
            misfortune(
                &stage,
                &proxy,
                (&cluster, &name),
                &mut node,
                kills,
                &mut chance,
            )
            .await;
            let healed = stage.now();
            if chance.below(3) > 0 {
                // The next one comes before the node has recovered.
                tokio::time::sleep(Duration::from_millis(chance.below(1500))).await;
                continue;
            }
            tokio::time::sleep(Duration::from_millis(
                LEVEL_AGAIN + 1000 + chance.below(1500),
            ))
            .await;
            stage
                .up
                .lock()
                .unwrap()
                .push((healed + LEVEL_AGAIN, stage.now()));
        }
    };
    tokio::join!(suffering, watch(socket.clone()));
    stage.over.store(true, Ordering::Release);
    for writer in writers {
        writer.await.unwrap();
    }
    reader.await.unwrap();
    let writes = stage.writes.lock().unwrap().clone();
    converged(&node, &socket, &writes, seed).await;
    let found = verdict(&stage, &writes);
    assert!(
        found.is_empty(),
        "seed {seed}: {:#?}",
        &found[..found.len().min(10)]
    );
    let report = node.admin("POST", "/v1/admin/verify", "").await;
    assert_eq!(report.json()["differences"], 0, "seed {seed}: {report:?}");
}

/// Every key comes to its last version.
async fn converged(node: &Node, socket: &Path, writes: &[Write], seed: u64) {
    let mut last = BTreeMap::from_iter(writes.iter().map(|write| (write.key, Outcome::Failed(0))));
    let over = Instant::now();
    let mut look = last.keys().copied().collect::<Vec<_>>();
    loop {
        for key in look {
            last.insert(key, ask(socket, key).await);
        }
        let behind = not_converged(writes, &last);
        look = behind
            .iter()
            .filter_map(|found| match found {
                Violation::NotConverged { key, .. } => Some(*key),
                _ => None,
            })
            .collect();
        if look.is_empty() {
            return;
        }
        if over.elapsed() > PATIENCE {
            let heartbeats = node
                .metric("sidetone_pulls_total{cause=\"heartbeat\"}")
                .await;
            let why = node
                .get(&format!("/v1/explain?to=%2B{}", &e164(look[0])[1..]))
                .await;
            panic!(
                "seed {seed}: after {heartbeats} heartbeats {} of {} keys stay behind: {:#?}\n{}",
                behind.len(),
                last.len(),
                &behind[..behind.len().min(10)],
                why.body
            );
        }
    }
}

fn verdict(stage: &Stage, writes: &[Write]) -> Vec<Violation> {
    let away = stage.away.lock().unwrap().clone();
    let reads: Vec<Read> = stage
        .reads
        .lock()
        .unwrap()
        .iter()
        // While its process is started again a node cannot answer; it is socket activation that closes this gap.
        .filter(|read| {
            let failed = matches!(read.outcome, Outcome::Failed(0));
            !failed
                || !away
                    .iter()
                    .any(|(from, to)| read.answered >= *from && read.asked <= *to)
        })
        .copied()
        .collect();
    let found = judge(writes, &reads, &stage.up.lock().unwrap(), BOUNDS);
    let of = |state: State| writes.iter().filter(|w| w.state == state).count();
    println!(
        "{} writes ({} suspensions, {} deletions, {} bad rows), {} reads, {} violations",
        writes.len(),
        of(State::Suspended),
        of(State::Gone),
        of(State::Bad),
        reads.len(),
        found.len()
    );
    assert!(
        writes.len() > 100 && reads.len() > 1000,
        "nothing was tried"
    );
    found
}

async fn misfortune(
    stage: &Stage,
    proxy: &Proxy,
    (cluster, database): (&Cluster, &str),
    node: &mut Node,
    kills: bool,
    chance: &mut Chance,
) {
    let lasting = Duration::from_millis(200 + chance.below(2500));
    let weather = match chance.below(13) {
        0 => Weather::Refuse,
        1 => Weather::Freeze,
        2 => Weather::DeafNode,
        3 => Weather::MuteNode,
        4 => Weather::Delay(Duration::from_millis(chance.below(400))),
        5 => Weather::Trickle(Duration::from_micros(500)),
        6 => Weather::Corrupt,
        7 => Weather::Silent,
        8 => {
            println!("{} ms: postgres is stopped at once", stage.now());
            cluster.stop(Stop::Immediate);
            tokio::time::sleep(lasting).await;
            return cluster.start();
        }
        9 if kills => {
            println!("{} ms: the node is killed", stage.now());
            let from = stage.now();
            node.kill();
            node.start();
            node.answering().await;
            return stage.away.lock().unwrap().push((from, stage.now()));
        }
        10 => {
            println!("{} ms: a storm of forged doorbells", stage.now());
            return cluster
                .open(database)
                .await
                .sql("select pg_notify('sidetone', (i * 1e15)::int8::text) from generate_series(1, 9000) i")
                .await;
        }
        11 => {
            println!("{} ms: the backend is ended", stage.now());
            return cluster
                .open(database)
                .await
                .sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'sidetone/%'")
                .await;
        }
        _ => {
            println!("{} ms: postgres stands still", stage.now());
            cluster.pause();
            tokio::time::sleep(lasting).await;
            return cluster.resume();
        }
    };
    println!("{} ms: {weather:?} for {lasting:?}", stage.now());
    proxy.set(weather);
    if weather == Weather::Silent {
        proxy.cut().await;
        proxy.set(weather);
    }
    tokio::time::sleep(lasting).await;
    proxy.set(Weather::Fair);
}

/// Writes versions until it is over. What was not acknowledged may or may not have happened; its key is left alone
/// from then on, so that every key's versions follow the commits.
async fn write(stage: Arc<Stage>, url: String, writer: u32, mut chance: Chance) {
    let config: tokio_postgres::Config = url.parse().unwrap();
    let mut hot: Vec<(u32, u64)> = (0..5).map(|i| (i * WRITERS + writer, 0)).collect();
    while !stage.is_over() {
        let Ok(session) = Session::connect(&config).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !stage.is_over() {
            let cold = u32::try_from(stage.next_cold.load(Ordering::Acquire)).unwrap();
            let turn = usize::try_from(chance.below(2 * FATES.len() as u64)).unwrap();
            let (key, version, fate) = if cold >= stage.end || hot.get(turn).is_some() {
                let turn = turn % FATES.len();
                let Some((key, version)) = hot.get_mut(turn) else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                *version += 1;
                (*key, *version, Fate::of_hot(*key))
            } else {
                let key = u32::try_from(stage.next_cold.fetch_add(1, Ordering::AcqRel)).unwrap();
                let fate =
                    [Fate::Suspended, Fate::Deleted, Fate::Plain][chance.below(12).min(2) as usize];
                if key >= stage.end {
                    continue;
                }
                (key, 1, fate)
            };
            let change = |version: u64| fate.change(key, version);
            let pause = chance.below(60);
            let work = match chance.below(9) {
                0 if fate == Fate::Plain => format!(
                    "begin; savepoint a; {} rollback to a; select pg_sleep(0.0{pause:02}); {} commit",
                    change(999_999),
                    change(version)
                ),
                1 => format!(
                    "begin; {} rollback; begin; {} commit",
                    change(version + 2_000_000),
                    change(version)
                ),
                2 => format!(
                    "begin; set local synchronous_commit = off; {} commit",
                    change(version)
                ),
                3 if fate == Fate::Plain => format!(
                    "begin; set local session_replication_role = replica; {} commit",
                    change(version)
                ),
                _ => format!(
                    "begin; {} select pg_sleep(0.0{pause:02}); commit",
                    change(version)
                ),
            };
            let began = stage.now();
            let done = tokio::time::timeout(Duration::from_secs(8), session.try_sql(&work)).await;
            let acknowledged = matches!(done, Ok(Ok(()))).then(|| stage.now());
            stage.wrote(Write {
                key,
                version,
                state: fate.state(version),
                began,
                acknowledged,
            });
            if acknowledged.is_none() {
                hot.retain(|(known, _)| *known != key);
                break;
            }
            tokio::time::sleep(Duration::from_millis(chance.below(15))).await;
        }
    }
}

/// One transaction after the other that stays open for seconds, and is heard when it commits.
async fn hold_open(stage: Arc<Stage>, url: String, mut chance: Chance) {
    let config: tokio_postgres::Config = url.parse().unwrap();
    let mut version = 1;
    while !stage.is_over() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Ok(session) = Session::connect(&config).await else {
            continue;
        };
        let change = Fate::Plain.change(LONG, version);
        let began = stage.now();
        if session.try_sql(&format!("begin; {change}")).await.is_err() {
            continue;
        }
        let until = began + 2000 + chance.below(6000);
        while stage.now() < until && !stage.is_over() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let done = tokio::time::timeout(Duration::from_secs(8), session.try_sql("commit")).await;
        let acknowledged = matches!(done, Ok(Ok(()))).then(|| stage.now());
        stage.wrote(Write {
            key: LONG,
            version,
            state: State::Active,
            began,
            acknowledged,
        });
        if acknowledged.is_none() {
            return;
        }
        version += 1;
    }
}

/// Asks for keys that were written and for some that were not, one after the other.
async fn read(stage: Arc<Stage>, socket: PathBuf, mut chance: Chance) {
    while !stage.is_over() {
        let written = u32::try_from(stage.next_cold.load(Ordering::Acquire))
            .unwrap()
            .min(stage.end);
        let key = match chance.below(3) {
            0 => u32::try_from(chance.below(u64::from(FIRST_COLD))).unwrap(),
            // The newest are the likeliest to be missing.
            1 => written.saturating_sub(1 + u32::try_from(chance.below(40)).unwrap()),
            _ => u32::try_from(chance.below(u64::from(written))).unwrap(),
        };
        let asked = stage.now();
        let outcome = ask(&socket, key).await;
        stage.reads.lock().unwrap().push(Read {
            key,
            asked,
            answered: stage.now(),
            outcome,
        });
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn ask(socket: &Path, key: u32) -> Outcome {
    let reply = async {
        let stream = tokio::net::UnixStream::connect(socket).await?;
        // Whoever is suspended is refused credentials too.
        let route = ["lookup?", "resolve?include=credentials&"][(key % 2) as usize];
        let request = format!(
            "GET /v1/{route}to=%2B{} HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n",
            &e164(key)[1..]
        );
        crate::node::exchange(stream, &request).await
    }
    .await;
    let Ok(reply) = reply else {
        return Outcome::Failed(0);
    };
    match (reply.status, reply.text("/status").as_str()) {
        (200, _) => {
            let number = |pointer: &str| reply.text(pointer).parse().unwrap_or(u64::MAX);
            Outcome::Answer {
                number: number("/label"),
                tenant: number("/model"),
                staleness: number("/staleness_ms"),
            }
        }
        (403, "tenant_suspended") => Outcome::Suspended,
        (404, "unknown_number") => Outcome::Unknown,
        (status, _) => Outcome::Failed(status),
    }
}
