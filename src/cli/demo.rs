//! `sidetone demo`: everything at once, with nothing but Postgres's programs on the machine.
//!
//! A throwaway cluster, the migrations, the role, the example rows, a key, the daemon, and calls to it, each with the
//! `curl` line that makes it. All of it lives below one directory, which is gone afterwards however the demo ends.

pub mod cluster;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;

use self::cluster::{Cluster, Programs, SUPERUSER};
use super::client::{self, Client, QUICK};
use super::output;
use super::run::{Signals, serve};
use super::{CliError, Exit, explain};
use crate::config::{Config, LogFormat, PostgresConfig};
use crate::example;
use crate::seal::{Context, Keyring, SealError, Write, write_keyring};
use crate::source::{Target, inspect, migrate};

/// What `deploy/sql/roles.sql` grants.
const ROLES: &str = include_str!("../../deploy/sql/roles.sql");
/// The database of the demo.
const DATABASE: &str = "platform";
/// The credential of the example rows, which is no real one.
const SECRET: &str = "sk-demo-0123456789abcdef";
/// Longest time until the daemon has its first copy, and until a change is answered.
const PATIENCE: Duration = Duration::from_secs(20);

/// How to demonstrate.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// End after the sample calls
    #[arg(long)]
    once: bool,
    /// Directory of initdb and postgres [default: found in PATH or /usr/lib/postgresql]
    #[arg(long, value_name = "DIR", env = "SIDETONE_PG_BIN")]
    pg_bin: Option<PathBuf>,
    /// What the daemon logs on standard error
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    log: String,
}

pub(super) fn run(args: &DemoArgs) -> Result<Exit, CliError> {
    let programs = Programs::find(args.pg_bin.as_deref())
        .map_err(|err| CliError::below("demo", Exit::No, err))?;
    output::print(&format!(
        "Starting a throwaway PostgreSQL {} and a sidetone beside it …\n",
        programs.major
    ))?;
    let cluster = Cluster::start(programs).map_err(|err| CliError::below("demo", Exit::No, err))?;
    let runtime = super::runtime(Some(2))?;
    let exit = runtime.block_on(demonstrate(args, &cluster));
    // What the daemon left running ends before its directory goes.
    runtime.shutdown_timeout(Duration::from_secs(2));
    drop(cluster);
    if exit.is_ok() {
        output::print("\nStopped; nothing is left behind.\n")?;
    }
    exit
}

async fn demonstrate(args: &DemoArgs, cluster: &Cluster) -> Result<Exit, CliError> {
    let signals = Signals::listen(&[
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ])?;
    let node = Node::prepare(cluster, &args.log)?;
    fill(cluster, &node.keyring).await?;
    let stop = CancellationToken::new();
    let mut daemon = tokio::spawn(serve(node.config.clone(), None, stop.clone()));
    let client = Client::new(&node.config.http.unix);
    let show = async {
        ready(&client).await?;
        let scene = Scene {
            cluster,
            node: &node,
            client,
        };
        scene.show().await?;
        if args.once {
            Ok(false)
        } else {
            scene.invite().map(|()| true)
        }
    };
    let ended = |ended: Result<Result<(), CliError>, tokio::task::JoinError>| match ended {
        Ok(Err(err)) => err,
        Ok(Ok(())) => CliError::Usage("the daemon ended by itself".into()),
        Err(err) => CliError::below("the daemon", Exit::No, err),
    };
    let shown = tokio::select! {
        biased;
        () = signals.times(1) => Ok(false),
        over = &mut daemon => return Err(ended(over)),
        shown = show => shown,
    };
    if matches!(shown, Ok(true)) {
        tokio::select! {
            () = signals.times(1) => {}
            over = &mut daemon => return Err(ended(over)),
        }
    }
    stop.cancel();
    // It drains within its own limit.
    let _ = tokio::time::timeout(PATIENCE, daemon).await;
    shown.map(|_| Exit::Ok)
}

/// The settings and files of the demo's daemon.
struct Node {
    config: Config,
    keyring: Keyring,
}

impl Node {
    fn prepare(cluster: &Cluster, log: &str) -> Result<Self, CliError> {
        let home = cluster.dir().join("node");
        for dir in [
            home.clone(),
            home.join("replica"),
            home.join("admin"),
            home.join("call"),
        ] {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&dir)
                .map_err(|source| CliError::Io {
                    what: format!("{}: cannot be made", dir.display()),
                    source,
                })?;
        }
        let mut config = Config::default();
        config.node.name = "demo".to_owned();
        config.postgres.url = cluster.url("sidetone", DATABASE);
        config.replica.dir = home.join("replica");
        config.keys.file = home.join("keyring.toml");
        config.http.unix = home.join("call/sidetone.sock");
        config.http.tcp = free_address()?;
        config.admin.unix = home.join("admin/admin.sock");
        config.log.format = LogFormat::Text;
        config.log.filter = log.to_owned();
        let failed = |err| CliError::below("demo", Exit::No, err);
        let text = Keyring::generate("demo").map_err(failed)?;
        write_keyring(&config.keys.file, &text, Write::New)?;
        let keyring = Keyring::parse(&text).map_err(failed)?;
        Ok(Self { config, keyring })
    }
}

