//! Who reaches whom: pods that serve, and probes from pods, nodes and outside.

use super::cluster::{Namespace, Running, command, eventually, output_of, probe};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeMap;
use std::fs::{File, read_link};
use std::os::fd::AsFd;
use std::process::Command;

/// The office of the examples, outside the cluster.
pub const OFFICE: [&str; 2] = ["203.0.113.10", "2001:db8::10"];
/// Anybody else outside the cluster.
pub const STRANGER: [&str; 2] = ["198.51.100.7", "2001:db8:ffff::7"];

/// A pod that serves on some ports.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<String>,
}

/// A pod's manifest: answers on TCP and UDP ports with its name; the kubelet probes it all the time.
pub fn pod_manifest(name: &str, app: &str, node: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
  - name: server
    image: ringfence.test/toolbox:1
    imagePullPolicy: Never
    command: [/bin/probe, serve, --name, {name}, --tcp, '22,80,443,3306,65535', --udp, '53,5353']
    readinessProbe: {{tcpSocket: {{port: 22}}, periodSeconds: 1, failureThreshold: 1}}
    livenessProbe: {{tcpSocket: {{port: 80}}, periodSeconds: 1, failureThreshold: 2}}
"
    )
}

impl Namespace {
    /// Creates pods, given as name, app and node, and waits until they are ready.
    pub fn pods(&self, pods: &[(&str, &str, &str)]) -> BTreeMap<String, Pod> {
        self.apply(&pods.iter().map(|(name, app, node)| pod_manifest(name, app, node)).collect::<String>());
        let names: Vec<String> = pods.iter().map(|(name, _, _)| format!("pod/{name}")).collect();
        let wait = ["wait", "--for=condition=Ready", "--timeout=60s"];
        self.kubectl(&wait.into_iter().chain(names.iter().map(String::as_str)).collect::<Vec<_>>());
        pods.iter().map(|(name, _, _)| ((*name).to_owned(), self.pod(name))).collect()
    }

    /// A pod that runs.
    pub fn pod(&self, name: &str) -> Pod {
        let status = &self.get("pod", name)["status"];
        let ips = status["podIPs"].as_array().unwrap();
        let addresses = ips.iter().map(|ip| ip["ip"].as_str().unwrap().to_owned()).collect();
        Pod { namespace: self.0.clone(), name: name.to_owned(), addresses }
    }
}

/// From where to probe.
#[derive(Clone, Debug)]
pub enum From<'a> {
    /// A pod.
    Pod(&'a Pod),
    /// A virtual machine, by its name.
    Guest(&'a str),
    /// A node itself.
    Node(&'a str),
    /// Outside, with these source addresses.
    Outside([&'a str; 2]),
}

impl From<'_> {
    /// A command that runs the probe program there.
    pub fn probe(&self) -> Command {
        let (name, arguments) = match self {
            // It has a file system of its own.
            Self::Guest(name) => {
                let mut command = command("guest");
                command.args(["run", name, "probe"]);
                return command;
            }
            Self::Pod(pod) => ("pod", vec![format!("{}/{}", pod.namespace, pod.name)]),
            Self::Node(node) => ("node", vec![(*node).to_owned()]),
            Self::Outside(_) => ("outside", vec![]),
        };
        let mut command = command(name);
        command.args(arguments).arg(probe());
        command
    }

    /// Attempts at a TCP port, one after the other, until this is stopped.
    pub fn hammer(&self, address: &str, port: &str, [interval, timeout]: [&str; 2]) -> Running {
        let mut hammer = self.probe();
        hammer.args(["hammer", "tcp", address, port, "--interval", interval, "--timeout", timeout]);
        hammer.args(["--duration", "10m"]);
        Running::start(hammer)
    }

    /// Which of the targets answer; each like `tcp:10.0.0.1:80`. All are probed at once.
    pub fn reaches(&self, targets: &[String]) -> Vec<bool> {
        let families: [(&str, bool); 2] = [("[", true), ("", false)];
        let mut answers = vec![false; targets.len()];
        // Outside has several addresses, so the source must be told, by family.
        for (_, v6) in families {
            let wanted: Vec<usize> = (0..targets.len()).filter(|&i| is_v6(&targets[i]) == v6).collect();
            if wanted.is_empty() {
                continue;
            }
            let mut command = self.probe();
            command.args(["many", "--timeout", "1s"]);
            if let Self::Outside(sources) = self {
                command.args(["--source", sources[usize::from(v6)]]);
            }
            command.args(wanted.iter().map(|&i| &targets[i]));
            let said = output_of(command);
            let lines: Vec<&str> = said.lines().collect();
            assert_eq!(lines.len(), wanted.len(), "{said}");
            for (line, i) in lines.iter().zip(wanted) {
                answers[i] = answers_in(line);
            }
        }
        answers
    }

    /// Whether one target answers.
    pub fn reaches_one(&self, target: &str) -> bool {
        self.reaches(&[target.to_owned()])[0]
    }
}

/// Whether a target answered, by a line of `probe many`. Refused means that the packet arrived and its answer came back.
pub fn answers_in(line: &str) -> bool {
    matches!(line.split_whitespace().nth(1), Some("open" | "refused"))
}

fn is_v6(target: &str) -> bool {
    target.contains('[') || target.matches(':').count() > 2
}

impl Pod {
    /// `protocol:address:port` for both families.
    pub fn on(&self, protocol: &str, port: u16) -> Vec<String> {
        self.addresses.iter().map(|a| target(protocol, a, port)).collect()
    }

    /// Does some work in the pod's network, on a thread of its own. Sockets made there belong to it wherever they go.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let mut stay = command("pod");
        stay.args([&format!("{}/{}", self.namespace, self.name), "sleep", "60"]);
        let inside = Running::start(stay);
        let (own, path) = (read_link("/proc/self/ns/net").unwrap(), format!("/proc/{}/ns/net", inside.id()));
        eventually("a process in the pod's network", || read_link(&path).is_ok_and(|network| network != own));
        let network = File::open(path).unwrap();
        let inside = || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// As an origin of probes.
    pub fn probes(&self) -> From<'_> {
        From::Pod(self)
    }

    /// Whether this pod reaches another on a TCP port; both families must agree.
    pub fn reaches(&self, other: &Self, port: u16) -> bool {
        both(&self.probes().reaches(&other.on("tcp", port)))
    }
}

/// `protocol:address:port`, as the probe wants it.
pub fn target(protocol: &str, address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("{protocol}:[{address}]:{port}")
    } else {
        format!("{protocol}:{address}:{port}")
    }
}

/// What both families say.
pub fn both(answers: &[bool]) -> bool {
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "IPv4 and IPv6 differ: {answers:?}");
    answers[0]
}
