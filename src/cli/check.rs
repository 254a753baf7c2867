//! `sidetone check`: everything that would keep a node from answering, told at once.
//!
//! Settings first: when they are wrong nothing below can be judged. Then keys, directories, sockets and Postgres,
//! each with a line and, where it is not well, a remedy.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use serde::Serialize;
use sqlx::Connection as _;

use super::client::{Client, QUICK};
use super::output::{self, Tone, cell};
use super::{CliError, Exit, SettingsArgs, block_on};
use crate::access::{Access, Names};
use crate::cause::chain;
use crate::config::{self, Config, Problem};
use crate::metrics::Certificate;
use crate::replica;
use crate::seal::{Keyring, lets_others_in};
use crate::source::inspect::{self, Inspection};
use crate::source::migrate::SCHEMA_VERSION;
use crate::source::{Role, Session, SourceError, Target};

/// What to check.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Print a settings file with every setting at its default, and check nothing
    #[arg(long)]
    print_defaults: bool,
    /// Leave Postgres alone
    #[arg(long)]
    offline: bool,
    /// The findings as JSON
    #[arg(long)]
    json: bool,
}

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Well.
    Ok,
    /// Works, and should not stay so.
    Warning,
    /// Does not work.
    Problem,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// How long a collector of traces may take to be reached.
const COLLECTOR_TIMEOUT: Duration = Duration::from_secs(2);

/// So long before its end something is told to end soon, as the alerts do.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How well it is.
    pub level: Level,
    /// What was looked at: a key of the settings, or what of Postgres.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do; empty where it is well.
    pub remedy: String,
}

/// Findings in the order they were made.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        level: Level,
        subject: &str,
        found: impl fmt::Display,
        remedy: impl fmt::Display,
    ) {
        self.0.push(Finding {
            level,
            subject: subject.to_owned(),
            found: found.to_string(),
            remedy: remedy.to_string(),
        });
    }

    fn ok(&mut self, subject: &str, found: impl fmt::Display) {
        self.add(Level::Ok, subject, found, "");
    }

    fn warning(&mut self, subject: &str, found: impl fmt::Display, remedy: impl fmt::Display) {
        self.add(Level::Warning, subject, found, remedy);
    }

    fn problem(&mut self, subject: &str, found: impl fmt::Display, remedy: impl fmt::Display) {
        self.add(Level::Problem, subject, found, remedy);
    }

    fn worst(&self) -> Level {
        self.0
            .iter()
            .map(|finding| finding.level)
            .max()
            .unwrap_or(Level::Ok)
    }
}

pub(super) fn run(settings: &SettingsArgs, args: &CheckArgs) -> Result<Exit, CliError> {
    if args.print_defaults {
        output::print(&config::default_file())?;
        return Ok(Exit::Ok);
    }
    let sources = settings.sources();
    let config = match Config::load(&sources) {
        Ok(config) => config,
        Err(err) if args.json => {
            let findings = Findings(err.problems.iter().map(of_settings).collect());
            output::print_body(&json(&findings))?;
            return Ok(Exit::Usage);
        }
        Err(err) => return Err(err.into()),
    };
    let mut findings = Findings::default();
    findings.ok(
        "settings",
        match &sources.file {
            Some(path) => path.display().to_string(),
            None if Path::new(config::DEFAULT_PATH).exists() => config::DEFAULT_PATH.to_owned(),
            None => format!("defaults: there is no {}", config::DEFAULT_PATH),
        },
    );
    keys(&config, &mut findings);
    replica_dir(&config, &mut findings);
    access(&config, &mut findings);
    units(&config, &mut findings);
    descriptors(&config, &mut findings);
    match crate::http::try_admin_tcp(&config) {
        Ok(None) => findings.ok("admin.tcp", "off"),
        Ok(Some(gate)) => {
            findings.ok(
                "admin.tcp",
                format!("{}: token and certificates can be used", config.admin.tcp),
            );
            for (certificate, expires) in gate.expiries() {
                let (subject, file) = match certificate {
                    Certificate::AdminClientCa => {
                        ("admin.tls_client_ca", &config.admin.tls_client_ca)
                    }
                    _ => ("admin.tls_cert", &config.admin.tls_cert),
                };
                if let Some(expires) = expires {
                    ending(&mut findings, subject, &file.display().to_string(), expires);
                }
            }
        }
        Err(err) => findings.problem("admin.tcp", chain(&err), ""),
    }
    block_on(async {
        sockets(&config, &mut findings).await;
        collector(&config, &mut findings).await;
        if !args.offline {
            postgres(&config, &mut findings).await;
        }
    })?;
    if args.json {
        output::print_body(&json(&findings))?;
    } else {
        output::print(&report(&findings))?;
    }
    Ok(if findings.worst() == Level::Problem {
        Exit::No
    } else {
        Exit::Ok
    })
}

