//! What `NetworkInterface`s declare of this node's devices, and what becomes of it.
//!
//! PURE, but for the reading of what a device is. What people declare is believed about a device that can only lead to one
//! machine, and about no other: it takes nothing from a pod, and cannot cut the node itself off.

use super::bridges::{FILTER_BRIDGES, filtered};
use super::data_path::is_on;
use super::devices::{Kind, Links};
use super::routes::Routes;
use crate::api::{DeviceState, ReportedInterface};
use crate::index::{DeclaredDevice, Target};
use crate::nft::own::{Device, DeviceName, Devices};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

/// A network interface as it is declared, with the addresses that are its own.
pub struct Declared {
    /// The object.
    pub target: Target,
    /// The device that it names.
    pub device: DeclaredDevice,
    /// What may come out of its device, beside link-local addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// What else there is to know of a device before it is believed to lead to a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nature {
    /// It carries Ethernet.
    pub ethernet: bool,
    /// The node's default route leads through it.
    pub uplink: bool,
    /// It stands on another device, as a macvtap does: its traffic goes around the node.
    pub stacked: bool,
    /// It is a port of a bridge, and the bridge hands IPv4 and IPv6 to the rules.
    pub bridged: Option<[bool; 2]>,
}

impl Nature {
    /// Of these devices, as far as they are there.
    pub fn read<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<String, Self> {
        let routes = Routes::read();
        names.map(|name| (name.to_owned(), Self::of(name, &routes))).collect()
    }

    fn of(name: &str, routes: &Routes) -> Self {
        let folder = Path::new("/sys/class/net").join(name);
        Self {
            ethernet: is_on(folder.join("type")),
            uplink: routes.is_uplink(name),
            stacked: fs::read_dir(&folder).into_iter().flatten().flatten().any(|entry| is_lower(&entry)),
            bridged: filtered(&folder),
        }
    }
}

fn is_lower(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with("lower_")
}

/// What becomes of a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The device that is to be watched for it.
    pub device: Option<DeviceName>,
    /// The name that it declares, whatever has that name.
    pub declared: String,
    /// What is to be said of it.
    pub said: ReportedInterface,
}

impl Settled {
    /// The same, where what its bridge does not hand to the rules does not pass.
    pub fn closed(&mut self) {
        if self.said.state == DeviceState::BridgeNotFiltered {
            self.said.state = DeviceState::Closed;
            self.said.message += CLOSED;
        }
    }

    /// The same, where what would be watched is not.
    pub fn not_watched(&mut self, why: &str) {
        if self.said.state == DeviceState::Watched {
            self.said.state = DeviceState::NotWatched;
            self.said.message = format!("it may send with any address: {why}").chars().take(1000).collect();
        }
    }
}

/// What becomes of what passes no rules, where it is not to pass.
pub const CLOSED: &str = "; until then nothing passes from and to the other ports of that bridge";

/// The devices to watch, beside those of pods, and what becomes of every interface.
pub fn settle(
    mut declared: Vec<Declared>,
    links: &Links,
    natures: &BTreeMap<String, Nature>,
    of_pods: &Devices,
) -> (Devices, Vec<Settled>) {
    declared.sort_by(|a, b| a.target.name.cmp(&b.target.name));
    let (mut devices, mut settled) = (Devices::new(), Vec::new());
    for Declared { target, device: declared, addresses } in declared {
        let (device, (state, message)) = match find(&declared, addresses, links, natures) {
            Ok((name, _)) if of_pods.contains_key(&name) => {
                (None, (DeviceState::DeviceInUse, format!("{name} leads to a pod")))
            }
            Ok((name, _)) if devices.contains_key(&name) => {
                let message = format!("another NetworkInterface declares {name} too, and comes first");
                (None, (DeviceState::DeviceInUse, message))
            }
            Ok((name, device)) => {
                let said = passage(&target, &name, natures);
                devices.insert(name.clone(), device);
                (Some(name), said)
            }
            Err(said) => (None, said),
        };
        let said = ReportedInterface {
            namespace: target.name.namespace,
            name: target.name.name,
            uid: target.uid,
            generation: target.generation,
            state,
            message,
        };
        settled.push(Settled { device, declared: declared.name, said });
    }
    (devices, settled)
}

