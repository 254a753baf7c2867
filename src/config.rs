//! Every setting: meaning, unit, default, and what contradicts what.
//!
//! One TOML file, `SIDETONE_` environment over it (`SIDETONE_POSTGRES__URL_FILE`), flags over that.
//! Unknown keys are refused. Every problem is found in one pass and told at once, each with the place
//! it stands in and the remedy. A default stands in this file alone; `config/sidetone.toml` is
//! printed from it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Deserialize, Serialize};

use crate::number::{CountryCode, Dialling, Prefix};

/// Where the configuration is looked for when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/sidetone/sidetone.toml";

/// What the environment's variables start with; two underscores go one level down.
pub const ENV_PREFIX: &str = "SIDETONE_";

/// Declares a section once: fields, docs and defaults, and the docs again as data for the reference.
macro_rules! section {
    ($(#[doc = $about:literal])* $name:ident {
        $( $(#[doc = $doc:literal])* $(#[serde($($serde:tt)*)])? $field:ident : $ty:ty = $default:expr, )*
    }) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $( $(#[doc = $doc])* $(#[serde($($serde)*)])? pub $field: $ty, )* }

        impl Default for $name {
            fn default() -> Self { Self { $($field: $default,)* } }
        }

        impl $name {
            const ABOUT: &'static [&'static str] = &[$($about),*];
            const FIELDS: &'static [(&'static str, &'static [&'static str])] =
                &[$((stringify!($field), &[$($doc),*])),*];
        }
    };
}

section! {
    /// This node.
    NodeConfig {
        /// Name of the node in logs, `status` and Postgres's `application_name`. Empty: the host name.
        name: String = String::new(),
    }
}

section! {
    /// The platform's database.
    PostgresConfig {
        /// `postgres://user@host:5432,host2/database?…`. Several hosts are tried in order for the one that takes
        /// writes. TLS with verify-full unless the URL says `sslmode=disable` or names a Unix socket
        /// (`postgres://user@%2Frun%2Fpostgresql/database`). A password does not belong here: use `url_file`.
        url: String = String::new(),
        /// File that holds the URL, password included. Readable by the daemon's user only.
        url_file: PathBuf = PathBuf::new(),
        /// Standby to pull rows from, so that the primary serves only the doorbell. Empty: everything from `url`.
        read_url: String = String::new(),
        /// File that holds `read_url`.
        read_url_file: PathBuf = PathBuf::new(),
        /// PEM file of the authorities that may vouch for the server. Empty: those of the operating system.
        tls_ca: PathBuf = PathBuf::new(),
        /// Longest time for name resolution, TCP, TLS and authentication together.
        #[serde(with = "humantime_serde")]
        connect_timeout: Duration = Duration::from_secs(5),
        /// Longest time of one query of a full synchronisation or reconcile, here and on the server.
        /// A pull has `feed.heartbeat_timeout`.
        #[serde(with = "humantime_serde")]
        statement_timeout: Duration = Duration::from_secs(60),
    }
}

section! {
    /// How this node follows Postgres.
    FeedConfig {
        /// Pull at least this often, doorbell or not: the staleness that a lost NOTIFY can cost.
        #[serde(with = "humantime_serde")]
        heartbeat_every: Duration = Duration::from_secs(2),
        /// A pull that takes longer than this means that the connection is dead; it is closed and made anew.
        #[serde(with = "humantime_serde")]
        heartbeat_timeout: Duration = Duration::from_secs(3),
        /// An answer is called stale when level with Postgres was last proved longer ago than this.
        #[serde(with = "humantime_serde")]
        stale_after: Duration = Duration::from_secs(10),
        /// Replica and Postgres are compared by hash this often, which finds what no trigger told.
        #[serde(with = "humantime_serde")]
        reconcile_every: Duration = Duration::from_secs(3600),
        /// A batch that would lose more than this percentage of the replica's tenants or numbers is held until
        /// `refresh` with `accept_loss` lets it through. 100 holds nothing.
        hold_if_lost_percent: u8 = 50,
        /// Pulls after a doorbell are spread at random over this time. Worth it only with hundreds of nodes.
        #[serde(with = "humantime_serde")]
        spread: Duration = Duration::ZERO,
        /// Credentials are refused when level was last proved longer ago than this. `0s`: never.
        #[serde(with = "humantime_serde")]
        refuse_credentials_after: Duration = Duration::ZERO,
    }
}

section! {
    /// The node's own copy of the rows, on disk, sealed.
    ReplicaConfig {
        /// Directory of the replica, of this daemon alone, mode 0700.
        dir: PathBuf = PathBuf::from("/var/lib/sidetone"),
        /// Slugs or ids of the tenants this node holds. Empty: all.
        tenants: Vec<String> = Vec::new(),
    }
}

section! {
    /// Resolved configuration per number, in memory.
    CacheConfig {
        /// Most memory the cached profiles may take.
        #[serde(with = "size")]
        max_bytes: ByteSize = ByteSize::mib(256),
    }
}

section! {
    /// Keys that open credentials and seal the replica.
    KeysConfig {
        /// Keyring: a TOML file made by `sidetone keygen`, readable by its owner only.
        file: PathBuf = PathBuf::from("/etc/sidetone/keyring.toml"),
        /// Id of the key that opens the second sealed form (base64 without context). Empty: that form is refused.
        raw: String = String::new(),
    }
}

