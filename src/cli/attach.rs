//! `kubectl sg attach` and `detach`: bindings, made and deleted.

use super::ask::{Question, agreed};
use super::diff::Comparison;
use super::edit::{DryRun, MANAGER, Writing, wait};
use super::load::{Cluster, Connection, Wanted};
use super::model::findings::ADMIN_PORTS;
use super::model::inventory::Inventory;
use super::model::selectors::{in_common, parse};
use super::output::{Answer, Format, Outcome, Paint};
use crate::api::{LocalGroupReference, SecurityGroupBinding, SecurityGroupBindingSpec, Target};
use crate::controller::lock_out::{AdminPorts, Before};
use crate::index::{TargetKind, TargetName, Update};
use crate::policy::NamespacedName;
use anyhow::{Context, bail, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::Api;
use kube::api::{DeleteParams, PostParams};

/// What to attach to what.
#[derive(Clone, Debug, clap::Args)]
pub struct AttachArgs {
    /// The groups, of the namespace of what they are attached to.
    #[arg(required = true)]
    groups: Vec<String>,
    /// To what: pod/NAME, nic/NAME, several of a kind with commas between them; or a label selector for pods, like
    /// tier=db, or vm:tier=db for virtual machines, nic:tier=db for network interfaces; all, vm:all or nic:all.
    #[arg(long, value_name = "TARGETS")]
    to: String,
    /// Name of the binding; by default made of the groups and the labels.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Secondary networks that the groups are for, by their NetworkAttachmentDefinitions, with commas between them: NAME, or
    /// NAMESPACE/NAME. By default they are for the network that Kubernetes gives.
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',')]
    networks: Vec<String>,
    #[command(flatten)]
    writing: Writing,
    #[command(flatten)]
    connection: Connection,
}

/// What to detach.
#[derive(Clone, Debug, clap::Args)]
pub struct DetachArgs {
    /// The binding, as show lists them.
    binding: String,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Do not do it: only say what it would do, or let the API server judge it as well.
    #[arg(long, value_enum, default_value_t, value_name = "WHO")]
    dry_run: DryRun,
    #[command(flatten)]
    connection: Connection,
}

/// Attaches.
pub async fn attach(args: AttachArgs, paint: Paint) -> anyhow::Result<Outcome> {
    let AttachArgs { groups, to, name, networks, writing, connection } = args;
    let cluster = Cluster::connect(&connection).await?;
    let namespace = cluster.namespace.clone();
    let before = cluster.inventory(Wanted { targets: true, neighbours: false }).await?;
    let target = target(&before, &namespace, &to)?;
    let groups: Vec<String> = groups.iter().map(|g| g.strip_prefix("sg/").unwrap_or(g).to_owned()).collect();
    ensure!(
        networks.is_empty() || !matches!(target, Target::NetworkInterfaceSelector(_)),
        "--networks are those of pods and virtual machines; a nic is one interface of its own"
    );
    let name = name.unwrap_or_else(|| default_name(&groups, &target, &networks));
    let key = NamespacedName::new(&namespace, &name);
    let mut notes = before.notes.clone();
    for group in &groups {
        if !before.groups.contains_key(&NamespacedName::new(&namespace, group)) {
            notes.push(format!("security group {namespace}/{group} does not exist: until it does, it allows nothing"));
        }
    }
    let binding = SecurityGroupBinding {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace.clone()), ..ObjectMeta::default() },
        spec: SecurityGroupBindingSpec {
            security_groups: groups.into_iter().map(|name| LocalGroupReference { name }).collect(),
            target,
            networks: Some(networks).filter(|networks| !networks.is_empty()),
        },
        status: None,
    };
    match before.bindings.get(&key) {
        Some(known) if known.spec == binding.spec => {
            return Ok(Outcome {
                text: format!("sgb/{}: it is attached already\n", key.name),
                notes,
                ..Outcome::default()
            });
        }
        Some(_) => bail!("there is a binding {key} that says something else: give another --name, or detach it first"),
        None => {}
    }
    let mut after = before.clone();
    after.bindings.insert(key.clone(), binding.clone());
    let index = after.index();
    let count = index.targets(&key).count();
    let selects = super::output::counted(count, "target");
    if count == 0 {
        notes.push("the binding selects nothing yet; it will select what comes with these labels".to_owned());
    }
    let comparison = Comparison::new(&before, &after).connections(Format::Table, paint);
    let said = format!("sgb/{}", key.name);
    if writing.dry_run == DryRun::Client {
        let text = format!("{said}: would select {selects}{}\n{comparison}", writing.suffix());
        return Ok(Outcome { text, notes, ..Outcome::default() });
    }
    let api: Api<SecurityGroupBinding> = Api::namespaced(cluster.client, &namespace);
    let params = PostParams { dry_run: writing.dry_run == DryRun::Server, field_manager: Some(MANAGER.to_owned()) };
    let written = api.create(&params, &binding).await.with_context(|| format!("cannot create binding {key}"))?;
    if writing.dry_run == DryRun::Server || !writing.wait {
        let text = format!("{said}: selects {selects}{}\n{comparison}", writing.suffix());
        return Ok(Outcome { text, notes, ..Outcome::default() });
    }
    let (waited, answer) = wait(&api, &written, writing.timeout).await;
    Ok(Outcome { text: format!("{said}: selects {selects}, {waited}\n{comparison}"), notes, answer })
}