/// A loopback port that nobody uses.
fn free_address() -> Result<String, CliError> {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.to_string())
        .map_err(|source| CliError::Io {
            what: "no free port on 127.0.0.1".into(),
            source,
        })
}

/// Database, schema, role and rows.
async fn fill(cluster: &Cluster, keyring: &Keyring) -> Result<(), CliError> {
    let failed = |doing: &'static str| {
        move |err: sqlx::Error| CliError::below(format!("demo: {doing}"), Exit::No, err)
    };
    let mut conn = connect(cluster, "postgres").await?;
    sqlx::query("create database platform")
        .execute(&mut conn)
        .await
        .map_err(failed("making the database"))?;
    let _ = conn.close().await;
    let mut conn = connect(cluster, DATABASE).await?;
    migrate::run(&mut conn)
        .await
        .map_err(|err| CliError::below("demo: migrating", Exit::No, err))?;
    sqlx::raw_sql(ROLES)
        .execute(&mut conn)
        .await
        .map_err(failed("making the role"))?;
    // Sealed before it is loaded, so that a refusal is an error and not an empty credential.
    let seal = |row: &example::Credential| -> Result<String, SealError> {
        let tenant = uuid::Uuid::parse_str(&row.tenant).unwrap_or_default();
        keyring.seal_jwe(
            SECRET,
            &Context {
                tenant,
                provider: &row.provider,
                name: &row.name,
            },
        )
    };
    let refused = std::sync::Mutex::new(None);
    example::load(&mut conn, |row| {
        seal(row).unwrap_or_else(|err| {
            if let Ok(mut refused) = refused.lock() {
                *refused = Some(err);
            }
            String::new()
        })
    })
    .await
    .map_err(|err| CliError::below("demo", Exit::No, err))?;
    if let Ok(Some(err)) = refused.into_inner() {
        return Err(CliError::below("demo", Exit::No, err));
    }
    let _ = conn.close().await;
    Ok(())
}

async fn connect(cluster: &Cluster, database: &str) -> Result<PgConnection, CliError> {
    let settings = PostgresConfig {
        url: cluster.url(SUPERUSER, database),
        ..PostgresConfig::default()
    };
    let target =
        Target::new(&settings, "demo").map_err(|err| CliError::below("demo", Exit::No, err))?;
    inspect::connect(&target)
        .await
        .map_err(|err| CliError::below("demo", Exit::No, err))
}

