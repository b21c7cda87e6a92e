//! The node's routes. Reads /proc only.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The node's routes, enough of them to know the device behind which an address is.
pub struct Routes(Vec<(ipnet::IpNet, String)>);

impl Routes {
    /// Those of the main table, as they are now.
    pub fn read() -> Self {
        let v4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
        Self(v4.lines().filter_map(parse_v4).chain(v6.lines().filter_map(parse_v6)).collect())
    }

    /// The device behind which an address is.
    pub fn device(&self, address: IpAddr) -> Option<&str> {
        let covering = self.0.iter().filter(|(net, _)| net.contains(&address));
        covering.max_by_key(|(net, _)| net.prefix_len()).map(|(_, device)| device.as_str())
    }

    /// Whether a default route leads through a device.
    pub fn is_uplink(&self, device: &str) -> bool {
        self.0.iter().any(|(net, through)| net.prefix_len() == 0 && through == device)
    }
}

/// Device, destination and mask, the latter two as little-endian hex: `eth0 0001F40A … 00FFFFFF …`.
fn parse_v4(line: &str) -> Option<(ipnet::IpNet, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = |hex: &str| u32::from_str_radix(hex, 16).ok().map(|n| Ipv4Addr::from(n.swap_bytes()));
    let (destination, mask) = (address(fields.get(1)?)?, address(fields.get(7)?)?);
    let net = ipnet::Ipv4Net::with_netmask(destination, mask).ok()?;
    Some((net.into(), (*fields.first()?).to_owned()))
}

/// Destination, prefix length in hex, …, device: `fd000010024400010000000000000000 40 … cni0`.
fn parse_v6(line: &str) -> Option<(ipnet::IpNet, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let destination = Ipv6Addr::from(u128::from_str_radix(fields.first()?, 16).ok()?);
    let length = u8::from_str_radix(fields.get(1)?, 16).ok()?;
    let net = ipnet::Ipv6Net::new(destination, length).ok()?;
    Some((net.into(), (*fields.last()?).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_route_wins() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\tFE001EAC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            cni0\t0001F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            veth1\t0701F40A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n";
        let v6 = "fd000010024400010000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 cni0\n";
        let routes = Routes(v4.lines().filter_map(parse_v4).chain(v6.lines().filter_map(parse_v6)).collect());
        let device = |address: &str| routes.device(address.parse().unwrap());
        assert_eq!(device("10.244.1.7"), Some("veth1"));
        assert_eq!(device("10.244.1.8"), Some("cni0"));
        assert_eq!(device("8.8.8.8"), Some("eth0"));
        assert_eq!(device("fd00:10:244:1::7"), Some("cni0"));
        assert_eq!(device("2001:db8::1"), None);
        assert!(routes.is_uplink("eth0") && !routes.is_uplink("cni0"));
    }
}
