//! Runs `nft`: the only place that touches the kernel's tables.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// A transaction of a few lines takes some milliseconds. While one hangs no change is enforced, a removed rule's neither;
/// but one that is ended too early may have to be done all over again on a machine that is only busy.
const TIMEOUT: Duration = Duration::from_secs(5);
/// 100,000 elements are 2 MB, and take a quarter of a second on a machine that has nothing else to do.
const TIMEOUT_PER_MEGABYTE: Duration = Duration::from_secs(5);
/// A change is up to two transactions; a new member of a group is guarded by these, and is let in by a third.
const STANDING_BY: usize = 3;
/// They are replaced when the change is through, not on its way.
const REPLACE_AFTER: Duration = Duration::from_millis(100);
/// Before anything else nft makes empty hash tables of half a megabyte for each table of the node, whoever's it is. In small
/// pages, each one mapped alone, that is half of a small transaction's time; where there are no huge ones, all is as before.
const HUGE_PAGES: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:\
     glibc.malloc.trim_threshold=1073741824:glibc.malloc.top_pad=16777216",
);
/// What commits a transaction reads it from there.
const COMMIT: [&str; 2] = ["-f", "-"];
/// Enough of a failed script to find the line that nft names.
const MAX_LOGGED_LINES: usize = 400;

/// Why a transaction is not known to be in the kernel. Whatever it was, the next one must be a full replacement.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program could not be run.
    #[error("cannot run nft: {0}; is the nftables package installed in the image?")]
    Run(#[from] std::io::Error),
    /// It did not end; its transaction may or may not have been committed.
    #[error("nft did not finish within {} s", .0.as_secs())]
    Timeout(Duration),
    /// It was killed; its transaction may or may not have been committed.
    #[error("nft was ended: {0}")]
    Ended(ExitStatus),
    /// It, or the kernel, refused.
    #[error("nft refused the transaction: {0}")]
    Refused(String),
    /// What it said is not what was asked for.
    #[error("what nft said cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// The program.
#[derive(Clone, Debug)]
pub struct Nft {
    program: OsString,
    standing_by: Option<Arc<Mutex<VecDeque<Child>>>>,
}

impl Default for Nft {
    fn default() -> Self {
        Self::new("nft")
    }
}

impl Nft {
    /// Another program than the `nft` of the search path.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self { program: program.into(), standing_by: None }
    }

    /// Started before there is a script for it: half of a small transaction's time is the program's start. Until it has read a
    /// script it looks at nothing in the kernel, so one that waits is as good as a new one.
    pub fn standing_by(self) -> Self {
        Self { standing_by: Some(Arc::default()), ..self }
    }

    /// Commits one transaction.
    pub async fn commit(&self, script: &str) -> Result<(), NftError> {
        let child = match self.take_one() {
            Some(child) => child,
            None => self.start(&COMMIT)?,
        };
        let outcome = run(child, script).await.map(drop);
        self.replace(outcome.is_ok());
        outcome
    }

    fn take_one(&self) -> Option<Child> {
        let mut children = self.standing_by.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        // Whatever ended one by now is no failure of a transaction.
        std::iter::from_fn(|| children.pop_front())
            .find_map(|mut child| matches!(child.try_wait(), Ok(None)).then_some(child))
    }

    fn replace(&self, succeeded: bool) {
        let Some(children) = self.standing_by.clone() else { return };
        if !succeeded {
            // They may be of the kind that fails.
            children.lock().unwrap_or_else(PoisonError::into_inner).clear();
            return;
        }
        let nft = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(REPLACE_AFTER).await;
            let mut children = children.lock().unwrap_or_else(PoisonError::into_inner);
            while children.len() < STANDING_BY {
                // If it cannot be started now, the next commit will say why.
                let Ok(child) = nft.start(&COMMIT) else { return };
                children.push_back(child);
            }
        });
    }

    /// Asks the kernel whether it would take a transaction, and changes nothing.
    pub async fn check(&self, script: &str) -> Result<(), NftError> {
        run(self.start(&["-c", "-f", "-"])?, script).await.map(drop)
    }

    /// Whether each of these tables exists. Of others no more than their names is looked at: a newer nft may have written
    /// what this one cannot read.
    pub async fn exist<const N: usize>(&self, tables: [&str; N]) -> Result<[bool; N], NftError> {
        let listed = run(self.start(&["list", "tables"])?, "").await?;
        Ok(tables.map(|table| listed.lines().any(|line| line.strip_prefix("table ") == Some(table))))
    }

    /// What a table holds, without counts.
    pub async fn list(&self, table: &str) -> Result<String, NftError> {
        run(self.start(&["-s", "-f", "-"])?, &format!("list table {table}\n")).await
    }

    /// What a table holds, without the elements of its sets.
    pub async fn outline(&self, table: &str) -> Result<String, NftError> {
        let list: Vec<&str> = ["-s", "-t", "list", "table"].into_iter().chain(table.split(' ')).collect();
        run(self.start(&list)?, "").await
    }

    /// The packets that a table's named counters have counted.
    pub async fn counters(&self, table: &str) -> Result<BTreeMap<String, u64>, NftError> {
        // As arguments: with -j it takes what it reads for JSON, and says nothing to anything else.
        let list: Vec<&str> = ["-j", "list", "counters", "table"].into_iter().chain(table.split(' ')).collect();
        let Listing { nftables } = serde_json::from_str(&run(self.start(&list)?, "").await?)?;
        Ok(nftables.into_iter().filter_map(|item| item.counter).map(|c| (c.name, c.packets)).collect())
    }

    fn start(&self, args: &[&str]) -> std::io::Result<Child> {
        Command::new(&self.program)
            .args(args)
            .env(HUGE_PAGES.0, HUGE_PAGES.1)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }
}