/// Detaches.
pub async fn detach(args: DetachArgs, paint: Paint) -> anyhow::Result<Outcome> {
    let DetachArgs { binding, yes, dry_run, connection } = args;
    let question = Question { yes, dry_run };
    question.can_be_asked()?;
    let cluster = Cluster::connect(&connection).await?;
    let name = binding.strip_prefix("sgb/").unwrap_or(&binding);
    let key: NamespacedName = name.parse().unwrap_or_else(|_| NamespacedName::new(&cluster.namespace, name));
    let before = cluster.inventory(Wanted { targets: true, neighbours: false }).await?;
    ensure!(before.bindings.contains_key(&key), "there is no binding {key}; kubectl sg show GROUP lists a group's");
    let mut after = before.clone();
    after.bindings.remove(&key);
    let comparison = Comparison::new(&before, &after);
    let mut consequences = comparison.connections(Format::Table, paint);
    let update = Update::NoBinding(key.clone());
    let mut index = before.index();
    let looked = Before::look(&index, &AdminPorts::from(ADMIN_PORTS), &update);
    index.update(update);
    if let Some(notice) = looked.and_then(|looked| looked.compare(&index)) {
        consequences += &format!("\n{}\n", notice.message());
    }
    consequences += &format!("\n{}", comparison.summary());
    let said = format!("sgb/{}", key.name);
    if !agreed(&question, &format!("{said}\n{consequences}"), "Delete it?")? {
        return Ok(Outcome { text: "left as it is\n".to_owned(), answer: Answer::No, notes: Vec::new() });
    }
    if dry_run != DryRun::Client {
        let api: Api<SecurityGroupBinding> = Api::namespaced(cluster.client, &key.namespace);
        let params = DeleteParams { dry_run: dry_run == DryRun::Server, ..DeleteParams::default() };
        api.delete(&key.name, &params).await.with_context(|| format!("cannot delete binding {key}"))?;
    }
    let done = match dry_run {
        DryRun::None => "deleted",
        DryRun::Client => "would be deleted (dry run)",
        DryRun::Server => "would be deleted (server dry run)",
    };
    let consequences = if question.asks() { "" } else { consequences.as_str() };
    Ok(Outcome { text: format!("{said}: {done}\n{consequences}"), notes: before.notes, ..Outcome::default() })
}

/// What `--to` means.
fn target(inventory: &Inventory, namespace: &str, to: &str) -> anyhow::Result<Target> {
    let of = |kind, selector| match kind {
        TargetKind::Pod => Ok(Target::PodSelector(selector)),
        TargetKind::NetworkInterface => Ok(Target::NetworkInterfaceSelector(selector)),
    };
    if let Some(selector) = to.strip_prefix("vm:") {
        return Ok(Target::VirtualMachineSelector(parse(selector)?));
    }
    if let Some(selector) = to.strip_prefix("nic:") {
        return of(TargetKind::NetworkInterface, parse(selector)?);
    }
    let named: Option<Vec<TargetName>> = to.split(',').map(|name| TargetName::parse(namespace, name.trim())).collect();
    // A label may be called pod/NAME too, but then it has a value.
    let Some(named) = named.filter(|_| !to.contains('=')) else { return of(TargetKind::Pod, parse(to)?) };
    let index = inventory.index();
    let find =
        |name: &TargetName| index.target(name).with_context(|| format!("there is no live {}", name.in_namespace()));
    let targets = named.iter().map(find).collect::<anyhow::Result<Vec<_>>>()?;
    let Some(kind) = named.first().map(|name| name.kind) else { bail!("--to names nothing") };
    ensure!(named.iter().all(|name| name.kind == kind), "a binding selects one kind of target: make one for each");
    let help = "bindings select by labels: give them one that nothing else has, like: kubectl label";
    let names = || named.iter().map(TargetName::in_namespace).collect::<Vec<_>>().join(" ");
    let Some(selector) = in_common(targets.iter().map(|target| &*target.labels)) else {
        bail!("{} have no label in common; {help} {} KEY=VALUE", names(), names());
    };
    let same = |target: &&crate::index::Target| {
        target.name.namespace == namespace
            && selector.match_labels.iter().flatten().all(|(key, value)| target.labels.get(key) == Some(value))
    };
    let others: Vec<String> = index
        .of_kind(kind)
        .filter(same)
        .map(crate::index::Target::key)
        .filter(|key| !named.contains(key))
        .map(|key| key.in_namespace())
        .collect();
    ensure!(
        others.is_empty(),
        "what {} have for labels would select {} too; {help} {} KEY=VALUE",
        names(),
        crate::api::conditions::listed(others),
        names()
    );
    of(kind, selector)
}

