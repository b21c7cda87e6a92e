//! The metrics every process has: memory, CPU time, start time, open files.
//!
//! Owns: reading `/proc/self`. Must not: keep anything up to date; the numbers are read when somebody asks.
//! A number that cannot be read is left out: an absent metric is honest, a zero is not.

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// The unit of times in `/proc`: Linux fixes `USER_HZ` at 100 on every platform this is built for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads this process's numbers at every scrape.
#[derive(Debug)]
pub struct ProcessCollector {
    /// Read once: it depends on the wall clock's idea of the boot time, which may be adjusted later.
    start_time: Option<f64>,
}

impl ProcessCollector {
    /// A collector for this process.
    pub fn new() -> Self {
        Self { start_time: start_time() }
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut put = |name: &str, help: &str, unit: Option<Unit>, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, unit.as_ref(), metric.metric_type())?)
        };
        if let Some(bytes) = resident_bytes() {
            let metric = ConstGauge::new(bytes);
            put("process_resident_memory", "Resident memory size", Some(Unit::Bytes), &metric)?;
        }
        if let Some(seconds) = Stat::read().map(|stat| stat.cpu_seconds) {
            let metric = ConstCounter::new(seconds);
            put("process_cpu", "User and system CPU time spent", Some(Unit::Seconds), &metric)?;
        }
        if let Some(seconds) = self.start_time {
            let metric = ConstGauge::new(seconds);
            put("process_start_time", "Start of the process since the epoch", Some(Unit::Seconds), &metric)?;
        }
        if let Some(count) = open_fds() {
            put("process_open_fds", "Open file descriptors", None, &ConstGauge::new(count))?;
        }
        Ok(())
    }
}

/// The fields of `/proc/self/stat` that are used here.
struct Stat {
    cpu_seconds: f64,
    start_after_boot: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The second field is the program's name in parentheses and may itself hold spaces and parentheses.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // proc(5) counts from 1; the first field after the name is number 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
            start_after_boot: field(22)? / TICKS_PER_SECOND,
        })
    }
}

fn start_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + Stat::read()?.start_after_boot)
}

fn resident_bytes() -> Option<i64> {
    // `status` counts in kB, `stat` in pages, whose size differs between machines and would have to be asked for.
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
}

fn open_fds() -> Option<i64> {
    let listed = fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the directory being listed.
    i64::try_from(listed.saturating_sub(1)).ok()
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn a_strange_program_name_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 119 0 0 0 250 50 0 0 20 0 1 0 12345 1 1 1";
        let Stat { cpu_seconds, start_after_boot } = Stat::parse(stat).unwrap();
        assert_eq!((cpu_seconds, start_after_boot), (3.0, 123.45));
        assert!(Stat::parse("7 (short) S 1").is_none());
    }

    #[test]
    fn every_metric_is_there_under_its_customary_name() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector::new()));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for (name, least) in [
            ("process_resident_memory_bytes", 100_000.0),
            ("process_cpu_seconds_total", 0.0),
            ("process_start_time_seconds", 1.6e9),
            ("process_open_fds", 3.0),
        ] {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            let value: f64 = line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap();
            assert!(value >= least, "{name} {value}");
        }
    }
}