section! {
    /// Where calls are answered.
    HttpConfig {
        /// Path of the Unix socket, absolute. Empty: none.
        unix: PathBuf = PathBuf::from("/run/sidetone/sidetone.sock"),
        /// Mode of the socket, in octal: who may connect at all.
        unix_mode: FileMode = FileMode(0o660),
        /// Group of the socket, which the default rules allow `config`. Empty: the daemon's group.
        unix_group: String = String::new(),
        /// Loopback address and port, never for credentials. Empty: none.
        tcp: String = "127.0.0.1:8377".to_owned(),
        /// Most requests of all TCP callers together, written as `rate` of an access rule is. `off`: no limit.
        tcp_rate: Rate = Rate::DEFAULT,
        /// Most connections at once over all call listeners, at most three quarters of them one caller's; more wait in the backlog.
        max_connections: u32 = 1024,
        /// Most watchers (`/v1/watch`) at once, beside those connections, at most three quarters of them one caller's. 0: none.
        max_watchers: u32 = 2048,
        /// A request's head must be complete within this time.
        #[serde(with = "humantime_serde")]
        header_timeout: Duration = Duration::from_secs(5),
        /// A kept-alive connection without a request is closed after this time.
        #[serde(with = "humantime_serde")]
        idle_timeout: Duration = Duration::from_secs(600),
        /// Longest time that requests under way may take to end after SIGTERM.
        #[serde(with = "humantime_serde")]
        drain_timeout: Duration = Duration::from_secs(5),
        /// Largest body of a request.
        #[serde(with = "size")]
        max_body: ByteSize = ByteSize::kib(64),
    }
}

section! {
    /// Where operators ask and act.
    AdminConfig {
        /// Path of the admin socket, absolute, in a directory of its own. Empty: none.
        unix: PathBuf = PathBuf::from("/run/sidetone-admin/admin.sock"),
        /// Mode of the admin socket, in octal.
        unix_mode: FileMode = FileMode(0o600),
        /// Address and port for operators who show the token; loopback unless TLS with client certificates is on.
        /// Empty: none.
        tcp: String = String::new(),
        /// File with the token that operators over TCP show as `Authorization: Bearer`: at least 16 characters,
        /// readable by the daemon's user only.
        token_file: PathBuf = PathBuf::new(),
        /// PEM file with the certificate of `tcp` and those between it and its authority. Empty: no TLS.
        tls_cert: PathBuf = PathBuf::new(),
        /// PEM file with the private key of `tls_cert`, readable by the daemon's user only.
        tls_key: PathBuf = PathBuf::new(),
        /// PEM file of the authorities of operators' certificates. Set: who has none is not answered.
        tls_client_ca: PathBuf = PathBuf::new(),
        /// Names by which `tcp` is reached from elsewhere, without port. A request for another name is refused;
        /// loopback names always pass.
        hosts: Vec<String> = Vec::new(),
    }
}

impl AdminConfig {
    fn contradictions(&self, http_tcp: &str) -> Vec<(&'static str, &'static str)> {
        let mut found = Vec::new();
        let given = |path: &Path| !path.as_os_str().is_empty();
        let (cert, key, ca) = (
            given(&self.tls_cert),
            given(&self.tls_key),
            given(&self.tls_client_ca),
        );
        if cert != key {
            found.push((
                "admin.tls_cert",
                "and admin.tls_key belong together; set both or neither",
            ));
        }
        if ca && !cert {
            found.push((
                "admin.tls_client_ca",
                "needs TLS; set admin.tls_cert and admin.tls_key too",
            ));
        }
        if self.tcp.is_empty() {
            return found;
        }
        if !given(&self.token_file) {
            found.push((
                "admin.tcp",
                "needs a token; name its file in admin.token_file",
            ));
        }
        match self.tcp.parse::<std::net::SocketAddr>() {
            Err(_) => found.push((
                "admin.tcp",
                "must be an address and port such as 127.0.0.1:8378, or empty",
            )),
            Ok(address) if !address.ip().is_loopback() => {
                if !(cert && key && ca) {
                    found.push((
                        "admin.tcp",
                        "is no loopback address; set admin.tls_cert, admin.tls_key and admin.tls_client_ca too, or bind 127.0.0.1",
                    ));
                }
                if self.hosts.is_empty() {
                    found.push((
                        "admin.hosts",
                        "is empty, so that admin.tcp could not be reached from elsewhere; name how operators call this node",
                    ));
                }
            }
            Ok(address) => {
                if http_tcp.parse() == Ok(address) && address.port() != 0 {
                    found.push(("admin.tcp", "is also http.tcp; choose another port"));
                }
            }
        }
        found
    }
}

/// What an access rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Everything but credentials.
    Config,
    /// Decrypted credentials.
    Credentials,
}

/// How often a caller may ask: `2000/s` or `600/m`, with `burst 5000` behind it where more than one second's or
/// minute's worth may come at once; `off`: as often as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// No limit.
    Off,
    /// So many requests in so many seconds, and so many at once.
    Limited {
        /// Requests in a period.
        requests: u32,
        /// Seconds of a period: 1 or 60.
        seconds: u32,
        /// Requests that may come at once after a pause.
        burst: u32,
    },
}

impl Rate {
    /// What a rule without `rate` allows each caller. Far above what calls need, below what a node can do, so that a
    /// caller that has gone wild leaves room for the others.
    pub const DEFAULT: Self = Self::Limited {
        requests: 10_000,
        seconds: 1,
        burst: 20_000,
    };

    /// Most requests of a period, and most at once.
    const MOST: u32 = 1_000_000;
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Off => f.write_str("off"),
            Self::Limited {
                requests,
                seconds,
                burst,
            } => {
                write!(f, "{requests}/{}", if seconds == 1 { 's' } else { 'm' })?;
                if burst == requests {
                    Ok(())
                } else {
                    write!(f, " burst {burst}")
                }
            }
        }
    }
}

/// A text that is no rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a rate such as \"2000/s\", \"600/m\" or \"2000/s burst 5000\", numbers from 1 to 1000000, or \"off\""
)]
pub struct NoRate;

impl std::str::FromStr for Rate {
    type Err = NoRate;

    fn from_str(text: &str) -> Result<Self, NoRate> {
        let mut words = text.split_ascii_whitespace();
        let number = |text: &str| {
            let number = text.parse().map_err(|_| NoRate)?;
            if (1..=Self::MOST).contains(&number) {
                Ok(number)
            } else {
                Err(NoRate)
            }
        };
        let first = words.next().ok_or(NoRate)?;
        if first == "off" {
            return words.next().map_or(Ok(Self::Off), |_| Err(NoRate));
        }
        let (requests, seconds) = match first.split_once('/').ok_or(NoRate)? {
            (requests, "s") => (number(requests)?, 1),
            (requests, "m") => (number(requests)?, 60),
            _ => return Err(NoRate),
        };
        let burst = match (words.next(), words.next(), words.next()) {
            (None, ..) => requests,
            (Some("burst"), Some(burst), None) => number(burst)?,
            _ => return Err(NoRate),
        };
        Ok(Self::Limited {
            requests,
            seconds,
            burst,
        })
    }
}

