//! argv in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use sidetone::cli::{self, Args};
use zeroizing_alloc::ZeroAlloc;

/// Wipes memory as it is freed: buffers of libraries, which hold what we wipe ourselves elsewhere, included.
#[global_allocator]
static MEMORY: ZeroAlloc<std::alloc::System> = ZeroAlloc(std::alloc::System);

/// As many heaps as cores, and no more: by itself the allocator makes eight for each core, and what one thread frees stays
/// with its heap.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "there is no other way to say it")]
fn share_heaps() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let heaps = std::ffi::c_int::try_from(cores.clamp(2, 8)).unwrap_or(2);
    // SAFETY: no other thread runs yet, and a number is all that is kept of it.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, heaps) };
}

#[cfg(not(target_env = "gnu"))]
fn share_heaps() {}

fn main() -> ExitCode {
    share_heaps();
    match cli::run(Args::parse()) {
        Ok(exit) => exit.into(),
        Err(err) => {
            err.report(&mut anstream::stderr());
            err.exit().into()
        }
    }
}
