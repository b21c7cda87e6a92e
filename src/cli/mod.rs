//! The `kubectl sg` plugin: what security groups mean for the pods and machines there are, before and after a change.
//!
//! Owns the command line. What is allowed is [`crate::policy`]'s answer and who is selected [`crate::index`]'s; the parts here that
//! compute are in [`model`], and each command is a thin module around them.

mod allow;
mod audit;
mod diff;
mod edit;
mod effective;
mod explain;
mod list;
mod load;
pub mod model;
mod output;
mod revoke;
mod show;

use clap::{CommandFactory, Parser, Subcommand};
use output::{Answer, Outcome, Paint};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// Cloud security groups for Kubernetes, by Ringfence.
///
/// Exit codes: 0 done, allowed, or no difference; 1 denied, differences, findings, or not in time; 2 no answer could be given.
#[derive(Parser)]
#[command(name = "kubectl-sg", bin_name = "kubectl sg", version, about, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// When to use colours.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: Color,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Whatever reads it.
    Always,
    /// Never.
    Never,
}

#[derive(Subcommand)]
enum Command {
    /// List security groups.
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Show one group: rules, members, bindings, conditions, who names it.
    #[command(visible_alias = "describe")]
    Show(show::Args),
    /// What a change would open and cut, before it is applied.
    Diff(diff::Args),
    /// Whether one may connect to another, and which rule says so.
    Explain(explain::Args),
    /// The rules of one target from all of its groups, and where each comes from.
    Effective(effective::Args),
    /// Add a rule to a group, and wait until it is in force.
    Allow(allow::Args),
    /// Take a rule away from a group, after saying what that cuts, and wait until it is in force.
    Revoke(revoke::Args),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let terminal = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let paint = Paint(match cli.color {
        Color::Auto => terminal,
        Color::Always => true,
        Color::Never => false,
    });
    match run(cli.command, paint) {
        Ok(outcome) => finish(&outcome),
        Err(error) => {
            eprintln!("error: {}", output::clean(&crate::runtime::chain(&*error)));
            ExitCode::from(2)
        }
    }
}

fn run(command: Command, paint: Paint) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::List(args) => list::run(args, paint).await,
            Command::Show(args) => show::run(args, paint).await,
            Command::Diff(args) => diff::run(args, paint).await,
            Command::Explain(args) => explain::run(args, paint).await,
            Command::Effective(args) => effective::run(args, paint).await,
            Command::Allow(args) => allow::run(args, paint).await,
            Command::Revoke(args) => revoke::run(args, paint).await,
        }
    })
}

fn finish(outcome: &Outcome) -> ExitCode {
    for note in &outcome.notes {
        eprintln!("note: {}", output::clean(note));
    }
    // A reader that has seen enough, like head, is no failure.
    let _ = std::io::stdout().write_all(outcome.text.as_bytes());
    match outcome.answer {
        Answer::Yes => ExitCode::SUCCESS,
        Answer::No => ExitCode::from(1),
    }
}

/// The command line as a value, for completions.
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        super::command().debug_assert();
    }
}
