//! The plugin of kubectl: see [`ringfence::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ringfence::cli::main()
}
