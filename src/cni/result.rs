//! What the plugins before us made: the pod's addresses, and the devices at both ends.

use super::{Error, code};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The part of a result that concerns us; the same in every version of CNI that has chains.
#[derive(Deserialize)]
struct Made {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    mac: String,
    /// Empty: on the node's side.
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    interface: Option<usize>,
}

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub struct Attached {
    pub addresses: BTreeSet<IpAddr>,
    pub device: Option<String>,
    pub mac: Option<String>,
}

pub fn attached(result: &Value, interface: &str) -> Result<Attached, Error> {
    let Made { interfaces, ips } = Made::deserialize(result)
        .map_err(|error| Error::new(code::INVALID_CONFIG, format!("cannot read prevResult: {error}")))?;
    let in_pod = |i: &Interface| !i.sandbox.is_empty();
    let own = interfaces.iter().position(|i| in_pod(i) && i.name == interface);
    // An address without an interface is the pod's: some plugins list none, or the node's side alone.
    let is_own = |ip: &Ip| ip.interface.and_then(|i| interfaces.get(i)).is_none_or(in_pod);
    // The node's side of the pod's link is listed just before the pod's own. Bridges come before that, and what limits
    // bandwidth after it.
    let before = &interfaces[..own.unwrap_or(interfaces.len())];
    let device = before.iter().rfind(|i| !in_pod(i)).or_else(|| interfaces.iter().find(|i| !in_pod(i)));
    let parse = |ip: &Ip| {
        let net: Result<IpNet, _> = ip.address.parse();
        net.map(|net| net.addr())
            .map_err(|_| Error::new(code::INVALID_CONFIG, format!("prevResult: {:?} is no address", ip.address)))
    };
    Ok(Attached {
        addresses: ips.iter().filter(|ip| is_own(ip)).map(parse).collect::<Result<_, _>>()?,
        device: device.map(|i| i.name.clone()),
        mac: own.map(|i| interfaces[i].mac.clone()).filter(|mac| !mac.is_empty()),
    })
}