impl Serialize for Rate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// One rule of `access`: who, what, of whom. Rights of several matching rules add up.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessRule {
    /// User name or uid of the caller.
    pub user: Option<String>,
    /// Group name or gid of the caller, primary or supplementary.
    pub group: Option<String>,
    /// Systemd unit that the caller's process belongs to, such as `voice-agent.service`.
    pub unit: Option<String>,
    /// What the caller may ask for.
    pub allow: Vec<Right>,
    /// Slugs or ids of the tenants the rule covers. Empty: all.
    pub tenants: Vec<String>,
    /// Providers whose credentials the rule covers. Empty: all.
    pub providers: Vec<String>,
    /// How often each user that the rule is about may ask. Of several matching rules that say, the most generous
    /// counts; where none says, [`Rate::DEFAULT`].
    pub rate: Option<Rate>,
}

section! {
    /// How a number is read that does not start with `+`.
    NumbersConfig {
        /// What stands for `+` in front of a country code.
        international_prefix: String = "00".to_owned(),
        /// Country code of numbers in national form, digits only. Empty: the national form is refused. Set: digits that
        /// are no number of the platform with a `+` before them are looked up as a number of this country.
        country_code: String = String::new(),
        /// What stands in front of a national number at home and is dropped; only with `country_code`.
        trunk_prefix: String = "0".to_owned(),
    }
}

section! {
    /// Limits on rows; a row over its limit is quarantined, nothing else is touched.
    LimitsConfig {
        /// Largest content of one prompt version, at most 1 MiB.
        #[serde(with = "size")]
        prompt_bytes: ByteSize = ByteSize::kib(256),
        /// Largest joined prompt stack of one answer; prompts that no longer fit are left out, last in stack first.
        #[serde(with = "size")]
        stack_bytes: ByteSize = ByteSize::mib(1),
        /// Largest sealed credential, at most 64 KiB.
        #[serde(with = "size")]
        credential_bytes: ByteSize = ByteSize::kib(16),
        /// Most prompts of a tenant, credentials of a tenant and bindings of a prompt, each. At most 10000.
        rows_per_tenant: u32 = 1000,
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

section! {
    /// The log, on standard error, one line per event.
    LogConfig {
        /// `json` or `text`.
        format: LogFormat = LogFormat::Json,
        /// Level, or directives of tracing's `EnvFilter` such as `info,sidetone::feed=debug`.
        filter: String = "info".to_owned(),
        /// URL of a collector that takes traces by OTLP over HTTP, such as `http://127.0.0.1:4318`; without a path they
        /// go to `/v1/traces`. Empty: none are made.
        otlp_endpoint: String = String::new(),
    }
}

/// The whole configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[postgres]`
    pub postgres: PostgresConfig,
    /// `[feed]`
    pub feed: FeedConfig,
    /// `[replica]`
    pub replica: ReplicaConfig,
    /// `[cache]`
    pub cache: CacheConfig,
    /// `[keys]`
    pub keys: KeysConfig,
    /// `[http]`
    pub http: HttpConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[[access]]`: empty means the default rules: root and the daemon's own user everything, the
    /// socket's group `config`.
    pub access: Vec<AccessRule>,
    /// `[numbers]`
    pub numbers: NumbersConfig,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[log]`
    pub log: LogConfig,
}

/// Where `log.otlp_endpoint` sends to. Without a path that is the one that OTLP gives to traces.
///
/// # Errors
/// What is wrong with it.
pub fn collector(text: &str) -> Result<hyper::Uri, &'static str> {
    let given: hyper::Uri = text
        .parse()
        .map_err(|_| "must be a URL such as http://127.0.0.1:4318")?;
    let (Some(scheme), Some(authority)) = (given.scheme_str(), given.authority()) else {
        return Err("must be a URL such as http://127.0.0.1:4318");
    };
    if !matches!(scheme, "http" | "https") {
        return Err("must begin with http:// or https://; OTLP over gRPC is not spoken");
    }
    if authority.as_str().contains('@') {
        return Err("must hold no user or password; a collector on this host needs none");
    }
    if given.query().is_some() {
        return Err("must have no query");
    }
    let path = match given.path() {
        "" | "/" => "/v1/traces",
        path => path,
    };
    hyper::Uri::builder()
        .scheme(scheme)
        .authority(authority.as_str())
        .path_and_query(path)
        .build()
        .map_err(|_| "must be a URL such as http://127.0.0.1:4318")
}

/// Sizes as they are written in the file: `"256MiB"`, without a fraction where there is none.
mod size {
    use bytesize::ByteSize;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(size: &ByteSize, to: S) -> Result<S::Ok, S::Error> {
        let units = [
            (1_u64 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
            (1, "B"),
        ];
        let bytes = size.as_u64();
        let exact = |(unit, name): (u64, &str)| {
            let whole = bytes.checked_div(unit).filter(|whole| *whole > 0)?;
            (whole.checked_mul(unit) == Some(bytes)).then(|| format!("{whole}{name}"))
        };
        to.serialize_str(
            &units
                .into_iter()
                .find_map(exact)
                .unwrap_or_else(|| format!("{bytes}B")),
        )
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ByteSize, D::Error> {
        ByteSize::deserialize(from)
    }
}

/// A file mode, written in octal as a string: `"0660"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl Serialize for FileMode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:04o}", self.0))
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u32::from_str_radix(&text, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .map(Self)
            .ok_or_else(|| {
                serde::de::Error::custom("must be an octal mode in quotes, such as \"0660\"")
            })
    }
}

/// One thing wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where the value came from: a file or an environment variable; empty for a contradiction of defaults.
    pub place: String,
    /// The key with its section, e.g. `http.unix_mode`; empty where the file itself cannot be read.
    pub key: String,
    /// What is wrong and what to do.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.place, &self.key] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.what)
    }
}

