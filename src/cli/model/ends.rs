//! What people write for the ends of a connection, and the addresses that it means.
//!
//! PURE. Knows names, Services and ports; asks nobody whether they may talk.

use super::inventory::Inventory;
use crate::index::{Index, Target, TargetKind, TargetName};
use crate::kubevirt::machine_of;
use crate::policy::{L4, NamespacedName, Transport};
use anyhow::{Context, bail, ensure};
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::IpAddr;

/// ICMP's echo request, of either family.
const ECHO: (u8, u8) = (8, 128);

/// One place where a connection can begin or end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What to call it.
    pub name: String,
    /// The target, if it is one.
    pub target: Option<TargetName>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The port there, where it is reached through a Service.
    pub port: Option<u16>,
}

impl Place {
    /// Whether a pod has it, on the pod network.
    fn is_pods(&self) -> bool {
        self.target.as_ref().is_some_and(|target| target.kind == TargetKind::Pod && target.network.is_none())
    }
}

/// What may hide on the way who connects.
pub fn masquerading(source: &Place, destination: &Place) -> Option<&'static str> {
    match (source.is_pods(), destination.is_pods()) {
        (false, _) if destination.port.is_some() => Some(
            "kube-proxy may hide a client from outside of the pod network behind a node (masquerading), unless the Service's \
             traffic policy is Local: then rules see the node's address",
        ),
        (true, false) => Some(
            "the pod network may hide its pods from what is outside of it (masquerading): then rules of TO see the address of \
             the pod's node, where TO is on another one",
        ),
        _ => None,
    }
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To a port.
    Port(Transport, u16),
    /// ICMP of this type and code; `None`: an echo request of the family.
    Icmp(Option<(u8, u8)>),
}

impl Asked {
    /// What a connection to an address carries.
    pub fn l4(self, destination: IpAddr, port: Option<u16>) -> L4 {
        match self {
            Self::Port(transport, asked) => L4::Ports(transport, port.unwrap_or(asked)),
            Self::Icmp(Some((type_, code))) => L4::Icmp(type_, code),
            Self::Icmp(None) => L4::Icmp(if destination.is_ipv4() { ECHO.0 } else { ECHO.1 }, 0),
        }
    }
}

/// Reads `TO:PORT[/PROTOCOL]`, `TO:icmp` or `TO:TYPE[.CODE]/icmp`.
pub fn split(text: &str) -> anyhow::Result<(&str, Asked)> {
    let help = || format!("{text:?} is not TO:PORT[/tcp|udp|sctp], TO:icmp or TO:TYPE.CODE/icmp");
    let (end, rest) = text.rsplit_once(':').with_context(help)?;
    // An IPv6 address without brackets has no port: what is behind its last colon is a part of it.
    ensure!(!end.contains(':') || end.ends_with(']'), "{}; write an IPv6 address as [ADDRESS]:PORT", help());
    let (number, protocol) = rest.split_once('/').unwrap_or((rest, if rest == "icmp" { "icmp" } else { "tcp" }));
    let transport = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        "sctp" => Transport::Sctp,
        "icmp" if number == "icmp" => return Ok((end, Asked::Icmp(None))),
        "icmp" => {
            let (type_, code) = number.split_once('.').unwrap_or((number, "0"));
            return Ok((end, Asked::Icmp(Some((type_.parse().with_context(help)?, code.parse().with_context(help)?)))));
        }
        _ => bail!(help()),
    };
    Ok((end, Asked::Port(transport, number.parse().with_context(help)?)))
}