/// "db-private-tier-db": of the groups, the labels and the networks, as far as a name can say them.
fn default_name(groups: &[String], target: &Target, networks: &[String]) -> String {
    let selector = match target {
        Target::PodSelector(selector)
        | Target::VirtualMachineSelector(selector)
        | Target::NetworkInterfaceSelector(selector) => selector,
    };
    let LabelSelector { match_labels, match_expressions } = selector;
    let labels = match_labels.iter().flatten().map(|(key, value)| format!("{key}-{value}"));
    let keys = match_expressions.iter().flatten().map(|expression| expression.key.clone());
    let mut words: Vec<String> = groups.iter().cloned().chain(labels).chain(keys).collect();
    if words.len() == groups.len() {
        words.push("all".to_owned());
    }
    words.extend(networks.iter().cloned());
    let fits = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = words.join("-").chars().map(fits).take(63).collect();
    name.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::manifests::{bring_to_life, read};

    fn inventory() -> Inventory {
        let mut inventory = Inventory::default();
        let text = "
kind: Deployment
metadata: {name: web}
spec: {replicas: 2, template: {metadata: {labels: {app: web, pod-template-hash: abc}}}}
---
kind: Pod
metadata: {name: db, labels: {app: db}}
---
kind: Pod
metadata: {name: bare}
---
apiVersion: ringfence.io/v1alpha1
kind: NetworkInterface
metadata: {name: vm, labels: {app: db}}
spec: {nodeName: n1, device: tap0, macAddress: \"52:54:00:00:00:01\", addresses: [10.9.0.1]}
";
        read(text, "shop", &mut inventory).unwrap();
        bring_to_life(&mut inventory, &["10.0.0.0/24".parse().unwrap()]).unwrap();
        inventory
    }

    #[test]
    fn targets_by_name_become_a_selector_of_just_them() {
        let inventory = inventory();
        let of = |to: &str| match target(&inventory, "shop", to) {
            Ok(Target::PodSelector(s)) => format!("pod {:?}", s.match_labels.unwrap_or_default()),
            Ok(Target::VirtualMachineSelector(s)) => format!("vm {:?}", s.match_labels.unwrap_or_default()),
            Ok(Target::NetworkInterfaceSelector(s)) => format!("nic {:?}", s.match_labels.unwrap_or_default()),
            Err(error) => format!("{error:#}"),
        };
        assert_eq!(of("tier=db"), r#"pod {"tier": "db"}"#);
        assert_eq!(of("pod/db"), r#"pod {"app": "db"}"#);
        assert_eq!(of("nic/vm"), r#"nic {"app": "db"}"#);
        assert_eq!(of("vm:a=b"), r#"vm {"a": "b"}"#);
        assert_eq!(of("nic:a=b"), r#"nic {"a": "b"}"#);
        assert_eq!(of("pod/web-0,pod/web-1"), r#"pod {"app": "web"}"#);
        assert_eq!(of("all"), "pod {}");
        assert!(of("pod/web-0").contains("would select pod/web-1 too; bindings select by labels"));
        assert!(of("pod/bare").contains("no label in common"));
        assert!(of("pod/db,nic/vm").contains("one kind of target"));
        assert!(of("pod/gone").contains("there is no live pod/gone"));
    }

    #[test]
    fn a_name_that_kubernetes_takes() {
        let selector = parse("app.kubernetes.io/name=Web,tier in (a)").unwrap();
        let name = default_name(&["web".into()], &Target::PodSelector(selector.clone()), &[]);
        assert_eq!(name, "web-app-kubernetes-io-name-web-tier");
        let on = default_name(&["web".into()], &Target::PodSelector(selector), &["shop/storage".into()]);
        assert_eq!(on, "web-app-kubernetes-io-name-web-tier-shop-storage");
        let all = Target::PodSelector(LabelSelector::default());
        assert_eq!(default_name(&["a".into(), "b".into()], &all, &[]), "a-b-all");
    }
}
