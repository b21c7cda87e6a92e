//! Label selectors as `kubectl` takes them, and as bindings have them.
//!
//! PURE.

use anyhow::{Context, bail, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use std::collections::BTreeMap;

/// Reads `tier=db,env in (a, b),!canary`; `all` selects everything.
pub fn parse(text: &str) -> anyhow::Result<LabelSelector> {
    let mut selector = LabelSelector::default();
    if text == "all" {
        return Ok(selector);
    }
    let mut rest = text;
    while !rest.is_empty() {
        let end = end_of_first(rest);
        let (first, behind) = rest.split_at(end);
        rest = behind.strip_prefix(',').unwrap_or(behind);
        add(&mut selector, first.trim()).with_context(|| format!("{text:?} is no label selector"))?;
    }
    ensure!(selector != LabelSelector::default(), "an empty selector selects everything: write all if that is meant");
    Ok(selector)
}

/// Up to the first comma that is in no parentheses.
fn end_of_first(text: &str) -> usize {
    let mut depth = 0;
    for (place, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => return place,
            _ => {}
        }
    }
    text.len()
}

fn add(selector: &mut LabelSelector, text: &str) -> anyhow::Result<()> {
    let mut expression = |key: &str, operator: &str, values: Option<Vec<String>>| -> anyhow::Result<()> {
        let key = label(key)?;
        let operator = operator.to_owned();
        selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement { key, operator, values });
        Ok(())
    };
    if let Some(key) = text.strip_prefix('!') {
        return expression(key, "DoesNotExist", None);
    }
    for (word, operator) in [(" notin ", "NotIn"), (" in ", "In")] {
        if let Some((key, values)) = text.split_once(word) {
            let values = values.trim().strip_prefix('(').and_then(|v| v.strip_suffix(')'));
            let values = values.context("values go in parentheses")?;
            return expression(key, operator, Some(values.split(',').map(|value| value.trim().to_owned()).collect()));
        }
    }
    if let Some((key, value)) = text.split_once("!=") {
        return expression(key, "NotIn", Some(vec![value.trim().to_owned()]));
    }
    let Some((key, value)) = text.split_once('=') else { return expression(text, "Exists", None) };
    let value = value.strip_prefix('=').unwrap_or(value).trim().to_owned();
    let labels = selector.match_labels.get_or_insert_default();
    let other = labels.insert(label(key)?, value.clone());
    ensure!(other.is_none_or(|other| other == value), "a label has one value only");
    Ok(())
}

fn label(text: &str) -> anyhow::Result<String> {
    let text = text.trim();
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if text.is_empty() || !text.chars().all(fits) {
        bail!("{text:?} is no label");
    }
    Ok(text.to_owned())
}

/// Labels that workloads put onto their pods for themselves: they change with every rollout.
const PASSING: [&str; 3] = ["pod-template-hash", "controller-revision-hash", "pod-template-generation"];

/// What all of some targets have in common, as a selector; `None`: nothing.
pub fn in_common<'a>(labels: impl IntoIterator<Item = &'a BTreeMap<String, String>>) -> Option<LabelSelector> {
    let mut all = labels.into_iter();
    let mut common = all.next()?.clone();
    for labels in all {
        common.retain(|key, value| labels.get(key) == Some(value));
    }
    common.retain(|key, _| !PASSING.contains(&key.as_str()));
    (!common.is_empty()).then_some(LabelSelector { match_labels: Some(common), match_expressions: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Selector;

    #[test]
    fn as_kubectl_takes_them() {
        let text = |text| Selector::try_from(parse(text).unwrap()).unwrap().to_string();
        assert_eq!(text("all"), "");
        assert_eq!(text("tier=db"), "tier=db");
        assert_eq!(text("app.kubernetes.io/name==x , tier=db"), "app.kubernetes.io/name=x,tier=db");
        assert_eq!(text("env in (a, b),!canary"), "env in (a,b),!canary");
        assert_eq!(text("env notin (a),x"), "env notin (a),x");
        assert_eq!(text("env!=a"), "env notin (a)");
        for bad in ["", ",", "a b", "a in b", "=x", "a=1,a=2"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_pods_have_in_common_is_not_their_revision() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let one: BTreeMap<_, _> = labels(&[("app", "web"), ("slot", "1"), ("pod-template-hash", "abc")]);
        let two: BTreeMap<_, _> = labels(&[("app", "web"), ("slot", "2"), ("pod-template-hash", "abc")]);
        assert_eq!(in_common([&one, &two]).unwrap().match_labels.unwrap(), labels(&[("app", "web")]));
        assert_eq!(in_common([&labels(&[("pod-template-hash", "abc")])]), None);
        assert_eq!(in_common([]), None);
    }
}
