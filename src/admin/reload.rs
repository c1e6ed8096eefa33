//! The configuration file is read again, by `{"command":"reload"}` and by SIGHUP: first it is looked at as by `vipa check`, then the router goes
//! by it, then the monitor. What any of them refuses leaves everything as it was.
//!
//! Before there is a service for anybody it is to be heard, and as long as it has connections: the router first takes what is served
//! and what will be, together.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Admin;
use crate::balance::host;
use crate::balance::monitor::Change;
use crate::balance::service::Settings;
use crate::config::Config;
use crate::config::difference::Difference;
use crate::engine::descriptors::{self, Limit, Need};
use crate::engine::watchdog;
use crate::link::{self, sysctl};
use crate::privilege;

/// What a forwarder says that read its file again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reloaded {
    /// What is otherwise now.
    pub difference: Difference,
    /// What the file surely does not mean.
    pub warnings: Vec<String>,
}

/// Why everything is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The file is wrong, here or for the forwarder that runs.
    Wrong(String),
    /// It could not be applied.
    Failed(String),
}

/// Reads the file again and goes by it; tells of it in the log.
pub(super) async fn reload(admin: &Admin) -> Result<Reloaded, Refused> {
    let _turn = admin.turn.lock().await;
    let _ = watchdog::reloading();
    let done = attempt(admin).await;
    let _ = watchdog::ready();
    match &done {
        Ok(reloaded) => {
            let Difference { added, removed, changed } = &reloaded.difference;
            tracing::info!(?added, ?removed, ?changed, "reloaded");
            for line in reloaded.warnings.iter().flat_map(|warning| warning.lines()) {
                tracing::warn!("{line}");
            }
        }
        Err(Refused::Wrong(why) | Refused::Failed(why)) => {
            tracing::error!("not reloaded, nothing has changed:");
            why.lines().filter(|line| !line.is_empty()).for_each(|line| tracing::error!("{line}"));
        }
    }
    done
}

async fn attempt(admin: &Admin) -> Result<Reloaded, Refused> {
    let before = admin.config.load_full();
    let directory = admin.socket.parent().map_or_else(PathBuf::new, PathBuf::from);
    let running = Arc::clone(&before);
    let read = tokio::task::spawn_blocking(move || read(&running, &directory)).await;
    let (config, warnings) =
        read.map_err(|error| Refused::Failed(error.to_string()))?.map_err(Refused::Wrong)?;
    let difference = Difference::between(&before, &config);
    let served = admin.balance.served();
    let both = [served.clone(), config.services.clone()].concat();
    admin.reloader.apply(serving(&config, both)).await.map_err(Refused::Failed)?;
    if let Err(why) = admin.balance.configure(&config.adapter.addresses, &config.services) {
        settle(admin, &before, served).await;
        return Err(Refused::Failed(why));
    }
    settle(admin, &config, admin.balance.served()).await;
    descriptors::reserve(Need::of(&config));
    admin.config.store(Arc::new(config));
    Ok(Reloaded { difference, warnings })
}

/// The file, if it is right for this host and for the forwarder that runs here.
fn read(running: &Config, state: &std::path::Path) -> Result<(Config, Vec<String>), String> {
    let forwards = |_: &[crate::config::Nic], family| Some(sysctl::forwards(family));
    let (config, warnings) =
        running.reload(Some(&forwards)).map_err(|errors| errors.to_string())?;
    let missing = privilege::missing(&config, state);
    if !missing.is_empty() {
        return Err(format!("error: {}", privilege::refusal(&missing)));
    }
    if !config.services.is_empty() {
        let view = link::preview_view(&config).map_err(|error| format!("error: {error}"))?;
        let file = config.file.display();
        let mistakes = host::look(&config, &view).mistakes;
        let mistakes: Vec<String> =
            mistakes.iter().map(|wrong| format!("error: {file}, {wrong}")).collect();
        if !mistakes.is_empty() {
            return Err(mistakes.join("\n"));
        }
    }
    let shortage = Need::of(&config).shortage(Limit::of_process().hard);
    Ok((config, warnings.iter().map(ToString::to_string).chain(shortage).collect()))
}

/// Does what an operator asks for; a server that answers by way of this host is heard before it has a connection.
pub(super) async fn change(
    admin: &Admin,
    change: &Change,
    nics: &[std::net::IpAddr],
) -> Result<(), String> {
    let _turn = admin.turn.lock().await;
    let config = admin.config.load_full();
    let served = admin.balance.served();
    let more = admin.balance.would_serve(change, nics)?;
    let is_heard = more.is_some();
    if let Some(more) = more {
        admin.reloader.apply(serving(&config, [served.clone(), vec![more]].concat())).await?;
    }
    let done = admin.balance.change(change, nics);
    if is_heard && done.is_err() {
        settle(admin, &config, served).await;
    }
    done
}

/// What has lost its last connection is heard no more.
pub(super) async fn follow(admin: Arc<Admin>) {
    loop {
        admin.balance.ended().await;
        let _turn = admin.turn.lock().await;
        settle(&admin, &admin.config.load_full(), admin.balance.served()).await;
    }
}

/// To hear more than is served does no harm.
async fn settle(admin: &Admin, config: &Config, served: Vec<Settings>) {
    if let Err(error) = admin.reloader.apply(serving(config, served)).await {
        tracing::warn!(error, "more is kept from the kernel than is served");
    }
}

fn serving(config: &Config, services: Vec<Settings>) -> Arc<Config> {
    Arc::new(Config { services, ..config.clone() })
}