fn of_settings(problem: &Problem) -> Finding {
    let subject = if problem.key.is_empty() {
        "settings".to_owned()
    } else {
        problem.key.clone()
    };
    let found = if problem.place.is_empty() {
        problem.what.clone()
    } else {
        format!("{}: {}", problem.place, problem.what)
    };
    Finding {
        level: Level::Problem,
        subject,
        found,
        remedy: String::new(),
    }
}

fn json(findings: &Findings) -> Vec<u8> {
    serde_json::json!({ "result": findings.worst(), "checks": findings.0 })
        .to_string()
        .into_bytes()
}

/// One line each, the remedy below it.
fn report(findings: &Findings) -> String {
    let mut rows = Vec::new();
    for finding in &findings.0 {
        let tone = match finding.level {
            Level::Ok => Tone::Good,
            Level::Warning => Tone::Warn,
            Level::Problem => Tone::Bad,
        };
        let text = match finding.remedy.as_str() {
            "" => finding.found.clone(),
            remedy => format!("{}: {remedy}", finding.found),
        };
        rows.push(vec![
            cell(finding.level.as_str(), tone),
            cell(&finding.subject, Tone::Plain),
            cell(&text, Tone::Plain),
        ]);
    }
    output::rows(rows)
}

fn keys(config: &Config, findings: &mut Findings) {
    let path = &config.keys.file;
    match Keyring::load(path) {
        Ok(ring) => {
            let ids: Vec<String> = ring.ids().map(str::to_owned).collect();
            findings.ok(
                "keys.file",
                format!(
                    "{}: keys {}, {} seals",
                    path.display(),
                    ids.join(", "),
                    ring.seal_id()
                ),
            );
            for key in ring.status() {
                let Some(expires) = key.expires else { continue };
                let found = format!("key {} expires at {expires}", key.id);
                let remedy = if key.seals {
                    "make another with `sidetone keygen --add --expires DATE`, then seal anew what this one sealed"
                } else {
                    "seal anew what is sealed with it, then take it out of the keyring"
                };
                end(findings, "keys.file", expires, found, remedy);
            }
            let raw = &config.keys.raw;
            if !raw.is_empty() && !ids.contains(raw) {
                findings.problem(
                    "keys.raw",
                    format!("key {raw} is not in the keyring"),
                    "name one that is, or leave it empty",
                );
            }
        }
        Err(err) => findings.problem("keys.file", chain(&err), ""),
    }
}

/// A certificate from a file.
fn ending(findings: &mut Findings, subject: &str, file: &str, expires: Timestamp) {
    let found = format!("{file}: the first certificate in it ends at {expires}");
    let remedy = "renew it, then `systemctl reload sidetone` (postgres.tls_ca: restart)";
    end(findings, subject, expires, found, remedy);
}

/// What ends some day: well until [`SOON`] before.
fn end(findings: &mut Findings, subject: &str, at: Timestamp, found: String, remedy: &str) {
    if at.duration_since(Timestamp::now()) > SOON {
        findings.ok(subject, found);
    } else {
        findings.warning(subject, found, remedy);
    }
}

fn replica_dir(config: &Config, findings: &mut Findings) {
    let dir = &config.replica.dir;
    let subject = "replica.dir";
    let told = dir.display();
    let metadata = match fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => {
            return findings.problem(
                subject,
                format!("{told} is no directory"),
                "remove it or choose another",
            );
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            return match dir.ancestors().skip(1).find(|above| above.is_dir()) {
                Some(above) if writable(above) => findings.ok(subject, format!("{told} is not there yet and can be made")),
                _ => findings.problem(
                    subject,
                    format!("{told} is not there and cannot be made by this user"),
                    "make it, mode 0700, owned by the daemon's user (StateDirectory=sidetone of the unit does)",
                ),
            };
        }
        Err(err) => {
            return findings.problem(
                subject,
                format!("{told}: {err}"),
                "let the daemon's user into it",
            );
        }
    };
    if !writable(dir) {
        return findings.problem(
            subject,
            format!("{told} cannot be written by this user"),
            "check as the daemon's user, or chown it to that user",
        );
    }
    if metadata.mode() & 0o077 != 0 {
        findings.warning(
            subject,
            format!(
                "{told} lets others in (mode {:04o})",
                metadata.mode() & 0o7777
            ),
            format!("chmod 0700 {told}"),
        );
    } else if replica::in_use(dir) {
        findings.ok(subject, format!("{told} is in use by a running daemon"));
    } else {
        findings.ok(subject, format!("{told} can be written"));
    }
}