/// Finds what `pod/NAME`, `nic/NAME`, `svc/NAME` or an address means; several places for a Service. With `asked`, it is
/// to be connected to.
pub fn places(
    inventory: &Inventory,
    index: &Index,
    namespace: &str,
    text: &str,
    asked: Option<Asked>,
) -> anyhow::Result<Vec<Place>> {
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        let cluster_ip = |service: &&Service| {
            let spec = service.spec.as_ref();
            spec.and_then(|s| s.cluster_ips.as_ref()).is_some_and(|ips| ips.contains(&address.to_string()))
        };
        return match inventory.services.iter().find(|(_, service)| cluster_ip(service)) {
            Some((name, service)) if asked.is_some() => behind(inventory, index, name, service, asked),
            _ => Ok(vec![at(index, address)]),
        };
    }
    let Some((kind, name)) = text.split_once('/') else {
        bail!("{text:?} is not pod/NAME, nic/NAME, svc/NAME or an address");
    };
    let (namespace, name) = name.split_once('/').unwrap_or((namespace, name));
    let full = NamespacedName::new(namespace, name);
    match kind {
        "svc" | "service" | "services" => {
            let service = inventory.services.get(&full).with_context(|| format!("there is no service {full}"))?;
            behind(inventory, index, &full, service, asked)
        }
        "vm" | "vmi" | "virtualmachine" | "virtualmachineinstance" => {
            let runs = |pod: &Pod| {
                let owners = pod.metadata.owner_references.iter().flatten();
                machine_of(&pod.metadata).is_some_and(|uid| owners.clone().any(|o| o.uid == uid && o.name == full.name))
            };
            let pods = inventory.pods.iter().filter(|(pod, object)| pod.namespace == full.namespace && runs(object));
            // Two while a machine is migrated.
            let live = pods.filter_map(|(pod, _)| index.pod(pod)).filter(|pod| !pod.claimed().is_empty());
            let places: Vec<Place> = live.map(|pod| Place { name: format!("vm/{full}"), ..of(pod) }).collect();
            ensure!(!places.is_empty(), "no live pod runs a virtual machine {full}");
            Ok(places)
        }
        _ => {
            let kind = match kind {
                "pods" | "po" => "pod",
                "networkinterface" | "networkinterfaces" => "nic",
                other => other,
            };
            let Some(key) = TargetName::parse(namespace, &format!("{kind}/{name}")) else {
                bail!("{text:?} is of no kind that can have groups: write pod, vm, nic or svc, and /NAME");
            };
            let target = index.target(&key).with_context(|| format!("there is no live {kind} {full}"))?;
            ensure!(
                !target.host_network,
                "{kind} {full} runs on its node's network: no group can guard it; ask about the node's address"
            );
            ensure!(!target.claimed().is_empty(), "{kind} {full} has no address yet");
            Ok(vec![of(target)])
        }
    }
}

fn of(target: &Target) -> Place {
    let name = format!("{}/{}", target.kind.short_name(), target.name);
    Place { name, target: Some(target.key()), addresses: target.claimed().iter().copied().collect(), port: None }
}

/// An address, which may be a target's.
fn at(index: &Index, address: IpAddr) -> Place {
    let claimants: Vec<&TargetName> = index.claimants(address).collect();
    match claimants.as_slice() {
        [only] => {
            let name = format!("{}/{}", only.kind.short_name(), only.name);
            Place { name, target: Some((*only).clone()), addresses: vec![address], port: None }
        }
        _ => Place { name: address.to_string(), target: None, addresses: vec![address], port: None },
    }
}

/// The pods behind a Service, and their port for the one of the Service.
fn behind(
    inventory: &Inventory,
    index: &Index,
    name: &NamespacedName,
    service: &Service,
    asked: Option<Asked>,
) -> anyhow::Result<Vec<Place>> {
    let spec = service.spec.as_ref().with_context(|| format!("service {name} has no spec"))?;
    let selector = spec.selector.clone().unwrap_or_default();
    ensure!(!selector.is_empty(), "service {name} selects no pods: ask about the addresses behind it");
    let selected = |pod: &&Target| {
        pod.name.namespace == name.namespace
            && !pod.claimed().is_empty()
            && selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    };
    let mut pods: Vec<&Target> = index.pods().filter(selected).collect();
    pods.sort_by_key(|pod| &pod.name);
    ensure!(!pods.is_empty(), "service {name} has no live pod");
    let port = match asked {
        Some(Asked::Port(transport, port)) => {
            let same = |p: &&ServicePort| {
                i32::from(port) == p.port && p.protocol.as_deref().unwrap_or("TCP") == transport.to_string()
            };
            let ports = spec.ports.iter().flatten();
            let known: Vec<String> = ports.clone().map(|p| p.port.to_string()).collect();
            let found = ports.clone().find(same);
            Some(found.with_context(|| {
                format!("service {name} has no {transport} port {port}; it has {}", known.join(", "))
            })?)
        }
        Some(Asked::Icmp(_)) => bail!("a service does not answer to ICMP: ask about its pods"),
        None => None,
    };
    let place = |pod: &&Target| {
        let real = port.map(|port| real_port(inventory.pods.get(&pod.name), port)).transpose();
        real.with_context(|| format!("service {name}")).map(|port| Place { port, ..of(pod) })
    };
    pods.iter().map(place).collect()
}

