//! argv in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use sidetone::cli::{self, Args};

fn main() -> ExitCode {
    match cli::run(Args::parse()) {
        Ok(exit) => exit.into(),
        Err(err) => {
            err.report(&mut anstream::stderr());
            err.exit().into()
        }
    }
}
