//! A process that dies at any operation on its disk, a disk that takes nothing more, rows that kill, sectors that rot
//! (design sections 3 and 9).
//!
//! `SIDETONE_KILL_EVERY` says at which operations a process is killed: every n-th (9), with 1 at each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Db, scratch};
use crate::node::{AWAY, Node, PATIENCE, SECRET, until};

const ACME_ID: &str = "6f717b5a-1a2b-4c3d-9e8f-112233445566";
const LABEL: &str = "/v1/lookup/label?to=%2B14155550100";
const MODEL: &str = "/v1/lookup/model?to=%2B14155550100";
const OTHER: &str = "+541150000002";
const GONE: &str = "/v1/lookup?to=%2B16501000009";
/// Level again within this time of there being room.
const LEVEL_AGAIN: Duration = Duration::from_secs(5);

/// The library that counts and fails (`shim/faults.c`), compiled once.
fn shim() -> &'static str {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let library = scratch("shim").join("faults.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/shim/faults.c");
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .args([source, "-ldl"])
            .output()
            .expect("cc makes the library that spoils disks");
        assert!(output.status.success(), "{output:?}");
        library
    });
    made.to_str().unwrap()
}

/// Starts a node over the library.
fn start(node: &mut Node, settings: &[(&str, &str)]) {
    let dir = node.path("replica").display().to_string();
    let mut env = vec![("LD_PRELOAD", shim()), ("SHIM_DIR", dir.as_str())];
    env.extend(settings);
    node.start_with(&env);
}

async fn set(db: &Db<'_>, number: &str, label: &str) {
    db.sql(&format!(
        "update public.tenant_phone_numbers set label = '{label}' where e164 = '{number}'"
    ))
    .await;
}

async fn model(db: &Db<'_>, model: &str) {
    db.sql(&format!(
        "update public.tenant_settings set model = '{model}' where tenant_id = '{ACME_ID}'"
    ))
    .await;
}

async fn ended(node: &mut Node) {
    until("the process dies", async || node.has_ended()).await;
}

