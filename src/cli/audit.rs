//! `kubectl sg audit`: what is valid and rarely meant, for people and for continuous integration.

use super::load::{Source, Wanted};
use super::model::findings::{CHECKS, Finding, Level, findings, in_order};
use super::model::unused::{day, silent_nodes, unused};
use super::output::{Answer, Cell, Outcome, Paint, Table, Tone, counted};
use jiff::Timestamp;
use serde_json::{Value, json};

/// What to look at.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Every namespace.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print. SARIF is what code hosts show beside the lines they are about.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// From which level on the exit code is 1.
    #[arg(long, value_enum, default_value_t = Level::Warning, value_name = "LEVEL")]
    fail_on: Level,
    /// After how many days without a connection a rule counts as unused; 0: rules that no connection has used since they are
    /// counted.
    #[arg(long, default_value_t = 30, value_name = "DAYS")]
    unused_days: u32,
    #[command(flatten)]
    source: Source,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
    Sarif,
}

/// Looks.
pub async fn run(args: Args, paint: Paint) -> anyhow::Result<Outcome> {
    let wanted = Wanted { targets: true, usage: true, ..Wanted::default() };
    let (mut inventory, namespace) = args.source.load(wanted).await?;
    let everywhere = args.all_namespaces || args.source.offline.offline && args.source.connection.namespace.is_none();
    let scope = Some(namespace.as_str()).filter(|_| !everywhere);
    let now = Timestamp::now();
    let mut found = findings(&inventory, scope);
    found.extend(unused(&inventory, scope, args.unused_days, now));
    found.sort_by(in_order);
    if inventory.usages.is_none() && !args.source.offline.offline {
        inventory.notes.push("no node's counts can be seen: unused rules are not looked for".to_owned());
    }
    for (node, until) in silent_nodes(&inventory, now) {
        let told = until.map_or("has not told yet".to_owned(), |until| format!("told last on {}", day(until)));
        inventory.notes.push(format!("node {node} {told} what it counts: of rules of its groups nothing is said"));
    }
    let failed = found.iter().any(|finding| finding.level >= args.fail_on);
    let text = match args.output {
        Format::Table => table(&found, paint),
        Format::Json => serde_json::to_string_pretty(&found)? + "\n",
        Format::Sarif => serde_json::to_string_pretty(&sarif(&found))? + "\n",
    };
    Ok(Outcome { text, notes: inventory.notes, answer: if failed { Answer::No } else { Answer::Yes } })
}

fn table(found: &[Finding], paint: Paint) -> String {
    if found.is_empty() {
        return "nothing found\n".to_owned();
    }
    let mut table = Table::new(["LEVEL", "CHECK", "NAMESPACE", "OBJECT", "RULE", "MESSAGE"]);
    for Finding { check, level, object, namespace, rule, message, file: _ } in found {
        let (word, tone) = match level {
            Level::Error => ("error", Tone::Bad),
            Level::Warning => ("warning", Tone::Doubtful),
            Level::Note => ("note", Tone::Plain),
        };
        let rest = [check, namespace.as_str(), object, rule.as_deref().unwrap_or("-"), message].map(Cell::from);
        table.row([Cell::toned(word, tone)].into_iter().chain(rest));
    }
    format!("{}\n{}\n", table.render(paint), counted(found.len(), "finding"))
}

/// SARIF 2.1.0. Where there is no file, as in a cluster, the object is the place.
fn sarif(found: &[Finding]) -> Value {
    let rules = CHECKS.map(|(id, text)| json!({ "id": id, "shortDescription": { "text": text } }));
    let results: Vec<Value> = found
        .iter()
        .map(|finding| {
            let Finding { check, level, object, namespace, rule, message, file } = finding;
            let mut name = format!("{namespace}/{object}");
            name.extend(rule.iter().flat_map(|rule| ["/", rule]));
            let mut location = json!({ "logicalLocations": [{ "fullyQualifiedName": name, "kind": "object" }] });
            if let Some(file) = file {
                location["physicalLocation"] = json!({ "artifactLocation": { "uri": file } });
            }
            json!({
                "ruleId": check, "level": level, "message": { "text": format!("{namespace}/{object}: {message}") },
                "locations": [location], "partialFingerprints": { "ringfence/v1": format!("{check}/{name}") },
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "kubectl-sg", "version": env!("CARGO_PKG_VERSION"), "rules": rules } },
            "results": results,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sarif_names_a_check_that_it_lists() {
        let finding = Finding {
            check: CHECKS[0].0,
            level: Level::Error,
            object: "sg/web".into(),
            namespace: "shop".into(),
            rule: Some("abc".into()),
            message: "open".into(),
            file: Some("groups.yaml".into()),
        };
        let sarif = sarif(std::slice::from_ref(&finding));
        let run = &sarif["runs"][0];
        assert_eq!(run["results"][0]["level"], "error");
        assert_eq!(run["results"][0]["ruleId"], run["tool"]["driver"]["rules"][0]["id"]);
        let location = &run["results"][0]["locations"][0];
        assert_eq!(location["physicalLocation"]["artifactLocation"]["uri"], "groups.yaml");
        assert_eq!(location["logicalLocations"][0]["fullyQualifiedName"], "shop/sg/web/abc");
        assert!(table(&[finding], Paint(false)).ends_with("\n1 finding\n"));
    }
}
