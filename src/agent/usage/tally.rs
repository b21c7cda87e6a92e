//! How many connections each rule allowed, and when that is worth a write.
//!
//! PURE. Of every epoch the kernel tells how many connections there were in all: what is new is what it tells more than
//! before. Counts of rules outlive epochs and agents; only when a rule goes, its count does, and some time after the group was
//! attached to anything here: then whoever sums up goes on with the last that was told.

use super::world::Recent;
use crate::agent::committed::Committed;
use crate::api::{NodeUsageSpec, UsedGroup, UsedRule};
use crate::nft::opened::{Count, Opened};
use crate::nft::usage::{Epoch, LIFETIME};
use crate::policy::{Direction, Group, NamespacedName, Rule, RuleId};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// That a rule was matched for the first time is worth a write, …
const FIRST_MATCH: Duration = Duration::from_secs(15);
/// … that there are other rules, that something was missed, or that a count has doubled, not so soon, …
const CHANGED: Duration = Duration::from_mins(5);
/// … that a count is another one, later, …
const COUNTED: Duration = Duration::from_hours(1);
/// … and that there is still somebody who counts, at last.
const ALIVE: Duration = Duration::from_hours(24);
/// What was counted of a group that is attached to nothing here any more is told for so long.
const KEPT: Duration = Duration::from_hours(24);
/// What is written is an object of the API server's. More rules than these are those of a node in trouble.
const MAX_RULES: usize = 4_096;
/// Hashes of rules that are kept, so as not to be computed for every connection.
const MAX_IDS: usize = 16_384;

/// How a rule is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// Connections that it allowed.
    pub connections: u64,
    /// When it last did, to the second.
    pub last: Option<Timestamp>,
    since: Timestamp,
}

#[derive(Debug, Default, PartialEq)]
struct Known {
    uid: String,
    rules: BTreeMap<(Direction, RuleId), Used>,
    /// Since when the group is attached to nothing.
    idle: Option<Timestamp>,
}

impl Known {
    fn is_over(&self, now: Timestamp) -> bool {
        self.idle.is_some_and(|idle| now.duration_since(idle).unsigned_abs() >= KEPT)
    }
}

/// The groups that there are, with their uids and latest rules.
pub type Existing = BTreeMap<NamespacedName, (String, Option<Arc<Group>>)>;

/// See the module.
#[derive(Debug)]
pub struct Tally {
    groups: BTreeMap<NamespacedName, Known>,
    attached: BTreeSet<NamespacedName>,
    gap: Option<Timestamp>,
    /// What an epoch, the one that was counted last, has told so far.
    seen: (Epoch, HashMap<Opened, u64>),
    ids: BTreeMap<Rule, RuleId>,
    /// What was written last, and when.
    written: Option<NodeUsageSpec>,
    written_at: Timestamp,
}

impl Tally {
    /// What an earlier agent wrote, if it did.
    pub fn restore(written: Option<NodeUsageSpec>, now: Timestamp) -> Self {
        let groups = written.iter().flat_map(|spec| &spec.groups).map(|group| {
            let UsedGroup { namespace, name, uid, rules } = group;
            let rules = rules.iter().map(|rule| {
                let UsedRule { id, direction, connections, last_matched, since } = rule;
                let used = Used {
                    connections: u64::try_from(*connections).unwrap_or_default(),
                    last: last_matched.as_ref().map(|time| time.0),
                    since: since.0,
                };
                (((*direction).into(), RuleId::from(id.clone())), used)
            });
            (NamespacedName::new(namespace, name), Known { uid: uid.clone(), rules: rules.collect(), idle: None })
        });
        let mut tally = Self {
            groups: groups.collect(),
            attached: BTreeSet::new(),
            gap: written.as_ref().and_then(|spec| spec.gap.as_ref()).map(|time| time.0),
            seen: Default::default(),
            ids: BTreeMap::new(),
            // The first match of all does not wait.
            written_at: written.as_ref().map_or(now - FIRST_MATCH, |spec| spec.until.0),
            written,
        };
        // What was counted that long ago is not in the kernel any more.
        if tally.written.is_some() && now.duration_since(tally.written_at).unsigned_abs() >= LIFETIME {
            tally.missed(now);
        }
        tally
    }

    /// As if nothing had been counted up to the end of an epoch.
    pub fn begin_after(epoch: Epoch, now: Timestamp) -> Self {
        let nothing = NodeUsageSpec {
            epoch: i64::try_from(epoch).unwrap_or(i64::MAX),
            until: Time(now),
            gap: Some(Time(whole(now))),
            groups: Vec::new(),
        };
        Self::restore(Some(nothing), now)
    }

