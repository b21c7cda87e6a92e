//! Runs `nft`: the only place that touches the kernel's tables.

use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// 100,000 elements take a quarter of a second; something is wrong long before this.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Enough of a failed script to find the line that nft names.
const MAX_LOGGED_LINES: usize = 400;

/// Why a transaction is not known to be in the kernel. Whatever it was, the next one must be a full replacement.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program could not be run.
    #[error("cannot run nft: {0}; is the nftables package installed in the image?")]
    Run(#[from] std::io::Error),
    /// It did not end; its transaction may or may not have been committed.
    #[error("nft did not finish within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// It, or the kernel, refused.
    #[error("nft refused the transaction: {0}")]
    Refused(String),
}

/// Commits one transaction.
pub async fn commit(script: &str) -> Result<(), NftError> {
    run(&["-f", "-"], script).await
}

/// Asks the kernel whether it would take a transaction, and changes nothing.
pub async fn check(script: &str) -> Result<(), NftError> {
    run(&["-c", "-f", "-"], script).await
}

async fn run(args: &[&str], script: &str) -> Result<(), NftError> {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // If nft ends early, its stderr says why better than a broken pipe does.
            let _ = stdin.write_all(script.as_bytes()).await;
        }
    };
    let finish = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(TIMEOUT, finish).await.map_err(|_| NftError::Timeout)??;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    tracing::debug!(script = %numbered(script), "refused transaction");
    Err(NftError::Refused(first_lines(&stderr, 6)))
}

fn numbered(script: &str) -> String {
    let lines = script.lines().take(MAX_LOGGED_LINES).enumerate();
    lines.map(|(i, line)| format!("{:4} {}\n", i + 1, line)).collect()
}

fn first_lines(text: &str, count: usize) -> String {
    text.lines().take(count).map(str::trim).collect::<Vec<_>>().join(" | ")
}
