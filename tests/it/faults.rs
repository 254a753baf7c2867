//! A bad network, a Postgres that is restarted and a node that is killed, while writers write and readers ask: then a
//! judge looks at the whole history (design section 9).
//!
//! `SIDETONE_FAULT_SECONDS` sets how long (20), `SIDETONE_SEED` repeats a run; both are printed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Stop};
use crate::history::{Bounds, Millis, Outcome, Read, Violation, Write, judge, not_converged};
use crate::node::{Node, PATIENCE};
use crate::proxy::{Proxy, Weather};
use crate::tls::{self, Authority};

/// Keys that every writer changes again and again, and keys that are changed once: a busy key hides a lost change.
const HOT: u32 = 4;
const COLD: u32 = 4000;
const WRITERS: u32 = 4;
/// Level again within this time of healing, then every commit within two seconds.
const LEVEL_AGAIN: Millis = 5000;
const BOUNDS: Bounds = Bounds {
    visible_within: 2000,
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

struct Stage {
    began: Instant,
    over: AtomicBool,
    writes: Mutex<Vec<Write>>,
    reads: Mutex<Vec<Read>>,
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
}

#[tokio::test(flavor = "multi_thread")]
async fn under_any_fault_no_answer_is_invented_older_than_before_half_or_younger_than_it_says() {
    let seconds = setting("SIDETONE_FAULT_SECONDS", 20);
    let clock = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let seed = setting(
        "SIDETONE_SEED",
        u64::try_from(clock.as_nanos() & 0xffff_ffff).unwrap() | 1,
    );
    println!("SIDETONE_SEED={seed} SIDETONE_FAULT_SECONDS={seconds}");

    // Over TLS: in the clear, a byte that is another on its way is noticed by nobody.
    let authority = Authority::new("faults");
    let cluster = Arc::new(Cluster::own(tls::options(&authority.for_loopback())));
    let name = {
        let db = cluster.database().await;
        db.sql(&format!(
            "insert into public.tenants (id, name, slug, status)
               select ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 't' || i, 't' || i, 'active'
                 from generate_series(0, {last}) i;
             insert into public.tenant_settings (tenant_id, model)
               select ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, '0' from generate_series(0, {last}) i;
             insert into public.tenant_phone_numbers (id, tenant_id, e164, label, default_language, timezone)
               select gen_random_uuid(), ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, '+1650' || (1000000 + i), '0',
                 'es-AR', 'UTC' from generate_series(0, {last}) i",
            last = HOT + COLD - 1
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
        "feed.heartbeat_every = '500ms'\nfeed.heartbeat_timeout = '700ms'\nfeed.stale_after = '2s'\nlog.filter = 'info'",
    );
    node.start();
    node.synced().await;
    let stage = Arc::new(Stage {
        began: Instant::now(),
        over: AtomicBool::new(false),
        writes: Mutex::default(),
        reads: Mutex::default(),
        next_cold: AtomicU64::new(u64::from(HOT)),
        up: Mutex::default(),
        away: Mutex::default(),
    });
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let chance = Chance(seed.wrapping_mul(u64::from(writer) + 2) | 1);
            tokio::spawn(write(
                Arc::clone(&stage),
                cluster.url("postgres", &name),
                writer,
                chance,
            ))
        })
        .collect();
    let socket = node.unix();
    let reader = tokio::spawn(read(Arc::clone(&stage), socket, Chance(seed | 1)));

    let mut chance = Chance(seed ^ 0x9e37_79b9_7f4a_7c15 | 1);
    while stage.began.elapsed() < Duration::from_secs(seconds) {
        misfortune(&stage, &proxy, &cluster, &mut node, &mut chance).await;
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
    stage.over.store(true, Ordering::Release);
    for writer in writers {
        writer.await.unwrap();
    }
    reader.await.unwrap();

    let writes = stage.writes.lock().unwrap().clone();
    let last = BTreeMap::from_iter(writes.iter().map(|write| (write.key, 0_u64)));
    let mut last = last;
    let over = Instant::now();
    loop {
        for (key, version) in &mut last {
            let label = node
                .get(&format!("/v1/lookup/label?to=%2B{}", &e164(*key)[1..]))
                .await
                .body;
            *version = label.parse().unwrap();
        }
        let behind = not_converged(&writes, &last);
        if behind.is_empty() {
            break;
        }
        let pulls = node
            .metric("sidetone_pulls_total{cause=\"heartbeat\"}")
            .await;
        assert!(
            over.elapsed() < PATIENCE,
            "seed {seed}: after {:?} and {pulls} heartbeats {} of {} keys stay behind: {:#?}",
            over.elapsed(),
            behind.len(),
            last.len(),
            &behind[..behind.len().min(10)]
        );
    }
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
    let found: Vec<Violation> = judge(&writes, &reads, &stage.up.lock().unwrap(), BOUNDS);
    println!(
        "{} writes, {} reads, {} violations",
        writes.len(),
        reads.len(),
        found.len()
    );
    assert!(
        writes.len() > 100 && reads.len() > 1000,
        "nothing was tried"
    );
    assert!(
        found.is_empty(),
        "seed {seed}: {:#?}",
        &found[..found.len().min(10)]
    );
    let report = node.admin("POST", "/v1/admin/verify", "").await;
    assert_eq!(report.json()["differences"], 0, "seed {seed}: {report:?}");
}

async fn misfortune(
    stage: &Stage,
    proxy: &Proxy,
    cluster: &Cluster,
    node: &mut Node,
    chance: &mut Chance,
) {
    let lasting = Duration::from_millis(200 + chance.below(2500));
    let weather = match chance.below(11) {
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
        9 => {
            println!("{} ms: the node is killed", stage.now());
            let from = stage.now();
            node.kill();
            node.start();
            node.answering().await;
            return stage.away.lock().unwrap().push((from, stage.now()));
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
    let mut hot = Some((writer, 0_u64));
    while !stage.is_over() {
        let Ok(session) = crate::cluster::Session::connect(&config).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !stage.is_over() {
            let (key, version) = match &mut hot {
                Some((key, version)) if chance.below(4) == 0 => {
                    *version += 1;
                    (*key, *version)
                }
                _ => (
                    u32::try_from(stage.next_cold.fetch_add(1, Ordering::AcqRel)).unwrap(),
                    1,
                ),
            };
            if key >= HOT + COLD {
                return;
            }
            let change = |version: u64| {
                format!(
                    "update public.tenant_phone_numbers set label = '{version}' where e164 = '{}';
                     update public.tenant_settings set model = '{version}'
                      where tenant_id = '00000000-0000-4000-8000-{key:012}';",
                    e164(key)
                )
            };
            let pause = chance.below(60);
            let work = match chance.below(8) {
                0 => format!(
                    "begin; savepoint a; {} rollback to a; select pg_sleep(0.0{pause:02}); {} commit",
                    change(999_999),
                    change(version)
                ),
                1 => format!(
                    "begin; {} rollback; begin; {} commit",
                    change(999_999),
                    change(version)
                ),
                2 => format!(
                    "begin; set local synchronous_commit = off; {} commit",
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
            stage.writes.lock().unwrap().push(Write {
                key,
                version,
                began,
                acknowledged,
            });
            if acknowledged.is_none() {
                if key < HOT {
                    hot = None;
                }
                break;
            }
            tokio::time::sleep(Duration::from_millis(chance.below(15))).await;
        }
    }
}

/// Asks for keys that were written and for some that were not, one after the other.
async fn read(stage: Arc<Stage>, socket: std::path::PathBuf, mut chance: Chance) {
    while !stage.is_over() {
        let written = u32::try_from(stage.next_cold.load(Ordering::Acquire))
            .unwrap()
            .min(HOT + COLD);
        let key = match chance.below(3) {
            0 => u32::try_from(chance.below(u64::from(HOT))).unwrap(),
            // The newest are the likeliest to be missing.
            1 => written.saturating_sub(1 + u32::try_from(chance.below(40)).unwrap()),
            _ => u32::try_from(chance.below(u64::from(written))).unwrap(),
        };
        let asked = stage.now();
        let reply = async {
            let stream = tokio::net::UnixStream::connect(&socket).await?;
            let request = format!(
                "GET /v1/lookup?to=%2B{} HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n",
                &e164(key)[1..]
            );
            crate::node::exchange(stream, &request).await
        }
        .await;
        let outcome = match reply {
            Ok(reply) if reply.status == 200 => {
                let number = |pointer: &str| reply.text(pointer).parse().unwrap_or(u64::MAX);
                Outcome::Answer {
                    number: number("/label"),
                    tenant: number("/model"),
                    staleness: number("/staleness_ms"),
                }
            }
            Ok(reply) => Outcome::Failed(reply.status),
            Err(_) => Outcome::Failed(0),
        };
        stage.reads.lock().unwrap().push(Read {
            key,
            asked,
            answered: stage.now(),
            outcome,
        });
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
