//! What CNI plugins made of a pod's interface: its addresses, and the devices at both ends.

use ipnet::IpNet;
use serde::Deserialize;
use std::net::IpAddr;

/// The part of a plugin's result that concerns us; the same in every version of CNI that has chains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct CniResult {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    mac: String,
    /// Empty: on the node's side.
    #[serde(default)]
    sandbox: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Ip {
    address: String,
    interface: Option<usize>,
}

impl Interface {
    fn in_pod(&self) -> bool {
        !self.sandbox.is_empty()
    }
}

impl CniResult {
    /// The pod's addresses; what is none is returned as it is written.
    pub fn addresses(&self) -> impl Iterator<Item = Result<IpAddr, &str>> {
        // An address without an interface is the pod's: some plugins list none, or the node's side alone.
        let own = |ip: &&Ip| ip.interface.and_then(|i| self.interfaces.get(i)).is_none_or(Interface::in_pod);
        let parse = |ip: &Ip| ip.address.parse::<IpNet>().map(|net| net.addr());
        self.ips.iter().filter(own).map(move |ip| parse(ip).map_err(|_| ip.address.as_str()))
    }

    /// The link address of the pod's interface.
    pub fn mac(&self, interface: &str) -> Option<&str> {
        let own = &self.interfaces[self.position(interface)?];
        Some(own.mac.as_str()).filter(|mac| !mac.is_empty())
    }

    /// The device at the node's end of the pod's interface, as far as the order tells: it is listed just before the interface.
    /// Bridges come before that, and what limits bandwidth after it.
    pub fn device(&self, interface: &str) -> Option<&str> {
        let before = self.position(interface).map_or(&self.interfaces[..], |own| &self.interfaces[..own]);
        let device = before.iter().rfind(|i| !i.in_pod()).or_else(|| self.interfaces.iter().find(|i| !i.in_pod()));
        device.map(|i| i.name.as_str())
    }

    /// Everything on the node's side: the device, and whatever else the plugins made.
    pub fn outside(&self) -> impl Iterator<Item = &str> {
        self.interfaces.iter().filter(|i| !i.in_pod()).map(|i| i.name.as_str())
    }

    fn position(&self, interface: &str) -> Option<usize> {
        self.interfaces.iter().position(|i| i.in_pod() && i.name == interface)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_other_plugins_say_of_a_pod() {
        let device = |result: Value| {
            let result = CniResult::deserialize(result).unwrap();
            let addresses: Vec<String> = result.addresses().map(|address| address.unwrap().to_string()).collect();
            (addresses, result.device("eth0").map(str::to_owned), result.mac("eth0").map(str::to_owned))
        };
        // Calico: the node's side alone, and addresses of no interface.
        let calico = json!({ "interfaces": [{ "name": "cali1" }], "ips": [{ "address": "10.0.0.1/32" }] });
        assert_eq!(device(calico), (vec!["10.0.0.1".into()], Some("cali1".into()), None));
        // ptp: the pod's side second; an address of the node's side is not the pod's.
        let ptp = json!({
            "interfaces": [{ "name": "veth1", "mac": "a" }, { "name": "eth0", "mac": "b", "sandbox": "/x" }],
            "ips": [{ "address": "10.0.0.1/24", "interface": 1 }, { "address": "10.0.0.254/24", "interface": 0 }],
        });
        assert_eq!(device(ptp), (vec!["10.0.0.1".into()], Some("veth1".into()), Some("b".into())));
        assert_eq!(device(json!({})), (vec![], None, None));
    }
}
