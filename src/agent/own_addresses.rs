//! Sees to it that nobody on this node sends with an address that is not its own (S9), guarded or not.
//!
//! Owns the `netdev` table, and says when those of [`bridges`](super::bridges) are looked at. What the node's CNI plugins said, what network interfaces declare and which devices exist makes it; the
//! pods that the API server knows tell what is missing, and what they may use beside their own addresses.

use super::Shared;
use super::announce::Announcer;
use super::attachments::Attachment;
use super::bridges::{Bridges, Guarded, Unfiltered};
use super::declared::{self, Declared, Nature, Settled};
use super::devices::{Cache, Links, links};
use super::extra_addresses::{Extra, Widest};
use super::handover::{Mover, Present};
use super::kernel::Kernel;
use super::networks;
use crate::api::ReportedInterface;
use crate::api::conditions::{OWN_ADDRESSES_ONLY, Verdict, listed};
use crate::index::{Target, TargetKind};
use crate::nft::bridge::Closed;
use crate::nft::exec::NftError;
use crate::nft::own::{Device, DeviceName, Devices, Invalid, Tunnels, Watched};
use crate::policy::NamespacedName;
use crate::runtime::{Coalescer, ReadyHandle, Reason};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use tokio::sync::watch;

/// How strict the node is about what its pods send.
#[derive(Clone, Debug, clap::Args)]
pub struct AntiSpoofing {
    /// Let pods send with their own addresses only.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub anti_spoofing: bool,
    /// IP protocols that carry packets in packets, which pods may not send; comma-separated.
    #[arg(long, default_value = "4,41")]
    pub tunnel_protocols: Numbers<u8>,
    /// UDP ports of tunnels, to which pods may not send; comma-separated.
    #[arg(long, default_value = "4789,8472,6081")]
    pub tunnel_ports: Numbers<u16>,
    /// What pods may declare beside their own addresses.
    #[command(flatten)]
    pub widest: Widest,
    /// What becomes of guarded interfaces whose bridge hands no packets to the rules: closed, nothing passes between them and
    /// other ports of that bridge; open, everything does, and conditions say so.
    #[arg(long, value_enum, default_value_t = Unfiltered::Closed)]
    pub unfiltered_bridges: Unfiltered,
    /// Folder in which the container runtime keeps the results of CNI plugins.
    #[arg(long, default_value = "/var/lib/cni")]
    pub cni_cache: PathBuf,
}

/// Numbers with commas between them, or none.
#[derive(Clone, Debug)]
pub struct Numbers<T>(Vec<T>);

impl<T: FromStr> FromStr for Numbers<T> {
    type Err = T::Err;

    fn from_str(list: &str) -> Result<Self, T::Err> {
        let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// What is to be said of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Of its pods.
    pub verdict: Verdict,
    /// Of its network interfaces.
    pub interfaces: Vec<ReportedInterface>,
}

/// The only one who decides what is committed to the `netdev` table.
pub struct OwnAddresses {
    enabled: bool,
    tunnels: Tunnels,
    /// What the runtime remembers, also of pods that were there before the agent.
    cache: Cache,
    state: Shared,
    kernel: Kernel<Watched>,
    bridges: Bridges,
    announcer: Announcer,
    told: Told,
}

/// Who is told what.
pub struct Told {
    /// Who makes rules: that pods are attached to other networks than before.
    pub dirty: Arc<Coalescer>,
    /// Who makes the first rules: that the networks of pods are known.
    pub networks: ReadyHandle,
    /// Who reports: what is to be said of this node.
    pub said: watch::Sender<Option<Said>>,
    /// Who waits at the gate: up to where it is true, by the revision of the attachments.
    pub settled: watch::Sender<u64>,
    /// Who hands connections over: the machines that are here.
    pub present: watch::Sender<Present>,
}

impl OwnAddresses {
    /// Nothing is done yet.
    pub fn new(
        args: &AntiSpoofing,
        state: Shared,
        kernel: Kernel<Watched>,
        bridges: Kernel<Closed>,
        announcer: Announcer,
        told: Told,
    ) -> Self {
        let AntiSpoofing { anti_spoofing, tunnel_protocols, tunnel_ports, widest: _, unfiltered_bridges, cni_cache } =
            args;
        let bridges = Bridges::new(*unfiltered_bridges, bridges);
        state.lock().bridges_are_to_be_closed = bridges.are_closed();
        Self {
            enabled: *anti_spoofing,
            tunnels: Tunnels::new(tunnel_protocols.0.iter().copied(), tunnel_ports.0.iter().copied()),
            cache: Cache::new(cni_cache),
            state,
            kernel,
            bridges,
            announcer,
            told,
        }
    }

