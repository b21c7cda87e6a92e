//! A few guarded pods, and what tests say of them in few words.

use crate::support::scenario::{interface, name, ports, rule};
use crate::support::topology::{Host, Network, Topology};
use crate::support::wire::Wire;
use ringfence::nft::{self, Ruleset};
use ringfence::policy::{Group, Remote, Rule, Traffic, Transport};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// A few pods whose groups a test names one by one.
pub struct Bench {
    pub topology: Topology,
    pub ruleset: Ruleset,
    unsettled: Option<String>,
}

impl Bench {
    /// Nobody is guarded. The table is there, so that connections are known from their beginning.
    pub fn new(network: Network) -> Self {
        let topology = Topology::new(network, 3);
        topology.node.netns.apply([nft::full(&Ruleset::default()).as_str()]);
        Self { topology, ruleset: Ruleset::default(), unsettled: None }
    }

    /// Guards these pods, each with these rules, and no others; `app` are the pods of group app. A difference, as in use
    /// when changes come quickly: what can wait comes with the next one, or with [`settle`](Self::settle).
    pub fn guard(&mut self, guards: &[(usize, &Group)], app: &[usize]) {
        let profiles: Vec<_> =
            guards.iter().map(|(pod, group)| (*pod, nft::compile(&interface((*group).clone())))).collect();
        let guarded = profiles.iter().flat_map(|(pod, profile)| {
            self.topology.pods[*pod].addresses.iter().map(move |address| (*address, profile))
        });
        let app: BTreeSet<IpAddr> = app.iter().flat_map(|pod| self.topology.pods[*pod].addresses.clone()).collect();
        let app = Arc::new(app);
        let next = Ruleset::new(guarded, |group| if *group == name("app") { app.clone() } else { Arc::default() });
        let mut plan = nft::plan(&self.ruleset, &next);
        let settle = plan.settle.take();
        if settle.is_some() {
            self.unsettled.take().iter().for_each(|earlier| plan.settle_first(earlier));
            self.unsettled = settle;
        }
        self.topology.node.netns.apply(plan.scripts());
        self.ruleset = next;
    }

    /// Runs what the last change has left for a quiet moment.
    pub fn settle(&mut self) {
        self.topology.node.netns.apply(self.unsettled.take().as_deref());
    }

    pub fn pod(&self, pod: usize) -> &Host {
        &self.topology.pods[pod]
    }

    /// The addresses of two pods, family by family.
    pub fn both(&self, from: usize, to: usize) -> [(IpAddr, IpAddr); 2] {
        let (from, to) = (self.pod(from), self.pod(to));
        [(from.v4(), to.v4()), (from.v6(), to.v6())]
    }
}

pub fn app() -> Remote {
    Remote::Group(name("app"))
}

pub fn allow_in(ingress: impl Into<Vec<Rule>>) -> Group {
    Group { ingress: ingress.into(), egress: vec![] }
}

pub fn allow_out(egress: impl Into<Vec<Rule>>) -> Group {
    Group { ingress: vec![], egress: egress.into() }
}

pub fn tcp(port: u16, remote: Remote) -> Rule {
    rule(ports(Transport::Tcp, [port..=port]), remote)
}

pub fn udp(port: u16, remote: Remote) -> Rule {
    rule(ports(Transport::Udp, [port..=port]), remote)
}

pub fn any(remote: Remote) -> Rule {
    rule(Traffic::Any, remote)
}

/// One established TCP connection, held at both ends.
pub struct Established {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Established {
    pub fn open(from: &Host, to: &Host, address: SocketAddr) -> std::io::Result<Self> {
        let listener = to.netns.enter(|| TcpListener::bind(address))?;
        Self::through(from, &listener, address)
    }

    /// To an address that leads to the listener.
    pub fn through(from: &Host, listener: &TcpListener, address: SocketAddr) -> std::io::Result<Self> {
        let client = from.netns.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(3)))?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_nonblocking(true)?;
        }
        Ok(Self { client, server })
    }

    /// Whether a byte passes from client to server, and one back.
    pub fn passes(&mut self, wire: &mut Wire) -> (bool, bool) {
        self.client.write_all(b"c").unwrap();
        self.server.write_all(b"s").unwrap();
        wire.settle();
        let arrived = |end: &mut TcpStream| match end.read(&mut [0; 16]) {
            Ok(count) => count > 0,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        };
        (arrived(&mut self.server), arrived(&mut self.client))
    }
}
