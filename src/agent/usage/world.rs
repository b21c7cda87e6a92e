//! Which rules a connection is counted for: all those that allow it, at each end that is guarded here.
//!
//! PURE. The verdict is the reference's. Connections are looked at some seconds after they were opened, and who opened one may
//! be gone by then: so what went is remembered for a while, and is asked where the present has no answer.

use crate::agent::committed::Committed;
use crate::nft::model::Addresses;
use crate::nft::opened::Opened;
use crate::policy::{Direction, Interface, NamespacedName, Rule, World};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What was enforced and is not any more.
#[derive(Debug, Default)]
struct Left {
    interfaces: BTreeMap<IpAddr, Vec<Arc<Interface>>>,
    members: BTreeMap<NamespacedName, Vec<Addresses>>,
}

/// What is enforced, and what was until lately.
#[derive(Debug, Default)]
pub struct Recent {
    now: Arc<Committed>,
    /// Since the last look, and before it: a connection may be seen one look after it was opened.
    left: [Left; 2],
}

impl Recent {
    /// What is enforced now.
    pub fn now(&self) -> &Committed {
        &self.now
    }

    /// Something else is enforced from now on.
    pub fn advance(&mut self, next: Arc<Committed>) {
        let before = std::mem::replace(&mut self.now, next);
        let left = &mut self.left[0];
        for (address, end) in &before.ends {
            if self.now.ends.get(address).is_none_or(|now| now.rules != end.rules) {
                left.interfaces.entry(*address).or_default().push(end.rules.clone());
            }
        }
        for (group, addresses) in &before.members {
            let gone = match self.now.members.get(group) {
                Some(now) if Arc::ptr_eq(now, addresses) => continue,
                Some(now) => Arc::new(addresses.difference(now).copied().collect::<BTreeSet<_>>()),
                None => addresses.clone(),
            };
            if !gone.is_empty() {
                left.members.entry(group.clone()).or_default().push(gone);
            }
        }
    }

    /// All connections that were opened so far were looked at.
    pub fn looked(&mut self) {
        self.left.swap(0, 1);
        self.left[0] = Left::default();
    }

    /// What left is remembered no more. Tells whether there was anything.
    pub fn forget(&mut self) -> bool {
        let forgotten = std::mem::take(&mut self.left);
        forgotten.iter().any(|left| !(left.interfaces.is_empty() && left.members.is_empty()))
    }

    /// Names the rules that allow connections like this, with their groups and directions.
    pub fn allowing(&self, opened: &Opened, mut name: impl FnMut(&NamespacedName, Direction, &Rule)) {
        let connection = opened.connection();
        for direction in Direction::ALL {
            let (own, _) = connection.ends(direction);
            // Who has the address now comes first, and then who had it last.
            let left = self.left.iter().filter_map(|left| left.interfaces.get(&own)).flat_map(|left| left.iter().rev());
            let now = self.now.ends.get(&own).map(|end| &end.rules);
            for interface in now.into_iter().chain(left) {
                let view = View { recent: self, address: own, interface };
                let mut allowed = false;
                for (group, rule) in view.allowing(direction, &connection) {
                    name(group, direction, rule);
                    allowed = true;
                }
                if allowed {
                    break;
                }
            }
        }
    }
}

/// One guarded address, with the rules that it has or had.
struct View<'a> {
    recent: &'a Recent,
    address: IpAddr,
    interface: &'a Interface,
}

