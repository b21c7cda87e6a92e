//! Does the traffic of this node's pods pass the hooks we listen on? What does not is not guarded, and must be said.
//!
//! Reads /proc and /sys only. What it can recognise: pods behind a bridge without br_netfilter, and kube-proxy in IPVS mode.

use super::routes::Routes;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

/// What is wrong, in words that say what to do; nothing, if nothing is known to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// What passes around the rules.
    pub bypassed: Vec<String>,
    /// What would, and does not pass at all.
    pub closed: Vec<String>,
}

/// What is wrong for these guarded addresses, where what bridges do not hand to the rules passes them, or is closed.
pub fn problems(addresses: impl IntoIterator<Item = IpAddr>, bridges_are_closed: bool) -> Problems {
    let routes = Routes::read();
    let mut problems = Problems::default();
    let mut bridges: Vec<(String, bool)> = addresses
        .into_iter()
        .filter_map(|address| Some((routes.device(address)?.to_owned(), address.is_ipv4())))
        .filter(|(device, _)| Path::new("/sys/class/net").join(device).join("bridge").exists())
        .collect();
    bridges.sort();
    bridges.dedup();
    for (bridge, v4) in bridges {
        let key = if v4 { "bridge-nf-call-iptables" } else { "bridge-nf-call-ip6tables" };
        if !is_on(format!("/proc/sys/net/bridge/{key}")) {
            let kind = if bridges_are_closed { &mut problems.closed } else { &mut problems.bypassed };
            kind.push(format!(
                "pods are attached to bridge {bridge}, which hands no packets to the rules: load br_netfilter and set net.bridge.{key}=1"
            ));
        }
    }
    if Path::new("/sys/class/net/kube-ipvs0").exists() {
        problems.bypassed.push(
            "kube-proxy runs in IPVS mode, which takes Service traffic between pods of one node around the forward hook: use its nftables or iptables mode".to_owned(),
        );
    }
    problems
}

/// Whether a file of the kernel's says 1.
pub fn is_on(knob: impl AsRef<Path>) -> bool {
    fs::read_to_string(knob).is_ok_and(|value| value.trim() == "1")
}
