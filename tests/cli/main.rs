//! The built `kubectl-sg`: over manifests without a cluster, and against a stand-in for an API server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod api;
mod offline;
mod writing;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a run printed, and how it ended.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// Ended so, and printed all of this.
    #[track_caller]
    fn expect(self, code: i32, printed: &[&str]) -> Self {
        let both = format!("--- out\n{}--- err\n{}", self.out, self.err);
        assert_eq!(self.code, code, "{both}");
        for text in printed {
            assert!(both.contains(text), "{text:?} is not in\n{both}");
        }
        self
    }
}

fn sg(arguments: &[&str], kubeconfig: Option<&Path>, input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kubectl-sg"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("KUBECONFIG", kubeconfig.unwrap_or(Path::new("/nonexistent")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A run that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}
