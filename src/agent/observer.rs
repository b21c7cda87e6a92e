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
    denials: Denials,
    published: watch::Receiver<Option<Published>>,
    examiner: Examiner,
}

impl Observer {
    /// One that answers from these.
    pub fn new(denials: Denials, published: watch::Receiver<Option<Published>>, examiner: Examiner) -> Self {
        Self { denials, published, examiner }
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
                let judged = self.judge(&connections).await;
                let none =
                    || Said::Problem("this node's agent has just started, and has put no rules into force yet".into());
                say(&mut writer, &judged.map_or_else(none, Said::Judged)).await
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
            say(&mut writer, &Said::Denied(Box::new(denied))).await?;
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

    /// `None`: nothing was put into force yet.
    async fn judge(&self, connections: &[Connection]) -> Option<Judged> {
        let table = self.examiner.examine().await;
        let Published { committed, last_change } = self.published.borrow().clone()?;
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
        Some(Judged {
            table,
            last_change,
            generations: committed.groups.iter().map(|(group, of)| (group.to_string(), of.generation)).collect(),
            verdicts: connections
                .iter()
                .map(|connection| [Direction::Egress, Direction::Ingress].map(|d| verdict(d, connection)))
                .collect(),
        })
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

#[cfg(test)]
mod tests {
    use super::super::committed::{Committed, End, Revision};
    use super::super::metrics::Metrics;
    use super::super::state::State;
    use super::super::{RETRY, Shared};
    use super::*;
    use crate::index::TargetName;
    use crate::nft::denied::News;
    use crate::nft::nflog::Told;
    use crate::observe::Table;
    use crate::policy::{Group, L4, Miss, NamespacedName, Remote, Rule, Traffic, Transport, parse_cidr};
    use crate::runtime::Coalescer;
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::IpAddr;
    use tokio::io::Lines;

    const NODE: &str = "10.9.0.1";
    const DB: &str = "10.0.0.2";
    const CLIENT: &str = "10.0.0.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn connection(source: &str, port: u16) -> Connection {
        Connection { source: ip(source), destination: ip(DB), l4: L4::Ports(Transport::Tcp, port) }
    }

    /// A node with one guarded pod, which takes TCP 80 from some network.
    fn published() -> Published {
        let remote = Remote::Cidrs([parse_cidr("192.0.2.0/24").unwrap()].into_iter().collect());
        let rule = Rule { traffic: Traffic::Ports(Transport::Tcp, [80..=80].into_iter().collect()), remote };
        let group = NamespacedName::new("shop", "db");
        let rules = Arc::new(Group { ingress: vec![rule], egress: vec![] });
        let end = End {
            target: Some(TargetName::pod(NamespacedName::new("shop", "db-0"))),
            attached: [group.clone()].into(),
            rules: Arc::new([(group.clone(), rules.clone())].into()),
        };
        let committed = Committed {
            ends: [(ip(DB), Arc::new(end))].into(),
            members: [(NamespacedName::new("shop", "app"), Arc::new([ip(CLIENT)].into()))].into(),
            groups: [(group, Revision { uid: "uid".to_owned(), generation: 3, rules })].into(),
            node: [ip(NODE)].into(),
        };
        Published { committed: Arc::new(committed), last_change: None }
    }

    async fn ask(address: SocketAddr, question: &str) -> Lines<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{question}\n").as_bytes()).await.unwrap();
        BufReader::new(stream).lines()
    }

    async fn next(lines: &mut Lines<BufReader<TcpStream>>) -> Option<Said> {
        loop {
            match lines.next_line().await.unwrap() {
                Some(line) if line.is_empty() => {}
                line => return line.map(|line| serde_json::from_str(&line).unwrap()),
            }
        }
    }

    /// An observer that listens, what it remembers, and a way to let the kernel tell of a packet.
    async fn listening(denials: Denials, published: Option<Published>) -> (SocketAddr, impl Fn(u16)) {
        let (sender, in_force) = watch::channel(published);
        let dirty = Arc::new(Coalescer::new(RETRY, None));
        let examiner = Examiner::new(dirty.clone());
        let asked = examiner.clone();
        let (trigger, shutdown) = Shutdown::manual();
        tokio::spawn(dirty.run(shutdown, async move |_| {
            // As long as they listen.
            let _ = (&sender, &trigger);
            asked.take().into_iter().for_each(|asked| drop(asked.send(Table::Same)));
            anyhow::Ok(())
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let observer = Observer::new(denials.clone(), in_force.clone(), examiner);
        tokio::spawn(async move { observer.accept(&listener).await });
        let state = Shared::new(State::new(BTreeSet::new()));
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let tell = move |port| {
            let told = Told {
                direction: Direction::Ingress,
                connection: connection(CLIENT, port),
                source_port: Some(40_000),
                established: false,
            };
            let news = News { told: vec![told], lost: u64::from(port == 82) };
            denials.take_in(news, &state, &in_force, (&metrics, true, &mut BTreeSet::new()));
        };
        (address, tell)
    }

    #[tokio::test]
    async fn who_asks_hears_what_was_denied_and_who_follows_what_is() {
        let (address, tell) = listening(Denials::new("n1", None), Some(published())).await;
        tell(80);
        let mut once = ask(address, r#"{"drops":{"follow":false}}"#).await;
        let Some(Said::Denied(denied)) = next(&mut once).await else { panic!("nothing was denied") };
        assert_eq!((denied.node.as_str(), denied.packets, denied.direction), ("n1", 1, Direction::Ingress));
        assert_eq!((denied.source.name, denied.source.groups), (None, vec!["shop/app".to_owned()]));
        assert_eq!(denied.destination.name.as_deref(), Some("pod/shop/db-0"));
        assert_eq!(denied.groups, ["shop/db"]);
        let nearest = denied.nearest.unwrap();
        assert_eq!((nearest.text.as_str(), nearest.miss), ("TCP 80 from 192.0.2.0/24", Miss::Remote));
        assert_eq!(next(&mut once).await, Some(Said::Remembered));
        assert_eq!(next(&mut once).await, None);

        let mut follower = ask(address, r#"{"drops":{"follow":true}}"#).await;
        assert!(matches!(next(&mut follower).await, Some(Said::Denied(_))));
        assert_eq!(next(&mut follower).await, Some(Said::Remembered));
        tell(80);
        tell(82);
        assert_eq!(next(&mut follower).await, Some(Said::Lost(1)), "the same one again is not told of at once");
        let Some(Said::Denied(denied)) = next(&mut follower).await else { panic!("another one is") };
        assert_eq!(denied.l4, L4::Ports(Transport::Tcp, 82));
    }

    #[tokio::test]
    async fn connections_are_judged_by_what_was_committed() {
        let (address, _) = listening(Denials::new("n1", None), Some(published())).await;
        let connections = ["192.0.2.7", CLIENT, NODE].map(|source| connection(source, 80)).to_vec();
        let question = serde_json::to_string(&Request::Judge { connections }).unwrap();
        let Some(Said::Judged(judged)) = next(&mut ask(address, &question).await).await else { panic!("no answer") };
        let reasons: Vec<[&str; 2]> = judged.verdicts.iter().map(|ends| [0, 1].map(|i| &*ends[i].reason)).collect();
        assert_eq!(reasons, [["Unguarded", "Rule"], ["Unguarded", "NoRule"], ["Unguarded", "OwnNode"]]);
        assert_eq!(judged.table, Table::Same);
        assert_eq!(judged.generations, BTreeMap::from([("shop/db".to_owned(), 3)]));
    }

    #[tokio::test]
    async fn what_cannot_be_answered_says_why() {
        let (address, _) = listening(Denials::new("n1", Some("it is off".to_owned())), None).await;
        for (question, why) in [
            (r#"{"drops":{"follow":true}}"#, "it is off"),
            (r#"{"judge":{"connections":[]}}"#, "has put no rules into force yet"),
            ("GET / HTTP/1.1", "cannot be read"),
        ] {
            let mut lines = ask(address, question).await;
            let Some(Said::Problem(problem)) = next(&mut lines).await else { panic!("no problem") };
            assert!(problem.contains(why), "{problem}");
            assert_eq!(next(&mut lines).await, None);
        }
    }
}