/// Waits until the node can answer.
async fn ready(client: &Client) -> Result<(), CliError> {
    let since = Instant::now();
    loop {
        let last = match client.get("/readyz", QUICK).await {
            Ok(reply) if reply.is_ok() => return Ok(()),
            Ok(reply) => reply.refusal(),
            Err(err) => err.into(),
        };
        if since.elapsed() > PATIENCE {
            return Err(last);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One call of the demo.
struct Sample {
    title: &'static str,
    path: &'static str,
    query: &'static [(&'static str, &'static str)],
    shown: Shown,
}

/// How an answer is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    AsItIs,
    AsTable,
}

const SAMPLES: &[Sample] = &[
    Sample {
        title: "What a call needs to know, in one short line",
        path: "/v1/lookup",
        query: &[("to", "+14155550100")],
        shown: Shown::AsItIs,
    },
    Sample {
        title: "For a dialplan that splits at & and =; the number as it stands in the SIP header",
        path: "/v1/lookup",
        query: &[
            ("to", "sip:+541150000002@sip.example;user=phone"),
            ("format", "form"),
        ],
        shown: Shown::AsItIs,
    },
    Sample {
        title: "One field alone, nothing to parse",
        path: "/v1/lookup/language",
        query: &[("to", "+541150000002")],
        shown: Shown::AsItIs,
    },
    Sample {
        title: "All of it for a voice agent: the prompts for this very call, and the provider's key",
        path: "/v1/resolve",
        query: &[
            ("to", "+14155550100"),
            ("account_ref", "ACME-001234"),
            ("event_type", "door_open"),
            ("zone", "Z1"),
            ("include", "credentials"),
        ],
        shown: Shown::AsItIs,
    },
    Sample {
        title: "Why that answer: each prompt and binding, chosen or not (`sidetone explain` shows it as a table)",
        path: "/v1/explain",
        query: &[
            ("to", "+14155550100"),
            ("account_ref", "ACME-001234"),
            ("event_type", "door_open"),
        ],
        shown: Shown::AsTable,
    },
    Sample {
        title: "A number nobody has",
        path: "/v1/lookup",
        query: &[("to", "+15005550006")],
        shown: Shown::AsItIs,
    },
    Sample {
        title: "A number whose tenant is suspended",
        path: "/v1/lookup",
        query: &[("to", "+542994000003")],
        shown: Shown::AsItIs,
    },
];

/// The row the demo changes, back and forth.
const CHANGED: &str = "+541150000002";

struct Scene<'a> {
    cluster: &'a Cluster,
    node: &'a Node,
    client: Client,
}

impl Scene<'_> {
    async fn show(&self) -> Result<(), CliError> {
        for sample in SAMPLES {
            let query: Vec<_> = sample
                .query
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            let target = client::target(sample.path, &query);
            let reply = self.client.get(&target, QUICK).await?;
            let body = match (sample.shown, serde_json::from_slice::<Value>(&reply.body)) {
                (Shown::AsTable, Ok(answer)) => explain::prompts(&answer),
                _ => format!(
                    "{}\n",
                    output::printable(&String::from_utf8_lossy(&reply.body))
                ),
            };
            let code = if reply.is_ok() {
                String::new()
            } else {
                dim(&format!("HTTP {}\n", reply.code.as_u16()))
            };
            self.say(&format!(
                "{}{}{code}{body}",
                output::heading(sample.title),
                command(&self.curl(&target))
            ))?;
        }
        self.change().await
    }

    /// Changes a row, and shows when the change is answered.
    async fn change(&self) -> Result<(), CliError> {
        let language = client::target(
            "/v1/lookup/language",
            &[("to".to_owned(), CHANGED.to_owned())],
        );
        let ask = async || Ok::<_, CliError>(self.client.get(&language, QUICK).await?.body);
        let before = ask().await?;
        self.say(&format!(
            "{}{}{}",
            output::heading("A change in Postgres, and the next answer"),
            command(&self.psql("pt-BR")),
            command(&self.curl(&language)),
        ))?;
        let mut conn = connect(self.cluster, DATABASE).await?;
        sqlx::query(
            "update public.tenant_phone_numbers set default_language = 'pt-BR' where e164 = $1",
        )
        .bind(CHANGED)
        .execute(&mut conn)
        .await
        .map_err(|err| CliError::below("demo: changing a row", Exit::No, err))?;
        let committed = Instant::now();
        let _ = conn.close().await;
        loop {
            let after = ask().await?;
            if after != before {
                let text = output::printable(&String::from_utf8_lossy(&after));
                let within = committed.elapsed().as_millis();
                return self.say(&format!(
                    "{text}{}",
                    dim(&format!("   seen within {within} ms of the commit\n"))
                ));
            }
            if committed.elapsed() > PATIENCE {
                return Err(CliError::Answer {
                    message: "the change was not answered in time".to_owned(),
                    exit: Exit::No,
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What to try now.
    fn invite(&self) -> Result<(), CliError> {
        let config = &self.node.config;
        let sockets = format!(
            "SIDETONE_SOCKET={} SIDETONE_ADMIN_SOCKET={}",
            config.http.unix.display(),
            config.admin.unix.display()
        );
        self.say(&format!(
            "{}{}{}{}{}{}",
            output::heading("Your turn"),
            dim("Change a row, and ask again:\n"),
            command(&self.psql("en-GB")),
            dim(&format!(
                "Over TCP, where credentials are never given: http://{}/v1/lookup?to=…\n",
                config.http.tcp
            )),
            dim("The command line, against this node:\n"),
            format_args!(
                "{}{}",
                command(&format!("export {sockets}")),
                command("sidetone status; sidetone explain +14155550100")
            ),
        ))?;
        self.say(&format!(
            "{}{}\n\u{1b}[1mRunning until Ctrl-C.\u{1b}[0m\n",
            dim("Postgres gone: the answers stay, and tell their age\n"),
            command(&format!(
                "kill -INT $(head -1 {})",
                self.cluster
                    .socket_dir()
                    .join("data/postmaster.pid")
                    .display()
            )),
        ))
    }

    fn say(&self, text: &str) -> Result<(), CliError> {
        output::print(text)
    }

    fn curl(&self, target: &str) -> String {
        format!(
            "curl -s --unix-socket {} 'http://localhost{target}'",
            shell(&self.node.config.http.unix)
        )
    }

    fn psql(&self, language: &str) -> String {
        format!(
            "psql -h {} -U {SUPERUSER} {DATABASE} -c \"update tenant_phone_numbers set default_language = '{language}' where e164 = '{CHANGED}'\"",
            shell(&self.cluster.socket_dir())
        )
    }
}

/// A path in a shell's line.
fn shell(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    if plain {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn command(line: &str) -> String {
    format!("\u{1b}[36m$ {line}\u{1b}[0m\n")
}

fn dim(text: &str) -> String {
    let (line, end) = text
        .strip_suffix('\n')
        .map_or((text, ""), |line| (line, "\n"));
    format!("\u{1b}[2m{line}\u{1b}[0m{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_quote_stays_one_word_of_the_shell() {
        assert_eq!(shell(Path::new("/tmp/x-1/a.sock")), "/tmp/x-1/a.sock");
        assert_eq!(shell(Path::new("/tmp/it's")), "'/tmp/it'\\''s'");
    }
}