    /// One round: from what is attached now to a commit and a verdict on it.
    pub async fn run(&mut self, reason: Reason) -> Result<(), NftError> {
        // What is attached was there before, so its device is among those that are there after.
        let (revision, told): (u64, Vec<Attachment>) = {
            let attachments = &self.state.lock().attachments;
            (attachments.revision(), attachments.attached().cloned().collect())
        };
        self.cache.read();
        let links = links()?;
        let mut attachments = self.cache.attachments(&links);
        // The gate knows best, so it comes last.
        attachments.extend(told);
        if !self.enabled {
            let (_, mut interfaces) = self.declared(&links, &Devices::new());
            let closing = self.close_bridges(&attachments, &links, &mut interfaces, reason, revision).await;
            self.kernel.remove().await?;
            let why = "anti-spoofing is switched off";
            interfaces.iter_mut().for_each(|interface| interface.not_watched(why));
            self.say(false, "Disabled", format!("pods may send with any address: {why}"), interfaces);
            self.told.settled.send_replace(revision);
            return closing;
        }
        let Desired { devices, mut unknown, refused } = {
            let state = self.state.lock();
            let residents = state.index.pods().filter(|pod| !pod.host_network).map(|pod| Resident {
                name: &pod.name,
                addresses: pod.claimed(),
                extra: state.extra_addresses(pod),
                leaving: pod.terminating,
            });
            desired(attachments.iter().cloned(), &links, residents)
        };
        let (declared, mut interfaces) = self.declared(&links, &devices);
        let closing = self.close_bridges(&attachments, &links, &mut interfaces, reason, revision).await;
        let of_pods = devices.len();
        let devices = devices.into_iter().chain(declared).collect();
        let mut watched = Watched { tunnels: self.tunnels.clone(), devices };
        let outcome = match self.kernel.enforce(watched.clone(), reason == Reason::Periodic).await {
            // Only the kernel's own "no" is about what was asked; all else is about the moment.
            Err(NftError::Refused(message)) if reason == Reason::Retry => {
                tracing::error!(%message, "the kernel refused the devices, looking for the one at fault");
                for (device, message) in self.leave_out_refused(&mut watched).await {
                    let concerned = interfaces.iter_mut().filter(|settled| settled.device.as_ref() == Some(&device));
                    concerned.for_each(|interface| interface.not_watched(&message));
                    unknown.push(message);
                }
                self.kernel.enforce(watched.clone(), false).await
            }
            outcome => outcome,
        };
        let damage = match outcome {
            Ok(damage) => damage,
            Err(error) => {
                interfaces.iter_mut().for_each(|interface| interface.not_watched(&error.to_string()));
                self.say(false, "NotCommitted", error.to_string(), interfaces);
                return Err(error);
            }
        };
        if unknown.is_empty() {
            // A declaration that is refused opens nothing: the node is what it should be.
            let refused = if refused.is_empty() { String::new() } else { format!("; refused: {}", listed(refused)) };
            self.say(true, "Enforced", format!("{of_pods} devices of pods are watched{refused}"), interfaces);
        } else {
            self.say(false, "DeviceUnknown", listed(unknown), interfaces);
        }
        self.told.settled.send_replace(revision);
        if let Some(damage) = damage {
            self.announcer.repaired(damage);
        }
        closing
    }

