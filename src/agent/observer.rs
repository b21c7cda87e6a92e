//! Answers people who ask a node what it denied, and what its kernel does.
//!
//! Owns: a port on the node's loopback. Who reaches it through the API server may forward ports of the agent's pod, which is
//! for that cluster's roles to say; who can open it on the node itself, runs in the node's network. Must not: change anything.

use super::denials::Denials;
use super::published::{Examiner, Published};
use crate::observe::{Judged, MAX_JUDGED, NodeVerdict, Request, Said};
use crate::policy::{Connection, Direction, Verdict};
use crate::runtime::Shutdown;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, watch};
use tokio::time::{interval, timeout};

/// Enough for the most connections that are judged at once.
const MAX_REQUEST: u64 = 1 << 20;
/// The question is sent at once.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Who does not read for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// So many are answered at the same time; others wait.
const AT_ONCE: usize = 32;
/// An empty line so often, for whoever takes a connection for dead on which nothing is said.
const ALIVE_EVERY: Duration = Duration::from_secs(20);
/// The port may be somebody else's for a while.
const BIND_AGAIN: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Clone)]
pub struct Observer {
    node: Arc<str>,
    denials: Denials,
    published: watch::Receiver<Published>,
    examiner: Examiner,
}

impl Observer {
    /// One that answers from these.
    pub fn new(node: &str, denials: Denials, published: watch::Receiver<Published>, examiner: Examiner) -> Self {
        Self { node: node.into(), denials, published, examiner }
    }

    /// Listens until shutdown. That nobody can ask does not keep the agent from its work.
    pub async fn listen(self, address: SocketAddr, shutdown: Shutdown) {
        let listen = async {
            loop {
                match TcpListener::bind(address).await {
                    Ok(listener) => self.accept(&listener).await,
                    Err(error) => tracing::warn!(%address, %error, "cannot listen for kubectl sg, will retry"),
                }
                tokio::time::sleep(BIND_AGAIN).await;
            }
        };
        tokio::select! {
            () = listen => {}
            () = shutdown.signalled() => {}
        }
    }

    async fn accept(&self, listener: &TcpListener) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            // It is never closed.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let observer = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = observer.serve(stream).await {
                            tracing::debug!(%error, "who asked went away before the answer's end");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of kubectl sg");
                    return;
                }
            }
        }
    }

    async fn serve(self, stream: TcpStream) -> std::io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader).take(MAX_REQUEST);
        let mut line = String::new();
        timeout(READ_TIMEOUT, reader.read_line(&mut line)).await??;
        match serde_json::from_str(&line) {
            Ok(Request::Drops { follow }) => self.drops(reader.into_inner().into_inner(), writer, follow).await,
            Ok(Request::Judge { connections }) if connections.len() <= MAX_JUDGED => {
                say(&mut writer, &Said::Judged(self.judge(&connections).await)).await
            }
            Ok(Request::Judge { .. }) => {
                let problem = format!("more than {MAX_JUDGED} connections are not judged at once");
                say(&mut writer, &Said::Problem(problem)).await
            }
            Err(error) => say(&mut writer, &Said::Problem(format!("the question cannot be read: {error}"))).await,
        }
    }

    async fn drops(&self, reader: OwnedReadHalf, mut writer: OwnedWriteHalf, follow: bool) -> std::io::Result<()> {
        let (remembered, feed) = match self.denials.listen() {
            Ok(all) => all,
            Err(why) => return say(&mut writer, &Said::Problem(why)).await,
        };
        for denied in remembered {
            say(&mut writer, &Said::Denied(denied)).await?;
        }
        say(&mut writer, &Said::Remembered).await?;
        if !follow {
            return Ok(());
        }
        tokio::select! {
            result = go_on(&mut writer, feed) => result,
            () = gone(reader) => Ok(()),
        }
    }

    async fn judge(&self, connections: &[Connection]) -> Judged {
        let table = self.examiner.examine().await;
        let Published { committed, last_change } = self.published.borrow().clone();
        let verdict = |direction, connection: &Connection| {
            let own = match direction {
                Direction::Ingress => connection.destination,
                Direction::Egress => connection.source,
            };
            let (reason, rule) = match committed.verdict(direction, connection) {
                None => ("OwnNode", None),
                Some(Verdict::Unguarded) => ("Unguarded", None),
                Some(Verdict::Itself) => ("Itself", None),
                Some(Verdict::Denied) => ("NoRule", None),
                Some(Verdict::Allowed { group, rule }) => ("Rule", Some((group.to_string(), rule.to_string()))),
            };
            let end = committed.ends.get(&own);
            let groups = end.iter().flat_map(|end| &end.attached).map(ToString::to_string).collect();
            NodeVerdict { reason: reason.to_owned(), rule, groups }
        };
        Judged {
            node: self.node.to_string(),
            table,
            last_change,
            generations: committed.generations.iter().map(|(group, number)| (group.to_string(), *number)).collect(),
            verdicts: connections
                .iter()
                .map(|connection| [Direction::Egress, Direction::Ingress].map(|d| verdict(d, connection)))
                .collect(),
        }
    }
}

async fn go_on(writer: &mut OwnedWriteHalf, mut feed: Receiver<Said>) -> std::io::Result<()> {
    let mut alive = interval(ALIVE_EVERY);
    loop {
        tokio::select! {
            said = feed.recv() => match said {
                Ok(said) => say(writer, &said).await?,
                Err(RecvError::Lagged(missed)) => say(writer, &Said::Lost(missed)).await?,
                Err(RecvError::Closed) => return Ok(()),
            },
            _ = alive.tick() => write(writer, b"\n").await?,
        }
    }
}

/// Returns when the other end is.
async fn gone(mut reader: OwnedReadHalf) {
    let mut buffer = [0; 64];
    while reader.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
}

async fn say(writer: &mut OwnedWriteHalf, said: &Said) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    write(writer, &line).await
}

async fn write(writer: &mut OwnedWriteHalf, bytes: &[u8]) -> std::io::Result<()> {
    timeout(WRITE_TIMEOUT, writer.write_all(bytes)).await?
}