/// The configuration cannot be used; every reason at once.
#[derive(Debug, thiserror::Error)]
#[error("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// Everything that is wrong, at least one.
    pub problems: Vec<Problem>,
}

/// Where settings come from, weakest first.
#[derive(Debug, Default, Clone)]
pub struct Sources {
    /// A file that must exist, or the default path, which need not.
    pub file: Option<PathBuf>,
    /// Environment variables that start with [`ENV_PREFIX`].
    pub env: Vec<(String, String)>,
    /// `key=value` from flags, e.g. `("log.filter", "debug")`.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// The file named (or the default one), and this process's environment.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>) -> Self {
        // A variable that is not UTF-8 becomes a value no setting accepts, and is told as such.
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| {
                name.starts_with(ENV_PREFIX) && !NOT_SETTINGS.contains(&name.as_str())
            })
            .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
            .collect();
        Self {
            file,
            env,
            flags: Vec::new(),
        }
    }
}

/// Variables with our prefix that are flags of the command line, not settings.
pub const NOT_SETTINGS: &[&str] = &[
    "SIDETONE_CONFIG",
    "SIDETONE_SOCKET",
    "SIDETONE_ADMIN_SOCKET",
    "SIDETONE_PG_BIN",
];

impl Config {
    /// Reads every source and checks the whole.
    ///
    /// # Errors
    /// [`ConfigError`] with every problem found: syntax, unknown keys, wrong values, contradictions.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let figment = merged(sources).map_err(|problem| ConfigError {
            problems: vec![problem],
        })?;
        let given = figment
            .data()
            .map_err(|err| ConfigError {
                problems: figment_problems(&figment, err),
            })?
            .remove(&Profile::Default)
            .unwrap_or_default();

        let mut problems = Vec::new();
        let mut good = Figment::from(Serialized::defaults(Self::default()));
        let known = default_tree();
        for (key, value) in leaves(&given, &known) {
            let place = place_of(&figment, value.tag());
            if let Err(what) = is_known(&key, &known) {
                problems.push(Problem { place, key, what });
                continue;
            }
            let tried = good.clone().merge(One(key.clone(), value));
            match tried.extract::<Self>() {
                Ok(_) => good = tried,
                Err(err) => {
                    let what = err
                        .into_iter()
                        .map(|e| e.kind.to_string())
                        .collect::<Vec<_>>()
                        .join("; ");
                    problems.push(Problem { place, key, what });
                }
            }
        }
        let config = good.extract::<Self>().map_err(|err| ConfigError {
            problems: figment_problems(&good, err),
        })?;
        problems.extend(config.contradictions().into_iter().map(|(key, what)| {
            Problem {
                place: figment
                    .find_metadata(&key)
                    .map(describe_source)
                    .unwrap_or_default(),
                key,
                what,
            }
        }));
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError { problems })
        }
    }

    /// Settings that are well-formed alone and wrong together or out of range: key and remedy.
    fn contradictions(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut wrong = |key: &str, what: &str| found.push((key.to_owned(), what.to_owned()));
        let both = |a: &str, b: &Path| !a.is_empty() && !b.as_os_str().is_empty();
        if both(&self.postgres.url, &self.postgres.url_file) {
            wrong(
                "postgres.url",
                "postgres.url_file is set too; keep one of the two",
            );
        }
        if both(&self.postgres.read_url, &self.postgres.read_url_file) {
            wrong(
                "postgres.read_url",
                "postgres.read_url_file is set too; keep one of the two",
            );
        }
        for (key, url) in [
            ("postgres.url", &self.postgres.url),
            ("postgres.read_url", &self.postgres.read_url),
        ] {
            if url_has_password(url) {
                wrong(
                    key,
                    "holds a password; put the URL in a file that only the daemon can read and name it in the key with _file",
                );
            }
        }
        let positive: [(&str, Duration); 9] = [
            ("postgres.connect_timeout", self.postgres.connect_timeout),
            (
                "postgres.statement_timeout",
                self.postgres.statement_timeout,
            ),
            ("feed.heartbeat_every", self.feed.heartbeat_every),
            ("feed.heartbeat_timeout", self.feed.heartbeat_timeout),
            ("feed.reconcile_every", self.feed.reconcile_every),
            ("feed.stale_after", self.feed.stale_after),
            ("http.header_timeout", self.http.header_timeout),
            ("http.idle_timeout", self.http.idle_timeout),
            ("http.drain_timeout", self.http.drain_timeout),
        ];
        for (key, value) in positive {
            if value < Duration::from_millis(10) || value > Duration::from_secs(30 * 86_400) {
                wrong(key, "must lie between 10ms and 30days");
            }
        }
        if self.feed.stale_after
            < self
                .feed
                .heartbeat_every
                .saturating_add(self.feed.heartbeat_timeout)
        {
            wrong(
                "feed.stale_after",
                "is shorter than feed.heartbeat_every + feed.heartbeat_timeout, so that a healthy node would call itself stale; raise it",
            );
        }
        if self.feed.hold_if_lost_percent > 100 {
            wrong("feed.hold_if_lost_percent", "must lie between 0 and 100");
        }
        if self.replica.dir.as_os_str().is_empty() || !self.replica.dir.is_absolute() {
            wrong("replica.dir", "must be an absolute path");
        }
        for (key, path) in [
            ("http.unix", &self.http.unix),
            ("admin.unix", &self.admin.unix),
        ] {
            if path.as_os_str().is_empty() {
                continue;
            }
            if !path.is_absolute() {
                wrong(key, "must be an absolute path");
            } else if path.as_os_str().len() > 107 {
                wrong(
                    key,
                    "is longer than the 107 bytes that a Unix socket's path may have; choose a shorter one",
                );
            }
        }
        if self.http.unix.as_os_str().is_empty() && self.http.tcp.is_empty() {
            wrong(
                "http.unix",
                "and http.tcp are both empty, so that no call could be answered; set one of them",
            );
        }
        let parent = |path: &Path| {
            path.parent()
                .map(Path::to_path_buf)
                .filter(|dir| !dir.as_os_str().is_empty())
        };
        if let (Some(http), Some(admin)) = (parent(&self.http.unix), parent(&self.admin.unix))
            && http == admin
        {
            wrong(
                "admin.unix",
                "stands in the directory of http.unix, whose callers are no operators; give it a directory of its own",
            );
        }
        if !self.http.tcp.is_empty() {
            match self.http.tcp.parse::<std::net::SocketAddr>() {
                Err(_) => wrong(
                    "http.tcp",
                    "must be an address and port such as 127.0.0.1:8377, or empty",
                ),
                Ok(address) if !address.ip().is_loopback() => {
                    wrong(
                        "http.tcp",
                        "must be a loopback address: what stands here is answered without asking who calls",
                    );
                }
                Ok(_) => {}
            }
        }
        for (key, what) in self.admin.contradictions(&self.http.tcp) {
            wrong(key, what);
        }
        if self.http.max_connections == 0 || self.http.max_connections > 100_000 {
            wrong("http.max_connections", "must lie between 1 and 100000");
        }
        if self.http.max_watchers > 100_000 {
            wrong("http.max_watchers", "must lie between 0 and 100000");
        }
        let sizes = [
            (
                "cache.max_bytes",
                self.cache.max_bytes,
                ByteSize::mib(1),
                ByteSize::gib(1024),
            ),
            (
                "http.max_body",
                self.http.max_body,
                ByteSize::b(256),
                ByteSize::mib(16),
            ),
            (
                "limits.prompt_bytes",
                self.limits.prompt_bytes,
                ByteSize::b(1),
                ByteSize::mib(1),
            ),
            (
                "limits.stack_bytes",
                self.limits.stack_bytes,
                ByteSize::b(1),
                ByteSize::mib(64),
            ),
            (
                "limits.credential_bytes",
                self.limits.credential_bytes,
                ByteSize::b(64),
                ByteSize::kib(64),
            ),
        ];
        for (key, size, least, most) in sizes {
            if size < least || size > most {
                wrong(key, &format!("must lie between {least} and {most}"));
            }
        }
        if self.limits.rows_per_tenant == 0 || self.limits.rows_per_tenant > 10_000 {
            wrong("limits.rows_per_tenant", "must lie between 1 and 10000");
        }
        for (key, prefix) in [
            (
                "numbers.international_prefix",
                &self.numbers.international_prefix,
            ),
            ("numbers.trunk_prefix", &self.numbers.trunk_prefix),
        ] {
            if let Err(err) = prefix.parse::<Prefix>() {
                wrong(key, &format!("is refused: {err}"));
            }
        }
        if let Err(err) = self.numbers.country_code.parse::<CountryCode>() {
            wrong("numbers.country_code", &format!("is refused: {err}"));
        }
        for (index, rule) in self.access.iter().enumerate() {
            let key = format!("access.{index}");
            let named = [&rule.user, &rule.group, &rule.unit];
            if named.into_iter().flatten().count() != 1 {
                wrong(&key, "must name either a user, a group or a unit");
            }
            if rule.unit.as_ref().is_some_and(|unit| !is_unit(unit)) {
                wrong(
                    &key,
                    "names a unit that is none whose processes systemd keeps together; name one that ends in .service or .scope",
                );
            }
            if rule.allow.is_empty() {
                wrong(
                    &key,
                    "allows nothing; name config, credentials or both in allow",
                );
            }
        }
        if let Err(err) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            wrong("log.filter", &format!("is no filter: {err}"));
        }
        if !self.log.otlp_endpoint.is_empty()
            && let Err(what) = collector(&self.log.otlp_endpoint)
        {
            wrong("log.otlp_endpoint", what);
        }
        found
    }

    /// How numbers without `+` are read. Of a loaded configuration every part is well-formed.
    #[must_use]
    pub fn dialling(&self) -> Dialling {
        Dialling {
            international_prefix: self
                .numbers
                .international_prefix
                .parse()
                .unwrap_or_default(),
            country_code: self.numbers.country_code.parse().unwrap_or_default(),
            trunk_prefix: self.numbers.trunk_prefix.parse().unwrap_or_default(),
        }
    }

    /// `node.name`, or the host's name.
    #[must_use]
    pub fn node_name(&self) -> String {
        if self.node.name.is_empty() {
            rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned()
        } else {
            self.node.name.clone()
        }
    }
}