/// Rules speak of the real port of the pod (S12).
fn real_port(pod: Option<&Pod>, port: &ServicePort) -> anyhow::Result<u16> {
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let containers = pod.and_then(|pod| pod.spec.as_ref()).into_iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let found = ports.find(|p| p.name.as_ref() == Some(name));
            found.with_context(|| format!("no container has a port with the name {name}"))?.container_port
        }
    };
    u16::try_from(number).with_context(|| format!("{number} is no port"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::manifests::{bring_to_life, read};

    #[test]
    fn who_may_be_hidden_on_the_way() {
        let end = |target: Option<TargetName>, port: Option<u16>| Place {
            name: String::new(),
            target,
            addresses: Vec::new(),
            port,
        };
        let name = || NamespacedName::new("shop", "db");
        let pod = |port| end(Some(TargetName::pod(name())), port);
        let machine = || end(Some(TargetName::network_interface(name())), None);
        let says = |source: &Place, destination: &Place| masquerading(source, destination).map(|s| &s[..10]);
        assert_eq!(says(&pod(None), &pod(Some(80))), None);
        assert_eq!(says(&machine(), &pod(None)), None);
        assert_eq!(says(&machine(), &machine()), None);
        assert_eq!(says(&machine(), &pod(Some(80))), Some("kube-proxy"));
        assert_eq!(says(&end(None, None), &pod(Some(80))), Some("kube-proxy"));
        assert_eq!(says(&pod(None), &machine()), Some("the pod ne"));
    }

    #[test]
    fn ends_and_ports() {
        let tcp = |port| Asked::Port(Transport::Tcp, port);
        assert_eq!(split("pod/web-0:80").unwrap(), ("pod/web-0", tcp(80)));
        assert_eq!(split("[fd00::1]:53/udp").unwrap(), ("[fd00::1]", Asked::Port(Transport::Udp, 53)));
        assert_eq!(split("10.0.0.1:icmp").unwrap(), ("10.0.0.1", Asked::Icmp(None)));
        assert_eq!(split("10.0.0.1:13.1/icmp").unwrap(), ("10.0.0.1", Asked::Icmp(Some((13, 1)))));
        for bad in ["pod/web", "fd00::1:80", "pod/web:http", "pod/web:70000", "pod/web:80/quic", "x:300/icmp"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_machine_is_the_pod_that_runs_it() {
        let text = "
kind: Pod
metadata:
  name: virt-launcher-db-x
  ownerReferences: [{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, name: db, uid: u1, controller: true}]
";
        let mut inventory = Inventory::default();
        read(text, "shop", &mut inventory).unwrap();
        bring_to_life(&mut inventory, &["10.0.0.0/24".parse().unwrap()]).unwrap();
        let index = inventory.index();
        let found = places(&inventory, &index, "shop", "vm/db", None).unwrap();
        assert_eq!((found.len(), found[0].name.as_str()), (1, "vm/shop/db"));
        assert!(found[0].target.is_some());
        assert!(places(&inventory, &index, "shop", "vm/other", None).is_err());
    }

    #[test]
    fn a_service_is_the_pods_behind_it_at_their_own_port() {
        let text = "
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
---
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  clusterIPs: [10.96.0.1]
  ports: [{port: 80, targetPort: http}, {port: 81, targetPort: 9000}]
";
        let mut inventory = Inventory::default();
        read(text, "shop", &mut inventory).unwrap();
        bring_to_life(&mut inventory, &["10.0.0.0/24".parse().unwrap()]).unwrap();
        let index = inventory.index();
        let ports = |end: &str, port| -> Vec<Option<u16>> {
            let places = places(&inventory, &index, "shop", end, Some(Asked::Port(Transport::Tcp, port)));
            places.unwrap().iter().map(|place| place.port).collect()
        };
        assert_eq!(ports("svc/web", 80), [Some(8080), Some(8080)]);
        assert_eq!(ports("svc/shop/web", 81), [Some(9000), Some(9000)]);
        assert_eq!(ports("10.96.0.1", 80), [Some(8080), Some(8080)], "its virtual address is the same question");
        let error = |end: &str| {
            let asked = Some(Asked::Port(Transport::Tcp, 8080));
            format!("{:#}", places(&inventory, &index, "shop", end, asked).unwrap_err())
        };
        assert!(error("svc/web").contains("it has 80, 81"));
        assert!(error("pod/nobody").contains("no live pod shop/nobody"));
        assert!(error("web").contains("is not pod/NAME"));
        assert!(error("deploy/web").contains("no kind that can have groups"));
    }
}
