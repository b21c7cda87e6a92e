//! What holds of a pod's addresses: what its node says, or its status.

use super::objects::{key, mk_pod};
use crate::api::NodeEnforcementStatus;
use crate::controller::ahead::Ahead;
use crate::index::{Index, Indexed, Update};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn report(told: Option<&[&str]>) -> NodeEnforcementStatus {
    let attachments: Vec<_> = told
        .iter()
        .map(|told| json!({ "namespace": "shop", "name": "web", "uid": "uid-web", "addresses": told }))
        .collect();
    serde_json::from_value(json!({ "bootID": "boot", "attachments": attachments })).unwrap()
}

#[test]
fn what_a_node_says_no_more_is_shown_or_late() {
    const NONE: &[&str] = &[];
    let a = &["10.0.0.1"][..];
    let b = &["10.0.0.2"][..];
    let both = &["10.0.0.1", "10.0.0.2"][..];
    for (before, told, after, expected, why) in [
        (NONE, a, a, None, "the status shows it"),
        (NONE, a, NONE, Some(a), "it will"),
        (NONE, both, a, Some(both), "it shows a part of it"),
        (a, both, b, None, "it has lost what it showed before"),
        (NONE, NONE, a, Some(NONE), "it is late: that was given back"),
    ] {
        let (mut ahead, mut index, web) = (Ahead::default(), Index::default(), key("web"));
        let shows = |index: &mut Index, status: &[&str]| {
            index.update(Update::Target(mk_pod("web", "web", Some("n1"), status).keep()));
        };
        shows(&mut index, before);
        assert_eq!(ahead.set("n1", Some(&report(Some(told)))), [web.clone()].into());
        let known = |ahead: &mut Ahead, index: &Index| ahead.of(index, &web).map(|(_, addresses)| addresses);
        assert_eq!(known(&mut ahead, &index), Some(addresses(told)));
        shows(&mut index, after);
        assert_eq!(known(&mut ahead, &index), Some(addresses(told)), "as long as it is said");
        ahead.set("n1", Some(&report(None)));
        assert_eq!(known(&mut ahead, &index), expected.map(addresses), "{why}");
        shows(&mut index, &["10.0.0.9"]);
        assert_eq!(known(&mut ahead, &index), None, "another status");
    }
}