/// One documented setting, for the reference and the default file.
#[derive(Debug)]
pub struct Setting {
    /// Section, e.g. `http`.
    pub section: &'static str,
    /// Key within the section.
    pub key: &'static str,
    /// What it means, in sentences.
    pub doc: String,
    /// The default, as TOML.
    pub default: String,
}

/// Section by section: name, what it is about, its keys with their docs.
type SectionDocs = (
    &'static str,
    &'static [&'static str],
    &'static [(&'static str, &'static [&'static str])],
);

const SECTIONS: &[SectionDocs] = &[
    ("node", NodeConfig::ABOUT, NodeConfig::FIELDS),
    ("postgres", PostgresConfig::ABOUT, PostgresConfig::FIELDS),
    ("feed", FeedConfig::ABOUT, FeedConfig::FIELDS),
    ("replica", ReplicaConfig::ABOUT, ReplicaConfig::FIELDS),
    ("cache", CacheConfig::ABOUT, CacheConfig::FIELDS),
    ("keys", KeysConfig::ABOUT, KeysConfig::FIELDS),
    ("http", HttpConfig::ABOUT, HttpConfig::FIELDS),
    ("admin", AdminConfig::ABOUT, AdminConfig::FIELDS),
    ("numbers", NumbersConfig::ABOUT, NumbersConfig::FIELDS),
    ("limits", LimitsConfig::ABOUT, LimitsConfig::FIELDS),
    ("log", LogConfig::ABOUT, LogConfig::FIELDS),
];