fn writable(dir: &Path) -> bool {
    rustix::fs::access(
        dir,
        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
    )
    .is_ok()
}

/// Names in rules and of the socket's group that this host does not know: the daemon refuses to start with them.
fn access(config: &Config, findings: &mut Findings) {
    let names = Names::of_host();
    let group = &config.http.unix_group;
    if !group.is_empty() && names.group(group).is_none() {
        findings.problem(
            "http.unix_group",
            format!("no group {group} on this host"),
            "make it (groupadd) or name another",
        );
    }
    match Access::new(
        &config.access,
        &names,
        rustix::process::geteuid().as_raw(),
        names.group(group),
    ) {
        Ok(_) if config.access.is_empty() => findings.ok(
            "access",
            "the default rules: root, the daemon's user, the socket's group",
        ),
        Ok(_) => findings.ok("access", format!("{} rules", config.access.len())),
        Err(problems) => problems
            .iter()
            .for_each(|problem| findings.problem(&problem.key, &problem.what, "")),
    }
}

/// What the kernel would have to tell for rules about units to match.
fn units(config: &Config, findings: &mut Findings) {
    if let Some(why) = crate::http::units_cannot_be_told(config) {
        findings.warning(
            "access",
            format!("rules about units match nobody: {why}"),
            "let the daemon see /proc, or name users or groups instead",
        );
    }
}

/// The daemon raises its limit itself, as far as it may.
fn descriptors(config: &Config, findings: &mut Findings) {
    if let Some((left, needed)) = crate::http::lacks_descriptors(&config.http) {
        findings.warning(
            "http.max_connections",
            format!("the limit of descriptors leaves {left} connections, if the daemon has the one of this shell"),
            format!("set LimitNOFILE={needed} in the unit, or ulimit -Hn"),
        );
    }
}

async fn sockets(config: &Config, findings: &mut Findings) {
    for (subject, path, question) in [
        ("http.unix", &config.http.unix, "/healthz"),
        ("admin.unix", &config.admin.unix, "/v1/admin/status"),
    ] {
        if path.as_os_str().is_empty() {
            findings.ok(subject, "off");
            continue;
        }
        let told = path.display();
        match fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => {
                if Client::new(path).get(question, QUICK).await.is_ok() {
                    findings.ok(subject, format!("{told}: a daemon answers there"));
                } else {
                    findings.ok(
                        subject,
                        format!(
                            "{told}: left by a daemon that has ended; the next one replaces it"
                        ),
                    );
                }
            }
            Ok(_) => findings.problem(
                subject,
                format!("{told} is there and is no socket"),
                "remove it or choose another path",
            ),
            Err(_) => {
                let dir = path.parent().unwrap_or(Path::new("/"));
                match dir.ancestors().find(|above| above.is_dir()) {
                    Some(above) if writable(above) && above == dir => findings.ok(subject, format!("{told} can be made")),
                    Some(above) if writable(above) => findings.ok(subject, format!("{} is not there yet and can be made", dir.display())),
                    _ => findings.problem(
                        subject,
                        format!("{told} cannot be made by this user"),
                        format!("make {}, owned by the daemon's user (RuntimeDirectory= of the unit does)", dir.display()),
                    ),
                }
            }
        }
    }
    if config.http.tcp.is_empty() {
        return findings.ok("http.tcp", "off");
    }
    match tokio::net::TcpListener::bind(&config.http.tcp).await {
        Ok(_) => findings.ok("http.tcp", format!("{} is free", config.http.tcp)),
        Err(err) if err.kind() == io::ErrorKind::AddrInUse && is_ours(config).await => {
            findings.ok(
                "http.tcp",
                format!(
                    "{} is in use, by the daemon that answers on http.unix",
                    config.http.tcp
                ),
            );
        }
        Err(err) => findings.problem(
            "http.tcp",
            format!("{}: {err}", config.http.tcp),
            "end what listens there, or choose another port",
        ),
    }
}