    /// Closes guarded interfaces whose bridge hands no packets to the rules, and says so of them, and of networks. What comes of
    /// it is for the end of a round: all else is to be done whatever comes of it.
    async fn close_bridges(
        &mut self,
        attachments: &[Attachment],
        links: &Links,
        interfaces: &mut [Settled],
        reason: Reason,
        revision: u64,
    ) -> Result<(), NftError> {
        let guarded = Guarded::find(&self.state.lock().index, attachments, interfaces, links);
        let outcome = self.bridges.close(&guarded, reason == Reason::Periodic).await;
        let closed = outcome.is_ok() && self.bridges.are_closed();
        if std::mem::replace(&mut self.state.lock().bridges_are_closed, closed) != closed {
            self.told.dirty.notify();
        }
        interfaces.iter_mut().filter(|settled| self.bridges.closes(&settled.declared)).for_each(Settled::closed);
        self.look_at_networks(attachments, links, revision);
        if let Some(damage) = outcome? {
            self.announcer.repaired(damage);
        }
        Ok(())
    }

    /// Takes out the devices that the kernel refuses, each tried alone, and says which (S13).
    async fn leave_out_refused(&self, watched: &mut Watched) -> Vec<(DeviceName, String)> {
        let mut refused = Vec::new();
        for (name, device) in watched.devices.clone() {
            let alone = Watched { devices: [(name.clone(), device)].into(), ..watched.clone() };
            if let Some(message) = self.kernel.refuses(&alone).await {
                watched.devices.remove(&name);
                let message = format!("the kernel refuses to watch device {name}: {message}");
                refused.push((name, message));
            }
        }
        refused
    }

    /// Says how pods are attached to secondary networks in this revision of the attachments, for rules to be made of it.
    fn look_at_networks(&self, attachments: &[Attachment], links: &Links, revision: u64) {
        let (pods, attachments): (Vec<Target>, Vec<Attachment>) = {
            let state = self.state.lock();
            let pods: Vec<Target> = state.index.pods().filter(|pod| !pod.networks.is_empty()).cloned().collect();
            let concerned = attachments.iter().filter(|attachment| pods.iter().any(|pod| pod.name == attachment.pod));
            // The runtime remembers an attachment until its device is gone, and whoever gives it back tells us before.
            let there = concerned.filter(|attachment| !state.attachments.has_ended(attachment)).cloned().collect();
            (pods, there)
        };
        let devices = attachments.iter().filter_map(|attachment| attachment.device.as_deref());
        let devices: Vec<&str> = devices.filter(|device| links.contains_key(*device)).collect();
        let devices = if devices.is_empty() { BTreeMap::new() } else { Nature::read(devices.into_iter()) };
        let closes = |device: &str| self.bridges.closes(device);
        let mut state = self.state.lock();
        let has_left = |pod: &Target, interface: &str| state.attachments.has_left(pod, interface);
        let networks = networks::of_pods(pods.iter(), &attachments, &devices, has_left, closes);
        if state.set_networks(revision, networks, |device| links.contains_key(device)) {
            self.told.dirty.notify();
        }
        self.told.networks.set_ready(true);
    }

    /// The devices of network interfaces, and what is to be said of those.
    fn declared(&self, links: &Links, of_pods: &Devices) -> (Devices, Vec<Settled>) {
        let declared: Vec<Declared> = {
            let state = self.state.lock();
            let interfaces = state.index.of_kind(TargetKind::NetworkInterface);
            let declared = interfaces.filter_map(|target| {
                let (device, addresses) = (target.device.clone()?, state.own_addresses(target).collect());
                Some(Declared { target: target.clone(), device, addresses })
            });
            declared.collect()
        };
        let mut present = self.state.lock().running();
        let interfaces = declared
            .iter()
            .map(|declared| (Mover { name: declared.target.name.clone(), machine: None }, declared.addresses.clone()));
        present.extend(interfaces);
        let names = declared.iter().map(|declared| declared.device.name.as_str());
        let natures = Nature::read(names.filter(|name| links.contains_key(*name)));
        let (devices, settled) = declared::settle(declared, links, &natures, of_pods);
        for settled in settled.iter().filter(|settled| settled.device.is_none()) {
            let name = NamespacedName::new(&settled.said.namespace, &settled.said.name);
            present.remove(&Mover { name, machine: None });
        }
        self.told.present.send_if_modified(|before| {
            let news = *before != present;
            *before = present;
            news
        });
        (devices, settled)
    }

