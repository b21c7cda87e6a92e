//! What a change of rules, bindings or members opens and cuts, exactly.
//!
//! PURE. For every two classes of addresses, the reference's verdict on one connection of each kind that rules can tell
//! apart, in both states. It matches nothing itself.

use super::classes::{Class, States};
use super::snapshot::Snapshot;
use super::traffic::{Steps, TrafficSet};
use crate::policy::{Connection, Direction, Family, Rule, Verdict, World};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

/// What becomes of the connections from one class to another.
#[derive(Debug)]
pub struct Delta {
    /// Place of the class of the sources.
    pub from: usize,
    /// Place of the class of the destinations.
    pub to: usize,
    /// What was not allowed, and is.
    pub opened: TrafficSet,
    /// What was allowed, and is no longer.
    pub cut: TrafficSet,
    /// What was allowed, and still is; where the destination is newly guarded, and that is all which is left.
    pub kept: TrafficSet,
}

/// Compares the states over classes of one family. Pairs that no connection can exist between are left out, as are
/// those that stay as they are.
pub fn compare(states: States<'_>, classes: &[Class]) -> Vec<Delta> {
    let (mut before, mut after) = (Reach::new(states.before), Reach::new(states.after));
    let mut deltas = Vec::new();
    for (from, source) in classes.iter().enumerate() {
        for (to, destination) in classes.iter().enumerate() {
            if !(source.concerned || destination.concerned) {
                continue;
            }
            let Some(ends) = ends(source, destination, from == to) else { continue };
            let (was, is) = (before.between(ends.0, ends.1), after.between(ends.0, ends.1));
            let newly = destination.newly_guarded;
            if newly || was != is {
                let kept = if newly { was.intersection(&is) } else { TrafficSet::default() };
                deltas.push(Delta { from, to, opened: is.minus(&was), cut: was.minus(&is), kept });
            }
        }
    }
    deltas
}

/// Two addresses that stand for all connections between two classes; none for a single address and itself.
pub fn ends(source: &Class, destination: &Class, same: bool) -> Option<(IpAddr, IpAddr)> {
    Some((source.one, if same { destination.another? } else { destination.one }))
}

/// What one state of the world allows, with a memory: ends that are guarded alike, whose remotes the same rules mean,
/// agree.
pub struct Reach<'a> {
    world: &'a Snapshot,
    known: HashMap<(Direction, Family, usize, Vec<u64>), Rc<TrafficSet>>,
    all: Rc<TrafficSet>,
}

impl<'a> Reach<'a> {
    /// Asks about a state.
    pub fn new(world: &'a Snapshot) -> Self {
        Self { world, known: HashMap::new(), all: Rc::new(TrafficSet::all()) }
    }

    /// All that an address may send to another, unlike one.
    pub fn between(&mut self, source: IpAddr, destination: IpAddr) -> Rc<TrafficSet> {
        let out = self.end(Direction::Egress, source, destination);
        let into = self.end(Direction::Ingress, source, destination);
        match (*out == *self.all, *into == *self.all) {
            (true, _) => into,
            (_, true) => out,
            _ => Rc::new(out.intersection(&into)),
        }
    }

    /// What one end lets pass.
    pub fn end(&mut self, direction: Direction, source: IpAddr, destination: IpAddr) -> Rc<TrafficSet> {
        let (own, remote) = match direction {
            Direction::Ingress => (destination, source),
            Direction::Egress => (source, destination),
        };
        let Some(guard) = self.world.guard_of(own) else { return self.all.clone() };
        let rules: Vec<&Rule> = guard.rules.values().flat_map(|group| group.rules(direction)).collect();
        let mut means = vec![0; rules.len().div_ceil(64)];
        for (place, rule) in rules.iter().enumerate() {
            means[place / 64] |= u64::from(self.world.is_remote(rule, remote)) << (place % 64);
        }
        let world = self.world;
        let known = self.known.entry((direction, Family::of(own), guard.id, means)).or_insert_with(|| {
            let verdict = |l4| world.end(direction, &Connection { source, destination, l4 }) != Verdict::Denied;
            Rc::new(Steps::of(rules).allowed(verdict))
        });
        known.clone()
    }
}
