//! argv in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use sidetone::cli::{self, Args};
use zeroizing_alloc::ZeroAlloc;

/// Wipes memory as it is freed: buffers of libraries, which hold what we wipe ourselves elsewhere, included.
#[global_allocator]
static MEMORY: ZeroAlloc<std::alloc::System> = ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    match cli::run(Args::parse()) {
        Ok(exit) => exit.into(),
        Err(err) => {
            err.report(&mut anstream::stderr());
            err.exit().into()
        }
    }
}
