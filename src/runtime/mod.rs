//! What every long-running `ringfence` process needs and no policy knows about.
//!
//! Owns: logs, the admin server, readiness, shutdown, watches that feed an index, and the loops that run writers.
//! Must not: import anything of [`crate`] outside this module, read or write a Ringfence object, or decide policy.
//! Everything here takes its clock, its shutdown and its readiness as arguments, so a test can hold all three.

pub mod admin;
pub mod backoff;
mod chain;
pub mod coalesce;
pub mod keyed_queue;
mod keyed_state;
pub mod log;
mod process;
pub mod shutdown;
pub mod streak;
pub mod timeline;
pub mod watch;

pub use self::{
    admin::{Admin, Readiness, ReadyHandle},
    backoff::Backoff,
    chain::chain,
    coalesce::{Coalescer, Reason},
    keyed_queue::{KeyedQueue, Outcome},
    log::LogFormat,
    shutdown::{Shutdown, Trigger},
    timeline::Timeline,
    watch::{Malformed, Sink, feed},
};
