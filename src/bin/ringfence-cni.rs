//! The CNI plugin: see [`ringfence::cni`].

use std::io::{Read, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut input = String::new();
    // What cannot be read cannot be a configuration either, and is answered as such.
    let _ = std::io::stdin().read_to_string(&mut input);
    let outcome = ringfence::cni::run(|name| std::env::var(name).ok(), &input);
    let written = std::io::stdout().write_all(outcome.output.as_bytes());
    if outcome.failed || written.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