/// The device of an interface, if it is one that can lead to one machine.
fn find(
    declared: &DeclaredDevice,
    mut addresses: BTreeSet<IpAddr>,
    links: &Links,
    natures: &BTreeMap<String, Nature>,
) -> Result<(DeviceName, Device), (DeviceState, String)> {
    let device = &declared.name;
    let unsuitable = |why: &str| (DeviceState::DeviceUnsuitable, format!("{device} {why}"));
    let Some(link) = links.get(device) else {
        let message = format!("there is no device {device} on this node; its addresses are guarded all the same");
        return Err((DeviceState::DeviceNotFound, message));
    };
    let nature = natures.get(device).copied().unwrap_or_default();
    if link.kind == Kind::Other {
        return Err(unsuitable(
            "is a bridge, a VLAN, hardware or the like: name the tap or veth device of the machine",
        ));
    }
    if nature.uplink {
        return Err(unsuitable("is the node's own: its default route leads through it"));
    }
    if nature.stacked {
        return Err(unsuitable(
            "stands on another device, like a macvtap: what passes it passes no rules of this node",
        ));
    }
    if !nature.ethernet {
        return Err(unsuitable("does not carry Ethernet: name a tap, not a tun device"));
    }
    let (name, mac) = (device.parse(), declared.mac.parse());
    let (Ok(name), Ok(mac)) = (name, mac) else {
        return Err(unsuitable("or its link address is none that can be watched"));
    };
    addresses.extend(&declared.link_local);
    Ok((name, Device { index: link.index, addresses, mac: Some(mac) }))
}

