//! Who may ask what and how often, over real sockets, by the kernel's word.

use crate::cluster::Cluster;
use crate::node::{ACME, Node};

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_over_its_rate_is_told_to_wait_and_tcp_is_answered_meanwhile() {
    let db = Cluster::shared().database().await;
    let uid = rustix::process::geteuid().as_raw();
    let rules =
        format!("[[access]]\nuser = \"{uid}\"\nallow = [\"config\"]\nrate = \"1/m burst 20\"\n");
    let mut node = Node::prepare(&db.url(), &rules);
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, "x"))
        .await;
    node.start();
    node.synced().await;
    let target = format!("/v1/lookup?to={ACME}");
    let mut passed = 0;
    let refused = loop {
        let reply = node.get(&target).await;
        if reply.status != 200 {
            break reply;
        }
        passed += 1;
        assert!(passed <= 20);
    };
    assert_eq!((passed, refused.status), (20, 503));
    assert_eq!(refused.text("/status"), "overloaded");
    let wait: u64 = refused.headers["retry-after"].parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(node.get_tcp(&target).await.status, 200);
    assert_eq!(node.get("/readyz").await.status, 200);
    let counted = node.get_tcp("/metrics").await.body;
    assert!(
        counted.contains("sidetone_lookups_total{outcome=\"overloaded\"} 1\n"),
        "{counted}"
    );
    assert!(node.log().contains("asks more often than its rate allows"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_about_a_unit_lets_in_nobody_else_and_the_log_tells_who_was_refused() {
    let db = Cluster::shared().database().await;
    let rules =
        "[[access]]\nunit = \"voice-agent.service\"\nallow = [\"config\", \"credentials\"]\n";
    let mut node = Node::prepare(&db.url(), rules);
    node.start();
    node.answering().await;
    let refused = node.get(&format!("/v1/lookup?to={ACME}")).await;
    assert_eq!(
        (refused.status, refused.text("/status")),
        (403, "forbidden".to_owned())
    );
    let log = node.log();
    let line = log
        .lines()
        .find(|line| line.contains("access refused"))
        .unwrap();
    let own = std::process::id();
    assert!(
        line.contains(&format!("\"pid\":{own}")) && line.contains("\"uid\":"),
        "{line}"
    );
}