impl World for View<'_> {
    fn interface(&self, address: IpAddr) -> Option<&Interface> {
        (address == self.address).then_some(self.interface)
    }

    fn is_member(&self, group: &NamespacedName, address: IpAddr) -> bool {
        let Recent { now, left } = self.recent;
        let left = left.iter().filter_map(|left| left.members.get(group)).flatten();
        now.members.get(group).into_iter().chain(left).any(|addresses| addresses.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::committed::End;
    use crate::policy::{Group, PortSet, Remote, Traffic, Transport, parse_cidr};

    const WEB: &str = "10.0.0.1";
    const APP: &str = "10.0.0.2";

    fn name(name: &str) -> NamespacedName {
        NamespacedName::new("shop", name)
    }

    fn tcp(port: u16, remote: Remote) -> Rule {
        Rule { traffic: Traffic::Ports(Transport::Tcp, PortSet::from_iter([port..=port])), remote }
    }

    fn anyone() -> Remote {
        Remote::Cidrs(["0.0.0.0/0", "::/0"].iter().map(|cidr| parse_cidr(cidr).unwrap()).collect())
    }

    /// WEB has these groups, each with these rules inwards; APP is in the group app.
    fn committed(groups: &[(&str, &[Rule])], app: &[&str]) -> Arc<Committed> {
        let interface: Interface = groups
            .iter()
            .map(|(group, rules)| (name(group), Arc::new(Group { ingress: rules.to_vec(), egress: vec![] })))
            .collect();
        let app: BTreeSet<IpAddr> = app.iter().map(|address| address.parse().unwrap()).collect();
        let end = End { rules: Arc::new(interface), ..End::default() };
        Arc::new(Committed {
            ends: [(WEB.parse().unwrap(), Arc::new(end))].into(),
            members: [(name("app"), Arc::new(app))].into(),
            ..Committed::default()
        })
    }

    fn allowing(recent: &Recent, port: u16) -> Vec<String> {
        let (source, destination) = (APP.parse().unwrap(), WEB.parse().unwrap());
        let mut found = Vec::new();
        let opened = Opened { source, destination, protocol: 6, number: port };
        recent.allowing(&opened, |group, direction, rule| {
            found.push(format!("{} {} {rule}", group.name, direction.name()));
        });
        found
    }

    #[test]
    fn every_rule_that_allows_a_connection_is_named() {
        let mut recent = Recent::default();
        let app = || Remote::Group(name("app"));
        recent.advance(committed(&[("a", &[tcp(80, app()), tcp(81, anyone())]), ("b", &[tcp(80, anyone())])], &[APP]));
        let expected = ["a ingress TCP 80 sg:shop/app", "b ingress TCP 80 0.0.0.0/0,::/0"];
        assert_eq!(allowing(&recent, 80), expected);
        assert_eq!(allowing(&recent, 81), ["a ingress TCP 81 0.0.0.0/0,::/0"]);
        assert!(allowing(&recent, 82).is_empty());
    }

    #[test]
    fn who_and_what_left_is_remembered_for_two_looks() {
        let app = || Remote::Group(name("app"));
        let rules = [tcp(80, app())];
        for after in [committed(&[("a", &rules)], &[]), committed(&[("a", &[])], &[APP]), Arc::default()] {
            let mut recent = Recent::default();
            recent.advance(committed(&[("a", &rules)], &[APP]));
            recent.advance(after);
            for expected in [1, 1, 0] {
                assert_eq!(allowing(&recent, 80).len(), expected);
                recent.looked();
            }
        }
    }

    #[test]
    fn what_is_forgotten_is_known_to_be() {
        let mut recent = Recent::default();
        recent.advance(committed(&[("a", &[tcp(80, Remote::Group(name("app")))])], &[APP]));
        assert!(!recent.forget());
        recent.advance(Arc::default());
        recent.looked();
        assert!(recent.forget());
        assert_eq!(allowing(&recent, 80), Vec::<String>::new());
        assert!(!recent.forget());
    }

    #[test]
    fn what_the_present_allows_is_not_counted_for_the_past() {
        let mut recent = Recent::default();
        recent.advance(committed(&[("a", &[tcp(80, anyone())])], &[]));
        recent.advance(committed(&[("b", &[tcp(80, anyone())])], &[]));
        assert_eq!(allowing(&recent, 80), ["b ingress TCP 80 0.0.0.0/0,::/0"]);
    }
}