    /// The last epoch that was written down, and so is not to be counted again.
    pub fn written_epoch(&self) -> Option<Epoch> {
        self.written.as_ref().and_then(|spec| Epoch::try_from(spec.epoch).ok())
    }

    /// Connections may not have been counted until now.
    pub fn missed(&mut self, now: Timestamp) {
        self.gap = Some(whole(now));
    }

    /// The groups of which it matters whether they exist.
    pub fn concerned<'a>(&'a self, committed: &'a Committed) -> BTreeSet<&'a NamespacedName> {
        self.groups.keys().chain(committed.groups.keys()).collect()
    }

    /// Which rules there are: those of groups that are attached here, and those that were before, of groups that are still
    /// there.
    pub fn know(&mut self, committed: &Committed, existing: Existing, now: Timestamp) {
        self.attached = committed.groups.keys().cloned().collect();
        let mut groups = std::mem::take(&mut self.groups);
        for (name, (uid, latest)) in existing {
            let in_force = committed.groups.get(&name).filter(|of| of.uid == uid).map(|of| &of.rules);
            let mut before = groups.remove(&name).filter(|known| known.uid == uid).unwrap_or_default();
            let mut rules = BTreeMap::new();
            let mut keep = |group: &Group, begin: bool| {
                for direction in Direction::ALL {
                    for rule in group.rules(direction) {
                        let key = (direction, self.id(rule));
                        if let Some(used) = before.rules.remove(&key) {
                            rules.insert(key, used);
                        } else if begin {
                            rules.entry(key).or_insert(Used { connections: 0, last: None, since: whole(now) });
                        }
                    }
                }
            };
            match (in_force, &latest) {
                (Some(in_force), Some(latest)) if Arc::ptr_eq(in_force, latest) => keep(in_force, true),
                (in_force, latest) => {
                    in_force.iter().for_each(|group| keep(group, true));
                    latest.iter().for_each(|group| keep(group, false));
                }
            }
            let idle = if self.attached.contains(&name) { None } else { before.idle.or(Some(now)) };
            if !rules.is_empty() {
                self.groups.insert(name, Known { uid, rules, idle });
            }
        }
    }

    /// What an epoch tells now, as of this moment.
    pub fn count(&mut self, epoch: Epoch, counted: &[(Opened, Count)], recent: &Recent, now: Timestamp) {
        if self.seen.0 != epoch {
            self.seen = (epoch, HashMap::new());
        }
        for (opened, Count { connections, ago }) in counted {
            let before = self.seen.1.insert(*opened, *connections).unwrap_or_default();
            let new = connections.saturating_sub(before);
            if new == 0 {
                continue;
            }
            let last = Some(whole(now - *ago));
            let mut keys = Vec::new();
            recent.allowing(opened, |group, direction, rule| keys.push((group.clone(), direction, self.id(rule))));
            for (group, direction, id) in keys {
                // Of a group that is not known any more nothing is told either.
                let known = self.groups.get_mut(&group).and_then(|known| known.rules.get_mut(&(direction, id)));
                if let Some(used) = known {
                    used.connections = used.connections.saturating_add(new);
                    used.last = used.last.max(last);
                }
            }
        }
    }

