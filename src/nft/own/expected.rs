//! What the table for devices holds, to be compared with its listing. PURE.

use super::elements::{Element, Set, elements};
use super::skeleton::skeleton;
use super::{Device, Watched, chain_of};
use crate::nft::listing::{Contents, Item};
use std::collections::BTreeSet;

/// All of it, when it is about to become the next one.
///
/// Of a device that went, or came back as another, the next one knows: before Linux 6.15 its chain went with it, and after a
/// change of name it is listed under another one. That is nobody's harm, and whatever there is of the chain is now made anew.
pub(super) fn expected<'a>(watched: &'a Watched, next: &Watched) -> Contents<'a> {
    let Watched { tunnels, devices } = watched;
    let mut contents = Contents::of_skeleton(&skeleton(tunnels));
    for (name, device) in devices {
        let Device { index: _, addresses: _, mac } = device;
        contents.add(
            "chain",
            chain_of(name),
            Item {
                // Its type, and where it leads; in between, whose link address is let through.
                lines: Some(if mac.is_some() { 3 } else { 2 }),
                edition: mac.map(|mac| mac.to_string()).unwrap_or_default(),
                in_flux: next.devices.get(name) != Some(device),
                ..Item::default()
            },
        );
    }
    let elements = elements(devices);
    for set in Set::ALL {
        let own: BTreeSet<Element> = elements.iter().filter(|element| element.set == set).copied().collect();
        let count = own.len();
        let is_own = move |listed: &str| Element::parse(set, listed).is_some_and(|element| own.contains(&element));
        contents.add("set", set, Item::with_elements(count, is_own));
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::super::tests::devices;
    use super::super::{Devices, Tunnels};
    use super::*;
    use crate::nft::Layout;
    use crate::nft::listing::{Fingerprints, difference};

    fn watched(devices: Devices) -> Watched {
        Watched { tunnels: Tunnels::default(), devices }
    }

    /// What nft would list.
    fn listing(watched: &Watched) -> String {
        let mut listing = skeleton(&watched.tunnels).strip_suffix("}\n").unwrap().to_owned();
        for set in Set::ALL {
            let elements: Vec<String> =
                elements(&watched.devices).iter().filter(|e| e.set == set).map(ToString::to_string).collect();
            let (head, tail) = listing.split_once(&format!("\tset {set} {{ ")).unwrap();
            let (type_, tail) = tail.split_once("; }\n").unwrap();
            let elements = elements.join(",\n\t\t\t     ");
            listing = format!("{head}\tset {set} {{\n\t\t{type_}\n\t\telements = {{ {elements} }}\n\t}}\n{tail}");
        }
        for (name, device) in &watched.devices {
            let mac = device.mac.map(|mac| format!("\t\tether saddr != {mac} counter name \"other_mac\" drop\n"));
            let (chain, mac) = (chain_of(name), mac.unwrap_or_default());
            listing += &format!(
                "\tchain {chain} {{\n\t\ttype filter hook ingress device \"{name}\" priority -500; policy accept;\n{mac}\t\tgoto own\n\t}}\n"
            );
        }
        listing + "}\n"
    }

    const MAC: Option<&str> = Some("02:00:00:00:00:01");

    #[test]
    fn a_device_is_its_chain_and_its_elements() {
        let both = watched(devices(&[("a", 1, &["10.0.0.1", "fd00::1"], MAC), ("b", 2, &["10.0.0.2"], None)]));
        let mut fingerprints = Fingerprints::default();
        let mut said = |listing: &str| difference(listing, &both.expected(&both), &mut fingerprints);
        let listing = listing(&both);
        assert_eq!(said(&listing), None);
        let [a, b] = ["a", "b"].map(|name| chain_of(&name.parse().unwrap()));
        assert_eq!(
            said(&listing.replace("\"a\" . 10.0.0.1", "\"a\" . 10.0.0.3")).unwrap(),
            "set own_4 has other elements"
        );
        assert_eq!(
            said(&listing.replace("\"a\" . 10.0.0.1", "\"c\" . 10.0.0.1")).unwrap(),
            "set own_4 has other elements"
        );
        assert_eq!(said(&listing.replace("0xfd", "0xfc")).unwrap(), "set own_targets has other elements");
        assert_eq!(
            said(&listing.replace("\"other_mac\" drop\n", "\"other_mac\" accept\n")).unwrap(),
            format!("chain {a} has changed")
        );
        let (before, after) = listing.rsplit_once("\t\tgoto own\n").unwrap();
        assert_eq!(said(&format!("{before}{after}")).unwrap(), format!("chain {b} has more or fewer rules"));
        let without = listing.replace(&format!("chain {b} {{"), "chain other {");
        assert_eq!(said(&without).unwrap(), format!("there is no chain {b}"));
    }

    #[test]
    fn a_chain_may_go_with_its_device() {
        let before = watched(devices(&[("a", 1, &["10.0.0.1"], MAC), ("b", 2, &["10.0.0.2"], None)]));
        let listed = listing(&before);
        let (without, _) = listed.rsplit_once("\tchain ").unwrap();
        let without = format!("{without}}}\n");
        let said = |next: &Watched| difference(&without, &before.expected(next), &mut Fingerprints::default());
        assert!(said(&before).is_some_and(|said| said.starts_with("there is no chain")));
        assert_eq!(said(&watched(devices(&[("a", 1, &["10.0.0.1"], MAC)]))), None, "gone");
        let back = watched(devices(&[("a", 1, &["10.0.0.1"], MAC), ("b", 3, &["10.0.0.2"], None)]));
        assert_eq!(said(&back), None, "gone, and back");
        let other = watched(devices(&[("b", 2, &["10.0.0.2"], None)]));
        assert!(said(&other).is_some(), "another one is gone");
    }

    #[test]
    fn another_link_address_is_another_edition() {
        let [one, other] = ["02:00:00:00:00:01", "02:00:00:00:00:02"]
            .map(|mac| watched(devices(&[("a", 1, &["10.0.0.1"], Some(mac))])));
        let mut fingerprints = Fingerprints::default();
        for now in [&one, &other, &one] {
            assert_eq!(difference(&listing(now), &now.expected(now), &mut fingerprints), None);
        }
    }
}
