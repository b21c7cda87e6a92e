//! Sees to it that a guarded interface passes nothing that no rule has judged, where its bridge hands no packets to the rules.
//!
//! Owns the `bridge` table. Whether a bridge hands packets over is the node's to decide, and may change at any moment.

use super::attachments::Attachment;
use super::data_path::is_on;
use super::declared::Settled;
use super::devices::Links;
use super::kernel::{Damage, Kernel};
use crate::api::DeviceState;
use crate::index::{Index, TargetName};
use crate::nft::bridge::Closed;
use crate::nft::exec::NftError;
use crate::nft::own::DeviceName;
use crate::policy::NamespacedName;
use crate::runtime::{Coalescer, Shutdown};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What to do about a bridge that hands no packets to the rules.
pub const FILTER_BRIDGES: &str = "load br_netfilter, and set net.bridge.bridge-nf-call-iptables and \
    net.bridge.bridge-nf-call-ip6tables to 1";

/// Of these two settings the kernel tells nobody.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What becomes of guarded interfaces whose bridge hands no packets to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Unfiltered {
    /// Nothing passes between them and the other ports of the bridge.
    Closed,
    /// Everything does, and conditions say so.
    Open,
}

/// Whether all bridges hand packets to the rules, whatever each of them is told: IPv4 and IPv6.
fn all_filtered() -> [bool; 2] {
    ["iptables", "ip6tables"].map(|word| is_on(format!("/proc/sys/net/bridge/bridge-nf-call-{word}")))
}

/// Whether the bridge that a device is a port of does, given what all do; `None`: it is a port of none.
pub fn filtered(device: &Path) -> Option<[bool; 2]> {
    let bridge = device.join("brport/bridge");
    let own = |word: &str| is_on(bridge.join(format!("bridge/nf_call_{word}")));
    let [v4, v6] = all_filtered();
    bridge.exists().then(|| [v4 || own("iptables"), v6 || own("ip6tables")])
}

