//! The `kubectl sg` plugin: what security groups mean for the pods and machines there are, before and after a change.
//!
//! Owns the command line. What is allowed is [`crate::policy`]'s answer and who is selected [`crate::index`]'s; the
//! parts here that compute are in [`model`], and each command is a thin module around them.

mod agents;
mod allow;
mod ask;
mod attach;
mod audit;
mod completion;
mod diff;
mod drops;
mod edit;
mod effective;
mod explain;
mod explain_many;
mod graph;
mod list;
mod live;
mod load;
pub mod model;
mod nodes;
mod output;
mod revoke;
mod show;

use clap::{CommandFactory, Parser, Subcommand};
use output::{Answer, Outcome, Paint};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// Cloud security groups for Kubernetes, by Ringfence.
///
/// Exit codes: 0 done, allowed, or no difference; 1 denied, differences, findings, or not in time; 2 no answer could be
/// given.
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
    /// Attach groups to pods or interfaces: make a binding, and wait until it is in force.
    Attach(attach::AttachArgs),
    /// Delete a binding, after saying what that opens and cuts.
    Detach(attach::DetachArgs),
    /// Connections that nodes denied lately, or as they come.
    Drops(drops::Args),
    /// What each node has in its kernel. Exit code 1 if one cannot enforce.
    Nodes(nodes::Args),
    /// Which groups let which in, as a graph.
    Graph(graph::Args),
    /// What is valid and rarely meant. Exit code 1 if there is something.
    Audit(audit::Args),
    /// Print a script for your shell's completion.
    Completion(completion::Args),
    /// What kubectl's completion asks, through kubectl_complete-sg.
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete {
        /// What is typed behind `kubectl sg`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
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
            Command::Attach(args) => attach::attach(args, paint).await,
            Command::Detach(args) => attach::detach(args, paint).await,
            Command::Drops(args) => drops::run(args, paint).await,
            Command::Nodes(args) => nodes::run(args, paint).await,
            Command::Graph(args) => graph::run(args).await,
            Command::Audit(args) => audit::run(args, paint).await,
            Command::Completion(args) => completion::run(&args),
            Command::Complete { words } => Ok(Outcome::yes(completion::candidates(&words))),
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
