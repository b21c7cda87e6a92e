//! Answers the CNI plugin.

use super::store::{Store, is_valid};
use crate::agent::Shared;
use crate::agent::attachments::{Attachment, Key, Settled};
use crate::agent::metrics::Metrics;
use crate::cni::config::LONGEST;
use crate::cni::message::{Answer, Request};
use crate::index::NETWORKS;
use crate::runtime::{Coalescer, Shutdown};
use anyhow::Context;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// Enough for every attachment of a node.
const MAX_REQUEST: u64 = 4 << 20;
/// The plugin writes its request at once.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What a request needs.
#[derive(Clone)]
pub struct Server {
    state: Shared,
    /// Whoever commits something that depends on attachments.
    dirty: [Arc<Coalescer>; 2],
    store: Arc<Mutex<Store>>,
    settled: watch::Receiver<Settled>,
    /// Up to which revision what pods may send is committed.
    watched: watch::Receiver<u64>,
    metrics: Metrics,
}

impl Server {
    /// A server that hands attachments to the state, and is told by `settled` and `watched` what was committed.
    pub(in crate::agent) fn new(
        state: Shared,
        dirty: [Arc<Coalescer>; 2],
        store: Store,
        settled: watch::Receiver<Settled>,
        watched: watch::Receiver<u64>,
        metrics: Metrics,
    ) -> Self {
        Self { state, dirty, store: Arc::new(Mutex::new(store)), settled, watched, metrics }
    }

    /// Listens, for root alone. What an earlier run left there is replaced.
    pub fn listen(self, socket: &Path, shutdown: Shutdown) -> anyhow::Result<impl Future<Output = ()> + use<>> {
        let what = || format!("cannot listen on {}", socket.display());
        if let Some(folder) = socket.parent() {
            fs::create_dir_all(folder).with_context(what)?;
            // Before the socket is there: between its creation and its own permissions it is shielded by these.
            fs::set_permissions(folder, Permissions::from_mode(0o700)).with_context(what)?;
        }
        let _ = fs::remove_file(socket);
        let listener = UnixListener::bind(socket).with_context(what)?;
        fs::set_permissions(socket, Permissions::from_mode(0o600)).with_context(what)?;
        Ok(async move {
            tokio::select! {
                () = self.accept(listener) => {}
                () = shutdown.signalled() => {}
            }
        })
    }

    async fn accept(self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = server.serve(stream).await {
                            tracing::debug!(%error, "a plugin went away before it was answered");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, which others may give back.
                    tracing::warn!(%error, "cannot accept a plugin's connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve(self, mut stream: UnixStream) -> anyhow::Result<()> {
        let (reader, mut writer) = stream.split();
        let mut line = String::new();
        let mut limited = BufReader::new(reader).take(MAX_REQUEST);
        tokio::time::timeout(READ_TIMEOUT, limited.read_line(&mut line)).await??;
        let answer = match serde_json::from_str(&line) {
            Ok(request) => self.answer(request).await,
            Err(error) => Answer::no(format!("the request cannot be read: {error}")),
        };
        let mut line = serde_json::to_string(&answer)?;
        line.push('\n');
        Ok(writer.write_all(line.as_bytes()).await?)
    }

    async fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Add { attachment, patience_millis } => self.add(attachment, patience(patience_millis)).await,
            Request::Delete { key, described, patience_millis } => {
                self.delete(key, described, patience(patience_millis)).await
            }
            Request::Check { attachment } => self.check(&attachment),
            Request::Collect { network, valid } => self.collect(network.as_deref(), valid),
            Request::Status => Answer::yes(),
        }
    }

    async fn add(&self, attachment: Attachment, patience: Duration) -> Answer {
        let (key, who, started) = (attachment.key(), attachment.pod.clone(), Instant::now());
        if !is_valid(&key) {
            return Answer::no("this is not a container's id and an interface's name");
        }
        let elsewhere = attachment.network.is_some().then(|| attachment.interface.clone());
        tracing::debug!(pod = %who, addresses = ?attachment.addresses, "attached");
        let revision = match self.change(|state| state.attachments.attach(attachment)) {
            Ok(revision) => revision,
            Err(error) => return Answer::no(format!("cannot remember the attachment: {error:#}")),
        };
        let committed = |settled: &Settled| settled.revision >= revision && settled.attached.contains(&key);
        let in_time = self.wait(revision, committed, patience).await;
        self.metrics.waited(started.elapsed(), in_time);
        if in_time {
            return Answer::yes();
        }
        let state = self.state.lock();
        match (state.settled().attached.contains(&key), state.index.pod(&who), elsewhere) {
            (true, ..) => Answer::no("they could not be committed in time"),
            (false, Some(pod), Some(interface)) if !pod.networks.contains_key(&interface) => {
                Answer::no(format!("no annotation of the pod says which network {interface} is on: see {NETWORKS}"))
            }
            (false, Some(_), Some(interface)) => {
                Answer::no(format!("it is not known yet whether rules reach {interface}, or nothing closes its bridge"))
            }
            (false, ..) => Answer::no("the agent has not seen the pod yet"),
        }
    }

    async fn delete(&self, key: Key, described: Option<Attachment>, patience: Duration) -> Answer {
        if !is_valid(&key) {
            return Answer::no("this is not a container's id and an interface's name");
        }
        tracing::debug!(container = key.container_id, interface = key.interface, "detached");
        match self.change(|state| state.attachments.release(&key, described)) {
            Ok(revision) if self.wait(revision, |settled| settled.revision >= revision, patience).await => {
                Answer::yes()
            }
            Ok(_) => Answer::no("its addresses could not be taken out in time"),
            Err(error) => Answer::no(format!("cannot forget the attachment: {error:#}")),
        }
    }

    fn check(&self, attachment: &Attachment) -> Answer {
        let committed = self.settled.borrow().attached.contains(&attachment.key());
        if committed && self.state.lock().attachments.has(attachment) {
            Answer::yes()
        } else {
            Answer::no(format!("the attachment of pod {} is not known and enforced", attachment.pod))
        }
    }

    fn collect(&self, network: Option<&str>, valid: Vec<Key>) -> Answer {
        let valid: BTreeSet<Key> = valid.into_iter().collect();
        match self.change(|state| state.attachments.keep_only(network, &valid)) {
            Ok(_) => Answer::yes(),
            Err(error) => Answer::no(format!("cannot forget attachments: {error:#}")),
        }
    }

    /// Changes the attachments, here and in the files, and asks for a commit.
    fn change(&self, change: impl FnOnce(&mut crate::agent::state::State) -> u64) -> anyhow::Result<u64> {
        // Held over both, so that files are written in the order of changes. It is a few hundred bytes in memory.
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let (revision, records) = {
            let mut state = self.state.lock();
            (change(&mut state), state.attachments.records().clone())
        };
        self.dirty.iter().for_each(|dirty| dirty.notify());
        store.save(&records)?;
        Ok(revision)
    }

    /// Waits for both tables: who may reach the pod, and what it may send.
    async fn wait(&self, revision: u64, until: impl FnMut(&Settled) -> bool, patience: Duration) -> bool {
        let (mut settled, mut watched) = (self.settled.clone(), self.watched.clone());
        let both = async {
            settled.wait_for(until).await.is_ok() && watched.wait_for(|committed| *committed >= revision).await.is_ok()
        };
        tokio::time::timeout(patience, both).await.unwrap_or_default()
    }
}

fn patience(millis: u64) -> Duration {
    Duration::from_millis(millis).min(LONGEST)
}
