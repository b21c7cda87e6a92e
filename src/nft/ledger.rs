//! Who changed the tables that someone watches: their owner, or anybody else.
//!
//! PURE: notifications in, news out. Which process made a transaction does not tell whose it is: in a container one's own
//! processes have other ids than those that the kernel names, and programs may be wrapped. What does tell is how many
//! there are: the kernel has told of a commit before nft ends, so while the owner runs one commit, it hears of one
//! transaction on its tables, or of none if there was nothing to change. Whatever is beyond that is someone else's.

use super::notification::{Notification, Port, Process};
use std::collections::BTreeSet;

/// What a watcher has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Somebody else changed its tables: the first who did.
    pub foreign: Option<Process>,
    /// Notifications were lost: anything may have happened.
    pub lost: bool,
}

/// Names a watcher.
pub type WatcherId = usize;

/// Sorts transactions by whose they are.
#[derive(Default)]
pub struct Ledger {
    watchers: Vec<Watcher>,
    /// Whose tables the transaction has changed that is being told of. What is here of another one stayed because the end of
    /// that one was lost.
    changed: BTreeSet<(Port, WatcherId)>,
}

struct Watcher {
    tables: &'static [&'static str],
    /// While its owner commits: who changed its tables meanwhile.
    meanwhile: Option<Vec<Process>>,
    news: News,
    /// Whether there are news that it was not told to look at.
    untold: bool,
}

impl Ledger {
    /// Watches some tables.
    pub fn watch(&mut self, tables: &'static [&'static str]) -> WatcherId {
        self.watchers.push(Watcher { tables, meanwhile: None, news: News::default(), untold: false });
        self.watchers.len() - 1
    }

    /// Takes a notification in.
    pub fn hear(&mut self, notification: Notification<'_>) {
        match notification {
            Notification::Changes(port, table) => {
                let concerned = self.watchers.iter().enumerate().filter(|(_, w)| w.tables.iter().any(|t| table.is(t)));
                self.changed.extend(concerned.map(|(id, _)| (port, id)));
            }
            Notification::Committed(transaction) => {
                let changed = std::mem::take(&mut self.changed);
                for (_, id) in changed.into_iter().filter(|(port, _)| *port == transaction.port) {
                    let watcher = &mut self.watchers[id];
                    match &mut watcher.meanwhile {
                        Some(meanwhile) => meanwhile.push(transaction.process.clone()),
                        None => watcher.foreign(transaction.process.clone()),
                    }
                }
            }
        }
    }

    /// Notifications were lost.
    pub fn lose(&mut self) {
        for watcher in &mut self.watchers {
            watcher.news.lost = true;
            watcher.untold = true;
        }
    }

    /// The owner begins to commit one transaction.
    pub fn begin(&mut self, id: WatcherId) {
        self.watchers[id].meanwhile = Some(Vec::new());
    }

    /// It is done, or has failed.
    pub fn end(&mut self, id: WatcherId) {
        let watcher = &mut self.watchers[id];
        let meanwhile = watcher.meanwhile.take().unwrap_or_default();
        if meanwhile.len() > 1 {
            // One of them is the owner's, and nothing says which. Its program is nft: what is not is the better guess.
            let guess = meanwhile.iter().find(|process| process.name != "nft").or(meanwhile.last());
            if let Some(process) = guess.cloned() {
                watcher.foreign(process);
            }
        }
    }

    /// What a watcher has not been told of yet.
    pub fn take(&mut self, id: WatcherId) -> News {
        let watcher = &mut self.watchers[id];
        watcher.untold = false;
        std::mem::take(&mut watcher.news)
    }

    /// Those for whom there are news since this was last asked.
    pub fn take_untold(&mut self) -> Vec<WatcherId> {
        let untold = self.watchers.iter_mut().enumerate();
        untold.filter_map(|(id, watcher)| std::mem::take(&mut watcher.untold).then_some(id)).collect()
    }
}

