//! A terminal in a world of its own, into which tests type what the documentation shows.
//!
//! One shell for each document, so that what one block sets the next one has. The world is a directory that stands for
//! `/`, a Postgres with a database `platform`, and a port: paths, `db.example` and `127.0.0.1:8377` are put in their
//! places on the way in and taken out again on the way out. The service manager and the other hosts are played by
//! functions of the shell; the daemon, its command line, psql and curl are real.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Options, TEMPLATE, free_port, scratch};
use crate::markdown::{Piece, Shown, file, inline, is_as_shown, pieces, repository, shown};
use crate::node::{SECRET, binary};

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a question is asked again until it is answered as shown: what was changed a moment ago takes its time.
const ARRIVAL: Duration = Duration::from_secs(5);
const PROGRESS: [&str; 3] = [
    "sidetone: comparing",
    "sidetone: migrating",
    "sidetone: pulling",
];
/// Ends what a command said, with its exit code after it.
const MARK: char = '\u{1e}';

/// What plays the service manager and the other nodes.
const FUNCTIONS: &str = r#"
# Where the program looks unless it is told, put into the world. Settings of one's own say it themselves.
sidetone() {
    here=()
    if [ "$SIDETONE_CONFIG" = "$WORLD/etc/sidetone/sidetone.toml" ]; then
        here=(SIDETONE_KEYS__FILE="$WORLD/etc/sidetone/keyring.toml" SIDETONE_REPLICA__DIR="$WORLD/var/lib/sidetone"
            SIDETONE_HTTP__UNIX="$WORLD/run/sidetone/sidetone.sock" SIDETONE_NODE__NAME=edge-1
            SIDETONE_ADMIN__UNIX="$WORLD/run/sidetone-admin/admin.sock")
    fi
    if [ "$*" != run ]; then env "${here[@]}" sidetone "$@"; return; fi
    (exec env "${here[@]}" sidetone run >>"$WORLD/log" 2>&1) &
    daemon=$!
    until sidetone status --json 2>/dev/null | grep -q '"synced":true'; do
        kill -0 $daemon || { cat "$WORLD/log"; return 1; }
        sleep 0.02
    done
}
systemctl() {
    case "$1" in
        start) sidetone run ;;
        stop) kill -TERM $daemon; wait $daemon ;;
        restart) systemctl stop && systemctl start ;;
        reload) kill -HUP $daemon
            curl -sf -X POST --unix-socket "$WORLD/run/sidetone-admin/admin.sock" http://localhost/v1/admin/keys/reload >/dev/null ;;
        *) return 1 ;;
    esac
}
journalctl() { cat "$WORLD/log"; }
ssh() { shift; eval "$*"; }
scp() { :; }
"#;

/// A node as `README.md` makes one, of a database that is migrated.
const NODE: &str = r#"
sidetone keygen --file /etc/sidetone/keyring.toml
(umask 077; echo postgres://sidetone@db.example/platform > /etc/sidetone/postgres-url)
echo 'postgres.url_file = "/etc/sidetone/postgres-url"' > /etc/sidetone/sidetone.toml
"#;

/// A shell and what it stands in. Dropped, both are gone.
pub(crate) struct Terminal {
    root: PathBuf,
    cluster: Cluster,
    port: u16,
    document: String,
    shell: Child,
    input: ChildStdin,
    heard: Receiver<String>,
    /// What was not as shown so far: all of it is told at once.
    faults: Vec<String>,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.root.join("log")).unwrap_or_default();
            eprintln!("--- log of the node\n{log}");
        }
    }
}

