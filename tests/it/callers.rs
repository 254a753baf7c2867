//! Who may ask what and how often, over real sockets, by the kernel's word.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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

/// A control group of this machine that looks as a unit's does, if this user may make one. Gone when dropped.
struct Group(PathBuf);

impl Group {
    fn make(path: &str) -> Option<Self> {
        let bases = [
            "/sys/fs/cgroup/systemd",
            "/sys/fs/cgroup/unified",
            "/sys/fs/cgroup",
        ];
        let base = bases
            .iter()
            .find(|base| Path::new(base).join("cgroup.procs").exists())?;
        let group = Self(Path::new(base).join(path));
        fs::create_dir_all(&group.0).ok()?;
        group.0.join("cgroup.procs").exists().then_some(group)
    }

    /// Runs a command of the node's binary within the group.
    fn run(&self, node: &Node, args: &[&str]) -> Output {
        let inner = node.command(args);
        let script = "echo $$ > \"$0\" && exec \"$@\"";
        Command::new("sh")
            .args(["-c", script])
            .arg(self.0.join("cgroup.procs"))
            .arg(inner.get_program())
            .args(inner.get_args())
            .output()
            .unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for dir in self
            .0
            .ancestors()
            .take_while(|dir| dir.file_name().is_some_and(|name| name != "cgroup"))
        {
            let _ = fs::remove_dir(dir);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_the_unit_is_answered_and_one_of_a_group_called_so_elsewhere_is_not() {
    let unit = format!("sidetone-it-{}.service", std::process::id());
    let (Some(own), Some(imitated)) = (
        Group::make(&format!("sidetone-it.slice/{unit}")),
        Group::make(&format!("sidetone-it.slice/user@7-{unit}/{unit}")),
    ) else {
        return eprintln!("control groups cannot be made here: not tested");
    };
    let db = Cluster::shared().database().await;
    let mut node = Node::prepare(
        &db.url(),
        &format!("[[access]]\nunit = \"{unit}\"\nallow = [\"config\"]\n"),
    );
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, "x"))
        .await;
    node.start();
    node.synced().await;
    let ask = ["lookup", "+14155550100", "--field", "language"];
    let told = own.run(&node, &ask);
    assert_eq!(
        (told.status.code(), told.stdout),
        (Some(0), b"es-AR\n".to_vec())
    );
    assert_eq!(imitated.run(&node, &ask).status.code(), Some(4));
    assert_eq!(node.cli(&ask).status.code(), Some(4));
    assert!(node.log().contains(&format!("\"unit\":\"user@7-{unit}\"")));
}