    /// Whether there is something to say that is worth a write by now.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let age = now.duration_since(self.written_at).unsigned_abs();
        if age < FIRST_MATCH {
            return false;
        }
        let written: BTreeMap<_, _> = self.written.iter().flat_map(rules_of).collect();
        let mut others = self.written.as_ref().and_then(|spec| spec.gap.as_ref()).map(|time| time.0) != self.gap;
        let (mut first, mut doubled, mut counted, mut found) = (false, false, false, 0);
        // What there is no room for is never told, and so never worth a write.
        for (name, Known { uid, rules, .. }) in self.told(now) {
            for ((direction, id), used) in rules {
                let key = (name.namespace.clone(), name.name.clone(), uid.clone(), *direction, id.to_string());
                let Some((connections, matched)) = written.get(&key) else {
                    others = true;
                    first |= used.last.is_some();
                    continue;
                };
                found += 1;
                first |= used.last.is_some() && !matched;
                counted |= used.connections != *connections;
                doubled |= used.connections >= connections.saturating_mul(2).max(1);
            }
        }
        others |= found < written.len();
        first
            || (age >= CHANGED && (others || doubled))
            || (age >= COUNTED && counted)
            || (age >= ALIVE && self.written.is_some())
    }

    /// The groups for which there is room; those that are attached come first, and then the namespaces that have fewer rules.
    fn told(&self, now: Timestamp) -> impl Iterator<Item = (&NamespacedName, &Known)> {
        let mut of_namespace = BTreeMap::<_, usize>::new();
        let mut wanted: Vec<_> = (self.groups.iter().filter(|(_, known)| !known.is_over(now)))
            .map(|(name, known)| {
                let is_idle = known.idle.is_some();
                let rules = of_namespace.entry((is_idle, &name.namespace)).or_default();
                *rules += known.rules.len();
                ((is_idle, *rules), name, known)
            })
            .collect();
        wanted.sort_by_key(|(order, ..)| *order);
        let mut room = MAX_RULES;
        wanted.into_iter().filter_map(move |(_, name, known)| {
            room = room.checked_sub(known.rules.len())?;
            Some((name, known))
        })
    }

    /// What to write: everything that was counted up to the end of an epoch, which is now.
    pub fn spec(&self, epoch: Epoch, now: Timestamp) -> NodeUsageSpec {
        let mut groups: Vec<UsedGroup> = self
            .told(now)
            .map(|(name, Known { uid, rules, .. })| UsedGroup {
                namespace: name.namespace.clone(),
                name: name.name.clone(),
                uid: uid.clone(),
                rules: rules.iter().map(|((direction, id), used)| used_rule(*direction, id, used)).collect(),
            })
            .collect();
        groups.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        NodeUsageSpec {
            epoch: i64::try_from(epoch).unwrap_or(i64::MAX),
            until: Time(whole(now)),
            gap: self.gap.map(Time),
            groups,
        }
    }

    /// That was written. What it does not tell any more counts on without us, and would begin anew.
    pub fn wrote(&mut self, spec: NodeUsageSpec) {
        let now = spec.until.0;
        let before = self.written.replace(spec);
        let groups_of = |spec: Option<&NodeUsageSpec>| -> BTreeSet<NamespacedName> {
            let groups = spec.into_iter().flat_map(|spec| &spec.groups);
            groups.map(|group| NamespacedName::new(&group.namespace, &group.name)).collect()
        };
        let (before, told) = (groups_of(before.as_ref()), groups_of(self.written.as_ref()));
        self.groups.retain(|name, known| told.contains(name) || !(before.contains(name) || known.is_over(now)));
        self.written_at = now;
    }

    /// The rules of the groups that are attached here.
    pub fn attached(&self) -> impl Iterator<Item = (&NamespacedName, Direction, &RuleId, u64)> {
        let groups = self.groups.iter().filter(|(name, _)| self.attached.contains(*name));
        groups.flat_map(|(name, known)| {
            known.rules.iter().map(move |((direction, id), used)| (name, *direction, id, used.connections))
        })
    }

    fn id(&mut self, rule: &Rule) -> RuleId {
        if let Some(id) = self.ids.get(rule) {
            return id.clone();
        }
        if self.ids.len() >= MAX_IDS {
            self.ids.clear();
        }
        let id = rule.id();
        self.ids.insert(rule.clone(), id.clone());
        id
    }
}

fn used_rule(direction: Direction, id: &RuleId, used: &Used) -> UsedRule {
    UsedRule {
        id: id.to_string(),
        direction: direction.into(),
        connections: i64::try_from(used.connections).unwrap_or(i64::MAX),
        last_matched: used.last.map(Time),
        since: Time(used.since),
    }
}

type Written = ((String, String, String, Direction, String), (u64, bool));

fn rules_of(spec: &NodeUsageSpec) -> impl Iterator<Item = Written> {
    spec.groups.iter().flat_map(|group| {
        group.rules.iter().map(|rule| {
            let key = (
                group.namespace.clone(),
                group.name.clone(),
                group.uid.clone(),
                rule.direction.into(),
                rule.id.clone(),
            );
            (key, (u64::try_from(rule.connections).unwrap_or_default(), rule.last_matched.is_some()))
        })
    })
}