const ACCESS_DOC: &str = "\
# Who may ask over the Unix socket, by the kernel's word. Without any rule: root and the daemon's own user
# everything, the socket's group config. With rules, these rules alone.
# [[access]]
# user = \"asterisk\"             # or group = \"telephony\": a name or a number; or unit = \"voice-agent.service\":
#                                 # the systemd unit of the system's that the caller's process runs in
# allow = [\"config\", \"credentials\"]
# tenants = [\"seguridad-acme-sa\"] # slugs or ids; empty: all
# providers = [\"openai\"]        # whose credentials; empty: all
# rate = \"10000/s burst 20000\"  # how often each user may ask; also \"600/m\", \"off\"; this is what holds unless set
";

/// How access rules are written: an example, commented out as in the default file.
#[must_use]
pub fn access_doc() -> &'static str {
    ACCESS_DOC
}

/// Every setting in the order of the reference.
#[must_use]
pub fn settings() -> Vec<Setting> {
    let tree = toml::Value::try_from(Config::default()).unwrap_or(toml::Value::Boolean(false));
    let default = |section: &str, key: &str| {
        tree.get(section)
            .and_then(|s| s.get(key))
            .map(ToString::to_string)
            .unwrap_or_default()
    };
    SECTIONS
        .iter()
        .flat_map(|(section, _, fields)| {
            fields.iter().map(|(key, docs)| Setting {
                section,
                key,
                doc: docs
                    .iter()
                    .map(|line| line.trim())
                    .collect::<Vec<_>>()
                    .join(" "),
                default: default(section, key),
            })
        })
        .collect()
}

/// The text of `config/sidetone.toml`: every setting at its default, with its meaning.
#[must_use]
pub fn default_file() -> String {
    let all = settings();
    let mut text = String::from(
        "# Settings of sidetone, each at its default. Keys that are left out keep it; unknown keys are refused.\n\
         # The environment goes over this file: SIDETONE_POSTGRES__URL_FILE=/run/secrets/url\n\
         # Durations are written \"5s\", sizes \"256MiB\". Secrets are read only from files.\n",
    );
    for (section, about, _) in SECTIONS {
        text.push_str(&format!("\n[{section}]\n"));
        about
            .iter()
            .for_each(|line| text.push_str(&format!("# {}\n", line.trim())));
        for setting in all.iter().filter(|s| s.section == *section) {
            text.push('\n');
            let field = SECTIONS
                .iter()
                .find(|(s, ..)| s == section)
                .and_then(|(_, _, f)| f.iter().find(|(key, _)| *key == setting.key));
            if let Some((_, docs)) = field {
                docs.iter()
                    .for_each(|line| text.push_str(&format!("# {}\n", line.trim())));
            }
            text.push_str(&format!("{} = {}\n", setting.key, setting.default));
        }
    }
    text.push('\n');
    text.push_str(ACCESS_DOC);
    text
}

/// File, environment and flags as one figment, every value tagged with where it came from.
fn merged(sources: &Sources) -> Result<Figment, Problem> {
    let mut figment = Figment::new();
    let path = sources
        .file
        .clone()
        .unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    match std::fs::read_to_string(&path) {
        Ok(_) => figment = figment.merge(Toml::file_exact(&path)),
        Err(err) if sources.file.is_none() && err.kind() == std::io::ErrorKind::NotFound => {}
        Err(err) => {
            return Err(Problem {
                place: path.display().to_string(),
                key: String::new(),
                what: format!("cannot be read: {err}"),
            });
        }
    }
    let known = default_tree();
    for (name, raw) in &sources.env {
        let key = name
            .strip_prefix(ENV_PREFIX)
            .unwrap_or(name)
            .to_ascii_lowercase()
            .replace("__", ".");
        figment = figment.merge(Text {
            place: format!("environment {name}"),
            value: typed(&key, raw, &known),
            key,
        });
    }
    for (key, raw) in &sources.flags {
        figment = figment.merge(Text {
            place: "flag --set".to_owned(),
            key: key.clone(),
            value: typed(key, raw, &known),
        });
    }
    Ok(figment)
}

/// A value from the environment, read as the type of the setting's default: a string stays what it is.
fn typed(key: &str, raw: &str, known: &Dict) -> Value {
    match find(key, known) {
        Some(Value::Array(..)) => raw.parse::<toml::Table>().ok().map_or_else(
            || {
                toml::from_str::<BTreeMap<String, Value>>(&format!("v = {raw}"))
                    .ok()
                    .and_then(|mut t| t.remove("v"))
                    .unwrap_or_else(|| {
                        Value::from(
                            raw.split(',')
                                .map(|part| part.trim().to_owned())
                                .filter(|p| !p.is_empty())
                                .collect::<Vec<_>>(),
                        )
                    })
            },
            |_| Value::from(Vec::<String>::new()),
        ),
        Some(Value::Num(..)) => raw
            .trim()
            .parse::<u64>()
            .map_or_else(|_| Value::from(raw), Value::from),
        Some(Value::Bool(..)) => raw
            .trim()
            .parse::<bool>()
            .map_or_else(|_| Value::from(raw), Value::from),
        _ => Value::from(raw),
    }
}

/// One value from the environment or a flag.
struct Text {
    place: String,
    key: String,
    value: Value,
}

impl Provider for Text {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.place.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        One(self.key.clone(), self.value.clone()).data()
    }
}

/// One value at a dotted key, its tag kept.
struct One(String, Value);

impl Provider for One {
    fn metadata(&self) -> Metadata {
        Metadata::named("setting")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(&self.0, self.1.clone())
            .into_dict()
            .unwrap_or_default();
        Ok(Map::from([(Profile::Default, nested)]))
    }
}

/// The defaults as a tree: what keys exist and of what type they are.
fn default_tree() -> Dict {
    Figment::from(Serialized::defaults(Config::default()))
        .data()
        .ok()
        .and_then(|mut profiles| profiles.remove(&Profile::Default))
        .unwrap_or_default()
}