impl Terminal {
    /// A shell in the directory that stands for the checked-out repository, with nothing installed but the program.
    fn open(document: &str) -> Self {
        let root = scratch("terminal");
        let cluster = Cluster::own(Options::default());
        let port = free_port();
        for dir in [
            "bin",
            "etc/sidetone",
            "run",
            "var/lib",
            "tmp",
            "usr/share/man/man1",
        ] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        let links = [
            (binary(), "bin/sidetone"),
            (repository().join("deploy"), "deploy"),
            (repository().join("examples"), "examples"),
            (repository().join("config"), "config"),
        ];
        for (to, at) in links {
            std::os::unix::fs::symlink(to, root.join(at)).unwrap();
        }
        fs::write(root.join("key.txt"), SECRET).unwrap();
        // No settings is not the same as none where `SIDETONE_CONFIG` names them.
        fs::write(root.join("etc/sidetone/sidetone.toml"), "").unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let at = |path: &str| root.join(path).display().to_string();
        let mut shell = Command::new("setsid")
            .args(["bash", "--noprofile", "--norc"])
            .current_dir(&root)
            .env_clear()
            .envs([
                ("PATH", format!("{}:{path}", at("bin"))),
                ("HOME", at("")),
                ("TMPDIR", at("tmp")),
                ("WORLD", root.display().to_string()),
                ("PGHOST", cluster.socket_dir().display().to_string()),
                ("PGPORT", cluster.port().to_string()),
                ("PGUSER", "postgres".to_owned()),
                ("number", "+14155550100".to_owned()),
                ("SIDETONE_CONFIG", at("etc/sidetone/sidetone.toml")),
                ("SIDETONE_HTTP__TCP", format!("127.0.0.1:{port}")),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let input = shell.stdin.take().unwrap();
        let mut output = shell.stdout.take().unwrap();
        let (tell, heard) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 65536];
            let mut left = Vec::new();
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                left.extend_from_slice(&bytes[..count]);
                // A character may be cut in two.
                let whole = match std::str::from_utf8(&left) {
                    Ok(text) => text.len(),
                    Err(err) => err.valid_up_to(),
                };
                let rest = left.split_off(whole);
                let text = String::from_utf8(std::mem::replace(&mut left, rest)).unwrap();
                if tell.send(text).is_err() {
                    return;
                }
            }
        });
        let mut terminal = Self {
            root,
            cluster,
            port,
            document: document.to_owned(),
            shell,
            input,
            heard,
            faults: Vec::new(),
        };
        terminal.write(FUNCTIONS);
        terminal
    }

    /// `create database platform`: empty, and its owner's.
    async fn empty_database(&self) {
        let admin = self.cluster.admin().await;
        admin.sql("create role owner login").await;
        admin.sql("create database platform owner owner").await;
    }

    /// A running node with the example rows.
    async fn example_node(&mut self) {
        let admin = self.cluster.admin().await;
        admin
            .sql(&format!("create database platform template {TEMPLATE}"))
            .await;
        let (said, code) = self.run(0, NODE);
        assert_eq!(code, 0, "{said}");
        self.example_rows().await;
        let (said, code) = self.run(0, "sidetone run");
        assert_eq!(code, 0, "{said}");
    }

    /// The example rows, the credential sealed with the world's keyring.
    async fn example_rows(&self) {
        let keyring = self.root.join("etc/sidetone/keyring.toml");
        let keyring = sidetone::seal::Keyring::load(&keyring).unwrap();
        let db = self.cluster.open("platform").await;
        db.load_example_sealed(|row| {
            let context = sidetone::seal::Context {
                tenant: row.tenant.parse().unwrap(),
                provider: &row.provider,
                name: &row.name,
            };
            keyring.seal_jwe(SECRET, &context).unwrap()
        })
        .await;
    }

    /// What the documentation names, as it is here, one way or the other.
    fn places(&self) -> Vec<(String, String)> {
        let socket_dir = self.cluster.socket_dir().display().to_string();
        let of_root = |path: &str| (path.to_owned(), format!("{}{path}", self.root.display()));
        vec![
            of_root("/etc/sidetone"),
            of_root("/run/sidetone"),
            of_root("/var/lib/sidetone"),
            of_root("/usr/share/man"),
            ("127.0.0.1:8377".into(), format!("127.0.0.1:{}", self.port)),
            (
                "db.example".into(),
                format!("{}:{}", socket_dir.replace('/', "%2F"), self.cluster.port()),
            ),
        ]
    }

    fn placed(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (shown, real) in self.places() {
            text = text.replace(&shown, &real);
        }
        // Whoever runs the tests plays the parts of those that ask.
        text.replace(
            "\"telephony\"",
            &format!("\"{}\"", rustix::process::getegid().as_raw()),
        )
        .replace(
            "\"voice-agent\"",
            &format!("\"{}\"", rustix::process::geteuid().as_raw()),
        )
    }

    fn as_shown(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (shown, real) in self.places() {
            text = text.replace(&real, &shown);
        }
        let socket = self.cluster.socket_dir().display().to_string();
        text.replace(
            &format!("{socket} (port {})", self.cluster.port()),
            "db.example:5432",
        )
        .replace(&format!("{}/", self.root.display()), "")
    }

    fn write(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).unwrap();
        self.input.flush().unwrap();
    }

    /// Types a text, and waits for its end: what came on both outputs, and the exit code.
    fn run(&mut self, line: usize, text: &str) -> (String, i32) {
        let text = self.placed(text);
        self.write(&format!(
            "{{ {text}\n}} 2>&1 </dev/null; code=$?; printf '{MARK}%d{MARK}' $code; (exit $code)\n"
        ));
        let mut said = String::new();
        let deadline = Instant::now() + PATIENCE;
        while said.matches(MARK).count() < 2 {
            match self.heard.recv_timeout(deadline - Instant::now()) {
                Ok(more) => said.push_str(&more),
                Err(RecvTimeoutError::Timeout) => {
                    panic!(
                        "{}:{line}: `{text}` does not end; it said {said}",
                        self.document
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!(
                        "{}:{line}: the shell ended at `{text}`: {said}",
                        self.document
                    )
                }
            }
        }
        let (said, code) = said.split_once(MARK).unwrap();
        let code = code.trim_end_matches(MARK).parse().unwrap();
        // What is a spinner on a terminal.
        let said: String = said
            .split_inclusive('\n')
            .filter(|line| !PROGRESS.contains(&line.trim_end()))
            .collect();
        (self.as_shown(&said), code)
    }

    /// Types a command that goes on, and ends it once it has said what is shown.
    fn follow(&mut self, shown: &Shown) {
        let out = self.root.join("followed");
        let (said, code) = self.run(
            shown.line,
            &format!(
                "set -m; ({}) >followed 2>&1 & followed=$!; set +m",
                shown.command
            ),
        );
        assert_eq!((said.as_str(), code), ("", 0));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.as_shown(&fs::read_to_string(&out).unwrap_or_default());
            if is_as_shown(&format!("{}…", shown.output), &said) {
                break;
            }
            if Instant::now() > deadline {
                self.fault(shown, &said, 0);
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.run(shown.line, "kill -- -$followed; wait $followed; true");
    }

    fn console(&mut self, line: usize, block: &str) {
        let mut code = 0;
        let all = shown(line, block);
        for (index, shown) in all.iter().enumerate() {
            if goes_on(&shown.command) {
                self.follow(shown);
                continue;
            }
            let said = match shown.command.as_str() {
                "echo $?" => std::mem::take(&mut code).to_string(),
                command => {
                    let began = Instant::now();
                    let mut last = self.run(shown.line, command);
                    while is_question(command)
                        && !is_as_shown(&shown.output, &last.0)
                        && began.elapsed() < ARRIVAL
                    {
                        std::thread::sleep(Duration::from_millis(50));
                        last = self.run(shown.line, command);
                    }
                    code = last.1;
                    last.0
                }
            };
            let is_told = all
                .get(index + 1)
                .is_some_and(|next| next.command == "echo $?");
            if !is_as_shown(&shown.output, &said) || (code != 0 && !is_told) {
                self.fault(shown, &said, code);
            }
        }
    }

    fn fault(&mut self, shown: &Shown, said: &str, code: i32) {
        let Shown {
            line,
            command,
            output,
        } = shown;
        self.faults.push(format!(
            "{}:{line}: `{command}` ended with {code}\n--- shown\n{output}\n--- said\n{said}\n",
            self.document
        ));
    }

    /// What only says what to type: all of it has to end well.
    fn script(&mut self, line: usize, block: &str) {
        let (said, code) = self.run(line, &format!("set -e\n{block}\nset +e"));
        assert_eq!(code, 0, "{}:{line}: {block}\n{said}", self.document);
    }

    /// A file whose name is its first line: `# /etc/sidetone/sidetone.toml`.
    fn settings(&self, block: &str) {
        let first = block.lines().next().unwrap_or_default();
        let Some(path) = first
            .strip_prefix("# /etc/")
            .filter(|path| !path.contains(' '))
        else {
            return;
        };
        let path = self.root.join("etc").join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(path, self.placed(block)).unwrap();
    }
}

/// Whether a command ends by itself only when the daemon does.
fn goes_on(command: &str) -> bool {
    command.starts_with("sidetone watch ") || command.starts_with("curl -sN ")
}

/// Whether a command changes nothing and may be asked again.
fn is_question(command: &str) -> bool {
    let asks = [
        "sidetone lookup",
        "sidetone resolve",
        "sidetone explain",
        "sidetone status",
        "curl -s ",
    ];
    let does = ["psql", "refresh", "keygen", "seal", " -X "];
    asks.iter().any(|word| command.contains(word))
        && !does.iter().any(|word| command.contains(word))
}

/// Whether code in a table is a whole command with arguments of its own, which ends by itself.
fn is_example(code: &str) -> bool {
    let mut words = code.split(' ');
    let is_ours = words.next() == Some("sidetone");
    let name = words.next().unwrap_or_default();
    is_ours
        && words.next().is_some()
        && !code.contains(['…', '<'])
        && !["run", "demo", "watch"].contains(&name)
}

/// Types everything that a document shows, from top to bottom: how many blocks that was. Comments that readers do not
/// see tell the world: `<!-- world: nothing -->` before anything else, `<!-- world: example rows -->` where they come.
pub(crate) async fn try_document(document: &str) -> usize {
    let text = file(document);
    let runs = |info: &str| info == "console" || info == "sh";
    let pieces = pieces(&text);
    if !pieces
        .iter()
        .any(|piece| matches!(piece, Piece::Fence { info, .. } if runs(info)))
    {
        return 0;
    }
    let mut terminal = Terminal::open(document);
    if text.contains("<!-- world: nothing -->") {
        terminal.empty_database().await;
    } else {
        terminal.example_node().await;
    }
    let mut tried = 0;
    for piece in pieces {
        match piece {
            Piece::Line { text, .. } if text == "<!-- world: example rows -->" => {
                terminal.example_rows().await;
                let (said, code) = terminal.run(0, "sidetone refresh >/dev/null");
                assert_eq!(code, 0, "{said}");
            }
            Piece::Line { line, text } if text.starts_with('|') => {
                for command in inline(&text).iter().filter(|word| is_example(word)) {
                    let (said, code) = terminal.run(line, command);
                    if code != 0 {
                        terminal.faults.push(format!(
                            "{document}:{line}: `{command}` ended with {code}: {said}"
                        ));
                    }
                    tried += 1;
                }
            }
            Piece::Line { .. } => {}
            Piece::Fence { info, line, lines } => {
                let block = lines.join("\n");
                match info.as_str() {
                    "console" => terminal.console(line, &block),
                    "sh" => terminal.script(line, &block),
                    "toml" => terminal.settings(&block),
                    _ => continue,
                }
                tried += 1;
            }
        }
    }
    let faults = terminal.faults.join("\n");
    assert!(faults.is_empty(), "not as shown:\n{faults}");
    tried
}
