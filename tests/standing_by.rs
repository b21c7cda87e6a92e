//! An nft that was started before there was a script for it does what a new one would, whatever became of it meanwhile.
//!
//! Needs root, `nft` and `ip`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use ringfence::nft::exec::{Nft, NftError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::lab::{self, Netns};

/// The processes that wait for a script in this thread's network namespace.
fn standing_by() -> Vec<String> {
    let network = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let waits = |process: &Path| {
        let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
        command == b"nft\0-f\0-\0" && std::fs::read_link(process.join("ns/net")).is_ok_and(|of| of == network)
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes.filter(|process: &PathBuf| waits(process)).map(|p| p.file_name().unwrap().display().to_string()).collect()
}

#[test]
fn one_that_waited_is_as_good_as_a_new_one() {
    if !lab::ready() {
        return;
    }
    let node = Netns::new("standby");
    let tables = || {
        let output = Command::new("nft").args(["list", "tables"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let script = async {
        let nft = Nft::default().standing_by();
        let a_while = || tokio::time::sleep(Duration::from_millis(200));
        nft.commit("add table inet one\n").await.unwrap();
        a_while().await;
        assert_eq!(standing_by().len(), 3);

        // It has seen nothing of what was done since it was started.
        assert!(Command::new("nft").args(["add", "table", "inet", "theirs"]).status().unwrap().success());
        nft.commit("delete table inet theirs\nadd table inet two\n").await.unwrap();
        nft.commit("add chain inet two c\n").await.unwrap();
        assert_eq!(tables(), ["table inet one", "table inet two"]);

        // As when memory is short.
        a_while().await;
        let killed = standing_by();
        assert_eq!(killed.len(), 3);
        assert!(Command::new("kill").arg("-KILL").args(&killed).status().unwrap().success());
        a_while().await;
        nft.commit("add table inet three\n").await.unwrap();
        assert_eq!(tables().len(), 3);

        // What fails once may fail again: then it is a new one that does.
        a_while().await;
        let before = standing_by();
        assert!(matches!(nft.commit("nonsense\n").await, Err(NftError::Refused(_))));
        a_while().await;
        assert!(standing_by().is_empty(), "{before:?}");
        nft.commit("add table inet four\n").await.unwrap();
        a_while().await;
        drop(nft);
        a_while().await;
        assert!(standing_by().is_empty(), "none outlives who started it");
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    node.enter(|| runtime().block_on(script));
}