/// Nothing depends on it.
async fn collector(config: &Config, findings: &mut Findings) {
    let (subject, told) = ("log.otlp_endpoint", &config.log.otlp_endpoint);
    if told.is_empty() {
        return findings.ok(subject, "off");
    }
    // It was read with the other settings.
    let Ok(place) = config::collector(told) else {
        return;
    };
    let bare = place.host().unwrap_or_default();
    let host = bare.trim_start_matches('[').trim_end_matches(']');
    let default = if place.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    let connecting = tokio::net::TcpStream::connect((host, place.port_u16().unwrap_or(default)));
    let failure = match tokio::time::timeout(COLLECTOR_TIMEOUT, connecting).await {
        Ok(Ok(_)) => return findings.ok(subject, format!("{told}: somebody listens there")),
        Ok(Err(err)) => err.to_string(),
        Err(_) => format!("no connection within {COLLECTOR_TIMEOUT:?}"),
    };
    findings.warning(
        subject,
        format!("{told}: {failure}"),
        "start the collector, or leave the setting empty; calls are answered without it",
    );
}

async fn is_ours(config: &Config) -> bool {
    !config.http.unix.as_os_str().is_empty()
        && Client::new(&config.http.unix)
            .get("/healthz", QUICK)
            .await
            .is_ok()
}

async fn postgres(config: &Config, findings: &mut Findings) {
    let subject = if config.postgres.url_file.as_os_str().is_empty() {
        "postgres.url"
    } else {
        "postgres.url_file"
    };
    if let Ok(metadata) = fs::metadata(&config.postgres.url_file)
        && lets_others_in(&config.postgres.url_file, metadata.mode())
    {
        let path = config.postgres.url_file.display();
        findings.problem(
            subject,
            format!(
                "{path} can be read by others (mode {:04o})",
                metadata.mode() & 0o7777
            ),
            format!("chmod 0600 {path}"),
        );
    }
    let target = match Target::new(&config.postgres, &config.node_name()) {
        Ok(target) => target,
        Err(err) => return findings.problem(subject, chain(&err), ""),
    };
    plaintext(&target, findings);
    if let Some(expires) = target.authorities_expiry {
        let file = config.postgres.tls_ca.display().to_string();
        ending(findings, "postgres.tls_ca", &file, expires);
    }
    let mut conn = match inspect::connect(&target).await {
        Ok(conn) => {
            encrypted(&target, findings);
            conn
        }
        Err(err) => return findings.problem(subject, chain(&err), advice(&err)),
    };
    match inspect::inspect(&mut conn).await {
        Ok(seen) => {
            findings.ok(
                subject,
                format!(
                    "{} answers, PostgreSQL {}, role {}",
                    target.place, seen.server_version, seen.role
                ),
            );
            judge(&seen, findings);
        }
        Err(err) => findings.problem(subject, chain(&err), "see Postgres's log"),
    }
    // How a connection ends that is not needed any more changes nothing.
    let _ = conn.close().await;
    // The feed's own way: several hosts, the one that takes writes.
    match Session::open(&target, Role::Writable, None).await {
        Ok(session) => match session.listen().await {
            Ok(()) => findings.ok("feed", "a session can be opened and hears doorbells"),
            Err(err) => findings.warning(
                "feed",
                chain(&err),
                "changes arrive by heartbeat only; connect to the primary, past any pooler",
            ),
        },
        // Told above, with the remedy.
        Err(SourceError::NoSchema | SourceError::Encoding(_)) => {}
        Err(err) => findings.problem("feed", chain(&err), advice(&err)),
    }
    standby(config, findings).await;
}

async fn standby(config: &Config, findings: &mut Findings) {
    let file = &config.postgres.read_url_file;
    let url = if file.as_os_str().is_empty() {
        config.postgres.read_url.clone()
    } else {
        match fs::read_to_string(file) {
            Ok(url) => url,
            Err(err) => {
                return findings.problem(
                    "postgres.read_url_file",
                    format!("{}: {err}", file.display()),
                    "make it readable by the daemon's user",
                );
            }
        }
    };
    if url.is_empty() {
        return;
    }
    let target = match Target::from_url(
        &SecretString::from(url),
        &config.postgres,
        &config.node_name(),
    ) {
        Ok(target) => target,
        Err(err) => return findings.problem("postgres.read_url", chain(&err), ""),
    };
    plaintext(&target, findings);
    match inspect::connect(&target).await {
        Ok(conn) => {
            encrypted(&target, findings);
            findings.ok("postgres.read_url", format!("{} answers", target.place));
            let _ = conn.close().await;
        }
        Err(err) => findings.problem("postgres.read_url", chain(&err), advice(&err)),
    }
}

