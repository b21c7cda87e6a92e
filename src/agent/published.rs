//! What an agent's commits have made true, for those of its tasks that tell others; and how these ask for a look at the kernel.
//!
//! Owns: the way between them and the one who commits, who alone compares the table.

use super::committed::Committed;
use crate::observe::{Change, Table};
use crate::runtime::Coalescer;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// A comparison takes some tens of milliseconds; a commit that hangs, seconds.
const PATIENCE: Duration = Duration::from_secs(6);

/// What the last commit made true.
#[derive(Clone, Debug)]
pub struct Published {
    /// The rules in force.
    pub committed: Arc<Committed>,
    /// When somebody else changed them last.
    pub last_change: Option<Change>,
}

/// Asks for a comparison of the table with what was committed.
#[derive(Clone)]
pub struct Examiner {
    asked: Arc<Mutex<Vec<oneshot::Sender<Table>>>>,
    dirty: Arc<Coalescer>,
}

impl Examiner {
    /// Whoever runs when this is dirty answers.
    pub fn new(dirty: Arc<Coalescer>) -> Self {
        Self { asked: Arc::default(), dirty }
    }

    /// Has the table compared, and brought to what is desired.
    pub async fn examine(&self) -> Table {
        let (answer, answered) = oneshot::channel();
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        self.dirty.notify();
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(table)) => table,
            Ok(Err(_)) => Table::Unknown("the agent is shutting down".to_owned()),
            Err(_) => Table::Unknown(format!("it was not compared within {} s", PATIENCE.as_secs())),
        }
    }

    /// Those who wait for an answer.
    pub fn take(&self) -> Vec<oneshot::Sender<Table>> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