async fn deadly(node: &Node, table: &str) -> f64 {
    node.metric(&format!(
        r#"sidetone_quarantined_rows{{reason="deadly",table="{table}"}}"#
    ))
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_kills_the_process_is_held_tried_once_more_and_then_set_aside_until_it_changes()
{
    const BAD: &str = "+14155550100";
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    set(&db, BAD, "good").await;
    node.until(LABEL, |reply| reply.body == "good").await;
    node.stop();
    set(&db, BAD, "killer").await;
    set(&db, OTHER, "fine").await;
    let kill = format!(r#""applying":{{"row":{{"key":{{"number":"{BAD}""#);
    let kill = [("SHIM_KILL_ON", kill.as_str())];
    let other = format!("/v1/lookup/label?to=%2B{}", &OTHER[1..]);
    // Once while it is applied, and once when everything else is.
    start(&mut node, &kill);
    ended(&mut node).await;
    node.configure(AWAY, "");
    node.start();
    node.answering().await;
    assert_ne!(node.get(&other).await.body, "fine", "a batch is one commit");
    node.kill();
    node.configure(&db.url(), "");
    start(&mut node, &kill);
    ended(&mut node).await;
    for life in 0..2 {
        start(&mut node, &kill);
        node.answering().await;
        assert_eq!(node.get(&other).await.body, "fine", "life {life}");
        node.level().await;
        assert_eq!(node.get(LABEL).await.body, "good", "life {life}");
        until("the row is counted", async || {
            deadly(&node, "tenant_phone_numbers").await == 1.0
        })
        .await;
        let status = node.admin("GET", "/v1/admin/status", "").await.json();
        let fault = &status["quarantined"][0];
        assert_eq!(
            (&fault["key"], &fault["last_good"]),
            (&BAD.into(), &true.into()),
            "{status}"
        );
        assert!(
            fault["detail"].as_str().unwrap().contains("set aside"),
            "{fault}"
        );
        let noted = fs::read_to_string(node.path("replica/in-hand")).unwrap();
        assert!(noted.contains(BAD) && !noted.contains("killer"), "{noted}");
        node.kill();
    }
    node.start();
    set(&db, BAD, "cured").await;
    node.until(LABEL, |reply| reply.body == "cured").await;
    until("the row is no longer counted", async || {
        deadly(&node, "tenant_phone_numbers").await == 0.0
    })
    .await;
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_innocent_row_in_hand_at_a_sigkill_comes_into_force_by_itself() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    node.stop();
    set(&db, "+14155550100", "innocent").await;
    model(&db, "innocent").await;
    for key in [r#"{"number":"+14155550100"#, r#"{"tenant":""#] {
        let kill = format!(r#""applying":{{"row":{{"key":{key}"#);
        start(&mut node, &[("SHIM_KILL_ON", &kill)]);
        ended(&mut node).await;
    }
    node.start();
    node.until(LABEL, |reply| reply.body == "innocent").await;
    node.until(MODEL, |reply| reply.body == "innocent").await;
    until("nothing is set aside", async || {
        deadly(&node, "tenant_phone_numbers").await + deadly(&node, "tenants").await == 0.0
    })
    .await;
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_held_at_a_death_comes_into_force_though_what_was_known_of_the_death_is_lost() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "feed.heartbeat_every = '500ms'").await;
    node.stop();
    // Each is held when it comes again after the first death, and the process dies once more when it is tried.
    for key in [r#"{"number":"+14155550100"#, r#"{"tenant":""#] {
        if key.contains("number") {
            set(&db, "+14155550100", "innocent").await;
        } else {
            model(&db, "innocent").await;
        }
        let kill = format!(r#""applying":{{"row":{{"key":{key}"#);
        for _ in 0..2 {
            start(&mut node, &[("SHIM_KILL_ON", &kill)]);
            ended(&mut node).await;
        }
    }
    fs::remove_file(node.path("replica/in-hand")).unwrap();
    node.start();
    node.until(LABEL, |reply| reply.body == "innocent").await;
    node.until(MODEL, |reply| reply.body == "innocent").await;
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_in_force_that_turn_out_deadly_give_way_to_those_before_them_and_those_to_none() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    for name in ["first", "second", "third"] {
        model(&db, name).await;
        node.until(MODEL, |reply| reply.body == name).await;
    }
    // Neither a comparison nor a restart loses the rows before.
    node.equals_database().await;
    node.stop();
    node.configure(AWAY, "");
    let kill = format!(r#""judging":{{"row":{{"key":{{"tenant":"{ACME_ID}""#);
    // The second time at whichever tenant is looked at first: the one under suspicion.
    for kill in [kill.as_str(), r#""judging":{"row":{"key":{"tenant":""#] {
        start(&mut node, &[("SHIM_KILL_ON", kill)]);
        ended(&mut node).await;
    }
    node.start();
    node.answering().await;
    assert_eq!(node.get(MODEL).await.body, "second");
    node.stop();
    node.configure(&db.url(), "");
    node.start();
    node.answering().await;
    node.level().await;
    assert_eq!(node.get(MODEL).await.body, "second");
    assert_eq!(deadly(&node, "tenants").await, 1.0);
    node.stop();
    for _ in 0..2 {
        start(&mut node, &[("SHIM_KILL_ON", &kill)]);
        ended(&mut node).await;
    }
    node.start();
    node.answering().await;
    assert_eq!(node.get(MODEL).await.status, 503, "neither is answered");
    model(&db, "fourth").await;
    node.until(MODEL, |reply| reply.body == "fourth").await;
    node.equals_database().await;
}

/// What was answered last before a death.
#[derive(Debug, Default)]
struct Seen {
    label: Option<u64>,
    model: Option<u64>,
    gone: bool,
}

/// One life: first copy, changes of a number and of its tenant, a deletion, proofs of level, an orderly end.
/// Ends early when the process does.
async fn live(node: &mut Node, db: &Db<'_>, round: u64) -> Seen {
    let mut seen = Seen::default();
    let version = |step: u64| round * 10 + step;
    db.sql(&format!(
        "insert into public.tenant_phone_numbers (id, tenant_id, e164, label, default_language, timezone)
         values (gen_random_uuid(), '{ACME_ID}', '+16501000009', '', 'es-AR', 'UTC') on conflict do nothing"
    ))
    .await;
    set(db, "+14155550100", &version(0).to_string()).await;
    model(db, &version(0).to_string()).await;
    // Before the first copy is complete Postgres itself answers.
    until(
        "the first copy is complete or the process dead",
        async || {
            let ready = node.try_get("/readyz").await;
            node.has_ended() || ready.is_ok_and(|reply| reply.json()["synced"] == true)
        },
    )
    .await;
    for step in 0..5 {
        match step {
            0 => {}
            3 => {
                db.sql("delete from public.tenant_phone_numbers where e164 = '+16501000009'")
                    .await
            }
            2 => model(db, &version(step).to_string()).await,
            _ => set(db, "+14155550100", &version(step).to_string()).await,
        }
        let began = Instant::now();
        loop {
            if node.has_ended() {
                return seen;
            }
            assert!(began.elapsed() < PATIENCE, "step {step} is not answered");
            let arrived = match step {
                2 => ask(node, MODEL).await.is_some_and(|found| {
                    seen.model = Some(found);
                    found == version(step)
                }),
                3 => {
                    let gone = node
                        .try_get(GONE)
                        .await
                        .is_ok_and(|reply| reply.status == 404);
                    seen.gone |= gone;
                    gone
                }
                _ => ask(node, LABEL).await.is_some_and(|found| {
                    seen.label = Some(found);
                    found == version(step)
                }),
            };
            if arrived {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    if !node.has_ended() {
        node.signal(rustix::process::Signal::TERM);
        ended(node).await;
    }
    seen
}

async fn ask(node: &Node, field: &str) -> Option<u64> {
    let reply = node.try_get(field).await.ok()?;
    reply.body.parse().ok().filter(|_| reply.status == 200)
}

/// Killed at one operation: the replica opens, answers nothing older, and becomes equal to the database.
async fn killed_at(node: &mut Node, db: &Db<'_>, at: usize, round: u64) {
    let _ = fs::remove_dir_all(node.path("replica"));
    start(node, &[("SHIM_KILL_AT", &at.to_string())]);
    let seen = live(node, db, round).await;
    node.configure(AWAY, "");
    node.start();
    node.answering().await;
    let now = (ask(node, LABEL).await, ask(node, MODEL).await);
    assert!(
        now.0 >= seen.label && now.1 >= seen.model,
        "killed at {at}: {seen:?} became {now:?}"
    );
    let gone = node.get(GONE).await.status;
    assert!(!seen.gone || gone == 404, "killed at {at}: back again");
    node.kill();
    node.configure(&db.url(), "feed.heartbeat_every = '500ms'");
    node.start();
    node.synced().await;
    let label: String = db
        .value("select label from public.tenant_phone_numbers where e164 = '+14155550100'")
        .await;
    node.until(LABEL, |reply| reply.body == label).await;
    node.level().await;
    node.equals_database().await;
    node.kill();
    let log = node.log();
    assert!(
        !log.contains("set aside") && !log.contains("panic"),
        "killed at {at}: {log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_at_any_operation_on_its_disk_opens_its_replica_goes_never_back_and_ends_equal()
 {
    const LANES: usize = 4;
    let every: usize =
        std::env::var("SIDETONE_KILL_EVERY").map_or(9, |every| every.parse().unwrap());
    let began = Instant::now();
    let db = Cluster::shared().database().await;
    let mut node = Node::prepare(&db.url(), "feed.heartbeat_every = '500ms'");
    db.load_example().await;
    let log = node.path("operations");
    start(&mut node, &[("SHIM_LOG", log.to_str().unwrap())]);
    let seen = live(&mut node, &db, 1).await;
    assert_eq!(
        (seen.label, seen.model, seen.gone),
        (Some(14), Some(12), true)
    );
    let operations = fs::read(&log).unwrap();
    let count = |kind: u8| operations.iter().filter(|did| **did == kind).count();
    println!(
        "{} operations: {} writes, {} syncs, {} names and lengths; killed at every {every}",
        operations.len(),
        count(b'w'),
        count(b's'),
        count(b'n')
    );
    assert!(
        count(b'w') > 30 && count(b's') > 10 && count(b'n') > 1,
        "the library hears nothing"
    );
    let points: Vec<usize> = (1..=operations.len())
        .filter(|at| (at + every / 2).is_multiple_of(every))
        .collect();
    let lanes = (0..LANES).map(|lane| {
        let mine: Vec<usize> = points.iter().copied().skip(lane).step_by(LANES).collect();
        async move {
            let db = Cluster::shared().database().await;
            db.load_example().await;
            let mut node = Node::prepare(&db.url(), "feed.heartbeat_every = '500ms'");
            for (round, at) in mine.into_iter().enumerate() {
                killed_at(&mut node, &db, at, u64::try_from(round).unwrap() + 1).await;
            }
        }
    });
    futures_util::future::join_all(lanes).await;
    println!("{} deaths in {:?}", points.len(), began.elapsed());
}

/// What `status` says went wrong last.
async fn last_error(node: &Node) -> String {
    let status = node.admin("GET", "/v1/admin/status", "").await.json();
    status["feed"]["last_error"]["text"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

async fn staleness(node: &Node) -> u64 {
    node.get("/v1/lookup?to=%2B14155550100")
        .await
        .text("/staleness_ms")
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_disk_that_takes_nothing_answers_go_on_grow_old_honestly_and_are_level_when_it_does()
{
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "feed.heartbeat_every = '500ms'").await;
    node.stop();
    let fails = node.path("fails");
    let fail = fails.display().to_string();
    start(&mut node, &[("SHIM_FAIL", &fail)]);
    node.answering().await;
    node.level().await;
    let process = node.pid();
    for (error, words) in [
        (28, "No space left"),
        (5, "Input/output error"),
        (30, "Read-only file system"),
    ] {
        let before = node.get(LABEL).await.body;
        fs::write(&fails, error.to_string()).unwrap();
        set(&db, "+14155550100", &format!("after {error}")).await;
        until("the fault is told", async || {
            let told = last_error(&node).await;
            told.contains(words)
                && told.contains("replica/replica.redb")
                && told.contains("make room")
        })
        .await;
        let mut oldest = 0;
        until("the age grows", async || {
            for number in ["14155550100", "541150000002", "542994000003"] {
                let reply = node.get(&format!("/v1/lookup?to=%2B{number}")).await;
                assert_ne!(reply.status, 503, "{error}: {reply:?}");
                assert_ne!(reply.status, 404, "{error}: {reply:?}");
            }
            assert_eq!(node.get(LABEL).await.body, before, "{error}");
            let age = staleness(&node).await;
            assert!(
                age >= oldest,
                "{error}: younger by itself, {oldest} ms and then {age} ms"
            );
            oldest = age;
            age > 2500
        })
        .await;
        assert!(
            node.get("/v1/resolve?to=%2B14155550100&include=credentials")
                .await
                .body
                .contains(SECRET)
        );
        fs::remove_file(&fails).unwrap();
        let healed = Instant::now();
        node.until(LABEL, |reply| reply.body == format!("after {error}"))
            .await;
        node.level().await;
        let took = healed.elapsed();
        println!("{words}: level again after {took:?}");
        assert!(took < LEVEL_AGAIN, "{error}: {took:?}");
    }
    assert_eq!(node.pid(), process);
    node.equals_database().await;
    assert!(!node.log().contains("panic"), "{}", node.log());
}

/// A small file system in memory, gone with this.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Only root may mount.
    fn at(dir: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir(dir).unwrap();
        let options = format!("size={bytes},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir)
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then(|| Self(dir.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_file_system_that_is_really_full_answers_go_on_and_are_level_when_there_is_room() {
    let db = Cluster::shared().database().await;
    let mut node = Node::prepare(&db.url(), "feed.heartbeat_every = '500ms'");
    let dir = node.path("replica");
    let Some(_disk) = SmallDisk::at(&dir, 16 << 20) else {
        println!("nothing can be mounted here: not tried on a real file system");
        return;
    };
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, SECRET))
        .await;
    node.start();
    node.synced().await;
    node.level().await;
    let filler = dir.join("filler");
    // Until nothing more goes in, not a byte.
    let mut file = fs::File::create(&filler).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while std::io::Write::write(&mut file, &vec![b'x'; size]).is_ok() {}
    }
    // More than what the replica's file still has room for within itself.
    db.sql(&format!(
        "insert into public.tenant_phone_numbers (tenant_id, e164, label, default_language, timezone)
         select '{ACME_ID}', '+1650' || (1000000 + n), repeat('x', 100), 'en', 'UTC' from generate_series(1, 5000) n"
    ))
    .await;
    set(&db, "+14155550100", "after").await;
    until("the fault is told", async || {
        last_error(&node).await.contains("No space left")
    })
    .await;
    until("the age grows", async || {
        assert_ne!(node.get(LABEL).await.body, "after");
        staleness(&node).await > 1500
    })
    .await;
    drop(file);
    fs::remove_file(&filler).unwrap();
    let room = Instant::now();
    node.until(LABEL, |reply| reply.body == "after").await;
    node.level().await;
    assert!(room.elapsed() < LEVEL_AGAIN, "{:?}", room.elapsed());
    node.equals_database().await;
    assert!(!node.log().contains("panic"), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_and_answers_on_a_disk_that_is_read_only_and_without_rows_says_why_it_does_not()
 {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "feed.heartbeat_every = '500ms'").await;
    node.kill();
    let fails = node.path("fails");
    let fail = fails.display().to_string();
    for error in [30, 28, 13] {
        let was = node.path("replica/replica.redb");
        let bytes = fs::read(&was).unwrap();
        fs::write(&fails, error.to_string()).unwrap();
        node.configure(AWAY, "");
        start(&mut node, &[("SHIM_FAIL", &fail)]);
        node.answering().await;
        let reply = node
            .get("/v1/resolve?to=%2B14155550100&include=credentials")
            .await;
        assert!(
            reply.status == 200 && reply.body.contains(SECRET),
            "{error}: {reply:?}"
        );
        assert!(
            node.log().contains("it cannot be written"),
            "{}",
            node.log()
        );
        assert!(fs::read(&was).unwrap() == bytes, "{error}: written to");
        node.kill();
        node.configure(&db.url(), "feed.heartbeat_every = '500ms'");
        start(&mut node, &[("SHIM_FAIL", &fail)]);
        node.answering().await;
        set(&db, "+14155550100", &format!("started {error}")).await;
        until("the fault is told", async || {
            last_error(&node).await.contains("make room")
        })
        .await;
        fs::remove_file(&fails).unwrap();
        node.until(LABEL, |reply| reply.body == format!("started {error}"))
            .await;
        node.level().await;
        node.kill();
    }
    fs::remove_dir_all(node.path("replica")).unwrap();
    fs::write(&fails, "30").unwrap();
    start(&mut node, &[("SHIM_FAIL", &fail)]);
    ended(&mut node).await;
    let log = node.log();
    let told = log.lines().last().unwrap();
    assert!(
        told.contains("replica")
            && told.contains("make room")
            && told.contains("Read-only file system"),
        "{told}"
    );
}

const RESOLVE: &str = "/v1/resolve?to=%2B14155550100&include=credentials";

/// What of an answer is the same as long as its rows are.
fn rows_of(mut answer: serde_json::Value) -> serde_json::Value {
    let fields = answer.as_object_mut().unwrap();
    for name in ["staleness_ms", "stale", "local_time"] {
        fields.remove(name);
    }
    answer
}

const SECTOR: usize = 512;

/// A file with one sector spoiled, or cut before it.
fn spoiled(bytes: &[u8], at: usize, damage: &str) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let end = (at + SECTOR).min(bytes.len());
    match damage {
        "flipped" => bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0x5a),
        "zeroed" => bytes[at..end].fill(0),
        // Keys stand in the first bytes of a page.
        "one byte of" => bytes[(at + 8 + at / SECTOR * 7 % 120).min(end - 1)] ^= 0x5a,
        _ => bytes.truncate(at),
    }
    bytes
}

/// Everything a replica says, or that it was begun anew; `Err` for what it tells it cannot read.
type Said = (
    bool,
    Vec<Result<Option<sidetone::replica::FoundNumber>, ()>>,
    Vec<Result<Option<sidetone::row::TenantRecord>, ()>>,
);

fn says(
    dir: &Path,
    keyring: &sidetone::seal::Keyring,
    of: &[&str],
    tenants: &[uuid::Uuid],
) -> Said {
    // A child of another test may have the lock for a moment, between fork and exec.
    let began = Instant::now();
    let (replica, opened) = loop {
        match sidetone::replica::Replica::open(dir, keyring) {
            Err(sidetone::replica::ReplicaError::InUse { .. }) if began.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            opened => break opened.unwrap(),
        }
    };
    let begun = matches!(opened, sidetone::replica::Opened::SetAside { .. });
    assert!(
        replica
            .is_complete()
            .is_ok_and(|complete| complete != begun)
    );
    let view = replica.view().unwrap();
    let numbers = of
        .iter()
        .map(|number| view.number(number).map_err(drop))
        .collect();
    let tenants = tenants
        .iter()
        .map(|id| view.tenant(*id).map_err(drop))
        .collect();
    (begun, numbers, tenants)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_damaged_or_cut_at_any_sector_is_never_read_wrongly_and_is_copied_anew() {
    const NUMBERS: [&str; 4] = ["+14155550100", OTHER, "+542994000003", "+19999999999"];
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    let right = rows_of(node.get(RESOLVE).await.json());
    assert!(node.stop().success());
    let file = node.path("replica/replica.redb");
    let bytes = fs::read(&file).unwrap();
    let keyring = sidetone::seal::Keyring::load(&node.path("keyring.toml")).unwrap();
    let ids: Vec<uuid::Uuid> = db.column("select id from public.tenants").await;
    let truth = says(&node.path("replica"), &keyring, &NUMBERS, &ids);
    assert!(!truth.0 && truth.1[0].as_ref().unwrap().is_some());
    let (mut kept, mut begun, mut worst) = (0, 0, Vec::new());
    for at in (0..bytes.len()).step_by(SECTOR) {
        let end = (at + SECTOR).min(bytes.len());
        let used = bytes[at..end].iter().any(|byte| *byte != 0);
        for damage in ["flipped", "zeroed", "one byte of", "cut"] {
            // Cut is cut, whatever stood there; flipped and zeroed are the same only where nothing stands.
            if damage == "zeroed" && !used {
                continue;
            }
            fs::write(&file, spoiled(&bytes, at, damage)).unwrap();
            let said = says(&node.path("replica"), &keyring, &NUMBERS, &ids);
            if said.0 {
                begun += 1;
                continue;
            }
            kept += 1;
            for (said, truth) in said.1.iter().zip(&truth.1) {
                assert!(said.is_err() || said == truth, "{damage} at {at}: {said:?}");
            }
            for (said, truth) in said.2.iter().zip(&truth.2) {
                assert!(said.is_err() || said == truth, "{damage} at {at}: {said:?}");
            }
            worst.push((at, damage));
        }
    }
    println!(
        "{} sectors: {kept} kept, {begun} begun anew",
        bytes.len() / SECTOR
    );
    assert!(kept > 0 && begun > 0);
    // The same with the real program, at a few places: those kept are where a wrong answer could come from.
    let places = worst.iter().copied().step_by(worst.len() / 4 + 1);
    for (at, damage) in places.chain([(0, "flipped"), (4096, "zeroed"), (bytes.len() / 2, "cut")]) {
        fs::write(&file, spoiled(&bytes, at, damage)).unwrap();
        node.configure(AWAY, "");
        node.start();
        node.answering().await;
        let reply = node.get(RESOLVE).await;
        assert!(
            reply.status == 503 || rows_of(reply.json()) == right,
            "{damage} at {at}: {reply:?}"
        );
        node.kill();
        node.configure(&db.url(), "");
        node.start();
        node.synced().await;
        node.level().await;
        assert_eq!(
            rows_of(node.get(RESOLVE).await.json()),
            right,
            "{damage} at {at}"
        );
        node.equals_database().await;
        node.kill();
    }
}

/// Median times from exec to the first right answer, Postgres refused, with `SIDETONE_NUMBERS` (100000) numbers.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a time of the release build: make test-start"]
async fn a_node_with_very_many_numbers_gives_its_first_right_answer_in_time() {
    const IN_TIME: Duration = Duration::from_millis(500);
    let numbers: u32 = std::env::var("SIDETONE_NUMBERS").map_or(100_000, |n| n.parse().unwrap());
    let db = Cluster::shared().database().await;
    let mut node = Node::prepare(&db.url(), "");
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, SECRET))
        .await;
    db.sql(&format!(
        "insert into public.tenants (id, name, slug, status)
           select ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 't' || i, 't' || i, 'active'
             from generate_series(0, {numbers} / 100) i;
         insert into public.tenant_phone_numbers (id, tenant_id, e164, label, default_language, timezone)
           select gen_random_uuid(), ('00000000-0000-4000-8000-' || lpad((i % ({numbers} / 100))::text, 12, '0'))::uuid,
                  '+1650' || (10000000 + i), 'label ' || i, 'es-AR', 'UTC' from generate_series(1, {numbers}) i"
    ))
    .await;
    let began = Instant::now();
    node.start();
    while !node
        .try_get("/readyz")
        .await
        .is_ok_and(|reply| reply.json()["synced"] == true)
    {
        assert!(began.elapsed() < Duration::from_secs(900), "no first copy");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let bytes = fs::metadata(node.path("replica/replica.redb"))
        .unwrap()
        .len();
    println!(
        "{numbers} numbers copied in {:?}, {} MiB",
        began.elapsed(),
        bytes >> 20
    );
    node.configure(AWAY, "");
    for (how, orderly) in [("after SIGTERM", true), ("after SIGKILL", false)] {
        let mut took = Vec::new();
        for _ in 0..5 {
            if orderly {
                node.stop();
            } else {
                node.kill();
            }
            let began = Instant::now();
            node.start();
            node.until(RESOLVE, |reply| {
                reply.status == 200 && reply.body.contains(SECRET)
            })
            .await;
            took.push(began.elapsed());
        }
        took.sort();
        println!("{how}: {took:?}");
        assert!(
            cfg!(debug_assertions) || took[2] < IN_TIME,
            "{how}: {took:?}"
        );
    }
}