/// Wakes them up when all bridges are told otherwise. Of single bridges the kernel tells, as of other devices.
pub async fn follow(told: [Arc<Coalescer>; 2], shutdown: Shutdown) {
    let follow = async {
        let mut before = all_filtered();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = all_filtered();
            if std::mem::replace(&mut before, now) != now {
                told.iter().for_each(|told| told.notify());
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = shutdown.signalled() => {}
    }
}

/// The only one who decides what is committed to the `bridge` table.
pub struct Bridges {
    unfiltered: Unfiltered,
    kernel: Kernel<Closed>,
    /// What is closed, as far as it is known.
    closed: Closed,
    /// There is no table.
    none: bool,
}

impl Bridges {
    /// Nothing is done yet.
    pub fn new(unfiltered: Unfiltered, kernel: Kernel<Closed>) -> Self {
        Self { unfiltered, kernel, closed: Closed::default(), none: false }
    }

    /// Whether it is meant to be.
    pub fn are_closed(&self) -> bool {
        self.unfiltered == Unfiltered::Closed
    }

    /// Closes what is guarded and not filtered, and nothing else. With `compare`, damage is looked for.
    pub async fn close(&mut self, guarded: &Guarded, compare: bool) -> Result<Option<Damage>, NftError> {
        let closed = match self.unfiltered {
            Unfiltered::Closed => guarded.unfiltered(),
            Unfiltered::Open => Closed::default(),
        };
        // Whatever fails on the way, nothing is called closed that may not be.
        self.closed = Closed::default();
        if closed.is_empty() {
            if !self.none {
                self.kernel.remove().await?;
                self.none = true;
            }
            return Ok(None);
        }
        self.none = false;
        let outcome = self.kernel.enforce(closed.clone(), compare).await;
        match outcome {
            Ok(damage) => {
                self.closed = closed;
                Ok(damage)
            }
            // A kernel that knows no such tables: as long as nothing is bridged nothing is open.
            Err(error @ NftError::Refused(_)) if !guarded.any_bridged() => {
                tracing::debug!(%error, "cannot close bridges, and there is nothing to close");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a device passes nothing of what its bridge, when it was last looked at, did not hand to the rules.
    pub fn closes(&self, device: &str) -> bool {
        let device = device.parse::<DeviceName>();
        device.is_ok_and(|device| self.closed.v4.contains(&device) || self.closed.v6.contains(&device))
    }
}

/// The devices of guarded interfaces that can be ports.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Guarded(BTreeMap<DeviceName, Port>);

#[derive(Debug, PartialEq, Eq)]
struct Port {
    /// It is a port now.
    bridged: bool,
    /// Its bridge hands packets to the rules, or would if it had one: IPv4 and IPv6.
    filtered: [bool; 2],
}

impl Guarded {
    /// Those of pods, as the node's CNI plugins attached them, and those that network interfaces declare.
    ///
    /// A device that is declared counts before it is there, and before it is a port: what comes up on a bridge that is not
    /// filtered is closed from its first packet on.
    pub fn find(index: &Index, attachments: &[Attachment], settled: &[Settled], links: &Links) -> Self {
        let all = all_filtered();
        if all == [true, true] {
            return Self::default();
        }
        let pods = of_pods(index, attachments).into_iter().filter(|device| links.contains_key(*device));
        let ports = pods.filter_map(|device| Some((device, folder(device).and_then(|folder| filtered(&folder))?)));
        let ports = ports.map(|(device, filtered)| (device, Port { bridged: true, filtered }));
        let declared = of_interfaces(index, settled).map(|device| {
            let filtered = folder(device).and_then(|folder| filtered(&folder));
            (device, Port { bridged: filtered.is_some(), filtered: filtered.unwrap_or(all) })
        });
        // What is no name that can stand in a script cannot be closed, and is not called so.
        Self(ports.chain(declared).filter_map(|(device, port)| Some((device.parse().ok()?, port))).collect())
    }

    fn unfiltered(&self) -> Closed {
        let [v4, v6] = [0, 1].map(|family| {
            let open = self.0.iter().filter(|(_, port)| !port.filtered[family]);
            open.map(|(device, _)| device.clone()).collect()
        });
        Closed { v4, v6 }
    }

    fn any_bridged(&self) -> bool {
        self.0.values().any(|port| port.bridged)
    }
}

/// Where the kernel tells of a device, if it can have that name.
fn folder(device: &str) -> Option<PathBuf> {
    device.parse::<DeviceName>().ok().map(|device| Path::new("/sys/class/net").join(device.to_string()))
}

fn is_guarded(index: &Index, target: &TargetName) -> bool {
    index.bindings_of(target).next().is_some()
}

/// The devices of guarded interfaces of pods, on whatever network.
fn of_pods<'a>(index: &Index, attachments: &'a [Attachment]) -> BTreeSet<&'a str> {
    // Of those that had a device the last one has it.
    let latest: BTreeMap<&str, &Attachment> =
        attachments.iter().filter_map(|attachment| Some((attachment.device.as_deref()?, attachment))).collect();
    let guarded = latest.into_iter().filter(|(_, attachment)| {
        let Attachment { pod, uid, container_id: _, interface, network: _, device: _, mac: _, addresses } = attachment;
        let Some(pod) = index.pod(pod) else { return false };
        // On the interface that the pod's status speaks of, whatever annotations say of it.
        if !pod.claimed().is_disjoint(addresses) {
            return is_guarded(index, &pod.key());
        }
        let on = pod.networks.get(interface).filter(|_| pod.uid == *uid);
        on.is_some_and(|on| is_guarded(index, &TargetName { network: Some(on.network.clone()), ..pod.key() }))
    });
    guarded.map(|(device, _)| device).collect()
}

/// Those of guarded network interfaces, there or not.
fn of_interfaces<'a>(index: &Index, settled: &'a [Settled]) -> impl Iterator<Item = &'a str> {
    settled.iter().filter_map(|Settled { device, declared, said }| {
        let is_its = device.is_some() || said.state == DeviceState::DeviceNotFound;
        let name = TargetName::network_interface(NamespacedName::new(&said.namespace, &said.name));
        Some(declared.as_str()).filter(|_| is_its && is_guarded(index, &name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(bridged: bool, filtered: [bool; 2]) -> Port {
        Port { bridged, filtered }
    }

    #[test]
    fn each_family_is_closed_by_itself() {
        let guarded = [
            ("both", port(true, [false, false])),
            ("none", port(true, [true, true])),
            ("six", port(true, [true, false])),
            ("later", port(false, [false, true])),
        ];
        let guarded = Guarded(guarded.map(|(name, port)| (name.parse().unwrap(), port)).into());
        let names = |devices: BTreeSet<DeviceName>| devices.iter().map(ToString::to_string).collect::<Vec<_>>();
        let Closed { v4, v6 } = guarded.unfiltered();
        assert_eq!(
            (names(v4), names(v6)),
            (vec!["both".to_owned(), "later".into()], vec!["both".into(), "six".into()])
        );
        assert!(guarded.any_bridged() && !Guarded::default().any_bridged());
    }
}
