//! The command line: parse, dispatch, exit code.

use anyhow::Context;
use clap::{Parser, Subcommand};
use ringfence::runtime::{LogFormat, Shutdown, log};
use ringfence::{agent, api, controller, uninstall, verify};
use std::path::PathBuf;
use std::time::Duration;

/// Cloud security groups for Kubernetes.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How to write logs. What to write is set by RINGFENCE_LOG, like info,ringfence=debug.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Subcommand)]
enum Command {
    /// Resolve bindings to members, publish them, and report what is enforced.
    Controller(controller::Args),
    /// Enforce groups on this node.
    Agent(agent::Args),
    /// Take Ringfence off every node, before its objects are deleted.
    Uninstall(uninstall::Args),
    /// See that both components are ready and every node enforces.
    Verify(verify::Args),
    /// Write the CRDs.
    Crds {
        /// Folder to write one file for each CRD to; by default all go to standard output.
        #[arg(long)]
        output_dir: Option<PathBuf>,
    },
    /// Print the reference of the API, in Markdown.
    ApiReference,
}

/// A connection to the API server that is silent for longer is dead, though nobody said so: whoever translated it lost its
/// state. Every watch gets a bookmark at least each 75 seconds.
const SILENCE: Duration = Duration::from_secs(90);

fn main() -> anyhow::Result<()> {
    let Cli { command, log_format } = Cli::parse();
    match command {
        Command::Crds { output_dir } => write_crds(output_dir),
        Command::ApiReference => {
            print!("{}", api::reference::markdown(&api::crds()));
            Ok(())
        }
        Command::Controller(args) => {
            serve(log_format, async |client, shutdown| controller::run(args, client, shutdown).await)
        }
        Command::Uninstall(args) => {
            serve(log_format, async |client, shutdown| uninstall::run(args, client, shutdown).await)
        }
        Command::Verify(args) => serve(log_format, async |client, shutdown| verify::run(args, client, shutdown).await),
        Command::Agent(args) => serve(log_format, async |client, shutdown| agent::run(args, client, shutdown).await),
    }
}

/// Runs a process that talks to the API server until it is told to stop.
fn serve(
    log_format: LogFormat,
    run: impl AsyncFnOnce(kube::Client, Shutdown) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    log::init(log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        let (_trigger, shutdown) = Shutdown::on_signals()?;
        let mut config =
            kube::Config::infer().await.context("cannot find an API server: neither in a cluster nor a kubeconfig")?;
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        let client = kube::Client::try_from(config)?;
        run(client, shutdown).await
    });
    // What is left are watches, which never end by themselves.
    runtime.shutdown_background();
    result
}

fn write_crds(output_dir: Option<PathBuf>) -> anyhow::Result<()> {
    for crd in api::crds() {
        let yaml = api::crd_yaml(&crd)?;
        match (&output_dir, &crd.metadata.name) {
            (Some(folder), Some(name)) => {
                let file = folder.join(format!("{name}.yaml"));
                std::fs::write(&file, yaml).with_context(|| format!("cannot write {}", file.display()))?;
            }
            _ => println!("---\n{yaml}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
