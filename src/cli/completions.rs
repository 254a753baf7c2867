//! `sidetone completions`: completions for a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::output;
use super::{Args, CliError, Exit};

/// For which shell.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "sidetone", &mut script);
    output::print_body(script.trim_ascii_end())?;
    Ok(Exit::Ok)
}