/// Told once a connection stands: a server that cannot prove itself gets none.
fn encrypted(target: &Target, findings: &mut Findings) {
    if target.encrypted {
        findings.ok(
            "TLS",
            format!("{}: encrypted, server verified", target.place),
        );
    }
}

fn plaintext(target: &Target, findings: &mut Findings) {
    if target.encrypted {
        return;
    }
    if target.local {
        findings.ok(
            "TLS",
            format!("{}: off, and nothing leaves this host", target.place),
        );
    } else {
        findings.warning(
            "TLS",
            format!(
                "{}: off; rows and password cross the network in the clear",
                target.place
            ),
            "remove sslmode=disable from the URL",
        );
    }
}

fn advice(err: &SourceError) -> &'static str {
    match err {
        SourceError::Connect { .. } | SourceError::Timeout(_) => {
            "is the server up, the name right, the port open? The node starts without it when it has a replica"
        }
        _ => "",
    }
}

/// What an inspection means.
fn judge(seen: &Inspection, findings: &mut Findings) {
    const ROLES: &str = "run deploy/sql/roles.sql as the owner of the tables";
    const MIGRATE: &str = "run `sidetone migrate` as the owner of the tables";
    if seen.server_version_num < 130_000 {
        findings.problem(
            "Postgres",
            format!("version {}", seen.server_version),
            "13 or newer is needed",
        );
    }
    if seen.encoding != "UTF8" {
        findings.problem(
            "Postgres",
            format!("encoding {}", seen.encoding),
            "a UTF8 database is needed",
        );
    }
    if seen.recovery {
        findings.warning(
            "Postgres",
            "is a standby, where LISTEN is refused",
            "name the primary first in postgres.url, the standby in postgres.read_url",
        );
    }
    match (seen.missing.as_slice(), seen.unreadable.as_slice()) {
        ([], []) => findings.ok(
            "grants",
            format!("role {} reads all that answers are made of", seen.role),
        ),
        (missing, unreadable) => {
            if !missing.is_empty() {
                findings.problem("tables", format!("not there: {}", named(missing)), MIGRATE);
            }
            if !unreadable.is_empty() {
                findings.problem(
                    "grants",
                    format!("role {} may not read {}", seen.role, named(unreadable)),
                    ROLES,
                );
            }
        }
    }
    if seen.superuser {
        findings.warning(
            "grants",
            format!("role {} is a superuser", seen.role),
            format!("log in as the role that reads and nothing else; {ROLES}"),
        );
    } else {
        if seen.reads_passwords {
            findings.warning(
                "grants",
                format!("role {} can read users.hash_password", seen.role),
                format!("{ROLES}, and use the role it makes"),
            );
        }
        if !seen.writable.is_empty() {
            findings.warning(
                "grants",
                format!(
                    "role {} can write to {}",
                    seen.role,
                    seen.writable.join(", ")
                ),
                format!("{ROLES}, and use the role it makes"),
            );
        }
    }
    let Some(feed) = &seen.feed else {
        return findings.problem(
            "schema",
            "the schema sidetone is not in the database",
            MIGRATE,
        );
    };
    if !feed.forbidden.is_empty() {
        findings.problem(
            "grants",
            format!(
                "role {} may not use {}",
                seen.role,
                feed.forbidden.join(", ")
            ),
            ROLES,
        );
    }
    match feed.schema_version {
        Some(SCHEMA_VERSION) => findings.ok("schema", format!("version {SCHEMA_VERSION}")),
        Some(older) if older < SCHEMA_VERSION => findings.problem(
            "schema",
            format!("version {older}, needed {SCHEMA_VERSION}"),
            MIGRATE,
        ),
        Some(newer) => findings.problem(
            "schema",
            format!("version {newer}, needed {SCHEMA_VERSION}"),
            "install the sidetone that migrated the database",
        ),
        None => findings.problem("schema", "its version cannot be read", ROLES),
    }
    match (feed.armed, feed.silent.as_slice()) {
        (Some(true), _) => findings.ok("triggers", "all present, enabled always"),
        (_, []) => findings.problem("triggers", "present, but row-level security or another function stands in the way", MIGRATE),
        (_, silent) => findings.problem(
            "triggers",
            format!("missing, or not ENABLE ALWAYS: {}", silent.join(", ")),
            "alter table … enable always trigger …; until then nodes make no claim of freshness and compare every minute",
        ),
    }
    match feed.doorbell {
        Some(true) => findings.ok("doorbell", "on"),
        Some(false) => findings.warning(
            "doorbell",
            "off: changes arrive by heartbeat",
            "update sidetone.meta set doorbell = true, unless writers use two-phase commit",
        ),
        None => {}
    }
}

