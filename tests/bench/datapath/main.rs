//! The data path's price: packets and connections through a node whose pod is guarded, against a node whose table says
//! `ct state established,related accept` and no more. Prints ratios, and writes them with the machine they were seen on.
//!
//! Every case is a node of its own, with its own client and server, and all of them exist at once: a round visits each for
//! some milliseconds, so that whatever else the machine does meets all of them alike. Sender, node and receiver work on one
//! thread: the kernel carries a packet from the sender's system call to the receiving device before the call returns. That
//! thread's processor time is therefore the price, whole, and other processes can take time but not change it. What the
//! sender alone costs is measured too, on a node that drops packets as they come in, so that the node's own part is known.
//!
//! `make bench-datapath`. Needs root, `nft` and `ip`; `BENCH_DATE` goes into the file. Nothing here can fail by being slow.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark that cannot run panics")]

mod load;
mod nodes;
mod report;
mod rules;
#[path = "../../support/mod.rs"]
mod support;

use nodes::{Case, Ends, Node, Table};
use report::{Machine, Measured};
use ringfence::policy::Family;
use rules::{Client, Size};
use std::time::Instant;

/// How often each case has its turn.
const ROUNDS: usize = 41;

/// The first three of each family are what the others are measured by.
const CASES: &[Case] = &[
    Case { name: "sender alone", family: Family::V4, table: Table::Stopped },
    Case { name: "no rules", family: Family::V4, table: Table::Nothing },
    Case { name: "established accept", family: Family::V4, table: Table::EstablishedAccept },
    Case { name: "the same again", family: Family::V4, table: Table::EstablishedAccept },
    inwards("2 rules, 100 addresses", Family::V4, size(2, 100, 1)),
    inwards("60 rules, 10,000 addresses", Family::V4, size(60, 10_000, 2)),
    inwards("1,000 rules, 100 addresses", Family::V4, size(1_000, 100, 4)),
    inwards("1,000 rules, 100,000 addresses", Family::V4, LARGE),
    Case {
        name: "  connections not counted",
        family: Family::V4,
        table: Table::Ringfence { size: LARGE, ends: Ends::Server, cached: true, counted: false },
    },
    among("  both ends guarded", Ends::Both, true),
    among("  neither end guarded", Ends::Neither, true),
    among("  with a full cache", Ends::Server, false),
    among("  both, with a full cache", Ends::Both, false),
    among("  neither, with a full cache", Ends::Neither, false),
    inwards("  let in by a network", Family::V4, Size { client: Client::InNetwork, ..LARGE }),
    inwards("  a port for 1 group, not 4", Family::V4, Size { port_groups: 1, ..LARGE }),
    inwards("  a port for 20 groups, not 4", Family::V4, Size { port_groups: 20, ..LARGE }),
    Case { name: "IPv6: sender alone", family: Family::V6, table: Table::Stopped },
    Case { name: "IPv6: no rules", family: Family::V6, table: Table::Nothing },
    Case { name: "IPv6: established accept", family: Family::V6, table: Table::EstablishedAccept },
    inwards("IPv6: 2 rules, 100 addresses", Family::V6, size(2, 100, 1)),
    inwards("IPv6: 1,000 rules, 100,000", Family::V6, LARGE),
];

const LARGE: Size = size(1_000, 100_000, 4);

const fn size(rules: usize, addresses: usize, port_groups: usize) -> Size {
    Size { rules, addresses, port_groups, client: Client::Member }
}

const fn among(name: &'static str, ends: Ends, cached: bool) -> Case {
    Case { name, family: Family::V4, table: Table::Ringfence { size: LARGE, ends, cached, counted: true } }
}

const fn inwards(name: &'static str, family: Family, size: Size) -> Case {
    Case { name, family, table: Table::Ringfence { size, ends: Ends::Server, cached: true, counted: true } }
}

fn main() {
    if !support::lab::ready() {
        return;
    }
    let started = Instant::now();
    let mut machine = Machine::here();
    load::stay_on_one_processor();
    let nodes: Vec<Node> = CASES.iter().map(Node::new).collect();
    println!("{} nodes stand after {:.0?}; {ROUNDS} rounds", nodes.len(), started.elapsed());
    let mut measured: Vec<Measured> = nodes.iter().map(|node| Measured::new(node.case)).collect();
    for round in 0..ROUNDS {
        // From either end in turn: what follows what makes no difference.
        let order = 0..nodes.len();
        let order: Vec<usize> = if round % 2 == 0 { order.collect() } else { order.rev().collect() };
        for i in order {
            measured[i].add(nodes[i].turn());
        }
    }
    for node in &nodes {
        node.assert_that_nothing_was_lost();
    }
    machine.look_again();
    report::print(&machine, &measured);
    report::write(&machine, &measured);
    println!("{:.0?} in all", started.elapsed());
}
