//! A wall clock that jumps by hours and years: ages do not follow it, business hours do.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::cluster::{Cluster, Options, Stop, scratch};
use crate::node::{ACME, Node, SECRET};

const LOOKUP: &str = "/v1/lookup?to=%2B14155550100";
const HOUR: i64 = 3600;
const YEAR: i64 = 365 * 24 * HOUR;

/// What moves the wall clock of a process, compiled.
fn shim() -> String {
    let library = scratch("shim").join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/shim/clock.c");
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .args([source, "-ldl"])
        .output()
        .expect("cc makes the library that moves the clock");
    assert!(output.status.success(), "{output:?}");
    library.to_str().unwrap().to_owned()
}

struct Clock(PathBuf);

impl Clock {
    /// Whole, so that nobody reads half a number.
    fn jump(&self, seconds: i64) {
        let new = self.0.with_extension("new");
        fs::write(&new, seconds.to_string()).unwrap();
        fs::rename(new, &self.0).unwrap();
    }
}

fn age(reply: &crate::node::Reply) -> u128 {
    u128::from(reply.json()["staleness_ms"].as_u64().unwrap())
}

/// The local time told, in seconds: good enough to see jumps of hours.
fn told(reply: &crate::node::Reply) -> i64 {
    let told: jiff::Timestamp = reply.text("/local_time").parse().unwrap();
    told.as_second()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_jumps_moves_business_hours_and_no_age() {
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    let mut node = Node::prepare(
        &db.url(),
        "feed.refuse_credentials_after = '1h'\nfeed.heartbeat_every = '500ms'",
    );
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, SECRET))
        .await;
    let mornings = r#"{"mon":["00:00-12:00"],"tue":["00:00-12:00"],"wed":["00:00-12:00"],"thu":["00:00-12:00"],"fri":["00:00-12:00"],"sat":["00:00-12:00"],"sun":["00:00-12:00"]}"#;
    db.sql(&format!(
        "update public.tenant_settings set business_hours = '{mornings}'"
    ))
    .await;
    let clock = Clock(node.path("clock"));
    let (library, file) = (shim(), node.path("clock").display().to_string());
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("SHIM_CLOCK", file.as_str()),
    ];
    node.start_with(&env);
    node.synced().await;
    let credentials = format!("/v1/credentials?to={ACME}");
    let real = told(&node.get(LOOKUP).await);
    let began = Instant::now();
    for seconds in [12 * HOUR, -12 * HOUR, 10 * YEAR, -10 * YEAR, 0] {
        clock.jump(seconds);
        let reply = node.get(LOOKUP).await;
        let passed = i64::try_from(began.elapsed().as_secs()).unwrap();
        let off = told(&reply) - real - seconds;
        assert!((0..=passed + 1).contains(&off), "{seconds}: {off} s off");
        let hour: u32 = reply.text("/local_time")[11..13].parse().unwrap();
        let hours = if hour < 12 { "open" } else { "closed" };
        assert_eq!(reply.text("/business_hours"), hours, "{reply:?}");
        assert_eq!(reply.text("/stale"), "false", "{reply:?}");
        assert_eq!(node.get(&credentials).await.status, 200);
        db.sql(&format!(
            "update public.tenant_phone_numbers set label = 'at {seconds}' where e164 = '+14155550100'"
        ))
        .await;
        node.until(LOOKUP, |reply| {
            reply.text("/label") == format!("at {seconds}")
        })
        .await;
        assert_eq!(node.get("/readyz").await.status, 200);
        let status = node.admin("GET", "/v1/admin/status", "").await;
        assert_eq!(status.status, 200, "{status:?}");
    }
    drop(db);
    cluster.stop(Stop::Immediate);
    let stopped = Instant::now();
    for (restart, seconds) in [
        (false, 10 * YEAR),
        (false, -10 * YEAR),
        (true, -10 * YEAR),
        (true, 10 * YEAR),
        (true, -HOUR),
    ] {
        clock.jump(seconds);
        if restart {
            node.kill();
            node.start_with(&env);
            node.answering().await;
        }
        let least = stopped.elapsed().as_millis();
        let reply = node.get(LOOKUP).await;
        assert!(age(&reply) >= least, "{reply:?} after {least} ms");
        // Nothing expires either: an hour has not passed.
        assert_eq!(node.get(&credentials).await.status, 200, "{seconds}");
    }
    assert!(!node.log().contains("panic"), "{}", node.log());
}