/// The given values as dotted keys; a table that is no section of ours is one leaf, so that it is told once.
fn leaves(given: &Dict, known: &Dict) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (section, value) in given {
        match (value, known.get(section)) {
            (Value::Dict(_, keys), Some(Value::Dict(..))) => {
                found.extend(
                    keys.iter()
                        .map(|(key, value)| (format!("{section}.{key}"), value.clone())),
                );
            }
            _ => found.push((section.clone(), value.clone())),
        }
    }
    found
}

fn find<'a>(key: &str, tree: &'a Dict) -> Option<&'a Value> {
    match key.split_once('.') {
        None => tree.get(key),
        Some((section, rest)) => match tree.get(section)? {
            Value::Dict(_, keys) => find(rest, keys),
            _ => None,
        },
    }
}

/// Refuses a key that does not exist, with the nearest one that does.
fn is_known(key: &str, known: &Dict) -> Result<(), String> {
    if find(key, known).is_some() {
        return Ok(());
    }
    let near = |candidates: Vec<&String>, word: &str| {
        candidates
            .into_iter()
            .map(|c| (strsim::levenshtein(c, word), c))
            .filter(|(distance, _)| *distance <= 3)
            .min()
            .map(|(_, c)| c.clone())
    };
    let (section, word) = key.split_once('.').unwrap_or(("", key));
    let candidates: Vec<&String> = match known.get(section) {
        Some(Value::Dict(_, keys)) => keys.keys().collect(),
        _ => known.keys().collect(),
    };
    Err(near(candidates, word).map_or_else(
        || "no such setting; remove it".to_owned(),
        |near| format!("no such setting; did you mean {near}?"),
    ))
}

fn place_of(figment: &Figment, tag: Tag) -> String {
    figment
        .get_metadata(tag)
        .map(describe_source)
        .unwrap_or_default()
}

fn describe_source(metadata: &Metadata) -> String {
    metadata.source.as_ref().map_or_else(
        || metadata.name.to_string(),
        |source| match source.file_path() {
            Some(path) => path.display().to_string(),
            None => source.to_string(),
        },
    )
}

fn figment_problems(figment: &Figment, err: figment::Error) -> Vec<Problem> {
    err.into_iter()
        .map(|err| Problem {
            place: err
                .metadata
                .as_ref()
                .map(describe_source)
                .or_else(|| figment.metadata().next().map(describe_source))
                .unwrap_or_default(),
            key: err.path.join("."),
            what: err.kind.to_string(),
        })
        .collect()
}

/// Whether a name is one of a systemd unit that processes run in.
#[must_use]
pub fn is_unit(name: &str) -> bool {
    let stem = [".service", ".scope"]
        .into_iter()
        .find_map(|suffix| name.strip_suffix(suffix));
    let plain = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    name.len() <= 255 && stem.is_some_and(|stem| !stem.is_empty() && stem.bytes().all(plain))
}