    fn say(&self, status: bool, reason: &'static str, message: String, interfaces: Vec<Settled>) {
        let verdict = Verdict { type_: OWN_ADDRESSES_ONLY, status, reason, message };
        let interfaces = interfaces.into_iter().map(|interface| interface.said).collect();
        let now = Some(Said { verdict, interfaces });
        self.told.said.send_if_modified(|said| {
            let news = *said != now;
            *said = now;
            news
        });
    }
}

/// What should be in the kernel, and what cannot be, in words.
#[derive(Debug, Default, PartialEq, Eq)]
struct Desired {
    devices: Devices,
    unknown: Vec<String>,
    /// Extra addresses that pods declare and do not get.
    refused: Vec<String>,
}

/// A pod of this node, as the API server knows it.
struct Resident<'a> {
    name: &'a NamespacedName,
    addresses: &'a BTreeSet<IpAddr>,
    extra: Extra,
    /// Of a terminating pod the device goes before the object does.
    leaving: bool,
}

/// The devices to watch. Of attachments to the same device the last counts: the others' sandboxes are gone.
fn desired<'a>(
    attachments: impl IntoIterator<Item = Attachment>,
    links: &Links,
    residents: impl IntoIterator<Item = Resident<'a>>,
) -> Desired {
    let residents: BTreeMap<&NamespacedName, Resident> = residents.into_iter().map(|r| (r.name, r)).collect();
    let mut latest: BTreeMap<String, Attachment> = BTreeMap::new();
    for attachment in attachments {
        // What is not there is of no pod that runs.
        if let Some(device) = attachment.device.as_ref().filter(|device| links.contains_key(*device)) {
            latest.insert(device.clone(), attachment);
        }
    }
    let mut desired = Desired::default();
    let mut watched: BTreeSet<(NamespacedName, IpAddr)> = BTreeSet::new();
    for (name, attachment) in latest {
        let Attachment { pod, uid: _, container_id: _, interface, network: _, device: _, mac, mut addresses } =
            attachment;
        if addresses.is_empty() {
            // Closing a network because it gives no addresses would break what nobody asked Ringfence to guard.
            desired.unknown.push(format!("{pod} has no known address on {interface}, so it may use any there"));
            continue;
        }
        let own: Vec<IpAddr> = addresses.iter().copied().collect();
        // On the interface that the pod's status speaks of, and not on those of other networks.
        if let Some(resident) = residents.get(&pod).filter(|resident| !resident.addresses.is_disjoint(&addresses)) {
            addresses.extend(&resident.extra.addresses);
        }
        match parse(&name, links[&name].index, &addresses, mac.as_deref()) {
            Ok((name, device)) => {
                watched.extend(own.into_iter().map(|address| (pod.clone(), address)));
                desired.devices.insert(name, device);
            }
            Err(invalid) => desired.unknown.push(format!("{pod}: {invalid}")),
        }
    }
    for (pod, Resident { name: _, addresses, extra, leaving }) in residents {
        desired.refused.extend(extra.refused);
        if leaving {
            continue;
        }
        let missing: Vec<&IpAddr> = addresses.iter().filter(|a| !watched.contains(&(pod.clone(), **a))).collect();
        if !missing.is_empty() {
            desired.unknown.push(format!("no device is known that leads to {pod} at {}", listed(missing)));
        }
    }
    desired
}

fn parse(
    name: &str,
    index: u32,
    addresses: &BTreeSet<IpAddr>,
    mac: Option<&str>,
) -> Result<(DeviceName, Device), Invalid> {
    let mac = mac.map(str::parse).transpose()?;
    Ok((name.parse()?, Device { index, addresses: addresses.clone(), mac }))
}

#[cfg(test)]
mod tests {
    use super::super::devices::{Kind, Link};
    use super::*;

