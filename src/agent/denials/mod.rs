//! Denied connections, from the kernel's packets to whoever wants to know: the log, a metric, and those who ask.
//!
//! Owns: what is remembered of them, and their names as this node knows them. Must not: be in the way of anything; what cannot
//! be taken in as fast as it comes is lost, and counted.

mod memory;

use super::Shared;
use super::committed::Committed;
use super::metrics::Metrics;
use super::published::Published;
use crate::api::conditions::listed;
use crate::nft::denied::{Denied as Socket, News};
use crate::nft::exec::{Nft, NftError};
use crate::nft::nflog::Told;
use crate::nft::{self, Ruleset};
use crate::observe::{Denied, NearestRule, Peer, Said};
use crate::policy::describe::{direction_name, l4_text, remote, traffic};
use crate::policy::{Direction, nearest};
use crate::runtime::{ReadyHandle, chain};
use jiff::Timestamp;
use memory::{Entry, Memory};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{broadcast, watch};

/// What failed and was not refused may go well later.
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// Somebody else may listen to the same group of nflog, and may stop.
const OPEN_AGAIN: Duration = Duration::from_secs(30);
/// Who follows and is further behind than this, misses some, and is told how many.
const BACKLOG: usize = 256;

/// How denied connections are told of.
#[derive(Clone, Debug, clap::Args)]
pub struct Telling {
    /// Of how many denied packets a second the kernel tells the agent, for each guarded address; 0: of none.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub denied_rate: u32,
    /// Whether the log has a line for each denied connection, once a minute at most.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub denied_log: bool,
}

/// See the module.
#[derive(Clone)]
pub struct Denials {
    node: Arc<str>,
    memory: Arc<Mutex<Memory<Arc<Names>>>>,
    feed: broadcast::Sender<Said>,
    /// Why nothing comes.
    silent: Arc<Mutex<Option<String>>>,
}

/// What is known of a denied connection.
#[derive(Debug)]
struct Names {
    source: Peer,
    destination: Peer,
    groups: Vec<String>,
    /// Of the end that denied it.
    namespace: Option<String>,
    nearest: Option<NearestRule>,
}

/// Whether the kernel can tell of so many packets a second. What it refuses here must not be what it refuses the rules for.
pub(super) async fn trial(nft: &Nft, rate: NonZeroU32) -> Result<(), NftError> {
    let trial = nft::full(&Ruleset { told: Some(rate), ..Ruleset::default() });
    nft.check(&trial.replace(nft::TABLE, "inet ringfence_trial")).await
}

impl Denials {
    /// Remembers nothing yet. `silent`: why nothing will come.
    pub fn new(node: &str, silent: Option<String>) -> Self {
        Self {
            node: node.into(),
            memory: Arc::default(),
            feed: broadcast::channel(BACKLOG).0,
            silent: Arc::new(Mutex::new(silent)),
        }
    }

    /// What is remembered, the latest last, and what comes from then on; or why nothing does.
    pub fn listen(&self) -> Result<(Vec<Denied>, broadcast::Receiver<Said>), String> {
        if let Some(why) = lock(&self.silent).clone() {
            return Err(why);
        }
        let memory = lock(&self.memory);
        let remembered = memory.remembered().map(|(entry, names)| self.denied(entry, names)).collect();
        Ok((remembered, self.feed.subscribe()))
    }

