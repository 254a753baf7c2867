//! The command line: what can be asked of it, and how every command ends.
//!
//! A file per subcommand. Errors are told once, on standard error; what scripts read goes to standard output
//! alone. Every way to end is one of [`Exit`].

pub mod call;
pub mod check;
pub mod client;
pub mod completions;
pub mod demo;
pub mod explain;
pub mod keygen;
pub mod lookup;
pub mod man;
pub mod migrate;
pub mod open;
pub mod output;
pub mod reference;
pub mod refresh;
pub mod resolve;
pub mod run;
pub mod seal;
pub mod status;
pub mod verify;
pub mod watch;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, ConfigError, Sources};
use crate::seal::KeyringError;
use client::ClientError;

/// Sidetone answers how an incoming call is to be handled, from this node's own copy of the platform's rows.
#[derive(Debug, Parser)]
#[command(name = "sidetone", version, max_term_width = 100)]
pub struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(subcommand)]
    command: Command,
}

/// Where settings come from.
#[derive(Debug, clap::Args)]
pub struct SettingsArgs {
    /// Settings file [default: /etc/sidetone/sidetone.toml]
    #[arg(
        long,
        global = true,
        env = "SIDETONE_CONFIG",
        value_name = "FILE",
        help_heading = "Settings"
    )]
    pub config: Option<PathBuf>,
    /// A setting over file and environment, such as log.filter=debug
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value, help_heading = "Settings")]
    pub set: Vec<(String, String)>,
}

impl SettingsArgs {
    /// File, environment and flags, weakest first.
    #[must_use]
    pub fn sources(&self) -> Sources {
        let mut sources = Sources::of_process(self.config.clone());
        sources.flags.clone_from(&self.set);
        sources
    }

    /// The configuration, checked.
    ///
    /// # Errors
    /// Every problem of it at once.
    pub fn load(&self) -> Result<Config, CliError> {
        Ok(Config::load(&self.sources())?)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Run(run::RunArgs),
    /// Tell every problem of settings, keys, directories and database at once
    Check(check::CheckArgs),
    /// Bring the database's schema up to what this program needs
    Migrate(migrate::MigrateArgs),
    /// What the node answers for a number, in short
    Lookup(lookup::LookupArgs),
    /// What the node answers for a number, prompts included
    Resolve(resolve::ResolveArgs),
    /// Why the node answers what it answers
    Explain(explain::ExplainArgs),
    /// How the node is: feed, replica, cache, quarantined rows, keys
    Status(status::StatusArgs),
    /// Pull now and rebuild
    Refresh(refresh::RefreshArgs),
    /// Compare the node's rows with Postgres and repair what differs
    Verify(verify::VerifyArgs),
    /// Follow a number or a tenant: a line when it changes, or when the feed is lost or level again
    Watch(watch::WatchArgs),
    /// Make a keyring, or add a key to one
    Keygen(keygen::KeygenArgs),
    /// Seal a credential for the database: secret on standard input, sealed value on standard output
    Seal(seal::SealArgs),
    /// Open a sealed credential: sealed value on standard input, secret on standard output
    Open(open::OpenArgs),
    /// Try everything with a throwaway Postgres
    Demo(demo::DemoArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
    /// Print or write the manual pages
    Man(man::ManArgs),
    /// Print the reference as Markdown
    #[command(hide = true)]
    Reference,
}

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, and the answer is yes.
    Ok = 0,
    /// The answer is no, or it could not be done.
    No = 1,
    /// Asked wrongly.
    Usage = 2,
    /// Whoever knows the answer cannot be reached.
    Unreachable = 3,
    /// Not allowed.
    Refused = 4,
}

/// Every way to end, for the reference.
pub const EXIT_CODES: [(Exit, &str); 5] = [
    (Exit::Ok, "done; the answer is yes"),
    (
        Exit::No,
        "the answer is no: number unknown or inactive, tenant suspended, `check` found a problem, `verify` found \
         differences, or the command could not do what it was asked to",
    ),
    (
        Exit::Usage,
        "wrong usage: arguments, settings, a number that is none",
    ),
    (
        Exit::Unreachable,
        "cannot reach the daemon or Postgres, or the node cannot answer yet",
    ),
    (
        Exit::Refused,
        "not allowed: by the socket's permissions, the access rules, or Postgres",
    ),
];

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The arguments are well-formed alone and wrong together, or standard input is.
    #[error("{0}")]
    Usage(String),
    /// The daemon was not reached, or did not answer as it should.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon answered no.
    #[error("{message}")]
    Answer {
        /// What the daemon said, or what its status means.
        message: String,
        /// How the command ends.
        exit: Exit,
    },
    /// A file, a directory, standard input or a child process.
    #[error("{what}")]
    Io {
        /// What was tried and what to do.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Standard output cannot be written.
    #[error("standard output: cannot be written")]
    Output(#[source] io::Error),
    /// The keyring cannot be used or written.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// Something below that has its own error.
    #[error("{what}")]
    Below {
        /// What was tried and what to do.
        what: String,
        /// How the command ends.
        exit: Exit,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl CliError {
    /// Wraps an error of the parts below.
    pub(crate) fn below(
        what: impl Into<String>,
        exit: Exit,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Below {
            what: what.into(),
            exit,
            source: source.into(),
        }
    }

    /// How the program ends on it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Usage(_) => Exit::Usage,
            Self::Client(err) => err.exit(),
            Self::Answer { exit, .. } | Self::Below { exit, .. } => *exit,
            Self::Io { .. } | Self::Keyring(_) => Exit::No,
            // Whoever read it has seen enough.
            Self::Output(err) if err.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Self::Output(_) => Exit::No,
        }
    }

    /// Tells it with its causes, one line each problem.
    pub fn report(&self, to: &mut impl Write) {
        if let Self::Output(err) = self
            && err.kind() == io::ErrorKind::BrokenPipe
        {
            return;
        }
        for line in crate::cause::chain(self).lines() {
            // Nobody is left to tell that standard error is gone.
            let _ = writeln!(to, "sidetone: {}", output::printable(line));
        }
    }
}

/// Does what the arguments ask for.
///
/// # Errors
/// [`CliError`], not told yet.
pub fn run(args: Args) -> Result<Exit, CliError> {
    let settings = args.settings;
    match args.command {
        Command::Run(run::RunArgs {}) => run::run(&settings),
        Command::Check(args) => check::run(&settings, &args),
        Command::Migrate(args) => migrate::run(&settings, &args),
        Command::Lookup(args) => lookup::run(&settings, &args),
        Command::Resolve(args) => resolve::run(&settings, &args),
        Command::Explain(args) => explain::run(&settings, &args),
        Command::Status(args) => status::run(&settings, &args),
        Command::Refresh(args) => refresh::run(&settings, &args),
        Command::Verify(args) => verify::run(&settings, &args),
        Command::Watch(args) => watch::run(&settings, &args),
        Command::Keygen(args) => keygen::run(&settings, &args),
        Command::Seal(args) => seal::run(&settings, &args),
        Command::Open(args) => open::run(&settings, &args),
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Reference => output::print(&reference::markdown()).map(|()| Exit::Ok),
    }
}

/// The daemon's runtime.
pub(crate) fn runtime(threads: Option<usize>) -> Result<tokio::runtime::Runtime, CliError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().map_err(|source| CliError::Io {
        what: "cannot start the runtime".into(),
        source,
    })
}

/// A runtime for one command; the daemon has its own.
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::Io {
            what: "cannot start the runtime".into(),
            source,
        })?;
    Ok(runtime.block_on(future))
}

/// `key=value`; the value may hold further `=`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".to_owned()),
    }
}
