//! `kubectl sg audit`: what is valid and rarely meant.

/// TCP ports by which machines and their stores are administered, as the chart's recommendations have them by default.
pub const ADMIN_PORTS: [u16; 22] = [
    22, 23, 135, 445, 1433, 1521, 2375, 2376, 2379, 2380, 3306, 3389, 5432, 5900, 5985, 5986, 6379, 6443, 9200, 10250,
    11211, 27017,
];
