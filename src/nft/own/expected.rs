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
