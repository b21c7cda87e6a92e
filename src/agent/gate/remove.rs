//! Takes Ringfence off a node: an act of its own, which stopping an agent never is (S8).

use super::Places;
use super::conflist::without_plugin;
use super::install::{STAND_IN, configurations, draft_of, mode_of, remove_if_there, replace_unless_changed};
use super::multus::Multus;
use crate::nft::bridge::{self, Closed};
use crate::nft::exec::Nft;
use crate::nft::own::Watched;
use crate::nft::{Layout, Ruleset, usage};
use anyhow::{Context, bail};
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// For so long others may take to do their part, before this is tried anew, with a pause.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);

/// Removes everything of ours, so that nothing is left that nobody serves any more.
pub async fn remove(places: Places) -> anyhow::Result<()> {
    // First the plugin: without its agent it lets no pod start.
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = plugin(&places) {
        if Instant::now() > deadline {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
    }
    let nft = Nft::default();
    nft.commit(&(Ruleset::removal() + &Watched::removal() + &usage::removal())).await?;
    // By itself, and only where there is one: not every kernel knows tables of bridges.
    if nft.exist([bridge::TABLE, bridge::STAND_IN]).await? != [false, false] {
        nft.commit(&Closed::removal()).await?;
    }
    remove_if_there(places.socket())?;
    let run_dir = &places.run_dir;
    for folder in [places.attachments(), run_dir.clone()] {
        match fs::remove_dir_all(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // As long as it is mounted here by itself it cannot go; it is empty.
            Err(error) if error.kind() == ErrorKind::ResourceBusy && folder == *run_dir => {
                tracing::info!(folder = %run_dir.display(), "this folder stays, empty");
            }
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", folder.display())),
        }
    }
    tracing::info!("Ringfence is off this node");
    Ok(())
}

/// Takes the plugin out of every configuration, and its program off the node.
pub fn plugin(places: &Places) -> anyhow::Result<()> {
    let folder = &places.conf_dir;
    let stand_in = folder.join(STAND_IN);
    // Before anything else becomes the first one.
    if folder.exists() {
        let list = fs::read_to_string(&stand_in).unwrap_or_default();
        let read = |path: PathBuf| Multus::read(&fs::read_to_string(path).ok()?);
        let multus = || anyhow::Ok(configurations(folder)?.into_iter().filter_map(read));
        let is_called = multus()?.any(|multus| multus.calls_file(folder, STAND_IN, &list));
        for path in configurations(folder)?.into_iter().filter(|path| is_called || *path != stand_in) {
            // What is no list, or cannot be read, has never had us.
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let Ok(Some(edited)) = without_plugin(&text) else { continue };
            replace_unless_changed(&path, &text, &edited, mode_of(&path)?)?;
            remove_if_there(&draft_of(&path))?;
        }
        if !is_called {
            remove_if_there(&stand_in)?;
        }
        remove_if_there(&draft_of(&stand_in))?;
        if multus()?.any(|multus| multus.calls_us()) {
            bail!("Multus has not taken the change over yet, and calls the plugin");
        }
    }
    let program = places.program();
    remove_if_there(&draft_of(&program))?;
    remove_if_there(&program)?;
    Ok(())
}