    /// Finds out whether the kernel can tell of denied packets, and has it tell if so. `known`: whether it can, as far as the
    /// first rules need wait for that.
    pub(super) async fn begin(&self, nft: &Nft, rate: NonZeroU32, known: ReadyHandle, tells: impl FnOnce()) -> bool {
        loop {
            let error = match trial(nft, rate).await {
                Ok(()) => {
                    tells();
                    known.set_ready(true);
                    return true;
                }
                Err(error) => error,
            };
            *lock(&self.silent) = Some(format!("this node's kernel cannot tell of denied packets: {error}"));
            known.set_ready(true);
            let what = "the kernel cannot tell of denied packets; they are dropped all the same";
            if matches!(error, NftError::Refused(_)) {
                tracing::warn!(error = chain(&error), what);
                return false;
            }
            tracing::warn!(error = chain(&error), "{what}, and this is tried again");
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// Takes in what the kernel tells, for ever.
    pub(super) async fn run(
        self,
        (state, committed): (Shared, watch::Receiver<Option<Published>>),
        metrics: Metrics,
        log: bool,
    ) {
        let mut namespaces = BTreeSet::new();
        loop {
            let error = match Socket::open() {
                Ok(mut socket) => {
                    *lock(&self.silent) = None;
                    loop {
                        match socket.news().await {
                            Ok(news) => self.take_in(news, &state, &committed, (&metrics, log, &mut namespaces)),
                            Err(error) => break error,
                        }
                    }
                }
                Err(error) => error,
            };
            let why = format!("the agent cannot listen to what the kernel tells of denied packets: {error}");
            tracing::warn!(%error, "cannot listen to what the kernel tells of denied packets, will retry");
            *lock(&self.silent) = Some(why);
            tokio::time::sleep(OPEN_AGAIN).await;
        }
    }

    pub(super) fn take_in(
        &self,
        news: News,
        state: &Shared,
        committed: &watch::Receiver<Option<Published>>,
        (metrics, log, namespaces): (&Metrics, bool, &mut BTreeSet<String>),
    ) {
        let now = Timestamp::now();
        let in_force = committed.borrow().as_ref().map(|published| published.committed.clone()).unwrap_or_default();
        if news.lost > 0 {
            metrics.denials_lost(news.lost);
            let _ = self.feed.send(Said::Lost(news.lost));
        }
        let mut memory = lock(&self.memory);
        if let Some(more) = memory.kept_back(now).filter(|_| log) {
            tracing::info!(more, "more denied connections than there are lines for in a minute");
        }
        for told in news.told {
            let names = || Arc::new(name(told, state, &in_force));
            let Some(word) = memory.take(told, now, names) else { continue };
            let namespace = word.names.namespace.clone().unwrap_or_default();
            metrics.denied(told.direction, &namespace);
            if namespaces.insert(namespace) {
                let present = in_force.namespaces();
                namespaces.retain(|known| {
                    let stays = known.is_empty() || present.contains(known);
                    if !stays {
                        metrics.forget_denied(known);
                    }
                    stays
                });
            }
            let denied = self.denied(&word.entry, &word.names);
            if log && word.log {
                write(&denied);
            }
            // Nobody need be listening.
            let _ = self.feed.send(Said::Denied(Box::new(denied)));
        }
    }

    fn denied(&self, entry: &Entry, names: &Names) -> Denied {
        let Told { direction, connection, source_port, established } = entry.told;
        Denied {
            first: entry.first,
            last: entry.last,
            packets: entry.packets,
            node: self.node.to_string(),
            direction,
            source: names.source.clone(),
            source_port,
            destination: names.destination.clone(),
            l4: connection.l4,
            established,
            groups: names.groups.clone(),
            nearest: names.nearest.clone(),
        }
    }
}

/// What this node knows of a connection, by the rules in force.
fn name(told: Told, state: &Shared, committed: &Committed) -> Names {
    let Told { direction, connection, .. } = told;
    let own = match direction {
        Direction::Ingress => connection.destination,
        Direction::Egress => connection.source,
    };
    let peer = |address: IpAddr| {
        let guarded = committed.ends.get(&address).and_then(|end| end.target.as_ref());
        let only = {
            let state = state.lock();
            // What shares its address with others is not told apart from them.
            let mut claimants = state.index.claimants(address);
            claimants.next().filter(|_| claimants.next().is_none()).cloned()
        };
        let name = only.as_ref().or(guarded).map(|target| format!("{}/{}", target.kind.short_name(), target.name));
        let groups = committed.groups_of(address).iter().map(ToString::to_string).collect();
        Peer { address, name, groups }
    };
    let end = committed.ends.get(&own);
    let rule = end.and_then(|end| nearest(committed, &end.rules, direction, &connection)).map(|found| {
        let preposition = if direction == Direction::Ingress { "from" } else { "to" };
        NearestRule {
            group: found.group.to_string(),
            id: found.rule.id().to_string(),
            text: format!(
                "{} {preposition} {}",
                traffic(found.rule),
                remote(&found.rule.remote, &found.group.namespace)
            ),
            miss: found.miss,
        }
    });
    Names {
        source: peer(connection.source),
        destination: peer(connection.destination),
        groups: end.iter().flat_map(|end| &end.attached).map(ToString::to_string).collect(),
        namespace: end.and_then(|end| end.target.as_ref()).map(|target| target.name.namespace.clone()),
        nearest: rule,
    }
}

/// One line of the log.
fn write(denied: &Denied) {
    let named = |peer: &Peer| peer.name.clone().unwrap_or_else(|| peer.address.to_string());
    let nearest = denied.nearest.as_ref().map(|rule| format!("{} of {}: {}", rule.id, rule.group, rule.text));
    tracing::info!(
        direction = direction_name(denied.direction),
        source = named(&denied.source),
        source_address = %denied.source.address,
        destination = named(&denied.destination),
        destination_address = %denied.destination.address,
        traffic = l4_text(denied.l4),
        packets = denied.packets,
        established = denied.established,
        groups = listed(&denied.groups),
        nearest_rule = nearest.unwrap_or_default(),
        "connection denied"
    );
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here is left half-done by a panic that matters to anybody.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