/// Whether the authority part of a URL carries a password.
fn url_has_password(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    let in_authority = authority
        .rsplit_once('@')
        .is_some_and(|(user, _)| user.contains(':'));
    in_authority || url.contains("password=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(toml: &str, env: &[(&str, &str)]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sidetone.toml");
        std::fs::write(&path, toml).unwrap();
        let env = env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        match Config::load(&Sources {
            file: Some(path.clone()),
            env,
            flags: Vec::new(),
        }) {
            Ok(_) => Vec::new(),
            Err(err) => err
                .problems
                .iter()
                .map(|p| p.to_string().replace(&path.display().to_string(), "FILE"))
                .collect(),
        }
    }

    #[test]
    fn an_endpoint_is_a_url_without_secrets_and_gets_the_path_of_traces() {
        for (given, to) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("https://otel.example/in/x", "https://otel.example/in/x"),
            ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
        ] {
            assert_eq!(collector(given).unwrap().to_string(), to);
        }
        for given in [
            "127.0.0.1:4318",
            "collector",
            "/v1/traces",
            "grpc://127.0.0.1:4317",
            "http://user:secret@otel.example",
            "http://otel.example/?token=secret",
            "http://",
        ] {
            let told = collector(given).unwrap_err();
            assert!(!told.contains("secret"), "{told}");
        }
    }

    #[test]
    fn three_mistakes_are_told_at_once_with_file_key_and_remedy() {
        let told = problems(
            "[http]\nunix_mod = \"0660\"\nmax_connections = \"many\"\n[feed]\nstale_after = \"1s\"\n",
            &[],
        );
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(
            told.iter()
                .any(|p| p == "FILE: http.unix_mod: no such setting; did you mean unix_mode?"),
            "{told:?}"
        );
        assert!(
            told.iter()
                .any(|p| p.starts_with("FILE: http.max_connections: ")),
            "{told:?}"
        );
        assert!(
            told.iter()
                .any(|p| p.starts_with("FILE: feed.stale_after: is shorter than")),
            "{told:?}"
        );
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        assert_eq!(problems("", &[]), Vec::<String>::new());
    }

    #[test]
    fn the_environment_goes_over_the_file_and_strings_stay_strings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.toml");
        std::fs::write(
            &path,
            "[numbers]\ncountry_code = \"1\"\n[replica]\ntenants = [\"x\"]\n",
        )
        .unwrap();
        let env = vec![
            (
                "SIDETONE_NUMBERS__INTERNATIONAL_PREFIX".to_owned(),
                "0011".to_owned(),
            ),
            ("SIDETONE_NUMBERS__COUNTRY_CODE".to_owned(), "54".to_owned()),
            ("SIDETONE_REPLICA__TENANTS".to_owned(), "a, b".to_owned()),
            (
                "SIDETONE_FEED__HOLD_IF_LOST_PERCENT".to_owned(),
                "30".to_owned(),
            ),
        ];
        let config = Config::load(&Sources {
            file: Some(path),
            env,
            flags: Vec::new(),
        })
        .unwrap();
        assert_eq!(config.numbers.international_prefix, "0011");
        assert_eq!(config.numbers.country_code, "54");
        assert_eq!(config.replica.tenants, ["a", "b"]);
        assert_eq!(config.feed.hold_if_lost_percent, 30);
    }

    #[test]
    fn a_mistake_in_the_environment_names_the_variable() {
        let told = problems("", &[("SIDETONE_HTTP__TCP", "0.0.0.0:1")]);
        assert!(
            told[0].starts_with("environment SIDETONE_HTTP__TCP: http.tcp: must be a loopback"),
            "{told:?}"
        );
    }

    #[test]
    fn a_password_in_the_settings_is_refused_without_being_printed() {
        let told = problems("[postgres]\nurl = \"postgres://u:hunter2@db/x\"\n", &[]);
        assert_eq!(told.len(), 1);
        assert!(
            told[0].contains("postgres.url: holds a password") && !told[0].contains("hunter2"),
            "{told:?}"
        );
    }

    #[test]
    fn a_syntax_error_names_the_file() {
        let told = problems("[http\n", &[]);
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("FILE: "), "{told:?}");
    }

    #[test]
    fn a_missing_file_that_was_named_is_told() {
        let err = Config::load(&Sources {
            file: Some("/nonexistent/x.toml".into()),
            ..Sources::default()
        })
        .unwrap_err();
        assert!(
            err.to_string()
                .starts_with("/nonexistent/x.toml: cannot be read"),
            "{err}"
        );
    }

    #[test]
    fn the_default_file_stands_in_the_repository_and_reads_back_as_the_defaults() {
        let committed =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/sidetone.toml"))
                .unwrap();
        assert_eq!(
            committed,
            default_file(),
            "write it anew with `sidetone check --print-defaults > config/sidetone.toml`"
        );
        assert_eq!(problems(&committed, &[]), Vec::<String>::new());
    }

    #[test]
    fn a_rate_is_requests_in_a_second_or_minute_and_what_may_come_at_once() {
        let limited = |requests, seconds, burst| Rate::Limited {
            requests,
            seconds,
            burst,
        };
        for (text, rate) in [
            ("off", Rate::Off),
            ("2000/s", limited(2000, 1, 2000)),
            ("600/m", limited(600, 60, 600)),
            ("1/s burst 5", limited(1, 1, 5)),
            ("10000/s burst 20000", Rate::DEFAULT),
        ] {
            assert_eq!(text.parse(), Ok(rate), "{text}");
            assert_eq!(rate.to_string(), text);
        }
        for text in [
            "",
            "5",
            "5/h",
            "0/s",
            "-1/s",
            "1.5/s",
            "5/s burst",
            "5/s burst 0",
            "5/s 7",
            "5/s burst 7 x",
            "1000001/s",
            "off burst 1",
        ] {
            assert_eq!(text.parse::<Rate>(), Err(NoRate), "{text}");
        }
    }

    #[test]
    fn a_rule_without_a_rate_is_told_apart_from_one_with_it_and_a_wrong_one_is_told() {
        let told = problems(
            "[[access]]\nuser = \"0\"\nallow = [\"config\"]\nrate = \"fast\"\n",
            &[],
        );
        assert!(
            told.len() == 1 && told[0].starts_with("FILE: access: must be a rate such as"),
            "{told:?}"
        );
        assert_eq!(
            problems(
                "[[access]]\nuser = \"0\"\nallow = [\"config\"]\nrate = \"5/s\"\n[http]\ntcp_rate = \"off\"\n",
                &[]
            ),
            Vec::<String>::new()
        );
    }

    #[test]
    fn admin_over_tcp_needs_a_token_and_beyond_this_host_client_certificates_and_a_name() {
        let told = |toml: &str| problems(&format!("[admin]\n{toml}"), &[]);
        let token = "token_file = \"/t\"\n";
        let tls = "tls_cert = \"/c\"\ntls_key = \"/k\"\n";
        assert_eq!(
            told(&format!("tcp = \"127.0.0.1:1\"\n{token}")),
            Vec::<String>::new()
        );
        assert_eq!(
            told(&format!(
                "tcp = \"0.0.0.0:1\"\nhosts = [\"n1\"]\ntls_client_ca = \"/a\"\n{token}{tls}"
            )),
            Vec::<String>::new()
        );
        for (toml, what) in [
            (
                "tcp = \"127.0.0.1:1\"\n".to_owned(),
                "admin.tcp: needs a token",
            ),
            (
                format!("tcp = \"here\"\n{token}"),
                "admin.tcp: must be an address",
            ),
            (
                format!("tcp = \"127.0.0.1:8377\"\n{token}"),
                "admin.tcp: is also http.tcp",
            ),
            (
                format!("tcp = \"0.0.0.0:1\"\nhosts = [\"n1\"]\n{token}{tls}"),
                "admin.tcp: is no loopback address",
            ),
            (
                format!("tcp = \"0.0.0.0:1\"\ntls_client_ca = \"/a\"\n{token}{tls}"),
                "admin.hosts: is empty",
            ),
            (
                "tls_cert = \"/c\"\n".to_owned(),
                "admin.tls_cert: and admin.tls_key belong together",
            ),
            (
                "tls_client_ca = \"/a\"\n".to_owned(),
                "admin.tls_client_ca: needs TLS",
            ),
        ] {
            let told = told(&toml);
            assert!(
                told.len() == 1 && told[0].contains(what),
                "{toml}: {told:?}"
            );
        }
    }

    #[test]
    fn every_setting_is_documented() {
        let known = default_tree();
        let documented: Vec<String> = settings()
            .iter()
            .map(|s| format!("{}.{}", s.section, s.key))
            .collect();
        let mut existing = Vec::new();
        for (section, value) in &known {
            if let Value::Dict(_, keys) = value {
                existing.extend(keys.keys().map(|key| format!("{section}.{key}")));
            }
        }
        existing.sort();
        let mut sorted = documented.clone();
        sorted.sort();
        assert_eq!(sorted, existing);
        assert!(settings().iter().all(|s| s.doc.len() > 10));
    }
}