/// Columns as `table.column`; a table that lacks all that is read of it as `table`.
fn named(columns: &[String]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (table, read) in inspect::READS {
        let of_table = columns
            .iter()
            .filter(|name| name.split('.').next() == Some(table.as_str()));
        if of_table.clone().count() == read.len() {
            names.push(table.as_str());
        } else {
            names.extend(of_table.map(String::as_str));
        }
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::inspect::Feed;

    fn healthy() -> Inspection {
        Inspection {
            server_version: "15.6".into(),
            server_version_num: 150_006,
            encoding: "UTF8".into(),
            recovery: false,
            role: "sidetone".into(),
            superuser: false,
            missing: Vec::new(),
            unreadable: Vec::new(),
            writable: Vec::new(),
            reads_passwords: false,
            feed: Some(Feed {
                forbidden: Vec::new(),
                schema_version: Some(SCHEMA_VERSION),
                doorbell: Some(true),
                armed: Some(true),
                silent: Vec::new(),
            }),
        }
    }

    fn judged(seen: &Inspection) -> Findings {
        let mut findings = Findings::default();
        judge(seen, &mut findings);
        findings
    }

    #[test]
    fn a_healthy_database_gives_nothing_but_ok() {
        let findings = judged(&healthy());
        assert_eq!(findings.worst(), Level::Ok, "{findings:?}");
        let text = anstream::adapter::strip_str(&report(&findings)).to_string();
        let expected = format!(
            "\
ok  grants    role sidetone reads all that answers are made of
ok  schema    version {SCHEMA_VERSION}
ok  triggers  all present, enabled always
ok  doorbell  on
"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_readable_password_hash_is_a_warning_and_an_unreadable_column_a_problem() {
        let seen = Inspection {
            reads_passwords: true,
            ..healthy()
        };
        assert_eq!(judged(&seen).worst(), Level::Warning);
        let seen = Inspection {
            unreadable: vec!["prompts.name".into()],
            ..healthy()
        };
        let findings = judged(&seen);
        assert_eq!(findings.worst(), Level::Problem);
        assert!(report(&findings).contains("prompts.name"), "{findings:?}");
    }

    #[test]
    fn a_table_that_is_not_there_is_named_once() {
        let mut columns: Vec<String> = ["id", "prompt_id", "version", "content"]
            .map(|c| format!("prompt_versions.{c}"))
            .into();
        columns.push("prompts.name".into());
        assert_eq!(named(&columns), "prompts.name, prompt_versions");
    }

    #[test]
    fn the_role_of_the_repository_reads_what_is_inspected_and_nothing_else() {
        let roles = include_str!("../../deploy/sql/roles.sql");
        for (table, columns) in inspect::READS {
            let grant = format!(
                "grant select ({})\n    on public.{} to sidetone;",
                columns.join(", "),
                table.as_str()
            );
            assert!(roles.contains(&grant), "{grant}");
        }
        assert_eq!(
            roles.matches("grant select (").count(),
            inspect::READS.len()
        );
    }

    #[test]
    fn a_silent_trigger_is_named() {
        let mut seen = healthy();
        if let Some(feed) = &mut seen.feed {
            feed.armed = Some(false);
            feed.silent = vec!["tenants.sidetone_update".into()];
        }
        assert!(report(&judged(&seen)).contains("tenants.sidetone_update"));
    }

    #[test]
    fn a_database_without_the_schema_is_told_to_migrate() {
        let seen = Inspection {
            feed: None,
            ..healthy()
        };
        assert!(report(&judged(&seen)).contains("sidetone migrate"));
    }
}