impl Watcher {
    fn foreign(&mut self, process: Process) {
        self.news.foreign.get_or_insert(process);
        self.untold = true;
    }
}

#[cfg(test)]
mod tests {
    use super::super::notification::{Table, Transaction};
    use super::*;

    const INET: &[&str] = &["inet ringfence", "inet ringfence_stand_in"];
    const NETDEV: &[&str] = &["netdev ringfence"];

    fn process(name: &str) -> Process {
        Process { id: 1, name: name.into() }
    }

    impl Ledger {
        fn transaction(&mut self, name: &str, tables: &[Table<'_>]) {
            self.changes(1, tables);
            self.hear(Notification::Committed(Transaction { port: 1, generation: 1, process: process(name) }));
        }

        fn changes(&mut self, port: Port, tables: &[Table<'_>]) {
            for table in tables {
                self.hear(Notification::Changes(port, *table));
            }
        }

        fn foreign(&mut self, id: WatcherId) -> Option<Process> {
            self.take(id).foreign
        }
    }

    fn inet(name: &str) -> Table<'_> {
        Table::new(1, name)
    }

    #[test]
    fn only_what_others_do_to_ones_own_tables_is_news() {
        let mut ledger = Ledger::default();
        let (us, netdev) = (ledger.watch(INET), ledger.watch(NETDEV));
        ledger.transaction("kube-proxy", &[inet("kube-proxy"), Table::new(2, "ringfence")]);
        assert!(ledger.take_untold().is_empty());
        assert_eq!(ledger.take(us), News::default());
        ledger.transaction("nft", &[inet("kube-proxy"), inet("ringfence"), inet("ringfence")]);
        ledger.transaction("other", &[inet("ringfence_stand_in")]);
        assert_eq!(ledger.take_untold(), [us]);
        assert!(ledger.take_untold().is_empty(), "once is enough");
        assert_eq!(ledger.foreign(us), Some(process("nft")), "the first");
        assert_eq!(ledger.foreign(us), None);
        ledger.transaction("nft", &[Table::new(5, "ringfence")]);
        assert_eq!(ledger.take_untold(), [netdev]);
    }

    #[test]
    fn ones_own_commit_is_no_news_but_a_second_one_is() {
        let mut ledger = Ledger::default();
        let (us, netdev) = (ledger.watch(INET), ledger.watch(NETDEV));
        ledger.begin(us);
        ledger.transaction("nft", &[inet("ringfence")]);
        ledger.transaction("nft", &[inet("theirs")]);
        ledger.transaction("someone", &[Table::new(5, "ringfence")]);
        ledger.end(us);
        assert_eq!(ledger.foreign(us), None);
        assert_eq!(ledger.foreign(netdev), Some(process("someone")), "it is not the owner of this one");
        for order in [["firewalld", "nft"], ["nft", "firewalld"]] {
            ledger.begin(us);
            order.into_iter().for_each(|name| ledger.transaction(name, &[inet("ringfence")]));
            ledger.end(us);
            assert_eq!(ledger.take_untold(), [us]);
            assert_eq!(ledger.foreign(us), Some(process("firewalld")), "{order:?}");
        }
        ledger.transaction("nft", &[inet("ringfence")]);
        assert_eq!(ledger.foreign(us), Some(process("nft")), "the commit is over");
    }

    #[test]
    fn what_is_lost_concerns_everybody() {
        let mut ledger = Ledger::default();
        let (us, netdev) = (ledger.watch(INET), ledger.watch(NETDEV));
        ledger.lose();
        assert_eq!(ledger.take_untold(), [us, netdev]);
        assert_eq!(ledger.take(us), News { foreign: None, lost: true });
        // The end of this one is among what was lost: the next one has nothing to do with it.
        ledger.changes(2, &[inet("ringfence")]);
        ledger.transaction("other", &[inet("theirs")]);
        ledger.transaction("other", &[inet("theirs")]);
        assert_eq!(ledger.take(us), News::default());
    }
}
