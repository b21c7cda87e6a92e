//! Where log lines go and which of them.
//!
//! Owns: the process's tracing subscriber. Must not: be called by a library path; `main` calls it once.
//! Standard output belongs to commands that print something (`ringfence crds`), so logs go to standard error.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use thiserror::Error;
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt, util::TryInitError};
use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

/// The environment variable that says what is logged, in tracing's syntax.
pub const FILTER_VARIABLE: &str = "RINGFENCE_LOG";

/// What is logged when the variable is absent.
///
/// Two of kube's modules log every failed request and every refused watch, retries included. Each of these errors also
/// reaches a caller here, who logs it once and then sparingly.
pub const DEFAULT_FILTER: &str = "info,kube=warn,kube_client::client::builder=off,kube_runtime::watcher=error";

/// The form of a log line (`--log-format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line for a person.
    #[default]
    Text,
    /// One JSON object per line, the event's fields at the top level.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// The filter in the environment is not valid.
    #[error("{FILTER_VARIABLE}={value:?} is not a valid log filter")]
    Filter {
        /// What the variable holds.
        value: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// A subscriber is installed already.
    #[error("logging was set up twice")]
    Twice(#[from] TryInitError),
}

/// Sends this process's events to standard error in the given form.
///
/// # Errors
/// When [`FILTER_VARIABLE`] holds nonsense (better refused than silently ignored), or on a second call.
pub fn init(format: LogFormat) -> Result<(), LogError> {
    let filter = filter(std::env::var(FILTER_VARIABLE).ok())?;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => {
            let colour = io::stderr().is_terminal();
            registry.with(fmt::layer().with_writer(io::stderr).with_ansi(colour)).try_init()?;
        }
        LogFormat::Json => {
            registry.with(fmt::layer().with_writer(io::stderr).json().flatten_event(true)).try_init()?;
        }
    }
    Ok(())
}

/// An empty variable counts as absent: that is what a chart writes for "no value".
fn filter(value: Option<String>) -> Result<EnvFilter, LogError> {
    let value = value.filter(|v| !v.trim().is_empty()).unwrap_or_else(|| DEFAULT_FILTER.to_owned());
    EnvFilter::builder().parse(&value).map_err(|source| LogError::Filter { value, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_filter_is_valid_and_stands_in_for_nothing() {
        for value in [None, Some(String::new()), Some(" ".to_owned())] {
            // The filter prints its directives in an order of its own.
            let shown = filter(value).unwrap().to_string();
            assert!(shown.contains("kube=warn") && shown.contains("info"), "{shown}");
        }
    }

    #[test]
    fn a_bad_filter_is_named_in_the_error() {
        let error = filter(Some("info,ringfence=loud".to_owned())).unwrap_err().to_string();
        assert!(error.contains(r#"RINGFENCE_LOG="info,ringfence=loud""#), "{error}");
    }
}
