//! Finds the revisions that the kernel refuses, so that one bad group does not hold up the others (S13).

use super::committed::Revision;
use super::state::HeldBack;
use crate::policy::NamespacedName;
use std::collections::BTreeMap;

/// Tries each revision that is not in the kernel yet alone, on top of what is, and returns those that are refused.
///
/// `refuses` answers for a set of revisions: what the kernel says against it, if anything.
pub async fn find_refused(
    committed: &BTreeMap<NamespacedName, Revision>,
    wanted: &BTreeMap<NamespacedName, Revision>,
    mut refuses: impl AsyncFnMut(&BTreeMap<NamespacedName, Revision>) -> Option<String>,
) -> BTreeMap<NamespacedName, HeldBack> {
    // What is no longer wanted is no longer there; what is new is added one by one.
    let mut good: BTreeMap<NamespacedName, Revision> = committed
        .iter()
        .filter(|(name, revision)| wanted.get(*name).is_some_and(|w| w.uid == revision.uid))
        .map(|(name, revision)| (name.clone(), revision.clone()))
        .collect();
    let mut refused = BTreeMap::new();
    for (name, revision) in wanted.iter().filter(|(name, revision)| committed.get(*name) != Some(revision)) {
        let instead = good.insert(name.clone(), revision.clone());
        if let Some(message) = refuses(&good).await {
            match &instead {
                Some(instead) => good.insert(name.clone(), instead.clone()),
                None => good.remove(name),
            };
            let held = HeldBack { refused: (revision.uid.clone(), revision.generation), instead, message };
            refused.insert(name.clone(), held);
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn revisions(list: &[(&str, i64)]) -> BTreeMap<NamespacedName, Revision> {
        let revision = |generation| Revision { uid: "u".into(), generation, rules: Arc::default() };
        list.iter().map(|&(name, generation)| (NamespacedName::new("shop", name), revision(generation))).collect()
    }

    #[tokio::test]
    async fn s13_only_the_bad_one_is_held_back_at_its_last_good_revision() {
        let committed = revisions(&[("a", 1), ("b", 1), ("gone", 1)]);
        let wanted = revisions(&[("a", 2), ("b", 2), ("c", 1), ("d", 1)]);
        let bad = |name: &NamespacedName, r: &Revision| (name.name == "b" && r.generation == 2) || name.name == "d";
        let refused = find_refused(&committed, &wanted, async |tried| {
            assert!(!tried.contains_key(&NamespacedName::new("shop", "gone")));
            tried.iter().any(|(n, r)| bad(n, r)).then(|| "no".to_owned())
        })
        .await;
        let held: Vec<(&str, Option<i64>)> =
            refused.iter().map(|(n, h)| (n.name.as_str(), h.instead.as_ref().map(|r| r.generation))).collect();
        assert_eq!(held, [("b", Some(1)), ("d", None)]);
    }
}
