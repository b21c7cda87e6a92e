//! Asking before something is cut.

use super::edit::DryRun;
use anyhow::ensure;
use std::io::{BufRead, IsTerminal, Write};

/// Whether somebody is to be asked.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// It was answered on the command line.
    pub yes: bool,
    /// Nothing is done anyway.
    pub dry_run: DryRun,
}

impl Question {
    /// Whether it will be asked.
    pub fn asks(&self) -> bool {
        !self.yes && self.dry_run == DryRun::None
    }

    /// Fails where there is nobody to answer, before anything else is done.
    pub fn can_be_asked(&self) -> anyhow::Result<()> {
        ensure!(
            !self.asks() || std::io::stdin().is_terminal(),
            "nobody can be asked, as standard input is no terminal: look at it with --dry-run=client, and give --yes"
        );
        Ok(())
    }
}

/// Asks if that is to be done, after saying what it is about.
pub fn agreed(question: &Question, about: &str, ask: &str) -> anyhow::Result<bool> {
    if !question.asks() {
        return Ok(true);
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "{about}\n{ask} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
