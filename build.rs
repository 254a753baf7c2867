//! Tells cargo that the migrations are part of the source: they are built into the program.

fn main() {
    let note = "cargo::rerun-if-changed=migrations";
    #[allow(clippy::print_stdout)] // the way a build script talks to cargo
    {
        println!("{note}");
    }
}