    fn attachment(pod: &str, device: Option<&str>, addresses: &[&str]) -> Attachment {
        Attachment {
            pod: NamespacedName::new("shop", pod),
            uid: String::new(),
            container_id: String::new(),
            interface: "eth0".into(),
            network: None,
            device: device.map(str::to_owned),
            mac: Some("02:00:00:00:00:01".into()),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn links(names: &[&str]) -> Links {
        names.iter().zip(1..).map(|(name, index)| ((*name).to_owned(), Link { index, kind: Kind::Pair })).collect()
    }

    fn resident<'a>(name: &'a NamespacedName, addresses: &'a BTreeSet<IpAddr>) -> Resident<'a> {
        Resident { name, addresses, extra: Extra::default(), leaving: false }
    }

    fn watched(desired: &Desired) -> Vec<(String, Vec<String>)> {
        let addresses = |device: &Device| device.addresses.iter().map(ToString::to_string).collect();
        desired.devices.iter().map(|(name, device)| (name.to_string(), addresses(device))).collect()
    }

    #[test]
    fn the_last_to_get_a_device_has_it() {
        let of = [attachment("old", Some("a"), &["10.0.0.1"]), attachment("new", Some("a"), &["10.0.0.2"])];
        let desired = desired(of, &links(&["a"]), []);
        assert_eq!(watched(&desired), [("a".to_owned(), vec!["10.0.0.2".to_owned()])]);
        assert!(desired.unknown.is_empty());
    }

    #[test]
    fn extra_addresses_are_for_the_interface_that_the_status_speaks_of() {
        let of = [attachment("db", Some("a"), &["10.0.0.1"]), attachment("db", Some("b"), &["192.168.0.1"])];
        let (name, addresses) = (NamespacedName::new("shop", "db"), ["10.0.0.1".parse().unwrap()].into());
        let extra = Extra { addresses: ["10.0.0.9".parse().unwrap()].into(), refused: vec!["no".into()] };
        let desired = desired(of, &links(&["a", "b"]), [Resident { extra, ..resident(&name, &addresses) }]);
        let addresses = |list: &[&str]| list.iter().map(|a| (*a).to_owned()).collect();
        assert_eq!(
            watched(&desired),
            [("a".to_owned(), addresses(&["10.0.0.1", "10.0.0.9"])), ("b".to_owned(), addresses(&["192.168.0.1"]))]
        );
        assert_eq!(desired.refused, ["no"]);
    }

    #[test]
    fn what_cannot_be_watched_is_said_and_holds_nothing_else_up() {
        let of = [
            attachment("good", Some("a"), &["10.0.0.1", "fd00::1"]),
            attachment("gone", Some("b"), &["10.0.0.2"]),
            attachment("deviceless", None, &["10.0.0.3"]),
            attachment("addressless", Some("c"), &[]),
            Attachment { mac: Some("?".into()), ..attachment("odd", Some("d"), &["10.0.0.4"]) },
        ];
        let pods = ["good", "gone", "elsewhere"].map(|pod| NamespacedName::new("shop", pod));
        let claimed: [BTreeSet<IpAddr>; 3] = [
            ["10.0.0.1", "fd00::1"].map(|a| a.parse().unwrap()).into(),
            ["10.0.0.2".parse().unwrap()].into(),
            [].into(),
        ];
        let residents = pods.iter().zip(&claimed).map(|(name, addresses)| resident(name, addresses));
        let desired = desired(of, &links(&["a", "c", "d"]), residents);
        assert_eq!(watched(&desired), [("a".to_owned(), vec!["10.0.0.1".to_owned(), "fd00::1".to_owned()])]);
        assert_eq!(
            desired.unknown,
            [
                "shop/addressless has no known address on eth0, so it may use any there",
                "shop/odd: \"?\" is no link address like 02:00:00:00:00:01",
                "no device is known that leads to shop/gone at 10.0.0.2",
            ]
        );
    }

    #[test]
    fn lists_of_numbers() {
        let parse = |list: &str| list.parse::<Numbers<u8>>().map(|numbers| numbers.0);
        assert_eq!(parse("4, 41"), Ok(vec![4, 41]));
        assert_eq!(parse(""), Ok(vec![]));
        assert!(parse("4,256").is_err());
    }
}
