//! The command line.
fn main() -> anyhow::Result<()> {
    for crd in ringfence::api::crds() {
        let name = format!("crds/{}.yaml", crd.metadata.name.clone().unwrap_or_default());
        std::fs::write(name, ringfence::api::crd_yaml(&crd)?)?;
    }
    Ok(())
}