/// What `nft -j` lists, as far as it is counters.
#[derive(serde::Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(serde::Deserialize)]
struct Item {
    counter: Option<Counter>,
}

#[derive(serde::Deserialize)]
struct Counter {
    name: String,
    packets: u64,
}

/// Gives it its script, and waits for its end.
async fn run(mut child: Child, script: &str) -> Result<String, NftError> {
    let megabytes = u32::try_from(script.len() >> 20).unwrap_or(u32::MAX);
    let timeout = TIMEOUT + TIMEOUT_PER_MEGABYTE.saturating_mul(megabytes);
    let Ok(finished) = tokio::time::timeout(timeout, finish(&mut child, script)).await else {
        tracing::error!(?timeout, "nft hangs, ending it");
        // Before anything else is tried it is gone: what it was about to commit must not come after what is next.
        child.kill().await?;
        return Err(NftError::Timeout(timeout));
    };
    let (status, stdout, stderr) = finished?;
    match status.code() {
        Some(0) => Ok(String::from_utf8_lossy(&stdout).into_owned()),
        Some(_) => {
            tracing::debug!(script = %numbered(script), "refused transaction");
            Err(NftError::Refused(first_lines(&String::from_utf8_lossy(&stderr), 6)))
        }
        None => Err(NftError::Ended(status)),
    }
}

/// Feeds it, and reads all that it says until it ends.
async fn finish(child: &mut Child, script: &str) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // If nft ends early, its stderr says why better than a broken pipe does.
            let _ = stdin.write_all(script.as_bytes()).await;
        }
    };
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let listen = async {
        match stdout {
            Some(mut stdout) => stdout.read_to_end(&mut said).await,
            None => Ok(0),
        }
    };
    let heed = async {
        match stderr {
            Some(mut stderr) => stderr.read_to_end(&mut complained).await,
            None => Ok(0),
        }
    };
    let ((), listened, heeded) = tokio::join!(feed, listen, heed);
    listened.and(heeded)?;
    Ok((child.wait().await?, said, complained))
}

fn numbered(script: &str) -> String {
    let lines = script.lines().take(MAX_LOGGED_LINES).enumerate();
    lines.map(|(i, line)| format!("{:4} {}\n", i + 1, line)).collect()
}

fn first_lines(text: &str, count: usize) -> String {
    text.lines().take(count).map(str::trim).collect::<Vec<_>>().join(" | ")
}
