//! When to stop.
//!
//! Owns: the process's signals. The first SIGTERM or SIGINT asks everything to drain, the second ends the process.
//! Must not: know what drains. Whoever holds a [`Shutdown`] finishes what it has begun and returns.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{error, info};

/// Knows whether the process should stop. Cheap to clone; every task takes its own.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Asks for the shutdown. Used by tests, and by a process whose essential task has failed.
#[derive(Clone, Debug)]
pub struct Trigger(watch::Sender<bool>);

impl Shutdown {
    /// A shutdown that only its trigger causes. Dropping the trigger means it never comes.
    #[must_use]
    pub fn manual() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (Trigger(sender), Self(receiver))
    }

    /// A shutdown that the first SIGTERM or SIGINT causes, or the returned trigger. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn on_signals() -> io::Result<(Trigger, Self)> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (trigger, shutdown) = Self::manual();

        let first = trigger.clone();
        tokio::spawn(async move {
            let mut next = async || {
                tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                }
            };
            let name = next().await;
            info!(signal = name, "shutting down; a second signal exits at once");
            first.shut_down();

            let name = next().await;
            error!(signal = name, "second signal: exiting without draining");
            // Nothing is lost by not unwinding: what is enforced lives in the kernel and everything else in the API
            // server (S8). Returning from main would wait for the very tasks that do not finish.
            std::process::exit(1);
        });
        Ok((trigger, shutdown))
    }

    /// Resolves once the process should stop; at once if that is already so.
    pub async fn signalled(&self) {
        if self.0.clone().wait_for(|stop| *stop).await.is_err() {
            // Every trigger is gone, so nobody can ask any more.
            std::future::pending::<()>().await;
        }
    }

    /// Whether the process should stop.
    #[must_use]
    pub fn is_signalled(&self) -> bool {
        *self.0.borrow()
    }
}

impl Trigger {
    /// Asks everything to stop. Asking again changes nothing.
    pub fn shut_down(&self) {
        self.0.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn every_clone_learns_of_it_and_latecomers_too() {
        let (trigger, shutdown) = Shutdown::manual();
        let early = shutdown.clone();
        assert!(!shutdown.is_signalled());
        assert!(early.signalled().now_or_never().is_none());

        trigger.shut_down();
        trigger.shut_down();
        drop(trigger);

        early.signalled().await;
        shutdown.clone().signalled().await;
        assert!(shutdown.is_signalled());
    }

    #[tokio::test]
    async fn a_dropped_trigger_is_not_a_shutdown() {
        let (trigger, shutdown) = Shutdown::manual();
        drop(trigger);
        assert!(shutdown.signalled().now_or_never().is_none());
        assert!(!shutdown.is_signalled());
    }
}
