//! `kubectl sg explain --connections FILE`: the verdict on each of many connections, in a line each.
//!
//! Owns the file's format. The verdicts are [`explain`](super::explain)'s.

use super::explain::{Explanation, explain};
use super::model::verdicts::{EndVerdict, Scene};
use super::output::{Answer, Cell, Format, Outcome, Paint, Table, Tone};
use anyhow::{Context, bail, ensure};
use serde::Serialize;
use std::io::Read;
use std::path::Path;

/// What is asked of one connection, and the answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explained<'a> {
    from: &'a str,
    to: &'a str,
    /// Whether all that it may mean is allowed.
    allowed: bool,
    explanations: Vec<Explanation>,
}

/// Reads the file; `-` is standard input.
pub fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Explains what is on each line.
pub fn run(scene: &Scene<'_>, namespace: &str, text: &str, format: Format, paint: Paint) -> anyhow::Result<Outcome> {
    let mut all = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let explained = one(scene, namespace, line);
        all.push(explained.with_context(|| format!("line {}", number + 1))?);
    }
    ensure!(!all.is_empty(), "there is no connection to explain: write FROM TO:PORT on a line each");
    let answer = if all.iter().all(|explained| explained.allowed) { Answer::Yes } else { Answer::No };
    let text = match format.document(&all)? {
        Some(text) => text,
        None => table(&all).render(paint),
    };
    Ok(Outcome { text, notes: Vec::new(), answer })
}

fn one<'a>(scene: &Scene<'_>, namespace: &str, line: &'a str) -> anyhow::Result<Explained<'a>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [from, to] = *words.as_slice() else { bail!("{line:?} is not FROM TO:PORT") };
    let explanations = explain(scene, namespace, from, to)?;
    Ok(Explained { from, to, allowed: explanations.iter().all(|explanation| explanation.allowed), explanations })
}

fn table(all: &[Explained<'_>]) -> Table {
    let mut table = Table::new(["VERDICT", "FROM", "TO", "OUT", "IN"]);
    for Explained { from, to, allowed, explanations } in all {
        let (word, tone) = if *allowed { ("ALLOWED", Tone::Good) } else { ("DENIED", Tone::Bad) };
        // What may mean several connections, a Service's, is denied if one of them is: that one says why.
        let telling = explanations.iter().find(|explanation| explanation.allowed == *allowed);
        let ends = telling.map(|explanation| [&explanation.egress, &explanation.ingress].map(short));
        let [out, into] = ends.unwrap_or_default();
        table.row([Cell::toned(word, tone), (*from).into(), (*to).into(), out.into(), into.into()]);
    }
    table
}

fn short(end: &EndVerdict) -> String {
    match &end.rule {
        Some(rule) if end.allowed => format!("{} of {}", rule.id, rule.group),
        _ if end.allowed => end.reason.to_owned(),
        Some(rule) => format!("no rule; nearest {} of {}", rule.id, rule.group),
        None => "no rule".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::manifests::{bring_to_life, read};
    use super::super::model::{inventory::Inventory, snapshot::Snapshot};
    use super::*;

    fn explained(connections: &str) -> anyhow::Result<Outcome> {
        let text = "
{apiVersion: ringfence.io/v1alpha1, kind: SecurityGroup, metadata: {name: web}, spec: {
  ingress: [{protocol: TCP, ports: [80], remote: {cidrs: [0.0.0.0/0]}}], egress: []}}
---
{apiVersion: ringfence.io/v1alpha1, kind: SecurityGroupBinding, metadata: {name: web}, spec: {
  securityGroups: [{name: web}], target: {podSelector: {matchLabels: {app: web}}}}}
---
{kind: Pod, metadata: {name: web, labels: {app: web}}}
---
{kind: Pod, metadata: {name: other}}
";
        let mut inventory = Inventory::default();
        read(text, "shop", &mut inventory).unwrap();
        bring_to_life(&mut inventory, &["10.0.0.0/24".parse().unwrap()]).unwrap();
        let index = inventory.index();
        let snapshot = Snapshot::new(&index);
        let scene = Scene { inventory: &inventory, index: &index, snapshot: &snapshot };
        run(&scene, "shop", connections, Format::Table, Paint(false))
    }

    #[test]
    fn a_line_each() {
        let outcome = explained("# what must work\npod/other pod/web:80\n\npod/web pod/other:80 # nothing goes out\n");
        let Outcome { text, answer, .. } = outcome.unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["VERDICT", "FROM", "TO", "OUT", "IN"]);
        assert_eq!(lines[1][..4], ["ALLOWED", "pod/other", "pod/web:80", "Unguarded"]);
        assert_eq!(lines[2], ["DENIED", "pod/web", "pod/other:80", "no", "rule", "Unguarded"]);
        assert_eq!((lines.len(), answer), (3, Answer::No));
        assert_eq!(explained("192.0.2.1 pod/web:80").unwrap().answer, Answer::Yes);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let error = |text: &str| format!("{:#}", explained(text).unwrap_err());
        assert!(error("pod/other pod/web:80\npod/nobody pod/web:80").starts_with("line 2: there is no live pod"));
        assert!(error("pod/other").contains("is not FROM TO:PORT"));
        assert!(error("# nothing").contains("no connection to explain"));
    }
}