/// The API keeps whole seconds.
fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::committed::{End, Revision};
    use crate::policy::{Interface, PortSet, Remote, Traffic, Transport, parse_cidr};
    use std::net::IpAddr;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn name() -> NamespacedName {
        NamespacedName::new("shop", "web")
    }

    fn rule(port: u16) -> Rule {
        let anyone = ["0.0.0.0/0"].iter().map(|cidr| parse_cidr(cidr).unwrap()).collect();
        let ports = PortSet::from_iter([port..=port]);
        Rule { traffic: Traffic::Ports(Transport::Tcp, ports), remote: Remote::Cidrs(anyone) }
    }

    fn group(ports: &[u16]) -> Arc<Group> {
        Arc::new(Group { ingress: ports.iter().map(|port| rule(*port)).collect(), egress: vec![] })
    }

    const SERVER: &str = "10.0.0.2";

    /// A server with rules for these ports.
    fn committed(group: &Arc<Group>) -> Arc<Committed> {
        let interface: Interface = [(name(), group.clone())].into();
        let end = End { rules: Arc::new(interface), ..End::default() };
        let revision = Revision { uid: "uid".to_owned(), generation: 1, rules: group.clone() };
        Arc::new(Committed {
            ends: [(SERVER.parse().unwrap(), Arc::new(end))].into(),
            groups: [(name(), revision)].into(),
            ..Committed::default()
        })
    }

    struct World {
        tally: Tally,
        recent: Recent,
        group: Arc<Group>,
    }

    impl World {
        fn new(ports: &[u16], written: Option<NodeUsageSpec>, now: Timestamp) -> Self {
            let group = group(ports);
            let mut recent = Recent::default();
            recent.advance(committed(&group));
            let mut world = Self { tally: Tally::restore(written, now), recent, group };
            world.know(now);
            world
        }

        fn know(&mut self, now: Timestamp) {
            let existing = [(name(), ("uid".to_owned(), Some(self.group.clone())))].into();
            self.tally.know(self.recent.now(), existing, now);
        }

        fn told(&mut self, epoch: Epoch, port: u16, connections: u64, now: Timestamp) {
            let source: IpAddr = "10.0.0.1".parse().unwrap();
            let opened = Opened { source, destination: SERVER.parse().unwrap(), protocol: 6, number: port };
            self.tally.count(epoch, &[(opened, Count { connections, ago: Duration::from_secs(3) })], &self.recent, now);
        }

        fn used(&self, port: u16) -> Option<(u64, Option<u64>)> {
            let used = self.tally.groups.get(&name())?.rules.get(&(Direction::Ingress, rule(port).id()))?;
            Some((used.connections, used.last.map(|last| last.as_second().try_into().unwrap())))
        }
    }

    #[test]
    fn an_epoch_tells_totals_and_what_is_new_is_counted() {
        let mut world = World::new(&[80, 81], None, at(100));
        assert_eq!(world.used(80), Some((0, None)));
        for (told, total) in [(2, 2), (2, 2), (5, 5)] {
            world.told(1, 80, told, at(110));
            assert_eq!(world.used(80), Some((total, Some(107))));
        }
        world.told(2, 80, 4, at(200));
        assert_eq!(world.used(80), Some((9, Some(197))));
        assert_eq!(world.used(81), Some((0, None)));
    }

    #[test]
    fn what_was_written_goes_on_and_rules_that_go_are_forgotten() {
        let mut world = World::new(&[80, 81], None, at(100));
        world.told(1, 80, 5, at(110));
        let spec = world.tally.spec(7, at(120));
        let mut world = World::new(&[80, 82], Some(spec.clone()), at(500));
        assert_eq!(world.tally.written_epoch(), Some(7));
        assert_eq!((world.used(80), world.used(81), world.used(82)), (Some((5, Some(107))), None, Some((0, None))));
        let again = world.tally.spec(7, at(120));
        assert_eq!(
            again.groups[0].rules.iter().find(|r| r.id == rule(80).id().to_string()).unwrap().since,
            Time(at(100))
        );

        // No interface here has the group any more: what was counted stays, and nothing begins.
        world.recent.advance(Arc::default());
        world.group = group(&[80, 83]);
        world.know(at(510));
        assert_eq!((world.used(80), world.used(82), world.used(83)), (Some((5, Some(107))), None, None));
        // A group that is created anew begins anew.
        let another = [(name(), ("another".to_owned(), Some(group(&[80]))))].into();
        world.tally.know(&Committed::default(), another, at(520));
        assert_eq!(world.used(80), None);
    }

    #[test]
    fn a_group_that_is_attached_to_nothing_is_forgotten_a_day_later() {
        const DAY: u64 = 86_400;
        let mut world = World::new(&[80], None, at(0));
        world.told(1, 80, 5, at(110));
        world.tally.wrote(world.tally.spec(1, at(120)));
        let (attached, nothing) = (committed(&world.group), Arc::<Committed>::default());
        // It comes back in time, and what counts is when it went last.
        for (world_at, seen) in [(&nothing, 1_000), (&attached, DAY), (&nothing, DAY + 1_000)] {
            world.recent.advance(world_at.clone());
            world.know(at(seen));
        }
        world.know(at(2 * DAY + 999));
        assert_eq!(world.tally.spec(2, at(2 * DAY + 999)).groups.len(), 1);
        let over = at(2 * DAY + 1_000);
        world.know(over);
        assert!(world.tally.is_due(over));
        let spec = world.tally.spec(2, over);
        assert_eq!((spec.groups.len(), world.used(80).map(|used| used.0)), (0, Some(5)), "not before it is written");
        world.tally.wrote(spec);
        assert_eq!(world.used(80), None);
        // Who sums up has taken over what was told.
        world.recent.advance(attached);
        world.know(at(3 * DAY));
        assert_eq!(world.used(80), Some((0, None)));
    }

    #[test]
    fn writes_wait_for_something_worth_saying() {
        let mut world = World::new(&[80, 81], None, at(1_000));
        assert!(!world.tally.is_due(at(1_010)), "that there are rules can wait");
        world.told(1, 80, 1, at(1_010));
        assert!(world.tally.is_due(at(1_010)), "the first match of all");
        let wrote = |world: &mut World, now| world.tally.wrote(world.tally.spec(1, now));
        wrote(&mut world, at(1_010));
        assert!(!world.tally.is_due(at(80_000)));
        world.told(1, 81, 1, at(1_015));
        assert!(!world.tally.is_due(at(1_024)) && world.tally.is_due(at(1_025)), "the first match of another rule");
        wrote(&mut world, at(1_025));
        for (told, soonest) in [(2, 1_325), (3, 1_325 + 3_600), (3, 4_925 + 86_400)] {
            world.told(1, 80, told, at(1_050));
            assert!(!world.tally.is_due(at(soonest - 1)) && world.tally.is_due(at(soonest)), "{told}");
            wrote(&mut world, at(soonest));
        }
        world.tally.missed(at(100_000));
        assert!(!world.tally.is_due(at(91_624)) && world.tally.is_due(at(91_625)));
    }

    #[test]
    fn rules_for_which_there_is_no_room_are_left_out_and_cause_no_writes() {
        let named = |n: u16| NamespacedName::new(if n == 50 { "small" } else { "shop" }, format!("g{n:02}"));
        let many = |from: u16| group(&(from..from + 500).collect::<Vec<_>>());
        let mut world = World::new(&[80], None, at(100));
        let large = (0..9).chain([50]).map(|n| (named(n), many(1_000 * (n + 1))));
        let groups: BTreeMap<NamespacedName, Arc<Group>> = large.chain([(named(99), group(&[80]))]).collect();
        let revision = |rules: &Arc<Group>| Revision { uid: "uid".to_owned(), generation: 1, rules: rules.clone() };
        let committed = Committed {
            ends: [(SERVER.parse().unwrap(), Arc::new(End { rules: Arc::new(groups.clone()), ..End::default() }))]
                .into(),
            groups: groups.iter().map(|(name, rules)| (name.clone(), revision(rules))).collect(),
            ..Committed::default()
        };
        world.recent.advance(Arc::new(committed));
        let existing = groups.iter().map(|(name, rules)| (name.clone(), ("uid".to_owned(), Some(rules.clone()))));
        world.tally.know(world.recent.now(), existing.collect(), at(100));
        world.told(1, 9_001, 1, at(110));
        let spec = world.tally.spec(1, at(120));
        let told: Vec<&str> = spec.groups.iter().map(|group| group.name.as_str()).collect();
        let fit = ["g00", "g01", "g02", "g03", "g04", "g05", "g06", "g99", "g50"];
        assert_eq!(told, fit, "a small one still fits, and another namespace's has its place");
        world.tally.wrote(spec);
        assert!(!world.tally.is_due(at(3_000)));
    }

    #[test]
    fn what_outlived_the_kernels_sets_was_missed() {
        let spec = |now| World::new(&[80], None, now).tally.spec(1, now);
        assert_eq!(Tally::restore(Some(spec(at(0))), at(60)).gap, None);
        let late = at(LIFETIME.as_secs());
        assert_eq!(Tally::restore(Some(spec(at(0))), late).gap, Some(late));
        assert_eq!(Tally::restore(None, late).gap, None, "nothing was claimed before");
    }
}