/// Whether what passes a device that is watched passes the rules.
fn passage(target: &Target, name: &DeviceName, natures: &BTreeMap<String, Nature>) -> (DeviceState, String) {
    let has = |family: fn(&IpAddr) -> bool| target.claimed().iter().any(family);
    let bridged = natures.get(&name.to_string()).and_then(|nature| nature.bridged);
    match bridged {
        Some([v4, v6]) if has(IpAddr::is_ipv4) && !v4 || has(IpAddr::is_ipv6) && !v6 => {
            let message = format!("the bridge of {name} hands no packets to the rules: {FILTER_BRIDGES}");
            (DeviceState::BridgeNotFiltered, message)
        }
        _ => (DeviceState::Watched, format!("nothing but what it declares comes out of {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::devices::Link;
    use super::*;
    use crate::api::NetworkInterface;
    use serde_json::json;

    fn interface(name: &str, device: &str, addresses: &[&str]) -> Target {
        let interface: NetworkInterface = serde_json::from_value(json!({
            "apiVersion": "ringfence.io/v1alpha1",
            "kind": "NetworkInterface",
            "metadata": { "name": name, "namespace": "shop", "uid": name, "generation": 3 },
            "spec": { "nodeName": "n1", "device": device, "macAddress": "52:54:00:00:00:01", "addresses": addresses },
        }))
        .unwrap();
        Target::from(&interface)
    }

    const TAP: Nature = Nature { ethernet: true, uplink: false, stacked: false, bridged: None };

    fn settled(targets: &[Target], devices: &[(&str, Kind, Nature)]) -> (Devices, Vec<(DeviceState, String)>) {
        let named = |name: &str| name.to_owned();
        let links = devices.iter().zip(1..).map(|((name, kind, _), index)| (named(name), Link { index, kind: *kind }));
        let natures = devices.iter().map(|(name, _, nature)| (named(name), *nature)).collect();
        let of_pods = Devices::from([("veth1".parse().unwrap(), Device::default())]);
        let declared = targets.iter().map(|target| Declared {
            device: target.device.clone().unwrap(),
            addresses: target.claimed().clone(),
            target: target.clone(),
        });
        let (devices, said) = settle(declared.collect(), &links.collect(), &natures, &of_pods);
        (devices, said.into_iter().map(|settled| (settled.said.state, settled.said.message)).collect())
    }

    fn refused(device: (&str, Kind, Nature)) -> (DeviceState, String) {
        let (devices, said) = settled(&[interface("db", device.0, &["10.20.0.5"])], &[device]);
        assert!(devices.is_empty(), "{devices:?}");
        said.into_iter().next().unwrap()
    }

    #[test]
    fn a_tap_is_watched_with_all_that_is_declared() {
        let (devices, said) =
            settled(&[interface("db", "tap0", &["10.20.0.5", "fd00::5", "fe80::5"])], &[("tap0", Kind::Plain, TAP)]);
        let device = &devices[&"tap0".parse().unwrap()];
        let addresses: Vec<String> = device.addresses.iter().map(ToString::to_string).collect();
        assert_eq!((device.index, addresses.join(" ")), (1, "10.20.0.5 fd00::5 fe80::5".to_owned()));
        assert_eq!(device.mac.unwrap().to_string(), "52:54:00:00:00:01");
        assert_eq!(said, [(DeviceState::Watched, "nothing but what it declares comes out of tap0".to_owned())]);
    }

    #[test]
    fn what_cannot_lead_to_one_machine_is_left_alone() {
        assert_eq!(refused(("br0", Kind::Other, TAP)).0, DeviceState::DeviceUnsuitable);
        assert_eq!(refused(("eth0", Kind::Pair, Nature { uplink: true, ..TAP })).0, DeviceState::DeviceUnsuitable);
        assert_eq!(refused(("macvtap0", Kind::Pair, Nature { stacked: true, ..TAP })).0, DeviceState::DeviceUnsuitable);
        assert_eq!(refused(("tun0", Kind::Plain, Nature { ethernet: false, ..TAP })).0, DeviceState::DeviceUnsuitable);
        assert_eq!(refused(("veth1", Kind::Pair, TAP)), (DeviceState::DeviceInUse, "veth1 leads to a pod".to_owned()));
    }

    #[test]
    fn one_that_is_not_there_or_anothers_waits() {
        let two = [interface("a", "tap0", &["10.20.0.5"]), interface("b", "tap0", &["10.20.0.6"])];
        let (devices, said) = settled(&two, &[("tap0", Kind::Plain, TAP)]);
        assert_eq!((devices.len(), said[0].0, said[1].0), (1, DeviceState::Watched, DeviceState::DeviceInUse));
        let (devices, said) = settled(&two[..1], &[]);
        assert_eq!((devices.len(), said[0].0), (0, DeviceState::DeviceNotFound));
    }

    #[test]
    fn a_bridge_that_hands_nothing_over_is_told_and_its_port_is_watched() {
        let on = |families| [("tap0", Kind::Plain, Nature { bridged: Some(families), ..TAP })];
        let both = [interface("db", "tap0", &["10.20.0.5", "fd00::5"])];
        let only_v4 = [interface("db", "tap0", &["10.20.0.5"])];
        let state = |targets: &[Target], families| {
            let (devices, said) = settled(targets, &on(families));
            assert_eq!(devices.len(), 1);
            said[0].0
        };
        assert_eq!(state(&both, [true, true]), DeviceState::Watched);
        assert_eq!(state(&both, [true, false]), DeviceState::BridgeNotFiltered);
        assert_eq!(state(&only_v4, [true, false]), DeviceState::Watched);
        assert_eq!(state(&only_v4, [false, true]), DeviceState::BridgeNotFiltered);
        let said = |state| {
            let Target { name, uid, generation, .. } = both[0].clone();
            let (namespace, name, message) = (name.namespace, name.name, "so".to_owned());
            let said = ReportedInterface { namespace, name, uid, generation, state, message };
            let mut settled = Settled { device: None, declared: "tap0".into(), said };
            settled.closed();
            (settled.said.state, settled.said.message)
        };
        let closed = said(DeviceState::BridgeNotFiltered);
        assert_eq!(closed, (DeviceState::Closed, format!("so{CLOSED}")));
        assert_eq!(said(DeviceState::Watched).0, DeviceState::Watched);
    }
}
