//! Ratios, as a table for people and as JSON with the machine they were seen on.

use super::nodes::{Case, Table, Turn};
use ringfence::policy::Family;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Where the numbers are true.
pub struct Machine(Value);

impl Machine {
    /// This one, before it is made busy.
    pub fn here() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let nft = Command::new("nft").arg("--version").output().unwrap();
        Self(json!({
            "cpu": model.map(|(_, model)| model),
            "cores": std::thread::available_parallelism().unwrap().get(),
            "kernel": read("/proc/sys/kernel/osrelease"),
            "mitigations": read("/sys/devices/system/cpu/vulnerabilities/spectre_v2"),
            "nft": String::from_utf8_lossy(&nft.stdout).trim(),
            "load_before": load(),
            "date": std::env::var("BENCH_DATE").ok(),
        }))
    }

    /// Whether it did something else in the meantime.
    pub fn look_again(&mut self) {
        self.0["load_after"] = load().into();
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// What else the machine does: the average number of processes that want a processor, for 1, 5 and 15 minutes.
fn load() -> String {
    read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// All turns of one case.
pub struct Measured {
    case: &'static Case,
    turns: Vec<Turn>,
}

/// One kind of traffic, and what a case pays for it.
type Price = fn(&Turn) -> Option<f64>;

const PACKET: Price = |turn| Some(turn.packet);
const CONNECTION: Price = |turn| turn.connection;
const KILOBYTE: Price = |turn| turn.kilobyte;

impl Measured {
    /// Of no turns yet.
    pub fn new(case: &'static Case) -> Self {
        Self { case, turns: Vec::new() }
    }

    /// One more.
    pub fn add(&mut self, turn: Turn) {
        self.turns.push(turn);
    }

    fn price(&self, of: Price) -> Option<f64> {
        median(self.turns.iter().filter_map(of).collect())
    }

    /// How much of the yardstick's rate is left, by the turns of the same round; without a price both pay, if given.
    fn ratio(&self, yardstick: &Self, of: Price, less: Option<&Self>) -> Option<f64> {
        let ratios = self.turns.iter().zip(&yardstick.turns).enumerate().filter_map(|(round, (own, yardstick))| {
            let less = less.and_then(|less| of(&less.turns[round])).unwrap_or_default();
            Some((of(yardstick)? - less) / (of(own)? - less))
        });
        median(ratios.collect())
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A case's numbers; none where a case has no such traffic.
struct Row {
    name: &'static str,
    /// Nanoseconds for a packet, all the way, and the ratio to the yardstick.
    packet: (Option<f64>, Option<f64>),
    /// The same ratio without what the sender costs.
    node: Option<f64>,
    connection: (Option<f64>, Option<f64>),
    kilobyte: (Option<f64>, Option<f64>),
}

fn rows(measured: &[Measured]) -> Vec<Row> {
    let find = |family: Family, wanted: fn(&Table) -> bool| {
        measured.iter().find(|m| m.case.family == family && wanted(&m.case.table)).unwrap()
    };
    let row = |own: &Measured| {
        let yardstick = find(own.case.family, |table| matches!(table, Table::EstablishedAccept));
        let sender = find(own.case.family, |table| matches!(table, Table::Stopped));
        let alone = matches!(own.case.table, Table::Stopped);
        let pair = |of| (own.price(of), own.ratio(yardstick, of, None));
        Row {
            name: own.case.name,
            packet: if alone { (own.price(PACKET), None) } else { pair(PACKET) },
            node: own.ratio(yardstick, PACKET, Some(sender)).filter(|_| !alone),
            connection: pair(CONNECTION),
            kilobyte: pair(KILOBYTE),
        }
    };
    measured.iter().map(row).collect()
}

/// The table.
pub fn print(machine: &Machine, measured: &[Measured]) {
    println!("\n{}\n", serde_json::to_string_pretty(&machine.0).unwrap());
    println!("{:34} {:^26} {:^17} {:^17}", "", "64-byte UDP", "TCP connection", "TCP stream");
    println!(
        "{:34} {:>7} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8}",
        "1.00 = established accept", "ns each", "all", "node", "ns each", "all", "Gbit/s", "all"
    );
    for row in rows(measured) {
        let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        let whole = |number: Option<f64>| number.map_or_else(String::new, |number| format!("{number:.0}"));
        // Bits a nanosecond.
        let gigabits = row.kilobyte.0.map_or_else(String::new, |price| format!("{:.1}", 8_000. / price));
        println!(
            "{:34} {:>7} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8}",
            row.name,
            whole(row.packet.0),
            ratio(row.packet.1),
            ratio(row.node),
            whole(row.connection.0),
            ratio(row.connection.1),
            gigabits,
            ratio(row.kilobyte.1),
        );
    }
    println!("\nns: processor time. all: sender, node and receiver. node: without what the sender alone costs.");
}

/// `target/bench/datapath.json`.
pub fn write(machine: &Machine, measured: &[Measured]) {
    let cases = rows(measured).into_iter().map(|row| {
        json!({
            "name": row.name,
            "packet": {"nanoseconds": row.packet.0, "ratio": row.packet.1, "ratio_of_the_node": row.node},
            "connection": {"nanoseconds": row.connection.0, "ratio": row.connection.1},
            "stream": {"nanoseconds_per_kilobyte": row.kilobyte.0, "ratio": row.kilobyte.1},
        })
    });
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench/datapath.json");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let text = json!({"machine": machine.0, "cases": cases.collect::<Vec<_>>()});
    fs::write(&file, serde_json::to_string_pretty(&text).unwrap() + "\n").unwrap();
    println!("written to {}", file.display());
}
